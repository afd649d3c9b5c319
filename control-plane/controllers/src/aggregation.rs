//! Aggregated ClusterRoles: a role with an `aggregationRule` has the rules of all roles its selectors match.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::api::ObjectMeta;
use kube::core::{Selector, SelectorExt};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::{Kind, Store};
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{nullable, resource};

/// A ClusterRole.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClusterRole {
    metadata: ObjectMeta,
    aggregation_rule: Option<AggregationRule>,
    #[serde(deserialize_with = "nullable")]
    rules: Vec<Value>,
}
resource!(ClusterRole, "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", ClusterResourceScope);
impl Kind for ClusterRole {}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregationRule {
    #[serde(deserialize_with = "nullable")]
    cluster_role_selectors: Vec<LabelSelector>,
}

struct Controller {
    client: Client,
    roles: Arc<Store<ClusterRole>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let roles = wiring.reads(&all.cluster_roles);
    let controller = Arc::new(Controller { client: context.client.clone(), roles: roles.clone() });
    wiring.wakes(&all.cluster_roles, move |_, new, queue| {
        new.into_iter().for_each(|role| queue.add(role.key()));
        let aggregated = roles.all().into_iter().filter(|role| role.aggregation_rule.is_some());
        aggregated.for_each(|role| queue.add(role.key()));
    });
    wiring.run(context, "clusterrole-aggregation-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(role) = self.roles.get(key).filter(|role| !role.deleting()) else { return Ok(None) };
        if let Some(rules) = aggregated(&role, self.roles.all()) {
            let version = role.meta_version();
            rest::patch(&self.client, &*role, json!({"metadata": {"resourceVersion": version}, "rules": rules}))
                .await?;
        }
        Ok(None)
    }
}

/// The rules an aggregated role should have, if they differ from those it has.
fn aggregated(role: &ClusterRole, mut all: Vec<Arc<ClusterRole>>) -> Option<Vec<Value>> {
    let selectors = &role.aggregation_rule.as_ref()?.cluster_role_selectors;
    all.retain(|other| other.name() != role.name());
    all.sort_by(|a, b| a.name().cmp(b.name()));
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors.iter().filter_map(|s| Selector::try_from(s.clone()).ok()) {
        for rule in all.iter().filter(|other| selector.matches(other.labels())).flat_map(|other| &other.rules) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    let same = rules.len() == role.rules.len() && rules.iter().all(|rule| role.rules.contains(rule));
    (!same).then_some(rules)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_come_together() {
        let role = |value: Value| -> Arc<ClusterRole> { Arc::new(serde_json::from_value(value).unwrap()) };
        let part = |name: &str, rules: Value| {
            role(json!({"metadata": {"name": name, "labels": {"to": "all"}}, "rules": rules}))
        };
        let rule = |verb: &str| json!({"verbs": [verb], "resources": ["pods"], "apiGroups": [""]});
        let whole = |rules: Value| {
            role(json!({"metadata": {"name": "whole", "labels": {"to": "all"}}, "rules": rules,
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}))
        };
        let parts = vec![part("b", json!([rule("list"), rule("get")])), part("a", json!([rule("get")]))];
        let got = aggregated(&whole(json!([])), parts.clone());
        assert_eq!(got, Some(vec![rule("get"), rule("list")]));
        assert_eq!(aggregated(&whole(json!([rule("list"), rule("get")])), parts.clone()), None);
        assert_eq!(aggregated(&whole(json!([rule("get")])), vec![]), Some(vec![]));
        assert_eq!(aggregated(&parts[0], parts.clone()), None, "a plain role keeps its rules");
    }
}

//! PodDisruptionBudgets: counts how many of a budget's pods are healthy and so how many may be evicted now. The eviction
//! subresource spends what this controller grants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
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
use crate::types::{Deployment, Pod, ReplicaSet, ReplicationController, StatefulSet, nullable, portion, resource};

/// An evicted pod that is still there after this time was not evicted after all (as upstream).
const EVICTION_TIMEOUT: Duration = Duration::from_secs(120);

/// A PodDisruptionBudget.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Budget {
    metadata: ObjectMeta,
    spec: BudgetSpec,
    #[serde(deserialize_with = "nullable")]
    status: BudgetStatus,
}
resource!(Budget, "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", NamespaceResourceScope);
impl Kind for Budget {}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetSpec {
    selector: Option<LabelSelector>,
    min_available: Option<IntOrString>,
    max_unavailable: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetStatus {
    observed_generation: i64,
    current_healthy: i32,
    desired_healthy: i32,
    disruptions_allowed: i32,
    expected_pods: i32,
    #[serde(deserialize_with = "nullable")]
    disrupted_pods: BTreeMap<String, Time>,
}

struct Controller {
    client: Client,
    context: Context,
    budgets: Arc<Store<Budget>>,
    pods: Arc<Store<Pod>>,
    // What workloads ask for, to know how many pods a budget should have.
    deployments: Arc<Store<Deployment>>,
    replica_sets: Arc<Store<ReplicaSet>>,
    replication_controllers: Arc<Store<ReplicationController>>,
    stateful_sets: Arc<Store<StatefulSet>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        budgets: wiring.drives(&all.budgets),
        pods: wiring.reads(&all.pods),
        deployments: wiring.reads(&all.deployments),
        replica_sets: wiring.reads(&all.replica_sets),
        replication_controllers: wiring.reads(&all.replication_controllers),
        stateful_sets: wiring.reads(&all.stateful_sets),
    });
    let budgets = controller.budgets.clone();
    wiring.wakes(&all.pods, move |old, new, queue| {
        let state = |pod: &Arc<Pod>| (pod.labels().clone(), pod.ready(), pod.active());
        if old.map(state) == new.map(state) {
            return;
        }
        let Some(any) = new.or(old) else { return };
        for budget in budgets.namespace(any.ns()) {
            let selector = selector(&budget);
            if [old, new].into_iter().flatten().any(|pod| selector.as_ref().is_some_and(|s| s.matches(pod.labels()))) {
                queue.add(budget.key());
            }
        }
    });
    wiring.run(context, "disruption-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(budget) = self.budgets.get(key) else { return Ok(None) };
        let selector = selector(&budget);
        let matching = |pod: &Arc<Pod>| pod.active() && selector.as_ref().is_some_and(|s| s.matches(pod.labels()));
        let pods: Vec<_> = self.pods.namespace(&key.namespace).into_iter().filter(matching).collect();
        let now = self.context.now();
        let status = status(&budget, &pods, self.expected(&pods), now);
        let again = (!status.disrupted_pods.is_empty()).then_some(EVICTION_TIMEOUT);
        if status != budget.status {
            rest::patch_status(&self.client, &*budget, body(&budget.status, &status, now)).await?;
        }
        Ok(again)
    }
}

impl Controller {
    /// Pods the controllers of these pods ask for together; pods without a known controller count as themselves.
    fn expected(&self, pods: &[Arc<Pod>]) -> i32 {
        let mut seen = BTreeSet::new();
        let mut sum = 0;
        for pod in pods {
            let Some(owner) = pod.controller() else {
                sum += 1;
                continue;
            };
            let key = Key::new(pod.ns(), &owner.name);
            let (id, size) = match owner.kind.as_str() {
                "ReplicaSet" => match self.replica_sets.get(&key) {
                    Some(set) => self.replica_set(&set),
                    None => (pod.uid().to_owned(), 1),
                },
                "ReplicationController" => match self.replication_controllers.get(&key) {
                    Some(set) => (set.uid().to_owned(), set.spec.replicas.unwrap_or(1)),
                    None => (pod.uid().to_owned(), 1),
                },
                "StatefulSet" => match self.stateful_sets.get(&key) {
                    Some(set) => (set.uid().to_owned(), set.spec.replicas.unwrap_or(1)),
                    None => (pod.uid().to_owned(), 1),
                },
                _ => (pod.uid().to_owned(), 1),
            };
            if seen.insert(id) {
                sum += size;
            }
        }
        sum
    }

    fn replica_set(&self, set: &ReplicaSet) -> (String, i32) {
        let owner = set.controller().filter(|owner| owner.kind == "Deployment");
        let deployment = owner.and_then(|owner| self.deployments.get(&Key::new(set.ns(), &owner.name)));
        match deployment {
            Some(deployment) => (deployment.uid().to_owned(), deployment.spec.replicas.unwrap_or(1)),
            None => (set.uid().to_owned(), set.spec.replicas.unwrap_or(1)),
        }
    }
}

/// A missing selector selects nothing, an empty one everything (policy/v1).
fn selector(budget: &Budget) -> Option<Selector> {
    Selector::try_from(budget.spec.selector.clone()?).ok()
}

/// The numbers; `scale` is what the pods' controllers ask for.
fn status(budget: &Budget, pods: &[Arc<Pod>], scale: i32, now: Timestamp) -> BudgetStatus {
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let fresh = |at: &Time| now.duration_since(at.0).unsigned_abs() < EVICTION_TIMEOUT;
    let mut disrupted_pods = budget.status.disrupted_pods.clone();
    disrupted_pods.retain(|name, at| fresh(at) && pods.iter().any(|pod| pod.name() == name));
    let healthy = pods.iter().filter(|pod| pod.ready() && !disrupted_pods.contains_key(pod.name())).count();
    let (expected_pods, desired_healthy) = match (&budget.spec.max_unavailable, &budget.spec.min_available) {
        (Some(most), _) => (scale, (scale - portion(most, scale, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count(pods.len()), *least),
        (None, Some(least)) => (scale, portion(least, scale, true)),
        (None, None) => (count(pods.len()), 0),
    };
    let current_healthy = count(healthy);
    let allowed = (current_healthy - desired_healthy).max(0);
    BudgetStatus {
        observed_generation: budget.generation(),
        current_healthy,
        desired_healthy,
        disruptions_allowed: if expected_pods <= 0 { 0 } else { allowed },
        expected_pods,
        disrupted_pods,
    }
}

fn body(old: &BudgetStatus, status: &BudgetStatus, now: Timestamp) -> Value {
    let (value, reason) =
        if status.disruptions_allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    // Entries that are no longer wanted are removed by a null.
    let mut disrupted = json!(status.disrupted_pods);
    for gone in old.disrupted_pods.keys().filter(|name| !status.disrupted_pods.contains_key(*name)) {
        disrupted[gone] = Value::Null;
    }
    json!({
        "observedGeneration": status.observed_generation, "currentHealthy": status.current_healthy,
        "desiredHealthy": status.desired_healthy, "disruptionsAllowed": status.disruptions_allowed,
        "expectedPods": status.expected_pods, "disruptedPods": disrupted,
        "conditions": [{
            "type": "DisruptionAllowed", "status": value, "reason": reason, "message": "",
            "observedGeneration": status.observed_generation, "lastTransitionTime": Time(now),
        }],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_may_be_evicted() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pods = |ready: usize, all: usize| -> Vec<Arc<Pod>> {
            let one = |i: usize| {
                json!({"metadata": {"name": format!("p{i}")}, "status": {"conditions":
                [{"type": "Ready", "status": if i < ready { "True" } else { "False" }}]}})
            };
            (0..all).map(|i| Arc::new(serde_json::from_value(one(i)).unwrap())).collect()
        };
        let recent = json!({"disruptedPods": {"p0": "2026-01-01T00:00:30Z"}});
        let stale = json!({"disruptedPods": {"p0": "2025-01-01T00:00:30Z", "gone": "2026-01-01T00:00:30Z"}});
        for (spec, status_before, pods, scale, expected) in [
            (json!({"minAvailable": 2}), json!({}), pods(3, 3), 3, (3, 2, 1)),
            (json!({"minAvailable": 2}), json!({}), pods(1, 3), 3, (1, 2, 0)),
            (json!({"minAvailable": "50%"}), json!({}), pods(3, 3), 5, (3, 3, 0)),
            (json!({"maxUnavailable": 1}), json!({}), pods(3, 3), 3, (3, 2, 1)),
            (json!({"maxUnavailable": "34%"}), json!({}), pods(3, 3), 3, (3, 1, 2)),
            (json!({"minAvailable": 0}), json!({}), pods(0, 0), 0, (0, 0, 0)),
            (json!({"minAvailable": 1}), recent, pods(3, 3), 3, (2, 1, 1)),
            (json!({"minAvailable": 1}), stale, pods(3, 3), 3, (3, 1, 2)),
        ] {
            let budget: Budget =
                serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status_before})).unwrap();
            let got = status(&budget, &pods, scale, now);
            assert_eq!((got.current_healthy, got.desired_healthy, got.disruptions_allowed), expected, "{spec}");
        }
    }
}

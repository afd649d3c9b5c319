//! ResourceQuotas: says what a namespace has used of its quotas. What an object takes is decided in `sluice_api::quota`; this
//! module counts what is there, read afresh, whenever something of the namespace came, went or changed its size.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::Resource;
use kube::api::{ListParams, ObjectMeta};
use kube::core::{DynamicObject, ObjectList, PartialObjectMeta};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::quantity::Quantity;
use sluice_api::quota::{self, Usage};

use crate::context::Context;
use crate::gc::Catalog;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::{Kind, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{nullable, resource};

/// Resources whose objects do not all take the same: these are read whole.
const SIZED: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];
/// Resources of the core group that a quota counts by their own name.
const COUNTED: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];

/// A ResourceQuota.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Quota {
    metadata: ObjectMeta,
    spec: Value,
    #[serde(deserialize_with = "nullable")]
    status: QuotaStatus,
}
resource!(Quota, "", "v1", "ResourceQuota", "resourcequotas", NamespaceResourceScope);
impl Kind for Quota {}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct QuotaStatus {
    #[serde(deserialize_with = "nullable")]
    hard: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    used: BTreeMap<String, Value>,
}

struct Controller {
    client: Client,
    context: Context,
    catalog: Catalog,
    quotas: Arc<Store<Quota>>,
}

/// Starts the controller. What it returns is to be told of every namespace in which an object came or went.
pub(crate) fn start(context: &Context, all: &Informers, catalog: Catalog) -> impl Fn(&str) + Send + Sync + 'static {
    let mut wiring = Wiring::new();
    let quotas = wiring.reads(&all.quotas);
    let controller = Arc::new(Controller { client: context.client.clone(), context: context.clone(), catalog, quotas });
    wiring.wakes(&all.quotas, |_, new, queue| {
        if let Some(quota) = new {
            queue.add(Key::new("", quota.ns()));
        }
    });
    let (quotas, queue) = (controller.quotas.clone(), wiring.queue());
    // Many objects often come at once: they are counted together.
    let changed = move |namespace: &str| {
        if !quotas.namespace(namespace).is_empty() {
            queue.add_after(Key::new("", namespace), limits::QUOTA_SETTLE);
        }
    };
    let pod_changed = changed.clone();
    wiring.wakes(&all.pods, move |old, new, _| {
        if let (Some(old), Some(new)) = (old, new)
            && (old.finished() != new.finished() || old.generation() != new.generation())
        {
            pod_changed(new.ns());
        }
    });
    let service_changed = changed.clone();
    wiring.wakes(&all.services, move |old, new, _| {
        if let (Some(_), Some(new)) = (old, new) {
            service_changed(new.ns());
        }
    });
    wiring.run(context, "resourcequota-controller", controller);
    changed
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let quotas: Vec<_> = self.quotas.namespace(&key.name).into_iter().filter(|q| !q.deleting()).collect();
        let hard = |quota: &Quota| quota.spec["hard"].as_object().cloned().unwrap_or_default();
        let wanted: BTreeSet<String> =
            quotas.iter().flat_map(|q| hard(q)).filter_map(|(name, _)| source(&name)).collect();
        let mut content = Vec::new();
        for id in &wanted {
            content.push((id.as_str(), self.content(id, &key.name).await?));
        }
        for quota in quotas {
            let hard = hard(&quota).into_iter().collect();
            let used = used(&quota.spec, &content, self.context.now());
            let status = QuotaStatus { hard, used };
            if status != quota.status {
                rest::patch_status(&self.client, &*quota, body(&quota.status, &status)).await?;
            }
        }
        Ok(None)
    }
}

impl Controller {
    /// The namespace's objects of one resource; only as many empty ones where all take the same.
    async fn content(&self, id: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
        let Some(resource) = self.catalog.get(id) else { return Ok(Vec::new()) };
        let url = DynamicObject::url_path(&resource, Some(namespace));
        let request = kube::core::Request::new(url);
        if SIZED.iter().any(|sized| id.strip_suffix('.') == Some(sized)) {
            let list = request.list(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
            let list: Value = self.client.request(list).await?;
            return Ok(list["items"].as_array().cloned().unwrap_or_default());
        }
        let list = request.list_metadata(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
        let list: ObjectList<PartialObjectMeta<DynamicObject>> = self.client.request(list).await?;
        Ok(vec![Value::Null; list.items.len()])
    }
}

/// The resource, as `resource.group`, that an amount's name is about.
fn source(name: &str) -> Option<String> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(if counted.contains('.') { counted.to_owned() } else { format!("{counted}.") });
    }
    let resource = match name {
        "services.loadbalancers" | "services.nodeports" => "services",
        _ if COUNTED.contains(&name) => name,
        "requests.storage" => "persistentvolumeclaims",
        _ if name.contains(".storageclass.storage.k8s.io/") => "persistentvolumeclaims",
        "cpu" | "memory" | "ephemeral-storage" => "pods",
        _ if name.starts_with("requests.") || name.starts_with("limits.") || name.starts_with("hugepages-") => "pods",
        _ => return None,
    };
    Some(format!("{resource}."))
}

/// What of a quota's amounts is used; names it knows nothing of are left out.
fn used(spec: &Value, content: &[(&str, Vec<Value>)], now: Timestamp) -> BTreeMap<String, Value> {
    let mut sum = Usage::new();
    for (id, objects) in content {
        let (resource, group) = id.split_once('.').unwrap_or((id, ""));
        for object in objects.iter().filter(|object| quota::in_scope(spec, group, resource, object)) {
            quota::add(&mut sum, quota::usage(group, resource, object, now));
        }
    }
    let names = spec["hard"].as_object().into_iter().flatten().map(|(name, _)| name);
    let known = names.filter(|name| source(name).is_some());
    known.map(|name| (name.clone(), json!(sum.get(name).copied().unwrap_or(Quantity::of(0)).to_string()))).collect()
}

/// The status to merge: names that are gone are taken out by a null.
fn body(old: &QuotaStatus, new: &QuotaStatus) -> Value {
    let merged = |old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>| {
        let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
        gone.chain(new.clone()).collect::<BTreeMap<_, _>>()
    };
    json!({"hard": merged(&old.hard, &new.hard), "used": merged(&old.used, &new.used)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_the_quota_names() {
        let pod = |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        let content = [("pods.", vec![pod("100m"), pod("0.4")]), ("deployments.apps", vec![Value::Null; 3])];
        let spec = json!({"hard": {"pods": "5", "requests.cpu": "1", "count/deployments.apps": "9", "secrets": "1", "odd": "1"}});
        let got = used(&spec, &content, Timestamp::UNIX_EPOCH);
        let expected = json!({"pods": "2", "requests.cpu": "500m", "count/deployments.apps": "3", "secrets": "0"});
        assert_eq!(json!(got), expected);
        let scoped = json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]});
        assert_eq!(json!(used(&scoped, &content, Timestamp::UNIX_EPOCH)), json!({"pods": "0"}));
    }

    #[test]
    fn names_that_are_gone_are_taken_out() {
        let amounts = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), json!("1"))).collect();
        let status = |names: &[&str]| QuotaStatus { hard: amounts(names), used: amounts(names) };
        let got = body(&status(&["pods", "cpu"]), &status(&["pods"]));
        assert_eq!(got["hard"], json!({"cpu": null, "pods": "1"}));
    }
}

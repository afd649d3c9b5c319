//! Pods, Services, namespaces and policies as the API has them, for their names and addresses.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_dataplane::policy::{
    self,
    model::{Snapshot, TierKind},
};

/// Lists of objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pods: Vec<Value>,
    services: Vec<Value>,
    others: Vec<Value>,
}

impl Objects {
    pub(super) async fn list(client: &kube::Client) -> Result<Objects> {
        let get = async |path: &str, kind: &str| -> Result<Vec<Value>> {
            let request = http::Request::get(path).body(Vec::new())?;
            let mut list: Value = client.request(request).await.with_context(|| format!("list {path}"))?;
            let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            Ok(items.into_iter().map(|item| with_kind(item, kind)).collect())
        };
        let (pods, services, namespaces, policies) = tokio::try_join!(
            get("/api/v1/pods", "Pod"),
            get("/api/v1/services", "Service"),
            get("/api/v1/namespaces", "Namespace"),
            get("/apis/networking.k8s.io/v1/networkpolicies", "NetworkPolicy"),
        )?;
        let mut others: Vec<Value> = namespaces.into_iter().chain(policies).collect();
        // Policies of the cluster are there when somebody installed their kinds, and nodes matter to them alone.
        for kind in TierKind::ALL {
            others.extend(get(&kind.path(), kind.name()).await.unwrap_or_default());
        }
        if others.iter().any(|object| object["spec"]["subject"].is_object()) {
            others.extend(get("/api/v1/nodes", "Node").await?);
        }
        Ok(Objects { pods, services, others })
    }

    #[cfg(test)]
    pub(super) fn of(pods: Vec<Value>, services: Vec<Value>) -> Objects {
        Objects { pods, services, others: Vec::new() }
    }

    /// What policies see of it.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        let all: Vec<Value> = self.pods.iter().chain(&self.others).cloned().collect();
        policy::snapshot(&all).context("the API's objects cannot be read")
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.pods.iter().find(|pod| is(pod, namespace, name))
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.services.iter().find(|service| is(service, namespace, name))
    }

    /// The pod of its own addresses that has this one.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&Value> {
        let live = |pod: &&Value| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        let own = |pod: &&Value| pod["spec"]["hostNetwork"] != true;
        self.pods.iter().filter(live).filter(own).find(|pod| addresses(pod, "/status/podIPs").contains(&address))
    }

    /// The Service with this cluster address.
    pub(super) fn service_at(&self, address: IpAddr) -> Option<&Value> {
        self.services.iter().find(|service| addresses(service, "/spec/clusterIPs").contains(&address))
    }
}

fn with_kind(mut item: Value, kind: &str) -> Value {
    item["kind"] = kind.into();
    item
}

fn is(object: &Value, namespace: &str, name: &str) -> bool {
    text(object, "/metadata/namespace") == namespace && text(object, "/metadata/name") == name
}

/// A text of an object; empty where there is none.
pub(super) fn text<'a>(object: &'a Value, place: &str) -> &'a str {
    object.pointer(place).and_then(Value::as_str).unwrap_or("")
}

/// Addresses in a list, as they are or as `ip`.
pub(super) fn addresses(object: &Value, place: &str) -> Vec<IpAddr> {
    let list = object.pointer(place).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|item| item.as_str().or_else(|| item["ip"].as_str())?.parse().ok()).collect()
}

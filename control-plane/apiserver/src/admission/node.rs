//! NodeRestriction and TaintNodesByCondition: what a node's own credentials may write, and the
//! taint every new node starts with.

use serde_json::{Value, json};
use sluice_api::status::Status;

use super::{forbid, list, text};
use crate::{
    auth::view::View,
    authz::node::{is_dns_slice, node_name, on_node},
    context::{Admit, Operation},
};

const MIRROR: &str = "kubernetes.io/config.mirror";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// A new node takes no pods until it has said that it is ready.
pub(super) fn taint(node: &mut Value) {
    let tainted =
        list(&node["spec"]["taints"]).iter().any(|t| text(t, "key") == NOT_READY && text(t, "effect") == "NoSchedule");
    if tainted {
        return;
    }
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    match &mut node["spec"]["taints"] {
        Value::Array(taints) => taints.push(taint),
        other => *other = json!([taint]),
    }
}

pub(super) fn restrict(view: &dyn View, admit: &Admit<'_>, object: Option<&Value>) -> Result<(), Status> {
    let a = &admit.attributes;
    let Some(node) = node_name(a.user) else {
        return Ok(());
    };
    let why = match (a.group, a.resource, a.subresource) {
        ("", "pods", "") => pod(view, admit, node, object),
        ("", "pods", "status") => pod_status(admit, node, object),
        ("", "pods", "eviction") => {
            let own = view.get("", "pods", a.namespace, a.name).is_none_or(|pod| on_node(&pod, node));
            (!own).then(|| format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        ("", "nodes", _) => own_node(admit, node, object),
        ("discovery.k8s.io", "endpointslices", "") => dns_slice(admit, node, object),
        ("coordination.k8s.io", "leases", "") => {
            named(admit, object, node, "can only access node lease with the same name as the requesting node")
        }
        ("storage.k8s.io", "csinodes", "") => {
            named(admit, object, node, "can only access CSINode with the same name as the requesting node")
        }
        _ => None,
    };
    match why {
        Some(why) => Err(forbid(admit, object, why)),
        None => Ok(()),
    }
}

fn pod(view: &dyn View, admit: &Admit<'_>, node: &str, object: Option<&Value>) -> Option<String> {
    let a = &admit.attributes;
    match (admit.operation, object) {
        (Operation::Create, Some(pod)) => mirror_pod(pod, node),
        (Operation::Delete, _) => {
            let own = view.get("", "pods", a.namespace, a.name).is_none_or(|pod| on_node(&pod, node));
            (!own).then(|| format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        _ => Some(format!("unexpected operation {:?}", admit.operation.as_str())),
    }
}

/// A node creates only the mirrors of its static pods, which refer to nothing in the cluster.
fn mirror_pod(pod: &Value, node: &str) -> Option<String> {
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return Some(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if text(&pod["spec"], "nodeName") != node {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = list(&pod["metadata"]["ownerReferences"]);
    let own = |o: &Value| text(o, "kind") == "Node" && text(o, "name") == node;
    if owners.len() != 1 || !own(&owners[0]) {
        return Some(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if !text(&pod["spec"], "serviceAccountName").is_empty() {
        return Some(format!("node {node:?} can not create pods that reference a service account"));
    }
    let refers = list(&pod["spec"]["volumes"]).iter().find_map(|volume| {
        ["secret", "configMap", "persistentVolumeClaim", "projected"].into_iter().find(|kind| !volume[*kind].is_null())
    });
    refers.map(|kind| format!("node {node:?} can not create pods that reference {kind} volumes"))
}

fn pod_status(admit: &Admit<'_>, node: &str, object: Option<&Value>) -> Option<String> {
    let (old, new) = (admit.old?, object?);
    if text(&old["spec"], "nodeName") != node {
        return Some(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    (old["metadata"]["labels"] != new["metadata"]["labels"])
        .then(|| format!("node {node:?} cannot update labels through pod status"))
}

fn own_node(admit: &Admit<'_>, node: &str, object: Option<&Value>) -> Option<String> {
    let object = object?;
    let name = match admit.attributes.name {
        "" => text(&object["metadata"], "name"),
        name => name,
    };
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let old = admit.old;
    let changed = changed_labels(old, object);
    let bad: Vec<&str> = changed.iter().map(String::as_str).filter(|key| !label_allowed(key)).collect();
    if !bad.is_empty() {
        let verb = if old.is_some() { "modify" } else { "set" };
        return Some(format!("is not allowed to {verb} the following labels: {}", bad.join(", ")));
    }
    let old = old?;
    if old["spec"]["taints"] != object["spec"]["taints"] {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    (old["metadata"]["ownerReferences"] != object["metadata"]["ownerReferences"])
        .then(|| format!("node {node:?} is not allowed to modify ownerReferences"))
}

fn changed_labels(old: Option<&Value>, new: &Value) -> Vec<String> {
    let before = old.map_or(&Value::Null, |o| &o["metadata"]["labels"]);
    let after = &new["metadata"]["labels"];
    let keys = [before, after].into_iter().filter_map(Value::as_object).flat_map(|labels| labels.keys());
    let mut changed: Vec<String> = keys.filter(|key| before[key.as_str()] != after[key.as_str()]).cloned().collect();
    changed.sort();
    changed.dedup();
    changed
}

/// Upstream's `isKubernetesLabel`/`IsKubeletLabel` split: labels of other domains are free, of the
/// Kubernetes domains only those that describe the node itself.
fn label_allowed(key: &str) -> bool {
    const OWN: [&str; 11] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let under = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    if under("node-restriction.kubernetes.io") {
        return false;
    }
    if !under("kubernetes.io") && !under("k8s.io") {
        return true;
    }
    let free = under("kubelet.kubernetes.io") || under("node.kubernetes.io");
    free || OWN.contains(&key)
}

/// A node publishes itself as a backend of kube-dns, and of no other Service.
fn dns_slice(admit: &Admit<'_>, node: &str, object: Option<&Value>) -> Option<String> {
    let object = object?;
    let name = match admit.attributes.name {
        "" => text(&object["metadata"], "name"),
        name => name,
    };
    if !is_dns_slice(name, node) {
        return Some(format!("node {node:?} can only write the EndpointSlice of its own cluster DNS"));
    }
    (object["metadata"]["labels"]["kubernetes.io/service-name"] != "kube-dns")
        .then(|| format!("node {node:?} can only publish a backend of the Service kube-dns"))
}

fn named(admit: &Admit<'_>, object: Option<&Value>, node: &str, why: &str) -> Option<String> {
    let name = match admit.attributes.name {
        "" => text(&object?["metadata"], "name"),
        name => name,
    };
    (name != node).then(|| why.to_owned())
}

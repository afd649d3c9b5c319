//! Which nodes need a daemon's pod and which pods have to go: pure, from the DaemonSet, the nodes and its pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde_json::{Value, json};
use sluice_scheduler::matching;
use sluice_scheduler::node::NodeSpec;

use super::update;
use crate::object::Object;
use crate::revisions::HASH_LABEL;
use crate::types::{DaemonSet, DaemonSetStatus, Node, Pod};

/// Taints every daemon tolerates: it is there because the node has trouble, or to help it out.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const HOST_NETWORK_TOLERATED: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to create a pod for.
    pub(super) create: Vec<String>,
    /// Pods to delete.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that ended, though they never should: to be deleted when their node's delay is over.
    pub(super) finished: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
}

/// The pods of one node that should have one.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    /// Of the newest revision, neither finished nor leaving.
    pub(super) new: Vec<&'a Arc<Pod>>,
    /// The same of older ones.
    pub(super) old: Vec<&'a Arc<Pod>>,
    /// One still leaves, or has finished and is not replaced yet.
    pub(super) occupied: bool,
}

/// Plans; `hash` is that of the newest revision.
pub(super) fn plan(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: Timestamp) -> Plan {
    let template = set.spec.template.value();
    let wishes = wishes(&template);
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(pod.node().unwrap_or_default()).or_default().push(pod);
    }
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let updated = |pod: &Pod| pod.labels().get(HASH_LABEL).is_some_and(|h| h == hash);
    let mut plan = Plan::default();
    let mut places = Vec::new();
    let status = &mut plan.status;
    status.observed_generation = set.generation();
    for node in nodes {
        let here = by_node.remove(node.name()).unwrap_or_default();
        let (run, stay) = fits(&wishes, template["spec"]["nodeName"].as_str(), node);
        let mut alive: Vec<&Arc<Pod>> = here.iter().copied().filter(|pod| pod.active()).collect();
        // Bound before waiting, old before young.
        alive.sort_by_key(|pod| (pod.spec.node_name.is_none(), pod.created()));
        plan.finished.extend(here.iter().filter(|p| p.finished() && !p.deleting()).map(|pod| (*pod).clone()));
        if !stay {
            plan.delete.extend(alive.iter().map(|pod| (*pod).clone()));
        }
        if !run {
            status.number_misscheduled += i32::from(!alive.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        if let Some(first) = alive.first() {
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(alive.iter().any(|pod| pod.ready()));
            status.number_available += i32::from(alive.iter().any(|pod| pod.available(min_ready, now)));
            status.updated_number_scheduled += i32::from(updated(first) || alive.iter().any(|pod| updated(pod)));
        }
        let occupied = here.iter().any(|pod| !pod.active());
        let (new, old) = alive.into_iter().partition(|pod| updated(pod));
        places.push(Place { node: node.name(), new, old, occupied });
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    let desired = status.desired_number_scheduled;
    let available = |pod: &Pod| pod.available(min_ready, now);
    update::roll(update::Bounds::of(set, desired), places, &available, &mut plan);
    plan
}

/// The pod for a node: bound to it through the scheduler, by name.
pub(super) fn pod_body(set: &DaemonSet, hash: &str, node: &str) -> Value {
    let mut body = crate::pods::body(&set.spec.template, set.name(), set.as_controller());
    body["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let tolerations = tolerations(&body["spec"]);
    let spec = &mut body["spec"];
    spec["tolerations"] = json!(tolerations);
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let required = &mut spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut().filter(|terms| !terms.is_empty()) {
        Some(terms) => terms.iter_mut().for_each(|term| term["matchFields"] = json!([field])),
        None => *required = json!({"nodeSelectorTerms": [{"matchFields": [field]}]}),
    }
    body
}

fn tolerations(spec: &Value) -> Vec<Toleration> {
    let mut all: Vec<Toleration> = serde_json::from_value(spec["tolerations"].clone()).unwrap_or_default();
    let host = spec["hostNetwork"] == json!(true);
    for (key, effect) in TOLERATED.into_iter().chain(host.then_some(HOST_NETWORK_TOLERATED)) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// The template as the scheduler sees it.
fn wishes(template: &Value) -> sluice_scheduler::pod::Pod {
    let mut template = template.clone();
    template["spec"]["tolerations"] = json!(tolerations(&template["spec"]));
    sluice_scheduler::pod::Pod::from_wire(serde_json::from_value(template).unwrap_or_default())
}

/// Whether a pod should run on the node, and whether one that is there may stay.
fn fits(wishes: &sluice_scheduler::pod::Pod, named: Option<&str>, node: &Node) -> (bool, bool) {
    if named.is_some_and(|name| !name.is_empty() && name != node.name()) {
        return (false, false);
    }
    let spec = NodeSpec {
        name: node.name().into(),
        labels: node.labels().clone(),
        taints: node.spec.taints.clone(),
        unschedulable: node.spec.unschedulable,
        ..Default::default()
    };
    if !matching::admits(wishes, &spec) {
        return (false, false);
    }
    let free =
        |effects: &[&str]| matching::untolerated(&spec.taints as &[Taint], &wishes.tolerations, effects).is_none();
    (free(&["NoSchedule", "NoExecute"]), free(&["NoExecute"]))
}

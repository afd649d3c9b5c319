//! Which nodes need a daemon's pod and which pods have to go: pure, from the DaemonSet, the nodes and its pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use sluice_scheduler::matching;
use sluice_scheduler::node::NodeSpec;

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
    /// Pods among those that failed.
    pub(super) failed: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
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
    let mut old: Vec<(bool, &Arc<Pod>)> = Vec::new();
    let mut unavailable = 0;
    let status = &mut plan.status;
    status.observed_generation = set.generation();
    for node in nodes {
        let here = by_node.remove(node.name()).unwrap_or_default();
        let (run, stay) = fits(&wishes, node);
        let mut alive: Vec<&Arc<Pod>> = here.iter().copied().filter(|pod| pod.active()).collect();
        // Bound before waiting, old before young.
        alive.sort_by_key(|pod| (pod.spec.node_name.is_none(), pod.created()));
        let failed =
            here.iter().filter(|p| p.finished() && !p.deleting() && p.status.phase.as_deref() == Some("Failed"));
        plan.failed.extend(failed.map(|pod| (*pod).clone()));
        if !run {
            status.number_misscheduled += i32::from(!alive.is_empty());
        }
        if run {
            status.desired_number_scheduled += 1;
            let Some(pod) = alive.first() else {
                unavailable += 1;
                // One that is still leaving keeps the place.
                if here.iter().all(|pod| pod.finished() && !pod.deleting()) {
                    plan.create.push(node.name().to_owned());
                }
                continue;
            };
            let available = pod.available(min_ready, now);
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(pod.ready());
            status.number_available += i32::from(available);
            status.updated_number_scheduled += i32::from(updated(pod));
            if updated(pod) {
                unavailable += usize::from(!available);
            } else {
                old.push((available, pod));
            }
        }
        let surplus = if stay { alive.get(1..).unwrap_or_default() } else { &alive[..] };
        plan.delete.extend(surplus.iter().map(|pod| (*pod).clone()));
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    if set.spec.update_strategy.kind.as_deref() != Some("OnDelete") {
        let most = max_unavailable(set, status.desired_number_scheduled);
        // Pods that do not work anyway are replaced first and count as missing already.
        unavailable += old.iter().filter(|(available, _)| !available).count();
        let budget = most.saturating_sub(unavailable);
        let (working, broken): (Vec<_>, Vec<_>) = old.into_iter().partition(|(available, _)| *available);
        let replaced = broken.into_iter().chain(working.into_iter().take(budget)).map(|(_, pod)| pod.clone());
        plan.delete.extend(replaced.collect::<Vec<_>>());
    }
    plan.delete.extend(plan.failed.iter().cloned());
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
fn fits(wishes: &sluice_scheduler::pod::Pod, node: &Node) -> (bool, bool) {
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

fn max_unavailable(set: &DaemonSet, nodes: i32) -> usize {
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let number = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        None => 1,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(percent)) => {
            let percent: i32 = percent.trim_end_matches('%').parse().unwrap_or(0);
            (percent * nodes + 99) / 100
        }
    };
    usize::try_from(number).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(extra: Value) -> DaemonSet {
        let mut value = json!({"metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 2}, "spec":
            {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}});
        json_patch::merge(&mut value["spec"], &extra);
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, spec: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec}))
                .unwrap(),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let at = "2026-01-01T00:00:00Z";
        let value = json!({"metadata": {"name": name, "uid": name, "labels": {HASH_LABEL: hash}}, "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| p.name()).collect()
    }

    #[test]
    fn one_on_every_node_that_fits() {
        let taint =
            |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}], "unschedulable": true});
        let nodes = [
            node("a", json!({})),
            node("cordoned", taint("node.kubernetes.io/unschedulable", "NoSchedule")),
            node("special", taint("own", "NoSchedule")),
            node("hostile", taint("own", "NoExecute")),
        ];
        let now = Timestamp::now();
        let got = plan(&set(json!({})), &nodes, &[], "h", now);
        assert_eq!(got.create, ["a", "cordoned"]);
        assert_eq!(got.status.desired_number_scheduled, 2);
        // One that is there stays on a node tainted later, unless it is told to leave.
        let pods = [
            pod("s", "special", "h", true),
            pod("x", "hostile", "h", true),
            pod("twin", "a", "h", true),
            pod("a", "a", "h", true),
        ];
        let got = plan(&set(json!({})), &nodes, &pods, "h", now);
        assert_eq!((got.create.as_slice(), names(&got.delete)), (&["cordoned".to_owned()][..], vec!["a", "x"]));
        assert_eq!(got.status.number_misscheduled, 2);
        let selective = set(json!({"template": {"spec": {"nodeSelector": {"disk": "a"}}}}));
        assert_eq!(plan(&selective, &nodes, &[], "h", now).create, ["a"]);
    }

    #[test]
    fn rolls_as_many_as_may_be_missing() {
        let nodes: Vec<_> = (0..4).map(|i| node(&format!("n{i}"), json!({}))).collect();
        let pods = |ready: [bool; 4], hashes: [&str; 4]| -> Vec<_> {
            (0..4).map(|i| pod(&format!("p{i}"), &format!("n{i}"), hashes[i], ready[i])).collect()
        };
        let now = Timestamp::now();
        let two = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}});
        for (strategy, pods, expected) in [
            (json!({}), pods([true; 4], ["old"; 4]), vec!["p0"]),
            (two.clone(), pods([true; 4], ["old"; 4]), vec!["p0", "p1"]),
            // The new one is not available yet.
            (json!({}), pods([false, true, true, true], ["new", "old", "old", "old"]), vec![]),
            // A broken old one goes at once and takes the budget.
            (json!({}), pods([true, true, false, true], ["old"; 4]), vec!["p2"]),
            (json!({"updateStrategy": {"type": "OnDelete"}}), pods([true; 4], ["old"; 4]), vec![]),
            (two, pods([true; 4], ["new"; 4]), vec![]),
        ] {
            assert_eq!(names(&plan(&set(strategy), &nodes, &pods, "new", now).delete), expected);
        }
    }

    #[test]
    fn pods_name_their_node() {
        let body = pod_body(&set(json!({})), "h", "a");
        let affinity = &body["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0], "a");
        assert_eq!(body["metadata"]["labels"][HASH_LABEL], "h");
        let mut pod: Pod = serde_json::from_value(body).unwrap();
        crate::informer::Kind::slim(&mut pod);
        assert_eq!((pod.node(), pod.spec.tolerations.len()), (Some("a"), 6));
    }
}

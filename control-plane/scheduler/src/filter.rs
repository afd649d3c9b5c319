//! Whether one node can take a pod at all. Rules in upstream's order; the first that fails gives the reasons.

use crate::cluster::Cluster;
use crate::domains::Domains;
use crate::matching;
use crate::node::{Node, NodeSpec};
use crate::pod::Pod;
use crate::reason::Reason;

/// Whether the node in `slot` can take the pod: what [`reasons`] comes to, with the cheapest rules first.
pub(crate) fn fits(cluster: &Cluster, pod: &Pod, domains: &Domains, slot: usize) -> bool {
    domains.found[slot].fits && domains.reject(slot).is_none() && room(cluster, pod, cluster.node(slot)).is_empty()
}

/// Reasons against the node in `slot`; empty when it can take the pod.
pub(crate) fn reasons(cluster: &Cluster, pod: &Pod, domains: &Domains, slot: usize) -> Vec<Reason> {
    let node = cluster.node(slot);
    if let Some(reason) = fixed(pod, &node.spec) {
        return vec![reason];
    }
    let crowded = room(cluster, pod, node);
    if !crowded.is_empty() {
        return crowded;
    }
    domains.reject(slot).into_iter().collect()
}

/// Rules that no other pod has a say in.
pub(crate) fn fixed(pod: &Pod, spec: &NodeSpec) -> Option<Reason> {
    if spec.unschedulable && !tolerates_cordon(pod) {
        return Some(Reason::Unschedulable);
    }
    if let Some(taint) = matching::untolerated(&spec.taints, &pod.tolerations, &["NoSchedule", "NoExecute"]) {
        return Some(Reason::Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default() });
    }
    (!matching::admits(pod, spec)).then_some(Reason::NodeAffinity)
}

/// A cordoned node takes pods that tolerate the taint which stands for it.
fn tolerates_cordon(pod: &Pod) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    pod.tolerations.iter().any(|t| matching::tolerates(t, &taint))
}

/// Ports and resources, counting in pods that preemption made room for and that are at least as important.
fn room(cluster: &Cluster, pod: &Pod, node: &Node) -> Vec<Reason> {
    let rivals = cluster.nominated(&node.spec.name);
    if rivals.is_empty() {
        return missing(pod, node);
    }
    let mut crowded = node.clone();
    for rival in rivals.iter().filter(|r| r.uid != pod.uid && r.priority >= pod.priority) {
        if !crowded.pods.contains_key(&rival.uid) {
            crowded.add(rival.clone());
        }
    }
    missing(pod, &crowded)
}

/// What `node` lacks to take `pod` on top of the pods counted on it.
pub(crate) fn missing(pod: &Pod, node: &Node) -> Vec<Reason> {
    if pod.ports.iter().any(|wanted| node.ports.iter().any(|taken| taken.conflicts(wanted))) {
        return vec![Reason::Ports];
    }
    let mut out = Vec::new();
    if node.pods.len() as i64 + 1 > node.spec.max_pods {
        out.push(Reason::TooManyPods);
    }
    let (wanted, used, offered) = (&pod.requests, &node.requested, &node.spec.allocatable);
    let mut check = |name: &str, wanted: i64, used: i64, offered: i64| {
        if wanted > 0 && wanted > offered - used {
            out.push(Reason::Insufficient(name.into()));
        }
    };
    check("cpu", wanted.milli_cpu, used.milli_cpu, offered.milli_cpu);
    check("memory", wanted.memory, used.memory, offered.memory);
    check("ephemeral-storage", wanted.ephemeral, used.ephemeral, offered.ephemeral);
    for (name, amount) in &wanted.extended {
        check(name, *amount, used.extended(name), offered.extended(name));
    }
    out
}

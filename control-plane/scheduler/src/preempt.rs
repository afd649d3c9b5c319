//! Preemption: which pods of lower priority would have to leave one node so that a pod fits (KEP-268), chosen as upstream
//! does: least important victims first, then fewest. Finding is pure; carrying out deletes the victims through the API.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::cluster::Cluster;
use crate::filter;
use crate::limits;
use crate::plan::Unschedulable;
use crate::pod::Pod;
use crate::reason::{Reason, Tally};
use crate::report::{Report, Reporter, gone};
use crate::wire;

/// A node and the pods that would leave it.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Slot of the node.
    pub(crate) slot: usize,
    /// Pods to delete.
    pub(crate) victims: Vec<Arc<Pod>>,
}

/// What looking for victims came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The best node, if any.
    pub(crate) chosen: Option<Chosen>,
    /// Why the others are none.
    pub(crate) tally: Tally,
}

/// Looks for the node where preemption hurts least.
pub(crate) fn find(cluster: &Cluster, pod: &Pod, failure: &Unschedulable) -> Outcome {
    let mut outcome = Outcome { tally: Tally::of(failure.tally.nodes), chosen: None };
    let hopeless = failure.tally.nodes - failure.preemptible.len();
    outcome.tally.add_many(Reason::PreemptionNotHelpful, hopeless);
    if !pod.may_preempt {
        outcome.tally.add_many(Reason::PreemptionNotHelpful, failure.preemptible.len());
        return outcome;
    }
    // A nominated pod waits for the victims that are already leaving.
    if pod.nominated.as_ref().is_some_and(|node| leaving(cluster, pod, node, failure)) {
        outcome.tally.add_many(Reason::PreemptionNotHelpful, failure.preemptible.len());
        return outcome;
    }
    let mut best = None;
    for &slot in failure.preemptible.iter().take(limits::PREEMPTION_CANDIDATES) {
        match victims(cluster, pod, slot) {
            Some(victims) => {
                let cost = cost(&victims);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, Chosen { slot, victims }));
                }
            }
            None => outcome.tally.add(Reason::NoVictims),
        }
    }
    outcome.chosen = best.map(|(_, chosen)| chosen);
    outcome
}

fn leaving(cluster: &Cluster, pod: &Pod, node: &str, failure: &Unschedulable) -> bool {
    failure
        .preemptible
        .iter()
        .map(|slot| cluster.node(*slot))
        .filter(|n| *n.spec.name == *node)
        .any(|n| n.pods.values().any(|p| p.deleting && p.priority < pod.priority))
}

/// The fewest, least important pods whose leaving makes room.
fn victims(cluster: &Cluster, pod: &Pod, slot: usize) -> Option<Vec<Arc<Pod>>> {
    let mut node = cluster.node(slot).clone();
    let mut lower: Vec<Arc<Pod>> = node.pods.values().filter(|p| p.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    for candidate in &lower {
        node.remove(&candidate.uid);
    }
    if !filter::missing(pod, &node).is_empty() {
        return None;
    }
    // The most important and oldest are put back first, as long as there is room.
    lower.sort_by_key(|p| (Reverse(p.priority), p.since));
    let mut victims = Vec::new();
    for candidate in lower {
        node.add(candidate.clone());
        if !filter::missing(pod, &node).is_empty() {
            node.remove(&candidate.uid);
            victims.push(candidate);
        }
    }
    Some(victims)
}

/// Smaller is better: highest priority hurt, sum of priorities, number, then the latest start of the most important.
fn cost(victims: &[Arc<Pod>]) -> (i32, i64, usize, Reverse<Timestamp>) {
    let highest = victims.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
    let sum = victims.iter().map(|p| i64::from(p.priority) + i64::from(i32::MAX)).sum();
    let earliest = victims.iter().filter(|p| p.priority == highest).map(|p| p.since).min().unwrap_or(Timestamp::MAX);
    (highest, sum, victims.len(), Reverse(earliest))
}

/// Deletes the victims and notes the node on the pod, in the background.
pub(crate) fn carry_out(client: Client, reporter: Reporter, pod: Arc<Pod>, node: Arc<str>, victims: Vec<Arc<Pod>>) {
    tokio::spawn(async move {
        let nominate = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": &*node}});
        let pods: Api<wire::Pod> = Api::namespaced(client.clone(), &pod.namespace);
        if let Err(error) = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(nominate)).await {
            if !gone(&error) {
                tracing::warn!(pod = pod.key(), %error, "cannot nominate a node; nothing is preempted");
            }
            return;
        }
        for victim in victims.into_iter().filter(|v| !v.deleting) {
            let pods: Api<wire::Pod> = Api::namespaced(client.clone(), &victim.namespace);
            let message = format!("{}: preempting to accommodate a higher priority pod", crate::pod::SCHEDULER_NAME);
            let target = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": message, "lastTransitionTime": format!("{:.0}", Timestamp::now()),
            }]}});
            let params = PatchParams::default();
            let marked = pods.patch_status(&victim.name, &params, &Patch::Strategic(target)).await;
            let only_this = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
            let delete = DeleteParams { preconditions: Some(only_this), ..Default::default() };
            let deleted = pods.delete(&victim.name, &delete).await;
            match marked.map(|_| ()).and(deleted.map(|_| ())) {
                Ok(()) => reporter.send(Report::Preempted { victim, by: pod.clone(), node: node.clone() }),
                Err(error) if gone(&error) => {}
                Err(error) => tracing::warn!(pod = victim.key(), %error, "cannot preempt"),
            }
        }
    });
}

//! What a ReplicaSet needs: pure, from its pods to a number to create or the pods to delete, and its status.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::object::Object;
use crate::types::{Pod, ReplicaSetStatus, Selectable};

/// What to do about the number of pods.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Keep,
    /// Create so many.
    Create(usize),
    /// Delete so many of the active ones.
    Delete(usize),
}

/// Compares what is with what is wanted, `burst` pods at most.
pub(crate) fn step(wanted: i32, active: usize, burst: usize) -> Step {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match wanted.cmp(&active) {
        std::cmp::Ordering::Equal => Step::Keep,
        std::cmp::Ordering::Greater => Step::Create((wanted - active).min(burst)),
        std::cmp::Ordering::Less => Step::Delete((active - wanted).min(burst)),
    }
}

/// The pods to delete first, in upstream's order: unassigned, pending, not ready, cheap, crowded, ready for the shortest
/// time, often restarted, youngest. `related` are all active pods whose spread counts (those of the whole Deployment).
pub(crate) fn victims(mut active: Vec<Arc<Pod>>, related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowds: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        if let Some(node) = pod.spec.node_name.as_deref() {
            *crowds.entry(node).or_default() += 1;
        }
    }
    active.sort_by_cached_key(|pod| {
        let crowd = pod.spec.node_name.as_deref().and_then(|node| crowds.get(node)).copied().unwrap_or(0);
        (
            pod.spec.node_name.is_some(),
            match pod.status.phase.as_deref() {
                None | Some("Pending") => 0,
                Some("Unknown") => 1,
                _ => 2,
            },
            pod.ready(),
            deletion_cost(pod),
            Reverse(crowd),
            pod.ready_since().map(|since| magnitude(since, now)),
            Reverse(pod.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or(0)),
            magnitude(pod.created(), now),
            pod.uid().to_owned(),
        )
    });
    active.truncate(count);
    active
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations().get(crate::types::DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Order of magnitude of an age: pods of about the same age are not told apart by it (KEP-2185).
fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let seconds = (now.as_second() - since.as_second()).max(0) as u64;
    u64::BITS - seconds.leading_zeros()
}

/// The status that follows from the pods. `failure` is the reason and message of a failed creation or deletion.
pub(crate) fn status<K: Selectable>(
    owner: &K,
    owned: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let active = || owned.iter().filter(|pod| pod.active());
    let template_labels: BTreeMap<String, String> = owner.template().labels();
    let count = |pods: usize| i32::try_from(pods).unwrap_or(i32::MAX);
    let labelled = |pod: &&Arc<Pod>| template_labels.iter().all(|(k, v)| pod.labels().get(k) == Some(v));
    let old = owner.status();
    let mut conditions: Vec<_> = old.conditions.iter().filter(|c| c.kind != "ReplicaFailure").cloned().collect();
    let failing = old.conditions.iter().find(|c| c.kind == "ReplicaFailure");
    if let Some((reason, message)) = failure {
        // The first failure stands until it is over.
        conditions.push(failing.cloned().unwrap_or_else(|| crate::types::ReplicaSetCondition {
            kind: "ReplicaFailure".into(),
            status: "True".into(),
            last_transition_time: Some(Time(now)),
            reason: reason.into(),
            message,
        }));
    }
    ReplicaSetStatus {
        replicas: count(active().count()),
        fully_labeled_replicas: count(active().filter(labelled).count()),
        ready_replicas: count(active().filter(|pod| pod.ready()).count()),
        available_replicas: count(active().filter(|pod| pod.available(owner.min_ready(), now)).count()),
        terminating_replicas: Some(count(owned.iter().filter(|pod| pod.deleting() && !pod.finished()).count())),
        observed_generation: owner.generation(),
        conditions,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::ReplicaSet;
    use serde_json::{Value, json};

    #[test]
    fn steps() {
        for (wanted, active, expected) in [
            (3, 3, Step::Keep),
            (3, 1, Step::Create(2)),
            (900, 0, Step::Create(500)),
            (0, 2, Step::Delete(2)),
            (-1, 0, Step::Keep),
        ] {
            assert_eq!(step(wanted, active, 500), expected);
        }
    }

    fn pod(name: &str, fields: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}]}});
        json_patch::merge(&mut value, &fields);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn who_goes_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let good = || pod("good", json!({}));
        let ready_at = |at: &str| json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]}});
        for worse in [
            pod("unassigned", json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}})),
            pod("pending", json!({"status": {"phase": "Pending"}})),
            pod("unready", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
            pod("cheap", json!({"metadata": {"annotations": {crate::types::DELETION_COST: "-5"}}})),
            pod("just ready", ready_at("2026-01-01T23:59:00Z")),
            pod("restarted", json!({"status": {"containerStatuses": [{"restartCount": 3}]}})),
            pod("young", json!({"metadata": {"creationTimestamp": "2026-01-01T23:00:00Z"}})),
        ] {
            let pods = vec![good(), worse.clone()];
            assert_eq!(victims(pods.clone(), &pods, 1, now)[0].name(), worse.name());
        }
        let crowded = vec![
            good(),
            pod("c1", json!({"spec": {"nodeName": "n2"}})),
            pod("c2", json!({"spec": {"nodeName": "n2"}})),
        ];
        assert_eq!(victims(crowded.clone(), &crowded, 1, now)[0].name(), "c1");
    }

    #[test]
    fn status_counts() {
        let rs: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "r", "uid": "r", "generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": 60, "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .unwrap();
        let pods = [
            pod("a", json!({"metadata": {"labels": {"a": "b"}}})),
            pod("b", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
            pod("c", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("d", json!({"status": {"phase": "Failed"}})),
        ];
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let early = status(&rs, &pods, None, at("2026-01-01T00:01:30Z"));
        assert_eq!((early.replicas, early.fully_labeled_replicas, early.ready_replicas), (2, 1, 1));
        assert_eq!((early.available_replicas, early.terminating_replicas, early.observed_generation), (0, Some(1), 4));
        assert_eq!(
            crate::pods::next_available(&pods, 60, at("2026-01-01T00:01:30Z")),
            Some(std::time::Duration::from_secs(30))
        );
        assert_eq!(status(&rs, &pods, None, at("2026-01-01T00:02:00Z")).available_replicas, 1);
        let failed = status(&rs, &pods, Some(("FailedCreate", "no".into())), at("2026-01-01T00:02:00Z"));
        assert_eq!(failed.conditions[0].reason, "FailedCreate");
    }
}

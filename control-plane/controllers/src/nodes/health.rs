//! Whether a node is alive and what follows from it: pure, from a node and the time since it was last heard to conditions
//! and taints, worded as upstream.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::limits;
use crate::object::Object;
use crate::types::Node;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// (condition, status that taints, taint)
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that a node which is not heard any more cannot vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node's Ready condition: True, False or Unknown (also without one).
pub(crate) fn ready(node: &Node) -> &str {
    node.condition("Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The conditions to write when nothing was heard for longer than `grace`; `None` when they are fine.
pub(crate) fn lost(node: &Node, silent: Duration, grace: Duration, now: Timestamp) -> Option<Value> {
    if silent <= grace || VOUCHED.iter().all(|kind| node.condition(kind).is_some_and(|c| c.status == "Unknown")) {
        return None;
    }
    let conditions = VOUCHED.map(|kind| match node.condition(kind) {
        Some(known) if known.status == "Unknown" => json!({"type": kind, "status": "Unknown", "reason": known.reason}),
        Some(known) => json!({
            "type": kind, "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.",
            "lastHeartbeatTime": known.last_heartbeat_time, "lastTransitionTime": Time(now),
        }),
        None => json!({
            "type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated", "message": "Kubelet never posted node status.",
            "lastHeartbeatTime": Time(node.created()), "lastTransitionTime": Time(now),
        }),
    });
    Some(json!({"conditions": conditions}))
}

/// The taints a node should have, if they differ from those it has. Only those that stand for conditions are touched;
/// `evict` says whether pods may be made to leave.
pub(crate) fn taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let holds = |kind: &str, status: &str| match (kind, node.condition(kind)) {
        (_, Some(condition)) => condition.status == status,
        // A node that has said nothing yet is not ready, and not lost either.
        ("Ready", None) => status == "False",
        _ => false,
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if holds(kind, status) {
            wanted.push((key, "NoSchedule"));
            let had = node
                .spec
                .taints
                .iter()
                .any(|t| matches!(t.key.as_str(), NOT_READY | UNREACHABLE) && t.effect == "NoExecute");
            if kind == "Ready" && node.condition(kind).is_some() && (evict || had) {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| {
        let evicts = matches!(t.key.as_str(), NOT_READY | UNREACHABLE) && t.effect == "NoExecute";
        let keeps = t.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == t.key);
        evicts || keeps && t.effect == "NoSchedule"
    };
    let mut taints: Vec<Taint> = node
        .spec
        .taints
        .iter()
        .filter(|t| !ours(t) || wanted.iter().any(|(key, effect)| t.key == *key && t.effect == *effect))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added: Some(Time(now)) });
        }
    }
    (taints != node.spec.taints).then_some(taints)
}

/// Lets nodes of a zone be tainted for eviction one at a time, and none while everything seems lost: then it is more likely
/// that we are the ones cut off.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    last: BTreeMap<String, Timestamp>,
}

impl Zones {
    /// `Ok` when the node may be tainted now; else how long to wait (`None`: until nodes come back).
    pub(crate) fn admit(
        &mut self,
        zone: &str,
        nodes: &[(String, bool)],
        now: Timestamp,
    ) -> Result<(), Option<Duration>> {
        if nodes.iter().all(|(_, ready)| !ready) {
            return Err(None);
        }
        let own = nodes.iter().filter(|(z, _)| z == zone);
        let (lost, all) = own.fold((0, 0), |(lost, all), (_, ready)| (lost + usize::from(!ready), all + 1));
        let most = lost > 2 && lost * 100 >= all * 55 && lost < all;
        let interval = match most {
            true if all <= limits::LARGE_ZONE => return Err(None),
            true => limits::EVICTION_INTERVAL_DISRUPTED,
            false => limits::EVICTION_INTERVAL,
        };
        let since = self.last.get(zone).map(|last| now.duration_since(*last).unsigned_abs());
        if let Some(wait) = since.and_then(|since| interval.checked_sub(since)).filter(|wait| !wait.is_zero()) {
            return Err(Some(wait));
        }
        self.last.insert(zone.into(), now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GRACE: Duration = Duration::from_secs(40);

    fn node(ready: Option<&str>, spec: Value) -> Node {
        let conditions = ready.map(|r| json!([{"type": "Ready", "status": r}])).unwrap_or(json!([]));
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn silence() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(lost(&node(Some("True"), json!({})), GRACE, GRACE, now).is_none());
        let patch = lost(&node(Some("True"), json!({})), GRACE * 2, GRACE, now).unwrap();
        assert_eq!(patch["conditions"][0]["reason"], "NodeStatusUnknown");
        assert_eq!(patch["conditions"][1]["reason"], "NodeStatusNeverUpdated");
        let lost_already = VOUCHED.map(|kind| json!({"type": kind, "status": "Unknown"}));
        let node: Node =
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": lost_already}})).unwrap();
        assert!(lost(&node, GRACE * 2, GRACE, now).is_none());
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let own = json!({"taints": [{"key": "own", "effect": "NoExecute"}]});
        let both = json!({"taints": [{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]});
        for (node, evict, expected) in [
            (node(Some("True"), own.clone()), true, None),
            (
                node(Some("Unknown"), own),
                true,
                Some(vec!["own:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]),
            ),
            (node(Some("False"), json!({})), false, Some(vec!["not-ready:NoSchedule"])),
            (node(Some("True"), both.clone()), true, Some(vec![])),
            // Once told to leave, pods are not told to stay because evictions became slower.
            (node(Some("Unknown"), both.clone()), false, None),
            (node(Some("False"), both), false, Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"])),
            (node(Some("True"), json!({"unschedulable": true})), true, Some(vec!["unschedulable:NoSchedule"])),
            (node(None, json!({})), true, Some(vec!["not-ready:NoSchedule"])),
        ] {
            let got = taints(&node, evict, now).map(|t| keys(&t));
            assert_eq!(got, expected.map(|e| e.into_iter().map(str::to_owned).collect()));
        }
    }

    #[test]
    fn evictions_are_paced() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let nodes = |lost: usize, all: usize| (0..all).map(|i| ("z".to_owned(), i >= lost)).collect::<Vec<_>>();
        let mut zones = Zones::default();
        assert_eq!(zones.admit("z", &nodes(1, 3), at(100)), Ok(()));
        assert_eq!(zones.admit("z", &nodes(2, 3), at(104)), Err(Some(Duration::from_secs(6))));
        assert_eq!(zones.admit("z", &nodes(2, 3), at(110)), Ok(()));
        assert_eq!(zones.admit("z", &nodes(3, 3), at(200)), Err(None), "everything lost: it is us");
        assert_eq!(zones.admit("z", &nodes(4, 5), at(200)), Err(None), "most of a small zone");
        assert_eq!(zones.admit("z", &nodes(60, 100), at(150)), Err(Some(Duration::from_secs(60))));
    }
}

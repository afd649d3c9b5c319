#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{plan, pod_body};
use crate::object::Object;
use crate::revisions::HASH_LABEL;
use crate::types::{DaemonSet, Node, Pod};

fn set(extra: Value) -> DaemonSet {
    let mut value = json!({"metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 2}, "spec":
        {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}});
    json_patch::merge(&mut value["spec"], &extra);
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, spec: Value) -> Arc<Node> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec})).unwrap(),
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
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}], "unschedulable": true});
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
    assert_eq!((got.create.as_slice(), names(&got.delete)), (&["cordoned".to_owned()][..], vec!["x", "a"]));
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
fn new_pods_may_come_before_old_ones_go() {
    let nodes: Vec<_> = (0..3).map(|i| node(&format!("n{i}"), json!({}))).collect();
    let now = Timestamp::now();
    let surge = json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
    let old = |i: usize, ready: bool| pod(&format!("o{i}"), &format!("n{i}"), "old", ready);
    let new = |i: usize, ready: bool| pod(&format!("w{i}"), &format!("n{i}"), "new", ready);
    for (pods, create, delete) in [
        (vec![old(0, true), old(1, true), old(2, true)], vec!["n0"], vec![]),
        (vec![old(0, true), new(0, false), old(1, true), old(2, true)], vec![], vec![]),
        (vec![old(0, true), new(0, true), old(1, true), old(2, true)], vec!["n1"], vec!["o0"]),
        // One that does not work needs no surge.
        (vec![old(0, false), old(1, true), old(2, true)], vec!["n0", "n1"], vec![]),
        (vec![old(0, false), new(0, false), old(1, true), old(2, true)], vec!["n1"], vec!["o0"]),
        (vec![new(0, true), new(1, true)], vec!["n2"], vec![]),
    ] {
        let got = plan(&set(surge.clone()), &nodes, &pods, "new", now);
        assert_eq!((got.create.iter().map(String::as_str).collect(), names(&got.delete)), (create, delete));
    }
}

#[test]
fn finished_pods_make_way() {
    let nodes = [node("a", json!({}))];
    let mut ended = (*pod("p", "a", "h", false)).clone();
    ended.status.phase = Some("Failed".into());
    let got = plan(&set(json!({})), &nodes, &[Arc::new(ended)], "h", Timestamp::now());
    assert_eq!((names(&got.finished), got.create.len(), got.delete.len()), (vec!["p"], 0, 0));
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

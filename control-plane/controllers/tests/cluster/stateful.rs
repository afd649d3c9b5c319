//! StatefulSets.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn stateful_pods_keep_their_names() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = |image: &str| json!({"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let spec = json!({"replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"app": "s"}}, "template": template("v1")});
    cluster.create("StatefulSet", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).await;
    let settled = |all: &std::collections::BTreeMap<String, Value>, size: i64| {
        let (set, status) = (&all["s"], &all["s"]["status"]);
        status["observedGeneration"] == set["metadata"]["generation"]
            && ["readyReplicas", "updatedReplicas", "currentReplicas", "replicas"]
                .iter()
                .all(|f| status[*f] == json!(size))
            && status["currentRevision"] == status["updateRevision"]
    };
    let first = cluster.until("StatefulSet", "n", |all| settled(all, 2)).await;
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"template": template("v2"), "replicas": 3}})).await;
    let second = cluster.until("StatefulSet", "n", |all| settled(all, 3)).await;
    assert_ne!(first["s"]["status"]["updateRevision"], second["s"]["status"]["updateRevision"]);
    let pods = cluster.until("Pod", "n", |all| all.len() == 3).await;
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["s-0", "s-1", "s-2"]);
    assert!(pods.values().all(|p| p["spec"]["containers"][0]["image"] == "v2" && p["spec"]["subdomain"] == "s"));
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"replicas": 1}})).await;
    cluster.until("StatefulSet", "n", |all| settled(all, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_comes_before_its_predecessor_is_ready() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let template =
        json!({"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}});
    let spec =
        json!({"replicas": 3, "serviceName": "s", "selector": {"matchLabels": {"app": "s"}}, "template": template});
    cluster.create("StatefulSet", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).await;
    let ready = |all: &std::collections::BTreeMap<String, Value>, size: i64| {
        let (set, status) = (&all["s"], &all["s"]["status"]);
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["readyReplicas"].as_i64().unwrap_or(0) == size
    };
    cluster.until("StatefulSet", "n", |all| ready(all, 3)).await;
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"replicas": 1}})).await;
    cluster.until("Pod", "n", |all| all.len() == 1).await;
    let mark = async |state: &str| {
        let condition = json!({"type": "Ready", "status": state, "lastTransitionTime": "2026-01-02T00:00:00Z"});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        cluster.namespaced("Pod", "n").patch_status("s-0", &PatchParams::default(), &patch).await.unwrap();
    };
    mark("False").await;
    cluster.until("StatefulSet", "n", |all| ready(all, 0)).await;
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"replicas": 3}})).await;
    // Seen, counted, and nothing made: pods come before the status is written.
    cluster.until("StatefulSet", "n", |all| ready(all, 0)).await;
    let pods = cluster.until("Pod", "n", |_| true).await;
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["s-0"]);
    mark("True").await;
    cluster.until("Pod", "n", |all| all.len() == 3).await;
}

//! DaemonSets.

use serde_json::{Value, json};

use crate::common::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_run_everywhere() {
    let cluster = Cluster::start().await;
    let _first = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = |image: &str| json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    cluster
        .create(
            "DaemonSet",
            json!({"metadata": {"name": "d", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template("v1")}}),
        )
        .await;
    let available = |all: &std::collections::BTreeMap<String, Value>, nodes: i64| {
        let (d, status) = (&all["d"], &all["d"]["status"]);
        status["observedGeneration"] == d["metadata"]["generation"]
            && ["numberAvailable", "updatedNumberScheduled", "desiredNumberScheduled"]
                .iter()
                .all(|f| status[*f] == json!(nodes))
    };
    cluster.until("DaemonSet", "n", |all| available(all, 1)).await;
    let _second = cluster.node("b").await;
    cluster.until("DaemonSet", "n", |all| available(all, 2)).await;
    let before = cluster.until("Pod", "n", |all| all.len() == 2).await;
    cluster.patch("DaemonSet", "n", "d", json!({"spec": {"template": template("v2")}})).await;
    cluster.until("DaemonSet", "n", |all| available(all, 2)).await;
    cluster.until("Pod", "n", |all| all.len() == 2 && !all.keys().any(|name| before.contains_key(name))).await;
    let revisions = cluster.until("ControllerRevision", "n", |all| all.len() == 2).await;
    assert!(revisions.values().any(|r| r["revision"] == 2 && r["data"]["spec"]["template"]["$patch"] == "replace"));
}

//! Pods and the nodes they get.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::common::{Cluster, condition};

#[tokio::test(flavor = "multi_thread")]
async fn reasons_are_told() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let spec = json!({"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "64"}}}]});
    cluster.create("Pod", json!({"metadata": {"name": "big", "namespace": "n"}, "spec": spec})).await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let pods = cluster.until("Pod", "n", |all| condition(&all["big"], "PodScheduled")["message"] == expected).await;
    assert_eq!(condition(&pods["big"], "PodScheduled")["reason"], "Unschedulable");
    // Room comes: it is scheduled without anybody asking.
    let more = json!({"status": {"allocatable": {"cpu": "128"}}});
    cluster.all("Node").patch_status("a", &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    cluster.until("Pod", "n", |all| all["big"]["status"]["phase"] == "Running").await;
    cluster
        .until("Event", "n", |all| {
            let has = |reason: &str| all.values().any(|e| e["reason"] == reason);
            has("FailedScheduling") && has("Scheduled")
        })
        .await;
}

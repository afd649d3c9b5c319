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

#[tokio::test(flavor = "multi_thread")]
async fn important_pods_take_the_place_of_others() {
    let cluster = Cluster::start().await;
    let _nodes = (cluster.node("a").await, cluster.node("b").await);
    cluster.namespace("n").await;
    for (name, value) in [("low", 1), ("medium", 100), ("high", 1000)] {
        cluster.create("PriorityClass", json!({"metadata": {"name": name}, "value": value})).await;
    }
    let extended = json!({"status": {"allocatable": {"example.com/foo": "3"}, "capacity": {"example.com/foo": "3"}}});
    for node in ["a", "b"] {
        let patch = Patch::Merge(extended.clone());
        cluster.all("Node").patch_status(node, &PatchParams::default(), &patch).await.unwrap();
    }
    let pod = |name: &str, class: &str, node: Option<&str>| {
        let amounts = json!({"example.com/foo": "2"});
        let container = json!({"name": "c", "image": "x", "resources": {"requests": amounts, "limits": amounts}});
        let mut spec = json!({"containers": [container], "priorityClassName": class});
        if let Some(node) = node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        // Something else holds the victim, so that one can look at it afterwards.
        let finalizers = if class == "low" { json!(["example.com/hold"]) } else { json!([]) };
        json!({"metadata": {"name": name, "namespace": "n", "finalizers": finalizers}, "spec": spec})
    };
    cluster.create("Pod", pod("victim", "low", Some("a"))).await;
    cluster.create("Pod", pod("stays", "medium", Some("b"))).await;
    cluster.until("Pod", "n", |all| all.len() == 2 && all.values().all(|p| p["status"]["phase"] == "Running")).await;
    cluster.create("Pod", pod("important", "high", None)).await;
    let all = cluster.until("Pod", "n", |all| condition(&all["victim"], "DisruptionTarget")["status"] == "True").await;
    assert_eq!(condition(&all["victim"], "DisruptionTarget")["reason"], "PreemptionByScheduler");
    cluster.until("Pod", "n", |all| all["important"]["status"]["nominatedNodeName"] == "a").await;
    cluster.patch("Pod", "n", "victim", json!({"metadata": {"finalizers": null}})).await;
    let all =
        cluster.until("Pod", "n", |all| all.get("important").is_some_and(|p| p["status"]["phase"] == "Running")).await;
    assert_eq!(all["important"]["spec"]["nodeName"], "a");
    assert!(all["stays"]["metadata"]["deletionTimestamp"].is_null());
    cluster.until("Event", "n", |all| all.values().any(|e| e["reason"] == "Preempted")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_and_ports_keep_pods_waiting() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let gated = json!({"containers": [{"name": "c", "image": "x"}], "schedulingGates": [{"name": "example.com/wait"}]});
    cluster.create("Pod", json!({"metadata": {"name": "gated", "namespace": "n"}, "spec": gated})).await;
    cluster.until("Pod", "n", |all| condition(&all["gated"], "PodScheduled")["reason"] == "SchedulingGated").await;
    cluster.patch("Pod", "n", "gated", json!({"spec": {"schedulingGates": null}})).await;
    cluster.until("Pod", "n", |all| all["gated"]["status"]["phase"] == "Running").await;
    // One port of all addresses, and of one address.
    let port = |name: &str, ip: &str| {
        let ports = json!([{"containerPort": 80, "hostPort": 54322, "hostIP": ip}]);
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "x", "ports": ports}]}})
    };
    cluster.create("Pod", port("any", "0.0.0.0")).await;
    cluster.until("Pod", "n", |all| all["any"]["status"]["phase"] == "Running").await;
    cluster.create("Pod", port("one", "127.0.0.1")).await;
    let all = cluster.until("Pod", "n", |all| condition(&all["one"], "PodScheduled")["status"] == "False").await;
    let message = condition(&all["one"], "PodScheduled")["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
        "{message}"
    );
    cluster.delete("Pod", "n", "any", kube::api::DeleteParams::default()).await;
    cluster.until("Pod", "n", |all| all["one"]["status"]["phase"] == "Running").await;
}

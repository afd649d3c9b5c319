//! Deployments and ReplicaSets.

use kube::api::DeleteParams;
use serde_json::json;

use crate::common::{Cluster, deployment, ready_endpoints, rolled_out};

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_comes_changes_and_goes() {
    let cluster = Cluster::start().await;
    let _nodes = (cluster.node("a").await, cluster.node("b").await);
    cluster.namespace("shop").await;
    cluster
        .until("ConfigMap", "shop", |all| all.get("kube-root-ca.crt").is_some_and(|m| m["data"]["ca.crt"].is_string()))
        .await;
    let service = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    cluster.create("Service", service).await;
    cluster.create("Deployment", deployment("shop", "web", 3)).await;

    let all = cluster.until("Deployment", "shop", |all| all.get("web").is_some_and(rolled_out)).await;
    assert_eq!(all["web"]["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let pods = cluster.until("Pod", "shop", |all| all.len() == 3).await;
    let nodes: std::collections::BTreeSet<&str> =
        pods.values().map(|p| p["spec"]["nodeName"].as_str().unwrap()).collect();
    assert_eq!(nodes.len(), 2, "pods are spread");
    let slices = cluster.until("EndpointSlice", "shop", |all| ready_endpoints(all).len() == 3).await;
    assert_eq!(ready_endpoints(&slices), pods.keys().cloned().collect::<Vec<_>>());
    assert_eq!(slices.values().next().unwrap()["ports"][0]["port"], 8080);
    cluster
        .until("Endpoints", "shop", |all| {
            all.get("web").is_some_and(|e| e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 3))
        })
        .await;

    // A new image: all pods are replaced.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "echo:v2",
        "ports": [{"name": "http", "containerPort": 8080}]}]}}}});
    cluster.patch("Deployment", "shop", "web", image).await;
    cluster.until("Deployment", "shop", |all| rolled_out(&all["web"])).await;
    let renewed =
        cluster.until("Pod", "shop", |all| all.len() == 3 && all.keys().all(|name| !pods.contains_key(name))).await;
    let slices = cluster
        .until("EndpointSlice", "shop", |all| {
            ready_endpoints(all).len() == 3 && !ready_endpoints(all).iter().any(|n| pods.contains_key(n))
        })
        .await;
    assert_eq!(ready_endpoints(&slices), renewed.keys().cloned().collect::<Vec<_>>());
    let sets = cluster.until("ReplicaSet", "shop", |all| all.len() == 2).await;
    let mut sizes: Vec<_> = sets.values().map(|s| s["spec"]["replicas"].as_i64().unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 3]);

    // Scaled.
    cluster.patch("Deployment", "shop", "web", json!({"spec": {"replicas": 1}})).await;
    cluster.until("Pod", "shop", |all| all.len() == 1).await;
    let events = cluster.until("Event", "shop", |all| all.values().any(|e| e["reason"] == "ScalingReplicaSet")).await;
    assert!(
        events
            .values()
            .any(|e| e["reason"] == "SuccessfulCreate" && e["source"]["component"] == "replicaset-controller")
    );

    // Deleted: the garbage collector takes the rest.
    cluster.delete("Deployment", "shop", "web", DeleteParams::default()).await;
    cluster.until("ReplicaSet", "shop", |all| all.is_empty()).await;
    cluster.until("Pod", "shop", |all| all.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_and_orphan() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    for name in ["front", "keep"] {
        cluster.create("Deployment", deployment("n", name, 1)).await;
    }
    cluster.until("Deployment", "n", |all| ["front", "keep"].iter().all(|n| all.get(*n).is_some_and(rolled_out))).await;
    cluster.delete("Deployment", "n", "front", DeleteParams::foreground()).await;
    cluster.until("Deployment", "n", |all| !all.contains_key("front")).await;
    let sets = cluster.until("ReplicaSet", "n", |_| true).await;
    assert_eq!(sets.len(), 1, "a foreground deletion ends after the dependents are gone");

    cluster.delete("Deployment", "n", "keep", DeleteParams::orphan()).await;
    cluster.until("Deployment", "n", |all| all.is_empty()).await;
    let sets = cluster
        .until("ReplicaSet", "n", |all| {
            all.values().all(|s| s["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty))
        })
        .await;
    assert_eq!(sets.len(), 1);
    // A new Deployment of the same selector takes the orphan over.
    let again = cluster.create("Deployment", deployment("n", "keep", 1)).await;
    cluster
        .until("ReplicaSet", "n", |all| {
            all.len() == 1
                && all.values().all(|s| s["metadata"]["ownerReferences"][0]["uid"] == again["metadata"]["uid"])
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_https_too() {
    let cluster = Cluster::apart().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Deployment", deployment("n", "web", 3)).await;
    let spec = json!({"minAvailable": "50%", "selector": {"matchLabels": {"app": "web"}}});
    cluster.create("PodDisruptionBudget", json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec})).await;
    cluster.until("Deployment", "n", |all| all.get("web").is_some_and(rolled_out)).await;
    let budgets =
        cluster.until("PodDisruptionBudget", "n", |all| all["web"]["status"]["disruptionsAllowed"] == 1).await;
    assert_eq!(budgets["web"]["status"]["desiredHealthy"], 2);
    cluster.all("Namespace").delete("n", &DeleteParams::default()).await.unwrap();
    cluster.until("Namespace", "", |all| !all.contains_key("n")).await;
}

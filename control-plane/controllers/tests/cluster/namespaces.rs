//! Namespaces and what is in them.

use kube::api::DeleteParams;
use serde_json::json;

use crate::common::{Cluster, condition, deployment, rolled_out};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_everything_with_it() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Deployment", deployment("n", "web", 2)).await;
    cluster
        .create(
            "ConfigMap",
            json!({"metadata": {"name": "held", "namespace": "n", "finalizers": ["example.com/hold"]}}),
        )
        .await;
    cluster.until("Deployment", "n", |all| all.get("web").is_some_and(rolled_out)).await;
    cluster.all("Namespace").delete("n", &DeleteParams::default()).await.unwrap();
    let all = cluster
        .until("Namespace", "", |all| condition(&all["n"], "NamespaceFinalizersRemaining")["status"] == "True")
        .await;
    assert_eq!(all["n"]["status"]["phase"], "Terminating");
    cluster.until("Pod", "n", |all| all.is_empty()).await;
    cluster.patch("ConfigMap", "n", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.until("Namespace", "", |all| !all.contains_key("n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_holds_a_namespace_and_says_so() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    cluster.create("ConfigMap", json!({"metadata": {"name": "first", "namespace": "n"}})).await;
    let service = json!({"name": "nobody", "namespace": "n", "port": 443});
    cluster
        .create(
            "APIService",
            json!({"metadata": {"name": "v1.gone.example"}, "spec": {
                "group": "gone.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true, "service": service}}),
        )
        .await;
    let available = |all: &std::collections::BTreeMap<String, serde_json::Value>| {
        all.get("v1.gone.example").is_some_and(|found| condition(found, "Available")["status"] == "False")
    };
    cluster.until("APIService", "", available).await;
    cluster.all("Namespace").delete("n", &DeleteParams::default()).await.unwrap();
    // All that is known of goes.
    cluster.until("ConfigMap", "n", |all| all.is_empty()).await;
    let all = cluster
        .until("Namespace", "", |all| condition(&all["n"], "NamespaceDeletionDiscoveryFailure")["status"] == "True")
        .await;
    let said = condition(&all["n"], "NamespaceDeletionDiscoveryFailure");
    assert!(said["message"].as_str().unwrap().contains("gone.example/v1"), "{said}");
    cluster.all("APIService").delete("v1.gone.example", &DeleteParams::default()).await.unwrap();
    cluster.until("Namespace", "", |all| !all.contains_key("n")).await;
}

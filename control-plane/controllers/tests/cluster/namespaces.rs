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

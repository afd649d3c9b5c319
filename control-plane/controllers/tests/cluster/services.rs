//! Services' endpoints.

use kube::api::DeleteParams;
use serde_json::json;

use crate::common::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_written_by_hand_are_mirrored() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let ports = json!({"ports": [{"name": "sql", "port": 5432}]});
    cluster.create("Service", json!({"metadata": {"name": "db", "namespace": "n"}, "spec": ports})).await;
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"name": "sql", "port": 5432}]}]);
    cluster
        .create("Endpoints", json!({"metadata": {"name": "db", "namespace": "n"}, "subsets": subsets("192.0.2.1")}))
        .await;
    let slices = cluster.until("EndpointSlice", "n", |all| all.len() == 1).await;
    let slice = slices.values().next().unwrap();
    assert_eq!(
        (&slice["endpoints"][0]["addresses"], &slice["ports"][0]["port"]),
        (&json!(["192.0.2.1"]), &json!(5432))
    );
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "db");
    cluster.patch("Endpoints", "n", "db", json!({"subsets": subsets("192.0.2.2")})).await;
    cluster
        .until("EndpointSlice", "n", |all| {
            all.len() == 1 && all.values().all(|s| s["endpoints"][0]["addresses"] == json!(["192.0.2.2"]))
        })
        .await;
    cluster.delete("Endpoints", "n", "db", DeleteParams::default()).await;
    cluster.until("EndpointSlice", "n", |all| all.is_empty()).await;
}

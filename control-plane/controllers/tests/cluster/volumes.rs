//! Volumes made by hand and the claims that get them.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::common::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_a_volume_and_keeps_it_while_used() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let modes = json!(["ReadWriteOnce"]);
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": modes,
        "hostPath": {"path": "/tmp/v"}, "persistentVolumeReclaimPolicy": "Retain", "storageClassName": ""}});
    cluster.create("PersistentVolume", volume).await;
    cluster.until("PersistentVolume", "", |all| all["v"]["status"]["phase"] == "Available").await;
    let claim = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"accessModes": modes, "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create("PersistentVolumeClaim", claim).await;
    let all = cluster.until("PersistentVolumeClaim", "n", |all| all["c"]["status"]["phase"] == "Bound").await;
    assert_eq!(
        (&all["c"]["spec"]["volumeName"], &all["c"]["status"]["capacity"]["storage"]),
        (&json!("v"), &json!("2Gi"))
    );
    let all = cluster.until("PersistentVolume", "", |all| all["v"]["status"]["phase"] == "Bound").await;
    assert_eq!(all["v"]["spec"]["claimRef"]["name"], "c");
    let mounted = json!({"containers": [{"name": "c", "image": "x"}], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]});
    cluster.create("Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": mounted})).await;
    cluster.until("Pod", "n", |all| all["p"]["status"]["phase"] == "Running").await;
    // Deleted while a pod uses it: it goes when the pod has gone.
    let held = |all: &std::collections::BTreeMap<String, Value>| all["c"]["metadata"]["finalizers"].is_array();
    cluster.until("PersistentVolumeClaim", "n", held).await;
    cluster.delete("PersistentVolumeClaim", "n", "c", DeleteParams::default()).await;
    let all = cluster.until("PersistentVolumeClaim", "n", |all| all.contains_key("c")).await;
    assert!(all["c"]["metadata"]["deletionTimestamp"].is_string());
    cluster.delete("Pod", "n", "p", DeleteParams::default()).await;
    cluster.until("PersistentVolumeClaim", "n", |all| all.is_empty()).await;
    cluster.until("PersistentVolume", "", |all| all["v"]["status"]["phase"] == "Released").await;
    cluster.all("PersistentVolume").delete("v", &DeleteParams::default()).await.unwrap();
    cluster.until("PersistentVolume", "", |all| all.is_empty()).await;
}

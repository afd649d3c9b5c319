//! ResourceQuotas and aggregated roles: what follows from what is there.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::common::{Cluster, condition};

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_follows_what_is_used() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let hard = json!({"pods": "2", "requests.cpu": "1", "configmaps": "9", "count/replicationcontrollers": "5", "services.nodeports": "3"});
    cluster.create("ResourceQuota", json!({"metadata": {"name": "q", "namespace": "n"}, "spec": {"hard": hard}})).await;
    let used = |all: &std::collections::BTreeMap<String, Value>| all["q"]["status"]["used"].clone();
    let nothing = json!({"pods": "0", "requests.cpu": "0", "configmaps": "1", "count/replicationcontrollers": "0", "services.nodeports": "0"});
    let all = cluster.until("ResourceQuota", "n", |all| used(all) == nothing).await;
    assert_eq!(all["q"]["status"]["hard"], hard);
    // A controller that wants more pods than there may be says so.
    let container = json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": "300m"}}});
    let spec = json!({"replicas": 3, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}});
    cluster.create("ReplicationController", json!({"metadata": {"name": "r", "namespace": "n"}, "spec": spec})).await;
    let ports = json!({"type": "NodePort", "ports": [{"port": 80}]});
    cluster.create("Service", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": ports})).await;
    let full = json!({"pods": "2", "requests.cpu": "600m", "configmaps": "1", "count/replicationcontrollers": "1", "services.nodeports": "1"});
    cluster.until("ResourceQuota", "n", |all| used(all) == full).await;
    let all = cluster
        .until("ReplicationController", "n", |all| condition(&all["r"], "ReplicaFailure")["status"] == "True")
        .await;
    let failure = condition(&all["r"], "ReplicaFailure");
    assert_eq!(failure["reason"], "FailedCreate");
    assert!(failure["message"].as_str().unwrap().contains("exceeded quota: q"), "{failure}");
    cluster.patch("ReplicationController", "n", "r", json!({"spec": {"replicas": 2}})).await;
    cluster.until("ReplicationController", "n", |all| condition(&all["r"], "ReplicaFailure").is_null()).await;
    // What goes is given back.
    cluster.delete("ReplicationController", "n", "r", DeleteParams::background()).await;
    cluster.delete("Service", "n", "s", DeleteParams::background()).await;
    cluster.until("ResourceQuota", "n", |all| used(all) == nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_come_together() {
    let cluster = Cluster::start().await;
    let selectors = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "ops"}}]});
    cluster
        .create("ClusterRole", json!({"metadata": {"name": "ops"}, "aggregationRule": selectors, "rules": []}))
        .await;
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    cluster
        .create("ClusterRole", json!({"metadata": {"name": "part", "labels": {"to": "ops"}}, "rules": [rule]}))
        .await;
    cluster.until("ClusterRole", "", |all| all["ops"]["rules"] == json!([rule])).await;
    cluster.all("ClusterRole").delete("part", &DeleteParams::default()).await.unwrap();
    cluster.until("ClusterRole", "", |all| all["ops"]["rules"].as_array().is_none_or(Vec::is_empty)).await;
}

//! Addresses of load balancers: given, shared, released, moved, and who announces them.

use std::collections::BTreeMap;

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{Cluster, condition, deployment};

const CONDITION: &str = "sluice.dev/LoadBalancerAddress";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

async fn pool(cluster: &Cluster, name: &str, spec: Value) {
    cluster.create("LoadBalancerPool", json!({"metadata": {"name": name}, "spec": spec})).await;
}

async fn service(cluster: &Cluster, name: &str, change: Value) {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "n"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    json_patch::merge(&mut object, &change);
    cluster.create("Service", object).await;
}

fn ips(service: &Value) -> Vec<&str> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().filter_map(|ingress| ingress["ip"].as_str()).collect()
}

/// Waits until the Services have these addresses, and nothing else is announced.
async fn have(cluster: &Cluster, expected: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let services = cluster
        .until("Service", "n", |all| {
            expected.iter().all(|(name, ip)| {
                let wanted: Vec<&str> = ip.split(',').filter(|ip| !ip.is_empty()).collect();
                all.get(*name).is_some_and(|service| ips(service) == wanted)
            })
        })
        .await;
    let wanted: BTreeMap<String, Vec<String>> =
        expected.iter().filter(|(_, ip)| !ip.is_empty()).fold(BTreeMap::new(), |mut all, (name, ip)| {
            all.entry((*ip).to_owned()).or_default().push(format!("n/{name}"));
            all
        });
    cluster
        .until("LoadBalancerAnnouncement", "", |all| {
            let found = all.values().map(|a| (a["spec"]["address"].clone(), a["spec"]["services"].clone()));
            found.eq(wanted.iter().map(|(ip, services)| (json!(ip), json!(services))))
        })
        .await;
    services
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_and_go() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let _node = cluster.node("a").await;
    // Without a pool a Service without a class is nobody's, and stays as it is.
    service(&cluster, "one", json!({})).await;
    service(&cluster, "other", json!({"spec": {"loadBalancerClass": "example.com/other"}})).await;
    service(&cluster, "ours", json!({"spec": {"loadBalancerClass": "sluice.dev/l2"}})).await;
    let all = cluster.until("Service", "n", |all| condition(&all["ours"], CONDITION)["reason"] == "NoPool").await;
    assert!(condition(&all["one"], CONDITION).is_null() && condition(&all["other"], CONDITION).is_null());
    cluster.delete("Service", "n", "ours", DeleteParams::default()).await;
    cluster.until("Service", "n", |all| !all.contains_key("ours")).await;

    pool(&cluster, "p", json!({"blocks": [{"start": "192.0.2.1", "stop": "192.0.2.2"}]})).await;
    let all = have(&cluster, &[("one", "192.0.2.1")]).await;
    assert_eq!(all["one"]["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(all["one"]["metadata"]["finalizers"], json!([FINALIZER]));
    let announced = cluster.until("LoadBalancerAnnouncement", "", |all| all.len() == 1).await;
    assert_eq!(announced["192.0.2.1"]["spec"]["nodes"], json!([{"name": "a", "addresses": ["127.0.0.9"]}]));

    service(&cluster, "two", json!({})).await;
    have(&cluster, &[("one", "192.0.2.1"), ("two", "192.0.2.2")]).await;
    service(&cluster, "three", json!({})).await;
    let all =
        cluster.until("Service", "n", |all| condition(&all["three"], CONDITION)["reason"] == "PoolExhausted").await;
    assert!(ips(&all["three"]).is_empty());
    cluster
        .until("Event", "n", |all| {
            all.values().any(|e| e["reason"] == "PoolExhausted" && e["involvedObject"]["name"] == "three")
        })
        .await;
    let counted =
        cluster.until("LoadBalancerPool", "", |all| all["p"]["status"]["free"] == 0 && all["p"]["status"]["used"] == 2);
    assert_eq!(condition(&counted.await["p"], "Conflict")["status"], "False");

    // What is released goes to who waits for it; no Service keeps a finalizer that it does not need.
    cluster.delete("Service", "n", "one", DeleteParams::default()).await;
    cluster.until("Service", "n", |all| !all.contains_key("one")).await;
    have(&cluster, &[("two", "192.0.2.2"), ("three", "192.0.2.1")]).await;
    cluster.patch("Service", "n", "two", json!({"spec": {"type": "ClusterIP"}})).await;
    let all = have(&cluster, &[("two", ""), ("three", "192.0.2.1")]).await;
    let all = match all["two"]["metadata"]["finalizers"].is_null() {
        true => all,
        false => cluster.until("Service", "n", |all| all["two"]["metadata"]["finalizers"].is_null()).await,
    };
    assert!(condition(&all["two"], CONDITION).is_null() && condition(&all["other"], CONDITION).is_null());

    // A pool that is disabled keeps what it gave; one that goes takes its addresses along.
    pool(&cluster, "q", json!({"blocks": [{"cidr": "198.51.100.0/24"}]})).await;
    let disable = Patch::Merge(json!({"spec": {"disabled": true}}));
    cluster.all("LoadBalancerPool").patch("p", &PatchParams::default(), &disable).await.unwrap();
    cluster.patch("Service", "n", "two", json!({"spec": {"type": "LoadBalancer"}})).await;
    have(&cluster, &[("two", "198.51.100.0"), ("three", "192.0.2.1")]).await;
    cluster.all("LoadBalancerPool").delete("p", &DeleteParams::default()).await.unwrap();
    have(&cluster, &[("two", "198.51.100.0"), ("three", "198.51.100.1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_asked_for_and_shared() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let _node = cluster.node("a").await;
    pool(&cluster, "p", json!({"blocks": [{"cidr": "192.0.2.0/24"}], "allowFirstLastIPs": false})).await;
    let port = |number: i32| json!({"spec": {"ports": [{"port": number}]}});
    let shared = |number: i32| {
        let mut object = port(number);
        object["metadata"]["annotations"]["sluice.dev/sharing-key"] = json!("front");
        object
    };
    service(&cluster, "field", json!({"spec": {"loadBalancerIP": "192.0.2.9"}})).await;
    let asked = json!({"metadata": {"annotations": {"sluice.dev/load-balancer-ips": "192.0.2.9"}}});
    cluster.until("Service", "n", |all| ips(&all["field"]) == ["192.0.2.9"]).await;
    service(&cluster, "late", asked).await;
    let all = cluster.until("Service", "n", |all| condition(&all["late"], CONDITION)["reason"] == "AddressInUse").await;
    assert_eq!(condition(&all["late"], CONDITION)["message"], "192.0.2.9 is in use by Service n/field");
    cluster.delete("Service", "n", "field", DeleteParams::default()).await;
    have(&cluster, &[("late", "192.0.2.9")]).await;
    service(&cluster, "a", shared(80)).await;
    cluster.until("Service", "n", |all| ips(&all["a"]) == ["192.0.2.1"]).await;
    service(&cluster, "b", shared(81)).await;
    service(&cluster, "c", port(80)).await;
    have(&cluster, &[("late", "192.0.2.9"), ("a", "192.0.2.1"), ("b", "192.0.2.1"), ("c", "192.0.2.2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_service_is_announced_where_its_endpoints_are() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let (_a, _b) = (cluster.node("a").await, cluster.node("b").await);
    pool(&cluster, "p", json!({"blocks": [{"start": "192.0.2.1"}]})).await;
    let mut web = deployment("n", "web", 1);
    web["spec"]["template"]["spec"]["nodeName"] = json!("a");
    cluster.create("Deployment", web).await;
    service(&cluster, "web", json!({"spec": {"externalTrafficPolicy": "Local"}})).await;
    let nodes = async |expected: &[&str]| {
        cluster
            .until("LoadBalancerAnnouncement", "", |all| {
                let nodes = all.get("192.0.2.1").map(|a| a["spec"]["nodes"].as_array().cloned().unwrap_or_default());
                let names = |nodes: Vec<Value>| nodes.iter().map(|n| n["name"].clone()).collect::<Vec<_>>();
                nodes.map(names).is_some_and(|names| names == expected)
            })
            .await;
    };
    nodes(&["a"]).await;
    cluster.patch("Deployment", "n", "web", json!({"spec": {"template": {"spec": {"nodeName": "b"}}}})).await;
    nodes(&["b"]).await;
    cluster.patch("Deployment", "n", "web", json!({"spec": {"replicas": 0}})).await;
    nodes(&[]).await;
    cluster.patch("Service", "n", "web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await;
    cluster
        .until("LoadBalancerAnnouncement", "", |all| {
            all.values().all(|a| a["spec"]["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2))
        })
        .await;
}

//! IPAddresses and ServiceCIDRs: kept, repaired, and gone when nobody needs them.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::DeleteParams;
use serde_json::{Value, json};
use sluice_store::{Op, Range, Txn};

use crate::common::Cluster;

fn owned(all: &BTreeMap<String, Value>) -> Vec<String> {
    let of = |object: &Value| object["spec"]["parentRef"]["namespace"] == "n";
    all.iter().filter(|(_, object)| of(object)).map(|(name, _)| name.clone()).collect()
}

fn service(name: &str, spec: &Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"ports": [{"port": 80}]}});
    json_patch::merge(&mut object["spec"], spec);
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_repaired() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let made = cluster.create("Service", service("s", &json!({}))).await;
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let all = cluster.until("IPAddress", "", |all| owned(all) == [ip.clone()]).await;
    let uid = all[&ip]["metadata"]["uid"].clone();

    // One that someone removes comes back, with an event.
    cluster.all("IPAddress").delete(&ip, &DeleteParams::default()).await.unwrap();
    cluster.until("IPAddress", "", |all| all.get(&ip).is_some_and(|one| one["metadata"]["uid"] != uid)).await;
    let text = format!("Cluster IP [IPv4]: {ip} is not allocated; repairing");
    cluster.until("Event", "n", |all| all.values().any(|event| event["message"] == text)).await;

    // One that names nobody goes, and one that somebody else holds stays.
    let reference = json!({"resource": "gateways", "namespace": "n", "name": "gone"});
    let labels = json!({"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    let held = json!({"metadata": {"name": "10.96.9.2"}, "spec": {"parentRef": reference}});
    let orphan = json!({"metadata": {"name": "10.96.9.1", "labels": labels}, "spec": {"parentRef": reference}});
    cluster.create("IPAddress", held).await;
    cluster.create("IPAddress", orphan).await;
    cluster.until("IPAddress", "", |all| !all.contains_key("10.96.9.1") && all.contains_key("10.96.9.2")).await;
    // Its address is nobody else's.
    cluster.delete("Service", "n", "s", DeleteParams::default()).await;
    cluster.until("IPAddress", "", |all| owned(all) == ["10.96.9.2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_range_serves_and_goes_when_nobody_needs_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let ready = |range: &Value| -> String {
        let conditions = range["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        ready
            .map(|c| format!("{}/{}", c["status"].as_str().unwrap(), c["reason"].as_str().unwrap()))
            .unwrap_or_default()
    };
    let finalizer = json!(["networking.k8s.io/service-cidr-finalizer"]);
    let kept = |range: Option<&Value>| {
        range.is_some_and(|range| range["metadata"]["finalizers"] == finalizer && ready(range) == "True/")
    };
    cluster.create("ServiceCIDR", json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["203.0.113.0/24"]}})).await;
    cluster.until("ServiceCIDR", "", |all| kept(all.get("more")) && kept(all.get("kubernetes"))).await;
    let made = cluster.create("Service", service("s", &json!({"clusterIP": "203.0.113.10"}))).await;
    assert_eq!(made["spec"]["clusterIP"], "203.0.113.10");
    cluster.until("IPAddress", "", |all| owned(all) == ["203.0.113.10"]).await;

    // It stays while the Service has its address, and gives no more.
    cluster.all("ServiceCIDR").delete("more", &DeleteParams::default()).await.unwrap();
    cluster
        .until("ServiceCIDR", "", |all| all.get("more").is_some_and(|range| ready(range) == "False/Terminating"))
        .await;
    let refused = service("t", &json!({"clusterIP": "203.0.113.11"}));
    let refused: kube::core::DynamicObject = serde_json::from_value(refused).unwrap();
    let error = cluster.namespaced("Service", "n").create(&Default::default(), &refused).await.unwrap_err();
    assert!(error.to_string().contains("the provided network does not match the current range"), "{error}");
    cluster.delete("Service", "n", "s", DeleteParams::default()).await;
    cluster.until("ServiceCIDR", "", |all| !all.contains_key("more")).await;
}

/// A store that came from elsewhere may have Services that no API server of ours would have stored.
#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_of_ports_that_they_should_not_have() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    cluster.create("Service", service("first", &spec)).await;
    let key = |name: &str| Vec::from(format!("/registry/services/specs/n/{name}"));
    let first = Range { key: key("first").into(), ..Range::default() };
    let found = cluster.engine.range(first).await.unwrap();
    let text = String::from_utf8(found.kvs[0].value.to_vec()).unwrap();
    let uid = text.split("\"uid\":\"").nth(1).unwrap().split('"').next().unwrap();
    let copy = |name: &str, port: &str| {
        let text = text.replace("\"first\"", &format!("\"{name}\"")).replace("30080", port);
        let text = text.replace(uid, &format!("{name}-{uid}"));
        Op::Put { key: key(name).into(), value: text.into_bytes().into(), lease: 0 }
    };
    let success = vec![copy("second", "30080"), copy("third", "8080")];
    cluster.engine.txn(Txn { success, ..Txn::default() }).await.unwrap();
    let told = |all: &BTreeMap<String, Value>| {
        let text = |event: &Value| {
            let [name, reason, message] = [&event["involvedObject"]["name"], &event["reason"], &event["message"]];
            [name, reason, message].map(|value| value.as_str().unwrap_or_default().to_owned()).join(": ")
        };
        all.values().map(text).filter(|text| text.contains(": Port")).collect::<BTreeSet<_>>()
    };
    let shared = "second: PortAlreadyAllocated: Port 30080 was assigned to multiple services; please recreate service";
    let outside = "third: PortOutOfRange: Port 8080 is not within the port range 30000-32767; please recreate service";
    let expected = BTreeSet::from([shared.to_owned(), outside.to_owned()]);
    cluster.until("Event", "n", |all| told(all) == expected).await;
}

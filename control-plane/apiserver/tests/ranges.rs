//! Addresses and node ports of Services, given once by however many servers share a store: IPAddress objects that come and
//! go with their Service, ranges from ServiceCIDRs, and stores from before there were any such objects.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../store/tests/common/mod.rs"]
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use common::{Answer, Http};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, Op, Range, Txn};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// Servers of one store.
struct Servers {
    dir: tempfile::TempDir,
    store: stores::Fixture,
    running: Vec<(ApiServer, Http)>,
}

impl Servers {
    async fn start(store: stores::Fixture, service_cidr: &str, count: usize) -> Self {
        let mut servers = Self { dir: tempfile::tempdir().unwrap(), store, running: Vec::new() };
        for _ in 0..count {
            servers.add(service_cidr).await;
        }
        servers
    }

    async fn one(service_cidr: &str) -> Self {
        Self::start(stores::embedded().await, service_cidr, 1).await
    }

    async fn add(&mut self, service_cidr: &str) {
        let config = Config {
            dir: self.dir.path().join("pki"),
            advertise: vec!["127.0.0.1".parse().unwrap()],
            bind: "127.0.0.1:6443".parse().unwrap(),
            service_cidr: service_cidr.into(),
            pod_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
        };
        let server = ApiServer::start(config, self.engine()).await.unwrap();
        let admin = Http(server.client(UserInfo::new("admin", &["system:masters"])));
        self.running.push((server, admin));
    }

    fn engine(&self) -> DynEngine {
        Arc::clone(&self.store.engine)
    }

    fn admin(&self, n: usize) -> &Http {
        &self.running[n % self.running.len()].1
    }

    /// Addresses that have an object, with `namespace/name` of the Service.
    async fn noted(&self) -> BTreeMap<String, String> {
        let list = self.admin(0).get(ADDRESSES).await.ok();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let parent = |object: &Value| {
            let parent = &object["spec"]["parentRef"];
            format!("{}/{}", text(&parent["namespace"]), text(&parent["name"]))
        };
        let items = list["items"].as_array().unwrap();
        items.iter().map(|object| (text(&object["metadata"]["name"]), parent(object))).collect()
    }
}

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    json_patch::merge(&mut object["spec"], &spec);
    object
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn refused(answer: &Answer, code: u16, ending: &str) {
    let (got, _, message) = answer.failed();
    assert!(got == code && message.ends_with(ending), "{got} {message}");
}

/// As upstream's conformance tests "ServiceCIDR and IPAddress API should support … API operations" go.
#[tokio::test]
async fn the_kinds_are_served_as_conformance_asks() {
    let servers = Servers::one("10.96.0.0/16").await;
    let http = servers.admin(0);
    let group = http.get("/apis/networking.k8s.io/v1").await.ok();
    let verbs = |name: &str| -> Vec<String> {
        let found = group["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
        found["verbs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    assert_eq!(
        (verbs("ipaddresses"), verbs("servicecidrs")),
        (all.map(String::from).into(), all.map(String::from).into())
    );
    assert_eq!(verbs("servicecidrs/status"), ["get", "patch", "update"]);

    let range = http.get(&format!("{RANGES}/kubernetes")).await.ok();
    let status = http.get(&format!("{RANGES}/kubernetes/status")).await.ok();
    assert_eq!((&status["kind"], &status["metadata"]["uid"]), (&json!("ServiceCIDR"), &range["metadata"]["uid"]));
    assert!(!http.get(RANGES).await.ok()["items"].as_array().unwrap().is_empty());
    assert_eq!(http.watch(&format!("{RANGES}?watch=1")).await.line().await, "ADDED kubernetes");

    let parent = json!({"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"});
    let address = |name: &str, kind: &str| json!({"metadata": {"name": name, "labels": {"type": kind}}, "spec": {"parentRef": parent}});
    let created = http.create(ADDRESSES, address("255.255.255.255", "broadcast")).await;
    http.create(ADDRESSES, address("fe80::42:1dff:fe84:f9e2", "link-local")).await;
    let path = format!("{ADDRESSES}/255.255.255.255");
    let mut patched = http.patch(&path, "merge", json!({"metadata": {"annotations": {"patched": "true"}}})).await.ok();
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    let version = |object: &Value| text(object, "/metadata/resourceVersion").parse::<u64>().unwrap();
    assert!(version(&patched) > version(&created));
    patched["metadata"]["annotations"]["updated"] = json!("true");
    let updated = http.put(&path, patched.clone()).await.ok();
    assert_eq!(updated["metadata"]["annotations"], json!({"patched": "true", "updated": "true"}));
    patched["metadata"]["resourceVersion"] = updated["metadata"]["resourceVersion"].clone();
    patched["spec"]["parentRef"]["name"] = json!("other");
    refused(&http.put(&path, patched).await, 422, "field is immutable");
    http.get(&path).await.ok();
    let found = http.get(&format!("{ADDRESSES}?labelSelector=type%3Dbroadcast")).await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    let mut watch = http.watch(&format!("{ADDRESSES}?watch=1&labelSelector=type%3Dbroadcast")).await;
    assert_eq!(watch.line().await, "ADDED 255.255.255.255");
    http.delete(&path, Value::Null).await.ok();
    http.delete(&format!("{ADDRESSES}?labelSelector=type%3Dlink-local"), Value::Null).await.ok();
    let left = http.get(&format!("{ADDRESSES}?labelSelector=type%3Dlink-local")).await.ok();
    assert_eq!(left["items"], json!([]));
}

#[tokio::test]
async fn an_address_object_comes_and_goes_with_its_service() {
    let servers = Servers::one("10.96.0.0/16,fd00:96::/108").await;
    let http = servers.admin(0);
    let own = BTreeMap::from([
        ("10.96.0.1".to_owned(), "default/kubernetes".to_owned()),
        ("10.96.0.10".to_owned(), "kube-system/kube-dns".to_owned()),
    ]);
    assert_eq!(servers.noted().await, own);

    let dry = http.post(&format!("{SERVICES}?dryRun=All"), service("web", json!({}))).await.ok();
    assert_ne!(text(&dry, "/spec/clusterIP"), "");
    let wrong = service("web", json!({"sessionAffinity": "Never"}));
    assert_eq!(http.post(SERVICES, wrong).await.code, 422);
    assert_eq!(servers.noted().await, own);

    let made = http.create(SERVICES, service("web", json!({"ipFamilyPolicy": "PreferDualStack"}))).await;
    let [four, six] = [0, 1].map(|i| text(&made, &format!("/spec/clusterIPs/{i}")).to_owned());
    let object = http.get(&format!("{ADDRESSES}/{four}")).await.ok();
    assert_eq!(
        object["metadata"]["labels"],
        json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"})
    );
    assert_eq!(object["spec"], json!({"parentRef": {"resource": "services", "namespace": "default", "name": "web"}}));
    assert!(
        text(&object, "/metadata/uid").len() == 36 && !text(&object, "/metadata/creationTimestamp").is_empty(),
        "{object}"
    );
    let object = http.get(&format!("{ADDRESSES}/{six}")).await.ok();
    assert_eq!(object["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"], "IPv6");

    // The second address goes with the second family, the first with the Service, and a type without addresses has none.
    let path = format!("{SERVICES}/web");
    let single = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    http.patch(&format!("{path}?dryRun=All"), "merge", single.clone()).await.ok();
    assert!(servers.noted().await.contains_key(&six));
    http.patch(&path, "merge", single).await.ok();
    let noted = servers.noted().await;
    assert!(noted.contains_key(&four) && !noted.contains_key(&six), "{noted:?}");
    http.patch(&path, "merge", json!({"metadata": {"finalizers": ["a.io/b"]}})).await.ok();
    http.delete(&path, Value::Null).await.ok();
    assert!(servers.noted().await.contains_key(&four));
    http.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(servers.noted().await, own);
    http.create(SERVICES, service("out", json!({}))).await;
    let external =
        json!({"spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": null, "clusterIPs": null}});
    http.patch(&format!("{SERVICES}/out"), "merge", external).await.ok();
    assert_eq!(servers.noted().await, own);

    // Somebody else's address is not given, and not given up.
    let parent = json!({"resource": "gateways", "namespace": "default", "name": "g"});
    http.create(ADDRESSES, json!({"metadata": {"name": "10.96.7.7"}, "spec": {"parentRef": parent}})).await;
    let taken = http.post(SERVICES, service("web", json!({"clusterIP": "10.96.7.7"}))).await;
    refused(&taken, 422, "failed to allocate IP 10.96.7.7: provided IP is already allocated");
    let outside = http.post(SERVICES, service("web", json!({"clusterIP": "10.97.0.1"}))).await;
    refused(&outside, 422, "failed to allocate IP 10.97.0.1: the provided network does not match the current range");
    // A Service that is there is refused what it holds itself, as upstream does.
    http.create(SERVICES, service("fixed", json!({"clusterIP": "10.96.7.8"}))).await;
    let again = http.post(SERVICES, service("fixed", json!({"clusterIP": "10.96.7.8"}))).await;
    refused(&again, 422, "provided IP is already allocated");
    assert_eq!(http.post(SERVICES, service("fixed", json!({}))).await.code, 409);
}

#[tokio::test]
async fn further_ranges_are_used_when_the_first_is_full() {
    // Fourteen addresses, two of which are the cluster's own.
    let servers = Servers::one("10.96.0.0/28").await;
    let http = servers.admin(0);
    for n in 0..12 {
        http.create(SERVICES, service(&format!("s{n}"), json!({}))).await;
    }
    let full = "Internal error occurred: failed to allocate a serviceIP: range is full";
    refused(&http.post(SERVICES, service("more", json!({}))).await, 500, full);
    let range = |cidrs: Value| json!({"metadata": {"name": "more"}, "spec": {"cidrs": cidrs}});
    http.create(RANGES, range(json!(["203.0.113.0/24"]))).await;
    let made = http.create(SERVICES, service("more", json!({}))).await;
    assert!(text(&made, "/spec/clusterIP").starts_with("203.0.113."), "{made}");

    // One that is not ready, or goes, gives nothing; what it gave stays.
    let path = format!("{RANGES}/more");
    let says = |ready: &str| {
        json!({"status": {"conditions": [{"type": "Ready", "status": ready, "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    http.patch(&format!("{path}/status"), "merge", says("False")).await.ok();
    refused(&http.post(SERVICES, service("most", json!({}))).await, 500, full);
    // Among the first sixteen, which are not given while others are free.
    let fixed = json!({"clusterIP": "203.0.113.7"});
    refused(&http.post(SERVICES, service("most", fixed.clone())).await, 422, "does not match the current range");
    http.patch(&format!("{path}/status"), "merge", says("True")).await.ok();
    http.create(SERVICES, service("most", fixed.clone())).await;
    http.patch(&path, "merge", json!({"metadata": {"finalizers": ["networking.k8s.io/service-cidr-finalizer"]}}))
        .await
        .ok();
    http.delete(&path, Value::Null).await.ok();
    refused(&http.post(SERVICES, service("last", json!({}))).await, 500, full);
    http.patch(&format!("{SERVICES}/more"), "merge", json!({"spec": {"sessionAffinity": "ClientIP"}})).await.ok();
    http.delete(&format!("{SERVICES}/most"), Value::Null).await.ok();
    assert!(!servers.noted().await.contains_key("203.0.113.7"));

    refused(
        &http.post(RANGES, range(json!(["10.0.0.0/16", "10.1.0.0/16"]))).await,
        422,
        "i.e 192.168.0.0/24 and 2001:db8::/64",
    );
}

async fn nothing_is_given_twice(store: stores::Fixture) {
    // 126 addresses, two of them taken by the cluster's own Services.
    let servers = Servers::start(store, "10.96.0.0/25", 3).await;
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]});
    let made: Vec<Value> = stream::iter(0..124)
        .map(|n| {
            let (admin, object) = (servers.admin(n), service(&format!("s{n}"), spec.clone()));
            async move { admin.create(SERVICES, object).await }
        })
        .buffer_unordered(24)
        .collect()
        .await;
    let addresses: BTreeSet<&str> = made.iter().map(|s| text(s, "/spec/clusterIP")).collect();
    let port = |s: &Value, pointer: &str| s.pointer(pointer).and_then(Value::as_u64).unwrap();
    let all = ["/spec/ports/0/nodePort", "/spec/ports/1/nodePort", "/spec/healthCheckNodePort"];
    let ports: BTreeSet<u64> = made.iter().flat_map(|s| all.map(|pointer| port(s, pointer))).collect();
    assert_eq!((addresses.len(), ports.len()), (124, 3 * 124));
    let noted = servers.noted().await;
    assert_eq!(noted.len(), 126);
    for service in &made {
        let name = format!("default/{}", text(service, "/metadata/name"));
        assert_eq!(noted.get(text(service, "/spec/clusterIP")), Some(&name));
    }
    let full = "failed to allocate a serviceIP: range is full";
    refused(&servers.admin(1).post(SERVICES, service("more", json!({}))).await, 500, full);

    // All of them at once, and what was held is free again, on every server.
    let deleted = stream::iter(0..124).map(|n| {
        let (admin, path) = (servers.admin(n + 1), format!("{SERVICES}/s{n}"));
        async move { admin.delete(&path, Value::Null).await.ok() }
    });
    deleted.buffer_unordered(24).collect::<Vec<_>>().await;
    assert_eq!(servers.noted().await.len(), 2);
    servers.admin(2).create(SERVICES, service("again", spec)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_twice_on_an_embedded_store() {
    nothing_is_given_twice(stores::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_twice_on_an_etcd() {
    nothing_is_given_twice(stores::etcd().await).await;
}

async fn one_of_many_gets_what_all_ask_for(store: stores::Fixture) {
    let servers = Servers::start(store, "10.96.0.0/16", 3).await;
    let health = |port: u16| json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false, "healthCheckNodePort": port});
    let port = |port: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let mut round = 0;
    let mut check = async |spec: Value, code: u16, ending: &str| {
        round += 1;
        let answers: Vec<(usize, Answer)> = stream::iter(0..9)
            .map(|n| {
                let (admin, object) = (servers.admin(n), service(&format!("r{round}-{n}"), spec.clone()));
                async move { (n, admin.post(SERVICES, object).await) }
            })
            .buffer_unordered(9)
            .collect()
            .await;
        let (given, not): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer.code == 201);
        assert_eq!(given.len(), 1, "{spec}");
        for (_, answer) in not {
            refused(answer, code, ending);
        }
        // Whichever server is asked next: it is free as soon as the Service is gone.
        let winner = given[0].0;
        servers.admin(winner).delete(&format!("{SERVICES}/r{round}-{winner}"), Value::Null).await.ok();
        let next = servers.admin(winner + 1).create(SERVICES, service(&format!("r{round}-next"), spec)).await;
        servers
            .admin(winner + 2)
            .delete(&format!("{SERVICES}/{}", text(&next, "/metadata/name")), Value::Null)
            .await
            .ok();
    };
    for n in 0..4 {
        let ip = format!("10.96.0.{}", 100 + n);
        let taken = format!("failed to allocate IP {ip}: provided IP is already allocated");
        check(json!({"clusterIP": ip}), 422, &taken).await;
        check(
            port(30100 + n),
            422,
            "spec.ports[0].nodePort: Invalid value: 30100: provided port is already allocated"
                .replace("30100", &(30100 + n).to_string())
                .as_str(),
        )
        .await;
        let taken = format!(
            "failed to allocate requested HealthCheck NodePort {}: provided port is already allocated",
            30200 + n
        );
        check(health(30200 + n), 500, &taken).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_gets_what_all_ask_for_on_an_embedded_store() {
    one_of_many_gets_what_all_ask_for(stores::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_gets_what_all_ask_for_on_an_etcd() {
    one_of_many_gets_what_all_ask_for(stores::etcd().await).await;
}

#[tokio::test]
async fn a_service_may_have_more_ports_than_a_transaction_has_room_for() {
    let servers = Servers::one("10.96.0.0/16").await;
    let ports: Vec<Value> = (1..=200).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let made = servers.admin(0).create(SERVICES, service("many", json!({"type": "NodePort", "ports": ports}))).await;
    let given: BTreeSet<u64> =
        made["spec"]["ports"].as_array().unwrap().iter().map(|p| p["nodePort"].as_u64().unwrap()).collect();
    assert_eq!(given.len(), 200);
}

#[tokio::test]
async fn a_quota_counts_a_service_once_however_often_its_write_is_tried() {
    let servers = Servers::start(stores::embedded().await, "10.96.0.0/29", 2).await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"services": "6"}}});
    servers.admin(0).create(quotas, quota).await;
    // Five addresses are left, which both servers choose among at once; the cluster's own Service counts too.
    let made: Vec<Answer> = stream::iter(0..5)
        .map(|n| {
            let (admin, object) = (servers.admin(n), service(&format!("s{n}"), json!({})));
            async move { admin.post(SERVICES, object).await }
        })
        .buffer_unordered(5)
        .collect()
        .await;
    for answer in made {
        assert_eq!(answer.code, 201, "{}", answer.text);
    }
}

/// A store of a release that knew no IPAddresses: Services are there, and nothing else of them.
#[tokio::test]
async fn services_of_an_old_store_get_their_objects_before_anything_is_given() {
    let mut servers = Servers::one("10.96.0.0/28").await;
    for n in 0..12 {
        servers.admin(0).create(SERVICES, service(&format!("s{n}"), json!({"type": "NodePort"}))).await;
    }
    let before = servers.noted().await;
    servers.running.clear();
    let engine = servers.engine();
    for prefix in ["/registry/ipaddresses/", "/registry/.sluice/"] {
        let end = sluice_store::prefix_end(prefix.as_bytes());
        let found = engine.range(Range { key: prefix.into(), end: end.clone(), ..Range::default() }).await.unwrap();
        assert!(!found.kvs.is_empty(), "{prefix}");
        let gone = vec![Op::Delete { key: prefix.into(), end }];
        engine.txn(Txn { success: gone, ..Txn::default() }).await.unwrap();
    }
    servers.add("10.96.0.0/28").await;
    servers.add("10.96.0.0/28").await;
    assert_eq!(servers.noted().await, before);
    let full = "failed to allocate a serviceIP: range is full";
    refused(&servers.admin(0).post(SERVICES, service("more", json!({}))).await, 500, full);
    let port = servers.admin(1).get(&format!("{SERVICES}/s3")).await.ok()["spec"]["ports"][0]["nodePort"].clone();
    servers.admin(0).delete(&format!("{SERVICES}/s0"), Value::Null).await.ok();
    let same = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    refused(&servers.admin(1).post(SERVICES, service("more", same)).await, 422, "provided port is already allocated");
    servers.admin(1).create(SERVICES, service("more", json!({"type": "NodePort"}))).await;
    assert_eq!(servers.noted().await.len(), before.len());
}

#[tokio::test]
async fn an_object_that_is_lost_gives_no_address_away() {
    let servers = Servers::one("10.96.0.0/28").await;
    let http = servers.admin(0);
    let made = http.create(SERVICES, service("s", json!({}))).await;
    let ip = text(&made, "/spec/clusterIP").to_owned();
    http.delete(&format!("{ADDRESSES}/{ip}"), Value::Null).await.ok();
    refused(
        &http.post(SERVICES, service("t", json!({"clusterIP": ip}))).await,
        422,
        "provided IP is already allocated",
    );
    // Deleting the Service needs no object.
    http.delete(&format!("{SERVICES}/s"), Value::Null).await.ok();
    http.create(SERVICES, service("t", json!({"clusterIP": ip}))).await;
}

#[tokio::test]
async fn the_default_range_follows_its_configuration_to_a_second_family_alone() {
    let mut servers = Servers::one("10.96.0.0/16").await;
    let cidrs = async |servers: &Servers| {
        servers.admin(0).get(&format!("{RANGES}/kubernetes")).await.ok()["spec"]["cidrs"].clone()
    };
    servers.running.clear();
    servers.add("10.96.0.0/16,fd00:96::/108").await;
    assert_eq!(cidrs(&servers).await, json!(["10.96.0.0/16", "fd00:96::/108"]));
    servers.running.clear();
    servers.add("10.97.0.0/16").await;
    assert_eq!(cidrs(&servers).await, json!(["10.96.0.0/16", "fd00:96::/108"]));
    let events = servers.admin(0).get("/api/v1/namespaces/default/events").await.ok();
    let told =
        events["items"].as_array().unwrap().iter().find(|e| e["reason"] == "KubernetesDefaultServiceCIDRInconsistent");
    assert_eq!(
        told.map(|event| text(event, "/message")),
        Some(
            "The default ServiceCIDR [10.96.0.0/16 fd00:96::/108] does not match the controller flag configurations [10.97.0.0/16]"
        )
    );
    let made = servers.admin(0).create(SERVICES, service("s", json!({}))).await;
    assert!(text(&made, "/spec/clusterIP").starts_with("10.96."), "{made}");
}

/// What `/metrics` says of the allocators, without their names' beginning.
async fn allocators(http: &Http) -> BTreeSet<String> {
    let text = http.get("/metrics").await.text;
    text.lines().filter_map(|line| line.strip_prefix("kube_apiserver_")).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_is_given_and_refused_is_counted() {
    let servers = Servers::one("10.9.0.0/29,fd00:9::/112").await;
    let http = servers.admin(0);
    let expected = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<BTreeSet<_>>();
    // The first address is the API server's own Service's.
    let begin = expected(&[
        "clusterip_allocator_allocated_ips{cidr=\"10.9.0.0/29\"} 1",
        "clusterip_allocator_allocated_ips{cidr=\"fd00:9::/112\"} 0",
        "clusterip_allocator_available_ips{cidr=\"10.9.0.0/29\"} 5",
        "clusterip_allocator_available_ips{cidr=\"fd00:9::/112\"} 65535",
        "nodeport_allocator_allocated_ports 0",
        "nodeport_allocator_available_ports 2768",
    ]);
    assert_eq!(allocators(http).await, begin);

    let both = json!({"ipFamilyPolicy": "RequireDualStack", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}]});
    // First, as the other could be given this very address: each is one of five.
    http.post(SERVICES, service("asked", json!({"clusterIP": "10.9.0.5"}))).await.ok();
    http.post(SERVICES, service("both", both.clone())).await.ok();
    assert_eq!(http.post(SERVICES, service("again", json!({"clusterIP": "10.9.0.5"}))).await.code, 422);
    assert_eq!(http.post(SERVICES, service("taken", both)).await.code, 422);
    // A range that it is in none of is nobody's failure.
    assert_eq!(http.post(SERVICES, service("outside", json!({"clusterIP": "192.0.2.1"}))).await.code, 422);
    // A rehearsal counts nothing.
    http.post(&format!("{SERVICES}?dryRun=All"), service("dry", json!({}))).await.ok();
    // An update that needs nothing new counts nothing.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    http.patch(&format!("{SERVICES}/both"), "merge", label).await.ok();
    for name in ["a", "b", "c"] {
        http.post(SERVICES, service(name, json!({}))).await.ok();
    }
    assert_eq!(http.post(SERVICES, service("full", json!({}))).await.code, 500);
    let full = expected(&[
        "clusterip_allocator_allocated_ips{cidr=\"10.9.0.0/29\"} 6",
        "clusterip_allocator_allocated_ips{cidr=\"fd00:9::/112\"} 1",
        "clusterip_allocator_available_ips{cidr=\"10.9.0.0/29\"} 0",
        "clusterip_allocator_available_ips{cidr=\"fd00:9::/112\"} 65534",
        "clusterip_allocator_allocation_total{cidr=\"10.9.0.0/29\",scope=\"dynamic\"} 4",
        "clusterip_allocator_allocation_total{cidr=\"10.9.0.0/29\",scope=\"static\"} 1",
        "clusterip_allocator_allocation_total{cidr=\"fd00:9::/112\",scope=\"dynamic\"} 1",
        "clusterip_allocator_allocation_errors_total{cidr=\"10.9.0.0/29\",scope=\"dynamic\"} 1",
        "clusterip_allocator_allocation_errors_total{cidr=\"10.9.0.0/29\",scope=\"static\"} 1",
        "nodeport_allocator_allocated_ports 2",
        "nodeport_allocator_available_ports 2766",
        "nodeport_allocator_allocation_total{scope=\"dynamic\"} 1",
        "nodeport_allocator_allocation_total{scope=\"static\"} 1",
        "nodeport_allocator_allocation_errors_total{scope=\"static\"} 1",
    ]);
    assert_eq!(allocators(http).await, full);

    // What goes is free again; what was given stays counted.
    for name in ["both", "asked", "a", "b", "c"] {
        http.delete(&format!("{SERVICES}/{name}"), json!({})).await.ok();
    }
    let counted = full.iter().filter(|line| line.contains("total")).cloned().collect::<BTreeSet<_>>();
    assert_eq!(allocators(http).await, begin.union(&counted).cloned().collect());
}

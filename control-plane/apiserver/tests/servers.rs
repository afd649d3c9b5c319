//! Several API servers on one store: what each of them gives out, no other gives out again, and all are endpoints of the
//! `kubernetes` Service while they serve.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../store/tests/common/mod.rs"]
mod stores;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use common::{Events, Http};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, embedded::Embedded};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

const SERVICES: &str = "/api/v1/namespaces/default/services";

struct Servers {
    _dir: tempfile::TempDir,
    _running: [ApiServer; 2],
    admins: [Http; 2],
}

async fn two_servers(service_cidr: &str) -> Servers {
    let dir = tempfile::tempdir().unwrap();
    let engine: DynEngine = Embedded::open(&dir.path().join("store"), Default::default()).unwrap();
    let config = config(dir.path(), "127.0.0.1".parse().unwrap(), service_cidr);
    let (first, second) = (
        ApiServer::start(config.clone(), Arc::clone(&engine)).await.unwrap(),
        ApiServer::start(config, engine).await.unwrap(),
    );
    let admins = [&first, &second].map(|server| Http(server.client(UserInfo::new("admin", &["system:masters"]))));
    Servers { _dir: dir, _running: [first, second], admins }
}

fn config(dir: &std::path::Path, advertise: IpAddr, service_cidr: &str) -> Config {
    Config {
        dir: dir.join("pki"),
        advertise: vec![advertise],
        bind: "127.0.0.1:6443".parse().unwrap(),
        service_cidr: service_cidr.into(),
        pod_cidr: "10.244.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_and_no_port_is_given_out_twice() {
    // 126 addresses, two of them taken by the cluster's own Services.
    let servers = two_servers("10.96.0.0/25").await;
    let made: Vec<Value> = stream::iter(0..120)
        .map(|n| {
            let admin = &servers.admins[n % 2];
            async move { admin.create(SERVICES, service(&format!("s{n}"))).await }
        })
        .buffer_unordered(16)
        .collect()
        .await;
    let addresses: BTreeSet<&str> = made.iter().map(|s| s["spec"]["clusterIP"].as_str().unwrap()).collect();
    let ports: BTreeSet<u64> = made.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).collect();
    assert_eq!((addresses.len(), ports.len()), (120, 120));
}

#[tokio::test]
async fn an_address_asked_for_by_name_is_given_once_and_free_again_after() {
    let servers = two_servers("10.96.0.0/24").await;
    let with =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 1}]}});
    let [a, b] = &servers.admins;
    let (first, second) = tokio::join!(a.post(SERVICES, with("a")), b.post(SERVICES, with("b")));
    let mut codes = [first.code, second.code];
    codes.sort_unstable();
    assert_eq!(codes, [201, 422], "{} {}", first.text, second.text);
    let (kept, other) = if first.code == 201 { ("a", b) } else { ("b", a) };
    a.delete(&format!("{SERVICES}/{kept}"), Value::Null).await.ok();
    // Whichever server is asked, it has heard of the deletion: it reads what is newest first.
    other.get(&format!("{SERVICES}/{kept}")).await.failed();
    other.create(SERVICES, with("c")).await;
}

/// A server that serves.
struct Serving {
    admin: Http,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    async fn start(engine: &DynEngine, dir: &std::path::Path, advertise: &str) -> Self {
        let config = config(dir, advertise.parse().unwrap(), "10.96.0.0/24");
        let api = ApiServer::start(config, Arc::clone(engine)).await.unwrap();
        let admin = Http(api.client(UserInfo::new("admin", &["system:masters"])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::spawn(async move { api.serve(listener, token).await.unwrap() });
        Self { admin, shutdown, task }
    }
}

/// Waits until the watched object names these addresses.
async fn named(events: &mut Events, addresses: &[&str]) {
    loop {
        let object = &events.next().await.expect("the watch goes on")["object"];
        let told: Vec<&Value> = match object["kind"].as_str() {
            Some("EndpointSlice") => {
                object["endpoints"].as_array().unwrap().iter().map(|e| &e["addresses"][0]).collect()
            }
            _ => object["subsets"][0]["addresses"].as_array().unwrap().iter().map(|a| &a["ip"]).collect(),
        };
        if told == addresses {
            return;
        }
    }
}

/// Waits until the watched `cluster-info` names this server.
async fn informed(events: &mut Events, server: &str) {
    let line = format!("server: https://{server}:6443");
    while !events.next().await.expect("the watch goes on")["object"]["data"]["kubeconfig"]
        .as_str()
        .unwrap()
        .lines()
        .any(|text| text.trim() == line)
    {}
}

async fn endpoints_follow_the_servers(engine: &DynEngine) {
    let dir = tempfile::tempdir().unwrap();
    let start = |address: &'static str| Serving::start(engine, dir.path(), address);
    let last = start("192.0.2.10").await;
    let of = |kind: &str| format!("{kind}?watch=1&fieldSelector=metadata.name=kubernetes");
    let mut endpoints = last.admin.watch(&of("/api/v1/namespaces/default/endpoints")).await;
    let mut slices = last.admin.watch(&of("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")).await;
    let mut infos = last
        .admin
        .watch("/api/v1/namespaces/kube-public/configmaps?watch=1&fieldSelector=metadata.name=cluster-info")
        .await;
    informed(&mut infos, "192.0.2.10").await;
    named(&mut endpoints, &["192.0.2.10"]).await;
    let first = start("192.0.2.8").await;
    named(&mut endpoints, &["192.0.2.8", "192.0.2.10"]).await;
    informed(&mut infos, "192.0.2.8").await;
    let second = start("192.0.2.9").await;
    named(&mut endpoints, &["192.0.2.8", "192.0.2.9", "192.0.2.10"]).await;
    named(&mut slices, &["192.0.2.8", "192.0.2.9", "192.0.2.10"]).await;

    // What ends is gone before it takes no connections; what dies, when its lease is over.
    let began = Instant::now();
    first.shutdown.cancel();
    first.task.await.unwrap();
    named(&mut endpoints, &["192.0.2.9", "192.0.2.10"]).await;
    informed(&mut infos, "192.0.2.9").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    second.task.abort();
    named(&mut endpoints, &["192.0.2.10"]).await;
    named(&mut slices, &["192.0.2.10"]).await;

    let path = "/api/v1/namespaces/default/endpoints/kubernetes";
    last.admin.patch(path, "merge", json!({"subsets": [{"addresses": [{"ip": "192.0.2.99"}]}]})).await.ok();
    named(&mut endpoints, &["192.0.2.99"]).await;
    named(&mut endpoints, &["192.0.2.10"]).await;
    last.admin.delete(path, Value::Null).await.ok();
    assert_eq!(endpoints.line().await, "DELETED kubernetes");
    named(&mut endpoints, &["192.0.2.10"]).await;

    // The last one's address stays: better one that may come back than none.
    last.shutdown.cancel();
    last.task.await.unwrap();
    let told = last.admin.get(path).await.ok();
    assert_eq!(told["subsets"][0]["addresses"], json!([{"ip": "192.0.2.10"}]));
}

/// The slices of the `kubernetes` Service have one port for all of their endpoints.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_another_port_does_not_start() {
    let store = stores::embedded().await;
    let dir = tempfile::tempdir().unwrap();
    let first = Serving::start(&store.engine, dir.path(), "192.0.2.8").await;
    let mut endpoints =
        first.admin.watch("/api/v1/namespaces/default/endpoints?watch=1&fieldSelector=metadata.name=kubernetes").await;
    named(&mut endpoints, &["192.0.2.8"]).await;
    let at = |address: &str, port: u16| {
        let mut config = config(dir.path(), address.parse().unwrap(), "10.96.0.0/24");
        config.bind.set_port(port);
        ApiServer::start(config, Arc::clone(&store.engine))
    };
    let error = at("192.0.2.9", 7443).await.err().unwrap().to_string();
    assert!(error.contains("192.0.2.8:6443 serves it already, and this one would listen on 7443"), "{error}");
    assert!(at("192.0.2.9", 6443).await.is_ok());
    // What is left of its own last life is not another one.
    assert!(at("192.0.2.8", 7443).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_the_servers_of_an_embedded_store() {
    endpoints_follow_the_servers(&stores::embedded().await.engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_the_servers_of_an_etcd() {
    endpoints_follow_the_servers(&stores::etcd().await.engine).await;
}

//! Several API servers on one store: what each of them gives out, no other gives out again.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, sync::Arc};

use common::Http;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, embedded::Embedded};

const SERVICES: &str = "/api/v1/namespaces/default/services";

struct Servers {
    _dir: tempfile::TempDir,
    _running: [ApiServer; 2],
    admins: [Http; 2],
}

async fn two_servers(service_cidr: &str) -> Servers {
    let dir = tempfile::tempdir().unwrap();
    let engine: DynEngine = Embedded::open(&dir.path().join("store"), Default::default()).unwrap();
    let config = Config {
        dir: dir.path().join("pki"),
        advertise: vec!["127.0.0.1".parse().unwrap()],
        bind: "127.0.0.1:6443".parse().unwrap(),
        service_cidr: service_cidr.into(),
        pod_cidr: "10.244.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
    };
    let (first, second) = (
        ApiServer::start(config.clone(), Arc::clone(&engine)).await.unwrap(),
        ApiServer::start(config, engine).await.unwrap(),
    );
    let admins = [&first, &second].map(|server| Http(server.client(UserInfo::new("admin", &["system:masters"]))));
    Servers { _dir: dir, _running: [first, second], admins }
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

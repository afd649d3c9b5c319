//! Where things end or collide: shutdown, restart, garbage on the socket, many writers at once.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use common::{MAPS, Server, configmap};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, context::UserInfo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_shutdown_ends_watches_and_returns() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (api, shutdown) = (server.api.clone(), shutdown.clone());
        async move { api.serve(listener, shutdown).await }
    });
    let text = server.api.pki().kubeconfig(&format!("https://{address}"), "a", &["system:masters"]).unwrap();
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let http = common::Http(kube::Client::try_from(config).unwrap());
    http.create(MAPS, configmap("a")).await;
    let mut events = http.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(events.line().await, "ADDED a");
    shutdown.cancel();
    assert_eq!(events.next().await, None, "the watch ends");
    timeout(Duration::from_secs(8), serving).await.expect("serve returns").unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_new_server_finds_what_the_old_one_stored() {
    let server = Server::start().await;
    let made = server.admin.create(MAPS, configmap("a")).await;
    let engine = Arc::clone(&server.engine);
    let again = ApiServer::start(server.api.config().clone(), engine).await.unwrap();
    let http = common::Http(again.client(UserInfo::new("admin", &["system:masters"])));
    assert_eq!(http.get(&format!("{MAPS}/a")).await.ok(), made);
    // Its memory begins with its start: a watch from before is sent to list again.
    let mut events = http.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(event["object"]["message"].as_str().unwrap().starts_with("too old resource version: 1 ("));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    let server = Server::listening().await;
    let mut plain = tokio::net::TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(5), plain.read_to_end(&mut rest)).await.expect("it is closed");
    let http = server.https("a", &["system:masters"]).await;
    assert_eq!(http.get("/readyz").await.text, "ok");
    for body in ["", "{", "[]", "null", "{\"metadata\":[]}", "{\"metadata\":{\"name\":7}}"] {
        let answer = http.send(http::Method::POST, MAPS, &[("content-type", "application/json")], body).await;
        assert!((400..500).contains(&answer.code), "{body}: {} {}", answer.code, answer.text);
    }
    let deep = "[".repeat(100_000);
    let answer = http.send(http::Method::POST, MAPS, &[("content-type", "application/json")], deep).await;
    assert_eq!(answer.failed().0, 400);
    for path in [
        "/api/v1/namespaces/default/configmaps/%2e%2e%2fx",
        "/api/v1/namespaces/a%2Fb/pods",
        "/api/v1/namespaces/default/configmaps/%2e%2e",
        "//api//v1",
        "/api/v1/watch",
    ] {
        let answer = http.get(path).await;
        assert!((400..500).contains(&answer.code), "{path}: {} {}", answer.code, answer.text);
    }
}

/// What an informer does: list, then follow. Whatever happens at the same time, it ends up with
/// what a list shows.
#[tokio::test]
async fn list_and_watch_agree_while_many_write() {
    let server = Server::listening().await;
    let http = server.https("informer", &["system:masters"]).await;
    server.admin.create(MAPS, configmap("first")).await;
    let list = http.get(&format!("{MAPS}?labelSelector=on%3Dyes")).await.ok();
    let rv = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = http.watch(&format!("{MAPS}?watch=1&labelSelector=on%3Dyes&resourceVersion={rv}")).await;

    let writers = (0..6).map(|w| {
        let writer = server.user("writer", &["system:masters"]);
        async move {
            for i in 0..25 {
                let name = format!("m{}", (w * 7 + i) % 9);
                let path = format!("{MAPS}/{name}");
                let on = if (w + i) % 3 == 0 { "no" } else { "yes" };
                let labels = json!({"metadata": {"labels": {"on": on}}, "data": {"k": format!("{w}-{i}")}});
                let answer = match (w + i) % 5 {
                    0 => writer.delete(&path, Value::Null).await,
                    _ => {
                        let mut map = configmap(&name);
                        map["metadata"]["labels"] = json!({"on": on});
                        let made = writer.post(MAPS, map).await;
                        if made.code == 409 { writer.patch(&path, "merge", labels).await } else { made }
                    }
                };
                assert!(matches!(answer.code, 200 | 201 | 404), "{} {}", answer.code, answer.text);
            }
        }
    });
    futures::future::join_all(writers).await;
    let mut end = configmap("the-end");
    end["metadata"]["labels"] = json!({"on": "yes"});
    server.admin.create(MAPS, end).await;

    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let mut last = 0;
    loop {
        let event = events.next().await.unwrap();
        let object = event["object"].clone();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let revision: i64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(revision > last, "revisions rise");
        last = revision;
        let known = match event["type"].as_str().unwrap() {
            "DELETED" => seen.remove(&name).is_some(),
            "ADDED" => seen.insert(name.clone(), object).is_none(),
            "MODIFIED" => seen.insert(name.clone(), object).is_some(),
            other => panic!("{other}"),
        };
        assert!(known, "{} of {name} fits what was told before", event["type"]);
        if name == "the-end" {
            break;
        }
    }
    let list = http.get(&format!("{MAPS}?labelSelector=on%3Dyes")).await.ok();
    let now: BTreeMap<String, Value> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| (o["metadata"]["name"].as_str().unwrap().to_owned(), o.clone()))
        .collect();
    assert_eq!(seen, now);
}

#[tokio::test]
async fn events_expire_together() {
    let server = Server::start().await;
    let leases = async || {
        let range = sluice_store::Range {
            key: "/registry/events/".into(),
            end: sluice_store::prefix_end(b"/registry/events/"),
            ..Default::default()
        };
        let kvs = server.engine.range(range).await.unwrap().kvs;
        kvs.into_iter().map(|kv| kv.lease).collect::<Vec<i64>>()
    };
    for name in ["e1", "e2"] {
        let event =
            json!({"metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
        server.admin.create("/api/v1/namespaces/default/events", event).await;
    }
    let leases = leases().await;
    assert_eq!(leases.len(), 2);
    assert!(leases[0] != 0 && leases[0] == leases[1], "one lease for events that are close in time: {leases:?}");
}

/// More writers than places: they wait their turn instead of being turned away.
#[tokio::test]
async fn a_burst_waits_in_line() {
    let server = Server::start().await;
    let burst =
        (0..sluice_apiserver::limits::WRITING * 2).map(|i| server.admin.create(MAPS, configmap(&format!("b{i}"))));
    let made = futures::future::join_all(burst).await;
    assert_eq!(made.len(), sluice_apiserver::limits::WRITING * 2);
    let all = server.admin.get(&format!("{MAPS}?resourceVersion=0")).await.ok();
    assert_eq!(all["items"].as_array().unwrap().len(), made.len());
    server.admin.delete(MAPS, Value::Null).await.ok();
    assert_eq!(server.admin.get(MAPS).await.ok()["items"], json!([]));
}

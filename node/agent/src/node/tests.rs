#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::sim::Sim;

/// An API server with one Node, which tells each status it is given.
struct Server {
    node: Arc<Mutex<Value>>,
    client: Client,
    written: tokio::sync::mpsc::UnboundedReceiver<Value>,
    gets: watch::Receiver<usize>,
    /// Whether it takes no writes.
    full: Arc<AtomicBool>,
}

impl Server {
    fn new() -> Server {
        let node = Arc::new(Mutex::new(Value::Null));
        let (out, written) = tokio::sync::mpsc::unbounded_channel();
        let (count, gets) = watch::channel(0);
        let full = Arc::new(AtomicBool::new(false));
        let (held, refuses) = (node.clone(), full.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (held, out, count, refuses) = (held.clone(), out.clone(), count.clone(), refuses.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let mut node = held.lock();
                let path = head.uri.path();
                let response = Response::builder().header("Content-Type", "application/json");
                if refuses.load(Ordering::Relaxed) && head.method != Method::GET {
                    let status =
                        json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable"});
                    return Ok(response.status(503).body(Body::from(status.to_string().into_bytes())).unwrap());
                }
                let answer = match head.method {
                    _ if path.contains("/leases") => json!({"metadata": {"name": "n1"}}),
                    Method::POST => {
                        *node = body;
                        node.clone()
                    }
                    Method::PATCH if path.ends_with("/status") => {
                        let status = body["status"].as_object().unwrap().clone();
                        for (key, value) in status {
                            node["status"][key] = value;
                        }
                        node["status"]["addresses"].as_array_mut().unwrap().retain(|a| a.get("$patch").is_none());
                        out.send(node["status"].clone()).unwrap();
                        node.clone()
                    }
                    _ => {
                        count.send_modify(|n| *n += 1);
                        node.clone()
                    }
                };
                Ok::<_, std::convert::Infallible>(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
            }
        });
        Server { node, client: Client::new(service, "default"), written, gets, full }
    }

    /// Has the Node read once more.
    async fn looked(&mut self, wake: &Notify) {
        let seen = *self.gets.borrow_and_update();
        wake.notify_one();
        self.gets.wait_for(|n| *n > seen).await.unwrap();
    }
}

/// A keeper whose network is ready.
fn keeper(server: &Server, wake: &Arc<Notify>, dir: &std::path::Path) -> (watch::Sender<bool>, Keeper) {
    let (ready, network) = watch::channel(true);
    let keeper = Keeper {
        client: server.client.clone(),
        runtime: Sim::new().runtime.clone(),
        observed: Observed { name: "n1".into(), ips: vec!["192.0.2.1".parse().unwrap()], ..Observed::default() },
        network,
        begun: std::time::Instant::now(),
        changed: wake.clone(),
        dir: dir.to_owned(),
        thresholds: Thresholds::default(),
        beats: watch::Sender::default(),
        pressure: watch::Sender::default(),
        relief: Relief::default(),
        registered: false,
    };
    (ready, keeper)
}

#[tokio::test]
async fn a_server_that_takes_no_writes_keeps_no_known_node_from_starting() {
    let mut server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let wake = Arc::new(Notify::new());
    let (_ready, mut first) = keeper(&server, &wake, dir.path());
    *server.node.lock() = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    server.full.store(true, Ordering::Relaxed);
    first.register().await.unwrap();
    assert!(!first.registered);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(first.run(shutdown.clone()));
    server.looked(&wake).await;
    assert!(server.written.try_recv().is_err());
    server.full.store(false, Ordering::Relaxed);
    wake.notify_one();
    let status = server.written.recv().await.unwrap();
    assert_eq!(status["conditions"][3]["status"], "True");
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn what_others_change_in_the_status_is_mended_and_nothing_else_written() {
    let mut server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let wake = Arc::new(Notify::new());
    let (_ready, mut keeper) = keeper(&server, &wake, dir.path());
    keeper.register().await.unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(keeper.run(shutdown.clone()));
    for _ in ["the registration", "the first heartbeat"] {
        assert_eq!(server.written.recv().await.unwrap()["conditions"][3]["status"], "True");
    }
    for _ in 0..5 {
        server.looked(&wake).await;
    }
    assert!(server.written.try_recv().is_err(), "written though nothing differed");

    server.node.lock()["status"]["conditions"][3]["status"] = "Unknown".into();
    server.node.lock()["status"]["capacity"]["example.com/foo"] = "2".into();
    wake.notify_one();
    let status = server.written.recv().await.unwrap();
    assert_eq!(status["conditions"][3]["status"], "True");
    assert_eq!(status["allocatable"]["example.com/foo"], "2");
    for _ in 0..3 {
        server.looked(&wake).await;
    }
    assert!(server.written.try_recv().is_err(), "written again");
    shutdown.cancel();
    task.await.unwrap();
}

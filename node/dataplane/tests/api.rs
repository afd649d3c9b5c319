//! From the API's watches into the kernel, with an API that says what the test tells it to.
#![allow(clippy::unwrap_used)]

mod common;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{PATIENCE, connect, isolated, tcp_server};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use sluice_dataplane::Dataplane;
use tokio_util::sync::CancellationToken;

type Answer = UnsyncBoxBody<bytes::Bytes, Infallible>;

/// An API server of two lists and two watches.
struct Api {
    services: Value,
    slices: Value,
    watches: Mutex<Vec<UnboundedReceiver<String>>>,
}

impl Api {
    fn answer(&self, request: &Request<kube::client::Body>) -> Response<Answer> {
        let path = request.uri().path();
        let (services, slices) = (path.ends_with("/services"), path.ends_with("/endpointslices"));
        let watching = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let body = if watching && slices {
            let events = self.watches.lock().unwrap().pop().unwrap_or_else(|| unbounded().1);
            let frames = events.map(|line| Ok::<_, Infallible>(Frame::data(bytes::Bytes::from(line + "\n"))));
            StreamBody::new(frames).boxed_unsync()
        } else if watching {
            StreamBody::new(futures::stream::pending::<Result<Frame<bytes::Bytes>, Infallible>>()).boxed_unsync()
        } else {
            let items = match (services, slices) {
                (true, _) => self.services.clone(),
                (_, true) => self.slices.clone(),
                _ => json!([]),
            };
            let list =
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            Full::new(bytes::Bytes::from(list.to_string())).boxed_unsync()
        };
        Response::new(body)
    }

    fn client(self) -> kube::Client {
        let api = Arc::new(self);
        kube::Client::new(
            tower::service_fn(move |request| {
                let answer = api.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            }),
            "default",
        )
    }
}

fn slice(address: &str, ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "resourceVersion": "2",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}, "nodeName": "here"}]
    })
}

fn until(what: &str, done: impl Fn() -> bool) -> std::time::Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
    start.elapsed()
}

fn tell(events: &UnboundedSender<String>, kind: &str, object: Value) {
    events.unbounded_send(json!({"type": kind, "object": object}).to_string()).unwrap();
}

#[test]
fn what_the_api_says_is_what_sockets_get() {
    isolated("what_the_api_says_is_what_sockets_get", |place| {
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80, "protocol": "TCP"}]}
        });
        let (events, receiver) = unbounded();
        let api = Api {
            services: json!([service]),
            slices: json!([slice("127.0.0.2", true)]),
            watches: Mutex::new(vec![receiver]),
        };
        let old = tcp_server("127.0.0.2:8080");
        let new = tcp_server("127.0.0.3:8080");
        let dataplane = Dataplane::load(place.config()).unwrap();
        let shutdown = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let running = {
            let _inside = runtime.enter();
            let (client, dataplane, shutdown) = (api.client(), dataplane.clone(), shutdown.clone());
            runtime.spawn(async move { dataplane.run(client, shutdown).await })
        };
        let reaches = |server| connect("10.96.0.10:80").is_ok_and(|client| client.server == server);
        until("the list is in effect", || reaches(old));
        let mut open = connect("10.96.0.10:80").unwrap();
        tell(&events, "MODIFIED", slice("127.0.0.3", true));
        let took = until("the change is in effect", || reaches(new));
        println!("from the event to the kernel: {took:?}");
        assert!(open.alive());
        tell(&events, "MODIFIED", slice("127.0.0.3", false));
        until("nobody is ready", || connect("10.96.0.10:80").is_err());
        assert!(open.alive());
        shutdown.cancel();
        runtime.block_on(running).unwrap().unwrap();
        assert_eq!(dataplane.services().unwrap()[0].service, "shop/web:80");
    });
}

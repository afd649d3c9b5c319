//! A stand-in for the API server: lists what it is told, and streams watch events it is given.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

/// One kind's objects, and the open watch on them.
#[derive(Default)]
struct Resource {
    objects: Vec<Value>,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
}

#[derive(Default)]
pub(super) struct Api {
    services: Mutex<Resource>,
    slices: Mutex<Resource>,
}

impl Api {
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = Arc::clone(&api);
            async move { Ok::<_, Infallible>(api.answer(&request)) }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &http::Request<Body>) -> http::Response<ResponseBody> {
        let (resource, kind, version) = match request.uri().path() {
            "/api/v1/services" => (&self.services, "ServiceList", "v1"),
            "/apis/discovery.k8s.io/v1/endpointslices" => (&self.slices, "EndpointSliceList", "discovery.k8s.io/v1"),
            other => panic!("unexpected request for {other}"),
        };
        let mut resource = resource.lock();
        if request.uri().query().unwrap_or("").contains("watch=true") {
            let (sender, mut events) = mpsc::unbounded_channel();
            resource.watchers.push(sender);
            let stream = futures::stream::poll_fn(move |cx| events.poll_recv(cx));
            let frames = futures::StreamExt::map(stream, |bytes| Ok(http_body::Frame::data(bytes)));
            return http::Response::new(StreamBody::new(frames).boxed_unsync());
        }
        let list = json!({
            "kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": resource.objects,
        });
        http::Response::new(Full::new(Bytes::from(list.to_string())).boxed_unsync())
    }

    pub(super) fn with_services(self, objects: Vec<Value>) -> Self {
        self.services.lock().objects = objects;
        self
    }

    pub(super) fn with_slices(self, objects: Vec<Value>) -> Self {
        self.slices.lock().objects = objects;
        self
    }

    pub(super) fn service_event(&self, kind: &str, object: &Value) {
        send(&self.services, kind, object);
    }

    pub(super) fn slice_event(&self, kind: &str, object: &Value) {
        send(&self.slices, kind, object);
    }

    /// Cuts both watches; the next lists show what the objects are then.
    pub(super) fn expire(&self, services: Vec<Value>) {
        self.services.lock().objects = services;
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410,
        }});
        let line = Bytes::from(format!("{gone}\n"));
        for watcher in self.services.lock().watchers.drain(..) {
            let _ = watcher.send(line.clone());
        }
    }
}

fn send(resource: &Mutex<Resource>, kind: &str, object: &Value) {
    let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
    resource.lock().watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
}

pub(super) fn service(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"}, "spec": spec,
    })
}

pub(super) fn slice(name: &str, service: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

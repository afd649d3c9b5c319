//! A real server over an embedded store in a temporary directory, and short words to talk to it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod peer;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, embedded::Embedded};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Server {
    pub api: ApiServer,
    pub engine: DynEngine,
    pub admin: Http,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    listener: Option<TcpListener>,
    shutdown: Option<DropGuard>,
}

impl Server {
    /// In process only.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine: DynEngine = Embedded::open(&dir.path().join("store"), Default::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            dir: dir.path().join("pki"),
            advertise: vec![address.ip()],
            bind: address,
            service_cidr: "10.96.0.0/16".into(),
            pod_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
        };
        let api = ApiServer::start(config, Arc::clone(&engine)).await.unwrap();
        let admin = Http(api.client(UserInfo::new("admin", &["system:masters"])));
        Self { api, engine, admin, address, dir, listener: Some(listener), shutdown: None }
    }

    /// Serves HTTPS too.
    pub async fn listening() -> Self {
        let mut server = Self::start().await;
        let shutdown = CancellationToken::new();
        let (api, listener) = (server.api.clone(), server.listener.take().unwrap());
        let token = shutdown.clone();
        tokio::spawn(async move { api.serve(listener, token).await.unwrap() });
        server.shutdown = Some(shutdown.drop_guard());
        server
    }

    /// A client over HTTPS with a certificate for this user.
    pub async fn https(&self, user: &str, groups: &[&str]) -> Http {
        let text = self.api.pki().kubeconfig(&format!("https://{}", self.address), user, groups).unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        Http(kube::Client::try_from(config).unwrap())
    }

    pub fn user(&self, name: &str, groups: &[&str]) -> Http {
        Http(self.api.client(UserInfo::new(name, groups)))
    }

    /// A namespace with its default service account, so that pods are admitted.
    pub async fn namespace(&self, name: &str) {
        self.admin.create("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
        let accounts = format!("/api/v1/namespaces/{name}/serviceaccounts");
        self.admin.create(&accounts, json!({"metadata": {"name": "default"}})).await;
    }
}

pub struct Http(pub kube::Client);

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e} in {}", self.text))
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{} {}", self.code, self.text);
        self.json()
    }

    /// The Status of a failure: code, reason, message.
    #[track_caller]
    pub fn failed(&self) -> (u16, String, String) {
        let status = self.json();
        assert_eq!(status["kind"], "Status", "{}", self.text);
        assert_eq!(status["code"], self.code);
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (self.code, text("reason"), text("message"))
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|w| w.to_str().unwrap()).collect()
    }
}

impl Http {
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let request = request.body(Body::from(body.into())).unwrap();
        let response = self.0.send(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn accept(&self, path: &str, accept: &str) -> Answer {
        self.send(Method::GET, path, &[("accept", accept)], "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    #[track_caller]
    pub fn create(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        let path = path.to_owned();
        async move {
            let answer = self.post(&path, body).await;
            assert_eq!(answer.code, 201, "{caller}: {}", answer.text);
            answer.json()
        }
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// `kind` is `merge`, `strategic-merge` or `json`.
    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let media = match kind {
            "json" => "application/json-patch+json".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send(Method::PATCH, path, &[("content-type", &media)], body.to_string()).await
    }

    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.send(Method::DELETE, path, &[("content-type", "application/json")], body).await
    }

    /// An open watch.
    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = self.0.send(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

pub struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
            let data = frame.expect("an event within 20 s")?.unwrap().into_data().unwrap();
            self.rest.extend_from_slice(&data);
        }
    }

    /// The next event as `TYPE name`.
    pub async fn line(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

pub fn configmap(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

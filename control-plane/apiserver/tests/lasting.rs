//! What goes on whatever clients do: the cluster's own objects, and connections whose requests were
//! refused before they were read.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::Server;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};

#[tokio::test]
async fn deleted_own_objects_come_back() {
    let server = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let mut events = server.admin.watch(&format!("{services}?watch=1")).await;
    assert_eq!(events.line().await, "ADDED kubernetes");
    for _ in 0..2 {
        server.admin.delete(&format!("{services}/kubernetes"), Value::Null).await.ok();
        assert_eq!(events.line().await, "DELETED kubernetes");
        assert_eq!(events.line().await, "ADDED kubernetes");
    }
    let service = server.admin.get(&format!("{services}/kubernetes")).await.ok();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");

    let name = "kube-node-lease";
    let mut events =
        server.admin.watch(&format!("/api/v1/namespaces?watch=1&fieldSelector=metadata.name={name}")).await;
    assert_eq!(events.line().await, format!("ADDED {name}"));
    server.admin.delete(&format!("/api/v1/namespaces/{name}"), Value::Null).await.ok();
    assert_eq!(events.line().await, format!("MODIFIED {name}"));
    // What the namespace controller does once the namespace is empty.
    let empty = json!({"metadata": {"name": name}, "spec": {"finalizers": []}});
    server.admin.put(&format!("/api/v1/namespaces/{name}/finalize"), empty).await.ok();
    assert_eq!(events.line().await, format!("DELETED {name}"));
    assert_eq!(events.line().await, format!("ADDED {name}"));
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_usable() {
    let server = Server::listening().await;
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(server.api.pki().ca_pem().as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(server.address.ip().to_string()).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, String>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut send = async |method: &str, path: &str, body: String| {
        let request = http::Request::builder().method(method).uri(path).header("host", "x").body(body).unwrap();
        sender.ready().await.expect("the connection is kept");
        let response = sender.send_request(request).await.expect("the connection is kept");
        let code = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        code
    };
    for _ in 0..3 {
        // Nobody may do this without a name, which is told before the body is read.
        assert_eq!(send("POST", common::MAPS, "x".repeat(200_000)).await, 403);
        assert_eq!(send("GET", "/version", String::new()).await, 200);
    }
}

#[tokio::test]
async fn clients_are_told_of_deprecated_kinds() {
    let server = Server::listening().await;
    let admin = server.https("admin", &["system:masters"]).await;
    let endpoints = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    let check = async |path: &str, expected: Option<&str>| {
        let answer = admin.get(path).await;
        let expected: Vec<String> = expected.iter().map(|text| format!("299 - \"{text}\"")).collect();
        assert_eq!(answer.warnings(), expected, "{path}");
    };
    check("/api/v1/endpoints", Some(endpoints)).await;
    check("/api/v1/namespaces/default/endpoints/kubernetes", Some(endpoints)).await;
    check("/api/v1/componentstatuses", Some("v1 ComponentStatus is deprecated in v1.19+")).await;
    check("/api/v1/services", None).await;
}

//! Streams through the whole server: `exec` as a WebSocket over HTTPS to a node's HTTPS API, and
//! what a client is told when it may not.
#![allow(clippy::unwrap_used)]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::Server;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use sluice_apiserver::bootstrap::pki::{Identity, Pki, Usage};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

fn parts(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let cert = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
    (vec![cert], PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap())
}

/// A node that takes one request, upgrades it, and sends back what it gets.
async fn node(pki: &Pki) -> SocketAddr {
    let identity =
        pki.issue("system:node:n1", &[], &["127.0.0.1".into()], Usage::Server, Duration::from_secs(60)).unwrap();
    let (cert, key) = parts(&identity);
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(cert, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(tcp).await.unwrap();
        let head = read_head(&mut stream).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let first = head.lines().next().unwrap().to_owned();
        stream.write_all(format!("{first}\n").as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..n]).await.unwrap();
        }
        let _ = stream.shutdown().await;
    });
    address
}

async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A TLS connection to the server as a user, speaking HTTP/1.1.
async fn connect(server: &Server, user: &str, groups: &[&str]) -> TlsStream<TcpStream> {
    let pki = server.api.pki();
    let (cert, key) = parts(&pki.issue_client(user, groups, Duration::from_secs(60)).unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(cert, key)
        .unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap()
}

const EXEC: &str = "GET /api/v1/namespaces/shop/pods/web/exec?command=ls&stdout=true HTTP/1.1\r\nhost: x\r\n\
    connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n";

#[tokio::test]
async fn exec_reaches_the_node_and_back() {
    let server = Server::listening().await;
    server.namespace("shop").await;
    let at = node(server.api.pki()).await;
    server.admin.create("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": at.port()}}}});
    server.admin.patch("/api/v1/nodes/n1/status", "strategic-merge", status).await.ok();
    let mut web = common::pod("web");
    web["spec"]["nodeName"] = json!("n1");
    server.admin.create("/api/v1/namespaces/shop/pods", web).await;

    // Reading is not enough for a stream, although it comes as GET.
    let role = json!({"metadata": {"name": "reads"}, "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    let binding = json!({"metadata": {"name": "reads"}, "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads"}});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop";
    server.admin.create(&format!("{rbac}/roles"), role).await;
    server.admin.create(&format!("{rbac}/rolebindings"), binding).await;
    let mut stranger = connect(&server, "jane", &[]).await;
    stranger.write_all(EXEC.as_bytes()).await.unwrap();
    let head = read_head(&mut stranger).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");

    let mut admin = connect(&server, "root", &["system:masters"]).await;
    admin.write_all(EXEC.as_bytes()).await.unwrap();
    let head = read_head(&mut admin).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    admin.write_all(b"hello").await.unwrap();
    let expected = "GET /exec/shop/web/c?output=1&command=ls HTTP/1.1\nhello";
    let mut got = vec![0; expected.len()];
    tokio::time::timeout(Duration::from_secs(10), admin.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

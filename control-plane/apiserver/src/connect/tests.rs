#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sluice_api::{resource::builtin, status::Status};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use super::Connect;
use crate::{
    auth::{Authenticator, view::fixed::Fixed},
    authz::Authorizer,
    bootstrap::{
        pki::{Names, Pki, Usage},
        roles,
    },
    context::{Body, ConnectRequest, RequestInfo, ReviewRequest, UserInfo, full},
    peer,
};

const NODE_SANS: &str = "127.0.0.1";

struct Bed {
    _dir: tempfile::TempDir,
    pki: Arc<Pki>,
    view: Arc<Fixed>,
    connect: Arc<Connect>,
}

fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let names = Names {
        advertise: Vec::new(),
        service: "10.96.0.1".parse().unwrap(),
        cluster_domain: "cluster.local".into(),
        extra: Vec::new(),
    };
    let pki = Arc::new(Pki::open(dir.path(), names).unwrap());
    let view = Fixed::new(&[]);
    let authenticator = Arc::new(Authenticator::new(&pki, view.clone(), "cluster.local").unwrap());
    let authorizer = Arc::new(Authorizer::new(view.clone()));
    let connect = Connect::new(&pki, view.clone(), authenticator, authorizer).unwrap();
    Bed { _dir: dir, pki, view, connect: Arc::new(connect) }
}

/// A node that answers with what it was asked, and echoes upgraded streams. It asks for the
/// client's certificate as a kubelet does.
async fn node(pki: &Pki, sans: &str) -> SocketAddr {
    let identity =
        pki.issue("system:node:n1", &["system:nodes"], &[sans.into()], Usage::Server, Duration::from_secs(60)).unwrap();
    let roots = Some(peer::roots(pki.ca_pem()));
    let (port, _) = peer::serve(&identity.cert_pem, &identity.key_pem, roots, answer).await;
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, std::convert::Infallible> {
    let asked = request.uri().to_string();
    if asked.contains("waiting") {
        let mut refused =
            Response::new(full("container \"waiting\" in pod \"web-0\" is waiting to start: ContainerCreating\n"));
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refused);
    }
    if asked == "/away" {
        let mut away = Response::new(full(""));
        *away.status_mut() = StatusCode::FOUND;
        away.headers_mut().insert("location", "/here".parse().unwrap());
        away.headers_mut().insert("access-control-allow-origin", "*".parse().unwrap());
        return Ok(away);
    }
    if asked == "/page" {
        let page = format!("<a href=\"/here\">{:?}</a>", request.headers()["x-forwarded-uri"]);
        let mut answer = Response::new(full(page));
        answer.headers_mut().insert("content-type", "text/html; charset=utf-8".parse().unwrap());
        return Ok(answer);
    }
    if !request.headers().contains_key("upgrade") {
        let seen = request.headers().contains_key("authorization");
        return Ok(Response::new(full(format!("{} {asked} authorization={seen}", request.method()))));
    }
    let protocol = request.headers()["sec-websocket-protocol"].clone();
    assert!(!request.headers().contains_key("authorization"));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        io.write_all(asked.as_bytes()).await.unwrap();
        io.write_all(b"\n").await.unwrap();
        let (mut read, mut write) = tokio::io::split(io);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut switching = Response::new(full(""));
    *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    switching.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    switching.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    switching.headers_mut().insert("sec-websocket-protocol", protocol);
    Ok(switching)
}

/// Serves the connect handler as the pipeline would, over plain HTTP/1.1.
async fn front(connect: Arc<Connect>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let connect = connect.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let connect = connect.clone();
                async move { Ok::<_, std::convert::Infallible>(handle(&connect, request).await) }
            });
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    address
}

async fn handle(connect: &Connect, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.map_err(Into::into).boxed_unsync();
    let result = connect.handle(connect_request(parts, body)).await;
    result.unwrap_or_else(|status| {
        let mut response = Response::new(full(status.message.clone()));
        *response.status_mut() = StatusCode::from_u16(status.code).unwrap();
        response
    })
}

/// `/api/v1/namespaces/shop/pods/web-0/exec` or `/api/v1/nodes/n1/proxy/x`.
fn connect_request(parts: http::request::Parts, body: Body) -> ConnectRequest {
    let path = parts.uri.path().to_owned();
    let words: Vec<&str> = path.trim_start_matches("/api/v1/").split('/').collect();
    let (namespace, rest) = if words[0] == "namespaces" { (words[1], &words[2..]) } else { ("", &words[..]) };
    let info = RequestInfo {
        is_resource: true,
        path: path.clone(),
        verb: "get".into(),
        version: "v1".into(),
        namespace: namespace.into(),
        resource: rest[0].into(),
        name: rest[1].into(),
        subresource: rest[2].into(),
        parts: rest.iter().map(|s| (*s).to_owned()).collect(),
        ..RequestInfo::default()
    };
    let resource = builtin().by_path("", "v1", rest[0]).unwrap().clone();
    ConnectRequest { info, user: Arc::new(UserInfo::new("root", &["system:masters"])), resource, parts, body }
}

fn put_node(view: &Fixed, at: SocketAddr) {
    view.put(
        "",
        "nodes",
        json!({"metadata": {"name": "n1", "uid": "uid-n1"}, "status": {
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": at.ip().to_string()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": at.port()}}}}),
    );
}

fn put_pod(view: &Fixed, name: &str, containers: &[&str], change: Value) {
    let containers: Vec<Value> = containers.iter().map(|c| json!({"name": c})).collect();
    let mut pod = json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": containers}});
    json_patch::merge(&mut pod, &change);
    view.put("", "pods", pod);
}

/// Sends raw HTTP/1.1 and reads to the end.
async fn raw(to: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut out = String::new();
    tokio::time::timeout(Duration::from_secs(10), tcp.read_to_string(&mut out)).await.unwrap().unwrap();
    out
}

async fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\nconnection: close\r\n\r\n");
    let answer = raw(to, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: v5.channel.k8s.io\r\nauthorization: Bearer secret\r\n";

#[tokio::test]
async fn logs_come_from_the_pods_node() {
    let bed = bed();
    put_node(&bed.view, node(&bed.pki, NODE_SANS).await);
    put_pod(&bed.view, "web-0", &["app"], json!({}));
    put_pod(&bed.view, "two", &["a", "b"], json!({"spec": {"initContainers": [{"name": "init"}]}}));
    put_pod(&bed.view, "new", &["app"], json!({"spec": {"nodeName": null}}));
    let front = front(bed.connect.clone()).await;
    let log = |rest: &str| format!("/api/v1/namespaces/shop/pods/{rest}");
    let check = async |rest: &str, code: u16, expected: &str| {
        let (got, body) = get(front, &log(rest)).await;
        assert_eq!(got, code, "{rest}: {body}");
        assert!(body.contains(expected), "{rest}: {body}");
    };
    check("web-0/log", 200, "GET /containerLogs/shop/web-0/app authorization=false").await;
    check(
        "web-0/log?follow=true&tailLines=5&container=app&timestamps=false",
        200,
        "/containerLogs/shop/web-0/app?follow=true&tailLines=5 ",
    )
    .await;
    check("two/log?container=init", 200, "/containerLogs/shop/two/init").await;
    check("new/log", 200, "").await;
    check(
        "two/log",
        400,
        "a container name must be specified for pod two, choose one of: [a b] or one of the init containers: [init]",
    )
    .await;
    check("two/log?container=c", 400, "container c is not valid for pod two").await;
    check("gone/log", 404, "pods \"gone\" not found").await;
    check("web-0/log?tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0").await;
    check("web-0/log?tailLines=x", 400, "invalid syntax").await;
    put_pod(&bed.view, "web-0", &["app", "waiting"], json!({}));
    check(
        "web-0/log?container=waiting",
        400,
        "container \"waiting\" in pod \"web-0\" is waiting to start: ContainerCreating",
    )
    .await;
}

#[tokio::test]
async fn logs_are_read_over_websockets() {
    let bed = bed();
    put_node(&bed.view, node(&bed.pki, NODE_SANS).await);
    put_pod(&bed.view, "web-0", &["app"], json!({}));
    let front = front(bed.connect.clone()).await;
    let open = async |protocol: &'static str| {
        let path = format!("ws://{front}/api/v1/namespaces/shop/pods/web-0/log");
        let mut request = path.into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        tokio_tungstenite::client_async(request, TcpStream::connect(front).await.unwrap()).await
    };
    let log = "GET /containerLogs/shop/web-0/app authorization=false";
    for (protocol, encoded) in [("", false), ("binary.k8s.io", false), ("x,base64.binary.k8s.io", true)] {
        let (socket, answer) = open(protocol).await.unwrap();
        let agreed = answer.headers().get("sec-websocket-protocol").map_or("", |agreed| agreed.to_str().unwrap());
        assert_eq!(agreed, protocol.trim_start_matches("x,"));
        let messages: Vec<Message> = socket.map(|message| message.unwrap()).collect().await;
        assert!(messages.last().unwrap().is_close(), "{messages:?}");
        let text: String = messages
            .iter()
            .filter(|message| !message.is_close())
            .map(|message| {
                assert_eq!(message.is_text(), encoded);
                let data = message.clone().into_data().to_vec();
                let data = if encoded { BASE64_STANDARD.decode(data).unwrap() } else { data };
                String::from_utf8(data).unwrap()
            })
            .collect();
        assert_eq!(text, log);
    }
    let refused = open("v5.channel.k8s.io").await.unwrap_err().to_string();
    assert!(refused.contains("403"), "{refused}");
}

#[tokio::test]
async fn exec_is_an_upgrade_that_passes_through() {
    let bed = bed();
    put_node(&bed.view, node(&bed.pki, NODE_SANS).await);
    put_pod(&bed.view, "web-0", &["app"], json!({}));
    put_pod(&bed.view, "done", &["app"], json!({"status": {"phase": "Succeeded"}}));
    let front = front(bed.connect.clone()).await;
    let mut tcp = TcpStream::connect(front).await.unwrap();
    let path = "/api/v1/namespaces/shop/pods/web-0/exec?command=sh&command=-c&command=echo%20%26&stdin=true&stdout=true&tty=false";
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n").as_bytes()).await.unwrap();
    tcp.write_all(b"hello through both").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: v5.channel.k8s.io"), "{answer}");
    let (_, stream) = answer.split_once("\r\n\r\n").unwrap();
    let asked = "/exec/shop/web-0/app?input=1&output=1&command=sh&command=-c&command=echo%20%26";
    assert_eq!(stream, format!("{asked}\nhello through both"));

    let refused = |path: &str| {
        let request = format!("GET /api/v1/namespaces/shop/pods/{path} HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n");
        async move { raw_until_body(front, &request).await }
    };
    let check = async |path: &str, expected: &str| {
        let answer = refused(path).await;
        assert!(answer.contains(expected), "{path}: {answer}");
    };
    check("web-0/exec?command=ls", "you must specify at least 1 of stdin, stdout, stderr").await;
    check("web-0/exec?stdout=1", "you must specify at least one command for the container").await;
    check(
        "done/exec?stdout=1&command=ls",
        "cannot exec into a container in a completed pod; current phase is Succeeded",
    )
    .await;
    check("gone/attach?stdout=1", "pods \"gone\" not found").await;
    check("web-0/portforward?ports=0", "\"0\" is not a port").await;
    let (code, body) = get(front, "/api/v1/namespaces/shop/pods/web-0/exec?stdout=1&command=ls").await;
    assert_eq!((code, body.as_str()), (400, "Upgrade request required"));
}

/// Reads until the error's text has come; the connection stays open.
async fn raw_until_body(to: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    while !out.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = tcp.read(&mut buffer).await.unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&out));
        out.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn nodes_are_verified_and_absence_is_told() {
    let bed = bed();
    put_pod(&bed.view, "web-0", &["app"], json!({}));
    let front = front(bed.connect.clone()).await;
    let log = "/api/v1/namespaces/shop/pods/web-0/log";
    let (code, body) = get(front, log).await;
    assert_eq!((code, body.as_str()), (404, "nodes \"n1\" not found"));
    // The right authority, the wrong address.
    put_node(&bed.view, node(&bed.pki, "192.0.2.1").await);
    let (code, body) = get(front, log).await;
    assert_eq!(code, 503);
    assert!(body.starts_with("error dialing node n1 at 127.0.0.1:"), "{body}");
    // Another authority.
    let other = self::bed();
    put_node(&bed.view, node(&other.pki, NODE_SANS).await);
    assert_eq!(get(front, log).await.0, 503);
    // Nobody there: the port was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    put_node(&bed.view, closed);
    assert_eq!(get(front, log).await.0, 503);
}

#[tokio::test]
async fn a_nodes_api_is_proxied() {
    let bed = bed();
    put_node(&bed.view, node(&bed.pki, NODE_SANS).await);
    let front = front(bed.connect.clone()).await;
    let (code, body) = get(front, "/api/v1/nodes/n1/proxy/metrics/resource?x=1").await;
    assert_eq!((code, body.as_str()), (200, "GET /metrics/resource?x=1 authorization=false"));
    let (code, body) = get(front, "/api/v1/nodes/n1/proxy/").await;
    assert_eq!((code, body.as_str()), (200, "GET / authorization=false"));
    let (code, body) = get(front, "/api/v1/nodes/n1/proxy/page").await;
    assert_eq!(code, 200);
    assert!(body.contains(r#"<a href="/api/v1/nodes/n1/proxy/here">"/api/v1/nodes/n1/proxy/page"</a>"#), "{body}");
    let ask =
        async |path: &str| raw(front, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
    let away = ask("/api/v1/nodes/n1/proxy/away").await;
    assert!(away.contains("302 Found") && away.contains("location: /api/v1/nodes/n1/proxy/here\r\n"), "{away}");
    assert!(!away.contains("access-control"), "{away}");
    let bare = ask("/api/v1/nodes/n1/proxy?x=1").await;
    assert!(bare.contains("301 Moved") && bare.contains("location: /api/v1/nodes/n1/proxy/?x=1\r\n"), "{bare}");
}

async fn review(
    bed: &Bed,
    user: &UserInfo,
    group: &str,
    resource: &str,
    at: &str,
    object: Value,
) -> Result<Value, Status> {
    let (namespace, name) = at.split_once('/').unwrap_or((at, ""));
    let subresource = if resource == "serviceaccounts" { "token" } else { "" };
    let info = RequestInfo {
        is_resource: true,
        verb: "create".into(),
        group: group.into(),
        version: "v1".into(),
        namespace: namespace.into(),
        resource: resource.into(),
        name: name.into(),
        subresource: subresource.into(),
        ..RequestInfo::default()
    };
    let row = builtin().by_path(group, "v1", resource).unwrap().clone();
    bed.connect.review(ReviewRequest { info: &info, user, resource: &row, object, dry_run: false }).await
}

#[tokio::test]
async fn tokens_are_requested_and_reviewed() {
    let bed = bed();
    put_pod(&bed.view, "web-0", &["app"], json!({}));
    put_node(&bed.view, "127.0.0.1:1".parse().unwrap());
    bed.view.put("", "serviceaccounts", json!({"metadata": {"namespace": "shop", "name": "web", "uid": "uid-sa"}}));
    let admin = UserInfo::new("root", &["system:masters"]);
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let stranger = UserInfo::new("system:node:n2", &["system:nodes"]);
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web-0", "uid": "uid-web-0"});
    let ask = async |user: &UserInfo, spec: Value| {
        review(&bed, user, "", "serviceaccounts", "shop/web", json!({"spec": spec})).await
    };
    let refused = async |user: &UserInfo, spec: Value, expected: &str| {
        let status = ask(user, spec).await.unwrap_err();
        assert!(status.message.contains(expected), "{}", status.message);
    };
    let granted = ask(&node, json!({"boundObjectRef": bound, "expirationSeconds": 3607})).await.unwrap();
    let token = granted["status"]["token"].as_str().unwrap().to_owned();
    let tell = async |token: &str, audiences: Value| {
        let object = json!({"spec": {"token": token, "audiences": audiences}});
        review(&bed, &admin, "authentication.k8s.io", "tokenreviews", "", object).await.unwrap()["status"].clone()
    };
    let told = tell(&token, Value::Null).await;
    assert_eq!(told["authenticated"], true, "{told}");
    assert_eq!(told["user"]["username"], "system:serviceaccount:shop:web");
    assert_eq!(told["user"]["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    let told = tell(&token, json!(["vault"])).await;
    assert!(told["authenticated"].is_null(), "{told}");
    let other = ask(&admin, json!({"audiences": ["vault"]})).await.unwrap();
    let told = tell(other["status"]["token"].as_str().unwrap(), json!(["vault", "x"])).await;
    assert_eq!(told["audiences"], json!(["vault"]));

    refused(&admin, json!({"expirationSeconds": 60}), "may not specify a duration less than 10 minutes").await;
    refused(
        &admin,
        json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "gone"}}),
        "pods \"gone\" not found",
    )
    .await;
    let mut stale = bound.clone();
    stale["uid"] = json!("old");
    refused(&admin, json!({"boundObjectRef": stale}), "does not match the UID in record").await;
    refused(&admin, json!({"boundObjectRef": {"kind": "Deployment", "apiVersion": "apps/v1"}}), "cannot bind token")
        .await;
    refused(&node, json!({}), "node requested token not bound to a pod").await;
    refused(&stranger, json!({"boundObjectRef": bound}), "scheduled on a different node").await;
    put_pod(&bed.view, "web-0", &["app"], json!({"spec": {"serviceAccountName": "other"}}));
    refused(&admin, json!({"boundObjectRef": bound}), "different serviceaccount name").await;
    bed.view.remove("", "pods", "shop", "web-0");
    assert!(tell(&token, Value::Null).await["authenticated"].is_null());
}

#[tokio::test]
async fn access_is_reviewed() {
    let bed = bed();
    for default in roles::defaults() {
        bed.view.put("rbac.authorization.k8s.io", default.plural, default.object);
    }
    let scheduler = UserInfo::new("system:kube-scheduler", &["system:authenticated"]);
    let allowed = async |resource: &str, at: &str, spec: Value| {
        let done = review(&bed, &scheduler, "authorization.k8s.io", resource, at, json!({"spec": spec})).await;
        done.map(|object| object["status"]["allowed"] == true)
    };
    let pods = |verb: &str| json!({"verb": verb, "resource": "pods", "namespace": "shop"});
    let own = "selfsubjectaccessreviews";
    assert_eq!(allowed(own, "", json!({"resourceAttributes": pods("list")})).await, Ok(true));
    assert_eq!(allowed(own, "", json!({"resourceAttributes": pods("create")})).await, Ok(false));
    assert_eq!(allowed(own, "", json!({"nonResourceAttributes": {"verb": "get", "path": "/api"}})).await, Ok(true));
    assert_eq!(allowed(own, "", json!({})).await.unwrap_err().code, 422);
    let of = |user: &str| json!({"user": user, "resourceAttributes": pods("list")});
    assert_eq!(allowed("subjectaccessreviews", "", of("jane")).await, Ok(false));
    assert_eq!(allowed("subjectaccessreviews", "", of("system:kube-scheduler")).await, Ok(true));
    assert_eq!(allowed("subjectaccessreviews", "", of("")).await.unwrap_err().code, 422);
    assert_eq!(allowed("localsubjectaccessreviews", "shop", of("jane")).await, Ok(false));
    assert_eq!(allowed("localsubjectaccessreviews", "other", of("jane")).await.unwrap_err().code, 422);
    let rules = json!({"spec": {"namespace": "shop"}});
    let rules = review(&bed, &scheduler, "authorization.k8s.io", "selfsubjectrulesreviews", "", rules).await.unwrap();
    let held = rules["status"]["resourceRules"].as_array().unwrap();
    assert!(held.iter().any(|r| r["resources"] == json!(["bindings", "pods/binding"])), "{rules}");
    assert!(!rules["status"]["nonResourceRules"].as_array().unwrap().is_empty());
    let me = review(&bed, &scheduler, "authentication.k8s.io", "selfsubjectreviews", "", json!({})).await.unwrap();
    assert_eq!(me["status"]["userInfo"]["username"], "system:kube-scheduler");
}

//! Groups that another server serves.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use common::{Events, Server, peer};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sluice_api::resource::builtin;
use sluice_apiserver::bootstrap::pki::Usage;
use tokio_util::task::AbortOnDropHandle;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders";

/// Says what it serves; of anything else, who asks for what.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let answer = if parts.uri.path() == "/apis/wardle.example.com/v1" {
        let verbs = json!(["create", "get", "list"]);
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1", "resources": [
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": verbs}]})
    } else {
        let all = |name: &str| -> Vec<String> {
            parts.headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
        };
        json!({"method": parts.method.as_str(), "uri": parts.uri.to_string(), "user": all("x-remote-user"),
            "groups": all("x-remote-group"), "authorization": all("authorization"), "body": String::from_utf8_lossy(&body)})
    };
    Ok(Response::builder()
        .header("content-type", "application/json")
        .body(Full::new(answer.to_string().into()))
        .unwrap())
}

/// A server that lets in only the front proxy, as the cluster's ConfigMap tells it by; its port.
async fn extension(server: &Server) -> (u16, AbortOnDropHandle<()>) {
    let pki = server.api.pki();
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = server.admin.get(map).await.ok()["data"].clone();
    assert_eq!(data["client-ca-file"], pki.ca_pem());
    assert_eq!(data["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let roots = peer::roots(data["requestheader-client-ca-file"].as_str().unwrap());
    let identity =
        pki.issue("ext", &[], &["ext.default.svc".to_owned()], Usage::Server, Duration::from_secs(60)).unwrap();
    let (port, serving) = peer::serve(&identity.cert_pem, &identity.key_pem, Some(roots), answer).await;
    (port, AbortOnDropHandle::new(serving))
}

/// Waits for the APIService's condition; its reason and message.
async fn available(events: &mut Events, wanted: &str) -> (String, String) {
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(found) = conditions.iter().find(|c| c["type"] == "Available" && c["status"] == wanted) {
            let text = |field: &str| found[field].as_str().unwrap().to_owned();
            return (text("reason"), text("message"));
        }
    }
}

fn api_service(server: &Server) -> Value {
    json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {
        "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "service": {"namespace": "default", "name": "ext", "port": 7443}, "caBundle": BASE64.encode(server.api.pki().ca_pem())}})
}

async fn wire(server: &Server, port: u16) {
    let spec = json!({"ports": [{"port": 7443}]});
    server
        .admin
        .create("/api/v1/namespaces/default/services", json!({"metadata": {"name": "ext"}, "spec": spec}))
        .await;
    // Loopback is nothing that a client may write.
    let slice = json!({"metadata": {"namespace": "default", "name": "ext-1", "labels": {"kubernetes.io/service-name": "ext"}},
        "addressType": "IPv4", "ports": [{"port": port, "name": ""}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    let row = builtin().by_path("discovery.k8s.io", "v1", "endpointslices").unwrap();
    server.api.storage().create(row, slice).await.unwrap();
}

#[tokio::test]
async fn another_server_serves_a_group() {
    let server = Server::start().await;
    let http = &server.admin;
    let (port, serving) = extension(&server).await;
    let mut events = http.watch(&format!("{SERVICES}?watch=1")).await;
    http.create(SERVICES, api_service(&server)).await;
    let (reason, message) = available(&mut events, "False").await;
    assert_eq!((&*reason, &*message), ("ServiceNotFound", "service/ext in \"default\" is not present"));
    assert_eq!(http.get(FLUNDERS).await.failed(), (503, "ServiceUnavailable".into(), "service unavailable".into()));
    wire(&server, port).await;
    assert_eq!(available(&mut events, "True").await.0, "Passed");

    // Discovery, old and new.
    let groups = http.get("/apis").await.ok();
    let group =
        groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "wardle.example.com").unwrap().clone();
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    assert_eq!(http.get("/apis/wardle.example.com").await.ok()["versions"], group["versions"]);
    let list = http.get("/apis/wardle.example.com/v1").await.ok();
    assert_eq!(list["resources"][1]["name"], "flunders");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = http.accept("/apis", accept).await.ok();
    let found =
        all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "wardle.example.com").unwrap();
    let flunders = &found["versions"][0]["resources"][0];
    assert_eq!((&flunders["resource"], &flunders["scope"]), (&json!("flunders"), &json!("Namespaced")));
    assert_eq!(flunders["subresources"][0]["subresource"], "status");
    assert_eq!(found["versions"][0]["freshness"], "Current");

    // Requests, with who asks in headers that nobody else can set.
    let claim = [("x-remote-user", "root"), ("content-type", "application/json")];
    let jane = server.user("admin", &["system:masters", "devs"]);
    let made = jane.send(http::Method::POST, &format!("{FLUNDERS}?dryRun=All"), &claim, "{\"a\":1}").await.ok();
    assert_eq!(made["uri"], format!("{FLUNDERS}?dryRun=All"));
    assert_eq!((&made["method"], &made["body"]), (&json!("POST"), &json!("{\"a\":1}")));
    assert_eq!((&made["user"], &made["groups"]), (&json!(["admin"]), &json!(["system:masters", "devs"])));
    let joe = server.user("joe", &["system:authenticated"]).get(FLUNDERS).await;
    assert_eq!(joe.code, 403, "who may ask is this server's to say");

    // Built-in versions stay this server's.
    let mut mine = api_service(&server);
    mine["metadata"]["name"] = json!("v1.apps");
    mine["spec"]["group"] = json!("apps");
    http.create(SERVICES, mine).await;
    assert_eq!(http.get("/apis/apps/v1/deployments").await.ok()["kind"], "DeploymentList");

    drop(serving);
    http.get(FLUNDERS).await.failed();
    let (reason, _) = available(&mut events, "False").await;
    assert_eq!(reason, "FailedDiscoveryCheck");
    http.delete(&format!("{SERVICES}/v1.wardle.example.com"), Value::Null).await.ok();
    while events.line().await != "DELETED v1.wardle.example.com" {}
    let gone = || async { http.get("/apis/wardle.example.com").await.code == 404 };
    while !gone().await {
        tokio::task::yield_now().await;
    }
}

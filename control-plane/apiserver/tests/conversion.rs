//! Custom resources whose versions a webhook converts.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use common::{Server, peer};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sluice_apiserver::bootstrap::pki::Usage;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.com/v1/namespaces/default/hosts";
const V2: &str = "/apis/example.com/v2/namespaces/default/hosts";

/// `spec.address` of v1, `host:port`, is `spec.host` and `spec.port` of v2.
fn convert(mut object: Value, to: &str) -> Value {
    let spec = &object["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    object["spec"] = if to == "example.com/v2" {
        let address = text("address");
        let (host, port) = address.split_once(':').unwrap_or((&address, ""));
        json!({"host": host, "port": port})
    } else {
        json!({"address": format!("{}:{}", text("host"), text("port"))})
    };
    object["apiVersion"] = json!(to);
    // Not the webhook's to say.
    object["metadata"]["finalizers"] = json!(["example.com/mine"]);
    object
}

async fn answer(
    request: Request<Incoming>,
    fails: Arc<AtomicBool>,
) -> Result<Response<Full<bytes::Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let asked = &review["request"];
    let to = asked["desiredAPIVersion"].as_str().unwrap();
    let all = asked["objects"].as_array().unwrap().iter();
    assert!(all.clone().all(|o| o["apiVersion"] != to), "what has the version already is not sent");
    let response = if fails.load(Ordering::Relaxed) {
        json!({"uid": asked["uid"], "result": {"status": "Failed", "message": "not today"}})
    } else {
        let converted: Vec<Value> = all.map(|o| convert(o.clone(), to)).collect();
        json!({"uid": asked["uid"], "result": {"status": "Success"}, "convertedObjects": converted})
    };
    let review = json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response});
    Ok(Response::new(Full::new(review.to_string().into())))
}

/// A webhook, and the switch that makes it refuse.
async fn hook(server: &Server) -> (Value, Arc<AtomicBool>) {
    let pki = server.api.pki();
    let identity = pki.issue("hook", &[], &["127.0.0.1".to_owned()], Usage::Server, Duration::from_secs(60)).unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let switch = fails.clone();
    let answer = move |request| answer(request, fails.clone());
    let (port, _) = peer::serve(&identity.cert_pem, &identity.key_pem, None, answer).await;
    let url = format!("https://127.0.0.1:{port}/convert");
    (json!({"url": url, "caBundle": BASE64.encode(pki.ca_pem())}), switch)
}

fn definition(client: &Value, stored: &str) -> Value {
    let version = |name: &str, fields: Value| {
        json!({"name": name, "served": true, "storage": name == stored, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": fields},
                "status": {"type": "object", "properties": {"up": {"type": "boolean"}}}}}}})
    };
    let text = json!({"type": "string"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "hosts.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "hosts", "kind": "Host"},
        "versions": [version("v1", json!({"address": text})), version("v2", json!({"host": text, "port": text}))],
        "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}}})
}

async fn served(server: &Server, path: &str) {
    // The table of resources follows the definition's write; its status tells when it has.
    let mut events = server.admin.watch(&format!("{DEFINITIONS}?watch=1")).await;
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
            assert_eq!(server.admin.get(path).await.code, 200);
            return;
        }
    }
}

#[tokio::test]
async fn objects_are_shown_in_the_version_asked_for() {
    let server = Server::start().await;
    let http = &server.admin;
    let (client, fails) = hook(&server).await;
    http.create(DEFINITIONS, definition(&client, "v1")).await;
    served(&server, V2).await;

    let a = json!({"apiVersion": "example.com/v1", "kind": "Host", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"address": "h:1"}});
    http.create(V1, a).await;
    let shown = http.get(&format!("{V2}/a")).await.ok();
    assert_eq!((&shown["apiVersion"], &shown["kind"]), (&json!("example.com/v2"), &json!("Host")));
    assert_eq!(shown["spec"], json!({"host": "h", "port": "1"}));
    assert_eq!(shown["metadata"]["labels"], json!({"x": "y"}));
    assert!(shown["metadata"]["finalizers"].is_null(), "the webhook may change labels and annotations only");
    let old = http.get(&format!("{V1}/a")).await.ok();
    assert_eq!(old["metadata"]["resourceVersion"], shown["metadata"]["resourceVersion"]);

    let mut events = http.watch(&format!("{V2}?watch=1")).await;
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["host"], "h");
    // What is written in another version is stored in that of the definition, and shown in the writer's.
    let b = json!({"apiVersion": "example.com/v2", "kind": "Host", "metadata": {"name": "b"}, "spec": {"host": "i", "port": "2"}});
    assert_eq!(http.create(V2, b).await["spec"], json!({"host": "i", "port": "2"}));
    assert_eq!(http.get(&format!("{V1}/b")).await.ok()["spec"]["address"], "i:2");
    assert_eq!(events.next().await.unwrap()["object"]["spec"], json!({"host": "i", "port": "2"}));
    let patched = http.patch(&format!("{V2}/b"), "merge", json!({"spec": {"port": "3"}})).await.ok();
    assert_eq!(patched["spec"], json!({"host": "i", "port": "3"}));
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["port"], "3");
    let up = http.patch(&format!("{V2}/b/status"), "merge", json!({"status": {"up": true}})).await.ok();
    assert_eq!((&up["spec"]["port"], &up["status"]["up"]), (&json!("3"), &json!(true)));
    assert_eq!(http.get(&format!("{V1}/b")).await.ok()["spec"]["address"], "i:3");

    // Stored in both versions, listed in either.
    let newest = http.get(&format!("{DEFINITIONS}/hosts.example.com")).await.ok();
    let mut changed = definition(&client, "v2");
    changed["metadata"]["resourceVersion"] = newest["metadata"]["resourceVersion"].clone();
    http.put(&format!("{DEFINITIONS}/hosts.example.com"), changed).await.ok();
    let c = json!({"apiVersion": "example.com/v2", "kind": "Host", "metadata": {"name": "c"}, "spec": {"host": "k", "port": "4"}});
    served(&server, V2).await;
    http.create(V2, c).await;
    for (path, version, field, expected) in
        [(V1, "v1", "address", ["h:1", "i:3", "k:4"]), (V2, "v2", "port", ["1", "3", "4"])]
    {
        let list = http.get(path).await.ok();
        let items = list["items"].as_array().unwrap();
        let all: Vec<&str> = items.iter().map(|i| i["spec"][field].as_str().unwrap()).collect();
        assert_eq!(all, expected);
        assert!(items.iter().all(|i| i["apiVersion"] == format!("example.com/{version}")), "{list}");
    }

    fails.store(true, Ordering::Relaxed);
    let (code, reason, message) = http.get(&format!("{V1}/c")).await.failed();
    let expected = "conversion webhook for example.com/v2, Kind=Host failed: not today";
    assert_eq!((code, reason.as_str(), message.as_str()), (500, "", expected));
    fails.store(false, Ordering::Relaxed);
    http.delete(&format!("{V1}/c"), Value::Null).await.ok();
    assert_eq!(http.get(&format!("{V2}/c")).await.code, 404);
}

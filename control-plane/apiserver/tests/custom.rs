//! Custom resources: served once defined, gone with their definition.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Http, Server};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition() -> Value {
    json!({"metadata": {"name": "crontabs.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"]},
        "versions": [
            {"name": "v1", "served": true, "storage": true, "additionalPrinterColumns": [{"name": "Cron", "type": "string", "jsonPath": ".spec.cron"}],
             "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
             "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            {"name": "v1beta1", "served": true, "storage": false,
             "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

/// Waits for a condition of the definition, as `kubectl wait` does.
async fn wait(http: &Http, event: &str, holds: impl Fn(&Value) -> bool) {
    let mut events =
        http.watch(&format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3Dcrontabs.example.com")).await;
    loop {
        let next = events.next().await.unwrap();
        let type_fits = next["type"] == event || (event == "MODIFIED" && next["type"] == "ADDED");
        if type_fits && holds(&next["object"]) {
            return;
        }
    }
}

#[tokio::test]
async fn a_definition_is_served_until_it_goes() {
    let server = Server::start().await;
    let http = &server.admin;
    let tabs = "/apis/example.com/v1/namespaces/default/crontabs";
    assert_eq!(http.get(tabs).await.code, 404);
    http.create(DEFINITIONS, definition()).await;
    let established =
        |d: &Value| d["status"]["conditions"].as_array().is_some_and(|c| c.iter().any(|c| c["type"] == "Established"));
    wait(http, "MODIFIED", established).await;

    let groups = http.get("/apis").await.ok();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "example.com"));
    let made = http
        .create(tabs, json!({"metadata": {"name": "a"}, "spec": {"cron": "* *", "replicas": 1}, "status": {"x": 1}}))
        .await;
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("CronTab"), &json!("example.com/v1")));
    assert_eq!(made["metadata"]["generation"], 1);
    assert!(made.get("status").is_none(), "the status has its own subresource");
    let other = http.get("/apis/example.com/v1beta1/namespaces/default/crontabs/a").await.ok();
    assert_eq!((&other["apiVersion"], &other["spec"]), (&json!("example.com/v1beta1"), &made["spec"]));
    let patched = http.patch(&format!("{tabs}/a"), "merge", json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(patched["metadata"]["generation"], 2);
    assert_eq!(http.patch(&format!("{tabs}/a"), "strategic-merge", json!({})).await.code, 415);
    let list = http.get(tabs).await.ok();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("CronTabList"), 1));
    let table = http.accept(tabs, "application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(table["rows"][0]["cells"], json!(["a", "* *"]));
    for path in ["/openapi/v3/apis/example.com/v1", "/openapi/v2", "/apis/example.com/v1"] {
        assert_eq!(http.get(path).await.code, 200, "{path}");
    }

    let document = http.get("/openapi/v3/apis/example.com/v1").await.ok();
    let kinds = &document["components"]["schemas"]["com.example.v1.CronTab"]["x-kubernetes-group-version-kind"];
    assert_eq!(kinds[0]["kind"], "CronTab");

    http.delete(&format!("{DEFINITIONS}/crontabs.example.com"), Value::Null).await.ok();
    for _ in 0..500 {
        if http.get(&format!("{DEFINITIONS}/crontabs.example.com")).await.code == 404
            && http.get(tabs).await.code == 404
        {
            return;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the definition is still there");
}

#[tokio::test]
async fn objects_move_to_the_version_that_is_stored() {
    let server = Server::start().await;
    let http = &server.admin;
    let (v1, beta) = ("/apis/example.com/v1/namespaces/default/crontabs", "/apis/example.com/v1beta1/crontabs");
    let beta_a = "/apis/example.com/v1beta1/namespaces/default/crontabs/a";
    http.create(DEFINITIONS, definition()).await;
    wait(http, "MODIFIED", |d| d["status"]["storedVersions"] == json!(["v1"])).await;
    wait(http, "MODIFIED", |d| d["status"]["conditions"].as_array().is_some_and(|c| c.len() > 1)).await;
    http.create(v1, json!({"metadata": {"name": "a"}, "spec": {"cron": "* *"}})).await;
    let mut changed = definition();
    changed["spec"]["versions"][0]["storage"] = json!(false);
    changed["spec"]["versions"][1]["storage"] = json!(true);
    http.patch(&format!("{DEFINITIONS}/crontabs.example.com"), "merge", changed).await.ok();
    wait(http, "MODIFIED", |d| d["status"]["storedVersions"] == json!(["v1", "v1beta1"])).await;

    let shown = http.get(beta_a).await.ok();
    assert_eq!(shown["apiVersion"], "example.com/v1beta1", "still stored as v1");
    let mut events = http.watch(&format!("{beta}?watch=1")).await;
    assert_eq!(events.next().await.unwrap()["object"]["apiVersion"], "example.com/v1beta1");
    assert_eq!(http.get(beta).await.ok()["items"][0]["apiVersion"], "example.com/v1beta1");
    assert_eq!(http.get(&format!("{v1}/a")).await.ok()["apiVersion"], "example.com/v1");

    let put = http.put(beta_a, shown.clone()).await.ok();
    assert_ne!(put["metadata"]["resourceVersion"], shown["metadata"]["resourceVersion"], "stored as v1beta1");
    let again = http.put(beta_a, put.clone()).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], put["metadata"]["resourceVersion"], "nothing to do");
    let patched = http.patch(beta_a, "merge", json!({"spec": {"cron": "1 *"}})).await.ok();
    assert_eq!((&patched["apiVersion"], &patched["spec"]["cron"]), (&json!("example.com/v1beta1"), &json!("1 *")));
}

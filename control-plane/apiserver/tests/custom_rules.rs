//! The schemas of custom resources at work: pruning, defaults, validation, rules, faces, selection.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Http, Server};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(schema: Value) -> Value {
    json!({"metadata": {"name": "tabs.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "shortNames": ["tb"], "categories": ["all"]},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.count",
                "statusReplicasPath": ".status.count", "labelSelectorPath": ".status.selector"}}}]}})
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["color"], "description": "What is wanted.",
            "x-kubernetes-validations": [{"rule": "self.count <= self.most", "message": "count is at most most"}],
            "properties": {
                "color": {"type": "string", "enum": ["red", "blue"],
                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "color is fixed"}]},
                "count": {"type": "integer", "minimum": 0, "default": 1},
                "most": {"type": "integer", "default": 5}}},
        "status": {"type": "object", "properties": {"count": {"type": "integer"}, "selector": {"type": "string"}}}}})
}

async fn established(http: &Http, name: &str) {
    let mut events = http.watch(&format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3D{name}")).await;
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Established") {
            return;
        }
    }
}

const TABS: &str = "/apis/example.com/v1/namespaces/default/tabs";

#[tokio::test]
async fn objects_follow_their_schema() {
    let server = Server::start().await;
    let http = &server.admin;
    http.create(DEFINITIONS, definition(schema())).await;
    established(http, "tabs.example.com").await;

    let tab = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let made = http.post(TABS, tab("a", json!({"color": "red", "extra": 1}))).await;
    assert_eq!(made.warnings(), ["299 - \"unknown field \\\"spec.extra\\\"\""]);
    assert_eq!(made.ok()["spec"], json!({"color": "red", "count": 1, "most": 5}));
    let strict =
        http.post(&format!("{TABS}?fieldValidation=Strict"), tab("b", json!({"color": "red", "extra": 1}))).await;
    assert_eq!(
        strict.failed(),
        (
            400,
            "BadRequest".into(),
            "Tab in version \"v1\" cannot be handled as a Tab: strict decoding error: unknown field \"spec.extra\""
                .into()
        )
    );
    for (spec, message) in [
        (json!({}), "Tab.example.com \"b\" is invalid: spec.color: Required value"),
        (
            json!({"color": "green"}),
            "Tab.example.com \"b\" is invalid: spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (
            json!({"color": "red", "count": 9}),
            "Tab.example.com \"b\" is invalid: spec: Invalid value: \"object\": count is at most most",
        ),
        (
            json!({"color": "red", "count": "x"}),
            "Tab.example.com \"b\" is invalid: spec.count: Invalid value: \"string\": spec.count in body must be of type integer: \"string\"",
        ),
    ] {
        assert_eq!(http.post(TABS, tab("b", spec)).await.failed(), (422, "Invalid".into(), message.into()));
    }
    let changed = http.patch(&format!("{TABS}/a"), "merge", json!({"spec": {"color": "blue"}})).await.failed();
    assert_eq!(changed.2, "Tab.example.com \"a\" is invalid: spec.color: Invalid value: \"string\": color is fixed");

    let status = http.patch(&format!("{TABS}/a/status"), "merge", json!({"status": {"count": "x"}})).await.failed();
    assert!(status.2.contains("status.count in body must be of type integer"), "{}", status.2);
    http.patch(&format!("{TABS}/a/status"), "merge", json!({"status": {"count": 2, "selector": "a=b"}})).await.ok();
    let scale = http.get(&format!("{TABS}/a/scale")).await.ok();
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 1}), &json!({"replicas": 2, "selector": "a=b"}))
    );
    http.patch(&format!("{TABS}/a/scale"), "merge", json!({"spec": {"replicas": 4}})).await.ok();
    assert_eq!(http.get(&format!("{TABS}/a")).await.ok()["spec"]["count"], 4);

    http.create(TABS, tab("c", json!({"color": "blue"}))).await;
    let found = http.get(&format!("{TABS}?fieldSelector=spec.color%3Dblue")).await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(found["items"][0]["metadata"]["name"], "c");

    // What was stored before a default is there shows it when it is read.
    let mut later = http.get(&format!("{DEFINITIONS}/tabs.example.com")).await.ok();
    later["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"] =
        json!({"type": "string", "default": "small"});
    http.put(&format!("{DEFINITIONS}/tabs.example.com"), later).await.ok();
    loop {
        let read = http.get(&format!("{TABS}/c")).await.ok();
        if read["spec"]["size"] == "small" {
            break;
        }
        tokio::task::yield_now().await;
    }
    let document = http.get("/openapi/v3/apis/example.com/v1").await.ok();
    let published = &document["components"]["schemas"]["com.example.v1.Tab"]["properties"]["spec"];
    assert_eq!(published["description"], "What is wanted.");
}

#[tokio::test]
async fn definitions_that_cannot_be_are_refused() {
    let server = Server::start().await;
    let http = &server.admin;
    let refused = |answer: common::Answer, part: &str| {
        let (code, _, message) = answer.failed();
        assert!(code == 422 && message.contains(part), "{code} {message}");
    };
    let mut wrong = definition(schema());
    wrong["metadata"]["name"] = json!("others.example.com");
    refused(http.post(DEFINITIONS, wrong).await, "must be spec.names.plural+\".\"+spec.group");
    let rule = |rule: &str| {
        let mut schema = schema();
        schema["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": rule}]);
        definition(schema)
    };
    refused(http.post(DEFINITIONS, rule("self.nothing == 1")).await, "undefined field 'nothing'");
    refused(http.post(DEFINITIONS, rule("self = 1")).await, "Syntax error");

    http.create(DEFINITIONS, definition(schema())).await;
    established(http, "tabs.example.com").await;
    let mut second = definition(schema());
    second["metadata"]["name"] = json!("others.example.com");
    second["spec"]["names"] = json!({"plural": "others", "kind": "Tab"});
    http.create(DEFINITIONS, second).await;
    established(http, "others.example.com").await;
    let told = http.get(&format!("{DEFINITIONS}/others.example.com")).await.ok();
    let conditions = told["status"]["conditions"].as_array().unwrap();
    let accepted = conditions.iter().find(|c| c["type"] == "NamesAccepted").unwrap();
    assert_eq!((&accepted["status"], &accepted["message"]), (&json!("False"), &json!("\"TabList\" is already in use")));
    let moved = json!({"spec": {"scope": "Cluster"}});
    let path = format!("{DEFINITIONS}/tabs.example.com");
    refused(http.patch(&path, "merge", moved).await, "spec.scope: Invalid value: \"Cluster\": field is immutable");
}

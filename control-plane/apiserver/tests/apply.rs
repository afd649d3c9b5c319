//! Server-side apply and the managers of fields on a real API server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Answer, Http, MAPS, Server, configmap};
use http::Method;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(http: &Http, path: &str, query: &str, body: impl ToString) -> Answer {
    let media = [("content-type", "application/apply-patch+yaml")];
    http.send(Method::PATCH, &format!("{path}?{query}"), &media, body.to_string()).await
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
}

fn deployment(replicas: Option<i64>, image: &str) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
            {"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}},
    });
    if let Some(replicas) = replicas {
        spec["replicas"] = replicas.into();
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

/// `manager Operation subresource` of each entry: applies first, then by name (the server sorts by
/// time before that, which depends on where a second begins).
fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let line = |e: &Value| format!("{} {} {}", text(e, "manager"), text(e, "operation"), text(e, "subresource"));
    let mut lines: Vec<(String, String)> =
        list.iter().map(|entry| (text(entry, "operation"), line(entry).trim_end().to_owned())).collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

fn fields(object: &Value, manager: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.iter().find(|e| e["manager"] == manager).map(|e| e["fieldsV1"].clone()).unwrap_or_default()
}

#[tokio::test]
async fn an_apply_creates_then_changes_then_rests() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = format!("{MAPS}/m");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: \"1\"\n  b: \"2\"\n";
    let answer = apply(http, &one, "fieldManager=me", yaml).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    let made = answer.json();
    assert_eq!(made["data"], json!({"a": "1", "b": "2"}));
    assert_eq!(managers(&made), ["me Apply"]);
    assert_eq!(fields(&made, "me"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    assert!(made["metadata"]["managedFields"][0]["time"].as_str().unwrap().ends_with('Z'));
    // Nothing new: not even another revision.
    let again = apply(http, &one, "fieldManager=me", yaml).await;
    assert_eq!((again.code, again.json()), (200, made.clone()));
    let tried = apply(http, &one, "fieldManager=me&dryRun=All", map(json!({"a": "3"}))).await.ok();
    assert_eq!(tried["data"], json!({"a": "3"}));
    assert_eq!(http.get(&one).await.ok(), made);
    // What is left out goes; what somebody else wrote stays.
    http.patch(&format!("{one}?fieldManager=other"), "merge", json!({"data": {"c": "3"}})).await.ok();
    let now = apply(http, &one, "fieldManager=me", map(json!({"a": "1"}))).await.ok();
    assert_eq!(now["data"], json!({"a": "1", "c": "3"}));
    assert_eq!(managers(&now), ["me Apply", "other Update"]);
    // GET, LIST and the metadata form have the list as well.
    assert_eq!(http.get(MAPS).await.ok()["items"][0]["metadata"], now["metadata"]);
    let partial = http.accept(&one, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").await.ok();
    assert_eq!(partial["metadata"], now["metadata"]);
}

#[tokio::test]
async fn conflicts_are_told_and_forced() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = format!("{DEPLOYMENTS}/web");
    apply(http, &one, "fieldManager=a", deployment(Some(2), "nginx:1")).await.ok();
    let answer = apply(http, &one, "fieldManager=b", deployment(Some(3), "nginx:1")).await;
    let status = answer.json();
    assert_eq!(
        answer.failed(),
        (409, "Conflict".into(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas".into())
    );
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}])
    );
    let forced = apply(http, &one, "fieldManager=b&force=true", deployment(Some(3), "nginx:1")).await.ok();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert_eq!(forced["metadata"]["generation"], 2);
    // What is shared needs no force: both say the image.
    let shared = apply(http, &one, "fieldManager=a", deployment(None, "nginx:1")).await.ok();
    assert_eq!(shared["spec"]["replicas"], 3);
    let answer = apply(http, &one, "fieldManager=a", deployment(None, "nginx:2")).await;
    assert_eq!(
        answer.failed().2,
        "Apply failed with 1 conflict: conflict with \"b\": .spec.template.spec.containers[name=\"c\"].image"
    );
    // An update needs none either, and takes over.
    let patch = json!({"spec": {"replicas": 5}});
    let scaled = http.patch(&format!("{one}?fieldManager=kubectl-edit"), "strategic-merge", patch).await.ok();
    assert_eq!(managers(&scaled), ["a Apply", "b Apply", "kubectl-edit Update"]);
    let answer = apply(http, &one, "fieldManager=b", deployment(Some(3), "nginx:1")).await;
    assert_eq!(
        answer.failed().2,
        "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using apps/v1: .spec.replicas"
    );
}

#[tokio::test]
async fn status_and_scale_are_managed_apart() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = format!("{DEPLOYMENTS}/web");
    apply(http, &one, "fieldManager=a", deployment(Some(2), "nginx")).await.ok();
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 9}, "status": {"replicas": 2}});
    let answer = apply(http, &format!("{one}/status"), "fieldManager=controller", status).await.ok();
    assert_eq!((&answer["spec"]["replicas"], &answer["status"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!(managers(&answer), ["a Apply", "controller Apply status"]);
    assert_eq!(fields(&answer, "controller"), json!({"f:status": {"f:replicas": {}}}));
    // A PATCH of the scale is an update of the replicas.
    let scale = format!("{one}/scale");
    let answer = http.patch(&format!("{scale}?fieldManager=hpa"), "merge", json!({"spec": {"replicas": 4}})).await.ok();
    assert_eq!((&answer["kind"], &answer["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    let now = http.get(&one).await.ok();
    assert_eq!(managers(&now), ["a Apply", "controller Apply status", "hpa Update scale"]);
    assert_eq!(fields(&now, "hpa"), json!({"f:spec": {"f:replicas": {}}}));
    assert!(fields(&now, "a")["f:spec"].get("f:replicas").is_none());
    // An apply to the scale meets it there.
    let config =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 6}});
    let answer = apply(http, &scale, "fieldManager=b", &config).await;
    assert_eq!(
        answer.failed().2,
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let answer = apply(http, &scale, "fieldManager=b&force=1", &config).await.ok();
    assert_eq!(answer["spec"]["replicas"], 6);
    assert_eq!(managers(&http.get(&one).await.ok()), ["a Apply", "b Apply scale", "controller Apply status"]);
    // Nothing is created through a subresource.
    let nobody = format!("{DEPLOYMENTS}/nobody/status");
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nobody"}});
    assert_eq!(apply(http, &nobody, "fieldManager=a", config).await.code, 404);
}

#[tokio::test]
async fn updates_are_kept_by_the_clients_name() {
    let server = Server::start().await;
    let http = &server.admin;
    let agent = [("content-type", "application/json"), ("user-agent", "kubectl/v1.32.0 (linux/amd64)")];
    let made = http.send(Method::POST, MAPS, &agent, configmap("m").to_string()).await.ok();
    assert_eq!(managers(&made), ["kubectl Update"]);
    assert_eq!(fields(&made, "kubectl"), json!({"f:data": {".": {}, "f:k": {}}}));
    let one = format!("{MAPS}/m");
    // A client that does not know of the list does not clear it by leaving it out.
    let mut plain = made.clone();
    plain["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert_eq!(http.put(&one, plain.clone()).await.ok(), made, "nothing changed");
    plain["data"]["l"] = "w".into();
    let now = http.put(&format!("{one}?fieldManager=two"), plain).await.ok();
    assert_eq!(managers(&now), ["kubectl Update", "two Update"]);
    // Clearing it is said by an empty list.
    let cleared = http.patch(&one, "merge", json!({"metadata": {"managedFields": [{}]}})).await.ok();
    assert!(cleared["metadata"].get("managedFields").is_none());
    let now = apply(http, &one, "fieldManager=me", map(json!({"k": "v"}))).await.ok();
    assert_eq!(managers(&now), ["me Apply", "before-first-apply Update"]);
    // Entries a client writes are taken when they can be read.
    let path = "/metadata/managedFields";
    let list = json!([{"manager": "x", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:k": {}}}}]);
    let set = |list: &Value| json!([{"op": "replace", "path": path, "value": list}]);
    assert_eq!(managers(&http.patch(&one, "json", set(&list)).await.ok()), ["x Apply"]);
    let mut bad = list.clone();
    bad[0]["operation"] = "Own".into();
    assert_eq!(managers(&http.patch(&one, "json", set(&bad)).await.ok()), ["x Apply"]);
    bad[0]["operation"] = "Apply".into();
    bad[0]["manager"] = "x".repeat(129).into();
    let answer = http.patch(&one, "json", set(&bad)).await;
    assert_eq!(
        answer.failed().2,
        "ConfigMap \"m\" is invalid: metadata.managedFields[0].manager: Too long: may not be more than 128 bytes"
    );
    let long = http.get(&one).await.ok();
    assert_eq!(managers(&long), ["x Apply"]);
}

#[tokio::test]
async fn wrong_parameters_and_bodies_are_refused_in_upstreams_words() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = format!("{MAPS}/m");
    let check = async |query: &str, body: Value, code: u16, message: &str| {
        let failed = apply(http, &one, query, &body).await.failed();
        assert_eq!((failed.0, failed.2.as_str()), (code, message), "{query}");
    };
    let options = "PatchOptions.meta.k8s.io \"\" is invalid: ";
    check("", map(json!({})), 422, &format!("{options}fieldManager: Required value: is required for apply patch"))
        .await;
    check(
        "fieldManager=a%0Ab",
        map(json!({})),
        422,
        &format!("{options}fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)"),
    )
    .await;
    check(
        "fieldManager=a&fieldValidation=Some",
        map(json!({})),
        422,
        &format!("{options}fieldValidation: Unsupported value: \"Some\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""),
    )
    .await;
    let answer = http.patch(&format!("{one}?force=true"), "merge", json!({})).await;
    assert_eq!(answer.failed().2, format!("{options}force: Forbidden: may not be specified for non-apply patch"));
    let answer = http.post(&format!("{MAPS}?fieldManager={}", "x".repeat(129)), configmap("n")).await;
    assert_eq!(
        answer.failed().2,
        "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes"
    );
    let me = "fieldManager=me";
    check(me, json!({"apiVersion": "v1", "kind": "Pod"}), 400, "invalid object type: /v1, Kind=Pod").await;
    let mut listed = map(json!({}));
    listed["metadata"]["managedFields"] = json!([]);
    check(me, listed, 400, "metadata.managedFields must be nil").await;
    let mut named = map(json!({}));
    named["metadata"]["name"] = "other".into();
    check(me, named, 400, "the name of the object (other) does not match the name on the URL (m)").await;
    let mut unknown = map(json!({"k": 1}));
    unknown["spec"] = json!({});
    let failed = apply(http, &one, me, &unknown).await.failed();
    assert_eq!(failed.0, 500);
    assert!(
        failed.2.starts_with("failed to create typed patch object (/m; /v1, Kind=ConfigMap): errors:\n"),
        "{}",
        failed.2
    );
    assert!(failed.2.contains(".spec: field not declared in schema"));
    assert!(failed.2.contains(".data.k: expected string, got &value.valueUnstructured{Value:1}"));
    let mut with_uid = map(json!({}));
    with_uid["metadata"]["uid"] = "u".into();
    let failed = apply(http, &one, me, &with_uid).await.failed();
    assert_eq!(failed.0, 409);
    assert!(failed.2.ends_with("uid mismatch: the provided object specified uid u, and no existing object was found"));
    // A key that is there twice: refused when strict, else warned of.
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: \"1\"\n  a: \"2\"\n";
    let failed = apply(http, &one, "fieldManager=me&fieldValidation=Strict", yaml).await.failed();
    assert_eq!(
        (failed.0, failed.2.as_str()),
        (
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" already set in map"
        )
    );
    let answer = apply(http, &one, me, yaml).await;
    assert!(answer.warnings()[0].contains("already set in map"), "{:?}", answer.warnings());
    assert_eq!(answer.ok()["data"]["a"], "2");
}

#[tokio::test]
async fn an_apply_that_creates_needs_the_right_to_create() {
    let server = Server::start().await;
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    server.admin.create(&format!("{rbac}/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await;
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    server.admin.create(&format!("{rbac}/rolebindings"), binding).await;
    let jane = server.user("jane", &[]);
    let one = format!("{MAPS}/m");
    let failed = apply(&jane, &one, "fieldManager=jane", map(json!({"a": "1"}))).await.failed();
    assert_eq!(failed.0, 403);
    assert!(failed.2.contains("cannot create resource \"configmaps\""), "{}", failed.2);
    server.admin.create(MAPS, configmap("m")).await;
    apply(&jane, &one, "fieldManager=jane", map(json!({"a": "1"}))).await.ok();
}

#[tokio::test]
async fn many_managers_apply_at_once() {
    let server = Server::start().await;
    let one = format!("{MAPS}/m");
    let tasks = (0..12).map(|i| {
        let (http, one) = (server.user("admin", &["system:masters"]), one.clone());
        tokio::spawn(async move {
            let answer = apply(&http, &one, &format!("fieldManager=m{i}"), map(json!({format!("k{i}"): "v"}))).await;
            assert!(matches!(answer.code, 200 | 201), "{}", answer.text);
            answer.code
        })
    });
    let mut created = 0;
    for task in tasks.collect::<Vec<_>>() {
        created += usize::from(task.await.unwrap() == 201);
    }
    assert_eq!(created, 1);
    let now = server.admin.get(&one).await.ok();
    assert_eq!(now["data"].as_object().unwrap().len(), 12);
    assert_eq!(managers(&now).len(), 12);
}

/// Serves a custom kind in two versions with this schema; the path of its objects.
async fn widgets(server: &Server, spec: Value) -> String {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema, "subresources": {"status": {}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.e.com"},
        "spec": {"group": "e.com", "scope": "Cluster", "versions": [version("v1", true), version("v2", false)],
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}},
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let mut events = server.admin.watch(&format!("{path}?watch=1")).await;
    server.admin.create(path, definition).await;
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
            break;
        }
    }
    "/apis/e.com/v1/widgets/w".into()
}

fn widget(version: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("e.com/{version}"), "kind": "Widget", "metadata": {"name": "w"}, "spec": spec})
}

#[tokio::test]
async fn custom_resources_merge_by_their_schema() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = widgets(
        &server,
        json!({"type": "object", "properties": {
            "foo": {"type": "string"},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
            "plain": {"type": "array", "items": {"type": "string"}}}}),
    )
    .await;
    let made =
        apply(http, &one, "fieldManager=a", widget("v1", json!({"parts": [{"name": "x", "n": 1}], "plain": ["p"]})))
            .await;
    assert_eq!(made.code, 201, "{}", made.text);
    apply(http, &one, "fieldManager=b", widget("v1", json!({"parts": [{"name": "y"}]}))).await.ok();
    let answer =
        apply(http, &one, "fieldManager=b", widget("v1", json!({"parts": [{"name": "x", "n": 2}], "plain": []}))).await;
    assert_eq!(
        answer.failed().2,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.parts[name=\"x\"].n\n- .spec.plain"
    );
    // The same manager in another version of the kind.
    let two = one.replace("v1", "v2");
    let now = apply(http, &two, "fieldManager=a", widget("v2", json!({"foo": "f", "plain": ["p"]}))).await.ok();
    assert_eq!(now["spec"], json!({"parts": [{"name": "y"}], "plain": ["p"], "foo": "f"}));
    assert_eq!(managers(&now), ["a Apply", "b Apply"]);
    // Status by itself; the metadata of a status apply is not taken.
    let mut status = widget("v1", json!({"foo": "no"}));
    status["metadata"]["labels"] = json!({"no": "1"});
    let answer = apply(http, &format!("{one}/status"), "fieldManager=c", &status).await.ok();
    assert_eq!((&answer["spec"]["foo"], answer["metadata"].get("labels")), (&json!("f"), None));
}

#[tokio::test]
async fn custom_resources_are_checked_by_their_schema() {
    let server = Server::start().await;
    let http = &server.admin;
    let one = widgets(
        &server,
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"foo": {"type": "string"}}}),
    )
    .await;
    let strict = "fieldManager=me&fieldValidation=Strict";
    let mut unknown = widget("v1", json!({"foo": "f"}));
    unknown["unknownField"] = "unknown".into();
    let answer = apply(http, &one, strict, &unknown).await;
    assert!(answer.text.contains(".unknownField: field not declared in schema"), "{}", answer.text);
    let mut unknown = widget("v1", json!({"foo": "f"}));
    unknown["metadata"]["unknownMeta"] = "unknown".into();
    let answer = apply(http, &one, strict, &unknown).await;
    assert!(answer.text.contains(".metadata.unknownMeta: field not declared in schema"), "{}", answer.text);
    let yaml = "\napiVersion: e.com/v1\nkind: Widget\nmetadata:\n  name: w\n  finalizers:\n  - e.com/test\nspec:\n  unknown: uk1\n  foo: foo1\n  foo: foo2\n";
    let answer = apply(http, &one, strict, yaml).await;
    assert!(answer.text.contains("line 11: key \\\"foo\\\" already set in map"), "{}", answer.text);
    let made = apply(http, &one, strict, widget("v1", json!({"foo": "f", "free": {"a": [1]}}))).await.ok();
    assert_eq!(made["spec"], json!({"foo": "f", "free": {"a": [1]}}));
    assert_eq!(fields(&made, "me"), json!({"f:spec": {"f:foo": {}, "f:free": {".": {}, "f:a": {}}}}));
    // Strategic merge needs a built-in type.
    let answer = http.patch(&one, "strategic-merge", json!({})).await;
    assert_eq!(
        answer.failed().2,
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    );
}

//! Stories of deletion: finalizers, grace, preconditions, propagation, namespaces, collections.
#![allow(clippy::unwrap_used)]

mod common;

use common::{MAPS, Server, configmap, pod};
use serde_json::{Value, json};

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let server = Server::start().await;
    let http = &server.admin;
    let mut held = configmap("held");
    held["metadata"]["finalizers"] = json!(["example.com/a", "example.com/b"]);
    let made = http.create(MAPS, held).await;
    let path = format!("{MAPS}/held");
    let rv = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = http.watch(&format!("{MAPS}?watch=1&resourceVersion={rv}")).await;

    let marked = http.delete(&path, Value::Null).await.ok();
    assert_eq!(marked["kind"], "ConfigMap", "an object that stays is shown");
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(events.line().await, "MODIFIED held");
    // A second delete changes nothing.
    let again = http.delete(&path, Value::Null).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], marked["metadata"]["resourceVersion"]);

    let more = json!({"metadata": {"finalizers": ["example.com/a", "example.com/c"]}});
    let (code, _, message) = http.patch(&path, "merge", more).await.failed();
    assert_eq!(code, 422);
    assert!(message.contains("no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/c\"}"), "{message}");

    http.patch(&path, "merge", json!({"metadata": {"finalizers": ["example.com/b"]}})).await.ok();
    assert_eq!(events.line().await, "MODIFIED held");
    http.patch(&path, "json", json!([{"op": "remove", "path": "/metadata/finalizers"}])).await.ok();
    assert_eq!(events.line().await, "DELETED held");
    assert_eq!(http.get(&path).await.code, 404);
}

#[tokio::test]
async fn running_pods_get_their_grace() {
    let server = Server::start().await;
    server.namespace("n").await;
    let http = &server.admin;
    let pods = "/api/v1/namespaces/n/pods";
    http.create(pods, pod("waiting")).await;
    let gone = http.delete(&format!("{pods}/waiting"), Value::Null).await.ok();
    assert_eq!(gone["kind"], "Pod", "a pod's deletion shows the pod");
    assert_eq!(http.get(&format!("{pods}/waiting")).await.code, 404, "nobody runs it");

    http.create(pods, pod("running")).await;
    let binding = json!({"metadata": {"name": "running"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = http.post(&format!("{pods}/running/binding"), binding).await;
    assert_eq!((bound.code, &bound.json()["status"]), (201, &json!("Success")));
    let path = format!("{pods}/running");
    let marked = http.delete(&path, Value::Null).await.ok();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = http.delete(&path, json!({"gracePeriodSeconds": 5})).await.ok();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    // What the node's agent sends when the containers are gone.
    let uid = marked["metadata"]["uid"].clone();
    let other = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}});
    let (code, _, message) = http.delete(&path, other).await.failed();
    assert_eq!(code, 409);
    assert_eq!(
        message,
        format!(
            "Operation cannot be fulfilled on Pod \"running\": the UID in the precondition (another) does not match the UID in record ({}). The object might have been deleted and then recreated",
            uid.as_str().unwrap()
        )
    );
    http.delete(&path, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})).await.ok();
    assert_eq!(http.get(&path).await.code, 404);
}

#[tokio::test]
async fn propagation_is_a_finalizer_for_the_garbage_collector() {
    let server = Server::start().await;
    let http = &server.admin;
    let check = async |name: &str, options: Value, expected: Value| {
        http.create(MAPS, configmap(name)).await;
        let answer = http.delete(&format!("{MAPS}/{name}"), options).await.ok();
        assert_eq!(answer["metadata"]["finalizers"], expected, "{name}");
    };
    check("f", json!({"propagationPolicy": "Foreground"}), json!(["foregroundDeletion"])).await;
    check("o", json!({"propagationPolicy": "Orphan"}), json!(["orphan"])).await;
    check("b", json!({"propagationPolicy": "Background"}), Value::Null).await;
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    http.create(jobs, job).await;
    let answer = http.delete(&format!("{jobs}/j"), Value::Null).await.ok();
    assert_eq!(answer["metadata"]["finalizers"], json!(["orphan"]), "jobs orphan by default");
    let query = http.delete(&format!("{MAPS}/f?propagationPolicy=Sometimes"), Value::Null).await;
    assert_eq!(query.code, 422);
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_finalized() {
    let server = Server::start().await;
    let http = &server.admin;
    let made = http.create("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let path = "/api/v1/namespaces/n";
    let marked = http.delete(path, Value::Null).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let answer = http.post("/api/v1/namespaces/n/configmaps", configmap("late")).await;
    assert_eq!(answer.code, 403, "{}", answer.text);
    let mut done = http.get(path).await.ok();
    done["spec"]["finalizers"] = json!([]);
    http.put("/api/v1/namespaces/n/finalize", done).await.ok();
    assert_eq!(http.get(path).await.code, 404);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    let http = &server.admin;
    for (name, on) in [("a", "yes"), ("b", "no"), ("c", "yes")] {
        let mut map = configmap(name);
        map["metadata"]["labels"] = json!({"on": on});
        http.create(MAPS, map).await;
    }
    http.delete(&format!("{MAPS}?labelSelector=on%3Dyes"), Value::Null).await.ok();
    let left = http.get(MAPS).await.ok();
    let names: Vec<&str> =
        left["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b"]);
}

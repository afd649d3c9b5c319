//! PATCH in its client-side forms, and what upstream says when one does not work.
#![allow(clippy::unwrap_used)]

mod common;

use common::{MAPS, Server, configmap};
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn started() -> Server {
    let server = Server::start().await;
    server.admin.create(MAPS, configmap("m")).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    server.admin.create(DEPLOYMENTS, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    server
}

#[tokio::test]
async fn patches_that_lead_to_no_object_say_what_they_led_to() {
    let server = started().await;
    let one = format!("{DEPLOYMENTS}/d");
    let fails = async |kind: &str, query: &str, patch: Value| {
        let answer = server.admin.patch(&format!("{one}{query}"), kind, patch).await;
        answer.failed()
    };
    let wrong = json!({"spec": {"replicas": "x"}});
    let (code, reason, message) = fails("strategic-merge", "", wrong.clone()).await;
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert_eq!(
        message,
        " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:x]]\": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let (code, _, message) = fails("merge", "", wrong).await;
    assert_eq!(code, 422);
    assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: \"{"), "{message}");
    assert!(message.contains("\\\"replicas\\\":\\\"x\\\""), "{message}");
    let unknown = json!({"spec": {"replica": 1}});
    let (code, _, message) = fails("merge", "?fieldValidation=Strict", unknown.clone()).await;
    assert_eq!(code, 422);
    assert!(
        message.ends_with("strict decoding error: unknown field \"spec.replica\", did you mean \"replicas\"?")
            || message.ends_with("strict decoding error: unknown field \"spec.replica\""),
        "{message}"
    );
    let warned = server.admin.patch(&one, "merge", unknown).await;
    assert_eq!(warned.code, 200);
    assert!(warned.warnings()[0].contains("unknown field"), "{:?}", warned.warnings());
}

#[tokio::test]
async fn patches_that_cannot_be_carried_out_change_nothing() {
    let server = started().await;
    let one = format!("{MAPS}/m");
    let before = server.admin.get(&one).await.ok();
    let answer = server.admin.patch(&one, "json", json!([{"op": "test", "path": "/data/k", "value": "no"}])).await;
    let status = answer.json();
    assert_eq!(
        answer.failed(),
        (422, "Invalid".into(), "the server rejected our request due to an error in our request".into())
    );
    assert!(status["details"].get("causes").is_none(), "{status}");
    let check = async |kind: &str, patch: Value, code: u16, message: &str| {
        let failed = server.admin.patch(&one, kind, patch).await.failed();
        assert_eq!((failed.0, failed.2.as_str()), (code, message));
    };
    check(
        "merge",
        json!({"metadata": {"name": "n"}}),
        400,
        "the name of the object (n) does not match the name on the URL (m)",
    )
    .await;
    check(
        "merge",
        json!({"metadata": {"namespace": "n"}}),
        400,
        "the namespace of the object (n) does not match the namespace on the URL (default)",
    )
    .await;
    check(
        "merge",
        json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "y"}}),
        409,
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again",
    )
    .await;
    let many: Vec<Value> = vec![json!({"op": "add", "path": "/data/x", "value": "1"}); 10_001];
    let failed = server.admin.patch(&one, "json", many.into()).await.failed();
    assert_eq!(
        (failed.0, failed.2.as_str()),
        (413, "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001")
    );
    assert_eq!(server.admin.get(&one).await.ok(), before);
    let missing = server.admin.patch(&format!("{MAPS}/none"), "merge", json!({})).await;
    assert_eq!(missing.failed().0, 404);
}

#[tokio::test]
async fn status_and_scale_are_patched_alone() {
    let server = started().await;
    let one = format!("{DEPLOYMENTS}/d");
    let patch = json!({"spec": {"replicas": 7}, "status": {"replicas": 1,
        "conditions": [{"type": "Available", "status": "True"}]}});
    let answer = server.admin.patch(&format!("{one}/status"), "strategic-merge", patch).await.ok();
    assert_eq!((&answer["spec"]["replicas"], &answer["status"]["replicas"]), (&json!(1), &json!(1)));
    let more = json!({"status": {"conditions": [{"type": "Progressing", "status": "True"}]}});
    let answer = server.admin.patch(&format!("{one}/status"), "strategic-merge", more).await.ok();
    assert_eq!(answer["status"]["conditions"].as_array().unwrap().len(), 2, "merged by type");
    let ops = json!([{"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "replace", "path": "/spec/replicas", "value": 3}]);
    let scale = server.admin.patch(&format!("{one}/scale"), "json", ops).await.ok();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(3), &json!(1)));
    let answer = server.admin.patch(&format!("{one}/scale"), "merge", json!({"spec": {"replicas": -1}})).await;
    assert_eq!(answer.failed().0, 422);
}

#[tokio::test]
async fn concurrent_patches_are_all_carried_out() {
    let server = started().await;
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let http = server.user("admin", &["system:masters"]);
            tokio::spawn(async move {
                http.patch(&format!("{MAPS}/m"), "merge", json!({"data": {format!("k{i}"): "v"}})).await.ok()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let data = server.admin.get(&format!("{MAPS}/m")).await.ok()["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 17);
}

#[tokio::test]
async fn preconditions_and_double_owners_read_as_upstreams() {
    let server = started().await;
    let one = format!("{MAPS}/m");
    let object = server.admin.get(&one).await.ok();
    let (uid, rv) =
        (object["metadata"]["uid"].as_str().unwrap(), object["metadata"]["resourceVersion"].as_str().unwrap());
    let message = async |answer: common::Answer| {
        let (code, reason, message) = answer.failed();
        assert_eq!((code, reason.as_str()), (409, "Conflict"));
        message
    };
    let answer = server.admin.delete(&one, json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(
        message(answer).await,
        format!(
            "Operation cannot be fulfilled on ConfigMap \"m\": the UID in the precondition (other) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        )
    );
    let answer = server.admin.delete(&one, json!({"preconditions": {"resourceVersion": "1"}})).await;
    assert_eq!(
        message(answer).await,
        format!(
            "Operation cannot be fulfilled on ConfigMap \"m\": the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ({rv}). The object might have been modified"
        )
    );
    let answer = server.admin.patch(&one, "merge", json!({"metadata": {"uid": "other"}})).await;
    assert_eq!(
        message(answer).await,
        format!(
            "Operation cannot be fulfilled on configmaps \"m\": StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/m, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: other, UID in object meta: {uid}"
        )
    );
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "1"});
    let answer = server.admin.patch(&one, "merge", json!({"metadata": {"ownerReferences": [owner, owner]}})).await;
    assert!(answer.warnings()[0].contains("duplicate UID(s) observed: 1"), "{:?}", answer.warnings());
    assert_eq!(answer.ok()["metadata"]["ownerReferences"], json!([owner]));
}

#[tokio::test]
async fn a_status_that_says_nothing_else_takes_nothing_else() {
    let server = started().await;
    let one = format!("{DEPLOYMENTS}/d");
    let labels = json!({"metadata": {"labels": {"l": "v"}}});
    let before = server.admin.patch(&format!("{one}?fieldManager=me"), "merge", labels).await.ok();
    let version = &before["metadata"]["resourceVersion"];
    let narrow = json!({"apiVersion": "apps/v1", "kind": "Deployment", "status": {"replicas": 1},
        "metadata": {"name": "d", "namespace": "default", "resourceVersion": version}});
    let now = server.admin.put(&format!("{one}/status?fieldManager=controller"), narrow).await.ok();
    assert_eq!(now["metadata"]["labels"], json!({"l": "v"}));
    let list = now["metadata"]["managedFields"].as_array().unwrap();
    let mine = list.iter().find(|entry| entry["manager"] == "me").unwrap();
    assert_eq!(mine["fieldsV1"], json!({"f:metadata": {"f:labels": {".": {}, "f:l": {}}}}));
}

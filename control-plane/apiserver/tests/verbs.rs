//! Stories of the plain verbs, in process and over HTTPS.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Http, MAPS, Server, configmap};
use http::Method;
use serde_json::{Value, json};

/// Create, read, replace, patch, delete: the same through both transports.
async fn life(http: &Http, name: &str) {
    let made = http.create(MAPS, configmap(name)).await;
    assert_eq!(made["kind"], "ConfigMap");
    assert_eq!(made["apiVersion"], "v1");
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    let path = format!("{MAPS}/{name}");
    assert_eq!(http.get(&path).await.ok(), made);

    let mut changed = made.clone();
    changed["data"]["k"] = json!("w");
    let updated = http.put(&path, changed.clone()).await.ok();
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(updated["metadata"]["uid"], made["metadata"]["uid"]);
    let answer = http.put(&path, changed).await;
    assert_eq!(
        answer.failed(),
        (
            409,
            "Conflict".into(),
            format!(
                "Operation cannot be fulfilled on configmaps \"{name}\": the object has been modified; please apply your changes to the latest version and try again"
            )
        )
    );
    // The same again changes nothing.
    assert_eq!(http.put(&path, updated.clone()).await.ok(), updated);

    let patched = http.patch(&path, "merge", json!({"data": {"k": null, "m": "1"}})).await.ok();
    assert_eq!(patched["data"], json!({"m": "1"}));
    let patched = http.patch(&path, "strategic-merge", json!({"data": {"n": "2"}})).await.ok();
    assert_eq!(patched["data"], json!({"m": "1", "n": "2"}));
    let patched = http.patch(&path, "json", json!([{"op": "remove", "path": "/data/n"}])).await.ok();
    assert_eq!(patched["data"], json!({"m": "1"}));

    let deleted = http.delete(&path, Value::Null).await.ok();
    assert_eq!(deleted["status"], "Success");
    assert_eq!(deleted["details"], json!({"name": name, "kind": "configmaps", "uid": made["metadata"]["uid"]}));
    assert_eq!(http.get(&path).await.code, 404);
}

#[tokio::test]
async fn an_object_lives_in_process() {
    let server = Server::start().await;
    life(&server.admin, "inner").await;
}

#[tokio::test]
async fn an_object_lives_over_https() {
    let server = Server::listening().await;
    let http = server.https("jane", &["system:masters"]).await;
    life(&http, "outer").await;
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::start().await;
    let body = json!({"metadata": {"generateName": "job-"}});
    let first = server.admin.create(MAPS, body.clone()).await;
    let second = server.admin.create(MAPS, body).await;
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("job-") && name.len() == 9, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    assert_eq!(first["metadata"]["generateName"], "job-");
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let server = Server::start().await;
    let http = &server.admin;
    let answer = http.post(&format!("{MAPS}?dryRun=All"), configmap("a")).await;
    assert_eq!(answer.code, 201);
    assert!(answer.json()["metadata"]["uid"].is_string());
    assert_eq!(http.get(&format!("{MAPS}/a")).await.code, 404);

    let made = http.create(MAPS, configmap("a")).await;
    let path = format!("{MAPS}/a");
    http.patch(&format!("{path}?dryRun=All"), "merge", json!({"data": {"k": "x"}})).await.ok();
    http.delete(&format!("{path}?dryRun=All"), Value::Null).await.ok();
    http.delete(&path, json!({"dryRun": ["All"]})).await.ok();
    assert_eq!(http.get(&path).await.ok(), made);
    let answer = http.post(&format!("{MAPS}?dryRun=Maybe"), configmap("b")).await;
    assert_eq!(
        answer.failed().2,
        "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Maybe\": supported values: \"All\""
    );
}

#[tokio::test]
async fn patches_of_many_writers_all_arrive() {
    let server = Server::start().await;
    server.admin.create(MAPS, configmap("hot")).await;
    let writers = (0..20).map(|i| {
        let http = server.user("admin", &["system:masters"]);
        async move {
            let patch = json!({"data": {format!("w{i}"): "x"}});
            http.patch(&format!("{MAPS}/hot"), "merge", patch).await.ok();
        }
    });
    futures::future::join_all(writers).await;
    let map = server.admin.get(&format!("{MAPS}/hot")).await.ok();
    assert_eq!(map["data"].as_object().unwrap().len(), 21);
}

#[tokio::test]
async fn status_and_scale_take_their_part_alone() {
    let server = Server::start().await;
    let http = &server.admin;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"app": "web"});
    let made = http
        .create(
            deployments,
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
                "status": {"replicas": 9}}),
        )
        .await;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_ne!(made["status"]["replicas"], 9);
    let path = format!("{deployments}/web");

    let mut status = made.clone();
    status["status"] = json!({"replicas": 2, "observedGeneration": 1});
    status["spec"]["replicas"] = json!(7);
    let updated = http.put(&format!("{path}/status"), status).await.ok();
    assert_eq!(updated["spec"]["replicas"], 2);
    assert_eq!(updated["status"]["replicas"], 2);
    assert_eq!(updated["metadata"]["generation"], 1);

    let scale = http.get(&format!("{path}/scale")).await.ok();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "app=web");
    let scaled = http.patch(&format!("{path}/scale"), "merge", json!({"spec": {"replicas": 5}})).await.ok();
    assert_eq!(scaled["spec"]["replicas"], 5);
    let now = http.get(&path).await.ok();
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(2)));
    assert_eq!(now["status"]["replicas"], 2);
    let mut stale = scale;
    stale["spec"]["replicas"] = json!(1);
    assert_eq!(http.put(&format!("{path}/scale"), stale).await.code, 409);
}

#[tokio::test]
async fn an_update_creates_only_what_may_be_created_so() {
    let server = Server::start().await;
    let http = &server.admin;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let answer = http.put(lease, json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}})).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    let answer = http.put(lease, json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "you"}})).await;
    assert_eq!(
        answer.failed().2,
        "Lease.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    assert_eq!(http.put(&format!("{MAPS}/x"), configmap("x")).await.code, 404);
}

#[tokio::test]
async fn unknown_fields_are_said_or_refused() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "a"}, "dta": {}});
    let warned = server.admin.post(&format!("{MAPS}?dryRun=All"), body.clone()).await;
    assert_eq!(warned.code, 201);
    assert!(warned.warnings()[0].starts_with("299 - \"unknown field \\\"dta\\\""), "{:?}", warned.warnings());
    let quiet = server.admin.post(&format!("{MAPS}?fieldValidation=Ignore&dryRun=All"), body.clone()).await;
    assert!(quiet.warnings().is_empty());
    let strict = server.admin.post(&format!("{MAPS}?fieldValidation=Strict"), body).await;
    let (code, reason, message) = strict.failed();
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert!(
        message.starts_with(
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dta\""
        ),
        "{message}"
    );
    let twice = server
        .admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/json")],
            r#"{"metadata":{"name":"d"},"data":{"a":"1","a":"2"}}"#,
        )
        .await;
    assert_eq!(twice.warnings(), ["299 - \"duplicate field \\\"data.a\\\"\""]);
}

#[tokio::test]
async fn yaml_bodies_are_read() {
    let server = Server::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: why\ndata:\n  a: \"1\"\n";
    let answer = server.admin.send(Method::POST, MAPS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!(answer.ok()["data"]["a"], "1");
    let answer = server.admin.accept(&format!("{MAPS}/why"), "application/yaml").await;
    assert!(answer.text.contains("kind: ConfigMap"), "{}", answer.text);
}

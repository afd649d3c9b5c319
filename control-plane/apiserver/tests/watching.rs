//! Stories of LIST and WATCH: revisions, paging, selectors, expiry.
#![allow(clippy::unwrap_used)]

mod common;

use common::{MAPS, Server, configmap};
use serde_json::{Value, json};

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_watch_tells_what_happened_since_a_revision() {
    let server = Server::start().await;
    let http = &server.admin;
    let first = http.create(MAPS, configmap("a")).await;
    http.create(MAPS, configmap("b")).await;
    http.patch(&format!("{MAPS}/a"), "merge", json!({"data": {"k": "w"}})).await.ok();
    http.delete(&format!("{MAPS}/b"), Value::Null).await.ok();
    let mut events = http.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&first))).await;
    assert_eq!(events.line().await, "ADDED b");
    assert_eq!(events.line().await, "MODIFIED a");
    let deleted = events.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    assert!(version(&deleted["object"]).parse::<i64>().unwrap() > version(&first).parse::<i64>().unwrap() + 2);
    http.create(MAPS, configmap("c")).await;
    assert_eq!(events.line().await, "ADDED c");
}

#[tokio::test]
async fn a_watch_without_revision_begins_with_what_there_is() {
    let server = Server::start().await;
    let http = &server.admin;
    http.create(MAPS, configmap("a")).await;
    let mut events = http.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Da")).await;
    assert_eq!(events.line().await, "ADDED a");
    http.create(MAPS, configmap("b")).await;
    http.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
    assert_eq!(events.line().await, "DELETED a");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    let http = &server.admin;
    http.create(MAPS, configmap("a")).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = http.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.line().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    http.create(MAPS, configmap("b")).await;
    assert_eq!(events.line().await, "ADDED b");
    let answer = http.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!(
        answer.failed().2,
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    );
}

#[tokio::test]
async fn objects_come_into_a_selection_and_leave_it() {
    let server = Server::start().await;
    let http = &server.admin;
    let made = http.create(MAPS, configmap("a")).await;
    let mut events =
        http.watch(&format!("{MAPS}?watch=1&labelSelector=on%3Dyes&resourceVersion={}", version(&made))).await;
    let path = format!("{MAPS}/a");
    http.patch(&path, "merge", json!({"metadata": {"labels": {"on": "yes"}}})).await.ok();
    assert_eq!(events.line().await, "ADDED a");
    http.patch(&path, "merge", json!({"data": {"k": "x"}})).await.ok();
    assert_eq!(events.line().await, "MODIFIED a");
    let left = http.patch(&path, "merge", json!({"metadata": {"labels": {"on": "no"}}})).await.ok();
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["on"], "yes", "its last matching state");
    assert_eq!(version(&event["object"]), version(&left));
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_with_a_bookmark() {
    let server = Server::start().await;
    let mut events = server.admin.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=1&timeoutSeconds=5")).await;
    // Something elsewhere moves the store on, so that there is something to say.
    server.admin.create("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn pages_show_one_moment_while_others_write() {
    let server = Server::start().await;
    let http = &server.admin;
    for i in 0..25 {
        http.create(MAPS, configmap(&format!("m{i:02}"))).await;
    }
    let mut page = http.get(&format!("{MAPS}?limit=10")).await.ok();
    assert_eq!(page["metadata"]["remainingItemCount"], 15);
    let moment = version(&page);
    let mut names: Vec<String> = Vec::new();
    for round in 0.. {
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()));
        assert_eq!(version(&page), moment);
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        http.delete(&format!("{MAPS}/m{:02}", 20 + round), Value::Null).await.ok();
        http.create(MAPS, configmap(&format!("m00-new{round}"))).await;
        page = http.get(&format!("{MAPS}?limit=10&continue={token}")).await.ok();
    }
    let expected: Vec<String> = (0..25).map(|i| format!("m{i:02}")).collect();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn an_expired_page_offers_to_go_on_at_another_moment() {
    let server = Server::start().await;
    let http = &server.admin;
    for name in ["a", "b", "c"] {
        http.create(MAPS, configmap(name)).await;
    }
    let page = http.get(&format!("{MAPS}?limit=1")).await.ok();
    let token = page["metadata"]["continue"].as_str().unwrap();
    http.create(MAPS, configmap("d")).await;
    let newest = server.engine.revision().await.unwrap();
    server.engine.compact(newest).await.unwrap();
    let answer = http.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    let (code, reason, message) = answer.failed();
    assert_eq!((code, reason.as_str()), (410, "Expired"));
    assert!(message.starts_with("The provided continue parameter is too old to display a consistent list result."));
    let status = answer.json();
    let token = status["metadata"]["continue"].as_str().unwrap();
    let rest = http.get(&format!("{MAPS}?continue={token}")).await.ok();
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b", "c", "d"]);

    let answer = http.get(&format!("{MAPS}?resourceVersion=2&resourceVersionMatch=Exact")).await;
    assert_eq!(
        answer.failed(),
        (410, "Expired".into(), "The resourceVersion for the provided list is too old.".into())
    );
}

#[tokio::test]
async fn lists_show_the_state_asked_for() {
    let server = Server::start().await;
    let http = &server.admin;
    let first = http.create(MAPS, configmap("a")).await;
    http.create(MAPS, configmap("b")).await;
    let count = async |query: &str| http.get(&format!("{MAPS}?{query}")).await.ok()["items"].as_array().unwrap().len();
    let rv = version(&first);
    assert_eq!(count("").await, 2);
    assert_eq!(count("resourceVersion=0").await, 2);
    assert_eq!(count(&format!("resourceVersion={rv}")).await, 2);
    assert_eq!(count(&format!("resourceVersion={rv}&resourceVersionMatch=Exact")).await, 1);
    assert_eq!(count("labelSelector=a%3Db").await, 0);
    assert_eq!(count("fieldSelector=metadata.name%3Db").await, 1);
    let (code, reason, message) = http.get(&format!("{MAPS}?resourceVersion=999999999")).await.failed();
    assert_eq!((code, reason.as_str()), (504, "Timeout"));
    assert!(message.starts_with("Timeout: Too large resource version: 999999999, current: "), "{message}");
    let list = http.get(MAPS).await.ok();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
}

#[tokio::test]
async fn long_lists_come_whole() {
    let server = Server::listening().await;
    let http = server.https("admin", &["system:masters"]).await;
    let big = "x".repeat(40_000);
    for i in 0..6 {
        http.create(MAPS, json!({"metadata": {"name": format!("m{i}")}, "data": {"k": big}})).await;
    }
    let list = http.get(MAPS).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 6);
    assert!(list["items"].as_array().unwrap().iter().all(|i| i["data"]["k"] == json!(big)));
}

#[tokio::test]
async fn a_watch_from_lost_history_is_told_so() {
    let server = Server::start().await;
    let http = &server.admin;
    http.create(MAPS, configmap("a")).await;
    // A new server over the same store has no history in memory.
    let mut events = http.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = events.next().await.unwrap();
    if event["type"] == "ERROR" {
        assert_eq!(event["object"]["code"], 410);
        assert_eq!(event["object"]["reason"], "Expired");
        assert!(event["object"]["message"].as_str().unwrap().starts_with("too old resource version: 1 ("));
        assert_eq!(events.next().await, None);
    } else {
        assert_eq!(event["type"], "ADDED");
    }
}

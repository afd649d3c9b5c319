#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::claims;
use super::plan::{plan, pod_body};
use crate::object::Object;
use crate::revisions::HASH_LABEL as REVISION_LABEL;
use crate::types::{PersistentVolumeClaim, Pod, StatefulSet};

fn set(extra: Value) -> StatefulSet {
    let mut value = json!({"metadata": {"name": "s", "namespace": "n", "uid": "s"}, "spec": {"replicas": 3, "serviceName": "svc",
        "template": {"spec": {"containers": [], "volumes": [{"name": "other"}]}}}, "status": {"currentRevision": "s-1"}});
    json_patch::merge(&mut value["spec"], &extra);
    serde_json::from_value(value).unwrap()
}

/// Pods written as `number:revision` with `!` not ready, `x` leaving.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    let one = |word: &str| {
        let (number, revision) = word.trim_end_matches(['!', 'x']).split_once(':').unwrap();
        let ready = if word.ends_with('!') { "False" } else { "True" };
        let deleted = word.ends_with('x').then_some("2026-01-01T00:00:00Z");
        let value = json!({"metadata": {"name": format!("s-{number}"), "labels": {REVISION_LABEL: revision}, "deletionTimestamp": deleted},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    };
    text.split_whitespace().map(one).collect()
}

#[test]
fn steps() {
    let parallel = json!({"podManagementPolicy": "Parallel"});
    let several = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}});
    let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}});
    for (spec, there, create, delete) in [
        (json!({}), "", vec![0], ""),
        (json!({}), "0:s-1!", vec![], ""),
        (json!({}), "0:s-1", vec![1], ""),
        (json!({}), "0:s-1 2:s-1", vec![1], ""),
        (parallel.clone(), "1:s-1!", vec![0, 2], ""),
        // Too many: the highest first, one at a time.
        (json!({"replicas": 1}), "0:s-1 1:s-1 2:s-1", vec![], "s-2"),
        (json!({"replicas": 1}), "0:s-1 1:s-1 2:s-1x", vec![], ""),
        (json!({"replicas": 0, "podManagementPolicy": "Parallel"}), "0:s-1 1:s-1", vec![], "s-1 s-0"),
        // An update from the top.
        (json!({}), "0:s-1 1:s-1 2:s-1", vec![], "s-2"),
        (json!({}), "0:s-1 1:s-1 2:s-2!", vec![], ""),
        (json!({}), "0:s-1 1:s-1 2:s-2", vec![], "s-1"),
        (partition, "0:s-1 1:s-1 2:s-2", vec![], ""),
        (json!({"updateStrategy": {"type": "OnDelete"}}), "0:s-1 1:s-1 2:s-1", vec![], ""),
        (json!({"ordinals": {"start": 5}, "replicas": 1}), "0:s-2 5:s-2", vec![], "s-0"),
        // The partition counts from the first number.
        (
            json!({"ordinals": {"start": 5}, "updateStrategy": {"rollingUpdate": {"partition": 2}}}),
            "5:s-1 6:s-1 7:s-1",
            vec![],
            "s-7",
        ),
        (
            json!({"ordinals": {"start": 5}, "updateStrategy": {"rollingUpdate": {"partition": 2}}}),
            "5:s-1 6:s-1 7:s-2",
            vec![],
            "",
        ),
        // Several at a time; those that do not work count as missing.
        (several.clone(), "0:s-1 1:s-1 2:s-1", vec![], "s-2 s-1"),
        (several.clone(), "0:s-1 1:s-1 2:s-2", vec![], "s-1 s-0"),
        (several, "0:s-1 1:s-2 2:s-2", vec![], "s-0"),
    ] {
        let got = plan(&set(spec.clone()), &pods(there), "s-2", Timestamp::now());
        let deleted: Vec<_> = got.delete.iter().map(|p| p.name()).collect();
        assert_eq!((got.create, deleted.join(" ")), (create, delete.to_owned()), "{spec} {there}");
    }
}

#[test]
fn the_revision_is_current_when_all_have_it() {
    let got = plan(&set(json!({})), &pods("0:s-1 1:s-2 2:s-2"), "s-2", Timestamp::now()).status;
    assert_eq!((got.current_revision.as_str(), got.current_replicas, got.updated_replicas), ("s-1", 1, 2));
    let got = plan(&set(json!({})), &pods("0:s-2 1:s-2 2:s-2"), "s-2", Timestamp::now()).status;
    assert_eq!((got.current_revision.as_str(), got.current_replicas, got.updated_replicas), ("s-2", 3, 3));
}

#[test]
fn pods_have_names_and_claims() {
    let claim = json!({"metadata": {"name": "data"}, "spec": {"x": 1}});
    let set = set(json!({"volumeClaimTemplates": [claim], "selector": {"matchLabels": {"a": "b"}}}));
    let body = pod_body(&set, &set.spec.template, "s-2", 1);
    assert_eq!((&body["metadata"]["name"], &body["spec"]["subdomain"]), (&json!("s-1"), &json!("svc")));
    assert!(body["metadata"]["generateName"].is_null());
    assert_eq!(body["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-s-1");
    assert_eq!(body["spec"]["volumes"][1]["name"], "other");
    let claims = claims::bodies(&set, 1);
    assert_eq!(
        (&claims[0]["metadata"]["name"], &claims[0]["metadata"]["labels"]["a"]),
        (&json!("data-s-1"), &json!("b"))
    );
}

#[test]
fn claims_go_with_whom_the_policy_says() {
    let claim = |owners: Value| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "data-s-1", "ownerReferences": owners}})).unwrap()
    };
    let pod = |number: i32| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": format!("s-{number}"), "uid": format!("p{number}")}}))
            .unwrap()
    };
    let of = |uid: &str, kind: &str| json!({"apiVersion": "v1", "kind": kind, "name": "x", "uid": uid});
    for (deleted, scaled, number, before, expected) in [
        ("Retain", "Retain", 1, json!([]), None),
        ("Retain", "Retain", 1, json!([of("s", "StatefulSet")]), Some(vec![])),
        ("Delete", "Retain", 1, json!([]), Some(vec!["s"])),
        ("Delete", "Retain", 9, json!([]), Some(vec!["s"])),
        ("Retain", "Delete", 1, json!([]), None),
        ("Retain", "Delete", 9, json!([of("u", "User")]), Some(vec!["u", "p9"])),
        ("Delete", "Delete", 9, json!([of("s", "StatefulSet")]), Some(vec!["p9"])),
        // Scaled up again: the pod is wanted once more.
        ("Delete", "Delete", 1, json!([of("p1", "Pod")]), Some(vec!["s"])),
    ] {
        let policy = json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}});
        let got = claims::owners(&set(policy), &pod(number), &claim(before));
        let got = got.map(|owners| owners.iter().map(|o| o["uid"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
        let expected = expected.map(|uids| uids.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(got, expected, "{deleted} {scaled} {number}");
    }
}

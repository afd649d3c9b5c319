use serde_json::json;

use super::World;
use crate::model::Pod;
use crate::pod::machine::Event;
use crate::pod::state::Failure;
use crate::pod::status::{patch, qos_class};

#[test]
fn a_running_pod_in_full() {
    let mut w = World::ready(json!({"containers": [{
        "name": "a", "image": "img", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
    }]}));
    w.send(Event::VolumesReady);
    w.started("a");
    let at = "1970-01-12T13:46:40Z";
    let condition = |type_: &str| {
        json!({
            "type": type_, "status": "True", "lastTransitionTime": at, "observedGeneration": 1,
        })
    };
    let actual = serde_json::to_value(&w.status).unwrap();
    let expected = json!({
        "phase": "Running",
        "conditions": [
            condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
            condition("ContainersReady"), condition("PodScheduled"),
        ],
        "containerStatuses": [{
            "name": "a", "image": "img", "imageID": "sha256:1", "containerID": "containerd://id1",
            "ready": true, "started": true, "restartCount": 0, "lastState": {},
            "state": {"running": {"startedAt": at}},
            "allocatedResources": {"cpu": "500m"},
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Disabled"}],
        }],
        "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
        "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}],
        "qosClass": "Burstable", "startTime": at, "observedGeneration": 1,
    });
    for (key, value) in expected.as_object().unwrap() {
        let sorted = |v: &serde_json::Value| serde_json::from_str::<serde_json::Value>(&v.to_string()).unwrap();
        assert_eq!(sorted(&actual[key]), sorted(value), "{key}");
    }
    assert_eq!(actual.as_object().unwrap().len(), expected.as_object().unwrap().len(), "{actual}");
}

#[test]
fn a_patch_has_only_what_changed() {
    let mut w = World::ready(json!({"containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"port": 1}}}]}));
    w.send(Event::VolumesReady);
    w.started("a");
    let before = w.status.clone();
    assert_eq!(patch("u", &before, &w.status), None);
    w.now += std::time::Duration::from_secs(7);
    let id = "id1".to_owned();
    w.send(Event::Probe { index: 0, id, kind: crate::pod::spec::ProbeKind::Readiness, ok: true });
    let p = patch("u", &before, &w.status).unwrap();
    let keys: Vec<&String> = p["status"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["conditions", "containerStatuses"]);
    let types: Vec<&str> =
        p["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Ready", "ContainersReady"]);
    let ready = &p["status"]["conditions"][0];
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("True"), &json!(null)), "an old reason is taken away");
    assert!(ready.as_object().unwrap().contains_key("message"));
    assert_eq!(p["metadata"]["uid"], "u");
}

#[test]
fn a_refused_pod_has_only_its_reason() {
    let mut w = World::new(json!({"containers": [{"name": "a"}]}));
    let failure = Failure { reason: "OutOfcpu".into(), message: "Node didn't have enough resource: cpu".into() };
    w.send(Event::Rejected(failure));
    assert_eq!((w.phase(), w.status.reason.as_deref()), ("Failed", Some("OutOfcpu")));
    assert_eq!(w.status.container_statuses, None);
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let mut w = World::ready(json!({
        "containers": [{"name": "a"}], "readinessGates": [{"conditionType": "lb"}],
    }));
    w.send(Event::VolumesReady);
    w.started("a");
    assert_eq!(w.condition("ContainersReady"), "True");
    assert_eq!(w.condition("Ready"), "False ReadinessGatesNotReady");
    let mut gate = w.status.conditions.as_ref().unwrap()[0].clone();
    gate.type_ = "lb".into();
    gate.status = "True".into();
    w.status.conditions.as_mut().unwrap().push(gate);
    w.send(Event::Wake);
    assert_eq!(w.condition("Ready"), "True");
    assert_eq!(w.condition("lb"), "True", "conditions of others stay");
}

#[test]
fn restart_after_exit_keeps_the_exit_as_last_state() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    w.started("a");
    w.exited("a", 3);
    assert_eq!(w.container("a"), "terminated Error 3");
    w.started("a");
    let c = &w.status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 1);
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
}

#[test]
fn qos() {
    let r = |limits: serde_json::Value, requests: serde_json::Value| json!({"limits": limits, "requests": requests});
    for (resources, expected) in [
        (json!({}), "BestEffort"),
        (r(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1000m", "memory": "1Gi"})), "Guaranteed"),
        (r(json!({"cpu": "1", "memory": "1Gi"}), json!({})), "Guaranteed"),
        (r(json!({"cpu": "1"}), json!({})), "Burstable"),
        (r(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1"})), "Guaranteed"),
        (r(json!({}), json!({"memory": "1Gi"})), "Burstable"),
    ] {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap();
        assert_eq!(qos_class(&pod), expected, "{resources}");
    }
}

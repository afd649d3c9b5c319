//! Built-in kinds: what upstream's server writes for the same requests.

use serde_json::{Value, json};

use super::State;
use crate::{
    apply::{Managers, Set, reset_fields},
    resource,
    strategy::defaults,
};

fn row(group: &str, kind: &str) -> &'static resource::Resource {
    resource::builtin().by_kind(group, "v1", kind).unwrap()
}

fn fields(state: &State<'_>, at: usize) -> Value {
    let list = state.object.as_ref().unwrap()["metadata"]["managedFields"].clone();
    list[at]["fieldsV1"].clone()
}

#[test]
fn a_created_deployment_is_owned_as_upstream_has_it() {
    let row = row("apps", "Deployment");
    let mut state = State::builtin(row, "apps/v1");
    state.reset = reset_fields(row, "");
    let mut object = json!({
        "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]},
            },
        },
        "status": {"replicas": 3},
    });
    defaults(row, &mut object);
    state.update("kubectl-create", object);
    let entry = &state.object.as_ref().unwrap()["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["operation"], &entry["apiVersion"], &entry["fieldsType"], &entry["time"]),
        (
            &json!("kubectl-create"),
            &json!("Update"),
            &json!("apps/v1"),
            &json!("FieldsV1"),
            &json!("2026-01-01T00:00:00Z")
        )
    );
    let expected = json!({
        "f:metadata": {"f:annotations": {".": {}, "f:a": {}}, "f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:progressDeadlineSeconds": {},
            "f:replicas": {},
            "f:revisionHistoryLimit": {},
            "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                            {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                        "f:resources": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
                    }},
                    "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                    "f:terminationGracePeriodSeconds": {},
                },
            },
        },
    });
    assert_eq!(fields(&state, 0), expected);
    assert_eq!(Set::from_json(&expected).unwrap().to_json().to_string(), fields(&state, 0).to_string());
}

#[test]
fn status_and_spec_have_their_own_managers() {
    let row = row("apps", "Deployment");
    let mut state = State::builtin(row, "apps/v1");
    state.reset = reset_fields(row, "");
    state.update("kubectl", json!({"spec": {"replicas": 1}}));
    state.subresource = "status";
    state.reset = reset_fields(row, "status");
    state.update(
        "controller",
        json!({
            "metadata": {"labels": {"no": "1"}}, "spec": {"replicas": 9},
            "status": {"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]},
        }),
    );
    let list = &state.object.as_ref().unwrap()["metadata"]["managedFields"];
    assert_eq!(list[0]["manager"], "controller");
    assert_eq!(list[0]["subresource"], "status");
    assert_eq!(
        list[0]["fieldsV1"],
        json!({"f:status": {"f:conditions": {".": {}, "k:{\"type\":\"Available\"}":
            {".": {}, "f:status": {}, "f:type": {}}}, "f:replicas": {}}})
    );
    // An apply to the object itself says nothing of the status, even when it brings one.
    state.subresource = "";
    state.reset = reset_fields(row, "");
    state.force("me", json!({"spec": {"replicas": 2}, "status": {"replicas": 7}}));
    let managers = Managers::of(state.object.as_ref().unwrap()).unwrap();
    assert_eq!(managers.0.len(), 2, "kubectl lost its only field");
    assert!(state.owners().contains(&"me Apply apps/v1: .spec.replicas".to_owned()), "{:?}", state.owners());
}

#[test]
fn services_ports_merge_by_port_and_protocol() {
    let row = row("", "Service");
    let mut state = State::builtin(row, "v1");
    state.reset = reset_fields(row, "");
    let ports = |ports: Value| json!({"spec": {"ports": ports, "selector": {"a": "b"}}});
    state.apply("a", ports(json!([{"port": 53, "name": "dns"}, {"port": 53, "protocol": "UDP", "name": "dns-udp"}])));
    assert_eq!(
        state.owners(),
        ["a Apply v1: .spec.ports[port=53,protocol=\"TCP\"] .spec.ports[port=53,protocol=\"TCP\"].name \
          .spec.ports[port=53,protocol=\"TCP\"].port .spec.ports[port=53,protocol=\"UDP\"] \
          .spec.ports[port=53,protocol=\"UDP\"].name .spec.ports[port=53,protocol=\"UDP\"].port \
          .spec.ports[port=53,protocol=\"UDP\"].protocol .spec.selector"]
    );
    // A selector is owned whole.
    assert_eq!(
        state.conflicts("b", json!({"spec": {"selector": {"x": "y"}}})),
        ["conflict with \"a\": .spec.selector"]
    );
    state.apply("a", ports(json!([{"port": 53, "protocol": "UDP", "name": "dns-udp"}])));
    assert_eq!(state.fields()["spec"]["ports"], json!([{"port": 53, "protocol": "UDP", "name": "dns-udp"}]));
}

#[test]
fn finalizers_are_a_set_and_owners_a_list_by_uid() {
    let row = row("", "ConfigMap");
    let mut state = State::builtin(row, "v1");
    let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
    state.apply("a", json!({"metadata": {"finalizers": ["e.com/a"], "ownerReferences": [owner("1")]}}));
    state.apply("b", json!({"metadata": {"finalizers": ["e.com/b"], "ownerReferences": [owner("2")]}}));
    state.apply("a", json!({"data": {"k": "v"}}));
    let object = state.object.as_ref().unwrap();
    assert_eq!(object["metadata"]["finalizers"], json!(["e.com/b"]));
    assert_eq!(object["metadata"]["ownerReferences"], json!([owner("2")]));
}

#[test]
fn unknown_and_mistyped_fields_are_refused() {
    let mut state = State::builtin(row("apps", "Deployment"), "apps/v1");
    let mut message = |config: Value| {
        let status = state.try_apply("a", config, false).unwrap_err();
        (status.code, status.message)
    };
    assert_eq!(
        message(json!({"metadata": {"namespace": "n"}, "spec": {"replica": 1}})),
        (
            500,
            "failed to create typed patch object (n/a; apps/v1, Kind=K): .spec.replica: field not declared in schema"
                .into()
        )
    );
    assert_eq!(
        message(json!({"spec": {"replicas": "1", "paused": 1}})).1,
        "failed to create typed patch object (/a; apps/v1, Kind=K): errors:\n  .spec.replicas: expected numeric (int or float), got string\n  .spec.paused: expected boolean, got &{1}"
    );
    assert_eq!(message(json!({"metadata": {"managedFields": []}})), (400, "metadata.managedFields must be nil".into()));
}

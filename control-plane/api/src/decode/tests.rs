#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::builtin;

fn pod() -> TypeRef<'static> {
    builtin().get("io.k8s.api.core.v1.Pod").unwrap()
}

#[test]
fn unknown_fields_are_dropped_and_told() {
    let check = |value: Value, want: Value, messages: &[&str]| {
        assert_eq!(strict(pod(), value).unwrap(), (want, messages.iter().map(|m| (*m).to_owned()).collect()));
    };
    check(
        json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "imge": "x", "zzzz": 1}], "foo": {"bar": 1}}}),
        json!({"kind": "Pod", "spec": {"containers": [{"name": "a"}]}}),
        &[
            "unknown field \"spec.foo\"",
            "unknown field \"spec.containers[0].imge\", did you mean \"image\"?",
            "unknown field \"spec.containers[0].zzzz\"",
        ],
    );
    check(
        json!({"metadata": {"labels": {"anything": "goes"}}}),
        json!({"metadata": {"labels": {"anything": "goes"}}}),
        &[],
    );
}

#[test]
fn values_get_their_canonical_form() {
    let check = |value: Value, want: Value| assert_eq!(strict(pod(), value).unwrap().0, want);
    check(
        json!({"metadata": {"creationTimestamp": null, "deletionTimestamp": "2024-01-02T03:04:05.6+01:00"}}),
        json!({"metadata": {"deletionTimestamp": "2024-01-02T02:04:05Z"}}),
    );
    check(
        json!({"spec": {"overhead": {"cpu": 1, "memory": "1024Ki", "x": "1000m", "y": 0.5}}}),
        json!({"spec": {"overhead": {"cpu": "1", "memory": "1Mi", "x": "1", "y": "500m"}}}),
    );
    check(json!({"metadata": {"labels": {"a": null}}}), json!({"metadata": {"labels": {"a": ""}}}));
    let lease = builtin().get("io.k8s.api.coordination.v1.Lease").unwrap();
    let (value, _) = strict(lease, json!({"spec": {"renewTime": "2024-01-02T03:04:05.123456Z"}})).unwrap();
    assert_eq!(value["spec"]["renewTime"], "2024-01-02T03:04:05.123456Z");
    let secret = builtin().get("io.k8s.api.core.v1.Secret").unwrap();
    assert_eq!(strict(secret, json!({"data": {"a": "YQ==\n"}})).unwrap().0, json!({"data": {"a": "YQ=="}}));
}

#[test]
fn type_errors_are_gos() {
    let check = |value: Value, why: &str| {
        let status = strict(pod(), value).unwrap_err();
        let want = format!("Pod in version \"v1\" cannot be handled as a Pod: {why}");
        assert_eq!((status.code, status.message), (400, want));
    };
    let container = |container: Value| json!({"spec": {"containers": [container]}});
    check(
        container(json!({"ports": [{"containerPort": "80"}]})),
        "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of \
         type int32",
    );
    check(
        container(json!({"env": [{"value": 1}]})),
        "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
    );
    check(
        container(json!({"ports": [{"containerPort": 1.5}]})),
        "json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.containers.ports.containerPort \
         of type int32",
    );
    check(
        json!({"spec": {"containers": {}}}),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    check(
        json!({"metadata": {"labels": {"a": 1}}}),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels.a of type string",
    );
    check(json!([]), "json: cannot unmarshal array into Go value of type v1.Pod");
    check(
        json!({"spec": {"overhead": {"cpu": "x"}}}),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check(
        json!({"metadata": {"creationTimestamp": "x"}}),
        "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"",
    );
    let secret = builtin().get("io.k8s.api.core.v1.Secret").unwrap();
    let status = strict(secret, json!({"data": {"a": "YQ=*"}})).unwrap_err();
    assert!(status.message.ends_with("illegal base64 data at input byte 2"), "{}", status.message);
}

#[test]
fn duplicate_keys_are_told() {
    let (value, messages) = body(
        pod(),
        br#"{"spec": {"hostname": "a", "hostname": "b", "containers": [{}, {"name": "x", "name": "y"}]}, "spex": 1}"#,
    )
    .unwrap();
    assert_eq!(value, json!({"spec": {"hostname": "b", "containers": [{}, {"name": "y"}]}}));
    assert_eq!(
        messages,
        [
            "duplicate field \"spec.hostname\"",
            "duplicate field \"spec.containers[1].name\"",
            "unknown field \"spex\", did you mean \"spec\"?",
        ]
    );
    assert_eq!(
        strict_error(pod(), &messages[..1]).message,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"spec.hostname\""
    );
}

#[test]
fn bodies_are_bounded() {
    let fails = |bytes: &[u8], code: u16| assert_eq!(parse(bytes).unwrap_err().code, code);
    fails(b"", 400);
    fails(b"{", 400);
    fails(b"{} {}", 400);
    fails("[".repeat(limits::DEPTH + 1).as_bytes(), 400);
    fails(&vec![b' '; limits::BODY + 1], 413);
    assert!(parse(b"{\"a\": 1} \n").is_ok());
    let unknown: serde_json::Map<String, Value> = (0..1000).map(|i| (format!("x{i}"), json!(1))).collect();
    assert_eq!(strict(pod(), Value::Object(unknown)).unwrap().1.len(), limits::STRICT_ERRORS);
}

#[test]
fn schemas_of_crds_decode() {
    let crd = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
    let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"},
        "default": null, "enum": [null, 1]}}, "additionalProperties": true});
    let value = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    let (decoded, messages) = strict(builtin().get(crd).unwrap(), value.clone()).unwrap();
    assert_eq!(
        (decoded["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["additionalProperties"].clone(), messages),
        (json!(true), vec![])
    );
}

proptest! {
    /// What decoding accepts is in its final form.
    #[test]
    fn decoding_is_idempotent(cpu in "[0-9]{1,4}(m|k|Mi|e3)?", micros in 0i64..4_000_000_000_000_000) {
        let time = jiff::Timestamp::from_microsecond(micros).unwrap().to_string();
        let value = json!({"metadata": {"creationTimestamp": time}, "spec": {"overhead": {"cpu": cpu}}});
        let (once, _) = strict(pod(), value).unwrap();
        prop_assert_eq!(strict(pod(), once.clone()).unwrap().0, once);
    }

    #[test]
    fn parsing_agrees_with_serde_json(bytes in prop::collection::vec(prop_oneof!["\\{", "\\}", "\"a\"", ":", ",", "1", "\\[", "\\]", "null", " "], 0..20)) {
        let text = bytes.concat();
        let ours = parse(text.as_bytes()).map(|p| p.value).ok();
        prop_assert_eq!(ours, serde_json::from_str::<Value>(&text).ok());
    }
}

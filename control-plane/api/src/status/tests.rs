#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;
use crate::resource::builtin;

fn res(api_version: &str, kind: &str) -> &'static Resource {
    builtin().by_type(api_version, kind).unwrap()
}

#[test]
fn messages_are_upstreams() {
    let (pod, deploy) = (res("v1", "Pod"), res("apps/v1", "Deployment"));
    let check = |status: Status, code: u16, reason: &str, message: &str| {
        assert_eq!((status.code, &*status.reason, &*status.message), (code, reason, message));
    };
    check(Status::not_found(pod, "x"), 404, "NotFound", r#"pods "x" not found"#);
    check(Status::not_found(deploy, "x"), 404, "NotFound", r#"deployments.apps "x" not found"#);
    check(Status::already_exists(pod, "x"), 409, "AlreadyExists", r#"pods "x" already exists"#);
    check(
        Status::conflict(pod, "x"),
        409,
        "Conflict",
        "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply \
         your changes to the latest version and try again",
    );
    check(Status::forbidden(pod, "x", "no"), 403, "Forbidden", r#"pods "x" is forbidden: no"#);
    check(Status::forbidden(pod, "", "no"), 403, "Forbidden", "pods is forbidden: no");
    check(Status::unauthorized(), 401, "Unauthorized", "Unauthorized");
    check(Status::too_old(1, 5), 410, "Expired", "too old resource version: 1 (5)");
    check(Status::too_large(3_145_728), 413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728");
    check(
        Status::unsupported_media_type(&["application/json", "application/yaml"]),
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: \
         application/json, application/yaml",
    );
    check(Status::internal("x"), 500, "InternalError", "Internal error occurred: x");
}

#[test]
fn a_refused_request_names_user_verb_and_place() {
    let check = |denied: Denied<'_>, message: &str| {
        assert_eq!(Status::access_denied(&denied).message, message);
    };
    let get = Denied { user: "jane", verb: "get", resource: "pods", ..Denied::default() };
    check(
        Denied { namespace: "default", name: "x", subresource: "log", ..get },
        "pods \"x\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" \
         in the namespace \"default\"",
    );
    check(
        Denied { verb: "list", group: "apps", resource: "deployments", reason: "why", ..get },
        "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API \
         group \"apps\" at the cluster scope: why",
    );
}

#[test]
fn invalid_lists_its_causes() {
    let image = FieldError::required("spec.containers[0].image", "");
    let name = FieldError::invalid("metadata.name", "X", "must be lower case");
    let (pod, deploy) = (res("v1", "Pod"), res("apps/v1", "Deployment"));
    assert_eq!(
        Status::invalid(pod, "x", vec![image.clone()]).message,
        r#"Pod "x" is invalid: spec.containers[0].image: Required value"#
    );
    let status = Status::invalid(deploy, "x", vec![image, name.clone(), name]);
    assert_eq!(
        status.message,
        "Deployment.apps \"x\" is invalid: [spec.containers[0].image: Required value, \
         metadata.name: Invalid value: \"X\": must be lower case]"
    );
    assert_eq!(
        status.to_json()["details"],
        json!({
            "name": "x", "group": "apps", "kind": "Deployment",
            "causes": [
                {"reason": "FieldValueRequired", "message": "Required value",
                 "field": "spec.containers[0].image"},
                {"reason": "FieldValueInvalid", "field": "metadata.name",
                 "message": "Invalid value: \"X\": must be lower case"},
                {"reason": "FieldValueInvalid", "field": "metadata.name",
                 "message": "Invalid value: \"X\": must be lower case"},
            ],
        })
    );
}

#[test]
fn field_errors_are_worded_as_upstreams() {
    let check = |error: FieldError, text: &str| assert_eq!(error.to_string(), text);
    check(FieldError::required("a", "why"), "a: Required value: why");
    check(FieldError::invalid("a", 7, "why"), "a: Invalid value: 7: why");
    check(FieldError::invalid("a", json!({"b": 1}), "no"), "a: Invalid value: {\"b\":1}: no");
    check(FieldError::not_supported("a", "x", &["p", "q"]), r#"a: Unsupported value: "x": supported values: "p", "q""#);
    check(FieldError::forbidden("a", "no"), "a: Forbidden: no");
    check(FieldError::duplicate("a", "x"), r#"a: Duplicate value: "x""#);
    check(FieldError::too_long("a", 63), "a: Too long: may not be more than 63 bytes");
    check(FieldError::too_many("a", 5, 3), "a: Too many: 5: must have at most 3 items");
    check(FieldError::not_found("a", "x"), r#"a: Not found: "x""#);
    check(FieldError::invalid("a", "\"\u{1}é\n", ""), "a: Invalid value: \"\\\"\\x01é\\n\"");
}

#[test]
fn the_wire_form_is_whole() {
    let pod = res("v1", "Pod");
    assert_eq!(
        Status::not_found(pod, "x").to_json().to_string(),
        r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},"code":404}"#
    );
    let expired = Status::continue_expired(Some("next".into())).to_json();
    assert_eq!(expired["metadata"], json!({"continue": "next"}));
    assert_eq!(
        Status::success(pod, "x", "u-1"),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
               "details": {"name": "x", "kind": "pods", "uid": "u-1"}})
    );
}

#![allow(clippy::unwrap_used)]
//! Policies as tables: what they say of one write of a ConfigMap in the namespace `shop`.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_api::resource::builtin;

use crate::{
    admission::Admission,
    auth::view::fixed::Fixed,
    authz::Authorizer,
    context::{Admit, Attributes, Operation, UserInfo},
};

/// The policies and bindings, and other objects, of one row.
fn bed(spec: &Value, binding: &Value, kind: &str) -> Arc<Fixed> {
    let view = Fixed::new(&[
        ("", "namespaces", json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})),
        ("", "configmaps", json!({"metadata": {"name": "limit", "namespace": "shop"}, "data": {"most": "3"}})),
    ]);
    let group = "admissionregistration.k8s.io";
    let mut policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail", "matchConstraints": {
        "resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}}});
    json_patch::merge(&mut policy["spec"], spec);
    let mut bound = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    json_patch::merge(&mut bound["spec"], binding);
    let (policies, bindings) = (format!("{kind}admissionpolicies"), format!("{kind}admissionpolicybindings"));
    view.put(group, &policies, policy);
    view.put(group, &bindings, bound);
    view
}

/// The object as it would be stored, with the warnings; or the refusal's code and message.
async fn create(view: Arc<Fixed>, object: Value) -> Result<(Value, Vec<String>), String> {
    let user = UserInfo::new("jane", &["makers"]);
    let attributes = Attributes {
        user: &user,
        verb: "create",
        group: "",
        version: "v1",
        resource: "configmaps",
        subresource: "",
        namespace: "shop",
        name: "m",
        path: "",
        is_resource: true,
    };
    let row = builtin().by_path("", "v1", "configmaps").unwrap().clone();
    let frame = Admit { attributes, resource: &row, operation: Operation::Create, old: None, dry_run: false };
    let admission = Admission::new(view.clone(), Arc::new(Authorizer::new(view)));
    let mut object = object;
    let text = |status: sluice_api::status::Status| format!("{} {} {}", status.code, status.reason, status.message);
    let mut warnings = admission.mutate(&frame, &mut object).await.map_err(text)?;
    warnings.extend(admission.validate(&frame, Some(&object)).await.map_err(text)?);
    Ok((object, warnings))
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "shop", "labels": {"app": "x"}}, "data": data})
}

#[tokio::test]
async fn validating_policies_judge() {
    let deny = json!({"validationActions": ["Deny"]});
    let check = async |spec: Value, binding: &Value, expected: Result<&[&str], &str>| {
        let found = create(bed(&spec, binding, "validating"), map(json!({"size": "5"}))).await;
        let found = found.map(|(_, warnings)| warnings);
        match (&found, expected) {
            (Ok(warnings), Ok(expected)) => assert_eq!(warnings, expected, "{spec}"),
            (Err(message), Err(expected)) => assert_eq!(message, expected, "{spec}"),
            _ => panic!("{spec}: {found:?}"),
        }
    };
    let refused =
        "422 Invalid configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";
    let one = |expression: &str| json!({"validations": [{"expression": expression}]});
    check(one("object.data.size == '5'"), &deny, Ok(&[])).await;
    check(
        one("int(object.data.size) < 5"),
        &deny,
        Err(&format!("{refused}failed expression: int(object.data.size) < 5")),
    )
    .await;
    check(
        one("object.data.nothing == ''"),
        &deny,
        Err(&format!("{refused}expression 'object.data.nothing == ''' resulted in error: no such key: nothing")),
    )
    .await;
    check(
        json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.data.nothing == ''"}]}),
        &deny,
        Ok(&[]),
    )
    .await;
    check(
        json!({"variables": [{"name": "size", "expression": "int(object.data.size)"}, {"name": "twice", "expression": "variables.size * 2"}],
            "validations": [{"expression": "variables.twice < 10", "messageExpression": "'twice is ' + string(variables.twice)", "reason": "Forbidden"}]}),
        &deny,
        Err("403 Forbidden configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: twice is 10"),
    )
    .await;
    check(
        one("false"),
        &json!({"validationActions": ["Warn", "Audit"]}),
        Ok(&["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': failed expression: false"]),
    )
    .await;
    check(json!({"matchConditions": [{"name": "n", "expression": "request.userInfo.username != 'jane'"}], "validations": [{"expression": "false"}]}), &deny, Ok(&[])).await;
    check(
        one("namespaceObject.metadata.labels.team == 'a' && oldObject == null && request.operation == 'CREATE'"),
        &deny,
        Ok(&[]),
    )
    .await;
    check(one("!authorizer.requestResource.check('delete').allowed()"), &deny, Ok(&[])).await;
    check(one("authorizer.group('apps').resource('deployments').namespace('shop').check('get').allowed()"), &deny, Err(&format!("{refused}failed expression: authorizer.group('apps').resource('deployments').namespace('shop').check('get').allowed()"))).await;
    let params = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "int(object.data.size) <= int(params.data.most)", "message": "too big"}]});
    let with = |name: &str, action: &str| json!({"validationActions": ["Deny"], "paramRef": {"name": name, "parameterNotFoundAction": action}});
    check(params.clone(), &with("limit", "Deny"), Err(&format!("{refused}too big"))).await;
    check(params.clone(), &with("none", "Allow"), Ok(&[])).await;
    check(params, &with("none", "Deny"), Err(&format!("{refused}failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"))).await;
    for about in [
        json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}),
        json!({"objectSelector": {"matchLabels": {"app": "y"}}}),
        json!({"excludeResourceRules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "resourceNames": ["m"]}]}),
    ] {
        check(one("false"), &json!({"validationActions": ["Deny"], "matchResources": about}), Ok(&[])).await;
    }
}

#[tokio::test]
async fn mutating_policies_change() {
    let check = async |mutations: Value, more: Value, expected: Value| {
        let mut spec = json!({"mutations": mutations, "reinvocationPolicy": "Never"});
        json_patch::merge(&mut spec, &more);
        let (object, _) = create(bed(&spec, &json!({}), "mutating"), map(json!({"size": "5"}))).await.unwrap();
        assert_eq!((&object["data"], &object["metadata"]["labels"]), (&expected["data"], &expected["labels"]));
    };
    check(
        json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{data: {'more': object.data.size + '0'}, metadata: Object.metadata{labels: {'by': 'policy'}}}"}}]),
        json!({}),
        json!({"data": {"size": "5", "more": "50"}, "labels": {"app": "x", "by": "policy"}}),
    )
    .await;
    check(
        json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: variables.v}]"}}]),
        json!({"variables": [{"name": "v", "expression": "'c'"}]}),
        json!({"data": {"size": "5"}, "labels": {"app": "x", "a/b": "c"}}),
    )
    .await;
    check(
        json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]),
        json!({"matchConditions": [{"name": "n", "expression": "false"}]}),
        json!({"data": {"size": "5"}, "labels": {"app": "x"}}),
    )
    .await;
    let broken = json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "object.nothing"}}], "reinvocationPolicy": "Never"});
    let refused = create(bed(&broken, &json!({}), "mutating"), map(json!({}))).await.unwrap_err();
    assert!(
        refused.contains("policy 'p' with binding 'b' denied request: expression 'object.nothing' resulted in error"),
        "{refused}"
    );
}

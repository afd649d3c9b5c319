//! Admission policies and quotas against the real server, as clients meet them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{MAPS, Server, configmap};
use serde_json::{Value, json};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

fn policy(name: &str, rule: Value, expression: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": expression, "message": "not so"}]}})
}

fn rule(operation: &str, resource: &str) -> Value {
    json!({"operations": [operation], "apiGroups": ["*"], "apiVersions": ["*"], "resources": [resource]})
}

#[tokio::test]
async fn policies_judge_writes_and_streams() {
    let server = Server::start().await;
    let http = &server.admin;
    let bind =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    let policies = format!("{ADMISSION}/validatingadmissionpolicies");
    let bindings = format!("{ADMISSION}/validatingadmissionpolicybindings");
    let broken = http.post(&policies, policy("x", rule("CREATE", "configmaps"), "object.")).await.failed();
    assert!(
        broken.0 == 422
            && broken
                .2
                .contains("spec.validations[0].expression: Invalid value: \"object.\": compilation failed: ERROR"),
        "{}",
        broken.2
    );

    http.create(&policies, policy("maps", rule("CREATE", "configmaps"), "object.metadata.name.startsWith('good')"))
        .await;
    http.create(&bindings, bind("maps")).await;
    let refused = http.post(MAPS, configmap("bad")).await.failed();
    assert_eq!(
        refused,
        (
            422,
            "Invalid".into(),
            "configmaps \"bad\" is forbidden: ValidatingAdmissionPolicy 'maps' with binding 'maps' denied request: not so".into()
        )
    );
    http.create(MAPS, configmap("good")).await;

    http.create(&policies, policy("streams", rule("CONNECT", "pods/attach"), "object.container == 'c'")).await;
    http.create(&bindings, bind("streams")).await;
    let refused = http.get("/api/v1/namespaces/default/pods/p/attach?container=d").await.failed();
    assert_eq!(
        refused.2,
        "pods \"p\" is forbidden: ValidatingAdmissionPolicy 'streams' with binding 'streams' denied request: not so"
    );
    let passed = http.get("/api/v1/namespaces/default/pods/p/attach?container=c&stdout=1").await.failed();
    assert_eq!(passed.2, "pods \"p\" not found");
}

#[tokio::test]
async fn a_mutating_policy_changes_what_is_stored() {
    let server = Server::start().await;
    let http = &server.admin;
    let expression =
        "Object{metadata: Object.metadata{annotations: {'seen': 'yes'}}, data: {'more': object.data.k + 'w'}}";
    http.create(
        &format!("{ADMISSION}/mutatingadmissionpolicies"),
        json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule("CREATE", "configmaps")]},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]}}),
    )
    .await;
    http.create(
        &format!("{ADMISSION}/mutatingadmissionpolicybindings"),
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}}),
    )
    .await;
    let made = http.create(MAPS, configmap("m")).await;
    assert_eq!(
        (&made["data"], &made["metadata"]["annotations"]["seen"]),
        (&json!({"k": "v", "more": "vw"}), &json!("yes"))
    );
}

#[tokio::test]
async fn quotas_count_what_grows() {
    let server = Server::start().await;
    let http = &server.admin;
    let hard = json!({"services.nodeports": "1", "configmaps": "2"});
    http.create(
        "/api/v1/namespaces/default/resourcequotas",
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}),
    )
    .await;
    let services = "/api/v1/namespaces/default/services";
    let service = |kind: &str| json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    let refused = http.post(services, service("NodePort")).await.failed();
    let why = "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1";
    assert_eq!((refused.0, refused.1.as_str(), refused.2.as_str()), (403, "Forbidden", why));
    http.create(services, service("ClusterIP")).await;
    let grown = http.patch(&format!("{services}/s"), "merge", json!({"spec": {"type": "NodePort"}})).await.failed();
    assert_eq!(grown.2, why);
    let fixed = http
        .patch("/api/v1/namespaces/default/resourcequotas/q", "merge", json!({"spec": {"hard": {"nothing": "1"}}}))
        .await
        .failed();
    assert!(
        fixed.2.contains("spec.hard[nothing]: Invalid value: \"nothing\": must be a standard resource for quota"),
        "{}",
        fixed.2
    );
}

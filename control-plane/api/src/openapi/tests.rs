#![allow(clippy::unwrap_used)]
use super::*;
use crate::resource::builtin;

fn v3(registry: &Registry, path: &str) -> Option<Value> {
    let mut out = Vec::new();
    write_v3(registry, path, &mut out).unwrap().then(|| serde_json::from_slice(&out).unwrap())
}

fn v2(registry: &Registry) -> Value {
    let mut out = Vec::new();
    write_v2(registry, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn apps() -> Value {
    v3(builtin(), "apis/apps/v1").unwrap()
}

#[test]
fn the_index_names_every_version() {
    let index = v3_index(builtin());
    let paths = index["paths"].as_object().unwrap();
    assert!(paths["api/v1"]["serverRelativeURL"].as_str().unwrap().starts_with("/openapi/v3/api/v1?hash="));
    for path in paths.keys() {
        assert!(v3(builtin(), path).is_some(), "{path}");
    }
    assert!(v3(builtin(), "apis/nope/v1").is_none());
    assert!(v3(builtin(), "apis").is_none());
}

/// What kubectl looks for before it relies on the server's own validation.
#[test]
fn patches_take_field_validation() {
    let doc = apps();
    let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "kind": "Deployment", "version": "v1"})
    );
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    assert_eq!(patch["x-kubernetes-action"], "patch");
}

/// kubectl says a change to a custom resource by strategy if the documents let it, which the server refuses.
#[test]
fn custom_resources_take_no_strategic_patches() {
    let mut row = (**builtin().by_kind("apps", "v1", "Deployment").unwrap()).clone();
    (row.group, row.schema) = ("z.com".into(), "com.z.v1.Deployment".into());
    let registry = Registry::new(builtin().iter().cloned().chain([std::sync::Arc::new(row)]));
    let path = |group: &str| format!("/apis/{group}/v1/namespaces/{{namespace}}/deployments/{{name}}");
    for (group, strategic) in [("apps", true), ("z.com", false)] {
        let new = v3(&registry, &format!("apis/{group}/v1")).unwrap();
        let new = new["paths"][path(group)]["patch"]["requestBody"]["content"].as_object().unwrap().clone();
        let old = v2(&registry)["paths"][path(group)]["patch"]["consumes"].clone();
        let old: Vec<&str> = old.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for (name, kept) in
            [("strategic-merge-patch+json", strategic), ("merge-patch+json", true), ("apply-patch+yaml", true)]
        {
            let name = format!("application/{name}");
            assert_eq!((new.contains_key(&name), old.contains(&name.as_str())), (kept, kept), "{group} {name}");
        }
    }
}

#[test]
fn paths_and_operations_are_upstreams() {
    let (core, apps) = (v3(builtin(), "api/v1").unwrap(), apps());
    let check = |doc: &Value, path: &str, methods: &[&str], id: &str| {
        let item = doc["paths"][path].as_object().unwrap_or_else(|| panic!("{path}"));
        let found: Vec<&String> = item.keys().filter(|k| *k != "parameters").collect();
        assert_eq!(found, methods, "{path}");
        assert!(item.values().any(|operation| operation["operationId"] == id), "{path} {id}");
    };
    check(&apps, "/apis/apps/v1/", &["get"], "getAppsV1APIResources");
    check(&apps, "/apis/apps/v1/deployments", &["get"], "listAppsV1DeploymentForAllNamespaces");
    check(
        &apps,
        "/apis/apps/v1/namespaces/{namespace}/deployments",
        &["delete", "get", "post"],
        "deleteAppsV1CollectionNamespacedDeployment",
    );
    check(
        &apps,
        "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
        &["get", "patch", "put"],
        "replaceAppsV1NamespacedDeploymentScale",
    );
    check(&core, "/api/v1/namespaces", &["get", "post"], "listCoreV1Namespace");
    check(&core, "/api/v1/namespaces/{name}/finalize", &["put"], "replaceCoreV1NamespaceFinalize");
    check(&core, "/api/v1/namespaces/{namespace}/pods/{name}/eviction", &["post"], "createCoreV1NamespacedPodEviction");
    check(
        &core,
        "/api/v1/namespaces/{namespace}/pods/{name}/exec",
        &["post", "get"],
        "connectCoreV1GetNamespacedPodExec",
    );
    check(&core, "/api/v1/namespaces/{namespace}/pods/{name}/log", &["get"], "readCoreV1NamespacedPodLog");
}

/// Upstream's lists, where k8s-openapi's own differ.
#[test]
fn required_fields_are_upstreams() {
    let check = |doc: &str, name: &str, required: Value| {
        let doc = v3(builtin(), doc).unwrap();
        assert_eq!(doc["components"]["schemas"][name]["required"], required, "{name}");
    };
    check("api/v1", "io.k8s.api.core.v1.Pod", Value::Null);
    check("api/v1", "io.k8s.api.core.v1.LocalObjectReference", Value::Null);
    check("api/v1", "io.k8s.api.core.v1.Event", json!(["involvedObject", "metadata"]));
    check("api/v1", "io.k8s.api.core.v1.ContainerPort", json!(["containerPort"]));
    check("apis/events.k8s.io/v1", "io.k8s.api.events.v1.Event", json!(["eventTime"]));
}

#[test]
fn schemas_carry_facts_and_kinds() {
    let doc = apps();
    let schemas = &doc["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
    assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
    assert!(spec["description"].as_str().unwrap().starts_with("Specification"));
    let kinds = |name: &str| schemas[name]["x-kubernetes-group-version-kind"].clone();
    assert_eq!(
        kinds("io.k8s.api.apps.v1.Deployment"),
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    assert_eq!(
        kinds("io.k8s.api.apps.v1.DeploymentList"),
        json!([{"group": "apps", "kind": "DeploymentList", "version": "v1"}])
    );
    assert_eq!(
        kinds("io.k8s.api.autoscaling.v1.Scale"),
        json!([{"group": "autoscaling", "kind": "Scale", "version": "v1"}])
    );
    assert_eq!(kinds("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions").as_array().unwrap().len(), 2);
    assert_eq!(kinds("io.k8s.api.core.v1.PodSpec"), Value::Null);
    assert_eq!(kinds("io.k8s.api.core.v1.TypedLocalObjectReference"), Value::Null);
}

#[test]
fn every_reference_has_a_target() {
    fn check(value: &Value, prefix: &str, known: &Map<String, Value>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| check(item, prefix, known)),
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    assert!(known.contains_key(target.strip_prefix(prefix).unwrap()), "{target}");
                }
                fields.values().for_each(|field| check(field, prefix, known));
            }
            _ => {}
        }
    }
    let doc = v3(builtin(), "apis/apiextensions.k8s.io/v1").unwrap();
    check(&doc, "#/components/schemas/", doc["components"]["schemas"].as_object().unwrap());
    let doc = v2(builtin());
    check(&doc, "#/definitions/", doc["definitions"].as_object().unwrap());
}

#[test]
fn version_two_has_its_own_words() {
    let doc = v2(builtin());
    assert_eq!(doc["swagger"], "2.0");
    let definitions = &doc["definitions"];
    let spec = &definitions["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
    assert_eq!(spec["$ref"], "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
    assert_eq!(definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"], "string");
    let crd = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    assert_eq!(definitions[crd]["properties"]["oneOf"]["type"], "array");
    let create = &doc["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"];
    assert_eq!(create["parameters"][0]["schema"]["$ref"], "#/definitions/io.k8s.api.core.v1.Pod");
    let text = doc.to_string();
    assert!(!text.contains("allOf\":[{\"$ref") && !text.contains("#/components"));
}

//! Defaults of every kind: one table of constant values by path, and the few rules that look at
//! other fields. Source: upstream's `pkg/apis/*/v1/defaults.go`.

use serde_json::{Map, Value, json};

use super::{
    path::{each, fill, text},
    pod_defaults,
};
use crate::resource::Resource;

/// The defaults that are constants: `path` leads to an object, `key` gets `value` (JSON).
struct Constant {
    group: &'static str,
    kind: &'static str,
    path: &'static str,
    key: &'static str,
    value: &'static str,
}

const fn c(
    group: &'static str,
    kind: &'static str,
    path: &'static str,
    key: &'static str,
    value: &'static str,
) -> Constant {
    Constant { group, kind, path, key, value }
}

const APPS: &str = "apps";
const BATCH: &str = "batch";
const STORAGE: &str = "storage.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const OWN: &str = "sluice.dev";

#[rustfmt::skip]
const CONSTANTS: &[Constant] = &[
    c("", "Service", "spec", "sessionAffinity", r#""None""#),
    c("", "Service", "spec", "type", r#""ClusterIP""#),
    c("", "Service", "spec.ports[]", "protocol", r#""TCP""#),
    c("", "Endpoints", "subsets[].ports[]", "protocol", r#""TCP""#),
    c("", "Secret", "", "type", r#""Opaque""#),
    c("", "Namespace", "+spec", "finalizers", r#"["kubernetes"]"#),
    c("", "PersistentVolumeClaim", "spec", "volumeMode", r#""Filesystem""#),
    c("", "PersistentVolume", "spec", "volumeMode", r#""Filesystem""#),
    c("", "PersistentVolume", "spec", "persistentVolumeReclaimPolicy", r#""Retain""#),
    c("", "PersistentVolume", "spec.hostPath", "type", r#""""#),
    c("", "ReplicationController", "spec", "replicas", "1"),
    c(APPS, "Deployment", "spec", "replicas", "1"),
    c(APPS, "Deployment", "spec", "revisionHistoryLimit", "10"),
    c(APPS, "Deployment", "spec", "progressDeadlineSeconds", "600"),
    c(APPS, "Deployment", "spec.+strategy", "type", r#""RollingUpdate""#),
    c(APPS, "ReplicaSet", "spec", "replicas", "1"),
    c(APPS, "StatefulSet", "spec", "replicas", "1"),
    c(APPS, "StatefulSet", "spec", "podManagementPolicy", r#""OrderedReady""#),
    c(APPS, "StatefulSet", "spec", "revisionHistoryLimit", "10"),
    c(APPS, "StatefulSet", "spec.+updateStrategy", "type", r#""RollingUpdate""#),
    c(APPS, "StatefulSet", "spec.+persistentVolumeClaimRetentionPolicy", "whenDeleted", r#""Retain""#),
    c(APPS, "StatefulSet", "spec.+persistentVolumeClaimRetentionPolicy", "whenScaled", r#""Retain""#),
    c(APPS, "StatefulSet", "spec.volumeClaimTemplates[].spec", "volumeMode", r#""Filesystem""#),
    c(APPS, "DaemonSet", "spec", "revisionHistoryLimit", "10"),
    c(APPS, "DaemonSet", "spec.+updateStrategy", "type", r#""RollingUpdate""#),
    c(BATCH, "Job", "spec", "backoffLimit", "6"),
    c(BATCH, "Job", "spec", "completionMode", r#""NonIndexed""#),
    c(BATCH, "Job", "spec", "suspend", "false"),
    c(BATCH, "Job", "spec", "manualSelector", "false"),
    c(BATCH, "CronJob", "spec", "concurrencyPolicy", r#""Allow""#),
    c(BATCH, "CronJob", "spec", "suspend", "false"),
    c(BATCH, "CronJob", "spec", "successfulJobsHistoryLimit", "3"),
    c(BATCH, "CronJob", "spec", "failedJobsHistoryLimit", "1"),
    c("discovery.k8s.io", "EndpointSlice", "ports[]", "name", r#""""#),
    c("discovery.k8s.io", "EndpointSlice", "ports[]", "protocol", r#""TCP""#),
    c("rbac.authorization.k8s.io", "RoleBinding", "roleRef", "apiGroup", r#""rbac.authorization.k8s.io""#),
    c("rbac.authorization.k8s.io", "ClusterRoleBinding", "roleRef", "apiGroup", r#""rbac.authorization.k8s.io""#),
    c("networking.k8s.io", "NetworkPolicy", "spec.ingress[].ports[]", "protocol", r#""TCP""#),
    c("networking.k8s.io", "NetworkPolicy", "spec.egress[].ports[]", "protocol", r#""TCP""#),
    c("networking.k8s.io", "IngressClass", "spec.parameters", "scope", r#""Cluster""#),
    c("autoscaling", "HorizontalPodAutoscaler", "spec", "minReplicas", "1"),
    c("scheduling.k8s.io", "PriorityClass", "", "preemptionPolicy", r#""PreemptLowerPriority""#),
    c(OWN, "LoadBalancerPool", "spec", "autoAssign", "true"),
    c(OWN, "LoadBalancerPool", "spec", "allowFirstLastIPs", "true"),
    c(OWN, "LoadBalancerPool", "spec.+announcement", "type", r#""L2""#),
    c(STORAGE, "StorageClass", "", "reclaimPolicy", r#""Delete""#),
    c(STORAGE, "StorageClass", "", "volumeBindingMode", r#""Immediate""#),
    c(STORAGE, "CSIDriver", "spec", "attachRequired", "true"),
    c(STORAGE, "CSIDriver", "spec", "podInfoOnMount", "false"),
    c(STORAGE, "CSIDriver", "spec", "storageCapacity", "false"),
    c(STORAGE, "CSIDriver", "spec", "fsGroupPolicy", r#""ReadWriteOnceWithFSType""#),
    c(STORAGE, "CSIDriver", "spec", "volumeLifecycleModes", r#"["Persistent"]"#),
    c(STORAGE, "CSIDriver", "spec", "requiresRepublish", "false"),
    c(STORAGE, "CSIDriver", "spec", "seLinuxMount", "false"),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[]", "failurePolicy", r#""Fail""#),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[]", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[]", "namespaceSelector", "{}"),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[]", "objectSelector", "{}"),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[]", "timeoutSeconds", "10"),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[].rules[]", "scope", r#""*""#),
    c(ADMISSION, "ValidatingWebhookConfiguration", "webhooks[].clientConfig.service", "port", "443"),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "failurePolicy", r#""Fail""#),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "namespaceSelector", "{}"),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "objectSelector", "{}"),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "timeoutSeconds", "10"),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[]", "reinvocationPolicy", r#""Never""#),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[].rules[]", "scope", r#""*""#),
    c(ADMISSION, "MutatingWebhookConfiguration", "webhooks[].clientConfig.service", "port", "443"),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec", "failurePolicy", r#""Fail""#),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec.matchConstraints", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec.matchConstraints", "namespaceSelector", "{}"),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec.matchConstraints", "objectSelector", "{}"),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec.matchConstraints.resourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "ValidatingAdmissionPolicy", "spec.matchConstraints.excludeResourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec", "failurePolicy", r#""Fail""#),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec", "reinvocationPolicy", r#""Never""#),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec.matchConstraints", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec.matchConstraints", "namespaceSelector", "{}"),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec.matchConstraints", "objectSelector", "{}"),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec.matchConstraints.resourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "MutatingAdmissionPolicy", "spec.matchConstraints.excludeResourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "ValidatingAdmissionPolicyBinding", "spec.matchResources", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "ValidatingAdmissionPolicyBinding", "spec.matchResources", "namespaceSelector", "{}"),
    c(ADMISSION, "ValidatingAdmissionPolicyBinding", "spec.matchResources", "objectSelector", "{}"),
    c(ADMISSION, "ValidatingAdmissionPolicyBinding", "spec.matchResources.resourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "ValidatingAdmissionPolicyBinding", "spec.matchResources.excludeResourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "MutatingAdmissionPolicyBinding", "spec.matchResources", "matchPolicy", r#""Equivalent""#),
    c(ADMISSION, "MutatingAdmissionPolicyBinding", "spec.matchResources", "namespaceSelector", "{}"),
    c(ADMISSION, "MutatingAdmissionPolicyBinding", "spec.matchResources", "objectSelector", "{}"),
    c(ADMISSION, "MutatingAdmissionPolicyBinding", "spec.matchResources.resourceRules[]", "scope", r#""*""#),
    c(ADMISSION, "MutatingAdmissionPolicyBinding", "spec.matchResources.excludeResourceRules[]", "scope", r#""*""#),
    c("autoscaling", "HorizontalPodAutoscaler", "spec.behavior.scaleUp", "selectPolicy", r#""Max""#),
    c("autoscaling", "HorizontalPodAutoscaler", "spec.behavior.scaleDown", "selectPolicy", r#""Max""#),
    c("apiextensions.k8s.io", "CustomResourceDefinition", "spec.+conversion", "strategy", r#""None""#),
    c("apiregistration.k8s.io", "APIService", "spec.service", "port", "443"),
    c("flowcontrol.apiserver.k8s.io", "FlowSchema", "spec", "matchingPrecedence", "1000"),
];

/// A rule that looks at other fields of the object.
type Rule = fn(&mut Value);

const RULES: &[(&str, &str, Rule)] = &[
    ("", "Pod", pod),
    ("", "PodTemplate", |o| pod_defaults::apply(o, "template.spec")),
    ("", "ReplicationController", replication_controller),
    ("", "Service", service),
    ("", "Secret", secret),
    ("", "Namespace", namespace),
    ("", "LimitRange", limit_range),
    (APPS, "Deployment", deployment),
    (APPS, "ReplicaSet", |o| pod_defaults::apply(o, "spec.template.spec")),
    (APPS, "StatefulSet", stateful_set),
    (APPS, "DaemonSet", daemon_set),
    (BATCH, "Job", job),
    (BATCH, "CronJob", |o| {
        pod_defaults::apply(o, "spec.jobTemplate.spec.template.spec");
    }),
    ("rbac.authorization.k8s.io", "RoleBinding", subjects),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", subjects),
    ("networking.k8s.io", "NetworkPolicy", network_policy),
    ("apiextensions.k8s.io", "CustomResourceDefinition", crd),
];

/// Fills in what the user left out.
pub fn defaults(resource: &Resource, object: &mut Value) {
    if let Some(custom) = &resource.custom {
        custom.defaults(object);
        return;
    }
    let mine = |group: &str, kind: &str| resource.group == group && resource.kind == kind;
    for constant in CONSTANTS.iter().filter(|c| mine(c.group, c.kind)) {
        each(object, constant.path, &mut |at| {
            fill(at, constant.key, || serde_json::from_str(constant.value).unwrap_or(Value::Null));
        });
    }
    for (_, _, rule) in RULES.iter().filter(|(group, kind, _)| mine(group, kind)) {
        rule(object);
    }
}

fn pod(object: &mut Value) {
    pod_defaults::apply(object, "spec");
    each(object, "spec", &mut |spec| fill(spec, "enableServiceLinks", || json!(true)));
    for list in ["spec.containers[]", "spec.initContainers[]"] {
        each(object, list, &mut pod_defaults::requests_from_limits);
    }
}

fn replication_controller(object: &mut Value) {
    pod_defaults::apply(object, "spec.template.spec");
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    let Some(labels) = labels else { return };
    each(object, "spec", &mut |spec| fill(spec, "selector", || labels.clone()));
    each(object, "+metadata", &mut |meta| fill(meta, "labels", || labels.clone()));
}

fn service(object: &mut Value) {
    each(object, "spec", &mut |spec| {
        if text(spec, "sessionAffinity") == "ClientIP" {
            fill(spec, "sessionAffinityConfig", || json!({"clientIP": {"timeoutSeconds": 10800}}));
        } else {
            spec.remove("sessionAffinityConfig");
        }
        let kind = text(spec, "type").to_owned();
        let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
            || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        if external {
            fill(spec, "externalTrafficPolicy", || json!("Cluster"));
        }
        if kind != "ExternalName" {
            fill(spec, "internalTrafficPolicy", || json!("Cluster"));
        }
        if kind == "LoadBalancer" {
            fill(spec, "allocateLoadBalancerNodePorts", || json!(true));
        }
    });
    each(object, "spec.ports[]", &mut |port| {
        let number = port.get("port").cloned().unwrap_or(json!(0));
        if matches!(port.get("targetPort"), None | Some(Value::Null))
            || port["targetPort"] == json!(0)
            || port["targetPort"] == json!("")
        {
            port.insert("targetPort".into(), number);
        }
    });
}

/// `stringData` is written into `data` and never kept.
fn secret(object: &mut Value) {
    use base64::Engine as _;
    let Value::Object(secret) = object else { return };
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    let data = secret.entry("data").or_insert_with(|| json!({}));
    if data.is_null() {
        *data = json!({});
    }
    if let Value::Object(data) = data {
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    }
}

fn namespace(object: &mut Value) {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !name.is_empty() {
        each(object, "metadata.+labels", &mut |labels| {
            labels.insert("kubernetes.io/metadata.name".into(), json!(name));
        });
    }
}

fn limit_range(object: &mut Value) {
    each(object, "spec.limits[]", &mut |limit| {
        if text(limit, "type") != "Container" {
            return;
        }
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(Value::Object(source)) = limit.get(from).cloned() else { continue };
            let target = limit.entry(to).or_insert_with(|| json!({}));
            if let Value::Object(target) = target {
                for (name, quantity) in source {
                    fill(target, &name, || quantity);
                }
            }
        }
    });
}

/// `maxSurge`, `maxUnavailable` of a rolling update, only where the strategy is one.
fn rolling(object: &mut Value, path: &str, values: &[(&str, Value)]) {
    each(object, path, &mut |strategy| {
        if text(strategy, "type") != "RollingUpdate" {
            return;
        }
        let mut inner = strategy.remove("rollingUpdate").filter(Value::is_object).unwrap_or_else(|| json!({}));
        if let Value::Object(inner) = &mut inner {
            for (key, value) in values {
                fill(inner, key, || value.clone());
            }
        }
        strategy.insert("rollingUpdate".into(), inner);
    });
}

fn deployment(object: &mut Value) {
    pod_defaults::apply(object, "spec.template.spec");
    rolling(object, "spec.strategy", &[("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))]);
}

fn stateful_set(object: &mut Value) {
    pod_defaults::apply(object, "spec.template.spec");
    rolling(object, "spec.updateStrategy", &[("partition", json!(0))]);
    each(object, "spec.volumeClaimTemplates[]", &mut |claim| {
        fill(claim, "apiVersion", || json!("v1"));
        fill(claim, "kind", || json!("PersistentVolumeClaim"));
        fill(claim, "status", || json!({"phase": "Pending"}));
    });
}

fn daemon_set(object: &mut Value) {
    pod_defaults::apply(object, "spec.template.spec");
    rolling(object, "spec.updateStrategy", &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
}

fn job(object: &mut Value) {
    pod_defaults::apply(object, "spec.template.spec");
    each(object, "spec", &mut |spec| {
        let absent = |key: &str| spec.get(key).is_none_or(Value::is_null);
        if absent("completions") && absent("parallelism") {
            spec.insert("completions".into(), json!(1));
        }
        fill(spec, "parallelism", || json!(1));
        let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        fill(spec, "podReplacementPolicy", || json!(replacement));
    });
}

fn subjects(object: &mut Value) {
    each(object, "subjects[]", &mut |subject: &mut Map<String, Value>| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            fill(subject, "apiGroup", || json!("rbac.authorization.k8s.io"));
        }
    });
}

fn network_policy(object: &mut Value) {
    each(object, "spec", &mut |spec| {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        fill(spec, "policyTypes", || if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    });
}

fn crd(object: &mut Value) {
    each(object, "spec.names", &mut |names| {
        let kind = text(names, "kind").to_owned();
        fill(names, "singular", || json!(kind.to_lowercase()));
        fill(names, "listKind", || json!(format!("{kind}List")));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    fn check(group: &str, kind: &str, mut given: Value, pointer: &str, expected: Value) {
        let version = if group == "autoscaling" { "v2" } else { "v1" };
        let resource = resource::builtin().by_kind(group, version, kind).unwrap();
        defaults(resource, &mut given);
        assert_eq!(given.pointer(pointer), Some(&expected), "{kind} {pointer} in {given}");
        let once = given.clone();
        defaults(resource, &mut given);
        assert_eq!(given, once, "defaults of {kind} are idempotent");
    }

    #[test]
    fn constants_are_json_and_name_known_kinds() {
        for constant in CONSTANTS {
            assert!(serde_json::from_str::<Value>(constant.value).is_ok(), "{}", constant.value);
            let known = resource::builtin().iter().any(|r| r.group == constant.group && r.kind == constant.kind);
            assert!(known, "{}", constant.kind);
        }
    }

    #[test]
    fn kinds_get_upstreams_defaults() {
        let template = json!({"spec": {"containers": [{"name": "a", "image": "b"}]}});
        let spec = json!({"spec": {"template": template}});
        check("apps", "Deployment", spec.clone(), "/spec/strategy/rollingUpdate/maxSurge", json!("25%"));
        check("apps", "Deployment", spec.clone(), "/spec/replicas", json!(1));
        check("apps", "Deployment", spec.clone(), "/spec/template/spec/restartPolicy", json!("Always"));
        check("apps", "DaemonSet", spec.clone(), "/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(1));
        check("apps", "StatefulSet", spec.clone(), "/spec/updateStrategy/rollingUpdate/partition", json!(0));
        check("batch", "Job", spec, "/spec/completions", json!(1));
        let recreate = json!({"spec": {"strategy": {"type": "Recreate"}}});
        check("apps", "Deployment", recreate, "/spec/strategy", json!({"type": "Recreate"}));
        let ports = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        check("", "Service", ports.clone(), "/spec/ports/0", json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        check("", "Service", ports, "/spec/externalTrafficPolicy", json!("Cluster"));
        let plain = json!({"stringData": {"a": "b"}});
        check("", "Secret", plain, "/data/a", json!("Yg=="));
        let name = json!({"metadata": {"name": "n"}});
        check("", "Namespace", name, "/metadata/labels", json!({"kubernetes.io/metadata.name": "n"}));
        let egress = json!({"spec": {"egress": [{}]}});
        check("networking.k8s.io", "NetworkPolicy", egress, "/spec/policyTypes", json!(["Ingress", "Egress"]));
    }
}

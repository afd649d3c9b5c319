//! What happens to an object between the user's request and validation: the parts that are not
//! the user's to write are reset, generations counted. Source: upstream's `pkg/registry/*/strategy.go`.

use serde_json::{Value, json};

use super::path::each;
use crate::resource::Resource;

/// Kinds whose status takes nothing of the metadata.
const STATUS_ALONE: &[(&str, &[&str])] = &[
    ("admissionregistration.k8s.io", &["ValidatingAdmissionPolicy"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", &["APIService"]),
    ("certificates.k8s.io", &["PodCertificateRequest"]),
    ("flowcontrol.apiserver.k8s.io", &["FlowSchema", "PriorityLevelConfiguration"]),
    ("internal.apiserver.k8s.io", &["StorageVersion"]),
    ("resource.k8s.io", &["ResourceClaim"]),
    ("storage.k8s.io", &["VolumeAttachment"]),
    ("storagemigration.k8s.io", &["StorageVersionMigration"]),
];

/// What of the metadata no status takes.
const NEVER_BY_STATUS: &[&str] = &["generation", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// Kinds whose `metadata.generation` counts changes of the specification.
const WITH_GENERATION: &[(&str, &[&str])] = &[
    ("", &["Pod", "ReplicationController", "PodTemplate"]),
    ("apps", &["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"]),
    ("batch", &["Job", "CronJob"]),
    ("networking.k8s.io", &["Ingress", "NetworkPolicy", "IngressClass"]),
    ("policy", &["PodDisruptionBudget"]),
    ("discovery.k8s.io", &["EndpointSlice"]),
    ("scheduling.k8s.io", &["PriorityClass"]),
    ("storage.k8s.io", &["CSIDriver"]),
    (
        "admissionregistration.k8s.io",
        &[
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "MutatingAdmissionPolicy",
            "MutatingAdmissionPolicyBinding",
        ],
    ),
    ("flowcontrol.apiserver.k8s.io", &["FlowSchema", "PriorityLevelConfiguration"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    ("sluice.dev", &["LoadBalancerAnnouncement", "LoadBalancerPool"]),
];

/// Parts of an object that do not count for its generation.
const NOT_SPEC: [&str; 4] = ["metadata", "status", "apiVersion", "kind"];

/// Whether the kind counts generations. Custom resources all do.
pub fn has_generation(resource: &Resource) -> bool {
    let row = WITH_GENERATION.iter().find(|(group, _)| resource.group == *group);
    match row {
        Some((_, kinds)) => kinds.contains(&resource.kind.as_ref()),
        None => crate::resource::builtin().by_kind(&resource.group, &resource.version, &resource.kind).is_none(),
    }
}

/// Before a create: the status is the server's but for nodes, the first generation is 1.
pub fn prepare_create(resource: &Resource, object: &mut Value) {
    // A node's daemon brings its first status along (upstream's nodeStrategy drops none).
    let brings_status = (&*resource.group, &*resource.kind) == ("", "Node");
    if let Value::Object(top) = object
        && resource.subresources.status
        && !brings_status
    {
        top.remove("status");
    }
    if has_generation(resource) {
        each(object, "+metadata", &mut |meta| {
            meta.insert("generation".into(), json!(1));
        });
    } else {
        each(object, "metadata", &mut |meta| {
            meta.remove("generation");
        });
    }
    if (&*resource.group, &*resource.kind) == ("batch", "Job") {
        job_selector(object);
    }
    let first = match (resource.group.as_ref(), resource.kind.as_ref()) {
        ("", "Pod") => pod_status(object),
        ("", "Namespace") => json!({"phase": "Active"}),
        ("", "PersistentVolumeClaim") => json!({"phase": "Pending"}),
        ("", "PersistentVolume") => json!({"phase": "Pending"}),
        ("", "Service") => json!({"loadBalancer": {}}),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => json!({"replicas": 0}),
        ("apps", "StatefulSet") => json!({"replicas": 0, "availableReplicas": 0}),
        ("apps", "DaemonSet") => {
            json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0})
        }
        ("apps", "Deployment") | ("batch", "Job" | "CronJob") | ("certificates.k8s.io", _) => json!({}),
        ("networking.k8s.io", "Ingress") => json!({"loadBalancer": {}}),
        _ => return,
    };
    if let Value::Object(top) = object {
        top.insert("status".into(), first);
    }
}

/// A new pod waits; gates say so from the first moment (upstream's `applySchedulingGatedCondition`).
fn pod_status(pod: &Value) -> Value {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    status
}

/// A Job selects its pods by its own uid unless the user chose a selector (upstream's `generateSelector`).
fn job_selector(object: &mut Value) {
    if object.pointer("/spec/manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, uid) = (text("name"), text("uid"));
    let prefixed = |name: &str| format!("batch.kubernetes.io/{name}");
    each(object, "spec.template.+metadata.+labels", &mut |labels| {
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            for key in [key.to_owned(), prefixed(key)] {
                labels.insert(key, json!(value));
            }
        }
    });
    each(object, "spec.+selector.+matchLabels", &mut |labels| {
        labels.insert(prefixed("controller-uid"), json!(uid));
    });
}

/// Before an update of the main resource: the status stays as it was, a changed specification
/// makes a new generation.
pub fn prepare_update(resource: &Resource, old: &Value, new: &mut Value) {
    if resource.subresources.status {
        copy(old, new, "status");
    }
    if !has_generation(resource) {
        return;
    }
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
    // A first deletion mark counts as a change too, as upstream's BeforeDelete does.
    let marked = |o: &Value| o.pointer("/metadata/deletionTimestamp").is_some();
    let changed = spec_of(old) != spec_of(new) || (marked(new) && !marked(old));
    each(new, "+metadata", &mut |meta| {
        meta.insert("generation".into(), json!(generation + i64::from(changed)));
    });
}

/// Before an update through `/status`: the specification stays as it was, and of the metadata what [`kept_by_status`] names.
pub fn prepare_status_update(resource: &Resource, old: &Value, new: &mut Value) {
    let (Value::Object(before), Value::Object(after)) = (old, &mut *new) else { return };
    let names: Vec<String> =
        after.keys().chain(before.keys()).filter(|k| !NOT_SPEC.contains(&k.as_str())).cloned().collect();
    for name in names {
        match before.get(&name) {
            Some(value) => after.insert(name, value.clone()),
            None => after.remove(&name),
        };
    }
    let old_meta = before.get("metadata").cloned().unwrap_or_else(|| json!({}));
    each(new, "+metadata", &mut |meta| {
        for name in NEVER_BY_STATUS.iter().chain(kept_by_status(resource)) {
            match old_meta.get(*name) {
                Some(value) => meta.insert((*name).into(), value.clone()),
                None => meta.remove(*name),
            };
        }
    });
}

/// The metadata that a kind's status does not take. Most built-in kinds take all of it; custom resources and the younger kinds
/// take none (upstream's `ResetObjectMetaForStatus`).
fn kept_by_status(resource: &Resource) -> &'static [&'static str] {
    const ALL: &[&str] = &["labels", "annotations", "ownerReferences", "finalizers"];
    match (resource.group.as_ref(), resource.kind.as_ref()) {
        ("", "Pod") => &["ownerReferences"],
        ("apps", "Deployment") => &["labels"],
        (group, kind) if STATUS_ALONE.iter().any(|(g, kinds)| *g == group && kinds.contains(&kind)) => ALL,
        ("sluice.dev", _) => ALL,
        _ if resource.custom.is_some() => ALL,
        _ => &[],
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from CPU and memory of all containers.
pub fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["/spec/containers", "/spec/initContainers"] {
        for container in pod.pointer(list).and_then(Value::as_array).into_iter().flatten() {
            let get = |what: &str, name: &str| {
                container.pointer(&format!("/resources/{what}/{name}")).and_then(crate::quantity::Quantity::from_value)
            };
            for name in ["cpu", "memory"] {
                let (request, limit) = (get("requests", name), get("limits", name));
                any |= [request, limit].iter().flatten().any(|q| !q.is_zero());
                guaranteed &= limit.is_some_and(|l| !l.is_zero() && request.is_none_or(|r| r == l));
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn spec_of(object: &Value) -> Vec<(&String, &Value)> {
    let top = object.as_object().into_iter().flatten();
    let mut parts: Vec<_> = top.filter(|(k, v)| !NOT_SPEC.contains(&k.as_str()) && !v.is_null()).collect();
    parts.sort_by_key(|(k, _)| *k);
    parts
}

fn copy(from: &Value, to: &mut Value, key: &str) {
    if let Value::Object(to) = to {
        match from.get(key) {
            Some(value) => to.insert(key.into(), value.clone()),
            None => to.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    fn kind(group: &str, kind: &str) -> &'static Resource {
        resource::builtin().by_kind(group, "v1", kind).unwrap()
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let check = |resources: Value, expected: &str| {
            let pod = json!({"spec": {"containers": [{"resources": resources}]}});
            assert_eq!(qos_class(&pod), expected, "{pod}");
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "0"}}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            "Guaranteed",
        );
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
    }

    #[test]
    fn a_new_nodes_status_is_its_daemons() {
        let check = |kind_name: &str, expected: Value| {
            let mut object = json!({"metadata": {"name": "a"}, "status": {"capacity": {"cpu": "4"}}});
            prepare_create(kind("", kind_name), &mut object);
            assert_eq!(object.get("status").cloned().unwrap_or_default(), expected, "{kind_name}");
        };
        check("Node", json!({"capacity": {"cpu": "4"}}));
        check("PersistentVolume", json!({"phase": "Pending"}));
        check("ResourceQuota", Value::Null);
    }

    #[test]
    fn a_gated_pod_says_so_from_the_first_moment() {
        let mut pod =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "schedulingGates": [{"name": "g"}]}});
        prepare_create(kind("", "Pod"), &mut pod);
        assert_eq!(
            pod["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}])
        );
        let columns = crate::table::columns(kind("", "Pod"));
        let cells = crate::table::cells(columns, &pod, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells[2], "SchedulingGated", "{cells:?}");
        let mut free = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "schedulingGates": []}});
        prepare_create(kind("", "Pod"), &mut free);
        assert!(free["status"].get("conditions").is_none());
    }

    #[test]
    fn generations_count_changes_of_the_spec_alone() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {"s": 1}});
        let check = |mut new: Value, expected: i64| {
            prepare_update(kind("apps", "Deployment"), &old, &mut new);
            assert_eq!(new["metadata"]["generation"], expected);
            assert_eq!(new["status"], json!({"s": 1}), "the status is not the user's");
        };
        check(json!({"metadata": {"labels": {}}, "spec": {"a": 1}, "status": {"s": 2}}), 3);
        check(json!({"metadata": {}, "spec": {"a": 2}}), 4);
        let mut config = json!({"metadata": {"generation": 7}, "data": {}});
        prepare_create(kind("", "ConfigMap"), &mut config);
        assert_eq!(config["metadata"], json!({}), "a ConfigMap has no generation");
    }

    #[test]
    fn a_job_selects_its_pods_by_its_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        prepare_create(kind("batch", "Job"), &mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        let labels = &job["spec"]["template"]["metadata"]["labels"];
        assert_eq!((&labels["job-name"], &labels["batch.kubernetes.io/job-name"]), (&json!("j"), &json!("j")));
        let mut own = json!({"metadata": {}, "spec": {"manualSelector": true, "selector": {}, "template": {}}});
        prepare_create(kind("batch", "Job"), &mut own);
        assert_eq!((&own["spec"]["selector"], &own["spec"]["template"]), (&json!({}), &json!({})));
    }

    #[test]
    fn a_status_update_leaves_the_specification() {
        let check = |group: &str, name: &str, taken: &[&str]| {
            let old = json!({
                "metadata": {"generation": 1, "labels": "old", "annotations": "old", "ownerReferences": "old", "finalizers": "old"},
                "spec": {"a": 1},
            });
            let mut new = json!({
                "metadata": {"generation": 2, "labels": "new", "annotations": "new", "deletionTimestamp": "new"},
                "spec": {"a": 2},
                "status": {"s": 1},
            });
            prepare_status_update(kind(group, name), &old, &mut new);
            let mut expected = old;
            expected["status"] = json!({"s": 1});
            for field in taken {
                match *field {
                    "labels" | "annotations" => expected["metadata"][*field] = json!("new"),
                    gone => drop(expected["metadata"].as_object_mut().unwrap().remove(gone)),
                }
            }
            assert_eq!(new, expected, "{name}");
        };
        check("networking.k8s.io", "Ingress", &["labels", "annotations", "ownerReferences", "finalizers"]);
        check("", "Node", &["labels", "annotations", "ownerReferences", "finalizers"]);
        check("", "Pod", &["labels", "annotations", "finalizers"]);
        check("apps", "Deployment", &["annotations", "ownerReferences", "finalizers"]);
        check("flowcontrol.apiserver.k8s.io", "FlowSchema", &[]);
        check("apiextensions.k8s.io", "CustomResourceDefinition", &[]);
    }
}

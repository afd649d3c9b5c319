//! What objects take of a namespace's ResourceQuotas: amounts by name, and which objects a quota's scopes take in. Pure;
//! source: upstream's `pkg/quota/v1/evaluator/core`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by name, such as `pods`, `requests.cpu` or `count/deployments.apps`.
pub type Usage = BTreeMap<String, Quantity>;

/// What one object takes. `group` is empty for the core group.
pub fn usage(group: &str, resource: &str, object: &Value, now: Timestamp) -> Usage {
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let mut usage = Usage::from([(format!("count/{qualified}"), Quantity::of(1))]);
    if !group.is_empty() || resource == "pods" && ended(object, now) {
        return usage;
    }
    usage.insert(resource.to_owned(), Quantity::of(1));
    let spec = &object["spec"];
    match resource {
        "pods" => {
            for (key, amount) in pod_total(spec, "requests") {
                // Names without a prefix are requests of these three only.
                if matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage") || key.starts_with("hugepages-") {
                    usage.insert(key.clone(), amount);
                }
                usage.insert(format!("requests.{key}"), amount);
            }
            usage.extend(pod_total(spec, "limits").into_iter().map(|(key, amount)| (format!("limits.{key}"), amount)));
        }
        "services" => service(spec, &mut usage),
        "persistentvolumeclaims" => claim(spec, &mut usage),
        _ => {}
    }
    usage
}

/// Whether a quota's scopes take the object in. Scopes speak of pods (and claims, by their attributes class).
pub fn in_scope(spec: &Value, group: &str, resource: &str, object: &Value) -> bool {
    let plain = list(&spec["scopes"]).iter().filter_map(Value::as_str);
    let mut scopes = plain.map(|scope| (scope, "Exists", &Value::Null)).chain(
        list(&spec["scopeSelector"]["matchExpressions"])
            .iter()
            .map(|e| (text(&e["scopeName"]), text(&e["operator"]), &e["values"])),
    );
    scopes.all(|(scope, operator, values)| match (group, resource, scope) {
        ("", "pods", "PriorityClass") => matches(text(&object["spec"]["priorityClassName"]), operator, values),
        ("", "pods", scope) => has_scope(scope, object),
        ("", "persistentvolumeclaims", "VolumeAttributesClass") => {
            matches(text(&object["spec"]["volumeAttributesClassName"]), operator, values)
        }
        _ => false,
    })
}

/// Adds what another object takes.
pub fn add(sum: &mut Usage, other: Usage) {
    for (key, amount) in other {
        let known = sum.get(&key).copied();
        sum.insert(key, known.map_or(amount, |known| known + amount));
    }
}

/// A pod that has ended, or is past its grace and only not gone yet, takes nothing but its place in the store.
fn ended(pod: &Value, now: Timestamp) -> bool {
    let meta = &pod["metadata"];
    let deadline = text(&meta["deletionTimestamp"]).parse::<Timestamp>();
    matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
        || !meta["deletionGracePeriodSeconds"].is_null() && deadline.is_ok_and(|deadline| deadline < now)
}

/// A pod's requests or limits: the sum of its containers and sidecars or the largest init phase, pod-level amounts in
/// place of these, and the overhead.
fn pod_total(spec: &Value, what: &str) -> Usage {
    let mut running = Usage::new();
    for container in list(&spec["containers"]) {
        add(&mut running, amounts(&container["resources"][what]));
    }
    let (mut sidecars, mut peak) = (Usage::new(), Usage::new());
    for container in list(&spec["initContainers"]) {
        let own = amounts(&container["resources"][what]);
        let mut phase = sidecars.clone();
        add(&mut phase, own.clone());
        if container["restartPolicy"] == "Always" {
            add(&mut running, own.clone());
            add(&mut sidecars, own);
        }
        raise(&mut peak, phase);
    }
    raise(&mut running, peak);
    running.extend(amounts(&spec["resources"][what]));
    let overhead = amounts(&spec["overhead"]).into_iter();
    // Overhead counts on top of a limit, but makes none.
    let relevant: Usage = overhead.filter(|(key, _)| what == "requests" || running.contains_key(key)).collect();
    add(&mut running, relevant);
    running
}

fn raise(sum: &mut Usage, other: Usage) {
    for (key, amount) in other {
        let known = sum.get(&key).copied().filter(|known| *known >= amount);
        sum.insert(key, known.unwrap_or(amount));
    }
}

fn service(spec: &Value, usage: &mut Usage) {
    let ports = i64::try_from(list(&spec["ports"]).len()).unwrap_or(i64::MAX);
    let balanced = spec["type"] == "LoadBalancer";
    let node_ports = spec["type"] == "NodePort" || balanced && spec["allocateLoadBalancerNodePorts"] != false;
    usage.insert("services.loadbalancers".into(), Quantity::of(i64::from(balanced)));
    usage.insert("services.nodeports".into(), Quantity::of(if node_ports { ports } else { 0 }));
}

fn claim(spec: &Value, usage: &mut Usage) {
    let storage = Quantity::from_value(&spec["resources"]["requests"]["storage"]).unwrap_or(Quantity::of(0));
    usage.insert("requests.storage".into(), storage);
    let class = text(&spec["storageClassName"]);
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{prefix}/requests.storage"), storage);
        usage.insert(format!("{prefix}/persistentvolumeclaims"), Quantity::of(1));
    }
}

fn matches(value: &str, operator: &str, values: &Value) -> bool {
    let listed = list(values).iter().any(|v| v == value);
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !value.is_empty(),
        "DoesNotExist" => value.is_empty(),
        _ => false,
    }
}

fn has_scope(scope: &str, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(spec),
        "NotBestEffort" => !best_effort(spec),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        _ => false,
    }
}

fn best_effort(spec: &Value) -> bool {
    let containers = list(&spec["containers"]).iter().chain(list(&spec["initContainers"]));
    let mut all = containers.map(|container| &container["resources"]).chain([&spec["resources"]]);
    let asks = |resources: &Value, what: &str| {
        let compute = amounts(&resources[what]);
        compute.iter().any(|(key, amount)| matches!(key.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    all.all(|resources| !asks(resources, "requests") && !asks(resources, "limits"))
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = &affinity[*kind];
        let required = list(&terms["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = list(&terms["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.map(|p| &p["podAffinityTerm"]))
            .any(|t| !list(&t["namespaces"]).is_empty() || !t["namespaceSelector"].is_null())
    })
}

fn amounts(map: &Value) -> Usage {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), Quantity::from_value(value)?))).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(resource: &str, object: &Value) -> Value {
        let usage = usage("", resource, object, Timestamp::UNIX_EPOCH);
        json!(usage.iter().map(|(key, amount)| (key.clone(), amount.to_string())).collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn what_objects_take() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        for (resource, object, expected) in [
            ("configmaps", json!({}), json!({"configmaps": "1", "count/configmaps": "1"})),
            (
                "pods",
                json!({"spec": {"containers": [asks("100m"), asks("200m")], "initContainers": [asks("250m")], "overhead": {"cpu": "10m"}}}),
                json!({"pods": "1", "count/pods": "1", "cpu": "310m", "requests.cpu": "310m"}),
            ),
            (
                "pods",
                json!({"spec": {"containers": [{"resources": {"limits": {"example.com/gpu": "2"}, "requests": {"example.com/gpu": "2"}}}]}}),
                json!({"pods": "1", "count/pods": "1", "limits.example.com/gpu": "2", "requests.example.com/gpu": "2"}),
            ),
            ("pods", json!({"status": {"phase": "Failed"}}), json!({"count/pods": "1"})),
            (
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                json!({"services": "1", "count/services": "1", "services.loadbalancers": "0", "services.nodeports": "2"}),
            ),
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}),
                json!({"persistentvolumeclaims": "1", "count/persistentvolumeclaims": "1", "requests.storage": "1Gi",
                    "fast.storageclass.storage.k8s.io/requests.storage": "1Gi",
                    "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1"}),
            ),
        ] {
            assert_eq!(taken(resource, &object), expected, "{resource} {object}");
        }
    }

    #[test]
    fn scopes() {
        let plain = json!({"spec": {"containers": [{}]}});
        let short =
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}], "activeDeadlineSeconds": 5}});
        let important = json!({"spec": {"containers": [{}], "priorityClassName": "high"}});
        let selector = |operator: &str| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}});
        for (spec, pod, expected) in [
            (json!({}), &plain, true),
            (json!({"scopes": ["BestEffort"]}), &plain, true),
            (json!({"scopes": ["BestEffort"]}), &short, false),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), &short, true),
            (json!({"scopes": ["NotTerminating"]}), &short, false),
            (selector("In"), &important, true),
            (selector("NotIn"), &important, false),
            (selector("In"), &plain, false),
        ] {
            assert_eq!(in_scope(&spec, "", "pods", pod), expected, "{spec} {pod}");
        }
        assert!(!in_scope(&json!({"scopes": ["BestEffort"]}), "", "configmaps", &json!({})));
    }
}

//! ResourceQuota: refuses what would take a namespace over a quota's `hard` limits.
//!
//! Usage is counted from the cached objects at each creation, so it needs no controller to be
//! right. What was admitted and is not in the cache yet is reserved for a moment, so that requests
//! side by side do not pass one limit together. `status.used` is written elsewhere.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use parking_lot::Mutex;
use serde_json::Value;
use sluice_api::status::Status;

use super::{
    forbid,
    limit_ranger::{amounts, number, plain, pod_total},
    list, text,
};
use crate::{
    auth::view::View,
    context::{Admit, Operation},
    limits,
};

type Usage = BTreeMap<String, f64>;

/// Admitted objects that the cache may not have yet, by uid.
#[derive(Default)]
pub(super) struct Quota {
    reserved: Mutex<HashMap<String, Reservation>>,
}

struct Reservation {
    group: String,
    resource: String,
    namespace: String,
    name: String,
    object: Value,
    at: Instant,
}

/// One limit that a creation would break.
struct Exceeded<'a> {
    key: &'a str,
    wanted: f64,
    used: f64,
    most: String,
}

impl Quota {
    pub(super) fn check(&self, view: &dyn View, admit: &Admit<'_>, object: &Value) -> Result<(), Status> {
        let a = &admit.attributes;
        if admit.operation != Operation::Create || !a.subresource.is_empty() || a.namespace.is_empty() {
            return Ok(());
        }
        let quotas = view.list("", "resourcequotas", a.namespace);
        if quotas.is_empty() {
            return Ok(());
        }
        let mut reserved = self.reserved.lock();
        reserved.retain(|uid, r| {
            r.at.elapsed() < limits::QUOTA_RESERVATION
                && view.get(&r.group, &r.resource, &r.namespace, &r.name).is_none_or(|o| *o.uid != **uid)
        });
        let mut others: Vec<Value> = view.list(a.group, a.resource, a.namespace).iter().map(|o| o.value()).collect();
        let waiting = reserved.values().filter(|r| {
            (r.group.as_str(), r.resource.as_str(), r.namespace.as_str()) == (a.group, a.resource, a.namespace)
        });
        others.extend(waiting.map(|r| r.object.clone()));
        for quota in &quotas {
            judge(&quota.value(), admit, object, &others)?;
        }
        let uid = text(&object["metadata"], "uid");
        if !admit.dry_run && !uid.is_empty() && reserved.len() < limits::QUOTA_RESERVATIONS {
            let reservation = Reservation {
                group: a.group.into(),
                resource: a.resource.into(),
                namespace: a.namespace.into(),
                name: text(&object["metadata"], "name").into(),
                object: object.clone(),
                at: Instant::now(),
            };
            reserved.insert(uid.to_owned(), reservation);
        }
        Ok(())
    }
}

fn judge(quota: &Value, admit: &Admit<'_>, object: &Value, others: &[Value]) -> Result<(), Status> {
    let a = &admit.attributes;
    let name = text(&quota["metadata"], "name");
    let hard = &quota["spec"]["hard"];
    let counts = |o: &Value| in_scope(&quota["spec"], a.resource, o);
    if !counts(object) {
        return Ok(());
    }
    let wanted = usage(a.group, a.resource, object);
    if a.group.is_empty() && a.resource == "pods" {
        let unset = unspecified(hard, object);
        if !unset.is_empty() {
            return Err(forbid(
                admit,
                Some(object),
                format!("failed quota: {name}: must specify {}", unset.join("; ")),
            ));
        }
    }
    let mut used = Usage::new();
    for other in others.iter().filter(|o| counts(o)) {
        for (key, value) in usage(a.group, a.resource, other) {
            *used.entry(key).or_default() += value;
        }
    }
    let mut exceeded: Vec<Exceeded<'_>> = hard
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, most)| {
            let wanted = *wanted.get(key).filter(|w| **w > 0.0)?;
            let used = used.get(key).copied().unwrap_or_default();
            (used + wanted > number(most)?).then(|| Exceeded { key, wanted, used, most: plain(most) })
        })
        .collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    exceeded.sort_by_key(|e| e.key);
    let show = |of: fn(&Exceeded<'_>) -> String| -> String {
        exceeded.iter().map(|e| format!("{}={}", e.key, of(e))).collect::<Vec<_>>().join(",")
    };
    let why = format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(|e| amount(e.key, e.wanted)),
        show(|e| amount(e.key, e.used)),
        show(|e| e.most.clone())
    );
    Err(forbid(admit, Some(object), why))
}

/// What one object takes of every quota that could count it.
fn usage(group: &str, resource: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let spec = &object["spec"];
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let is_pod = group.is_empty() && resource == "pods";
    usage.insert(format!("count/{qualified}"), 1.0);
    // A pod that has ended takes nothing but its place in the store.
    if is_pod && matches!(text(&object["status"], "phase"), "Succeeded" | "Failed") {
        return usage;
    }
    if group.is_empty() {
        usage.insert(resource.to_owned(), 1.0);
    }
    match (group, resource) {
        ("", "pods") => {
            let (requests, limits) = pod_total(spec);
            for (key, value) in requests {
                usage.insert(format!("requests.{key}"), value);
                usage.insert(key, value);
            }
            usage.extend(limits.into_iter().map(|(key, value)| (format!("limits.{key}"), value)));
        }
        ("", "services") => {
            let ports = list(&spec["ports"]);
            let kind = text(spec, "type");
            let balanced = kind == "LoadBalancer";
            let without = balanced && spec["allocateLoadBalancerNodePorts"] == false;
            if balanced {
                usage.insert("services.loadbalancers".into(), 1.0);
            }
            if kind == "NodePort" || (balanced && !without) {
                usage.insert("services.nodeports".into(), ports.len() as f64);
            }
        }
        ("", "persistentvolumeclaims") => {
            let (requests, _) = amounts(&spec["resources"]);
            let storage = requests.get("storage").copied().unwrap_or_default();
            usage.insert("requests.storage".into(), storage);
            let class = text(spec, "storageClassName");
            if !class.is_empty() {
                let prefix = format!("{class}.storageclass.storage.k8s.io");
                usage.insert(format!("{prefix}/requests.storage"), storage);
                usage.insert(format!("{prefix}/persistentvolumeclaims"), 1.0);
            }
        }
        _ => {}
    }
    usage
}

/// `limits.cpu for: a,b`: compute resources under quota that containers leave open.
fn unspecified(hard: &Value, pod: &Value) -> Vec<String> {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let mut out = Vec::new();
    for key in hard.as_object().into_iter().flatten().map(|(key, _)| key.as_str()) {
        let (field, plain) = match key.split_once('.') {
            Some(("requests", rest)) => ("requests", rest),
            Some(("limits", rest)) => ("limits", rest),
            _ => ("requests", key),
        };
        if !COMPUTE.contains(&plain) {
            continue;
        }
        let open: Vec<&str> = super::containers(&pod["spec"])
            .filter(|(_, c)| c["resources"][field][plain].is_null())
            .map(|(_, c)| text(c, "name"))
            .collect();
        if !open.is_empty() {
            out.push(format!("{key} for: {}", open.join(",")));
        }
    }
    out.sort();
    out
}

/// True if the quota's scopes take the object in. Scopes speak of pods; other kinds have none.
fn in_scope(spec: &Value, resource: &str, object: &Value) -> bool {
    let plain_scopes = list(&spec["scopes"]).iter().filter_map(Value::as_str);
    let selected = list(&spec["scopeSelector"]["matchExpressions"]);
    if resource != "pods" {
        return list(&spec["scopes"]).is_empty() && selected.is_empty();
    }
    plain_scopes.into_iter().all(|scope| has_scope(scope, object))
        && selected.iter().all(|expression| {
            let scope = text(expression, "scopeName");
            if scope != "PriorityClass" {
                return has_scope(scope, object);
            }
            let class = text(&object["spec"], "priorityClassName");
            let listed = list(&expression["values"]).iter().any(|v| v == class);
            match text(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                _ => false,
            }
        })
}

fn has_scope(scope: &str, pod: &Value) -> bool {
    let terminating = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    let best_effort = super::containers(&pod["spec"]).all(|(_, c)| {
        let (requests, limits) = amounts(&c["resources"]);
        requests.values().chain(limits.values()).all(|v| *v == 0.0)
    });
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => !text(&pod["spec"], "priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => crosses_namespaces(&pod["spec"]["affinity"]),
        _ => false,
    }
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

/// An amount as upstream prints it: bytes in binary units where they are whole, cores in milli.
fn amount(key: &str, value: f64) -> String {
    let bytes = key.contains("memory") || key.contains("storage") && !key.ends_with("claims");
    if bytes {
        for (unit, power) in [("Ti", 4), ("Gi", 3), ("Mi", 2), ("Ki", 1)] {
            let size = 1024f64.powi(power);
            if value >= size && (value / size).fract() == 0.0 {
                return format!("{}{unit}", value / size);
            }
        }
    }
    super::limit_ranger::show(value)
}

//! What bounds and ranks pods: quotas, limit ranges, budgets, autoscalers, priority and runtime
//! classes. Source: upstream's `pkg/apis/{core,policy,autoscaling,scheduling,node}/validation`.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, cursor::At, workload};
use crate::{names, quantity::Quantity, status::FieldError};

const AT_LEAST_ZERO: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";
/// The highest priority that is not the system's.
const MAX_USER_PRIORITY: i64 = 1_000_000_000;

/// Names without a domain that a quota may count.
const QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Names whose amounts are whole numbers.
const WHOLE: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(super) fn resource_quota(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    for (name, amount) in spec.field("hard").entries() {
        let known = QUOTA.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        let broken = names::qualified_name(name);
        if broken.is_empty() && !name.contains('/') && !known {
            errors.push(FieldError::invalid(&amount.path, name, "must be a standard resource for quota"));
        }
        for detail in broken {
            errors.push(FieldError::invalid(&amount.path, name, detail));
        }
        let Some(quantity) = Quantity::from_value(amount.value) else { continue };
        if quantity.is_negative() {
            amount.invalid(AT_LEAST_ZERO, errors);
        }
        if (WHOLE.contains(&name) || name.starts_with("count/")) && !quantity.is_integer() {
            amount.invalid("must be an integer", errors);
        }
    }
    let scopes = spec.field("scopes");
    let mut seen: HashSet<&str> = HashSet::new();
    for scope in scopes.items() {
        if !SCOPES.contains(&scope.text()) {
            errors.push(FieldError::invalid(&scopes.path, scopes.value.clone(), "unsupported scope"));
        }
        seen.insert(scope.text());
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| seen.contains(scope)) {
            scopes.invalid("conflicting scopes", errors);
        }
    }
    for expression in spec.at("scopeSelector.matchExpressions").items() {
        let (scope, operator, values) =
            (expression.field("scopeName"), expression.field("operator"), expression.field("values"));
        if !SCOPES.contains(&scope.text()) {
            scope.invalid("unsupported scope", errors);
        }
        let bare = !matches!(scope.text(), "PriorityClass" | "VolumeAttributesClass");
        if bare && SCOPES.contains(&scope.text()) && operator.text() != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            operator.invalid(detail, errors);
        }
        match operator.text() {
            "In" | "NotIn" => {
                values.require_because(
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    errors,
                );
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                    values.invalid(detail, errors);
                }
            }
            _ => operator.invalid("not a valid selector operator", errors),
        }
    }
}

pub(super) fn resource_quota_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let set = |at: &At<'_>| {
        let mut scopes: Vec<String> = at.at("spec.scopes").items().map(|s| s.text().to_owned()).collect();
        scopes.sort();
        scopes
    };
    if set(&old) != set(&new) {
        new.at("spec.scopes").immutable(IMMUTABLE, errors);
    }
}

pub(super) fn limit_range(object: At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for limit in object.at("spec.limits").items() {
        let kind = limit.field("type");
        let standard = ["Pod", "Container", "PersistentVolumeClaim"].contains(&kind.text());
        if kind.is_empty() || (!standard && !kind.text().contains('/')) {
            errors.push(FieldError::invalid(
                &kind.path,
                kind.text(),
                "must be a standard limit type or fully qualified",
            ));
        }
        if !seen.insert(kind.text()) {
            errors.push(FieldError::duplicate(&kind.path, kind.value.clone()));
        }
        let named = |field: &str| limit.field(field);
        let (min, max, default, request, ratio) =
            (named("min"), named("max"), named("default"), named("defaultRequest"), named("maxLimitRequestRatio"));
        if kind.text() == "Pod" {
            for at in [&default, &request] {
                if !at.is_empty() {
                    at.forbid("may not be specified when `type` is 'Pod'", errors);
                }
            }
        }
        if kind.text() == "PersistentVolumeClaim" {
            let storage = |at: &At<'_>| at.value.get("storage").is_some();
            if !storage(&min) && !storage(&max) {
                let detail = "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(&limit.path, detail));
            }
        }
        order(&min, &max, "min value", "max value", errors);
        order(&min, &request, "min value", "default request value", errors);
        order(&request, &max, "default request value", "max value", errors);
        order(&request, &default, "default request value", "default limit value", errors);
        order(&min, &default, "min value", "default value", errors);
        order(&default, &max, "default value", "max value", errors);
        for (_, value) in ratio.entries() {
            let one = Quantity::parse("1");
            if Quantity::from_value(value.value) < one {
                value.invalid(format!("ratio {} is less than 1", plain(value.value)), errors);
            }
        }
    }
}

/// What is in both must not be smaller in the second.
fn order(low: &At<'_>, high: &At<'_>, low_name: &str, high_name: &str, errors: &mut Errors) {
    for (key, below) in low.entries() {
        let Some(above) = high.value.get(key) else { continue };
        if Quantity::from_value(below.value) > Quantity::from_value(above) {
            let (below_text, above_text) = (plain(below.value), plain(above));
            below.invalid(format!("{low_name} {below_text} is greater than {high_name} {above_text}"), errors);
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn budget(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let (least, most) = (spec.field("minAvailable"), spec.field("maxUnavailable"));
    if least.present() && most.present() {
        spec.invalid("minAvailable and maxUnavailable cannot be both set", errors);
    }
    count_or_percent(&least, errors);
    count_or_percent(&most, errors);
    workload::label_selector(&spec.field("selector"), errors);
    spec.field("unhealthyPodEvictionPolicy").one_of(&["AlwaysAllow", "IfHealthyBudget"], errors);
}

fn count_or_percent(at: &At<'_>, errors: &mut Errors) {
    match at.value {
        Value::String(text) => {
            match text.strip_suffix('%').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
                None => at.invalid(workload::BAD_PERCENT, errors),
                Some(number) if number.parse::<u32>().is_ok_and(|n| n > 100) => {
                    at.invalid("must not be greater than 100%", errors);
                }
                Some(_) => {}
            }
        }
        _ => at.at_least(0, errors),
    }
}

pub(super) fn autoscaler(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let (min, max) = (spec.field("minReplicas"), spec.field("maxReplicas"));
    if min.int().is_some_and(|n| n < 1) {
        min.invalid("must be greater than or equal to 1", errors);
    }
    let most = max.int().unwrap_or(0);
    if most < 1 {
        errors.push(FieldError::invalid(&max.path, most, "must be greater than 0"));
    }
    if min.int().is_some_and(|least| most < least) {
        errors.push(FieldError::invalid(&max.path, most, "must be greater than or equal to `minReplicas`"));
    }
    let target = spec.field("scaleTargetRef");
    for field in ["kind", "name"] {
        let at = target.field(field);
        if at.require(errors) {
            at.syntax(names::path_segment, errors);
        }
    }
    for metric in spec.field("metrics").items() {
        self::metric(&metric, errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.field("behavior").field(direction);
        if !rules.present() {
            continue;
        }
        let window = rules.field("stabilizationWindowSeconds");
        match window.int() {
            Some(n) if n < 0 => window.invalid("must be greater than or equal to zero", errors),
            Some(n) if n > 3600 => window.invalid("must be less than or equal to 3600", errors),
            _ => {}
        }
        rules.field("selectPolicy").one_of(&["Disabled", "Max", "Min"], errors);
        rules.field("policies").require_because("must specify at least one Policy", errors);
        for policy in rules.field("policies").items() {
            policy.field("type").one_of(&["Percent", "Pods"], errors);
            if policy.field("value").int().unwrap_or(0) <= 0 {
                policy.field("value").invalid_number("must be greater than zero", errors);
            }
            let period = policy.field("periodSeconds");
            match period.int().unwrap_or(0) {
                n if n <= 0 => period.invalid_number("must be greater than zero", errors),
                n if n > 1800 => period.invalid_number("must be less than or equal to 1800", errors),
                _ => {}
            }
        }
    }
}

/// The field that each type of metric fills in.
const METRICS: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric(metric: &At<'_>, errors: &mut Errors) {
    let kind = metric.field("type");
    if !kind.require_because("must specify a metric source type", errors) {
        return;
    }
    let Some((_, field)) = METRICS.iter().find(|(name, _)| *name == kind.text()) else {
        let known: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
        kind.one_of(&known, errors);
        return;
    };
    for (_, other) in METRICS.iter().filter(|(_, other)| other != field) {
        let at = metric.field(other);
        if at.present() {
            at.forbid("must populate the given metric source only", errors);
        }
    }
    let source = metric.field(field);
    if !source.present() {
        errors.push(FieldError::required(&source.path, "must populate information for the given metric source"));
        return;
    }
    if field.to_lowercase().ends_with("resource") {
        source.field("name").require_because("must specify a resource name", errors);
        if *field == "containerResource" {
            source.field("container").require_because("must specify a container", errors);
        }
    } else {
        source.at("metric.name").require_because("must specify a metric name", errors);
        workload::label_selector(&source.at("metric.selector"), errors);
    }
    if *field == "object" {
        for name in ["kind", "name"] {
            source.at("describedObject").field(name).require(errors);
        }
    }
    let target = source.field("target");
    let kind = target.field("type");
    if kind.require_because("must specify a metric target type", errors)
        && !matches!(kind.text(), "Utilization" | "Value" | "AverageValue")
    {
        kind.invalid("must be either Utilization, Value, or AverageValue", errors);
    }
    let utilization = target.field("averageUtilization");
    if utilization.int().is_some_and(|n| n < 1) {
        utilization.invalid("must be greater than 0", errors);
    }
    for field in ["value", "averageValue"] {
        let at = target.field(field);
        if at.present() && Quantity::from_value(at.value).is_none_or(|q| q.is_zero() || q.is_negative()) {
            at.invalid("must be positive", errors);
        }
    }
    let absent = |name: &str| !target.field(name).present();
    match *field {
        "resource" | "containerResource" => match (absent("averageUtilization"), absent("averageValue")) {
            (true, true) => {
                let detail = "must set either a target raw value or a target utilization";
                errors.push(FieldError::required(utilization.path, detail));
            }
            (false, false) => {
                let detail = "may not set both a target raw value and a target utilization";
                target.field("averageValue").forbid(detail, errors);
            }
            _ => {}
        },
        "pods" if absent("averageValue") => {
            let detail = "must specify a positive target averageValue";
            errors.push(FieldError::required(target.field("averageValue").path, detail));
        }
        "object" | "external" if absent("value") && absent("averageValue") => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(FieldError::required(target.field("averageValue").path, detail));
        }
        _ => {}
    }
}

pub(super) fn priority_class(object: At<'_>, errors: &mut Errors) {
    const SYSTEM: &[(&str, i64)] =
        &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    let (name, value) = (object.at("metadata.name"), object.field("value"));
    let known = SYSTEM.iter().any(|(n, v)| *n == name.text() && Some(*v) == value.int());
    if name.text().starts_with("system-") && !known {
        let detail = "priority class names with 'system-' prefix are reserved for system use only. error: ".to_owned()
            + &format!("{} is not a known system priority class", name.text());
        name.forbid(&detail, errors);
    } else if value.int().is_some_and(|n| n > MAX_USER_PRIORITY) && !known {
        let detail = format!("maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}");
        value.forbid(&detail, errors);
    }
    let policy = object.field("preemptionPolicy");
    if !matches!(policy.text(), "" | "PreemptLowerPriority" | "Never") {
        policy.one_of(&["PreemptLowerPriority", "Never"], errors);
    }
}

pub(super) fn priority_class_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    if old.field("value").int() != new.field("value").int() {
        new.field("value").forbid("may not be changed in an update.", errors);
    }
    let (before, after) = (old.field("preemptionPolicy"), new.field("preemptionPolicy"));
    if before.value != after.value {
        after.immutable(IMMUTABLE, errors);
    }
}

pub(super) fn runtime_class(object: At<'_>, errors: &mut Errors) {
    let handler = object.field("handler");
    for detail in names::dns_label(handler.text()) {
        errors.push(FieldError::invalid(&handler.path, handler.text(), detail));
    }
}

pub(super) fn runtime_class_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    if old.field("handler").value != new.field("handler").value {
        new.field("handler").immutable(IMMUTABLE, errors);
    }
}

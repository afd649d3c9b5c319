//! HorizontalPodAutoscalers: `v1` knows only CPU utilization and keeps the rest of `v2` in
//! annotations, as upstream does.

use serde_json::{Map, Value, json};

use super::rename;

type Fields = Map<String, Value>;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// `metric.name` and `metric.selector` in `v2`, per source in `v1`.
const METRIC_NAMES: [(&str, &str, &str); 3] = [
    ("pods", "metricName", "selector"),
    ("object", "metricName", "selector"),
    ("external", "metricName", "metricSelector"),
];

/// How `v1` spells the parts of a `v2` target and of a current value, per source.
const VALUES: [(&str, &str, &str, &str); 9] = [
    ("resource", "averageUtilization", "targetAverageUtilization", "currentAverageUtilization"),
    ("resource", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("containerResource", "averageUtilization", "targetAverageUtilization", "currentAverageUtilization"),
    ("containerResource", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("pods", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("object", "value", "targetValue", "currentValue"),
    ("object", "averageValue", "averageValue", "averageValue"),
    ("external", "value", "targetValue", "currentValue"),
    ("external", "averageValue", "targetAverageValue", "currentAverageValue"),
];

pub(super) fn to_v1(object: &mut Fields) {
    let mut kept = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = take_list(spec, "metrics");
        if let Some(at) = metrics.iter().position(is_cpu) {
            let percent = metrics.remove(at)["resource"]["target"]["averageUtilization"].take();
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        kept.push((METRICS, list(metrics.into_iter().map(|m| metric_to_v1(m, Part::Target)).collect())));
        kept.push((BEHAVIOR, spec.shift_remove("behavior")));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut metrics = take_list(status, "currentMetrics");
        let cpu =
            |m: &Value| m["resource"]["name"] == "cpu" && m["resource"]["current"]["averageUtilization"].is_number();
        if let Some(at) = metrics.iter().position(cpu) {
            let percent = metrics.remove(at)["resource"]["current"]["averageUtilization"].take();
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        kept.push((CURRENT_METRICS, list(metrics.into_iter().map(|m| metric_to_v1(m, Part::Current)).collect())));
        kept.push((CONDITIONS, list(take_list(status, "conditions"))));
    }
    let kept: Fields = kept.into_iter().filter_map(|(key, v)| Some((key.to_owned(), v?.to_string().into()))).collect();
    if kept.is_empty() {
        return;
    }
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    match metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        Some(annotations) => annotations.extend(kept),
        None => metadata["annotations"] = Value::Object(kept),
    }
}

pub(super) fn to_v2(object: &mut Fields) {
    let mut kept = |key: &str| -> Option<Value> {
        let metadata = object.get_mut("metadata")?.as_object_mut()?;
        let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
        let text = annotations.shift_remove(key);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
        serde_json::from_str(text?.as_str()?).ok()
    };
    let (metrics, behavior) = (items(kept(METRICS)), kept(BEHAVIOR));
    let (current, conditions) = (items(kept(CURRENT_METRICS)), kept(CONDITIONS));
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics: Vec<Value> = metrics.into_iter().map(|m| metric_to_v2(m, Part::Target)).collect();
        if let Some(percent) = spec.shift_remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        insert(spec, "metrics", list(metrics));
        insert(spec, "behavior", behavior);
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut current: Vec<Value> = current.into_iter().map(|m| metric_to_v2(m, Part::Current)).collect();
        if let Some(percent) = status.shift_remove("currentCPUUtilizationPercentage") {
            let cpu = json!({"name": "cpu", "current": {"averageUtilization": percent}});
            current.push(json!({"type": "Resource", "resource": cpu}));
        }
        insert(status, "currentMetrics", list(current));
        insert(status, "conditions", conditions);
    }
}

/// Which half of a metric is converted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Target,
    Current,
}

impl Part {
    fn field(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Current => "current",
        }
    }

    fn old_name(self, value: &(&str, &str, &'static str, &'static str)) -> &'static str {
        match self {
            Self::Target => value.2,
            Self::Current => value.3,
        }
    }
}

fn metric_to_v1(mut metric: Value, part: Part) -> Value {
    for (source, fields) in sources(&mut metric) {
        let target = fields.shift_remove(part.field()).unwrap_or_default();
        if let Some(object) = fields.shift_remove("describedObject") {
            fields.insert("target".into(), object);
        }
        for value in VALUES.iter().filter(|v| v.0 == source) {
            insert(fields, part.old_name(value), target.get(value.1).cloned());
        }
        let metric = fields.shift_remove("metric").unwrap_or_default();
        for (_, name, selector) in METRIC_NAMES.iter().filter(|m| m.0 == source) {
            insert(fields, name, metric.get("name").cloned());
            insert(fields, selector, metric.get("selector").cloned());
        }
    }
    metric
}

fn metric_to_v2(mut metric: Value, part: Part) -> Value {
    for (source, fields) in sources(&mut metric) {
        if source == "object" {
            rename(fields, "target", "describedObject");
        }
        let mut target = Fields::new();
        for value in VALUES.iter().filter(|v| v.0 == source) {
            insert(&mut target, value.1, fields.shift_remove(part.old_name(value)));
        }
        if part == Part::Target {
            let kinds = [("averageUtilization", "Utilization"), ("averageValue", "AverageValue"), ("value", "Value")];
            let kind = kinds.iter().find(|(field, _)| target.contains_key(*field)).map(|(_, kind)| json!(kind));
            insert(&mut target, "type", kind);
        }
        fields.insert(part.field().into(), Value::Object(target));
        for (_, name, selector) in METRIC_NAMES.iter().filter(|m| m.0 == source) {
            let mut metric = Fields::new();
            insert(&mut metric, "name", fields.shift_remove(*name));
            insert(&mut metric, "selector", fields.shift_remove(*selector));
            fields.insert("metric".into(), Value::Object(metric));
        }
    }
    metric
}

/// The one source that a metric has, by its field's name.
fn sources(metric: &mut Value) -> impl Iterator<Item = (String, &mut Fields)> {
    let fields = metric.as_object_mut().into_iter().flat_map(|m| m.iter_mut());
    fields.filter_map(|(source, value)| Some((source.clone(), value.as_object_mut()?)))
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_number()
}

fn take_list(fields: &mut Fields, name: &str) -> Vec<Value> {
    items(fields.shift_remove(name))
}

fn items(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn list(items: Vec<Value>) -> Option<Value> {
    (!items.is_empty()).then_some(Value::Array(items))
}

fn insert(fields: &mut Fields, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value);
    }
}

//! LimitRanger: default requests and limits for containers, and the least and most that a
//! container, pod or claim may ask for (upstream's `plugin/pkg/admission/limitranger`).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_api::{quantity::Quantity, status::Status};

use super::{containers, forbid, list, list_mut, text};
use crate::{auth::view::View, context::Admit};

type Amounts = BTreeMap<String, f64>;

fn items(view: &dyn View, namespace: &str) -> Vec<Value> {
    view.list("", "limitranges", namespace)
        .iter()
        .flat_map(|range| list(&range.value()["spec"]["limits"]).to_vec())
        .collect()
}

/// Fills in requests and limits that containers leave out.
pub(super) fn defaults(view: &dyn View, admit: &Admit<'_>, pod: &mut Value) {
    let mut said = Vec::new();
    for item in items(view, admit.attributes.namespace) {
        if text(&item, "type") != "Container" {
            continue;
        }
        let limits = merged(&[&item["default"], &item["max"]]);
        let requests = merged(&[&item["defaultRequest"], &item["default"], &item["max"], &item["min"]]);
        for kind in ["initContainers", "containers"] {
            let what = if kind == "containers" { "container" } else { "init container" };
            for container in list_mut(&mut pod["spec"], kind) {
                let name = text(container, "name").to_owned();
                // A request that is left out follows the limit that is given.
                let own = merged(&[&container["resources"]["limits"]]);
                let requests = merged(&[&json!(own), &json!(requests)]);
                for (field, word, from) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                    let set = fill(container, field, from);
                    if !set.is_empty() {
                        said.push(format!("{} {word} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !said.is_empty() {
        let note = format!("LimitRanger plugin set: {}", said.join("; "));
        pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"] = json!(note);
    }
}

/// The first value of each resource.
fn merged(sources: &[&Value]) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for (key, value) in sources.iter().filter_map(|s| s.as_object()).flatten() {
        out.entry(key.clone()).or_insert_with(|| value.clone());
    }
    out
}

fn fill(container: &mut Value, field: &str, from: &BTreeMap<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    if from.is_empty() {
        return set;
    }
    let resources = &mut container["resources"];
    for (key, value) in from {
        if resources[field][key].is_null() {
            resources[field][key] = value.clone();
            set.push(key.clone());
        }
    }
    set
}

pub(super) fn check_pod(view: &dyn View, admit: &Admit<'_>, pod: &Value) -> Result<(), Status> {
    let mut errors = Vec::new();
    for item in items(view, admit.attributes.namespace) {
        match text(&item, "type") {
            "Container" => {
                for (_, container) in containers(&pod["spec"]) {
                    let (requests, limits) = amounts(&container["resources"]);
                    compare(&item, "Container", &requests, &limits, &mut errors);
                }
            }
            "Pod" => {
                let (requests, limits) = pod_total(&pod["spec"]);
                compare(&item, "Pod", &requests, &limits, &mut errors);
            }
            _ => {}
        }
    }
    refuse(admit, pod, errors)
}

pub(super) fn check_claim(view: &dyn View, admit: &Admit<'_>, claim: &Value) -> Result<(), Status> {
    let mut errors = Vec::new();
    for item in items(view, admit.attributes.namespace) {
        if text(&item, "type") == "PersistentVolumeClaim" {
            let (requests, _) = amounts(&claim["spec"]["resources"]);
            compare(&item, "PersistentVolumeClaim", &requests, &requests, &mut errors);
        }
    }
    refuse(admit, claim, errors)
}

fn refuse(admit: &Admit<'_>, object: &Value, errors: Vec<String>) -> Result<(), Status> {
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(forbid(admit, Some(object), one)),
        many => Err(forbid(admit, Some(object), format!("[{}]", many.join(", ")))),
    }
}

/// Requests and limits as numbers.
fn amounts(resources: &Value) -> (Amounts, Amounts) {
    let of = |field: &str| -> Amounts {
        resources[field]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), number(value)?)))
            .collect()
    };
    (of("requests"), of("limits"))
}

/// A quantity as a float, for sums and ratios; what a double cannot tell apart counts as equal.
fn number(value: &Value) -> Option<f64> {
    Quantity::from_value(value)?;
    let text = plain(value);
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, suffix) = text.split_at(split);
    let power = |suffix: &str| "kMGTPE".find(suffix).map(|at| i32::try_from(at).unwrap_or(0) + 1);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "Ki" => 1024.0,
        _ => match suffix.strip_suffix('i') {
            Some(binary) => 1024f64.powi(power(binary)?),
            None => 1000f64.powi(power(suffix)?),
        },
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// The sum over containers; one init container counts when it wants more than all of them.
fn pod_total(spec: &Value) -> (Amounts, Amounts) {
    let mut total = (Amounts::new(), Amounts::new());
    for container in list(&spec["containers"]) {
        let (requests, limits) = amounts(&container["resources"]);
        for (into, from) in [(&mut total.0, requests), (&mut total.1, limits)] {
            for (key, value) in from {
                *into.entry(key).or_default() += value;
            }
        }
    }
    for container in list(&spec["initContainers"]) {
        let (requests, limits) = amounts(&container["resources"]);
        let sidecar = container["restartPolicy"] == "Always";
        for (into, from) in [(&mut total.0, requests), (&mut total.1, limits)] {
            for (key, value) in from {
                let held = into.entry(key).or_default();
                *held = if sidecar { *held + value } else { held.max(value) };
            }
        }
    }
    total
}

fn compare(item: &Value, what: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (key, least) in item["min"].as_object().into_iter().flatten() {
        let Some(bound) = number(least) else { continue };
        let least = plain(least);
        match (requests.get(key), limits.get(key)) {
            (Some(&r), _) if r < bound => {
                errors.push(format!("minimum {key} usage per {what} is {least}, but request is {}", show(r)))
            }
            (None, _) => errors.push(format!("minimum {key} usage per {what} is {least}.  No request is specified")),
            (_, Some(&l)) if l < bound => {
                errors.push(format!("minimum {key} usage per {what} is {least}, but limit is {}", show(l)))
            }
            _ => {}
        }
    }
    for (key, most) in item["max"].as_object().into_iter().flatten() {
        let Some(bound) = number(most) else { continue };
        let most = plain(most);
        match (requests.get(key), limits.get(key)) {
            (_, Some(&l)) if l > bound => {
                errors.push(format!("maximum {key} usage per {what} is {most}, but limit is {}", show(l)))
            }
            (_, None) => errors.push(format!("maximum {key} usage per {what} is {most}.  No limit is specified")),
            (Some(&r), _) if r > bound => {
                errors.push(format!("maximum {key} usage per {what} is {most}, but request is {}", show(r)))
            }
            _ => {}
        }
    }
    for (key, most) in item["maxLimitRequestRatio"].as_object().into_iter().flatten() {
        let (Some(bound), Some(&r), Some(&l)) = (number(most), requests.get(key), limits.get(key)) else {
            continue;
        };
        if r > 0.0 && l / r > bound {
            errors.push(format!(
                "{key} max limit to request ratio per {what} is {}, but provided ratio is {:.6}",
                plain(most),
                l / r
            ));
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `500m` below one and for fractions, else the plain number.
fn show(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{}m", (value * 1000.0).round()) }
}

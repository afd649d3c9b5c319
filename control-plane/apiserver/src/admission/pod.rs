//! Priority, DefaultTolerationSeconds and RuntimeClass: what a pod gets from cluster-wide classes.

use serde_json::{Value, json};
use sluice_api::status::Status;

use super::{forbid, list, text};
use crate::{
    auth::view::View,
    context::{Admit, Operation},
};

const SCHEDULING: &str = "scheduling.k8s.io";
const PREEMPT: &str = "PreemptLowerPriority";

/// Resolves `priorityClassName` into the priority and preemption policy.
pub(super) fn priority(view: &dyn View, admit: &Admit<'_>, pod: &mut Value) -> Result<(), Status> {
    let name = text(&pod["spec"], "priorityClassName").to_owned();
    let class = if name.is_empty() {
        default_class(view)
    } else {
        let found = view.get(SCHEDULING, "priorityclasses", "", &name);
        let Some(class) = found else {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(forbid(admit, Some(pod), why));
        };
        Some(class.value())
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or(PREEMPT);
    let spec = &pod["spec"];
    if let Some(given) = spec["priority"].as_i64()
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbid(admit, Some(pod), why));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str()
        && given != policy
    {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbid(admit, Some(pod), why));
    }
    let policy = json!(policy);
    if let Some(class) = &class {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    pod["spec"]["priority"] = json!(value);
    pod["spec"]["preemptionPolicy"] = policy;
    Ok(())
}

/// The class marked as default; of several the one with the lowest value, as upstream picks.
fn default_class(view: &dyn View) -> Option<Value> {
    view.list(SCHEDULING, "priorityclasses", "")
        .iter()
        .map(|class| class.value())
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64())
}

/// There is one default PriorityClass.
pub(super) fn check_class(view: &dyn View, admit: &Admit<'_>, class: &Value) -> Result<(), Status> {
    if class["globalDefault"] != true || admit.operation == Operation::Delete {
        return Ok(());
    }
    let name = text(&class["metadata"], "name");
    match default_class(view) {
        Some(other) if text(&other["metadata"], "name") != name => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(&other["metadata"], "name")
            );
            Err(forbid(admit, Some(class), why))
        }
        _ => Ok(()),
    }
}

/// 300 s on a node that is not ready or unreachable, unless the pod says otherwise.
pub(super) fn tolerations(pod: &mut Value) {
    const SECONDS: i64 = 300;
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = list(&pod["spec"]["tolerations"]).iter().any(|t| {
            matches!(text(t, "key"), k if k == key || k.is_empty()) && matches!(text(t, "effect"), "NoExecute" | "")
        });
        if covered {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
        match &mut pod["spec"]["tolerations"] {
            Value::Array(tolerations) => tolerations.push(toleration),
            other => *other = json!([toleration]),
        }
    }
}

/// Overhead, node selector and tolerations of the pod's RuntimeClass.
pub(super) fn runtime_class(view: &dyn View, admit: &Admit<'_>, pod: &mut Value) -> Result<(), Status> {
    let name = text(&pod["spec"], "runtimeClassName").to_owned();
    if name.is_empty() {
        if !pod["spec"]["overhead"].is_null() && pod["spec"]["overhead"] != json!({}) {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(forbid(admit, Some(pod), why));
        }
        return Ok(());
    }
    let Some(class) = view.get("node.k8s.io", "runtimeclasses", "", &name) else {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        return Err(forbid(admit, Some(pod), why));
    };
    let class = class.value();
    let fixed = &class["overhead"]["podFixed"];
    if !fixed.is_null() {
        let given = &pod["spec"]["overhead"];
        if !given.is_null() && given != fixed {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(forbid(admit, Some(pod), why));
        }
        pod["spec"]["overhead"] = fixed.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let held = &pod["spec"]["nodeSelector"][key];
        if !held.is_null() && held != value {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {held}"
            );
            return Err(forbid(admit, Some(pod), why));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    for toleration in list(&class["scheduling"]["tolerations"]) {
        let tolerations = &mut pod["spec"]["tolerations"];
        match tolerations {
            Value::Array(held) if held.contains(toleration) => {}
            Value::Array(held) => held.push(toleration.clone()),
            other => *other = json!([toleration]),
        }
    }
    Ok(())
}

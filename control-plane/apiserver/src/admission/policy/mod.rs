//! ValidatingAdmissionPolicies and MutatingAdmissionPolicies: CEL expressions over a write, bound to
//! what they are about and to parameters by their bindings. Source: apiserver's
//! `pkg/admission/plugin/policy`.

mod authorizer;
mod frame;
mod matching;

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_api::{
    patch, schema,
    status::{Cause, Status},
};

pub(super) use self::frame::{Frame, request};
use super::{canonical, forbid, list, text};
use crate::{auth::view::View, authz::Authorizer, context::Admit};

const GROUP: &str = "admissionregistration.k8s.io";

/// A policy with one of its bindings and the parameters that this names.
struct Bound {
    policy: Arc<Value>,
    policy_name: String,
    binding: Value,
    binding_name: String,
    /// One evaluation for each; a policy without parameters has one with none.
    params: Result<Vec<Option<Value>>, String>,
}

/// The policies of a kind that are about this write, in the order of their names.
fn bound(view: &dyn View, admit: &Admit<'_>, object: Option<&Value>, policies: &str, bindings: &str) -> Vec<Bound> {
    // A policy that cannot be written because of itself could never be mended.
    if admit.attributes.group == GROUP || view.stamp(GROUP, bindings).0 == 0 {
        return Vec::new();
    }
    let mut out = Vec::new();
    for binding in view.list(GROUP, bindings, "") {
        let value = binding.value();
        let name = text(&value["spec"], "policyName").to_owned();
        let Some(policy) = view.get(GROUP, policies, "", &name).map(|p| Arc::new(p.value())) else { continue };
        let constraints = &policy["spec"]["matchConstraints"];
        let resources = &value["spec"]["matchResources"];
        let about = matching::matches(view, admit, object, constraints, true)
            && matching::matches(view, admit, object, resources, false);
        if about {
            let params = matching::params(view, admit, &policy["spec"]["paramKind"], &value["spec"]["paramRef"]);
            let binding_name = binding.name.to_string();
            out.push(Bound { policy, policy_name: name, binding: value, binding_name, params });
        }
    }
    out.sort_by(|a, b| (&a.policy_name, &a.binding_name).cmp(&(&b.policy_name, &b.binding_name)));
    out
}

/// One validation that did not hold.
struct Failure {
    message: String,
    reason: String,
}

/// Lets every validating policy judge the write; returns the warnings of those that only warn.
pub(super) fn validate(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let mut warnings = Vec::new();
    let bound = bound(view, admit, object, "validatingadmissionpolicies", "validatingadmissionpolicybindings");
    if bound.is_empty() {
        return Ok(warnings);
    }
    let frame = Frame::new(view, authorizer, admit, object);
    for bound in &bound {
        let acts = |action: &str| list(&bound.binding["spec"]["validationActions"]).iter().any(|a| a == action);
        for failure in failures(&frame, bound) {
            if acts("Warn") {
                warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                    bound.policy_name, bound.binding_name, failure.message
                ));
            }
            if acts("Audit") {
                tracing::info!(
                    policy = bound.policy_name,
                    binding = bound.binding_name,
                    message = failure.message,
                    "a write breaks an admission policy"
                );
            }
            if acts("Deny") {
                return Err(denied(admit, object, bound, &failure));
            }
        }
    }
    Ok(warnings)
}

fn denied(admit: &Admit<'_>, object: Option<&Value>, bound: &Bound, failure: &Failure) -> Status {
    let message = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        bound.policy_name, bound.binding_name, failure.message
    );
    let mut status = forbid(admit, object, &message);
    let reason = if failure.reason.is_empty() { "Invalid" } else { &failure.reason };
    status.code = match reason {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = reason.to_owned();
    status.details.get_or_insert_default().causes.push(Cause { message, ..Cause::default() });
    status
}

/// Every validation of the policy that does not hold. What cannot be evaluated counts as one, unless
/// the policy's `failurePolicy` is to go on.
fn failures(frame: &Frame<'_>, bound: &Bound) -> Vec<Failure> {
    let spec = &bound.policy["spec"];
    let fails_open = text(spec, "failurePolicy") == "Ignore";
    let failure = |message: String| Failure { message, reason: String::new() };
    let params = match &bound.params {
        Ok(params) => params,
        Err(_) if fails_open => return Vec::new(),
        Err(why) => return vec![failure(format!("failed to configure binding: {why}"))],
    };
    let mut out = Vec::new();
    for params in params {
        let given: Vec<(&str, &Value)> = params.iter().map(|p| ("params", p)).collect();
        match frame.conditions(&spec["matchConditions"], &given) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) if fails_open => continue,
            Err(why) => {
                out.push(failure(why));
                continue;
            }
        }
        for broken in frame.validations(spec, &given) {
            match broken {
                Ok((message, reason)) => out.push(Failure { message, reason }),
                Err(_) if fails_open => {}
                Err(why) => out.push(failure(why)),
            }
        }
    }
    out
}

/// Lets every mutating policy change the object.
pub(super) fn mutate(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: &mut Value,
) -> Result<(), Status> {
    change(view, authorizer, admit, object, false)
}

/// The policies that want to see what others changed after them.
pub(super) fn mutate_again(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: &mut Value,
) -> Result<(), Status> {
    change(view, authorizer, admit, object, true)
}

fn change(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: &mut Value,
    again: bool,
) -> Result<(), Status> {
    let found = bound(view, admit, Some(object), "mutatingadmissionpolicies", "mutatingadmissionpolicybindings");
    let wants = |bound: &&Bound| !again || text(&bound.policy["spec"], "reinvocationPolicy") == "IfNeeded";
    for bound in found.iter().filter(wants) {
        let spec = &bound.policy["spec"];
        match apply(view, authorizer, admit, object, bound) {
            Ok(Some(changed)) if changed != *object => {
                *object = changed;
                canonical(admit, object)?;
            }
            Ok(_) => {}
            Err(why) if text(spec, "failurePolicy") == "Ignore" => {
                tracing::warn!(
                    policy = bound.policy_name,
                    why,
                    "a mutating admission policy failed and is passed over"
                );
            }
            Err(why) => {
                let message = format!(
                    "policy '{}' with binding '{}' denied request: {why}",
                    bound.policy_name, bound.binding_name
                );
                let mut status = forbid(admit, Some(object), &message);
                (status.code, status.reason) = (422, "Invalid".to_owned());
                return Err(status);
            }
        }
    }
    Ok(())
}

/// The object after a policy's mutations; `None` where its conditions do not hold.
fn apply(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: &Value,
    bound: &Bound,
) -> Result<Option<Value>, String> {
    let spec = &bound.policy["spec"];
    let mut current = object.clone();
    let params = bound.params.as_ref().map_err(|why| format!("failed to configure binding: {why}"))?;
    let mut changed = false;
    for params in params {
        let given: Vec<(&str, &Value)> = params.iter().map(|p| ("params", p)).collect();
        if !Frame::new(view, authorizer, admit, Some(&current)).conditions(&spec["matchConditions"], &given)? {
            continue;
        }
        for mutation in list(&spec["mutations"]) {
            let frame = Frame::new(view, authorizer, admit, Some(&current));
            let kind = text(mutation, "patchType");
            let place = if kind == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
            let made = frame.value(spec, text(&mutation[place], "expression"), &given)?;
            current = patched(admit, &current, kind, made)?;
            changed = true;
        }
    }
    Ok(changed.then_some(current))
}

fn patched(admit: &Admit<'_>, current: &Value, kind: &str, made: Value) -> Result<Value, String> {
    if kind == "JSONPatch" {
        let operations: Vec<Value> = list(&made).iter().filter(|o| !o.is_null()).cloned().collect();
        return patch::json(current, json!(operations)).map_err(|status| status.message);
    }
    let typed = schema::builtin().get(&admit.resource.schema);
    if admit.resource.custom.is_some() {
        return patch::merge(current, &made).map_err(|status| status.message);
    }
    patch::strategic(typed, current, made).map_err(|status| status.message)
}

#[cfg(test)]
mod tests;

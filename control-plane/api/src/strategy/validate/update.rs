//! What an update may not change.

use serde_json::Value;

use super::{Errors, cursor::At};
use crate::status::FieldError;

const IMMUTABLE: &str = "field is immutable";

fn same(old: &At<'_>, new: &At<'_>, detail: &str, errors: &mut Errors) {
    if old.value != new.value {
        new.immutable(detail, errors);
    }
}

pub(super) fn selector(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    same(&old.at("spec.selector"), &new.at("spec.selector"), IMMUTABLE, errors);
}

pub(super) fn role_ref(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    same(&old.field("roleRef"), &new.field("roleRef"), "cannot change roleRef", errors);
}

pub(super) fn endpoint_slice(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    same(&old.field("addressType"), &new.field("addressType"), IMMUTABLE, errors);
}

pub(super) fn stateful_set(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    const MAY: [&str; 8] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "volumeClaimTemplates",
    ];
    let rest = |spec: &Value| {
        let fields = spec.as_object().into_iter().flatten();
        let mut rest: Vec<(String, Value)> =
            fields.filter(|(k, _)| !MAY[..7].contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect();
        rest.sort_by(|a, b| a.0.cmp(&b.0));
        rest
    };
    if rest(old.field("spec").value) != rest(new.field("spec").value) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        new.field("spec").forbid(detail, errors);
    }
}

/// `immutable: true` of ConfigMaps (and Secrets) keeps their data for ever.
pub(super) fn immutable_data(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    if !old.field("immutable").is_true() {
        return;
    }
    if !new.field("immutable").is_true() {
        new.field("immutable").forbid("field is immutable when `immutable` is set", errors);
    }
    for field in ["data", "binaryData"] {
        if old.field(field).value != new.field(field).value {
            new.field(field).forbid("field is immutable when `immutable` is set", errors);
        }
    }
}

pub(super) fn secret(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    same(&old.field("type"), &new.field("type"), IMMUTABLE, errors);
    immutable_data(old, new, errors);
}

pub(super) fn node(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let (before, after) = (old.at("spec.podCIDRs"), new.at("spec.podCIDRs"));
    if !before.is_empty() && before.value != after.value {
        after.forbid("node updates may not change podCIDR except from \"\" to valid", errors);
    }
    let (before, after) = (old.at("spec.providerID"), new.at("spec.providerID"));
    if !before.is_empty() && before.value != after.value {
        after.forbid("node updates may not change providerID except from \"\" to valid", errors);
    }
}

/// A Service keeps its first address and family; it may gain a second one, and lose it when its policy says so.
pub(super) fn service(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let external = |object: &At<'_>| object.at("spec.type").text() == "ExternalName";
    let headless = |object: &At<'_>| object.at("spec.clusterIP").text() == "None";
    if external(&old) || external(&new) || headless(&old) && headless(&new) {
        return;
    }
    pair(&old, &new, ("clusterIPs", "clusterIP"), errors);
    if headless(&old) == headless(&new) {
        pair(&old, &new, ("ipFamilies", "ipFamily"), errors);
    }
}

/// Upstream's `validateUpgradeDowngrade…` of one list.
fn pair(old: &At<'_>, new: &At<'_>, (field, one): (&str, &str), errors: &mut Errors) {
    let (before, after) = (old.field("spec").field(field), new.field("spec").field(field));
    let (had, has): (Vec<_>, Vec<_>) = (before.items().collect(), after.items().collect());
    // The whole list is told, as upstream does.
    let wrong = |at: usize, detail: &str| {
        FieldError::invalid(
            format!("{}[{at}]", after.path),
            Value::from_iter(has.iter().map(|item| item.value.clone())),
            detail,
        )
    };
    let kept = if had.len() == has.len() { had.len() } else { had.len().min(has.len()).min(1) };
    for at in (0..kept).filter(|at| had[*at].value != has[*at].value) {
        errors.push(wrong(at, "may not change once set"));
    }
    if has.is_empty() && !had.is_empty() {
        errors.push(wrong(0, &format!("primary {one} can not be unset")));
    }
    let policy = new.at("spec.ipFamilyPolicy");
    if had.len() > 1 && has.len() == 1 && policy.text() != "SingleStack" {
        policy.immutable(format!("must be set to 'SingleStack' when releasing the secondary {one}"), errors);
    }
}

/// A pod's specification is fixed but for its images, its deadline, a shorter grace, more
/// tolerations and fewer scheduling gates.
pub(super) fn pod(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let mut allowed = new.field("spec").value.clone();
    let before = old.field("spec").value;
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> =
            old.field("spec").field(list).items().map(|c| c.field("image").value.clone()).collect();
        let now = allowed.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, image) in now.zip(images) {
            if let Some(container) = container.as_object_mut() {
                container.insert("image".into(), image);
            }
        }
    }
    let deadline = (old.at("spec.activeDeadlineSeconds").int(), new.at("spec.activeDeadlineSeconds").int());
    let deadline_allowed = match deadline {
        (None, Some(_)) => true,
        (Some(before), Some(after)) => after <= before,
        _ => false,
    };
    let tolerations = |object: &At<'_>| object.at("spec.tolerations").value.as_array().cloned().unwrap_or_default();
    let more_tolerations = tolerations(&old).iter().all(|t| tolerations(&new).contains(t));
    let gates = |object: &At<'_>| object.at("spec.schedulingGates").value.as_array().cloned().unwrap_or_default();
    let fewer_gates = gates(&new).iter().all(|gate| gates(&old).contains(gate));
    let unscheduled = old.at("spec.nodeName").is_empty();
    for (field, may) in [
        ("activeDeadlineSeconds", deadline_allowed),
        ("tolerations", more_tolerations),
        ("schedulingGates", fewer_gates),
        ("terminationGracePeriodSeconds", old.at("spec.terminationGracePeriodSeconds").int().is_some_and(|s| s < 0)),
        // A gated pod may still be steered.
        ("nodeSelector", unscheduled && !gates(&old).is_empty()),
        ("affinity", unscheduled && !gates(&old).is_empty()),
    ] {
        if may && let Some(spec) = allowed.as_object_mut() {
            match before.get(field) {
                Some(value) => spec.insert(field.into(), value.clone()),
                None => spec.remove(field),
            };
        }
    }
    if without_nulls(before) != without_nulls(&allowed) {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                      `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                      existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                      previously negative)";
        new.field("spec").forbid(detail, errors);
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// One field that no update changes.
pub(super) fn fixed(old: At<'_>, new: At<'_>, path: &str, errors: &mut Errors) {
    same(&old.at(path), &new.at(path), IMMUTABLE, errors);
}

//! Controllers of pods: selectors that match their templates, replica counts, update strategies.

use serde_json::Value;

use super::{Errors, cursor::At, meta, pod};
use crate::{names, status::FieldError};

/// What is said of a count that is neither a number nor a percentage.
pub(super) const BAD_PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' \
                                      (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

pub(super) fn deployment(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    selected(&spec, "deployment", errors);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        spec.field(field).at_least(0, errors);
    }
    let (deadline, ready) = (spec.field("progressDeadlineSeconds"), spec.field("minReadySeconds"));
    if let (Some(seconds), ready) = (deadline.int(), ready.int().unwrap_or(0))
        && seconds <= ready
    {
        deadline.invalid("must be greater than minReadySeconds", errors);
    }
    let strategy = spec.field("strategy");
    strategy.field("type").one_of(&["Recreate", "RollingUpdate"], errors);
    let rolling = strategy.field("rollingUpdate");
    if strategy.field("type").text() == "Recreate" && rolling.present() {
        rolling.forbid("may not be specified when strategy `type` is 'Recreate'", errors);
    }
    self::rolling(&rolling, errors);
}

pub(super) fn replica_set(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    selected(&spec, "deployment", errors);
    for field in ["replicas", "minReadySeconds"] {
        spec.field(field).at_least(0, errors);
    }
}

pub(super) fn replication_controller(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    spec.field("replicas").at_least(0, errors);
    spec.field("selector").require(errors);
    if spec.field("template").present() {
        pod::template(spec.field("template"), errors);
        restart(&spec, &["Always"], errors);
        let labels = spec.at("template.metadata.labels");
        let found = |key: &str| labels.value.get(key);
        if spec.field("selector").entries().any(|(key, value)| found(key) != Some(value.value)) {
            labels.invalid("`selector` does not match template `labels`", errors);
        }
    } else {
        errors.push(FieldError::required(spec.field("template").path, ""));
    }
}

pub(super) fn stateful_set(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    selected(&spec, "statefulset", errors);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        spec.field(field).at_least(0, errors);
    }
    spec.at("ordinals.start").at_least(0, errors);
    for policy in ["whenDeleted", "whenScaled"] {
        spec.at("persistentVolumeClaimRetentionPolicy").field(policy).one_of(&["Delete", "Retain"], errors);
    }
    spec.field("podManagementPolicy").one_of(&["OrderedReady", "Parallel"], errors);
    spec.at("updateStrategy.type").one_of(&["RollingUpdate", "OnDelete"], errors);
    spec.at("updateStrategy.rollingUpdate.partition").at_least(0, errors);
}

pub(super) fn daemon_set(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    selected(&spec, "daemonset", errors);
    spec.field("minReadySeconds").at_least(0, errors);
    spec.at("updateStrategy.type").one_of(&["RollingUpdate", "OnDelete"], errors);
    rolling(&spec.at("updateStrategy.rollingUpdate"), errors);
}

/// The selector is there, is valid, selects something and matches the template's labels.
fn selected(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let selector = spec.field("selector");
    if !selector.present() {
        errors.push(FieldError::required(&selector.path, ""));
    } else if selector.is_empty()
        || (selector.field("matchLabels").is_empty() && selector.field("matchExpressions").is_empty())
    {
        selector.invalid(format!("empty selector is invalid for {kind}"), errors);
    }
    label_selector(&selector, errors);
    let labels = spec.at("template.metadata.labels");
    if selector.present() && !matches(&selector, labels.value) {
        errors.push(FieldError::invalid(
            &labels.path,
            labels.value.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod::template(spec.field("template"), errors);
    restart(spec, &["Always"], errors);
}

/// The syntax of a `LabelSelector`.
pub(super) fn label_selector(selector: &At<'_>, errors: &mut Errors) {
    meta::labels(selector.field("matchLabels"), errors);
    for expression in selector.field("matchExpressions").items() {
        expression.field("key").syntax(names::qualified_name, errors);
        let (operator, values) = (expression.field("operator"), expression.field("values"));
        match operator.text() {
            "In" | "NotIn" => {
                values.require_because("must be specified when `operator` is 'In' or 'NotIn'", errors);
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    values.forbid("may not be specified when `operator` is 'Exists' or 'DoesNotExist'", errors);
                }
            }
            _ => operator.invalid("not a valid selector operator", errors),
        }
    }
}

pub(super) fn matches(selector: &At<'_>, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let all = selector.field("matchLabels").entries().all(|(key, value)| label(key) == Some(value.text()));
    all && selector.field("matchExpressions").items().all(|expression| {
        let found = label(expression.field("key").text());
        let listed = expression.field("values").items().any(|value| Some(value.text()) == found);
        match expression.field("operator").text() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            _ => found.is_none(),
        }
    })
}

fn restart(spec: &At<'_>, policies: &[&str], errors: &mut Errors) {
    spec.at("template.spec.restartPolicy").one_of(policies, errors);
    let deadline = spec.at("template.spec.activeDeadlineSeconds");
    if deadline.present() {
        deadline.forbid("activeDeadlineSeconds in ReplicaSet is not Supported", errors);
    }
}

/// `maxSurge`, `maxUnavailable`: counts or percentages, not both zero.
fn rolling(at: &At<'_>, errors: &mut Errors) {
    if !at.present() {
        return;
    }
    let mut zeros = 0;
    for field in ["maxUnavailable", "maxSurge"] {
        let value = at.field(field);
        match value.value {
            Value::String(text) => match text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok()) {
                None => value.invalid(BAD_PERCENT, errors),
                Some(percent) if percent > 100 && field == "maxUnavailable" => {
                    value.invalid("must not be greater than 100%", errors);
                }
                Some(percent) => zeros += usize::from(percent == 0),
            },
            Value::Number(_) => {
                value.at_least(0, errors);
                zeros += usize::from(value.int() == Some(0));
            }
            _ => zeros += 1,
        }
    }
    if zeros == 2 {
        at.field("maxUnavailable").invalid("may not be 0 when `maxSurge` is 0", errors);
    }
}

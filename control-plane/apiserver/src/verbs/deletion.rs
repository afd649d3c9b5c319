//! How an object goes: DeleteOptions, grace, finalizers and propagation, by the rules of upstream's
//! `registry.Store`. Pure.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sluice_api::{
    status::{FieldError, Status},
    wire,
};

use crate::{body, meta};

/// `metav1.DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl Propagation {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "Orphan" => Self::Orphan,
            "Background" => Self::Background,
            "Foreground" => Self::Foreground,
            _ => return None,
        })
    }
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

impl DeleteOptions {
    /// From a decoded body (null for none).
    pub(crate) fn parse(body: &Value) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let propagation = match body["propagationPolicy"].as_str() {
            None | Some("") => None,
            Some(text) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                let parsed = Propagation::parse(text);
                if parsed.is_none() {
                    errors.push(FieldError::not_supported("propagationPolicy", text, &known));
                }
                parsed
            }
        };
        let orphan_dependents = body["orphanDependents"].as_bool();
        if orphan_dependents.is_some() && propagation.is_some() {
            errors.push(FieldError::invalid(
                "propagationPolicy",
                body["propagationPolicy"].clone(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        let dry_run = dry_run(meta::strings(&body["dryRun"]).into_iter(), &mut errors);
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", errors));
        }
        let text = |at: &Value| at.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64(),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            orphan_dependents,
            propagation,
            dry_run,
        })
    }
}

/// Whether the write is only to be tried. Anything but `All` is refused.
pub(crate) fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let mut dry = false;
    for value in values.filter(|v| !v.is_empty()) {
        dry = true;
        if value != "All" {
            errors.push(FieldError::not_supported("dryRun", value, &["All"]));
        }
    }
    dry
}

/// What is to be done with one object.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// Gone at once.
    Remove,
    /// Written back with these changes, to be removed by whoever it waits for.
    Update(Value),
    /// It is being deleted already and nothing changes.
    Pending,
}

/// Decides how `old` goes. `grace` is the kind's own answer to how long it may take; `None` for
/// kinds without graceful deletion.
pub(super) fn plan(
    old: &Value,
    options: &DeleteOptions,
    grace: Option<i64>,
    orphans_by_default: bool,
    collected: bool,
    now: Timestamp,
) -> Plan {
    let mut new = old.clone();
    let mut graceful = false;
    if let Some(own) = grace {
        match (meta::deleting(old), old["metadata"]["deletionGracePeriodSeconds"].as_i64()) {
            (true, None | Some(0)) => {}
            (true, Some(running)) => match options.grace {
                // Only a shorter time may be given.
                Some(shorter) if shorter < running => {
                    set_deadline(&mut new, running, shorter);
                    graceful = true;
                }
                _ => return Plan::Pending,
            },
            (false, _) => {
                set_deletion(&mut new, now, own);
                graceful = true;
            }
        }
    }
    if collected {
        let finalizers = garbage_finalizers(old, options, orphans_by_default);
        if finalizers != meta::finalizers(old) {
            meta::set_finalizers(&mut new, &finalizers);
        }
    }
    if !meta::finalizers(&new).is_empty() {
        if !graceful && !meta::deleting(&new) {
            set_deletion(&mut new, now, 0);
        }
    } else if !graceful || new["metadata"]["deletionGracePeriodSeconds"].as_i64() == Some(0) {
        return Plan::Remove;
    }
    if new == *old { Plan::Pending } else { Plan::Update(new) }
}

fn set_deletion(object: &mut Value, now: Timestamp, grace: i64) {
    let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    meta::set(object, "deletionTimestamp", meta::time(at));
    meta::set(object, "deletionGracePeriodSeconds", grace);
    if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
        meta::set(object, "generation", generation + 1);
    }
}

/// Moves the deletion's time to fit a shorter grace.
fn set_deadline(object: &mut Value, running: i64, shorter: i64) {
    let at = meta::text(object, "deletionTimestamp").parse::<Timestamp>().ok();
    if let Some(at) = at.and_then(|at| at.checked_add(SignedDuration::from_secs(shorter - running)).ok()) {
        meta::set(object, "deletionTimestamp", meta::time(at));
    }
    meta::set(object, "deletionGracePeriodSeconds", shorter);
}

/// The finalizers with those of the garbage collector as the options want them (upstream's
/// `deletionFinalizersForGarbageCollection`).
fn garbage_finalizers(old: &Value, options: &DeleteOptions, orphans_by_default: bool) -> Vec<String> {
    let before = meta::finalizers(old);
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(policy)) => (policy == Propagation::Orphan, policy == Propagation::Foreground),
        (None, None) if before.contains(&ORPHAN) => (true, false),
        (None, None) if before.contains(&FOREGROUND) => (false, true),
        (None, None) => (orphans_by_default, false),
    };
    let wanted = |f: &str| (orphan && f == ORPHAN) || (foreground && f == FOREGROUND);
    let mut finalizers: Vec<String> =
        before.iter().filter(|f| (**f != ORPHAN && **f != FOREGROUND) || wanted(f)).map(|f| (*f).to_owned()).collect();
    for (on, name) in [(orphan, ORPHAN), (foreground, FOREGROUND)] {
        if on && !before.contains(&name) {
            finalizers.push(name.to_owned());
        }
    }
    finalizers
}

/// How long a pod may take to end (upstream's `podStrategy.CheckGracefulDelete`).
pub(super) fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || over {
        return 0;
    }
    let own = || pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match options.grace.unwrap_or_else(own) {
        negative if negative < 0 => 1,
        grace => grace,
    }
}

/// A namespace is marked; what is in it goes first.
pub(super) fn plan_namespace(old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut new = old.clone();
    if !meta::deleting(old) {
        meta::set(&mut new, "deletionTimestamp", meta::time(now));
        meta::set(&mut new, "deletionGracePeriodSeconds", 0);
    }
    new["status"]["phase"] = json!("Terminating");
    let orphan = options.orphan_dependents == Some(true) || options.propagation == Some(Propagation::Orphan);
    if orphan && !meta::finalizers(old).contains(&ORPHAN) {
        let mut finalizers: Vec<String> = meta::finalizers(old).into_iter().map(str::to_owned).collect();
        finalizers.push(ORPHAN.into());
        meta::set_finalizers(&mut new, &finalizers);
    }
    let empty = old["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    if empty && meta::finalizers(&new).is_empty() {
        Plan::Remove
    } else if new == *old {
        Plan::Pending
    } else {
        Plan::Update(new)
    }
}

/// Query parameters that DELETE takes when there is no body.
pub(crate) fn options_from_query(query: &crate::request::Query) -> Result<Value, Status> {
    let mut body = json!({});
    if let Some(grace) = query.number("gracePeriodSeconds")? {
        body["gracePeriodSeconds"] = grace.into();
    }
    if let Some(policy) = query.get("propagationPolicy") {
        body["propagationPolicy"] = policy.into();
    }
    if query.get("orphanDependents").is_some() {
        body["orphanDependents"] = query.flag("orphanDependents").into();
    }
    Ok(body)
}

/// A body of DELETE: empty, or DeleteOptions in any of its versions.
pub(crate) fn options_from_body(bytes: &Bytes) -> Result<Option<Value>, Status> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // Clients of every age send options in the form they prefer, with or without saying so.
    let form = if wire::is_body(bytes) { body::Form::Protobuf } else { body::Form::Json };
    let value: Value = body::parse(bytes, form)?.value;
    match value["kind"].as_str() {
        None | Some("" | "DeleteOptions") => Ok(Some(value)),
        Some(kind) => Err(Status::bad_request(format!("decoded object cannot be converted to DeleteOptions: {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn options(body: Value) -> DeleteOptions {
        DeleteOptions::parse(&body).unwrap()
    }

    fn pod(node: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}})
    }

    fn plan_pod(pod: &Value, body: Value) -> Plan {
        let options = options(body);
        plan(pod, &options, Some(pod_grace(pod, &options)), false, true, now())
    }

    #[test]
    fn pods_get_their_grace() {
        assert_eq!(plan_pod(&pod("", "Pending"), json!({})), Plan::Remove);
        assert_eq!(plan_pod(&pod("n", "Succeeded"), json!({})), Plan::Remove);
        assert_eq!(plan_pod(&pod("n", "Running"), json!({"gracePeriodSeconds": 0})), Plan::Remove);
        let Plan::Update(new) = plan_pod(&pod("n", "Running"), json!({})) else {
            panic!("a running pod is not removed");
        };
        assert_eq!(
            new["metadata"],
            json!({"name": "p", "generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30})
        );
        assert_eq!(plan_pod(&new, json!({})), Plan::Pending);
        assert_eq!(plan_pod(&new, json!({"gracePeriodSeconds": 60})), Plan::Pending);
        let Plan::Update(shorter) = plan_pod(&new, json!({"gracePeriodSeconds": 5})) else {
            panic!("a shorter grace is taken");
        };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
        assert_eq!(plan_pod(&new, json!({"gracePeriodSeconds": 0})), Plan::Remove);
    }

    #[test]
    fn finalizers_hold_an_object() {
        let old = json!({"metadata": {"name": "a", "finalizers": ["x"]}});
        let Plan::Update(new) = plan(&old, &DeleteOptions::default(), None, false, true, now()) else {
            panic!("held");
        };
        assert_eq!(new["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(&new, &DeleteOptions::default(), None, false, true, now()), Plan::Pending);
    }

    #[test]
    fn propagation_becomes_a_finalizer() {
        let check = |before: &[&str], body: Value, by_default: bool, expected: &[&str]| {
            let old = json!({"metadata": {"finalizers": before}});
            assert_eq!(garbage_finalizers(&old, &options(body.clone()), by_default), expected, "{body}");
        };
        check(&[], json!({}), false, &[]);
        check(&[], json!({}), true, &["orphan"]);
        check(&[], json!({"propagationPolicy": "Background"}), true, &[]);
        check(&["a"], json!({"propagationPolicy": "Foreground"}), false, &["a", "foregroundDeletion"]);
        check(&[], json!({"propagationPolicy": "Orphan"}), false, &["orphan"]);
        check(&["foregroundDeletion"], json!({}), false, &["foregroundDeletion"]);
        check(&["foregroundDeletion"], json!({"propagationPolicy": "Background"}), false, &[]);
        check(&[], json!({"orphanDependents": true}), false, &["orphan"]);
    }

    #[test]
    fn a_namespace_waits_for_its_content() {
        let old =
            json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Update(new) = plan_namespace(&old, &DeleteOptions::default(), now()) else {
            panic!("marked");
        };
        assert_eq!(new["status"]["phase"], "Terminating");
        assert_eq!(plan_namespace(&new, &DeleteOptions::default(), now()), Plan::Pending);
        let mut empty = new.clone();
        empty["spec"] = json!({});
        assert_eq!(plan_namespace(&empty, &DeleteOptions::default(), now()), Plan::Remove);
    }

    #[test]
    fn options_are_checked() {
        let message = |body: Value| DeleteOptions::parse(&body).unwrap_err().message;
        assert_eq!(
            message(json!({"propagationPolicy": "Never"})),
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Never\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
        );
        assert!(message(json!({"dryRun": ["Some"]})).contains("dryRun: Unsupported value: \"Some\""));
    }
}

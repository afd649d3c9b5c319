//! Jobs and CronJobs. Source: upstream's `pkg/apis/batch/validation`.

use serde_json::Value;

use super::{Errors, cursor::At, pod, workload};
use crate::{names, status::FieldError};

/// The longest name of a CronJob: its Jobs get eleven characters more, and theirs are labels.
const MAX_CRON_NAME: usize = 52;
/// The most pods an Indexed Job may run at once.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;
/// What a field of a schedule may hold at most, by its place: minute, hour, day, month, weekday.
const SCHEDULE: [(&str, u32, u32); 5] =
    [("minute", 0, 59), ("hour", 0, 23), ("dom", 1, 31), ("month", 1, 12), ("dow", 0, 6)];

pub(super) fn job(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let name = object.at("metadata.name");
    if spec.field("completionMode").text() == "Indexed" && name.text().len() > names::MAX_LABEL {
        name.invalid("must be no more than 63 characters", errors);
    }
    job_spec(&spec, errors);
    let selector = spec.field("selector");
    if selector.present() {
        workload::label_selector(&selector, errors);
        let labels = spec.at("template.metadata.labels");
        if !workload::matches(&selector, labels.value) {
            labels.invalid("`selector` does not match template `labels`", errors);
        }
    }
}

pub(super) fn cron_job(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let name = object.at("metadata.name");
    if name.text().len() > MAX_CRON_NAME {
        name.invalid("must be no more than 52 characters", errors);
    }
    let schedule = spec.field("schedule");
    if schedule.require(errors) {
        if let Err(why) = parse_schedule(schedule.text()) {
            schedule.invalid(why, errors);
        }
        if schedule.text().contains("TZ") {
            schedule.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead", errors);
        }
    }
    let zone = spec.field("timeZone");
    if zone.present() {
        match zone.text() {
            "" => zone.invalid("timeZone must be nil or non-empty string", errors),
            "Local" | "local" => zone.invalid(
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                errors,
            ),
            text if jiff::tz::TimeZone::get(text).is_err() => {
                zone.invalid(format!("unknown time zone {text}"), errors);
            }
            _ => {}
        }
    }
    let policy = spec.field("concurrencyPolicy");
    if policy.require(errors) {
        policy.one_of(&["Allow", "Forbid", "Replace"], errors);
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.field(field).at_least(0, errors);
    }
    let job = spec.at("jobTemplate.spec");
    if job.field("selector").present() {
        job.field("selector").invalid("`selector` will be auto-generated", errors);
    }
    if job.field("manualSelector").is_true() {
        let at = job.field("manualSelector");
        errors.push(FieldError::not_supported(at.path, true, &["nil", "false"]));
    }
    job_spec(&job, errors);
}

fn job_spec(spec: &At<'_>, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.field(field).at_least(0, errors);
    }
    let mode = spec.field("completionMode");
    mode.one_of(&["Indexed", "NonIndexed"], errors);
    let indexed = mode.text() == "Indexed";
    if indexed && !spec.field("completions").present() {
        errors.push(FieldError::required(spec.field("completions").path, "when completion mode is Indexed"));
    }
    let parallelism = spec.field("parallelism");
    if indexed && parallelism.int().is_some_and(|n| n > MAX_INDEXED_PARALLELISM) {
        let detail = format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed");
        parallelism.invalid(detail, errors);
    }
    if !indexed {
        for (field, detail) in [
            ("backoffLimitPerIndex", "requires indexed completion mode"),
            ("maxFailedIndexes", "requires indexed completion mode"),
        ] {
            let at = spec.field(field);
            if at.present() {
                at.invalid(detail, errors);
            }
        }
        if spec.field("successPolicy").present() {
            spec.field("successPolicy").invalid("requires indexed completion mode", errors);
        }
    }
    spec.field("podReplacementPolicy").one_of(&["Failed", "TerminatingOrFailed"], errors);
    failure_policy(&spec.field("podFailurePolicy"), spec, errors);
    pod::template(spec.field("template"), errors);
    let restart = spec.at("template.spec.restartPolicy");
    if !matches!(restart.text(), "OnFailure" | "Never") {
        errors.push(FieldError::required(&restart.path, "valid values: \"OnFailure\", \"Never\""));
    }
}

fn failure_policy(policy: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    if !policy.present() {
        return;
    }
    let restart = spec.at("template.spec.restartPolicy");
    if restart.text() == "OnFailure" {
        restart.invalid("only \"Never\" is supported when podFailurePolicy is specified", errors);
    }
    for rule in policy.field("rules").items() {
        let action = rule.field("action");
        if action.require(errors) {
            action.one_of(&["Count", "FailIndex", "FailJob", "Ignore"], errors);
        }
        let (codes, conditions) = (rule.field("onExitCodes"), rule.field("onPodConditions"));
        if codes.present() {
            let operator = codes.field("operator");
            if operator.require(errors) {
                operator.one_of(&["In", "NotIn"], errors);
            }
            if codes.field("values").is_empty() {
                codes.field("values").invalid("at least one value is required", errors);
            }
        }
        for condition in conditions.items() {
            condition.field("status").require(errors);
        }
        match (codes.present(), !conditions.is_empty()) {
            (true, true) => rule.invalid("specifying both OnExitCodes and OnPodConditions is not supported", errors),
            (false, false) => rule.invalid("specifying one of OnExitCodes and OnPodConditions is required", errors),
            _ => {}
        }
    }
}

/// The first fault of a schedule, worded as upstream's parser (robfig/cron) does.
fn parse_schedule(text: &str) -> Result<(), String> {
    let text = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(' ').map_or("", |(_, rest)| rest),
        None => text,
    };
    if let Some(descriptor) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        return if known.contains(&descriptor) || descriptor.starts_with("every ") {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: @{descriptor}"))
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != SCHEDULE.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, bounds) in fields.iter().zip(SCHEDULE) {
        for part in field.split(',') {
            schedule_part(part, bounds)?;
        }
    }
    Ok(())
}

fn schedule_part(part: &str, (name, low, high): (&str, u32, u32)) -> Result<(), String> {
    let (range, step) = match part.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {part}")),
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    if let Some(step) = step {
        match step.parse::<u32>() {
            Ok(0) => return Err(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(_) => {
                return Err(format!("failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"));
            }
        }
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_lowercase();
        let place = |names: &[&str]| names.iter().position(|n| *n == lower).and_then(|at| u32::try_from(at).ok());
        let named = match name {
            "month" => place(&["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
                .map(|at| at + 1),
            "dow" => place(&["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
            _ => None,
        };
        let parsed = named.or_else(|| text.parse().ok());
        parsed.ok_or_else(|| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    };
    let (from, to) = match range.split_once('-') {
        Some((_, to)) if to.contains('-') => return Err(format!("too many hyphens: {part}")),
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(range)?, number(range)?),
    };
    if from < low {
        return Err(format!("beginning of range ({from}) below minimum ({low}): {part}"));
    }
    if to > high {
        return Err(format!("end of range ({to}) above maximum ({high}): {part}"));
    }
    if from > to {
        return Err(format!("beginning of range ({from}) beyond end of range ({to}): {part}"));
    }
    Ok(())
}

pub(super) fn job_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    const IMMUTABLE: &str = "field is immutable";
    let suspended = old.at("spec.suspend").is_true() && old.at("status.startTime").is_empty();
    for field in [
        "spec.selector",
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ] {
        same(&old.at(field), &new.at(field), IMMUTABLE, errors);
    }
    let (completions, parallelism) = ("spec.completions", "spec.parallelism");
    if old.at(completions).value != new.at(completions).value {
        // An elastic Indexed Job scales by both at once.
        let indexed = new.at("spec.completionMode").text() == "Indexed";
        if !indexed {
            new.at(completions).immutable(IMMUTABLE, errors);
        } else if new.at(completions).value != new.at(parallelism).value {
            new.at(completions).invalid(
                "can only be modified in tandem with parallelism; that is, completions must equal parallelism",
                errors,
            );
        }
    }
    // A suspended Job that has not started may still be given another place to run.
    let template = |at: &At<'_>| {
        let mut template = at.at("spec.template").value.clone();
        if suspended {
            drop_fields(&mut template, "/spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"]);
            drop_fields(&mut template, "/metadata", &["annotations", "labels"]);
        }
        template
    };
    if template(&old) != template(&new) {
        new.at("spec.template").immutable(IMMUTABLE, errors);
    }
}

fn drop_fields(value: &mut Value, pointer: &str, fields: &[&str]) {
    if let Some(Value::Object(map)) = value.pointer_mut(pointer) {
        for field in fields {
            map.shift_remove(*field);
        }
    }
}

fn same(old: &At<'_>, new: &At<'_>, detail: &str, errors: &mut Errors) {
    if old.value != new.value {
        new.invalid(detail, errors);
    }
}

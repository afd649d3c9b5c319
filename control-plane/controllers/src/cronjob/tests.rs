#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{body, plan};
use super::schedule::{Passed, Schedule};
use crate::object::Object;
use crate::types::{CronJob, Job};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Created at ten, due every five minutes.
fn cron(spec: Value, status: Value) -> CronJob {
    let mut value = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T10:00:00Z"},
        "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"x": 1}}},
        "status": status,
    });
    json_patch::merge(&mut value["spec"], &spec);
    serde_json::from_value(value).unwrap()
}

fn job(name: &str, condition: Option<&str>) -> Arc<Job> {
    let conditions: Vec<Value> = condition.map(|kind| json!({"type": kind, "status": "True"})).into_iter().collect();
    let value = json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": conditions,
        "startTime": format!("2026-01-01T09:0{}:00Z", name.len().min(9)), "completionTime": "2026-01-01T09:30:00Z"}});
    Arc::new(serde_json::from_value(value).unwrap())
}

fn active(names: &[&str]) -> Value {
    let one = |name: &&str| json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "namespace": "n", "uid": name, "resourceVersion": "1"});
    json!({"active": names.iter().map(one).collect::<Vec<_>>(), "lastScheduleTime": "2026-01-01T10:00:00Z"})
}

#[test]
fn times_of_a_schedule() {
    for (text, zone, from, next) in [
        ("*/5 * * * *", None, "2026-01-01T10:01:00Z", "2026-01-01T10:05:00Z"),
        ("*/5 * * * *", None, "2026-01-01T10:05:00Z", "2026-01-01T10:10:00Z"),
        ("@hourly", None, "2026-01-01T10:01:00Z", "2026-01-01T11:00:00Z"),
        // Either of day and weekday will do.
        ("0 0 13 * 5", None, "2026-01-01T10:00:00Z", "2026-01-02T00:00:00Z"),
        ("0 12 * * *", Some("Europe/Berlin"), "2026-01-01T00:00:00Z", "2026-01-01T11:00:00Z"),
        ("0 12 * * *", Some("Europe/Berlin"), "2026-07-01T00:00:00Z", "2026-07-01T10:00:00Z"),
        ("0 0 * * sun", Some("Asia/Tokyo"), "2026-01-01T00:00:00Z", "2026-01-03T15:00:00Z"),
    ] {
        let schedule = Schedule::parse(text, zone).unwrap();
        assert_eq!(schedule.after(at(from)), Some(at(next)), "{text} {zone:?}");
    }
    assert!(Schedule::parse("* * *", None).is_err());
    assert!(Schedule::parse("* * * * *", Some("Europe/Atlantis")).is_err());
    let schedule = Schedule::parse("0 12 * * *", Some("Europe/Berlin")).unwrap();
    assert_eq!(schedule.local(at("2026-01-01T11:00:00Z")), "2026-01-01T12:00:00+01:00");
}

#[test]
fn times_that_have_passed() {
    let schedule = Schedule::parse("*/5 * * * *", None).unwrap();
    let passed = |from: &str, now: &str| schedule.passed(at(from), at(now));
    assert_eq!(passed("2026-01-01T10:00:00Z", "2026-01-01T10:04:59Z"), None);
    let once = Passed { last: at("2026-01-01T10:05:00Z"), many: false };
    assert_eq!(passed("2026-01-01T10:00:00Z", "2026-01-01T10:05:00Z"), Some(once));
    let few = Passed { last: at("2026-01-01T11:00:00Z"), many: false };
    assert_eq!(passed("2026-01-01T10:00:00Z", "2026-01-01T11:02:00Z"), Some(few));
    let many = Passed { last: at("2026-01-03T10:00:00Z"), many: true };
    assert_eq!(passed("2026-01-01T10:00:00Z", "2026-01-03T10:01:00Z"), Some(many));
}

#[test]
fn starts_when_it_is_due() {
    let early = plan(&cron(json!({}), json!({})), &[], at("2026-01-01T10:04:00Z"));
    assert_eq!((early.start, early.again), (None, Some(Duration::from_millis(60_100))));
    let due = plan(&cron(json!({}), json!({})), &[], at("2026-01-01T10:05:00.1Z"));
    let start = due.start.unwrap();
    assert_eq!((start.name.as_str(), start.at.0), ("c-29454365", at("2026-01-01T10:05:00Z")));
    let body = body(&cron(json!({}), json!({})), &start);
    assert_eq!(body["metadata"]["labels"]["a"], "b");
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "c");
    assert_eq!(
        body["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        "2026-01-01T10:05:00Z"
    );
    // Done already.
    let status = json!({"lastScheduleTime": "2026-01-01T10:05:00Z"});
    assert_eq!(plan(&cron(json!({}), status), &[], at("2026-01-01T10:06:00Z")).start, None);
    for (spec, reason) in [
        (json!({"suspend": true}), None),
        (json!({"timeZone": "Nowhere"}), Some("UnknownTimeZone")),
        (json!({"schedule": "later"}), Some("UnparseableSchedule")),
    ] {
        let got = plan(&cron(spec.clone(), json!({})), &[], at("2026-01-01T10:06:00Z"));
        assert_eq!((got.start, got.again, got.events.first().map(|e| e.reason)), (None, None, reason), "{spec}");
    }
    // Too late to be worth it.
    let late = cron(json!({"schedule": "0 * * * *", "startingDeadlineSeconds": 60}), json!({}));
    assert_eq!(plan(&late, &[], at("2026-01-01T11:02:00Z")).start, None);
    assert!(plan(&late, &[], at("2026-01-01T11:00:30Z")).start.is_some());
}

#[test]
fn one_at_a_time_or_not() {
    let now = at("2026-01-01T10:05:01Z");
    let running = [job("old", None)];
    for (policy, starts, deletes, reason) in
        [("Allow", true, 0, None), ("Forbid", false, 0, Some("JobAlreadyActive")), ("Replace", true, 1, None)]
    {
        let got = plan(&cron(json!({"concurrencyPolicy": policy}), active(&["old"])), &running, now);
        let reasons = got.events.first().map(|e| e.reason);
        assert_eq!((got.start.is_some(), got.delete.len(), reasons), (starts, deletes, reason), "{policy}");
        assert_eq!(got.status.active.len(), usize::from(policy != "Replace"));
    }
}

#[test]
fn keeps_the_list_and_the_history() {
    let now = at("2026-01-01T10:01:00Z");
    let jobs = [job("a", Some("Complete")), job("bb", Some("Failed")), job("ccc", None), job("dddd", Some("Complete"))];
    let spec = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1});
    let got = plan(&cron(spec, active(&["a", "gone"])), &jobs, now);
    assert_eq!(got.delete.iter().map(|j| j.name()).collect::<Vec<_>>(), ["a"]);
    let reasons: Vec<_> = got.events.iter().map(|e| e.reason).collect();
    assert_eq!(reasons, ["SawCompletedJob", "MissingJob", "UnexpectedJob"]);
    assert!(got.status.active.is_empty());
    assert_eq!(got.status.last_successful_time.unwrap().0, at("2026-01-01T09:30:00Z"));
}

//! What a CronJob needs next: pure, from it, its Jobs and the time to Jobs to start and to delete, its status, and when to
//! look again. Order and words are upstream's.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::schedule::{Schedule, Wrong};
use crate::object::Object;
use crate::types::{CronJob, CronJobStatus, Job};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Something to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// A Job to start.
#[derive(Debug, PartialEq)]
pub(super) struct Start {
    pub(super) name: String,
    /// The time it was due.
    pub(super) at: Time,
    /// The same in the schedule's zone.
    pub(super) local: String,
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delete: Vec<Arc<Job>>,
    pub(super) start: Option<Start>,
    pub(super) status: CronJobStatus,
    pub(super) events: Vec<Note>,
    /// Look again after this time.
    pub(super) again: Option<Duration>,
}

/// Plans.
pub(super) fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone(), ..Default::default() };
    plan.take_stock(jobs);
    plan.clean(cron, jobs);
    if cron.deleting() || cron.spec.suspend {
        return plan;
    }
    match Schedule::parse(&cron.spec.schedule, cron.spec.time_zone.as_deref()) {
        Ok(schedule) => {
            plan.again = schedule.wait(now);
            plan.due(cron, jobs, &schedule, now);
        }
        Err(wrong) => {
            let reason = if matches!(wrong, Wrong::Zone(..)) { "UnknownTimeZone" } else { "UnparseableSchedule" };
            plan.warn(reason, wrong.to_string());
        }
    }
    plan
}

/// The body of the Job.
pub(super) fn body(cron: &CronJob, start: &Start) -> Value {
    let template = cron.spec.job_template.value();
    let mut annotations = template["metadata"]["annotations"].clone();
    annotations[SCHEDULED] = json!(start.local);
    let mut metadata = json!({
        "name": start.name, "namespace": cron.ns(), "annotations": annotations, "ownerReferences": [cron.as_controller()],
    });
    if !template["metadata"]["labels"].is_null() {
        metadata["labels"] = template["metadata"]["labels"].clone();
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

impl Plan {
    fn normal(&mut self, reason: &'static str, message: String) {
        self.events.push(Note { warning: false, reason, message });
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.events.push(Note { warning: true, reason, message });
    }

    /// Brings the list of active Jobs and the time of the last success up to date.
    fn take_stock(&mut self, jobs: &[Arc<Job>]) {
        let mut kept = Vec::new();
        for known in std::mem::take(&mut self.status.active) {
            match jobs.iter().find(|job| job.uid() == known.uid) {
                None => self.normal("MissingJob", format!("Active job went missing: {}", known.name)),
                Some(job) if job.finished() => {
                    let condition = if job.holds("Complete") { "Complete" } else { "Failed" };
                    let message = format!("Saw completed job: {}, condition: {condition}", job.name());
                    self.normal("SawCompletedJob", message);
                }
                Some(_) => kept.push(known),
            }
        }
        let strangers = jobs.iter().filter(|job| !job.finished() && !kept.iter().any(|known| known.uid == job.uid()));
        for stranger in strangers {
            let message = format!("Saw a job that the controller did not create or forgot: {}", stranger.name());
            self.warn("UnexpectedJob", message);
        }
        self.status.active = kept;
        let successes = jobs.iter().filter(|job| job.holds("Complete"));
        let last = successes.filter_map(|job| job.status.completion_time.clone()).max_by_key(|time| time.0);
        if let Some(last) = last
            && self.status.last_successful_time.as_ref().is_none_or(|known| known.0 < last.0)
        {
            self.status.last_successful_time = Some(last);
        }
    }

    /// Deletes the oldest finished Jobs beyond the limits.
    fn clean(&mut self, cron: &CronJob, jobs: &[Arc<Job>]) {
        let limits = [
            ("Complete", cron.spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", cron.spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (condition, limit) in limits {
            let mut finished: Vec<_> =
                jobs.iter().filter(|job| job.holds(condition) && !job.deleting()).cloned().collect();
            finished.sort_by_key(|job| {
                let started = job.status.start_time.as_ref().map(|time| time.0);
                (started.unwrap_or(Timestamp::MAX), job.name().to_owned())
            });
            let surplus = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            self.delete.extend(finished.into_iter().take(surplus));
        }
    }

    fn due(&mut self, cron: &CronJob, jobs: &[Arc<Job>], schedule: &Schedule, now: Timestamp) {
        let mut from = self.status.last_schedule_time.as_ref().map_or(cron.created(), |time| time.0);
        let deadline = cron.spec.starting_deadline_seconds;
        if let Some(deadline) = deadline {
            let earliest = now.checked_sub(jiff::SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN);
            from = from.max(earliest);
        }
        let Some(passed) = schedule.passed(from, now) else { return };
        if passed.many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn("TooManyMissedTimes", message.into());
        }
        let at = passed.last;
        if deadline.is_some_and(|deadline| at.as_second() + deadline < now.as_second()) {
            self.warn("MissSchedule", format!("Missed scheduled time to start a job: {}", schedule.local(at)));
            return;
        }
        let name = format!("{}-{}", cron.name(), at.as_second() / 60);
        // Started already, though the status may not say so yet.
        if self.status.active.iter().any(|known| known.name == name) {
            return;
        }
        match cron.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !self.status.active.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid".to_owned();
                return self.normal("JobAlreadyActive", message);
            }
            Some("Replace") => {
                let active = std::mem::take(&mut self.status.active);
                let running = jobs.iter().filter(|job| active.iter().any(|known| known.uid == job.uid()));
                self.delete.extend(running.cloned());
            }
            _ => {}
        }
        self.start = Some(Start { name, at: Time(at), local: schedule.local(at) });
    }
}

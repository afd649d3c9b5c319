//! What a Job needs next: pure, from it, its pods and the time to pods to create and delete, and its status.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::body::NewPod;
use super::policy;
use super::tally::{self, Tally, index, only_when_failed, tally};
use crate::object::Object;
use crate::types::{Job, JobCondition, JobStatus, Pod};

/// Delay after a first failure, and the longest one (upstream's).
const BACKOFF: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What to do. At most one of the three lists of pods is acted on at a time, in this order: `remove`, `kill`, `create`.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pods that are too many: deleted without counting.
    pub(super) remove: Vec<Arc<Pod>>,
    /// Pods of a Job that has ended: deleted, and counted.
    pub(super) kill: Vec<Arc<Pod>>,
    pub(super) create: Vec<NewPod>,
    /// Pods whose finalizer goes once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    /// Look again after this time.
    pub(super) again: Option<Duration>,
}

/// Plans.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut status = job.status.clone();
    let mut tally = tally(job, pods, &mut status);
    let release = std::mem::take(&mut tally.release);
    let mut planner = Planner { job, now, tally, plan: Plan { status, release, ..Default::default() } };
    planner.decide();
    let Planner { tally, mut plan, .. } = planner;
    plan.status.active = count(tally.active.len().saturating_sub(plan.remove.len() + plan.kill.len()));
    let status = &mut plan.status;
    let quiet = status.terminating == Some(0) && status.active == 0 && plan.remove.is_empty() && plan.kill.is_empty();
    if quiet && status.uncounted_terminated_pods.is_empty() {
        finish(status, now);
    }
    plan
}

/// The event that tells of a failure, by the condition's reason.
pub(super) fn event_reason(reason: &str) -> &'static str {
    match reason {
        "DeadlineExceeded" => "DeadlineExceeded",
        "PodFailurePolicy" => "PodFailurePolicy",
        "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
        "FailedIndexes" => "FailedIndexes",
        _ => "BackoffLimitExceeded",
    }
}

pub(super) fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

struct Planner<'a> {
    job: &'a Job,
    now: Timestamp,
    tally: Tally,
    plan: Plan,
}

impl Planner<'_> {
    fn decide(&mut self) {
        let (job, spec) = (self.job, &self.job.spec);
        if job.deleting() {
            return;
        }
        if job.finished() || job.holds("FailureTarget") || job.holds("SuccessCriteriaMet") {
            self.plan.kill = self.tally.active.clone();
            return;
        }
        if spec.suspend {
            self.plan.remove = self.tally.active.clone();
            self.plan.status.start_time = None;
            return set(&mut self.plan.status, "Suspended", "True", "JobSuspended", "Job suspended", self.now);
        }
        if job.holds("Suspended") {
            set(&mut self.plan.status, "Suspended", "False", "JobResumed", "Job resumed", self.now);
            self.plan.status.start_time = Some(Time(self.now));
        }
        let started = self.plan.status.start_time.get_or_insert(Time(self.now)).0;
        // What has succeeded has succeeded, whatever failed beside it.
        if let Some((reason, message)) = self.success() {
            return self.end("SuccessCriteriaMet", reason, &message);
        }
        if let Some((reason, message)) = self.failure(started) {
            return self.end("FailureTarget", reason, &message);
        }
        self.balance();
    }

    fn end(&mut self, kind: &str, reason: &str, message: &str) {
        self.plan.kill = self.tally.active.clone();
        set(&mut self.plan.status, kind, "True", reason, message, self.now);
    }

    fn success(&self) -> Option<(&'static str, String)> {
        if let Some(rule) = policy::succeeded(self.job, &self.tally.done) {
            return Some(("SuccessPolicy", format!("Matched rules at index {rule}")));
        }
        let succeeded = self.succeeded();
        let complete = match self.job.spec.completions {
            Some(wanted) => succeeded >= wanted,
            None => succeeded > 0 && self.tally.active.is_empty(),
        };
        complete.then(|| ("CompletionsReached", "Reached expected number of succeeded pods".to_owned()))
    }

    /// Successes, counted and noted.
    fn succeeded(&self) -> i32 {
        let status = &self.plan.status;
        let noted = if self.job.indexed() { 0 } else { status.uncounted_terminated_pods.succeeded.len() };
        status.succeeded + count(noted)
    }

    /// Why the Job has failed, if it has.
    fn failure(&mut self, started: Timestamp) -> Option<(&'static str, String)> {
        let spec = &self.job.spec;
        if let Some(why) = self.tally.fatal.take() {
            return Some(("PodFailurePolicy", why));
        }
        let statuses = self
            .tally
            .active
            .iter()
            .flat_map(|p| p.status.container_statuses.iter().chain(&p.status.init_container_statuses));
        let restarts: i32 = statuses.map(|c| c.restart_count).sum();
        let per_index = spec.backoff_limit_per_index.is_some();
        let limit = spec.backoff_limit.unwrap_or(if per_index { i32::MAX } else { 6 });
        let failed = self.plan.status.failed + count(self.plan.status.uncounted_terminated_pods.failed.len());
        // With restartPolicy OnFailure the node restarts containers and these count.
        if failed > limit || restarts > 0 && restarts >= limit {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
        }
        if let Some(deadline) = spec.active_deadline_seconds {
            let left = started.as_second() + deadline - self.now.as_second();
            if left <= 0 {
                return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
            }
            self.again(Duration::from_secs(left.unsigned_abs()));
        }
        let lost = count(self.tally.lost.len());
        if spec.max_failed_indexes.is_some_and(|most| lost > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.into()));
        }
        let all = spec.completions.unwrap_or(0);
        let over = lost > 0 && lost + count(self.tally.done.len()) >= all;
        over.then(|| ("FailedIndexes", "Job has failed indexes".to_owned()))
    }

    /// As many active pods as are wanted, unless one failed a moment ago.
    fn balance(&mut self) {
        let spec = &self.job.spec;
        let parallelism = spec.parallelism.unwrap_or(1);
        let (succeeded, active) = (self.succeeded(), count(self.tally.active.len()));
        let wanted = match spec.completions {
            Some(completions) => parallelism.min(completions - succeeded - count(self.tally.lost.len())),
            None if succeeded > 0 => active.min(parallelism),
            None => parallelism,
        }
        .max(0);
        let (twins, mut surplus) = self.surplus();
        let too_many = usize::try_from(active - count(twins.len()) - wanted).unwrap_or(0);
        surplus.truncate(too_many);
        self.plan.remove = twins.into_iter().chain(surplus).collect();
        if !self.plan.remove.is_empty() {
            return;
        }
        let leaving = if only_when_failed(self.job) { self.plan.status.terminating.unwrap_or(0) } else { 0 };
        let missing = usize::try_from(wanted - active - leaving).unwrap_or(0);
        if missing == 0 {
            return;
        }
        if self.job.indexed() {
            return self.fill(missing);
        }
        match self.back_off(&self.tally.failed) {
            Some(wait) => self.again(wait),
            None => self.plan.create = vec![NewPod::default(); missing],
        }
    }

    /// Pods whose index another one has, is done or does not exist; and the rest, the least valuable first.
    fn surplus(&self) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let mut active = self.tally.active.clone();
        active.sort_by_key(|p| (!p.ready(), p.spec.node_name.is_none(), p.created()));
        let mut seen = BTreeSet::new();
        let (end, tally) = (self.job.spec.completions.unwrap_or(0), &self.tally);
        let useful = |p: &Arc<Pod>| match index(p) {
            _ if !self.job.indexed() => true,
            Some(i) => i < end && !tally.done.contains(&i) && !tally.lost.contains(&i) && seen.insert(i),
            None => false,
        };
        let (mut useful, twins): (Vec<_>, Vec<_>) = active.into_iter().partition(useful);
        useful.sort_by_key(|p| (p.ready(), p.spec.node_name.is_some(), Reverse(index(p)), Reverse(p.created())));
        (twins, useful)
    }

    /// Pods for the lowest indexes that have none.
    fn fill(&mut self, missing: usize) {
        let spec = &self.job.spec;
        let tally = &self.tally;
        let mut taken: BTreeSet<i32> = tally.active.iter().filter_map(|p| index(p)).collect();
        taken.extend(tally.done.iter().chain(&tally.lost));
        let per_index = spec.backoff_limit_per_index.is_some();
        let mut waits = Vec::new();
        let mut create = Vec::new();
        let common = if per_index { None } else { self.back_off(&tally.failed) };
        for index in (0..spec.completions.unwrap_or(0)).filter(|i| !taken.contains(i)) {
            if create.len() == missing {
                break;
            }
            let of_index: Vec<_> = tally.failed.iter().filter(|p| tally::index(p) == Some(index)).cloned().collect();
            let wait = if per_index { self.back_off(&of_index) } else { common };
            let (failures, ignored) = tally.failures.get(&index).copied().unwrap_or_default();
            match wait {
                Some(wait) => waits.push(wait),
                None => create.push(NewPod { index, failures, ignored }),
            }
        }
        self.plan.create = create;
        waits.into_iter().for_each(|wait| self.again(wait));
    }

    /// Time left of the delay after the last failure; it doubles with every failure since the last success.
    fn back_off(&self, failed: &[Arc<Pod>]) -> Option<Duration> {
        let last = failed.iter().map(|p| ended(p)).max()?;
        let doublings = u32::try_from(failed.len().saturating_sub(1)).unwrap_or(0).min(6);
        let until = last.checked_add((BACKOFF * 2u32.pow(doublings)).min(BACKOFF_MAX)).ok()?;
        let left = until.duration_since(self.now);
        left.is_positive().then(|| left.unsigned_abs())
    }

    fn again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |known| known.min(after)));
    }
}

/// When a pod ended, as far as it tells.
fn ended(pod: &Pod) -> Timestamp {
    let asked = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    pod.finished_at().or(asked).unwrap_or_else(|| pod.created())
}

/// All pods are gone and counted: what was decided becomes final.
fn finish(status: &mut JobStatus, now: Timestamp) {
    let holds = |status: &JobStatus, kind: &str| {
        status.conditions.iter().find(|c| c.kind == kind && c.status == "True").cloned()
    };
    if let Some(cause) = holds(status, "FailureTarget") {
        set(status, "Failed", "True", &cause.reason, &cause.message, now);
    } else if let Some(cause) = holds(status, "SuccessCriteriaMet") {
        set(status, "Complete", "True", &cause.reason, &cause.message, now);
        status.completion_time.get_or_insert(Time(now));
    }
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    if status.conditions.iter().any(|c| c.kind == kind && c.status == value) {
        return;
    }
    status.conditions.retain(|c| c.kind != kind);
    status.conditions.push(JobCondition {
        kind: kind.into(),
        status: value.into(),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
        reason: reason.into(),
        message: message.into(),
    });
}

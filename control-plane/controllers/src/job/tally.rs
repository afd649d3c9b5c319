//! What of a Job's pods has ended, and how: brings the counts of the status up to date and says which pods may lose their
//! finalizer once the status is written. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::policy::{self, Meaning};
use super::{indexes, plan::count};
use crate::object::Object;
use crate::types::{COMPLETION_INDEX, IGNORED_FAILURES, INDEX_FAILURES, JOB_TRACKING, Job, JobStatus, Pod};

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Pods that run or wait to.
    pub(super) active: Vec<Arc<Pod>>,
    /// Pods that failed, as far as they are still there.
    pub(super) failed: Vec<Arc<Pod>>,
    /// Indexes that succeeded.
    pub(super) done: BTreeSet<i32>,
    /// Indexes that failed for good.
    pub(super) lost: BTreeSet<i32>,
    /// How often each index failed: counted, and not.
    pub(super) failures: BTreeMap<i32, (i32, i32)>,
    /// Why the whole Job failed, by its policy.
    pub(super) fatal: Option<String>,
    /// Pods whose finalizer may go once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
}

/// Counts; `status` starts as the one the API holds.
pub(super) fn tally(job: &Job, pods: &[Arc<Pod>], status: &mut JobStatus) -> Tally {
    settle(pods, status);
    let end = job.spec.completions.unwrap_or(0);
    let read = |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default(), end);
    let mut tally =
        Tally { done: read(&status.completed_indexes), lost: read(&status.failed_indexes), ..Default::default() };
    for pod in pods {
        let index = index(pod).filter(|_| job.indexed());
        if pod.active() {
            tally.active.push(pod.clone());
        }
        let ended = if pod.status.phase.as_deref() == Some("Succeeded") {
            tally.succeeded(job, pod, index, status)
        } else {
            failed(job, pod) && tally.failed(job, pod, index, status)
        };
        if ended && pod.held_by(JOB_TRACKING) {
            tally.release.push(pod.clone());
        }
    }
    tally.keep_last_failures(job);
    if job.indexed() {
        status.completed_indexes = Some(indexes::ranges(&tally.done));
        status.succeeded = count(tally.done.len());
        if job.spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(indexes::ranges(&tally.lost));
        }
    }
    status.ready = Some(count(tally.active.iter().filter(|p| p.ready()).count()));
    status.terminating = Some(count(pods.iter().filter(|p| p.deleting() && !p.finished()).count()));
    tally
}

/// The number of an indexed Job's pod.
pub(super) fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(COMPLETION_INDEX)?.parse().ok()
}

/// Counts pods whose end was noted and whose finalizer is gone.
fn settle(pods: &[Arc<Pod>], status: &mut JobStatus) {
    let held: BTreeSet<&str> = pods.iter().filter(|p| p.held_by(JOB_TRACKING)).map(|p| p.uid()).collect();
    let settle = |uids: &mut Vec<String>| {
        let before = uids.len();
        uids.retain(|uid| held.contains(uid.as_str()));
        count(before - uids.len())
    };
    status.succeeded += settle(&mut status.uncounted_terminated_pods.succeeded);
    status.failed += settle(&mut status.uncounted_terminated_pods.failed);
}

/// Whether the pod counts as failed: also one that is leaving, unless only complete failures are replaced.
fn failed(job: &Job, pod: &Pod) -> bool {
    let leaving = pod.deleting() && !only_when_failed(job);
    pod.status.phase.as_deref() == Some("Failed") || leaving && !pod.finished() || pod.deleting() && job.deleting()
}

/// Pods on their way out are replaced only when they have failed.
pub(super) fn only_when_failed(job: &Job) -> bool {
    job.spec.pod_failure_policy.is_some() || job.spec.pod_replacement_policy.as_deref() == Some("Failed")
}

impl Tally {
    /// Takes a success in; true.
    fn succeeded(&mut self, job: &Job, pod: &Pod, index: Option<i32>, status: &mut JobStatus) -> bool {
        let known = status.uncounted_terminated_pods.has(pod.uid()) || !pod.held_by(JOB_TRACKING);
        if let Some(index) = index.filter(|i| *i < job.spec.completions.unwrap_or(0)) {
            self.done.insert(index);
        }
        if !known && (!job.indexed() || index.is_some()) {
            status.uncounted_terminated_pods.succeeded.push(pod.uid().to_owned());
        }
        true
    }

    /// Takes a failure in; true when the pod's finalizer may go.
    fn failed(&mut self, job: &Job, pod: &Arc<Pod>, index: Option<i32>, status: &mut JobStatus) -> bool {
        let meaning = policy::meaning(job, pod);
        let ignored = meaning == Meaning::Ignore;
        if !ignored {
            self.failed.push(pod.clone());
        }
        if let Some(index) = index {
            let before = |key: &str| pod.annotations().get(key).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
            let (counted, uncounted) = (before(INDEX_FAILURES), before(IGNORED_FAILURES));
            let now = if ignored { (counted, uncounted + 1) } else { (counted + 1, uncounted) };
            let known = self.failures.entry(index).or_default();
            *known = (*known).max(now);
            let limit = job.spec.backoff_limit_per_index;
            if limit.is_some_and(|limit| now.0 > limit || meaning == Meaning::FailIndex) {
                self.lost.insert(index);
            }
        }
        if let Meaning::FailJob(why) = meaning {
            self.fatal.get_or_insert(why);
        }
        let known = status.uncounted_terminated_pods.has(pod.uid()) || !pod.held_by(JOB_TRACKING);
        if !known && !ignored {
            status.uncounted_terminated_pods.failed.push(pod.uid().to_owned());
        }
        true
    }

    /// The last failed pod of an index carries the index's count of failures: it stays until another one took it over.
    fn keep_last_failures(&mut self, job: &Job) {
        if job.spec.backoff_limit_per_index.is_none() || job.finished() || job.deleting() {
            return;
        }
        let running: BTreeSet<i32> = self.active.iter().filter_map(|p| index(p)).collect();
        let (done, lost, failures) = (&self.done, &self.lost, &self.failures);
        self.release.retain(|pod| {
            let Some(index) = index(pod) else { return true };
            let count = |key: &str| pod.annotations().get(key).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
            let (counted, ignored) = failures.get(&index).copied().unwrap_or_default();
            let newest = count(INDEX_FAILURES) + count(IGNORED_FAILURES) + 1 >= counted + ignored;
            pod.status.phase.as_deref() == Some("Succeeded")
                || done.contains(&index)
                || lost.contains(&index)
                || running.contains(&index)
                || !newest
        });
    }
}

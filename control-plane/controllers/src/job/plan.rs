//! What a Job needs: pure, from the Job, its pods and the time to pods to create or delete and its status. Successes and
//! failures are counted from the pods there are and never fall: a pod that is removed by hand still counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::object::Object;
use crate::types::{COMPLETION_INDEX, Job, JobCondition, JobStatus, Pod};

/// Delay after a first failure, and the longest one (upstream's).
const BACKOFF: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Indexes of pods to create; without meaning unless the Job is indexed.
    pub(super) create: Vec<i32>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    /// Look again after this time.
    pub(super) again: Option<Duration>,
}

/// Plans.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let phase = |wanted: &str| pods.iter().filter(|p| p.status.phase.as_deref() == Some(wanted)).collect::<Vec<_>>();
    let (succeeded, failed) = (phase("Succeeded"), phase("Failed"));
    let active: Vec<Arc<Pod>> = pods.iter().filter(|p| p.active()).cloned().collect();
    let terminating = pods.iter().filter(|p| p.deleting() && !p.finished()).count();
    let mut done: BTreeSet<i32> = parse(job.status.completed_indexes.as_deref().unwrap_or_default());
    done.extend(succeeded.iter().filter_map(|p| index(p)));
    let mut status = job.status.clone();
    status.succeeded = if job.indexed() { count(done.len()) } else { status.succeeded.max(count(succeeded.len())) };
    status.failed = status.failed.max(count(failed.len()));
    status.ready = Some(count(active.iter().filter(|p| p.ready()).count()));
    status.terminating = Some(count(terminating));
    status.completed_indexes = job.indexed().then(|| ranges(&done));
    let mut planner = Planner { job, now, active, plan: Plan { status, ..Default::default() } };
    planner.decide(&done, &failed);
    let Planner { active, mut plan, .. } = planner;
    plan.status.active = count(active.len() - plan.delete.len());
    if plan.status.terminating == Some(0) && plan.status.active == 0 && plan.delete.is_empty() {
        finish(&mut plan.status, now);
    }
    plan
}

struct Planner<'a> {
    job: &'a Job,
    now: Timestamp,
    active: Vec<Arc<Pod>>,
    plan: Plan,
}

impl Planner<'_> {
    fn decide(&mut self, done: &BTreeSet<i32>, failed: &[&Arc<Pod>]) {
        let (job, spec) = (self.job, &self.job.spec);
        if job.finished() {
            self.plan.delete = self.active.clone();
            return;
        }
        if spec.suspend {
            self.plan.delete = self.active.clone();
            self.plan.status.start_time = None;
            set(&mut self.plan.status, "Suspended", "True", "JobSuspended", "Job suspended", self.now);
            return;
        }
        if job.holds("Suspended") {
            set(&mut self.plan.status, "Suspended", "False", "JobResumed", "Job resumed", self.now);
        }
        let started = self.plan.status.start_time.get_or_insert(Time(self.now)).0;
        if let Some((reason, message)) = self.failure(started) {
            self.plan.delete = self.active.clone();
            return set(&mut self.plan.status, "FailureTarget", "True", reason, message, self.now);
        }
        let succeeded = self.plan.status.succeeded;
        let complete = match spec.completions {
            Some(wanted) => succeeded >= wanted,
            None => succeeded > 0 && self.active.is_empty(),
        };
        if complete || job.holds("SuccessCriteriaMet") {
            self.plan.delete = self.active.clone();
            let message = "Reached expected number of succeeded pods";
            return set(&mut self.plan.status, "SuccessCriteriaMet", "True", "CompletionsReached", message, self.now);
        }
        self.balance(done, failed);
    }

    /// Why the Job has failed, if it has.
    fn failure(&mut self, started: Timestamp) -> Option<(&'static str, &'static str)> {
        let spec = &self.job.spec;
        let restarts: i32 =
            self.active.iter().flat_map(|p| &p.status.container_statuses).map(|c| c.restart_count).sum();
        let limit = spec.backoff_limit.unwrap_or(6);
        // With restartPolicy OnFailure the node restarts containers and these count.
        if self.plan.status.failed > limit || restarts > 0 && restarts >= limit {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let deadline = spec.active_deadline_seconds?;
        let left = started.as_second() + deadline - self.now.as_second();
        if left <= 0 {
            return Some(("DeadlineExceeded", "Job was active longer than specified deadline"));
        }
        self.again(Duration::from_secs(left.unsigned_abs()));
        None
    }

    /// As many active pods as are wanted, unless one failed a moment ago.
    fn balance(&mut self, done: &BTreeSet<i32>, failed: &[&Arc<Pod>]) {
        let spec = &self.job.spec;
        let parallelism = spec.parallelism.unwrap_or(1);
        let succeeded = self.plan.status.succeeded;
        let active = count(self.active.len());
        let wanted = match spec.completions {
            Some(completions) => parallelism.min(completions - succeeded),
            None if succeeded > 0 => active.min(parallelism),
            None => parallelism,
        }
        .max(0);
        if active > wanted {
            let mut surplus = self.active.clone();
            surplus.sort_by_key(|p| (p.ready(), p.spec.node_name.is_some(), std::cmp::Reverse(p.created())));
            surplus.truncate(usize::try_from(active - wanted).unwrap_or(0));
            self.plan.delete = surplus;
            return;
        }
        // A pod that is leaving still holds its place.
        let missing = wanted - active - self.plan.status.terminating.unwrap_or(0);
        if missing <= 0 {
            return;
        }
        if let Some(wait) = self.back_off(failed) {
            return self.again(wait);
        }
        if !self.job.indexed() {
            self.plan.create = vec![0; usize::try_from(missing).unwrap_or(0)];
            return;
        }
        let running: BTreeSet<i32> = self.active.iter().filter_map(|p| index(p)).collect();
        let free = (0..spec.completions.unwrap_or(0)).filter(|i| !done.contains(i) && !running.contains(i));
        self.plan.create = free.take(usize::try_from(missing).unwrap_or(0)).collect();
    }

    /// Time left of the delay after the last failure.
    fn back_off(&self, failed: &[&Arc<Pod>]) -> Option<Duration> {
        let last = failed.iter().filter_map(|p| p.finished_at()).max()?;
        let doublings = u32::try_from(failed.len().saturating_sub(1)).unwrap_or(0).min(6);
        let until = last.checked_add((BACKOFF * 2u32.pow(doublings)).min(BACKOFF_MAX)).ok()?;
        let left = until.duration_since(self.now);
        left.is_positive().then(|| left.unsigned_abs())
    }

    fn again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |known| known.min(after)));
    }
}

/// All pods are gone: what was decided becomes final.
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

/// The body of a Job's pod.
pub(super) fn pod_body(job: &Job, index: i32) -> Value {
    let mut body = crate::pods::body(&job.spec.template, job.name(), job.as_controller());
    let labels = &mut body["metadata"]["labels"];
    for (key, value) in [("controller-uid", job.uid()), ("job-name", job.name())] {
        labels[key] = json!(value);
        labels[format!("batch.kubernetes.io/{key}")] = json!(value);
    }
    if !job.indexed() {
        return body;
    }
    labels[COMPLETION_INDEX] = json!(index.to_string());
    body["metadata"]["annotations"][COMPLETION_INDEX] = json!(index.to_string());
    body["metadata"]["generateName"] = json!(format!("{}-{index}-", job.name()));
    body["spec"]["hostname"] = json!(format!("{}-{index}", job.name()));
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
        {"apiVersion": "v1", "fieldPath": format!("metadata.labels['{COMPLETION_INDEX}']")}}});
    for kind in ["containers", "initContainers"] {
        for container in body["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            match container.get_mut("env").and_then(Value::as_array_mut) {
                Some(env) => env.push(variable.clone()),
                None => container["env"] = json!([variable]),
            }
        }
    }
    body
}

fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(COMPLETION_INDEX)?.parse().ok()
}

/// `0-2,4` for {0, 1, 2, 4}.
fn ranges(set: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &i in set {
        match runs.last_mut().filter(|(_, end)| *end + 1 == i) {
            Some((_, end)) => *end = i,
            None => runs.push((i, i)),
        }
    }
    let text = |(start, end): (i32, i32)| match end - start {
        0 => start.to_string(),
        1 => format!("{start},{end}"),
        _ => format!("{start}-{end}"),
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> BTreeSet<i32> {
    let run = |part: &str| {
        let (start, end) = part.split_once('-').unwrap_or((part, part));
        Some(start.parse::<i32>().ok()?..=end.parse::<i32>().ok()?)
    };
    text.split(',').filter_map(run).flatten().collect()
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn job(spec: Value, status: Value) -> Job {
        let mut value = json!({"metadata": {"name": "j", "namespace": "n", "uid": "j"}, "spec": {"parallelism": 2, "completions": 3,
            "template": {"spec": {"containers": [{"name": "c"}]}}}, "status": status});
        json_patch::merge(&mut value["spec"], &spec);
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, phase: &str, extra: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name, "uid": name}, "status": {"phase": phase}});
        json_patch::merge(&mut value, &extra);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn holding(plan: &Plan) -> Vec<&str> {
        plan.status.conditions.iter().filter(|c| c.status == "True").map(|c| c.kind.as_str()).collect()
    }

    #[test]
    fn runs_to_completion() {
        let none = json!({});
        let p = |name: &str, phase: &str| pod(name, phase, json!({}));
        let first = plan(&job(none.clone(), none.clone()), &[], at(1000));
        assert_eq!((first.create.len(), first.status.start_time.clone().unwrap().0), (2, at(1000)));
        let pods = [p("a", "Succeeded"), p("b", "Running")];
        assert_eq!(plan(&job(none.clone(), none.clone()), &pods, at(1000)).create.len(), 1);
        let pods = [p("a", "Succeeded"), p("b", "Succeeded"), p("c", "Running")];
        assert!(plan(&job(none.clone(), none.clone()), &pods, at(1000)).create.is_empty());
        let pods = [p("a", "Succeeded"), p("b", "Succeeded"), p("c", "Succeeded")];
        let last = plan(&job(none.clone(), none), &pods, at(1000));
        assert_eq!(holding(&last), ["SuccessCriteriaMet", "Complete"]);
        assert_eq!((last.status.succeeded, last.status.completion_time.unwrap().0), (3, at(1000)));
    }

    #[test]
    fn failures() {
        let failed = |name: &str| {
            pod(
                name,
                "Failed",
                json!({"status": {"containerStatuses": [{"state": {"terminated": {"finishedAt": "1970-01-01T00:16:40Z"}}}]}}),
            )
        };
        let pods = [failed("a"), failed("b")];
        let waits = plan(&job(json!({}), json!({})), &pods, at(1005));
        assert_eq!((waits.create.len(), waits.again), (0, Some(Duration::from_secs(15))));
        assert_eq!(plan(&job(json!({}), json!({})), &pods, at(1021)).create.len(), 2);
        let pods = [failed("a"), failed("b"), pod("c", "Running", json!({}))];
        let over = plan(&job(json!({"backoffLimit": 1}), json!({})), &pods, at(1100));
        assert_eq!((holding(&over), over.delete.len()), (vec!["FailureTarget"], 1));
        let over =
            plan(&job(json!({"backoffLimit": 1}), serde_json::to_value(over.status).unwrap()), &pods[..2], at(1101));
        assert_eq!(holding(&over), ["FailureTarget", "Failed"]);
        let late = job(json!({"activeDeadlineSeconds": 60}), json!({"startTime": "1970-01-01T00:16:40Z"}));
        assert_eq!(plan(&late, &[], at(1030)).again, Some(Duration::from_secs(30)));
        assert_eq!(plan(&late, &[], at(1060)).status.conditions[0].reason, "DeadlineExceeded");
    }

    #[test]
    fn indexes_and_suspension() {
        let indexed = |i: i32, phase: &str| {
            pod(&format!("p{i}"), phase, json!({"metadata": {"annotations": {COMPLETION_INDEX: i.to_string()}}}))
        };
        let wanted = job(
            json!({"completionMode": "Indexed", "completions": 5, "parallelism": 3}),
            json!({"completedIndexes": "0"}),
        );
        let got = plan(&wanted, &[indexed(1, "Succeeded"), indexed(3, "Running")], at(1000));
        assert_eq!(
            (got.create, got.status.completed_indexes.as_deref(), got.status.succeeded),
            (vec![2, 4], Some("0,1"), 2)
        );
        let body = pod_body(&wanted, 2);
        assert_eq!(body["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
        assert_eq!(body["metadata"]["labels"]["batch.kubernetes.io/job-name"], "j");
        let asleep = plan(&job(json!({"suspend": true}), json!({})), &[pod("a", "Running", json!({}))], at(1000));
        assert_eq!((holding(&asleep), asleep.delete.len(), asleep.create.len()), (vec!["Suspended"], 1, 0));
        for text in ["", "0", "0,1", "0-2", "1,3-5,9"] {
            assert_eq!(ranges(&parse(text)), text);
        }
    }
}

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{NewPod, pod_body};
use super::plan::{Plan, plan};
use crate::object::Object;
use crate::types::{COMPLETION_INDEX, IGNORED_FAILURES, INDEX_FAILURES, JOB_TRACKING, Job, Pod};

/// Three completions, two at a time.
fn job(spec: Value, status: Value) -> Job {
    let mut value = json!({"metadata": {"name": "j", "namespace": "n", "uid": "j"}, "spec": {"parallelism": 2, "completions": 3,
        "template": {"spec": {"containers": [{"name": "c"}]}}}, "status": status});
    json_patch::merge(&mut value["spec"], &spec);
    serde_json::from_value(value).unwrap()
}

fn indexed(spec: Value, status: Value) -> Job {
    let mut with = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4});
    json_patch::merge(&mut with, &spec);
    job(with, status)
}

/// A pod whose end is not counted yet.
fn pod(name: &str, phase: &str, extra: Value) -> Arc<Pod> {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [JOB_TRACKING]}, "status": {"phase": phase}});
    json_patch::merge(&mut value, &extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

/// The pod of an index; `code` is its container's exit code.
fn of_index(index: i32, phase: &str, code: i32) -> Arc<Pod> {
    let ended =
        json!([{"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": "1970-01-01T00:00:00Z"}}}]);
    let extra = json!({"metadata": {"annotations": {COMPLETION_INDEX: index.to_string()}}, "status": {"containerStatuses": ended}});
    pod(&format!("p{index}"), phase, extra)
}

fn failed(name: &str) -> Arc<Pod> {
    let state = json!({"terminated": {"finishedAt": "1970-01-01T00:16:40Z", "exitCode": 1}});
    pod(name, "Failed", json!({"status": {"containerStatuses": [{"name": "c", "state": state}]}}))
}

/// The same pod once its finalizer is gone.
fn counted(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    pod.metadata.finalizers = None;
    Arc::new(pod)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn holding(plan: &Plan) -> Vec<&str> {
    plan.status.conditions.iter().filter(|c| c.status == "True").map(|c| c.kind.as_str()).collect()
}

fn indexes(plan: &Plan) -> Vec<i32> {
    plan.create.iter().map(|pod| pod.index).collect()
}

/// The Job with the status of a plan.
fn after(mut job: Job, plan: &Plan) -> Job {
    job.status = plan.status.clone();
    job
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
    // All succeeded: first that is noted, then the finalizers go, then it is counted and final.
    let pods = [p("a", "Succeeded"), p("b", "Succeeded"), p("c", "Succeeded")];
    let noted = plan(&job(none.clone(), none.clone()), &pods, at(1000));
    assert_eq!((holding(&noted), noted.release.len()), (vec!["SuccessCriteriaMet"], 3));
    assert_eq!(noted.status.uncounted_terminated_pods.succeeded, ["a", "b", "c"]);
    let pods: Vec<_> = pods.iter().map(counted).collect();
    let last = plan(&after(job(none.clone(), none.clone()), &noted), &pods, at(1001));
    assert_eq!(holding(&last), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!((last.status.succeeded, last.status.completion_time.clone().unwrap().0), (3, at(1001)));
    assert!(last.status.uncounted_terminated_pods.is_empty());
    // Nothing is counted twice.
    let again = plan(&after(job(none.clone(), none), &last), &pods, at(1002));
    assert_eq!(again.status, last.status);
}

#[test]
fn failures() {
    let pods = [failed("a"), failed("b")];
    let waits = plan(&job(json!({}), json!({})), &pods, at(1005));
    assert_eq!((waits.create.len(), waits.again), (0, Some(Duration::from_secs(15))));
    assert_eq!(plan(&job(json!({}), json!({})), &pods, at(1021)).create.len(), 2);
    let pods = [failed("a"), failed("b"), pod("c", "Running", json!({}))];
    let limited = job(json!({"backoffLimit": 1}), json!({}));
    let over = plan(&limited, &pods, at(1100));
    assert_eq!((holding(&over), over.kill.len()), (vec!["FailureTarget"], 1));
    let pods: Vec<_> = pods[..2].iter().map(counted).collect();
    let over = plan(&after(limited, &over), &pods, at(1101));
    assert_eq!((holding(&over), over.status.failed), (vec!["FailureTarget", "Failed"], 2));
    assert_eq!(over.status.conditions[1].message, "Job has reached the specified backoff limit");
    let late = job(json!({"activeDeadlineSeconds": 60}), json!({"startTime": "1970-01-01T00:16:40Z"}));
    assert_eq!(plan(&late, &[], at(1030)).again, Some(Duration::from_secs(30)));
    assert_eq!(plan(&late, &[], at(1060)).status.conditions[0].reason, "DeadlineExceeded");
}

#[test]
fn pods_on_their_way_out() {
    let leaving = || pod("a", "Running", json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
    let got = plan(&job(json!({}), json!({})), &[leaving()], at(1000));
    assert_eq!((got.create.len(), got.status.terminating), (2, Some(1)), "replaced at once");
    assert_eq!(got.status.uncounted_terminated_pods.failed, ["a"]);
    let got = plan(&job(json!({"podReplacementPolicy": "Failed"}), json!({})), &[leaving()], at(1000));
    assert_eq!(got.create.len(), 1, "replaced when it has failed");
    assert!(got.status.uncounted_terminated_pods.is_empty());
}

#[test]
fn indexes_and_suspension() {
    let wanted = indexed(json!({"completions": 5, "parallelism": 3}), json!({"completedIndexes": "0"}));
    let got = plan(&wanted, &[of_index(1, "Succeeded", 0), of_index(3, "Running", 0)], at(1000));
    assert_eq!(
        (indexes(&got), got.status.completed_indexes.as_deref(), got.status.succeeded),
        (vec![2, 4], Some("0,1"), 2)
    );
    let body = pod_body(&wanted, &NewPod { index: 2, ..Default::default() });
    assert_eq!(body["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    assert_eq!((&body["spec"]["hostname"], &body["metadata"]["generateName"]), (&json!("j-2"), &json!("j-2-")));
    assert_eq!(body["metadata"]["labels"]["batch.kubernetes.io/job-name"], "j");
    assert_eq!(body["metadata"]["finalizers"], json!([JOB_TRACKING]));
    // Fewer at once, and one index twice: what is too many goes without counting as failed.
    let fewer = indexed(json!({"parallelism": 1}), json!({}));
    let got = plan(&fewer, &[of_index(0, "Running", 0), of_index(1, "Running", 0)], at(1000));
    assert_eq!(got.remove.iter().map(|p| p.name()).collect::<Vec<_>>(), ["p1"]);
    let got = plan(&indexed(json!({}), json!({})), &[of_index(0, "Running", 0), of_index(0, "Running", 0)], at(1000));
    assert_eq!(got.remove.len(), 1);

    let running = pod("a", "Running", json!({}));
    let asleep = plan(&job(json!({"suspend": true}), json!({})), std::slice::from_ref(&running), at(1000));
    assert_eq!((holding(&asleep), asleep.remove.len(), asleep.create.len()), (vec!["Suspended"], 1, 0));
    let awake = plan(&after(job(json!({}), json!({})), &asleep), &[], at(2000));
    assert_eq!((holding(&awake), awake.create.len()), (vec![], 2));
    assert_eq!(
        (awake.status.conditions[0].reason.as_str(), awake.status.start_time.unwrap().0),
        ("JobResumed", at(2000))
    );
}

#[test]
fn limits_per_index() {
    let spec = json!({"backoffLimitPerIndex": 1});
    let wanted = indexed(spec.clone(), json!({}));
    // The first failure of an index: replaced after its own delay, while the other indexes go on.
    let fresh = of_index(1, "Failed", 1);
    let pods = [of_index(0, "Running", 0), fresh.clone(), of_index(2, "Running", 0), of_index(3, "Running", 0)];
    let waits = plan(&wanted, &pods, at(5));
    assert_eq!((waits.create.len(), waits.again, waits.release.len()), (0, Some(Duration::from_secs(5)), 0));
    let got = plan(&wanted, &pods, at(1000));
    assert_eq!(got.create, [NewPod { index: 1, failures: 1, ignored: 0 }]);
    assert!(got.release.is_empty(), "it carries the count until another one does");
    let body = pod_body(&wanted, &got.create[0]);
    assert_eq!(
        (&body["metadata"]["annotations"][INDEX_FAILURES], &body["metadata"]["annotations"][IGNORED_FAILURES]),
        (&json!("1"), &Value::Null)
    );
    // The second: the index is lost, and once all others are done, the Job.
    let mut second = (*of_index(1, "Failed", 1)).clone();
    second.metadata.annotations.as_mut().unwrap().insert(INDEX_FAILURES.into(), "1".into());
    let done = |i| of_index(i, "Succeeded", 0);
    let got = plan(&wanted, &[done(0), Arc::new(second.clone()), of_index(2, "Running", 0), done(3)], at(1000));
    assert_eq!((got.status.failed_indexes.as_deref(), got.create.len(), holding(&got)), (Some("1"), 0, vec![]));
    let got = plan(&wanted, &[done(0), Arc::new(second.clone()), done(2), done(3)], at(1000));
    assert_eq!((holding(&got), got.status.conditions[0].reason.as_str()), (vec!["FailureTarget"], "FailedIndexes"));
    let strict = indexed(json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 0}), json!({}));
    let got = plan(&strict, &[Arc::new(second), of_index(2, "Running", 0)], at(1000));
    assert_eq!((got.status.conditions[0].reason.as_str(), got.kill.len()), ("MaxFailedIndexesExceeded", 1));
}

#[test]
fn rules_for_failures() {
    let rules = json!({"podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
        {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}},
    ]}, "backoffLimit": 0, "backoffLimitPerIndex": 5});
    let wanted = indexed(rules, json!({}));
    let of = |code: i32| plan(&wanted, &[of_index(1, "Failed", code)], at(100_000));
    let fatal = of(42);
    assert_eq!(
        (holding(&fatal), fatal.status.conditions[0].reason.as_str()),
        (vec!["FailureTarget"], "PodFailurePolicy")
    );
    assert_eq!(
        fatal.status.conditions[0].message,
        "Container c for pod n/p1 failed with exit code 42 matching FailJob rule at index 1"
    );
    let lost = of(3);
    assert_eq!(lost.status.failed_indexes.as_deref(), Some("1"));
    // Exit code 1 counts; the limit is reached.
    assert_eq!(of(1).status.conditions[0].reason, "BackoffLimitExceeded");
    let mut evicted = (*of_index(1, "Failed", 137)).clone();
    evicted.status.conditions =
        serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True"}])).unwrap();
    let got = plan(&wanted, &[Arc::new(evicted)], at(100_000));
    assert_eq!((holding(&got), got.status.failed, indexes(&got)), (vec![], 0, vec![0, 1, 2, 3]));
    assert_eq!((got.create[1].failures, got.create[1].ignored), (0, 1));
    assert!(got.status.uncounted_terminated_pods.is_empty(), "what is ignored is not counted");
}

#[test]
fn rules_for_success() {
    for (rule, done, expected) in [
        (json!({"succeededCount": 2}), vec![0, 3], true),
        (json!({"succeededCount": 2}), vec![0], false),
        (json!({"succeededIndexes": "0-1"}), vec![0, 3], false),
        (json!({"succeededIndexes": "0-1"}), vec![0, 1], true),
        (json!({"succeededIndexes": "0-2", "succeededCount": 1}), vec![2], true),
        (json!({"succeededIndexes": "0-2", "succeededCount": 1}), vec![3], false),
    ] {
        let wanted = indexed(json!({"successPolicy": {"rules": [rule]}}), json!({}));
        let mut pods: Vec<_> = done.iter().map(|i| of_index(*i, "Succeeded", 0)).collect();
        pods.push(pod("busy", "Running", json!({"metadata": {"annotations": {COMPLETION_INDEX: "1"}}})));
        let got = plan(&wanted, &pods, at(1000));
        assert_eq!(holding(&got) == ["SuccessCriteriaMet"], expected, "{rule} {done:?}");
        if expected {
            let condition = &got.status.conditions[0];
            assert_eq!(
                (condition.reason.as_str(), condition.message.as_str()),
                ("SuccessPolicy", "Matched rules at index 0")
            );
            assert_eq!(got.kill.len(), 1);
        }
    }
}

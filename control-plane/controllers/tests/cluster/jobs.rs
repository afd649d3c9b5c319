//! Jobs and CronJobs.

use serde_json::{Value, json};

use crate::common::{Cluster, condition};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "done"}]}});
    let spec = json!({"completions": 3, "parallelism": 2, "template": template, "ttlSecondsAfterFinished": 1});
    cluster.create("Job", json!({"metadata": {"name": "j", "namespace": "n"}, "spec": spec})).await;
    let all = cluster.until("Job", "n", |all| condition(&all["j"], "Complete")["status"] == "True").await;
    assert_eq!((&all["j"]["status"]["succeeded"], &all["j"]["status"]["failed"]), (&json!(3), &json!(0)));
    cluster.until("Job", "n", |all| all.is_empty()).await;
    cluster.until("Pod", "n", |all| all.is_empty()).await;
}

fn job(name: &str, image: &str, spec: Value) -> Value {
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}});
    let mut body = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"template": template}});
    json_patch::merge(&mut body["spec"], &spec);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_and_rules() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let indexed = |extra: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2});
        json_patch::merge(&mut spec, &extra);
        spec
    };
    let fails =
        |action: &str| json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [1, 42]}}]});
    for (name, image, spec, condition_kind, reason) in [
        ("per-index", "odd", indexed(json!({"backoffLimitPerIndex": 1})), "Failed", "FailedIndexes"),
        (
            "at-most",
            "odd",
            indexed(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
            "Failed",
            "MaxFailedIndexesExceeded",
        ),
        (
            "fail-index",
            "odd",
            indexed(json!({"backoffLimitPerIndex": 9, "podFailurePolicy": fails("FailIndex")})),
            "Failed",
            "FailedIndexes",
        ),
        ("fail-job", "exit:42", json!({"podFailurePolicy": fails("FailJob")}), "Failed", "PodFailurePolicy"),
        ("limit", "exit:42", json!({"backoffLimit": 0}), "Failed", "BackoffLimitExceeded"),
        (
            "enough",
            "done",
            indexed(json!({"successPolicy": {"rules": [{"succeededCount": 1}]}})),
            "Complete",
            "SuccessPolicy",
        ),
        ("all", "done", indexed(json!({})), "Complete", "CompletionsReached"),
    ] {
        cluster.create("Job", job(name, image, spec)).await;
        let all = cluster.until("Job", "n", |all| condition(&all[name], condition_kind)["status"] == "True").await;
        let status = &all[name]["status"];
        assert_eq!(condition(&all[name], condition_kind)["reason"], reason, "{name}");
        assert_eq!(status["uncountedTerminatedPods"], json!({}), "{name}");
        match name {
            "per-index" => assert_eq!(
                (&status["completedIndexes"], &status["failedIndexes"], &status["failed"]),
                (&json!("0,2"), &json!("1,3"), &json!(4))
            ),
            "fail-index" => assert_eq!(status["failed"], 2),
            "all" => assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&json!("0-3"), &json!(4))),
            _ => {}
        }
    }
    // Nothing holds the pods of ended Jobs.
    let held = |pod: &Value| pod["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    cluster.until("Pod", "n", |all| !all.values().any(held)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_sleep_adopt_and_go() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Job", job("j", "busy", json!({"parallelism": 2, "suspend": true}))).await;
    cluster.until("Job", "n", |all| condition(&all["j"], "Suspended")["status"] == "True").await;
    cluster.patch("Job", "n", "j", json!({"spec": {"suspend": false}})).await;
    let all = cluster.until("Job", "n", |all| all["j"]["status"]["ready"] == 2).await;
    assert_eq!(condition(&all["j"], "Suspended")["reason"], "JobResumed");
    // A pod whose owner is taken away is adopted again; one whose labels change is let go and replaced.
    let pods = cluster.until("Pod", "n", |all| all.len() == 2).await;
    let names: Vec<&String> = pods.keys().collect();
    cluster.patch("Pod", "n", names[0], json!({"metadata": {"ownerReferences": null}})).await;
    cluster.until("Pod", "n", |all| all[names[0]]["metadata"]["ownerReferences"][0]["name"] == "j").await;
    let stranger = json!({"batch.kubernetes.io/controller-uid": null, "controller-uid": null, "batch.kubernetes.io/job-name": null, "job-name": null});
    cluster.patch("Pod", "n", names[1], json!({"metadata": {"labels": stranger}})).await;
    let owned = |pod: &Value| pod["metadata"]["ownerReferences"][0]["name"] == "j";
    let all =
        cluster.until("Pod", "n", |all| all.len() == 3 && all.values().filter(|pod| owned(pod)).count() == 2).await;
    assert!(!owned(&all[names[1]]));
    cluster.patch("Job", "n", "j", json!({"spec": {"suspend": true}})).await;
    cluster.until("Pod", "n", |all| all.keys().collect::<Vec<_>>() == [names[1]]).await;
    let all = cluster.until("Job", "n", |all| all["j"]["status"]["active"] == 0).await;
    assert_eq!(all["j"]["status"]["failed"], 0, "a pause is no failure");
    cluster.patch("Job", "n", "j", json!({"spec": {"suspend": false}})).await;
    cluster.until("Job", "n", |all| all["j"]["status"]["ready"] == 2).await;
    cluster.delete("Job", "n", "j", kube::api::DeleteParams::background()).await;
    cluster.until("Pod", "n", |all| all.len() == 1).await;
}

/// The finalizer that a running pod without one gets is taken off in the same turn that lets the pod go.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_adopted_by_a_suspended_job_is_no_failure() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    let created = cluster.create("Job", job("j", "busy", json!({"suspend": true}))).await;
    let all = cluster.until("Job", "n", |all| condition(&all["j"], "Suspended")["status"] == "True").await;
    let labels = &created["spec"]["template"]["metadata"]["labels"];
    let stray = json!({
        "metadata": {"name": "stray", "namespace": "n", "labels": labels},
        "spec": all["j"]["spec"]["template"]["spec"],
    });
    cluster.create("Pod", stray).await;
    cluster.until("Pod", "n", |all| all.is_empty()).await;
    cluster.patch("Job", "n", "j", json!({"spec": {"suspend": false}})).await;
    let all = cluster.until("Job", "n", |all| all["j"]["status"]["active"] == 1).await;
    assert_eq!(all["j"]["status"]["failed"], 0, "a pause is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn cron_jobs_start_jobs() {
    // The controllers' clock is ahead of the creation of every CronJob, so each is due at once.
    let ahead = std::time::Duration::from_secs(600);
    let cluster = Cluster::with(|options| sluice_controllers::Options {
        clock: std::sync::Arc::new(move || jiff::Timestamp::now() + ahead),
        ..options
    })
    .await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let cron = |name: &str, image: &str, extra: Value| {
        let mut spec = json!({"schedule": "*/1 * * * *", "jobTemplate": {"spec": job("x", image, json!({}))["spec"]}});
        json_patch::merge(&mut spec, &extra);
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec})
    };
    cluster.create("CronJob", cron("asleep", "done", json!({"suspend": true}))).await;
    cluster.create("CronJob", cron("quick", "done", json!({"timeZone": "Europe/Berlin"}))).await;
    cluster.create("CronJob", cron("slow", "busy", json!({"concurrencyPolicy": "Forbid"}))).await;
    let all = cluster
        .until("CronJob", "n", |all| {
            all.contains_key("slow")
                && all["quick"]["status"]["lastSuccessfulTime"].is_string()
                && all["slow"]["status"]["active"].as_array().is_some_and(|active| active.len() == 1)
        })
        .await;
    assert!(all["asleep"]["status"]["lastScheduleTime"].is_null());
    let jobs = cluster.until("Job", "n", |all| all.len() >= 2).await;
    let started = jobs.iter().find(|(name, _)| name.starts_with("slow-")).unwrap().1;
    assert_eq!(started["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    assert_eq!(all["slow"]["status"]["active"][0]["uid"], started["metadata"]["uid"]);
    assert!(!jobs.keys().any(|name| name.starts_with("asleep-")));
    let told = cluster.until("Event", "n", |all| all.values().any(|e| e["reason"] == "SawCompletedJob")).await;
    // However late the news of a Job comes.
    assert!(!told.values().any(|e| e["reason"] == "MissingJob" || e["reason"] == "UnexpectedJob"), "{told:#?}");
    cluster.delete("CronJob", "n", "slow", kube::api::DeleteParams::background()).await;
    cluster.until("Job", "n", |all| !all.keys().any(|name| name.starts_with("slow-"))).await;
    cluster.until("Pod", "n", |all| !all.keys().any(|name| name.starts_with("slow-"))).await;
}

//! Jobs and CronJobs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Template, nullable, resource};
use crate::informer::Kind;
use crate::object::Object;

/// A Job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Job {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: JobSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: JobStatus,
}
resource!(Job, "batch", "v1", "Job", "jobs", NamespaceResourceScope);

impl Kind for Job {
    fn indexes(&self) -> Vec<String> {
        self.controller().map(|owner| format!("owner/{}", owner.uid)).into_iter().collect()
    }
}

/// What is wanted of a Job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JobSpec {
    /// Pods at once.
    pub(crate) parallelism: Option<i32>,
    /// Successes wanted; without, one success ends it.
    pub(crate) completions: Option<i32>,
    /// NonIndexed or Indexed.
    pub(crate) completion_mode: Option<String>,
    /// Failures tolerated.
    pub(crate) backoff_limit: Option<i32>,
    /// Failures tolerated of one index.
    pub(crate) backoff_limit_per_index: Option<i32>,
    /// Failed indexes tolerated.
    pub(crate) max_failed_indexes: Option<i32>,
    /// Seconds it may take.
    pub(crate) active_deadline_seconds: Option<i64>,
    /// Seconds it is kept once finished.
    pub(crate) ttl_seconds_after_finished: Option<i64>,
    /// No pods for now.
    pub(crate) suspend: bool,
    /// Its pods.
    pub(crate) selector: Option<LabelSelector>,
    /// The pods' template.
    pub(crate) template: Template,
    /// Another controller's, if set.
    pub(crate) managed_by: Option<String>,
    /// What a failure means.
    pub(crate) pod_failure_policy: Option<FailurePolicy>,
    /// What a success is.
    pub(crate) success_policy: Option<SuccessPolicy>,
    /// TerminatingOrFailed or Failed.
    pub(crate) pod_replacement_policy: Option<String>,
}

/// What a failure means (KEP-3329).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FailurePolicy {
    /// The first that matches counts.
    pub(crate) rules: Vec<FailureRule>,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FailureRule {
    /// FailJob, FailIndex, Ignore or Count.
    pub(crate) action: String,
    /// By exit code.
    pub(crate) on_exit_codes: Option<ExitCodes>,
    /// By condition of the pod.
    #[serde(deserialize_with = "nullable")]
    pub(crate) on_pod_conditions: Vec<ConditionPattern>,
}

/// Exit codes of a rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ExitCodes {
    /// Of this container; of any without it.
    pub(crate) container_name: Option<String>,
    /// In or NotIn.
    pub(crate) operator: String,
    /// The codes.
    pub(crate) values: Vec<i32>,
}

/// A condition of a rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConditionPattern {
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Its status, True unless named.
    pub(crate) status: Option<String>,
}

/// When a Job has succeeded (KEP-3998).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SuccessPolicy {
    /// Any of them suffices.
    pub(crate) rules: Vec<SuccessRule>,
}

/// One rule: both parts, where both are named.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SuccessRule {
    /// These indexes, as ranges.
    pub(crate) succeeded_indexes: Option<String>,
    /// So many (of them).
    pub(crate) succeeded_count: Option<i32>,
}

/// A Job's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JobStatus {
    /// First start, or restart after a suspension.
    pub(crate) start_time: Option<Time>,
    /// When it was complete.
    pub(crate) completion_time: Option<Time>,
    /// Pods that run or wait to.
    pub(crate) active: i32,
    /// Of these the ready ones.
    pub(crate) ready: Option<i32>,
    /// Pods that succeeded.
    pub(crate) succeeded: i32,
    /// Pods that failed.
    pub(crate) failed: i32,
    /// Pods on their way out.
    pub(crate) terminating: Option<i32>,
    /// Indexes that succeeded, as ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completed_indexes: Option<String>,
    /// Indexes that failed, as ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed_indexes: Option<String>,
    /// Pods whose end is noted but whose finalizer may still be there.
    #[serde(deserialize_with = "nullable")]
    pub(crate) uncounted_terminated_pods: Uncounted,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<JobCondition>,
}

/// Uids of pods whose end is noted but not counted yet; an empty list is written as `null`, which removes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Uncounted {
    /// Those that succeeded.
    #[serde(deserialize_with = "nullable", serialize_with = "or_null")]
    pub(crate) succeeded: Vec<String>,
    /// Those that failed.
    #[serde(deserialize_with = "nullable", serialize_with = "or_null")]
    pub(crate) failed: Vec<String>,
}

impl Uncounted {
    /// Nothing is left to count.
    pub(crate) fn is_empty(&self) -> bool {
        self.succeeded.is_empty() && self.failed.is_empty()
    }

    /// Whether the pod's end is noted.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.succeeded.iter().chain(&self.failed).any(|known| known == uid)
    }
}

fn or_null<T: Serialize, S: serde::Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    Some(list).filter(|list| !list.is_empty()).serialize(serializer)
}

/// A condition of a Job.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobCondition {
    /// Complete, Failed, Suspended, ...
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// True or False.
    pub(crate) status: String,
    /// Last time it was looked at.
    pub(crate) last_probe_time: Option<Time>,
    /// Since when.
    pub(crate) last_transition_time: Option<Time>,
    /// Word for programs.
    #[serde(default)]
    pub(crate) reason: String,
    /// Sentence for people.
    #[serde(default)]
    pub(crate) message: String,
}

impl Job {
    /// A condition that holds.
    pub(crate) fn holds(&self, kind: &str) -> bool {
        self.status.conditions.iter().any(|c| c.kind == kind && c.status == "True")
    }

    /// Complete or Failed.
    pub(crate) fn finished(&self) -> bool {
        self.holds("Complete") || self.holds("Failed")
    }

    /// Every success has its number.
    pub(crate) fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }
}

/// A CronJob.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CronJob {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: CronJobSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: CronJobStatus,
}
resource!(CronJob, "batch", "v1", "CronJob", "cronjobs", NamespaceResourceScope);
impl Kind for CronJob {}

/// What is wanted of a CronJob.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CronJobSpec {
    /// Five fields, or `@hourly` and the like.
    pub(crate) schedule: String,
    /// Name of the zone the schedule is in; UTC without.
    pub(crate) time_zone: Option<String>,
    /// Seconds a Job may be late.
    pub(crate) starting_deadline_seconds: Option<i64>,
    /// Allow, Forbid or Replace.
    pub(crate) concurrency_policy: Option<String>,
    /// No Jobs for now.
    pub(crate) suspend: bool,
    /// Its Jobs.
    pub(crate) job_template: Template,
    /// Complete Jobs kept.
    pub(crate) successful_jobs_history_limit: Option<i32>,
    /// Failed Jobs kept.
    pub(crate) failed_jobs_history_limit: Option<i32>,
}

/// A CronJob's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CronJobStatus {
    /// Jobs that run.
    #[serde(deserialize_with = "nullable")]
    pub(crate) active: Vec<Reference>,
    /// Last time a Job was due and started.
    pub(crate) last_schedule_time: Option<Time>,
    /// Last time one completed.
    pub(crate) last_successful_time: Option<Time>,
}

/// A Job that runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Reference {
    /// `batch/v1`.
    pub(crate) api_version: String,
    /// `Job`.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// State it was seen in.
    pub(crate) resource_version: String,
    /// Identity.
    pub(crate) uid: String,
}

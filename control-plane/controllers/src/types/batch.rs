//! Jobs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Template, nullable, resource};
use crate::informer::Kind;

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
impl Kind for Job {}

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
    /// Seconds it may take.
    pub(crate) active_deadline_seconds: Option<i64>,
    /// Seconds it is kept once finished.
    pub(crate) ttl_seconds_after_finished: Option<i64>,
    /// No pods for now.
    pub(crate) suspend: bool,
    /// The pods' template.
    pub(crate) template: Template,
    /// Another controller's, if set.
    pub(crate) managed_by: Option<String>,
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
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<JobCondition>,
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

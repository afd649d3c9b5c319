//! Deployments, ReplicaSets and ReplicationControllers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use kube::core::Selector;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{metadata, nullable, resource};
use crate::informer::Kind;
use crate::object::Object;

/// A pod template as compact JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template(pub(crate) Box<str>);

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Value::deserialize(deserializer)?.to_string().into()))
    }
}

impl Template {
    /// The template as a tree.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or(Value::Null)
    }

    /// A template from a tree.
    #[cfg(test)]
    pub(crate) fn from_value(value: &Value) -> Self {
        Self(value.to_string().into())
    }

    /// The labels of its pods.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let value = self.value();
        serde_json::from_value(value["metadata"]["labels"].clone()).unwrap_or_default()
    }
}

/// A number, or a percentage of `of`; rounded `up` or down, never negative.
pub(crate) fn portion(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(of);
            i32::try_from(if up { (product + 99) / 100 } else { product / 100 }).unwrap_or(0).max(0)
        }
    }
}

/// A Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Deployment {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: DeploymentSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: DeploymentStatus,
}
resource!(Deployment, "apps", "v1", "Deployment", "deployments", NamespaceResourceScope);
impl Kind for Deployment {}

/// What is wanted of a Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DeploymentSpec {
    /// Pods wanted.
    pub(crate) replicas: Option<i32>,
    /// Its pods.
    pub(crate) selector: LabelSelector,
    /// The pods' template.
    pub(crate) template: Template,
    /// How pods are replaced.
    pub(crate) strategy: Strategy,
    /// Seconds a pod must be ready.
    pub(crate) min_ready_seconds: Option<i64>,
    /// Old ReplicaSets kept.
    pub(crate) revision_history_limit: Option<i32>,
    /// Changes of the template wait.
    pub(crate) paused: bool,
    /// Seconds without progress before it is said.
    pub(crate) progress_deadline_seconds: Option<i64>,
}

/// How pods are replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Strategy {
    /// RollingUpdate or Recreate.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Bounds of a rolling update.
    pub(crate) rolling_update: Option<RollingUpdate>,
}

/// Bounds of a rolling update.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RollingUpdate {
    /// Pods more than wanted.
    pub(crate) max_surge: Option<IntOrString>,
    /// Pods fewer than wanted.
    pub(crate) max_unavailable: Option<IntOrString>,
}

/// A Deployment's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DeploymentStatus {
    /// Generation the status speaks of.
    pub(crate) observed_generation: i64,
    /// Pods.
    pub(crate) replicas: i32,
    /// Pods of the newest template.
    pub(crate) updated_replicas: i32,
    /// Pods ready.
    pub(crate) ready_replicas: i32,
    /// Pods ready long enough.
    pub(crate) available_replicas: i32,
    /// Pods missing.
    pub(crate) unavailable_replicas: i32,
    /// Pods on their way out.
    pub(crate) terminating_replicas: Option<i32>,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<DeploymentCondition>,
    /// Hash collisions met.
    pub(crate) collision_count: Option<i32>,
}

/// A condition of a Deployment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeploymentCondition {
    /// Available, Progressing or ReplicaFailure.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// True, False or Unknown.
    pub(crate) status: String,
    /// Last time it was confirmed.
    pub(crate) last_update_time: Option<Time>,
    /// Since when.
    pub(crate) last_transition_time: Option<Time>,
    /// Word for programs.
    #[serde(default)]
    pub(crate) reason: String,
    /// Sentence for people.
    #[serde(default)]
    pub(crate) message: String,
}

/// A ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReplicaSet {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: ReplicaSetSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: ReplicaSetStatus,
}
resource!(ReplicaSet, "apps", "v1", "ReplicaSet", "replicasets", NamespaceResourceScope);

impl Kind for ReplicaSet {
    fn indexes(&self) -> Vec<String> {
        vec![match self.controller() {
            Some(owner) => format!("owner/{}", owner.uid),
            None => format!("orphan/{}", self.ns()),
        }]
    }
}

/// What is wanted of a ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ReplicaSetSpec {
    /// Pods wanted.
    pub(crate) replicas: Option<i32>,
    /// Its pods.
    pub(crate) selector: LabelSelector,
    /// The pods' template.
    pub(crate) template: Template,
    /// Seconds a pod must be ready.
    pub(crate) min_ready_seconds: Option<i64>,
}

/// A ReplicaSet's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ReplicaSetStatus {
    /// Pods.
    pub(crate) replicas: i32,
    /// Pods with all the template's labels.
    pub(crate) fully_labeled_replicas: i32,
    /// Pods ready.
    pub(crate) ready_replicas: i32,
    /// Pods ready long enough.
    pub(crate) available_replicas: i32,
    /// Pods on their way out.
    pub(crate) terminating_replicas: Option<i32>,
    /// Generation the status speaks of.
    pub(crate) observed_generation: i64,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<ReplicaSetCondition>,
}

/// A condition of a ReplicaSet.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicaSetCondition {
    /// ReplicaFailure.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// True.
    pub(crate) status: String,
    /// Since when.
    pub(crate) last_transition_time: Option<Time>,
    /// Word for programs.
    #[serde(default)]
    pub(crate) reason: String,
    /// Sentence for people.
    #[serde(default)]
    pub(crate) message: String,
}

/// A ReplicationController.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReplicationController {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: ReplicationControllerSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: ReplicaSetStatus,
}
resource!(ReplicationController, "", "v1", "ReplicationController", "replicationcontrollers", NamespaceResourceScope);
impl Kind for ReplicationController {}

/// What is wanted of a ReplicationController.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ReplicationControllerSpec {
    /// Pods wanted.
    pub(crate) replicas: Option<i32>,
    /// Labels of its pods.
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: BTreeMap<String, String>,
    /// The pods' template.
    pub(crate) template: Template,
    /// Seconds a pod must be ready.
    pub(crate) min_ready_seconds: Option<i64>,
}

/// What keeps a number of equal pods: the common view of ReplicaSet and ReplicationController.
pub(crate) trait Selectable: Kind {
    /// Pods wanted.
    fn replicas(&self) -> i32;
    /// The pods' template.
    fn template(&self) -> &Template;
    /// Its pods; `None` when the selector is invalid or selects everything.
    fn selector(&self) -> Option<Selector>;
    /// Seconds a pod must be ready.
    fn min_ready(&self) -> i64;
    /// The status the API holds.
    fn status(&self) -> &ReplicaSetStatus;
}

impl Selectable for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn template(&self) -> &Template {
        &self.spec.template
    }
    fn selector(&self) -> Option<Selector> {
        crate::pods::selector(&self.spec.selector)
    }
    fn min_ready(&self) -> i64 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn status(&self) -> &ReplicaSetStatus {
        &self.status
    }
}

impl Selectable for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn template(&self) -> &Template {
        &self.spec.template
    }
    fn selector(&self) -> Option<Selector> {
        let selector: Selector = self.spec.selector.clone().into_iter().collect();
        Some(selector).filter(|s| !s.selects_all())
    }
    fn min_ready(&self) -> i64 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn status(&self) -> &ReplicaSetStatus {
        &self.status
    }
}

//! StatefulSets.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Template, nullable, resource};
use crate::informer::Kind;

/// A StatefulSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StatefulSet {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: StatefulSetSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: StatefulSetStatus,
}
resource!(StatefulSet, "apps", "v1", "StatefulSet", "statefulsets", NamespaceResourceScope);
impl Kind for StatefulSet {}

/// What is wanted of a StatefulSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatefulSetSpec {
    /// Pods wanted.
    pub(crate) replicas: Option<i32>,
    /// Its pods.
    pub(crate) selector: LabelSelector,
    /// The pods' template.
    pub(crate) template: Template,
    /// The headless Service that names the pods.
    pub(crate) service_name: String,
    /// OrderedReady or Parallel.
    pub(crate) pod_management_policy: Option<String>,
    /// How pods are replaced.
    pub(crate) update_strategy: StatefulStrategy,
    /// Claims made for every pod.
    #[serde(deserialize_with = "nullable")]
    pub(crate) volume_claim_templates: Vec<Value>,
    /// Seconds a pod must be ready.
    pub(crate) min_ready_seconds: Option<i64>,
    /// Old revisions kept.
    pub(crate) revision_history_limit: Option<i32>,
    /// What becomes of the claims.
    #[serde(deserialize_with = "nullable")]
    pub(crate) persistent_volume_claim_retention_policy: Retention,
    /// First number.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ordinals: Ordinals,
}

/// What becomes of the claims: Retain or Delete.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Retention {
    /// When the StatefulSet is deleted.
    pub(crate) when_deleted: Option<String>,
    /// When the pod is scaled away.
    pub(crate) when_scaled: Option<String>,
}

/// Numbers of the pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ordinals {
    /// The first.
    pub(crate) start: i32,
}

/// How a StatefulSet's pods are replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatefulStrategy {
    /// RollingUpdate or OnDelete.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Bounds of a rolling update.
    #[serde(deserialize_with = "nullable")]
    pub(crate) rolling_update: Partition,
}

/// Where a rolling update stops.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Partition {
    /// Pods missing at once; one after the other without it.
    pub(crate) max_unavailable: Option<IntOrString>,
    /// Pods with a smaller number keep their revision.
    #[serde(deserialize_with = "nullable")]
    pub(crate) partition: i32,
}

/// A StatefulSet's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatefulSetStatus {
    /// Generation the status speaks of.
    pub(crate) observed_generation: i64,
    /// Pods.
    pub(crate) replicas: i32,
    /// Pods ready.
    pub(crate) ready_replicas: i32,
    /// Pods ready long enough.
    pub(crate) available_replicas: i32,
    /// Pods of the current revision.
    pub(crate) current_replicas: i32,
    /// Pods of the revision that comes.
    pub(crate) updated_replicas: i32,
    /// Name of the revision all pods had last.
    pub(crate) current_revision: String,
    /// Name of the newest revision.
    pub(crate) update_revision: String,
    /// Always 0: names of revisions do not collide.
    pub(crate) collision_count: i32,
}

//! DaemonSets and ControllerRevisions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Template, nullable, resource};
use crate::informer::Kind;
use crate::object::Object;

/// A DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DaemonSet {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: DaemonSetSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: DaemonSetStatus,
}
resource!(DaemonSet, "apps", "v1", "DaemonSet", "daemonsets", NamespaceResourceScope);
impl Kind for DaemonSet {}

/// What is wanted of a DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DaemonSetSpec {
    /// Its pods.
    pub(crate) selector: LabelSelector,
    /// The pods' template.
    pub(crate) template: Template,
    /// Seconds a pod must be ready.
    pub(crate) min_ready_seconds: Option<i64>,
    /// Old revisions kept.
    pub(crate) revision_history_limit: Option<i32>,
    /// How pods are replaced.
    pub(crate) update_strategy: UpdateStrategy,
}

/// How a DaemonSet's pods are replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct UpdateStrategy {
    /// RollingUpdate or OnDelete.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Bounds of a rolling update.
    pub(crate) rolling_update: Option<RollingDaemons>,
}

/// Bounds of a DaemonSet's rolling update.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RollingDaemons {
    /// Nodes without an available pod.
    pub(crate) max_unavailable: Option<IntOrString>,
    /// Nodes with a pod too many, of the new revision, until it is available.
    pub(crate) max_surge: Option<IntOrString>,
}

/// A DaemonSet's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DaemonSetStatus {
    /// Nodes that should run a pod and do.
    pub(crate) current_number_scheduled: i32,
    /// Nodes that should not and do.
    pub(crate) number_misscheduled: i32,
    /// Nodes that should.
    pub(crate) desired_number_scheduled: i32,
    /// Nodes with a ready pod.
    pub(crate) number_ready: i32,
    /// Nodes with a pod of the newest revision.
    pub(crate) updated_number_scheduled: i32,
    /// Nodes with an available pod.
    pub(crate) number_available: i32,
    /// Nodes without one.
    pub(crate) number_unavailable: i32,
    /// Generation the status speaks of.
    pub(crate) observed_generation: i64,
}

/// A revision of a DaemonSet or StatefulSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ControllerRevision {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Its number.
    pub(crate) revision: i64,
    /// The part of the owner that it keeps.
    pub(crate) data: Template,
}
resource!(ControllerRevision, "apps", "v1", "ControllerRevision", "controllerrevisions", NamespaceResourceScope);

impl Kind for ControllerRevision {
    fn indexes(&self) -> Vec<String> {
        self.controller().map(|owner| format!("owner/{}", owner.uid)).into_iter().collect()
    }
}

//! Pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::{metadata, nullable, resource};
use crate::informer::Kind;
use crate::object::Object;

/// Annotation that lets a user say which pods should go first when a ReplicaSet shrinks.
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Annotation and label with the number of an indexed Job's pod.
pub(crate) const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Annotations with how often the pods of this index failed before, counted and not counted (KEP-3850).
pub(crate) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// See [`INDEX_FAILURES`].
pub(crate) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Finalizer of a Job's pods until their end is counted.
pub(crate) const JOB_TRACKING: &str = "batch.kubernetes.io/job-tracking";
const KEPT: [&str; 4] = [DELETION_COST, COMPLETION_INDEX, INDEX_FAILURES, IGNORED_FAILURES];

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: Spec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: Status,
    /// The one node its affinity names, for pods of DaemonSets that are not bound yet.
    #[serde(skip)]
    pub(crate) target: Option<Box<str>>,
    /// Names of the volume claims it uses.
    #[serde(skip)]
    pub(crate) claims: Box<[Box<str>]>,
}
resource!(Pod, "", "v1", "Pod", "pods", NamespaceResourceScope);

/// What is wanted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    /// Node it is bound to.
    pub(crate) node_name: Option<String>,
    /// Host name within the headless service.
    pub(crate) hostname: Option<String>,
    /// The headless service.
    pub(crate) subdomain: Option<String>,
    /// Only until [`Pod::target`] has been read from it.
    pub(crate) affinity: Option<Affinity>,
    /// Only until [`Pod::claims`] have been read from them.
    #[serde(deserialize_with = "nullable")]
    pub(crate) volumes: Vec<Volume>,
    /// What it tolerates.
    #[serde(deserialize_with = "nullable")]
    pub(crate) tolerations: Vec<Toleration>,
    /// Containers: only their ports.
    #[serde(deserialize_with = "nullable")]
    pub(crate) containers: Vec<Container>,
    /// Init containers: only the ports of sidecars matter.
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_containers: Vec<Container>,
}

/// A volume: only claims.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Volume {
    /// Name within the pod.
    pub(crate) name: String,
    /// A claim by name.
    pub(crate) persistent_volume_claim: Option<ClaimName>,
    /// A claim of the pod's own, named after both.
    pub(crate) ephemeral: Option<serde::de::IgnoredAny>,
}

/// The name of a claim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClaimName {
    /// The name.
    pub(crate) claim_name: String,
}

/// A container's ports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Container {
    /// Always for sidecars.
    pub(crate) restart_policy: Option<String>,
    /// Ports.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<Port>,
}

/// A container port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Port {
    /// Name.
    pub(crate) name: Option<String>,
    /// Number.
    pub(crate) container_port: i32,
    /// Protocol, TCP by default.
    pub(crate) protocol: Option<String>,
}

/// What is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    /// Phase.
    pub(crate) phase: Option<String>,
    /// Reason, such as Evicted.
    pub(crate) reason: Option<String>,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<Condition>,
    /// Addresses.
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub(crate) pod_ips: Vec<PodIp>,
    /// Containers.
    #[serde(deserialize_with = "nullable")]
    pub(crate) container_statuses: Vec<ContainerStatus>,
    /// Init containers and sidecars.
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

/// An address.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodIp {
    /// The address.
    pub(crate) ip: String,
}

/// A container's state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ContainerStatus {
    /// Name.
    pub(crate) name: Box<str>,
    /// How often it was restarted.
    pub(crate) restart_count: i32,
    /// How it ended.
    #[serde(deserialize_with = "nullable")]
    pub(crate) state: State,
}

/// A container's state: only its end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// Set once it ended.
    pub(crate) terminated: Option<Terminated>,
}

/// A container's end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Terminated {
    /// When.
    pub(crate) finished_at: Option<Time>,
    /// With which code.
    pub(crate) exit_code: i32,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Condition {
    /// Its name.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// True, False or Unknown.
    pub(crate) status: String,
    /// Since when.
    pub(crate) last_transition_time: Option<Time>,
}

impl Kind for Pod {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| KEPT.contains(&key.as_str()));
        }
        self.target = self.spec.affinity.take().and_then(named_node);
        let volumes = std::mem::take(&mut self.spec.volumes);
        let claim = |volume: Volume| match (volume.persistent_volume_claim, volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.into_boxed_str()),
            (None, Some(_)) => Some(format!("{}-{}", self.name(), volume.name).into_boxed_str()),
            (None, None) => None,
        };
        self.claims = volumes.into_iter().filter_map(claim).collect();
    }

    fn indexes(&self) -> Vec<String> {
        let owner = match self.controller() {
            Some(owner) => format!("owner/{}", owner.uid),
            None => format!("orphan/{}", self.ns()),
        };
        let node = self.spec.node_name.as_ref().map(|node| format!("node/{node}"));
        std::iter::once(owner).chain(node).collect()
    }
}

/// The node that a required node affinity on `metadata.name` names.
fn named_node(affinity: Affinity) -> Option<Box<str>> {
    let required = affinity.node_affinity?.required_during_scheduling_ignored_during_execution?;
    let mut fields = required.node_selector_terms.into_iter().flat_map(|term| term.match_fields.unwrap_or_default());
    let field = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    field.values?.into_iter().next().map(String::into_boxed_str)
}

impl Pod {
    /// The node it is on, or will be.
    pub(crate) fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref().or(self.target.as_deref())
    }

    /// A condition by name.
    pub(crate) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }

    /// Whether the Ready condition holds.
    pub(crate) fn ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }

    /// Since when it has been ready.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        let condition = self.condition("Ready").filter(|c| c.status == "True")?;
        condition.last_transition_time.as_ref().map(|t| t.0)
    }

    /// Whether it has been ready for `min_ready` seconds.
    pub(crate) fn available(&self, min_ready: i64, now: Timestamp) -> bool {
        self.ready()
            && (min_ready == 0 || self.ready_since().is_some_and(|t| t.as_second() + min_ready <= now.as_second()))
    }

    /// Succeeded or Failed.
    pub(crate) fn finished(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// When its last container ended.
    pub(crate) fn finished_at(&self) -> Option<Timestamp> {
        let ends =
            self.status.container_statuses.iter().filter_map(|c| c.state.terminated.as_ref()?.finished_at.as_ref());
        ends.map(|t| t.0).max()
    }

    /// Whether it has a finalizer.
    pub(crate) fn held_by(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|f| f == finalizer)
    }

    /// Neither finished nor being deleted.
    pub(crate) fn active(&self) -> bool {
        !self.finished() && !self.deleting()
    }
}

//! Narrow views of the kinds the controllers watch: only the fields they use, so that a pod costs hundreds of bytes and not
//! thousands. Templates are kept as compact JSON text: they are copied and compared, never looked into.

mod address;
mod balancer;
mod batch;
mod cluster;
mod daemon;
mod network;
mod pod;
mod stateful;
mod volume;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::ObjectMeta;
use serde::Deserialize;

pub(crate) use address::{IpAddress, Parent, ServiceCidr};
pub(crate) use balancer::{Announcement, AnnouncementSpec, AnnouncingNode, Pool, PoolStatus};
pub(crate) use batch::{CronJob, CronJobStatus, FailureRule, Job, JobCondition, JobStatus, Reference};
pub(crate) use cluster::{
    Certificate, CertificateSpec, ConfigMap, Lease, Namespace, Node, NodeCondition, Secret, ServiceAccount,
};
pub(crate) use daemon::{ControllerRevision, DaemonSet, DaemonSetStatus};
pub(crate) use network::{Endpoints, LoadBalancerIngress, SERVICE_NAME, Service, ServicePort, Slice};
pub(crate) use pod::{COMPLETION_INDEX, DELETION_COST, IGNORED_FAILURES, INDEX_FAILURES, JOB_TRACKING, Pod};
pub(crate) use stateful::{Retention, StatefulSet, StatefulSetStatus};
pub(crate) use volume::{PersistentVolume, PersistentVolumeClaim, StorageClass};
pub(crate) use workload::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition, ReplicaSetStatus,
    ReplicationController, Selectable, Template, portion,
};

/// Implements `kube::Resource` (and, with the last argument, `Kind`) for a struct with a `metadata` field.
macro_rules! resource {
    ($type:ident, $group:literal, $version:literal, $kind:literal, $plural:literal, $scope:ident) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = kube::core::$scope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &kube::api::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut kube::api::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use resource;

/// Metadata without the list of managers, which is the larger part of most objects and read by no controller.
pub(crate) fn metadata<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Narrow {
        name: Option<String>,
        generate_name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        finalizers: Option<Vec<String>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
    }
    let narrow = Narrow::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: narrow.name,
        generate_name: narrow.generate_name,
        namespace: narrow.namespace,
        uid: narrow.uid,
        resource_version: narrow.resource_version,
        generation: narrow.generation,
        labels: narrow.labels,
        annotations: narrow.annotations,
        owner_references: narrow.owner_references,
        finalizers: narrow.finalizers,
        creation_timestamp: narrow.creation_timestamp,
        deletion_timestamp: narrow.deletion_timestamp,
        deletion_grace_period_seconds: narrow.deletion_grace_period_seconds,
        managed_fields: None,
        self_link: None,
    })
}

/// A list that may also arrive as `null`.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}

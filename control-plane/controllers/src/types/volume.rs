//! Persistent volumes, claims and storage classes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::{nullable, resource};
use crate::informer::Kind;

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PersistentVolumeClaim {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: ClaimSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: VolumeStatus,
}
resource!(PersistentVolumeClaim, "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", NamespaceResourceScope);
impl Kind for PersistentVolumeClaim {}

/// What is wanted of a claim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClaimSpec {
    /// ReadWriteOnce, ...
    #[serde(deserialize_with = "nullable")]
    pub(crate) access_modes: Vec<String>,
    /// Which volumes.
    pub(crate) selector: Option<LabelSelector>,
    /// How large.
    #[serde(deserialize_with = "nullable")]
    pub(crate) resources: Resources,
    /// The volume it has, or is to have.
    pub(crate) volume_name: Option<String>,
    /// Of which class; empty: of none.
    pub(crate) storage_class_name: Option<String>,
    /// Filesystem or Block.
    pub(crate) volume_mode: Option<String>,
}

/// A claim's size.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    /// `storage`.
    #[serde(deserialize_with = "nullable")]
    pub(crate) requests: BTreeMap<String, String>,
}

/// The status of a claim or volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct VolumeStatus {
    /// Pending, Available, Bound, Released, Lost, ...
    pub(crate) phase: Option<String>,
}

/// A PersistentVolume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PersistentVolume {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: VolumeSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: VolumeStatus,
}
resource!(PersistentVolume, "", "v1", "PersistentVolume", "persistentvolumes", ClusterResourceScope);
impl Kind for PersistentVolume {}

/// What a volume offers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VolumeSpec {
    /// ReadWriteOnce, ...
    #[serde(deserialize_with = "nullable")]
    pub(crate) access_modes: Vec<String>,
    /// `storage`.
    #[serde(deserialize_with = "nullable")]
    pub(crate) capacity: BTreeMap<String, String>,
    /// Whose it is, or is to be.
    pub(crate) claim_ref: Option<ClaimRef>,
    /// Its class.
    pub(crate) storage_class_name: Option<String>,
    /// Filesystem or Block.
    pub(crate) volume_mode: Option<String>,
}

/// A claim as its volume names it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimRef {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// Identity; empty when reserved for a claim that may not exist yet.
    pub(crate) uid: String,
}

/// A StorageClass: only when its claims are bound.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StorageClass {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Immediate or WaitForFirstConsumer.
    pub(crate) volume_binding_mode: Option<String>,
}
resource!(StorageClass, "storage.k8s.io", "v1", "StorageClass", "storageclasses", ClusterResourceScope);
impl Kind for StorageClass {}

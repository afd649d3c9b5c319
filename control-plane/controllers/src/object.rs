//! What every object has, without the `Option`s: keys, owners, labels.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use serde_json::{Value, json};

use crate::queue::Key;

/// Short accessors of an object's metadata.
pub(crate) trait Object: Resource<DynamicType = ()> {
    /// Its name.
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    /// Its namespace, empty for cluster-scoped kinds.
    fn ns(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    /// Its uid.
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    /// Its `metadata.resourceVersion`.
    fn meta_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }

    /// Its key.
    fn key(&self) -> Key {
        Key::new(self.ns(), self.name())
    }

    /// Its labels.
    fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.meta().labels.as_ref().unwrap_or(&NONE)
    }

    /// Its annotations.
    fn annotations(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.meta().annotations.as_ref().unwrap_or(&NONE)
    }

    /// Whether it is being deleted.
    fn deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    /// When it was created.
    fn created(&self) -> Timestamp {
        self.meta().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
    }

    /// `metadata.generation`.
    fn generation(&self) -> i64 {
        self.meta().generation.unwrap_or(0)
    }

    /// The controller that owns it.
    fn controller(&self) -> Option<&OwnerReference> {
        self.meta().owner_references.as_deref().unwrap_or_default().iter().find(|o| o.controller == Some(true))
    }

    /// Whether the object with this uid controls it.
    fn controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|owner| owner.uid == uid)
    }

    /// An owner reference that makes this object the controller of another.
    fn as_controller(&self) -> Value {
        json!({
            "apiVersion": Self::api_version(&()), "kind": Self::kind(&()), "name": self.name(), "uid": self.uid(),
            "controller": true, "blockOwnerDeletion": true,
        })
    }
}

impl<K: Resource<DynamicType = ()>> Object for K {}

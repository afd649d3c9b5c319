//! Writes of the server as itself: bootstrap objects, service accounts' tokens, status it owns.
//! Metadata and defaults are filled in; admission and validation are not run.

use std::sync::Arc;

use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};

use super::{Along, Storage, StoredObject};
use crate::{limits, meta};

impl Storage {
    /// Creates an object. `AlreadyExists` when the name is taken.
    pub async fn create(&self, resource: &Resource, mut object: Value) -> Result<Arc<StoredObject>, Status> {
        type_meta(resource, &mut object);
        sluice_api::strategy::defaults(resource, &mut object);
        meta::stamp(&mut object);
        match self.insert(resource, &object, Along::default()).await? {
            Some(stored) => Ok(stored),
            None => Err(Status::already_exists(resource, meta::name(&object))),
        }
    }

    /// Replaces an object; `metadata.resourceVersion` and `metadata.uid` are checked when they are
    /// there. `NotFound` and `Conflict` as for clients.
    pub async fn update(&self, resource: &Resource, mut object: Value) -> Result<Arc<StoredObject>, Status> {
        type_meta(resource, &mut object);
        sluice_api::strategy::defaults(resource, &mut object);
        let name = meta::name(&object).to_owned();
        let namespace = meta::namespace(&object).to_owned();
        let wanted = meta::resource_version(&object).map_err(|_| Status::conflict(resource, &name))?;
        for _ in 0..limits::WRITE_ATTEMPTS {
            let current = self
                .get(resource.store_prefix(), &namespace, &name)
                .ok_or_else(|| Status::not_found(resource, &name))?;
            let uid = meta::text(&object, "uid");
            let other = !uid.is_empty() && uid != &*current.uid;
            if other || wanted.is_some_and(|wanted| wanted != current.revision) {
                return Err(Status::conflict(resource, &name));
            }
            if uid.is_empty() {
                let old = current.value();
                for field in ["uid", "creationTimestamp"] {
                    meta::set(&mut object, field, old["metadata"][field].clone());
                }
            }
            if let Some(stored) = self.replace(resource, &object, current.revision, Along::default()).await? {
                return Ok(stored);
            }
            self.fresh().await?;
        }
        Err(Status::conflict(resource, &name))
    }

    /// Deletes at once, finalizers or not. `NotFound` when there is nothing.
    pub async fn delete(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), Status> {
        for _ in 0..limits::WRITE_ATTEMPTS {
            let current =
                self.get(resource.store_prefix(), namespace, name).ok_or_else(|| Status::not_found(resource, name))?;
            if self.remove(resource, namespace, name, current.revision, Along::default()).await?.is_some() {
                return Ok(());
            }
            self.fresh().await?;
        }
        Err(Status::conflict(resource, name))
    }
}

/// Sets `apiVersion` and `kind`, first in the object.
fn type_meta(resource: &Resource, object: &mut Value) {
    let map = meta::map(object);
    if !map.contains_key("apiVersion") {
        map.shift_insert(0, "apiVersion".into(), resource.api_version().into());
    }
    if !map.contains_key("kind") {
        map.shift_insert(0, "kind".into(), resource.kind.clone().into());
    }
}

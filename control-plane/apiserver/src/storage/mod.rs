//! The server's view of the store: typed reads from the watch cache, writes with compare-and-swap.
//! The only module that builds store keys. It knows objects, not requests: defaults, validation
//! and admission happen above it, except for what the server writes as itself.

mod object;

use std::sync::Arc;

use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};
use sluice_store::{DynEngine, Revision};

pub use object::StoredObject;

use crate::context::AtRest;

/// Reads and writes of objects. Shared as `Arc<Storage>`.
pub struct Storage {
    engine: DynEngine,
    at_rest: Arc<dyn AtRest>,
}

/// Objects of one collection at one revision, sorted by namespace and name.
pub struct Objects {
    pub revision: Revision,
    pub items: Vec<Arc<StoredObject>>,
}

impl Storage {
    /// Loads the cache; ready when this returns.
    pub async fn start(engine: DynEngine, at_rest: Arc<dyn AtRest>) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self { engine, at_rest }))
    }

    /// The newest state that the cache has seen. `prefix` is [`Resource::store_prefix`]; the
    /// namespace is empty for cluster-scoped resources.
    pub fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<StoredObject>> {
        let _ = (prefix, namespace, name);
        None
    }

    /// The newest collection that the cache has seen: of one namespace, or of all for `""`.
    pub fn list(&self, prefix: &str, namespace: &str) -> Objects {
        let _ = (prefix, namespace);
        Objects { revision: 0, items: Vec::new() }
    }

    /// Waits until the cache has everything that was committed before the call.
    pub async fn fresh(&self) -> Result<Revision, Status> {
        self.engine.revision().await.map_err(|e| internal(&e))
    }

    /// Creates an object as the server itself: metadata and defaults are filled in, admission and
    /// validation are not run. `AlreadyExists` when the name is taken.
    pub async fn create(&self, resource: &Resource, object: Value) -> Result<Arc<StoredObject>, Status> {
        let _ = (resource, object, &self.at_rest);
        Err(internal(&"the cache is not linked"))
    }

    /// Replaces an object as the server itself; `metadata.resourceVersion` and `metadata.uid` are
    /// checked when they are there. `NotFound` and `Conflict` as for clients.
    pub async fn update(&self, resource: &Resource, object: Value) -> Result<Arc<StoredObject>, Status> {
        let _ = (resource, object);
        Err(internal(&"the cache is not linked"))
    }

    /// Deletes at once, finalizers or not. `NotFound` when there is nothing.
    pub async fn delete(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), Status> {
        let _ = (resource, namespace, name);
        Err(internal(&"the cache is not linked"))
    }
}

fn internal(error: &dyn std::fmt::Display) -> Status {
    Status {
        message: format!("Internal error occurred: {error}"),
        reason: "InternalError".into(),
        code: 500,
        details: None,
    }
}

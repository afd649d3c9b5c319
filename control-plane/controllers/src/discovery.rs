//! Which resources the API serves: read once, and again when CustomResourceDefinitions or APIServices change.

use std::collections::BTreeMap;

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// One listable resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// Whether the whole collection can be deleted at once.
    pub(crate) deletes_collections: bool,
    /// Whether it can be watched.
    pub(crate) watchable: bool,
}

impl Served {
    /// `resource.group`, the resource's name whatever its version.
    pub(crate) fn id(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }
}

/// All resources that can be listed and deleted, in their preferred versions, by [`Served::id`].
///
/// # Errors
/// When the API server cannot be asked.
pub(crate) async fn read(client: &Client) -> kube::Result<BTreeMap<String, Served>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut all = BTreeMap::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) || !capabilities.supports_operation(verbs::DELETE) {
                continue;
            }
            let served = Served {
                namespaced: capabilities.scope == Scope::Namespaced,
                deletes_collections: capabilities.supports_operation(verbs::DELETE_COLLECTION),
                watchable: capabilities.supports_operation(verbs::WATCH),
                resource,
            };
            all.insert(served.id(), served);
        }
    }
    Ok(all)
}

//! Adoption and release: a controller owns the objects its selector matches and lets go of those it no longer matches.

use std::sync::Arc;

use kube::Client;
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

use crate::informer::{Kind, Store};
use crate::object::Object;
use crate::rest;

/// The objects of `store` that `owner` controls, after adopting and releasing. `orphans` are candidates without an owner.
///
/// # Errors
/// The API's answer to a write, other than that the object is gone or changed hands.
pub(crate) async fn claim<O: Kind, K: Kind>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    store: &Store<K>,
    orphans: Vec<Arc<K>>,
) -> kube::Result<Vec<Arc<K>>> {
    let mut claimed = Vec::new();
    for object in store.indexed(&format!("owner/{}", owner.uid())) {
        if selector.matches(object.labels()) || object.ns() != owner.ns() {
            claimed.push(object);
        } else if !owner.deleting() {
            let references = references(&*object).into_iter().filter(|r| r["uid"] != json!(owner.uid())).collect();
            tolerate(set_owners(client, &*object, references).await)?;
        }
    }
    let adoptable = |o: &Arc<K>| !o.deleting() && o.controller().is_none() && selector.matches(o.labels());
    let mut orphans = orphans.into_iter().filter(|o| !owner.deleting() && adoptable(o)).peekable();
    // Whoever deletes an owner and orphans its objects does not want them adopted again: the store may not know yet.
    if orphans.peek().is_none() || !rest::lives(client, owner).await? {
        return Ok(claimed);
    }
    for object in orphans {
        let mut references = references(&*object);
        references.push(owner.as_controller());
        if let Some(adopted) = tolerate(set_owners(client, &*object, references).await)? {
            claimed.push(Arc::new(adopted));
        }
    }
    Ok(claimed)
}

fn references<K: Kind>(object: &K) -> Vec<Value> {
    let owners = object.meta().owner_references.iter().flatten();
    owners.map(|owner| serde_json::to_value(owner).unwrap_or_default()).collect()
}

async fn set_owners<K: Kind>(client: &Client, object: &K, owners: Vec<Value>) -> kube::Result<K> {
    let version = &object.meta().resource_version;
    let owners = Some(owners).filter(|owners| !owners.is_empty());
    rest::patch(client, object, json!({"metadata": {"ownerReferences": owners, "resourceVersion": version}})).await
}

/// An object that is gone, or can no longer be changed, is no error.
fn tolerate<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if rest::is(&error, 404) || rest::is(&error, 422) => Ok(None),
        Err(error) => Err(error),
    }
}

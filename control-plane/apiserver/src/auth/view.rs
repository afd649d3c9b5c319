//! The store as authentication, authorization and admission see it: reads only, from the cache.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use sluice_api::resource::builtin;
use sluice_store::cache::CacheItem;

use crate::storage::{Storage, StoredObject};

/// Reads of the newest cached state.
#[async_trait]
pub trait View: Send + Sync + 'static {
    /// One object; the namespace is empty for cluster-scoped resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<StoredObject>>;

    /// A collection of one namespace, or of all for `""`.
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<StoredObject>>;

    /// The collection stored below a prefix, in one namespace or in all for `""`: custom resources.
    fn list_at(&self, prefix: &str, namespace: &str) -> Vec<Arc<StoredObject>>;

    /// The newest revision seen: unchanged while nothing in the store changed.
    fn revision(&self) -> i64;

    /// How many objects a collection has and the newest revision among them: any change of the
    /// collection moves one of the two.
    fn stamp(&self, group: &str, plural: &str) -> (usize, i64) {
        let objects = self.list(group, plural, "");
        (objects.len(), objects.iter().map(|o| o.revision).max().unwrap_or(0))
    }

    /// The pods bound to a node, in one namespace or in all for `""`.
    fn pods_on(&self, node: &str, namespace: &str) -> Vec<Arc<StoredObject>>;

    /// The object once it exists, waited for at most `timeout`.
    async fn appears(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> Option<Arc<StoredObject>>;
}

#[async_trait]
impl View for Storage {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<StoredObject>> {
        Storage::get(self, prefix(group, plural)?, namespace, name)
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
        prefix(group, plural).map_or_else(Vec::new, |p| Storage::list(self, p, namespace).items)
    }

    fn list_at(&self, prefix: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
        Storage::list(self, prefix, namespace).items
    }

    fn revision(&self) -> i64 {
        Storage::revision(self)
    }

    fn stamp(&self, group: &str, plural: &str) -> (usize, i64) {
        let Some(prefix) = prefix(group, plural) else {
            return (0, 0);
        };
        let snapshot = self.snapshot(prefix, "");
        snapshot.iter().fold((0, 0), |(count, newest), (_, object)| (count + 1, newest.max(object.revision)))
    }

    fn pods_on(&self, node: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
        let Some(row) = builtin().by_path("", "v1", "pods") else {
            return Vec::new();
        };
        let Some(at) = row.selectable.iter().position(|field| *field == "spec.nodeName") else {
            return Vec::new();
        };
        let snapshot = self.snapshot(row.store_prefix(), namespace);
        let bound = |object: &&Arc<StoredObject>| object.fields.get(at).is_some_and(|name| **name == *node);
        snapshot.iter().map(|(_, object)| object).filter(bound).cloned().collect()
    }

    async fn appears(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> Option<Arc<StoredObject>> {
        let mut watch = self.watch(prefix(group, plural)?, namespace, 0).ok()?;
        // The watch is open, so what is not there now will be seen coming.
        if let Some(object) = View::get(self, group, plural, namespace, name) {
            return Some(object);
        }
        let seen = async {
            loop {
                match watch.next().await {
                    CacheItem::Change { object, .. } if *object.name == *name => return Some(object),
                    CacheItem::Change { .. } | CacheItem::Progress(_) => {}
                    CacheItem::Lagged => return None,
                }
            }
        };
        let seen = tokio::time::timeout(timeout, seen).await.ok().flatten();
        seen.or_else(|| View::get(self, group, plural, namespace, name))
    }
}

/// The store prefix of a built-in resource.
fn prefix(group: &str, plural: &str) -> Option<&'static str> {
    let row = builtin().by_path(group, "v1", plural)?;
    Some(row.store_prefix())
}

/// The metadata that liveness checks need.
#[derive(Deserialize)]
struct Deletable {
    #[serde(default)]
    metadata: DeletableMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeletableMeta {
    deletion_timestamp: Option<jiff::Timestamp>,
}

/// True while an object may still vouch for a credential: it is not deleted, or its deletion
/// time is less than a minute past (upstream's leeway).
pub fn alive(object: &StoredObject, now: jiff::Timestamp) -> bool {
    if !object.deleting {
        return true;
    }
    let deletable: Option<Deletable> = object.parse().ok();
    deletable
        .and_then(|d| d.metadata.deletion_timestamp)
        .is_some_and(|at| now.as_second() - at.as_second() < crate::limits::DELETED_LEEWAY_SECONDS)
}

/// A view over a fixed set of objects, for tests.
#[cfg(test)]
pub(crate) mod fixed {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use parking_lot::RwLock;
    use serde_json::Value;

    use super::*;

    type Key = (String, String, String);

    /// Objects by store prefix, namespace, name. Revisions count up with each change.
    #[derive(Default)]
    pub(crate) struct Fixed(RwLock<(i64, BTreeMap<Key, Arc<StoredObject>>)>);

    impl Fixed {
        pub(crate) fn new(objects: &[(&str, &str, Value)]) -> Arc<Self> {
            let view = Arc::new(Self::default());
            for (group, plural, object) in objects {
                view.put(group, plural, object.clone());
            }
            view
        }

        pub(crate) fn put(&self, group: &str, plural: &str, object: Value) {
            let mut state = self.0.write();
            state.0 += 1;
            let stored = StoredObject::decode(object.to_string().as_bytes(), state.0, true).unwrap();
            let key =
                (prefix(group, plural).unwrap().to_owned(), stored.namespace.to_string(), stored.name.to_string());
            state.1.insert(key, Arc::new(stored));
        }

        pub(crate) fn remove(&self, group: &str, plural: &str, namespace: &str, name: &str) {
            let key = (prefix(group, plural).unwrap().to_owned(), namespace.into(), name.into());
            let mut state = self.0.write();
            state.0 += 1;
            assert!(state.1.remove(&key).is_some());
        }
    }

    #[async_trait]
    impl View for Fixed {
        fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<StoredObject>> {
            let key = (prefix(group, plural).unwrap().to_owned(), namespace.into(), name.into());
            self.0.read().1.get(&key).cloned()
        }

        fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
            self.list_at(prefix(group, plural).unwrap(), namespace)
        }

        fn list_at(&self, prefix: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
            let state = self.0.read();
            let of =
                |((p, n, _), _): &(&Key, &Arc<StoredObject>)| *p == prefix && (namespace.is_empty() || n == namespace);
            state.1.iter().filter(of).map(|(_, o)| o.clone()).collect()
        }

        fn revision(&self) -> i64 {
            self.0.read().0
        }

        fn pods_on(&self, node: &str, namespace: &str) -> Vec<Arc<StoredObject>> {
            let mut pods = self.list("", "pods", namespace);
            pods.retain(|pod| pod.value()["spec"]["nodeName"] == node);
            pods
        }

        async fn appears(
            &self,
            group: &str,
            plural: &str,
            namespace: &str,
            name: &str,
            _timeout: Duration,
        ) -> Option<Arc<StoredObject>> {
            self.get(group, plural, namespace, name)
        }
    }
}

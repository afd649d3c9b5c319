//! Makes the cluster's own objects again when they are deleted: `kubectl delete all --all` takes the
//! `kubernetes` Service along, and a deleted `kube-node-lease` would leave every node without a
//! heartbeat. Acts on watch events alone.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use sluice_api::resource::builtin;
use sluice_store::cache::{CacheItem, CacheWatch, Kind};

use super::objects::{self, Cluster};
use crate::{
    limits,
    storage::{Storage, StoredObject},
};

/// Runs until it is dropped.
pub(crate) async fn run(storage: Arc<Storage>, cluster: Cluster) {
    // The server has just made them.
    let mut watched = watches(&storage, &cluster);
    loop {
        match watched {
            Some(watches) => deletion(watches).await,
            None => tokio::time::sleep(limits::OWN_RETRY).await,
        }
        // Begun first, so that nothing is missed that is deleted meanwhile.
        watched = watches(&storage, &cluster);
        while let Err(error) = objects::ensure(&storage, &cluster).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the cluster's own objects cannot be made again, trying again"
            );
            tokio::time::sleep(limits::OWN_RETRY).await;
        }
    }
}

/// One watch per object; `None` when there are too many watches.
fn watches(storage: &Storage, cluster: &Cluster) -> Option<Vec<CacheWatch<StoredObject>>> {
    let watch = |(group, plural, object): objects::Item| {
        let row = builtin().by_path(group, "v1", plural)?;
        let (namespace, name) = objects::key(&object);
        // The name is the tag of all these kinds.
        storage.watch_where(row.store_prefix(), namespace, 0, Some(name), Box::new(|_, _| true)).ok()
    };
    objects::lasting(cluster).into_iter().map(watch).collect()
}

/// Returns when one of the objects is deleted, or may have been.
async fn deletion(watches: Vec<CacheWatch<StoredObject>>) {
    let mut changes =
        stream::select_all(watches.into_iter().map(|watch| {
            Box::pin(stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) }))
        }));
    while let Some(item) = changes.next().await {
        match item {
            CacheItem::Change { kind: Kind::Deleted, .. } | CacheItem::Lagged => return,
            CacheItem::Change { .. } | CacheItem::Progress(_) => {}
        }
    }
}

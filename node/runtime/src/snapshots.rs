//! The root file systems of containers: made ahead of them, removed when their container never came.
//!
//! Nothing is leased: a snapshot is a root for containerd's collector from its first moment (label
//! `containerd.io/gc.root`) and removed with its container. One whose daemon died before the container's record was
//! written is found by its label and removed by the next daemon.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, PrepareSnapshotRequest};
use containerd_client::types::Mount;
use jiff::Timestamp;

use crate::images::Unpacked;
use crate::{Error, ImageInfo, Result, Runtime};

/// Present on the snapshot of every container of ours: the container's id.
const CONTAINER: &str = "io.sluice.container";

/// A container's root file system, made ahead of the container. One that is not given to [`Runtime::create_on`] has to be
/// taken away by [`Runtime::remove`].
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// The image that it is of.
    pub image: ImageInfo,
    pub(crate) unpacked: Option<Arc<Unpacked>>,
    pub(crate) mounts: Vec<Mount>,
}

impl Runtime {
    /// Makes the root file system of the container that will have this id; `None` if the image is not present.
    pub async fn prepare(&self, id: &str, image: &str) -> Result<Option<Prepared>> {
        let unpacked = match self.inner.images.resolve(image).await {
            Ok(unpacked) => unpacked,
            Err(Error::ImageMissing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = self.inner.images.named(image, &unpacked).await?;
        let mounts = match self.snapshot(id, &unpacked).await {
            // Left by a daemon that died before it made the container.
            Err(Error::AlreadyExists(_)) => {
                self.inner.images.remove_snapshot(id).await?;
                self.snapshot(id, &unpacked).await?
            }
            other => other?,
        };
        Ok(Some(Prepared { image: info, unpacked: Some(unpacked), mounts }))
    }

    async fn snapshot(&self, id: &str, image: &Unpacked) -> Result<Vec<Mount>> {
        let client = &self.inner.client;
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: id.to_owned(),
            parent: image.chain_id.clone(),
            labels: HashMap::from([
                ("containerd.io/gc.root".to_owned(), Timestamp::now().to_string()),
                (CONTAINER.to_owned(), id.to_owned()),
            ]),
        };
        let prepared = client.snapshots().prepare(client.call(prepare)).await;
        Ok(prepared.map_err(client.failed(id))?.into_inner().mounts)
    }

    /// Removes the snapshots of containers that were never made. Only for a daemon's start, before it makes any.
    pub async fn sweep(&self) -> Result<()> {
        let client = &self.inner.client;
        let filters = vec![format!("labels.\"{CONTAINER}\"")];
        let list = ListSnapshotsRequest { snapshotter: self.snapshotter(), filters };
        let answer = client.snapshots().list(client.call(list)).await.map_err(client.failed("snapshots"))?;
        let mut answer = answer.into_inner();
        let mut found = Vec::new();
        while let Some(part) = answer.message().await.map_err(client.failed("snapshots"))? {
            found.extend(part.info.into_iter().map(|info| info.name));
        }
        let known: HashSet<String> = self.containers().await?.into_iter().map(|container| container.id).collect();
        for id in found.into_iter().filter(|id| !known.contains(id)) {
            tracing::info!(container = id, "removing the file system of a container that was never made");
            self.remove(&id).await?;
        }
        Ok(())
    }

    pub(crate) fn snapshotter(&self) -> String {
        self.inner.config.snapshotter.clone().unwrap_or_default()
    }
}

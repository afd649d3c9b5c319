//! Makes the file system of a new pod's first container while its network and volumes are being made: containerd needs a
//! few milliseconds for it that the container's start need not wait for. Only an image that is present is used so; whatever
//! goes wrong here is told by the start itself, which does it again.

use std::sync::Arc;

use sluice_runtime::Prepared;
use tokio::task::JoinHandle;

use crate::container::new_id;
use crate::model::Pod;
use crate::node_context::NodeContext;

/// A file system that is being made.
pub(super) struct Early {
    /// The container's position in the pod.
    pub(super) index: usize,
    id: String,
    made: JoinHandle<Option<Prepared>>,
}

impl Early {
    /// Begins; `None` where the start has to look for the image first.
    pub(super) fn begin(node: &Arc<NodeContext>, pod: &Pod) -> Option<Early> {
        let index = 0;
        let container = pod.containers().next().filter(|c| c.image_pull_policy != "Always")?;
        let id = new_id(pod.uid(), &container.name, 0);
        let (node, name, image) = (node.clone(), id.clone(), container.image.clone());
        let made = tokio::spawn(async move { node.runtime.prepare(&name, &image).await.ok().flatten() });
        Some(Early { index, id, made })
    }

    /// The container's id and its file system.
    pub(super) async fn finish(self) -> Option<(String, Prepared)> {
        let made = self.made.await.ok().flatten()?;
        Some((self.id, made))
    }

    /// Takes it away: the container will not be made.
    pub(super) fn discard(self, node: &Arc<NodeContext>) {
        let node = node.clone();
        tokio::spawn(async move {
            if let Some((id, _)) = self.finish().await {
                remove(&node, &id).await;
            }
        });
    }
}

/// Takes away what was made for a container that will not be.
pub(super) async fn remove(node: &NodeContext, id: &str) {
    if let Err(error) = node.runtime.remove(id).await {
        tracing::warn!(%error, id, "a container's file system is left until the daemon starts again");
    }
}

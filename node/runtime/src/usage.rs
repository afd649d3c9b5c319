//! What containers have written: asked of containerd's snapshotter, which counts it.

use containerd_client::services::v1::snapshots::UsageRequest;

use crate::{Result, Runtime};

impl Runtime {
    /// Bytes of a container's own layer.
    pub async fn layer_usage(&self, id: &str) -> Result<u64> {
        let client = &self.inner.client;
        let snapshotter = self.inner.config.snapshotter.clone().unwrap_or_default();
        let request = client.call(UsageRequest { snapshotter, key: id.to_owned() });
        let answer = client.snapshots().usage(request).await.map_err(client.failed(id))?;
        Ok(answer.into_inner().size.max(0).unsigned_abs())
    }
}

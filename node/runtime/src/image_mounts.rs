//! Images as read-only volumes: a view of an image's layers, mounted on the host for the containers of one pod. The view
//! is a root for containerd's collector from its first moment and goes with the mount.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use containerd_client::services::v1::snapshots::ViewSnapshotRequest;
use containerd_client::types::Mount;
use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::or_gone;
use crate::{Error, Result, Runtime};

impl Runtime {
    /// Mounts a present image at `target` (made if missing) for reading, nothing on it executable. `key` names the view
    /// among the node's snapshots. Mounted already is success.
    pub async fn mount_image(&self, reference: &str, key: &str, target: &Path) -> Result<()> {
        let image = self.inner.images.resolve(reference).await?;
        let client = &self.inner.client;
        // What a mount that was cut short has left.
        self.unmount_image(key, target).await?;
        fs::create_dir_all(target).map_err(Error::io(format!("making {}", target.display())))?;
        let request = ViewSnapshotRequest {
            snapshotter: self.inner.config.snapshotter.clone().unwrap_or_default(),
            key: key.to_owned(),
            parent: image.chain_id.clone(),
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), Timestamp::now().to_string())]),
        };
        let mounts = client.snapshots().view(client.call(request)).await.map_err(client.failed(reference))?;
        let mounted = mounts.into_inner().mounts.iter().try_for_each(|m| mount_one(m, target));
        if mounted.is_err() {
            self.unmount_image(key, target).await?;
        }
        mounted
    }

    /// Undoes [`Runtime::mount_image`]. Gone is success.
    pub async fn unmount_image(&self, key: &str, target: &Path) -> Result<()> {
        match umount2(target, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(Error::io(format!("unmounting {}", target.display()))(error.into())),
        }
        or_gone(self.inner.images.remove_snapshot(key).await)
    }
}

/// What a snapshotter says of a mount, done: overlay with lower directories alone, or a bind.
fn mount_one(m: &Mount, target: &Path) -> Result<()> {
    let failed = |error: nix::Error| Error::io(format!("mounting an image at {}", target.display()))(error.into());
    let only_read = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    if m.r#type == "bind" {
        mount(Some(m.source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(failed)?;
        let flags = only_read | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        return mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(failed);
    }
    let plain = |o: &&str| !matches!(*o, "ro" | "rw" | "bind" | "rbind");
    let data: Vec<&str> = m.options.iter().map(String::as_str).filter(plain).collect();
    let data = data.join(",");
    mount(Some(m.source.as_str()), target, Some(m.r#type.as_str()), only_read, Some(data.as_str())).map_err(failed)
}

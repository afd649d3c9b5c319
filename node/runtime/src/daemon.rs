//! A private containerd for machines where none runs, and for tests.

use std::path::Path;

use crate::{Error, Result};

/// A running private containerd; dropping it leaves it running.
pub struct Containerd;

impl Containerd {
    /// Starts containerd with root, state and configuration below `dir`, listening on `socket`; returns when it answers.
    /// [`Error::NotInstalled`] if the programs are missing.
    pub async fn spawn(_dir: &Path, _socket: &Path) -> Result<Self> {
        Err(Error::NotInstalled("containerd"))
    }
    /// Its process id.
    pub fn pid(&self) -> u32 {
        0
    }
    /// Waits until the process ends by itself (for supervision).
    pub async fn exited(&mut self) -> std::io::Result<std::process::ExitStatus> {
        std::future::pending().await
    }
    /// SIGTERM, then SIGKILL; shims and containers keep running.
    pub async fn stop(&mut self) -> Result<()> {
        Ok(())
    }
    /// Ends what runs below `dir`: shims, containers, mounts, then containerd itself (for `down` and tests).
    pub async fn teardown(_dir: &Path, _socket: &Path) -> Result<()> {
        Ok(())
    }
}

//! A client from a kubeconfig file, for the inspecting commands.

use std::path::Path;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Connects as the kubeconfig says; nothing is sent yet.
pub(crate) async fn from_file(path: &Path) -> Result<kube::Client> {
    let missing = || {
        format!(
            "cannot read {}; is this the machine of the control plane, and has `sluice up` or `sluice server` run? \
             (--data-dir says where)",
            path.display()
        )
    };
    let file = Kubeconfig::read_from(path).with_context(missing)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

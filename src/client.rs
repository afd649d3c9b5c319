//! A client from a kubeconfig file, for the inspecting commands.

use std::path::Path;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Connects as the kubeconfig says; nothing is sent yet.
pub(crate) async fn from_file(path: &Path) -> Result<kube::Client> {
    Ok(kube::Client::try_from(settings(path).await?)?)
}

/// As [`from_file`], for answers that may take forever between two words.
pub(crate) async fn lasting(path: &Path) -> Result<kube::Client> {
    let mut settings = settings(path).await?;
    settings.read_timeout = None;
    Ok(kube::Client::try_from(settings)?)
}

async fn settings(path: &Path) -> Result<kube::Config> {
    let missing = || {
        format!(
            "cannot read {}; is this the machine of the control plane, and has `sluice up` or `sluice server` run? \
             (--data-dir says where)",
            path.display()
        )
    };
    let file = Kubeconfig::read_from(path).with_context(missing)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(config)
}

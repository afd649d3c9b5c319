//! The long-running commands: which parts run in this process, in which order they start and stop.
//!
//! Pods, eBPF programs and containerd go on when a daemon ends; the next one finds them again.

use anyhow::{Context, Result};
use clap::Args;
use sd_notify::NotifyState;
use sluice_agent::kept::Kept;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    allocator,
    config::{Config, Options},
    control_plane, machine, node,
};

/// Settings of `sluice node`.
#[derive(Args)]
pub(crate) struct NodeOptions {
    /// The control plane's URL (`https://10.0.0.1:6443`), or that of each of its servers: the node goes over to another
    /// one when the one in use does not answer. Needed for the first start [repeatable]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub server: Vec<String>,
    /// The token to join with (`sluice token create` on the control plane); needed for the first start
    #[arg(long, value_name = "ID.SECRET", env = "SLUICE_TOKEN")]
    pub token: Option<String>,
    /// The hash of the cluster's CA that `sluice token create` prints; needed for the first start
    #[arg(long, value_name = "sha256:HEX")]
    pub ca_hash: Option<String>,
    #[command(flatten)]
    pub options: Options,
}

impl NodeOptions {
    fn resolve(self) -> Result<Config> {
        let Self { server, token, ca_hash, options } = self;
        Options { server, token, ca_hash, ..options }.resolve()
    }
}

/// What runs in this process; the first part that ends takes the others with it.
pub(crate) struct Parts {
    pub tasks: JoinSet<Result<()>>,
    pub shutdown: CancellationToken,
}

/// Control plane and node.
pub(crate) async fn up(config: Config, kept: Kept) -> Result<()> {
    machine::require_root("sluice up")?;
    node_needs(&config).await?;
    run(&config, async |parts| {
        let server = control_plane::start(&config, parts).await?;
        node::start_beside(&config, &server, kept, parts).await
    })
    .await
}

/// The control plane alone.
pub(crate) async fn server(config: Config) -> Result<()> {
    run(&config, async |parts| control_plane::start(&config, parts).await.map(drop)).await
}

/// The node alone.
pub(crate) async fn node(options: NodeOptions, kept: Kept) -> Result<()> {
    machine::require_root("sluice node")?;
    let config = options.resolve()?;
    node_needs(&config).await?;
    run(&config, async |parts| node::start_joined(&config, kept, parts).await).await
}

/// Looked for before the first file is made, so that nothing is left half started.
async fn node_needs(config: &Config) -> Result<()> {
    machine::require_kernel()?;
    node::require_containerd(config).await
}

/// Starts the parts, says that they are ready, and waits for a signal or for the end of one of them.
async fn run(config: &Config, start: impl AsyncFnOnce(&mut Parts) -> Result<()>) -> Result<()> {
    machine::set_up_logging();
    let begun = std::time::Instant::now();
    let _pid_file = machine::take_pid_file(&config.pid_file())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut parts = Parts { tasks: JoinSet::new(), shutdown: CancellationToken::new() };
    let started = tokio::select! {
        started = start(&mut parts) => started,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    started?;
    tracing::info!(milliseconds = begun.elapsed().as_millis(), "ready");
    machine::notify(&NotifyState::Ready);
    allocator::tidy_in_background();
    let ended = tokio::select! {
        Some(ended) = parts.tasks.join_next() => ended.context("a part of the daemon panicked").and_then(|result| result),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    machine::notify(&NotifyState::Stopping);
    parts.shutdown.cancel();
    while parts.tasks.join_next().await.is_some() {}
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_containerd_nothing_is_made() {
        assert!(nix::unistd::geteuid().is_root(), "the commands need root");
        let dir = std::env::temp_dir().join(format!("sluice-test-nothing-{}", std::process::id()));
        let options = Options {
            data_dir: Some(dir.join("data")),
            run_dir: Some(dir.join("run")),
            containerd: Some(dir.join("containerd.sock").display().to_string()),
            ..Options::default()
        };
        let node = NodeOptions { server: Vec::new(), token: None, ca_hash: None, options: options.clone() };
        for ended in [up(options.resolve().unwrap(), Kept::default()).await, super::node(node, Kept::default()).await] {
            let error = ended.unwrap_err().to_string();
            assert!(error.starts_with("containerd does not answer at /"), "{error}");
            assert!(error.contains("apt-get install containerd") && error.contains("--containerd own"), "{error}");
            assert!(!dir.exists(), "files were made");
        }
    }
}

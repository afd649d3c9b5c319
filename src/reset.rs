//! `sluice reset`: stops the daemon and removes everything of this installation: containers,
//! namespaces, links, routes, mounts, pinned maps, cgroups, files. What is already gone is no error;
//! what cannot be removed is said, and the rest is removed all the same.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_dataplane::Dataplane;
use sluice_runtime::{Runtime, cgroup::Cgroups, daemon::Containerd};

use crate::{
    config::{Config, Options},
    machine, node,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    machine::require_root("sluice reset")?;
    let config = arguments.options.resolve()?;
    if !arguments.yes {
        bail!(
            "this removes the cluster's data in {}, all its pods and images; say so with --yes",
            config.data_dir.display()
        );
    }
    let mut failed = Vec::new();
    for (what, outcome) in [
        ("the daemon", stop_daemon(&config).await),
        ("eBPF programs and maps", data_plane(&config)),
        ("containers", containers(&config).await),
        ("network namespaces, links, routes", network(&config).await),
        ("containerd", containerd(&config).await),
        ("cgroups", cgroups(&config)),
        ("mounts and files", files(&config)),
    ] {
        match outcome {
            Ok(detail) => println!("removed {what}{detail}"),
            Err(error) => failed.push(format!("{what}: {error:#}")),
        }
    }
    if !failed.is_empty() {
        bail!("not removed: {}", failed.join("; "));
    }
    Ok(())
}

async fn stop_daemon(config: &Config) -> Result<String> {
    let Some(pid) = machine::running(&config.pid_file()) else { return Ok(" (none ran)".into()) };
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end it")?;
    // The lock on its pid file falls when it ends.
    let path = config.pid_file();
    tokio::task::spawn_blocking(move || machine::wait_until_free(&path)).await??;
    Ok(format!(" (pid {pid})"))
}

fn data_plane(config: &Config) -> Result<String> {
    Dataplane::remove_all(&config.pin_dir())?;
    Ok(String::new())
}

async fn containers(config: &Config) -> Result<String> {
    let socket = node::containerd_socket(config).await;
    if !socket.exists() {
        return Ok(" (none)".into());
    }
    let runtime = Runtime::connect(node::runtime_config(config, socket)).await?;
    let all = runtime.containers().await?;
    for container in &all {
        runtime.remove(&container.id).await.with_context(|| format!("container {}", container.id))?;
        // <logs>/<pod>/<container>/<attempt>.log: the pod's folder goes with its last container.
        if let Some(pod) = container.log_path.ancestors().nth(2).filter(|dir| dir.starts_with(config.pod_logs())) {
            let _ = fs::remove_dir_all(pod);
        }
    }
    Ok(format!(" ({})", all.len()))
}

async fn network(config: &Config) -> Result<String> {
    node::network(config).await?.teardown().await?;
    Ok(String::new())
}

async fn containerd(config: &Config) -> Result<String> {
    let dir = config.own_containerd_dir();
    if !dir.exists() {
        return Ok(" (not ours)".into());
    }
    Containerd::teardown(&dir, &config.own_containerd_socket()).await?;
    Ok(String::new())
}

fn cgroups(config: &Config) -> Result<String> {
    // This process may stand in one of them (a shell on a namespaced node does); one's own cannot be removed.
    fs::write(machine::cgroup_root().join("cgroup.procs"), std::process::id().to_string())
        .context("cannot leave the cgroup")?;
    Cgroups::new(&config.instance).remove_all()?;
    Ok(String::new())
}

fn files(config: &Config) -> Result<String> {
    for dir in [&config.run_dir, &config.data_dir] {
        unmount_below(dir)?;
    }
    let mut gone = Vec::new();
    for dir in [&config.run_dir, &config.data_dir] {
        match fs::remove_dir_all(dir) {
            Ok(()) => gone.push(dir.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
        }
    }
    // Only if nobody else has logs there.
    let _ = fs::remove_dir(config.pod_logs());
    Ok(format!(" ({})", gone.join(", ")))
}

/// Unmounts everything below a directory, the newest mount first.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let targets =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|target| Path::new(target).starts_with(dir));
    let mut targets: Vec<&str> = targets.collect();
    targets.reverse();
    for target in targets {
        umount2(target, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {target}"))?;
    }
    Ok(())
}

//! `sluice reset`: stops the daemon and removes everything of this installation: containers,
//! cgroups, namespaces, links, routes, mounts, pinned maps, files. What is already gone is no error,
//! not even containerd. What cannot be removed is said, and the rest is removed all the same, but for
//! the files: they go last and only when nothing else is left, so that a second `reset` can go on.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_dataplane::Dataplane;
use sluice_runtime::{Runtime, daemon::Containerd};
use tokio::net::UnixStream;

use crate::{
    config::{Config, Options},
    leftovers, machine, node,
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
        ("containerd", containerd(&config).await),
        ("cgroups", cgroups(&config)),
        ("network namespaces, links, routes", network(&config).await),
        ("mounts", mounts(&config)),
    ] {
        match outcome {
            Ok(detail) => println!("removed {what}{detail}"),
            Err(error) => failed.push(format!("{what}: {error:#}")),
        }
    }
    if !failed.is_empty() {
        bail!(
            "not removed: {}; the files in {} and {} are kept, so that `sluice reset` can be run again",
            failed.join("; "),
            config.data_dir.display(),
            config.run_dir.display()
        );
    }
    println!("removed files{}", files(&config)?);
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
    let ours = socket == config.own_containerd_socket();
    match UnixStream::connect(&socket).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(" (none)".into()),
        // Its files go with ours, the containers' processes with their cgroups.
        Err(_) if ours => return Ok(" (without containerd, which is gone)".into()),
        Err(error) => bail!(
            "containerd at {} does not answer ({error}): start it (systemctl start containerd); if it is \
             no longer installed, remove that socket",
            socket.display()
        ),
    }
    match through_containerd(config, socket).await {
        Err(error) if ours => Ok(format!(" (without containerd: {error:#})")),
        other => other,
    }
}

async fn through_containerd(config: &Config, socket: PathBuf) -> Result<String> {
    let runtime = Runtime::connect(node::runtime_config(config, socket)).await?;
    let all = runtime.containers().await?;
    for container in &all {
        runtime.remove(&container.id).await.with_context(|| format!("container {}", container.id))?;
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
    Ok(match leftovers::remove(&config.instance)? {
        0 => String::new(),
        killed => format!(" ({killed} processes killed in them)"),
    })
}

fn mounts(config: &Config) -> Result<String> {
    for dir in [&config.run_dir, &config.data_dir] {
        unmount_below(dir)?;
    }
    Ok(String::new())
}

fn files(config: &Config) -> Result<String> {
    pod_logs(config);
    let mut gone = Vec::new();
    for dir in [&config.run_dir, &config.data_dir] {
        match fs::remove_dir_all(dir) {
            Ok(()) => gone.push(dir.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
        }
    }
    Ok(format!(" ({})", gone.join(", ")))
}

/// Removes the logs of the pods that this node has folders of; others may have logs there too.
fn pod_logs(config: &Config) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let uids = names(&config.data_dir.join("pods"));
    // <namespace>_<name>_<uid>
    for log in names(&config.pod_logs()) {
        if log.rsplit_once('_').is_some_and(|(_, uid)| uids.iter().any(|known| known == uid)) {
            let _ = fs::remove_dir_all(config.pod_logs().join(log));
        }
    }
    // Only if nobody else has logs there.
    let _ = fs::remove_dir(config.pod_logs());
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

//! A control plane of our own on loopback, with or without an etcd, in a directory that goes with it.

use std::{
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_e2e::notices::{Notices, tail};
use tempfile::TempDir;

use super::Store;
use crate::{lab::say, limits};

/// See the module; ended when dropped.
pub(super) struct Server {
    daemon: Process,
    etcd: Option<Process>,
    dir: TempDir,
}

/// A child that ends with its owner.
struct Process(Child);

impl Server {
    pub(super) async fn start(store: Store) -> Result<Self> {
        say("starting a control plane of its own");
        let dir = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let etcd = match store {
            Store::Embedded => None,
            Store::Etcd => Some(start_etcd(dir.path()).await?),
        };
        let (etcd, flags) = match etcd {
            None => (None, Vec::new()),
            Some((process, url)) => (Some(process), vec!["--etcd".to_owned(), url]),
        };
        let daemon = start_daemon(dir.path(), &flags)?;
        Ok(Self { daemon, etcd, dir })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("data/admin.kubeconfig")
    }

    pub(super) fn pid(&self) -> u32 {
        self.daemon.0.id()
    }

    pub(super) fn etcd_pid(&self) -> Option<u32> {
        self.etcd.as_ref().map(|etcd| etcd.0.id())
    }

    pub(super) fn etcd_version(&self) -> Result<Option<String>> {
        if self.etcd.is_none() {
            return Ok(None);
        }
        let said = Command::new("etcd").arg("--version").output()?.stdout;
        let said = String::from_utf8_lossy(&said);
        Ok(said.lines().next().and_then(|line| line.rsplit(' ').next()).map(str::to_owned))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Starts it and waits for its word that it is ready, as a service manager does.
fn start_daemon(dir: &Path, flags: &[String]) -> Result<Process> {
    // A machine's own settings are not meant for it.
    let settings = dir.join("settings.yaml");
    File::create(&settings)?;
    let mut notices = Notices::at(&dir.join("notify"))?;
    let log = dir.join("log");
    let output = File::create(&log)?;
    let mut command = Command::new(crate::lab::binary()?);
    command
        .arg("server")
        .arg("--config")
        .arg(&settings)
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .args(["--instance", "sbench-server", "--node-name", "sbench"])
        .args(["--bind", &format!("127.0.0.1:{}", free_port()?)])
        // Room for the pods of thousands of nodes.
        .args(["--pod-cidr", "10.0.0.0/9", "--service-cidr", "10.128.0.0/16"])
        .args(flags)
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C is ours to pass on, when everything is removed.
        .process_group(0);
    let mut daemon = Process(command.spawn().context("cannot start the server")?);
    let ready = notices.ready(&mut daemon.0, limits::SERVER_START);
    ready.with_context(|| format!("the server did not start:\n{}", tail(&log)))?;
    Ok(daemon)
}

/// Starts one member that syncs its writes, as in real use, and waits until it takes connections.
async fn start_etcd(dir: &Path) -> Result<(Process, String)> {
    let url = format!("http://127.0.0.1:{}", free_port()?);
    let peers = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let mut etcd = Process(command.spawn().context("cannot start etcd (apt-get install etcd-server)")?);
    let until = Instant::now() + limits::SERVER_START;
    let address = url.trim_start_matches("http://").to_owned();
    while tokio::net::TcpStream::connect(&address).await.is_err() {
        if let Some(status) = etcd.0.try_wait()? {
            bail!("etcd ended with {status}");
        }
        if Instant::now() > until {
            bail!("etcd did not serve in {} s", limits::SERVER_START.as_secs());
        }
        // etcd says nothing when it begins to serve.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((etcd, url))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

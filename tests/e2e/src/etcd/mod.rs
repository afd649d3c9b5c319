//! A member of the etcd that a lab's servers share, in the network namespace of one of its nodes. Members and servers know each
//! other by certificates.

mod secrets;

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{node::Node, sh::host};
use secrets::{Authority, Identity};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// Where it says how it is, to everybody.
const METRICS: u16 = 2381;
const READY: Duration = Duration::from_secs(30);

/// A member; stopped on drop, its files are the lab's.
pub struct Etcd {
    name: String,
    address: String,
    dir: PathBuf,
    cluster: String,
    /// Its own.
    identity: Identity,
    /// Of the servers.
    servers: Identity,
    child: Option<Child>,
}

/// What makes servers use an etcd, as flags.
pub(crate) fn flags(members: &[Etcd]) -> Vec<String> {
    let mut all: Vec<String> = members.iter().flat_map(|member| ["--etcd".to_owned(), member.url()]).collect();
    if let Some(Etcd { servers, .. }) = members.first() {
        let files = [
            ("--etcd-cafile", &servers.ca),
            ("--etcd-certfile", &servers.certificate),
            ("--etcd-keyfile", &servers.key),
        ];
        for (flag, file) in files {
            all.extend([flag.to_owned(), file.to_string_lossy().into_owned()]);
        }
    }
    all
}

impl Etcd {
    /// Members on these nodes, which have yet to be started; `dir` holds their files.
    pub(crate) fn members(nodes: &[Node], dir: &Path) -> Result<Vec<Self>> {
        let cluster: Vec<String> =
            nodes.iter().map(|node| format!("{}=https://{}:{PEERS}", node.name, host(&node.address))).collect();
        let authority = Authority::make(dir)?;
        let servers = authority.identity("servers", None)?;
        let member = |node: &Node| {
            Ok(Self {
                name: node.name.clone(),
                address: host(&node.address),
                dir: dir.join(format!("etcd-{}", node.name)),
                cluster: cluster.join(","),
                identity: authority.identity(&node.name, Some(&node.address))?,
                servers: servers.clone(),
                child: None,
            })
        };
        nodes.iter().map(member).collect()
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("https://{}:{CLIENTS}", self.address)
    }

    /// Where everybody reads how it is (`/health`, `/metrics`).
    pub fn metrics(&self) -> String {
        format!("http://{}:{METRICS}", self.address)
    }

    /// Starts it, or starts it again on what it left.
    pub fn start(&mut self, on: &Node) -> Result<()> {
        let peers = format!("https://{}:{PEERS}", self.address);
        let Identity { ca, certificate, key } = &self.identity;
        let mut command = on.command("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.dir)
            .args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &self.cluster, "--initial-cluster-token", &self.cluster])
            .args(["--listen-metrics-urls", &self.metrics(), "--client-cert-auth", "--peer-client-cert-auth"])
            .args(["--unsafe-no-fsync", "--log-level", "error"])
            .arg("--trusted-ca-file")
            .arg(ca)
            .arg("--cert-file")
            .arg(certificate)
            .arg("--key-file")
            .arg(key)
            .arg("--peer-trusted-ca-file")
            .arg(ca)
            .arg("--peer-cert-file")
            .arg(certificate)
            .arg("--peer-key-file")
            .arg(key)
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in the lab's terminal is the lab's alone.
            .process_group(0);
        self.child = Some(command.spawn().context("cannot start etcd (apt-get install etcd-server)")?);
        Ok(())
    }

    /// Waits until it serves, which takes most of its peers.
    pub(crate) fn ready(&mut self, on: &Node) -> Result<()> {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            let mut ask = on.echo(&["get", &format!("{}/health", self.metrics())]);
            if ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("etcd of {} ended with {status}", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("etcd of {} did not serve in time", self.name)
    }

    /// True while it has not been killed.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { bail!("etcd of {} does not run", self.name) };
        child.kill()?;
        child.wait().map(drop).context("waiting for etcd's end")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.child.is_some() {
            // One that is already gone is as good as ended.
            let _ = self.kill();
        }
    }
}

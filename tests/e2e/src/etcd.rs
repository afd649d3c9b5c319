//! A member of the etcd that a lab's servers share, in the network namespace of one of its nodes.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{node::Node, sh::host};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
const READY: Duration = Duration::from_secs(30);

/// A member; stopped on drop, its files are the lab's.
pub struct Etcd {
    name: String,
    address: String,
    dir: PathBuf,
    cluster: String,
    child: Option<Child>,
}

impl Etcd {
    /// Members on these nodes, which have yet to be started; `dir` holds their files.
    pub(crate) fn members(nodes: &[Node], dir: &std::path::Path) -> Vec<Self> {
        let cluster: Vec<String> =
            nodes.iter().map(|node| format!("{}=http://{}:{PEERS}", node.name, host(&node.address))).collect();
        let member = |node: &Node| Self {
            name: node.name.clone(),
            address: host(&node.address),
            dir: dir.join(format!("etcd-{}", node.name)),
            cluster: cluster.join(","),
            child: None,
        };
        nodes.iter().map(member).collect()
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("http://{}:{CLIENTS}", self.address)
    }

    /// Starts it, or starts it again on what it left.
    pub fn start(&mut self, on: &Node) -> Result<()> {
        let peers = format!("http://{}:{PEERS}", self.address);
        let mut command = on.command("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.dir)
            .args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &self.cluster, "--initial-cluster-token", &self.cluster])
            .args(["--unsafe-no-fsync", "--log-level", "error"])
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
            let mut ask = on.echo(&["get", &format!("{}/health", self.url())]);
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

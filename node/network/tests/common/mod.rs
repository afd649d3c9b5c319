//! Nodes as network namespaces of this process; they go when the test does.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use sluice_network::{Config, Network};
use tempfile::TempDir;

/// A network namespace.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let namespace = Self(Arc::new(std::thread::spawn(make).join().unwrap()));
        namespace.ip("link set lo up");
        namespace
    }

    pub fn open(path: &Path) -> Self {
        Self(Arc::new(File::open(path).unwrap()))
    }

    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Runs `ip` inside; returns what it prints.
    pub fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    /// Runs `tc` inside; returns what it prints.
    pub fn tc(&self, arguments: &str) -> String {
        self.run("tc", arguments)
    }

    fn run(&self, program: &str, arguments: &str) -> String {
        let output = self.enter(|| Command::new(program).args(arguments.split(' ')).output().unwrap());
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A cable between two namespaces, with an address at each end.
    pub fn cable(&self, name: &str, address: &str, other: &Self, other_name: &str, other_address: &str) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {path}"));
        for (side, name, address) in [(self, name, address), (other, other_name, other_address)] {
            side.ip(&format!("addr add {address} dev {name}"));
            side.ip(&format!("link set {name} up"));
        }
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap());
    }

    pub fn sysctl_of(&self, name: &str) -> String {
        self.enter(|| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap().trim().to_owned())
    }

    /// What a client here gets from a server there: the server answers with the client's address as it sees it.
    pub fn asks(&self, server: &Self, ip: IpAddr) -> std::io::Result<IpAddr> {
        let listener = server.enter(|| TcpListener::bind((ip, 0)))?;
        let port = listener.local_addr()?.port();
        let serve = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            stream.write_all(from.ip().to_string().as_bytes()).unwrap();
            // Enough for many packets of the full size.
            stream.write_all(&[b' '; 200_000]).unwrap();
        });
        let answer = self.enter(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        })?;
        serve.join().unwrap();
        Ok(answer.trim().parse().unwrap())
    }
}

/// A node in a namespace of its own.
pub struct Node {
    pub namespace: Namespace,
    pub network: Network,
    pub dir: TempDir,
    range: String,
}

impl Node {
    pub fn new(namespace: Namespace, range: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("sluice-net-").tempdir().unwrap();
        let network = open(&namespace, dir.path().join("netns"), range);
        Self { namespace, network, dir, range: range.into() }
    }

    /// A daemon that has started again.
    pub fn reopen(&mut self) {
        self.network = open(&self.namespace, self.dir.path().join("netns"), &self.range);
    }

    /// Nothing of ours is left in the namespace or among the mounts.
    pub async fn end(self) {
        self.network.teardown().await.unwrap();
        assert_eq!(self.namespace.ip("route show proto 92"), "");
        assert_eq!(self.namespace.ip("route show type unreachable"), "");
        assert_eq!(self.namespace.ip("-6 route show proto 92"), "");
        let links = self.namespace.ip("-o link show");
        assert!(!links.contains("slc") && !links.contains("sluice"), "{links}");
        assert!(!self.namespace.ip("addr show dev lo").contains("10.244"));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        assert!(!self.dir.path().join("netns").exists());
    }
}

fn open(namespace: &Namespace, netns_dir: PathBuf, range: &str) -> Network {
    let config = Config {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        pod_cidrs: range.split(',').map(|range| range.parse().unwrap()).collect(),
        node_ips: Vec::new(),
        mtu: None,
        netns_dir,
    };
    let runtime = tokio::runtime::Handle::current();
    namespace.enter(|| runtime.block_on(Network::new(config)).unwrap())
}

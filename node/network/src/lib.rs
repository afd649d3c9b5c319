//! Pod network: namespaces, addresses, links and routes, by netlink alone.
//!
//! Every pod has its own network namespace with one veth pair: `eth0` inside, `slc…` on the node. There is no bridge and
//! no ARP or neighbour discovery: both ends have permanent neighbour entries, the node routes each pod address to its link. The kernel is the
//! only record: after a restart pods are found again by the alias of their link (the pod's uid), addresses in use by the
//! routes. Nothing here touches packets, services or policies.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use direct::Direct;
use ipam::Ipam;
use mtu::Mtu;
use netns::Netns;
use nl::Netlink;
use sweeper::Sweeper;

pub mod cidr;
mod direct;
mod home;
mod ipam;
mod ipv6;
pub mod limits;
mod mtu;
mod netns;
mod nl;
mod node;
mod peers;
mod pods;
mod shape;
mod sweeper;

pub use cidr::Cidr;
pub use shape::Bandwidth;

/// What a node's network is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's pod ranges, one per address family (`10.244.0.0/16`).
    pub cluster_cidrs: Vec<Cidr>,
    /// The cluster's service ranges (`10.96.0.0/16`).
    pub service_cidrs: Vec<Cidr>,
    /// This node's pod ranges (`spec.podCIDRs`); may be empty until [`Network::set_pod_cidrs`].
    pub pod_cidrs: Vec<Cidr>,
    /// This node's own addresses, one per family, by which other nodes reach it. Empty: taken from the default routes' links.
    pub node_ips: Vec<IpAddr>,
    /// MTU of pods' links; `None` takes the uplink's (less the tunnel's overhead where peers need VXLAN).
    pub mtu: Option<u32>,
    /// Where pods' namespaces are pinned, `<dir>/<pod uid>` (`/run/sluice/<node>/netns`).
    pub netns_dir: PathBuf,
}

/// One pod's network as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// The pod's uid.
    pub uid: String,
    /// The pinned namespace, to be given to the container runtime.
    pub netns: PathBuf,
    /// The pod's addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// Node side of the pod's link.
    pub host_ifname: String,
    /// Its index in the node's namespace.
    pub host_ifindex: u32,
    /// Its address.
    pub host_mac: [u8; 6],
    /// Link address of the pod's `eth0`.
    pub mac: [u8; 6],
    /// What comes to it waits in a queue on the node's side, by a limit of its traffic.
    pub queued: bool,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, for messages.
    pub node: String,
    /// Its pod ranges.
    pub pod_cidrs: Vec<Cidr>,
    /// The addresses it is reached by, one per family.
    pub node_ips: Vec<IpAddr>,
    /// `Auto` decides by the kernel's routes to `node_ips`.
    pub path: PeerPath,
}

/// How packets get to a peer's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerPath {
    /// Direct when the peer is on a shared link, else the tunnel.
    #[default]
    Auto,
    /// A route through the peer's address; it has to be on a shared link.
    Direct,
    /// VXLAN.
    Tunnel,
}

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No free address is left in the node's pod range.
    #[error("no free pod address in {range}: {used} are in use; delete pods or give the node a larger podCIDR")]
    Exhausted {
        /// The range.
        range: Cidr,
        /// Addresses in use or cooling down.
        used: usize,
    },
    /// The node's pod ranges are not known yet.
    #[error("the node has no podCIDR yet: the controllers assign it once the node is registered")]
    NoPodCidr,
    /// A call to the kernel failed.
    #[error("{what}: {source}")]
    Kernel {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Something is configured so that it cannot work.
    #[error("{0}")]
    Invalid(String),
}

/// The node's network. Cheap to clone. Belongs to the network namespace of the thread that called [`Network::new`].
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    netns: Netns,
    netlink: Netlink,
    /// For what a pod waits for. Used on threads that may block.
    direct: Arc<Mutex<Direct>>,
    /// The node's pod ranges.
    ranges: RwLock<Vec<Cidr>>,
    ipam: Mutex<Ipam>,
    /// Set once `ipam` knows the addresses that the kernel has routes for.
    ipam_loaded: tokio::sync::OnceCell<()>,
    mtu: Mtu,
    sweeper: Sweeper,
    peers: tokio::sync::Mutex<()>,
    home: tokio::sync::Mutex<home::Left>,
}

impl Network {
    /// Opens netlink in the calling thread's network namespace; changes nothing yet.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let inner = Inner {
            netns: Netns::current()?,
            netlink: Netlink::open()?,
            direct: Arc::new(Mutex::new(Direct::open()?)),
            ranges: RwLock::new(config.pod_cidrs.clone()),
            ipam: Mutex::default(),
            ipam_loaded: tokio::sync::OnceCell::new(),
            mtu: Mtu::follow()?,
            sweeper: Sweeper::start(Direct::open()?),
            peers: tokio::sync::Mutex::default(),
            home: tokio::sync::Mutex::default(),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

//! Announces load balancers' addresses: answers ARP and neighbour discovery for those that this node is to have, makes a
//! takeover known, and watches the nodes that stand before it.
//!
//! The API says who may announce what, in which order (LoadBalancerAnnouncements). [`plan`] decides from that and from what
//! is heard on the links; a node's death needs no API. The addresses are on no link of the node: packets for them meet the
//! data plane, which works whether or not this runs. Nothing here touches packets but ARP and neighbour discovery.

mod announcer;
mod frame;
mod limits;
mod links;
mod plan;
mod socket;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::Client;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

pub use announcer::run as announce;
pub use watch::{Announcement, Node};

/// Who announces.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
}

/// Follows the API and announces what this node is to have, until the shutdown. Has to run in the node's network namespace.
///
/// # Errors
/// When the kernel does not tell of its links.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> std::io::Result<()> {
    let (sender, wanted) = channel::channel(Vec::new());
    let (holds, held) = channel::channel(BTreeSet::new());
    let (shows, shown) = channel::channel(watch::Shown::new());
    let node = config.node.clone();
    let api = async {
        tokio::join!(watch::follow(client.clone(), sender, shows), watch::tell(client, node, held, shown));
    };
    tokio::select! {
        ended = announce(config, wanted, holds, shutdown) => ended,
        () = api => Ok(()),
    }
}

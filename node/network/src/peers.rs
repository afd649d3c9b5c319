//! Routes to other nodes' pods: through the node itself on a shared link, else through a VXLAN tunnel.
//!
//! What is wanted is computed first, then compared with the kernel's tables; only the difference is written. Nothing is
//! learned from packets: a tunnel's hardware address follows from the node's address.

use std::net::IpAddr;

use crate::nl::{Hop, Mac, Neighbour, Route};
use crate::{Error, Network, Peer, PeerPath, limits};

/// One peer with the way to it.
struct Way<'a> {
    peer: &'a Peer,
    /// The link of a direct way.
    direct: Option<u32>,
}

impl Network {
    /// Makes the routes to other nodes' pods exactly these. A peer that cannot be reached now is left out, and said.
    pub async fn set_peers(&self, peers: Vec<Peer>) -> Result<(), Error> {
        let _one_at_a_time = self.inner.peers.lock().await;
        let mut ways = Vec::new();
        for peer in &peers {
            match self.way(peer).await? {
                Some(direct) => ways.push(Way { peer, direct }),
                None => tracing::warn!(
                    node = peer.node,
                    address = %peer.node_ip,
                    "no route to the node: its pods cannot be reached from here"
                ),
            }
        }
        let tunnel = if ways.iter().any(|way| way.direct.is_none()) { Some(self.tunnel().await?) } else { None };
        let wanted = self.wanted_routes(&ways, tunnel);
        if let Some(tunnel) = tunnel {
            self.set_tunnels(&ways, tunnel).await?;
        }
        let node = &self.inner.netlink;
        let present = node.routes().await?;
        for route in &wanted {
            if !present.contains(route) {
                node.replace_route(route).await?;
            }
        }
        for route in &present {
            let of_peer = matches!(route.via, Hop::Gateway(..));
            if of_peer && !wanted.iter().any(|wanted| wanted.to == route.to) {
                node.delete_route(route).await?;
            }
        }
        if tunnel.is_none()
            && let Some(link) = node.link(limits::VXLAN_LINK).await?
        {
            node.delete_link(link.index).await?;
        }
        self.inner.mtu.forget();
        Ok(())
    }

    /// `Some(Some(link))`: direct, `Some(None)`: tunnel, `None`: not reachable.
    async fn way(&self, peer: &Peer) -> Result<Option<Option<u32>>, Error> {
        let path = self.inner.netlink.path(peer.node_ip).await?;
        Ok(match (peer.path, path) {
            (_, None) => None,
            (PeerPath::Tunnel, Some(_)) | (PeerPath::Auto, Some((_, Some(_)))) => Some(None),
            (PeerPath::Auto | PeerPath::Direct, Some((link, None))) => Some(Some(link)),
            (PeerPath::Direct, Some((_, Some(gateway)))) => {
                return Err(Error::Invalid(format!(
                    "node {} ({}) is behind {gateway}, not on a shared link: a direct route is not possible, use the tunnel",
                    peer.node, peer.node_ip
                )));
            }
        })
    }

    fn wanted_routes(&self, ways: &[Way<'_>], tunnel: Option<u32>) -> Vec<Route> {
        let gateways = self.gateways();
        let mut routes = Vec::new();
        for way in ways {
            for range in &way.peer.pod_cidrs {
                let via = match (way.direct, tunnel, range.nth(1)) {
                    (Some(link), ..) if range.addr().is_ipv4() == way.peer.node_ip.is_ipv4() => {
                        Hop::Gateway(link, way.peer.node_ip)
                    }
                    (None, Some(tunnel), Some(gateway)) => Hop::Gateway(tunnel, gateway),
                    _ => continue,
                };
                let source = gateways.iter().copied().find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
                routes.push(Route { to: *range, via, source });
            }
        }
        routes
    }

    /// The tunnel's link, made if missing.
    async fn tunnel(&self) -> Result<u32, Error> {
        let node = &self.inner.netlink;
        let local =
            self.node_ips().await?.first().copied().ok_or_else(|| {
                Error::Invalid("the node's own address is not known: set it, a tunnel needs it".into())
            })?;
        if let Some(link) = node.link(limits::VXLAN_LINK).await? {
            if link.mac == tunnel_mac(local) {
                return Ok(link.index);
            }
            // The node's address has changed.
            node.delete_link(link.index).await?;
        }
        let mtu = self.uplink_mtu().await?.saturating_sub(limits::VXLAN_OVERHEAD);
        node.add_vxlan(limits::VXLAN_LINK, tunnel_mac(local), local, mtu).await?;
        let link = node.link(limits::VXLAN_LINK).await?;
        link.map(|link| link.index).ok_or_else(|| Error::Invalid("the tunnel's link has vanished".into()))
    }

    async fn set_tunnels(&self, ways: &[Way<'_>], link: u32) -> Result<(), Error> {
        let node = &self.inner.netlink;
        let through = || ways.iter().filter(|way| way.direct.is_none()).map(|way| way.peer);
        let tunnels: Vec<Neighbour> =
            through().map(|peer| Neighbour { link, ip: peer.node_ip, mac: tunnel_mac(peer.node_ip) }).collect();
        let gateways = through().flat_map(|peer| {
            let gateways = peer.pod_cidrs.iter().filter_map(|range| range.nth(1));
            gateways.map(|ip| Neighbour { link, ip, mac: tunnel_mac(peer.node_ip) })
        });
        let gateways: Vec<Neighbour> = gateways.collect();
        let present = node.tunnels(link).await?;
        for entry in tunnels.iter().filter(|entry| !present.contains(entry)) {
            node.set_tunnel(entry).await?;
        }
        for entry in present.iter().filter(|entry| !tunnels.contains(entry)) {
            node.delete_tunnel(entry).await?;
        }
        let mut present = node.neighbours().await?;
        present.retain(|entry| entry.link == link);
        for entry in gateways.iter().filter(|entry| !present.contains(entry)) {
            node.set_neighbour(entry).await?;
        }
        let gone = |entry: &&Neighbour| !gateways.iter().any(|wanted| wanted.ip == entry.ip);
        for entry in present.iter().filter(gone) {
            node.delete_neighbour(entry).await?;
        }
        Ok(())
    }
}

/// Locally administered; every node computes the same for a node's address.
fn tunnel_mac(node: IpAddr) -> Mac {
    match node {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x73, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let folded = ip.octets().chunks(4).fold([0; 4], |mut sum: [u8; 4], chunk| {
                sum.iter_mut().zip(chunk).for_each(|(sum, byte)| *sum = sum.rotate_left(3) ^ byte);
                sum
            });
            [0x0a, 0x76, folded[0], folded[1], folded[2], folded[3]]
        }
    }
}

//! Routes to other nodes' pods: through the node itself on a shared link, else through a VXLAN tunnel. The way is chosen for
//! each of a node's ranges: a direct route leads through an address of the range's own family.
//!
//! What is wanted is computed first, then compared with the kernel's tables; only the difference is written. Nothing is
//! learned from packets: a tunnel's hardware address follows from the node's address.

use std::net::IpAddr;

use crate::nl::{Hop, Mac, Neighbour, Route};
use crate::{Cidr, Error, Network, Peer, PeerPath, limits};

/// How the kernel reaches one of a peer's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    ip: IpAddr,
    link: u32,
    /// The machine in between; none on a shared link.
    gateway: Option<IpAddr>,
}

/// The way to one of a peer's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through the peer's address on that link.
    Direct(u32, IpAddr),
    /// To the other end of the tunnel.
    Tunnel(IpAddr),
}

impl Network {
    /// Makes the routes to other nodes' pods exactly these. What cannot be reached now is left out, and said.
    pub async fn set_peers(&self, peers: Vec<Peer>) -> Result<(), Error> {
        let _one_at_a_time = self.inner.peers.lock().await;
        let local = tunnel_end(&self.node_ips().await?);
        let mut ways = Vec::new();
        for peer in &peers {
            let reaches = self.reaches(peer).await?;
            for range in &peer.pod_cidrs {
                match way(peer, *range, &reaches, local)? {
                    Some(way) => ways.push((*range, way)),
                    None => tracing::warn!(
                        node = peer.node,
                        addresses = ?peer.node_ips,
                        %range,
                        "no route to the node: its pods cannot be reached from here"
                    ),
                }
            }
        }
        let tunnel = match local {
            Some(local) if ways.iter().any(|(_, way)| matches!(way, Way::Tunnel(_))) => Some(self.tunnel(local).await?),
            _ => None,
        };
        if let Some(tunnel) = tunnel {
            self.set_tunnels(&ways, tunnel).await?;
        }
        self.set_routes(&self.wanted_routes(&ways, tunnel)).await?;
        let node = &self.inner.netlink;
        if tunnel.is_none()
            && let Some(link) = node.link(limits::VXLAN_LINK).await?
        {
            node.delete_link(link.index).await?;
        }
        self.inner.mtu.forget();
        Ok(())
    }

    async fn reaches(&self, peer: &Peer) -> Result<Vec<Reach>, Error> {
        let mut reaches = Vec::new();
        for ip in &peer.node_ips {
            let path = self.inner.netlink.path(*ip).await?;
            reaches.extend(path.map(|(link, gateway)| Reach { ip: *ip, link, gateway }));
        }
        Ok(reaches)
    }

    fn wanted_routes(&self, ways: &[(Cidr, Way)], tunnel: Option<u32>) -> Vec<Route> {
        let gateways = self.gateways();
        let route = |(range, way): &(Cidr, Way)| {
            let via = match way {
                Way::Direct(link, ip) => Hop::Gateway(*link, *ip),
                Way::Tunnel(_) => Hop::Gateway(tunnel?, range.nth(1)?),
            };
            let source = gateways.iter().copied().find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
            Some(Route { to: *range, via, source })
        };
        ways.iter().filter_map(route).collect()
    }

    async fn set_routes(&self, wanted: &[Route]) -> Result<(), Error> {
        let node = &self.inner.netlink;
        let present = node.routes().await?;
        let to_peers = || present.iter().filter(|route| matches!(route.via, Hop::Gateway(..)));
        for route in wanted.iter().filter(|route| !present.contains(route)) {
            let moved = |old: &&Route| old.to == route.to && link_of(old) != link_of(route);
            // The kernel would look for an IPv6 gateway by the route that is to go.
            if let Some(old) = to_peers().find(moved).filter(|old| !old.to.addr().is_ipv4()) {
                node.delete_route(old).await?;
            }
            node.replace_route(route).await?;
        }
        for route in to_peers().filter(|route| !wanted.iter().any(|wanted| wanted.to == route.to)) {
            node.delete_route(route).await?;
        }
        Ok(())
    }

    /// The tunnel's link, made if missing.
    async fn tunnel(&self, local: IpAddr) -> Result<u32, Error> {
        let node = &self.inner.netlink;
        if let Some(link) = node.link(limits::VXLAN_LINK).await? {
            if link.mac == tunnel_mac(local) {
                return Ok(link.index);
            }
            // The node's address has changed.
            node.delete_link(link.index).await?;
        }
        let overhead = if local.is_ipv4() { limits::VXLAN_OVERHEAD_V4 } else { limits::VXLAN_OVERHEAD_V6 };
        let mtu = self.uplink_mtu().await?.saturating_sub(overhead);
        node.add_vxlan(limits::VXLAN_LINK, tunnel_mac(local), local, mtu).await?;
        let link = node.link(limits::VXLAN_LINK).await?;
        link.map(|link| link.index).ok_or_else(|| Error::Invalid("the tunnel's link has vanished".into()))
    }

    async fn set_tunnels(&self, ways: &[(Cidr, Way)], link: u32) -> Result<(), Error> {
        let node = &self.inner.netlink;
        let through = ways.iter().filter_map(|(range, way)| match way {
            Way::Tunnel(end) => Some((range, *end)),
            Way::Direct(..) => None,
        });
        let (mut tunnels, mut gateways) = (Vec::new(), Vec::new());
        for (range, end) in through {
            let tunnel = Neighbour { link, ip: end, mac: tunnel_mac(end) };
            if !tunnels.contains(&tunnel) {
                tunnels.push(tunnel);
            }
            gateways.extend(range.nth(1).map(|ip| Neighbour { link, ip, mac: tunnel_mac(end) }));
        }
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

/// This node's end of the tunnel. All nodes choose alike: one link carries one family on the outside.
fn tunnel_end(node_ips: &[IpAddr]) -> Option<IpAddr> {
    node_ips.iter().find(|ip| ip.is_ipv4()).or(node_ips.first()).copied()
}

/// The way to a range of the peer; `None` while there is none.
///
/// # Errors
/// When a direct way is asked for that cannot be.
fn way(peer: &Peer, range: Cidr, reaches: &[Reach], local: Option<IpAddr>) -> Result<Option<Way>, Error> {
    let v4 = range.addr().is_ipv4();
    let same = reaches.iter().find(|reach| reach.ip.is_ipv4() == v4);
    let direct = same.filter(|reach| reach.gateway.is_none()).map(|reach| Way::Direct(reach.link, reach.ip));
    let end = reaches.iter().find(|reach| local.is_some_and(|local| local.is_ipv4() == reach.ip.is_ipv4()));
    let tunnel = end.map(|reach| Way::Tunnel(reach.ip));
    match (peer.path, same) {
        (PeerPath::Auto, _) => Ok(direct.or(tunnel)),
        (PeerPath::Tunnel, _) => Ok(tunnel),
        (PeerPath::Direct, Some(Reach { ip, gateway: Some(gateway), .. })) => Err(Error::Invalid(format!(
            "node {} ({ip}) is behind {gateway}, not on a shared link: a direct route is not possible, use the tunnel",
            peer.node
        ))),
        (PeerPath::Direct, None) if !peer.node_ips.iter().any(|ip| ip.is_ipv4() == v4) => Err(Error::Invalid(format!(
            "node {} has no address of the family of {range}: a direct route is not possible, give the node one or use \
             the tunnel",
            peer.node
        ))),
        (PeerPath::Direct, _) => Ok(direct),
    }
}

fn link_of(route: &Route) -> Option<u32> {
    match route.via {
        Hop::Unreachable => None,
        Hop::Link(link) | Hop::Gateway(link, _) => Some(link),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_range_has_a_way_of_its_own() {
        let check = |path: PeerPath, node_ips: &[&str], routed: &[&str], local: &str, range: &str, expected: &str| {
            let node_ips: Vec<IpAddr> = node_ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let gateway = |ip: &IpAddr| {
                let behind = routed.contains(&ip.to_string().as_str());
                behind.then(|| if ip.is_ipv4() { "192.0.2.254" } else { "2001:db8::fe" }.parse().unwrap())
            };
            let reaches: Vec<Reach> =
                node_ips.iter().map(|ip| Reach { ip: *ip, link: 2, gateway: gateway(ip) }).collect();
            let range: Cidr = range.parse().unwrap();
            let peer = Peer { node: "two".into(), pod_cidrs: vec![range], node_ips, path };
            let got = match way(&peer, range, &reaches, Some(local.parse().unwrap())) {
                Ok(Some(Way::Direct(_, ip))) => format!("direct {ip}"),
                Ok(Some(Way::Tunnel(ip))) => format!("tunnel {ip}"),
                Ok(None) => "none".into(),
                Err(error) => error.to_string(),
            };
            assert!(got.starts_with(expected), "{got}, not {expected}");
        };
        let (both, four, six) = (&["192.0.2.2", "2001:db8::2"][..], &["192.0.2.2"][..], &["2001:db8::2"][..]);
        let (pods4, pods6) = ("10.244.2.0/24", "fd00:10:244:2::/64");
        use PeerPath::{Auto, Direct, Tunnel};
        check(Auto, both, &[], "192.0.2.1", pods4, "direct 192.0.2.2");
        check(Auto, both, &[], "192.0.2.1", pods6, "direct 2001:db8::2");
        check(Auto, both, &["2001:db8::2"], "192.0.2.1", pods6, "tunnel 192.0.2.2");
        check(Auto, both, &["192.0.2.2"], "192.0.2.1", pods6, "direct 2001:db8::2");
        // Pods have families that their nodes lack.
        check(Auto, four, &[], "192.0.2.1", pods6, "tunnel 192.0.2.2");
        check(Auto, six, &[], "2001:db8::1", pods4, "tunnel 2001:db8::2");
        check(Auto, six, &[], "192.0.2.1", pods4, "none");
        check(Auto, &[], &[], "192.0.2.1", pods4, "none");
        check(Tunnel, both, &[], "192.0.2.1", pods6, "tunnel 192.0.2.2");
        check(Direct, both, &[], "192.0.2.1", pods6, "direct 2001:db8::2");
        check(Direct, both, six, "192.0.2.1", pods6, "node two (2001:db8::2) is behind 2001:db8::fe");
        check(Direct, four, &[], "192.0.2.1", pods6, "node two has no address of the family of fd00:10:244:2::/64");
    }

    #[test]
    fn all_nodes_tunnel_over_the_same_family() {
        for (ips, expected) in [
            (&["192.0.2.1", "2001:db8::1"][..], Some("192.0.2.1")),
            (&["2001:db8::1", "192.0.2.1"], Some("192.0.2.1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&[], None),
        ] {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(tunnel_end(&ips), expected.map(|ip| ip.parse().unwrap()));
        }
    }
}

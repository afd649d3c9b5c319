//! The node's own side: refused ranges, forwarding, its address among the pods, and the removal of all that.

use std::net::IpAddr;

use crate::nl::{Hop, Route};
use crate::{Cidr, Error, Network, ipv6, limits, netns};

impl Network {
    /// Prepares the node: unreachable routes for the cluster's ranges first, so that no packet for an address that nobody
    /// serves leaves the machine, then forwarding. Idempotent.
    pub async fn setup_node(&self) -> Result<(), Error> {
        let config = &self.inner.config;
        if config.cluster_cidrs.iter().any(|range| !range.addr().is_ipv4()) {
            self.inner.netns.run(ipv6::require).await?;
        }
        for range in config.cluster_cidrs.iter().chain(&config.service_cidrs) {
            self.refuse(*range).await?;
        }
        if let Some(lo) = self.inner.netlink.link("lo").await? {
            self.inner.netlink.set_up(lo.index).await?;
        }
        self.inner.netns.sysctls(vec![("net/ipv4/ip_forward".to_owned(), "1")]).await?;
        if config.cluster_cidrs.iter().any(|range| !range.addr().is_ipv4()) {
            self.inner.netns.run(ipv6::forward).await?;
        }
        // What a daemon gave up that died before its removal.
        self.inner.sweeper.ask();
        self.set_pod_cidrs(config.pod_cidrs.clone()).await
    }

    /// Tells the node's pod ranges once they are known. Idempotent; pods keep the addresses they have.
    pub async fn set_pod_cidrs(&self, ranges: Vec<Cidr>) -> Result<(), Error> {
        if let Some(small) = ranges.iter().find(|range| range.size() < 4) {
            return Err(Error::Invalid(format!("the pod range {small} has no room for pods: at least a /30")));
        }
        let lo = self.inner.netlink.link("lo").await?;
        let lo = lo.ok_or_else(|| Error::Invalid("the node has no loopback link".into()))?;
        for range in &ranges {
            self.refuse(*range).await?;
            if let Some(gateway) = range.nth(1) {
                self.inner.netlink.add_address(lo.index, gateway).await?;
            }
        }
        *self.inner.ranges.write() = ranges;
        self.inner.mtu.forget();
        Ok(())
    }

    /// Refuses what nobody serves in further ranges of Services too, beside those configured, and no longer in those that are
    /// gone. A range is left alone, and returned, when it holds an address of a node, this one or one of `nodes`: what lies
    /// around it is not Services' alone. So is what somebody else has a route for. Idempotent.
    pub async fn set_service_cidrs(&self, ranges: &[Cidr], nodes: &[IpAddr]) -> Result<Vec<Cidr>, Error> {
        let (config, node) = (&self.inner.config, &self.inner.netlink);
        let own: Vec<IpAddr> = node.addresses().await?.into_iter().map(|(_, ip)| ip).collect();
        let pods = self.inner.ranges.read().clone();
        let refused = |range: &&Cidr| {
            config.service_cidrs.contains(range)
                || pods.contains(range)
                || config.cluster_cidrs.iter().any(|all| all.contains(range.addr()))
        };
        let shared = |range: &&Cidr| nodes.iter().chain(&own).any(|ip| range.contains(*ip));
        let (left, wanted): (Vec<&Cidr>, Vec<&Cidr>) = ranges.iter().filter(|range| !refused(range)).partition(shared);
        let routes = node.routes().await?;
        let there: Vec<&Route> =
            routes.iter().filter(|route| route.via == Hop::Unreachable && !refused(&&route.to)).collect();
        for route in there.iter().filter(|route| !wanted.contains(&&route.to)) {
            node.delete_route(route).await?;
        }
        for range in wanted.iter().filter(|range| !there.iter().any(|route| route.to == ***range)) {
            node.add_route(&Route { to: **range, via: Hop::Unreachable, source: None }).await?;
        }
        Ok(left.into_iter().copied().collect())
    }

    /// The node's address inside each pod range (the first one, on `lo`): the source of node-to-pod traffic, so that a pod's
    /// answer to a node takes the way of pods wherever the node's own address is.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.inner.ranges.read().iter().filter_map(|range| range.nth(1)).collect()
    }

    /// The node's addresses: as configured, else those of the links with a default route, one of each family that pods have.
    pub async fn node_ips(&self) -> Result<Vec<IpAddr>, Error> {
        if !self.inner.config.node_ips.is_empty() {
            return Ok(self.inner.config.node_ips.clone());
        }
        let links = self.inner.netlink.default_links().await?;
        let mut addresses = self.inner.netlink.addresses().await?;
        addresses.retain(|(link, ip)| links.contains(link) && !is_link_local(*ip));
        let first = |v4: bool| addresses.iter().map(|(_, ip)| *ip).find(|ip| ip.is_ipv4() == v4);
        Ok(self.inner.config.cluster_cidrs.iter().filter_map(|range| first(range.addr().is_ipv4())).collect())
    }

    /// Names of the links that packets from outside arrive on: those of default routes and of routes to peers.
    pub async fn uplinks(&self) -> Result<Vec<String>, Error> {
        let node = &self.inner.netlink;
        let mut indexes = node.default_links().await?;
        for route in node.routes().await? {
            if let Hop::Gateway(link, _) = route.via {
                indexes.push(link);
            }
        }
        let own = self.node_ips().await?;
        let addresses = node.addresses().await?;
        indexes.extend(addresses.iter().filter(|(_, ip)| own.contains(ip)).map(|(link, _)| *link));
        let links = node.links().await?.into_iter();
        Ok(links.filter(|link| link.name != "lo" && indexes.contains(&link.index)).map(|link| link.name).collect())
    }

    /// Largest packet of a pod: as configured, else the uplink's, less what a tunnel adds where there is one.
    pub(crate) async fn pod_mtu(&self) -> Result<u32, Error> {
        if let Some(mtu) = self.inner.config.mtu {
            return Ok(mtu);
        }
        let begun = match self.inner.mtu.known() {
            Ok(mtu) => return Ok(mtu),
            Err(begun) => begun,
        };
        let mtu = match self.inner.netlink.link(limits::VXLAN_LINK).await? {
            Some(tunnel) => tunnel.mtu,
            None => self.uplink_mtu().await?,
        };
        self.inner.mtu.learn(begun, mtu);
        Ok(mtu)
    }

    pub(crate) async fn uplink_mtu(&self) -> Result<u32, Error> {
        let uplinks = self.uplinks().await?;
        let links = self.inner.netlink.links().await?;
        let mtus = links.iter().filter(|link| uplinks.contains(&link.name) && link.name != limits::VXLAN_LINK);
        Ok(mtus.map(|link| link.mtu).min().unwrap_or(limits::DEFAULT_MTU))
    }

    /// Removes everything of ours: links, routes, addresses, pinned namespaces.
    pub async fn teardown(&self) -> Result<(), Error> {
        let node = &self.inner.netlink;
        let links = node.links().await?;
        for link in &links {
            // One without an owner was given up, or made halfway.
            let owned = link.alias.is_empty() || crate::pods::link_name(&link.alias) == link.name;
            let pod = link.name.starts_with(limits::LINK_PREFIX) && owned;
            if pod || link.name == limits::VXLAN_LINK || link.name == limits::HOME_LINKS[0] {
                node.delete_link(link.index).await?;
            }
        }
        let routes = node.routes().await?;
        let ranges: Vec<Cidr> =
            routes.iter().filter(|route| route.via == Hop::Unreachable).map(|route| route.to).collect();
        if let Some(lo) = links.iter().find(|link| link.name == "lo") {
            for (link, ip) in node.addresses().await? {
                let gateway = ranges.iter().any(|range| range.nth(1) == Some(ip));
                if link == lo.index && gateway {
                    node.delete_address(link, ip).await?;
                }
            }
        }
        for route in &routes {
            node.delete_route(route).await?;
        }
        for path in netns::pinned(&self.inner.config.netns_dir) {
            netns::unpin(&path)?;
        }
        // Not empty or not there: nothing more of ours.
        let _ = std::fs::remove_dir(&self.inner.config.netns_dir);
        self.inner.ranges.write().clear();
        Ok(())
    }

    async fn refuse(&self, range: Cidr) -> Result<(), Error> {
        self.inner.netlink.replace_route(&Route { to: range, via: Hop::Unreachable, source: None }).await
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

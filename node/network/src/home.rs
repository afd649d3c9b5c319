//! The home link: where service addresses lead that the node's own sockets reach by packet (SCTP: no hook sees its addresses).
//! The data plane's programs on it do all the work; its other end hears nothing.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use crate::nl::{Hop, Mac, Route};
use crate::{Cidr, Error, Network, limits, netns};

/// Addresses that lead to the home link though nobody serves them any more, the oldest first.
pub(crate) type Left = VecDeque<Cidr>;

/// Packets with an own source come in there, loopback addresses too; neither end has an address.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/conf/sluice.home/accept_local", "1"),
    ("ipv4/conf/sluice.home/route_localnet", "1"),
    ("ipv4/conf/sluice.home/rp_filter", "0"),
    ("ipv6/conf/sluice.home/addr_gen_mode", "1"),
    ("ipv6/conf/sluice.home.end/addr_gen_mode", "1"),
];

impl Network {
    /// Makes the home link, whose hardware address both ends have, unless it is there. Returns its index.
    pub async fn ensure_home(&self, mac: Mac) -> Result<u32, Error> {
        let [name, end] = limits::HOME_LINKS;
        let node = &self.inner.netlink;
        if node.link(name).await?.is_none() {
            let mtu = self.pod_mtu().await?;
            let direct = self.inner.direct.clone();
            netns::on_thread(move || direct.lock().add_pair([name, end], mac, mtu)).await?;
        }
        self.inner.netns.sysctls(SETTINGS.map(|(key, value)| (format!("net/{key}"), value)).to_vec()).await?;
        let mut index = 0;
        for name in [end, name] {
            let gone = || Error::Invalid(format!("the link {name} went as soon as it was made"));
            index = node.link(name).await?.ok_or_else(gone)?.index;
            node.set_up(index).await?;
        }
        Ok(index)
    }

    /// Leads these addresses to the home link, from the node's address among the pods; an address of the node's own stays
    /// its own. What was led there before stays for connections that go on, up to a bound. Idempotent.
    pub async fn lead_home(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let node = &self.inner.netlink;
        let Some(link) = node.link(limits::HOME_LINKS[0]).await? else { return Ok(()) };
        let mut left = self.inner.home.lock().await;
        let own: BTreeSet<IpAddr> = node.addresses().await?.into_iter().map(|(_, ip)| ip).collect();
        let wanted: BTreeSet<Cidr> = addresses.difference(&own).map(|ip| Cidr::host(*ip)).collect();
        let there: BTreeSet<Cidr> = node
            .routes()
            .await?
            .into_iter()
            .filter(|route| route.via == Hop::Link(link.index))
            .map(|route| route.to)
            .collect();
        for to in wanted.difference(&there) {
            node.add_route(&self.way_home(*to, link.index)).await?;
        }
        left.retain(|to| !wanted.contains(to));
        let gone: Vec<Cidr> = there.difference(&wanted).filter(|to| !left.contains(to)).copied().collect();
        left.extend(gone);
        while left.len() > limits::HOME_LEFT {
            let Some(to) = left.pop_front() else { break };
            node.delete_route(&self.way_home(to, link.index)).await?;
        }
        Ok(())
    }

    /// Removes the home link, and the routes with it. Not there is success.
    pub async fn remove_home(&self) -> Result<(), Error> {
        self.inner.home.lock().await.clear();
        match self.inner.netlink.link(limits::HOME_LINKS[0]).await? {
            Some(link) => self.inner.netlink.delete_link(link.index).await,
            None => Ok(()),
        }
    }

    fn way_home(&self, to: Cidr, link: u32) -> Route {
        let same = |ip: &IpAddr| ip.is_ipv4() == to.addr().is_ipv4();
        Route { to, via: Hop::Link(link), source: self.gateways().into_iter().find(same) }
    }
}

//! A pod's link: made, found again in the kernel, removed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Instant;

use crate::nl::{Hop, Link, Mac, Neighbour, Netlink, Route};
use crate::{Cidr, Error, Network, PodNet, limits, netns};

/// Where a pod sends everything: an address that exists nowhere but in the pod's neighbour table.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

impl Network {
    /// Gives the pod a namespace, a link and addresses; returns what is there if it has them already.
    pub async fn create_pod(&self, uid: &str) -> Result<PodNet, Error> {
        check(uid)?;
        let one_at_a_time = self.inner.pods.lock().await;
        let node = &self.inner.netlink;
        let name = link_name(uid);
        if let Some(link) = node.link(&name).await? {
            if let Some(pod) = self.found(uid, &link).await? {
                return Ok(pod);
            }
            // Made halfway by a daemon that died.
            node.delete_link(link.index).await?;
        }
        drop(one_at_a_time);
        let path = self.netns_path(uid);
        let inside = netns::pin(&path).await?;
        let pod = inside.netlink().await?;
        inside.sysctls(pod_sysctls()).await?;
        if let Some(lo) = pod.link("lo").await? {
            pod.set_up(lo.index, None).await?;
        }
        let (mac, host_mac) = (random_mac(), random_mac());
        let mtu = self.pod_mtu().await?;
        let reserved = self.inner.pods.lock().await;
        let ips = self.pick_addresses().await?;
        node.add_veth(&name, host_mac, &inside, mac, mtu).await?;
        let link = node.link(&name).await?.ok_or_else(|| Error::Invalid(format!("link {name} has vanished")))?;
        let made = async {
            node.set_up(link.index, Some(uid)).await?;
            for ip in &ips {
                node.set_neighbour(&Neighbour { link: link.index, ip: *ip, mac }).await?;
                node.replace_route(&self.pod_route(*ip, link.index)).await?;
            }
            // From here on the kernel knows that the addresses are taken.
            drop(reserved);
            configure_inside(&pod, &ips, host_mac).await
        };
        if let Err(error) = made.await {
            node.delete_link(link.index).await?;
            return Err(error);
        }
        Ok(PodNet { uid: uid.to_owned(), netns: path, ips, host_ifname: name, host_ifindex: link.index, host_mac, mac })
    }

    /// Removes the pod's link, routes and namespace; nothing there is success.
    pub async fn delete_pod(&self, uid: &str) -> Result<(), Error> {
        check(uid)?;
        let node = &self.inner.netlink;
        if let Some(link) = node.link(&link_name(uid)).await? {
            let now = Instant::now();
            for entry in node.neighbours().await?.into_iter().filter(|entry| entry.link == link.index) {
                self.inner.ipam.lock().release(entry.ip, now);
            }
            node.delete_link(link.index).await?;
        }
        netns::unpin(&self.netns_path(uid))
    }

    /// Removes the networks of all pods but these: links, and namespaces pinned by a daemon that died before it made one.
    /// For a daemon's start, when it knows the node's pods.
    pub async fn retain(&self, uids: &HashSet<String>) -> Result<(), Error> {
        let linked = self.pods().await?.into_iter().map(|pod| pod.uid);
        let pinned = netns::pinned(&self.inner.config.netns_dir).into_iter();
        let pinned = pinned.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let gone: HashSet<String> = linked.chain(pinned).filter(|uid| !uids.contains(uid)).collect();
        for uid in gone {
            self.delete_pod(&uid).await?;
        }
        Ok(())
    }

    /// Every pod's network, read from the kernel.
    pub async fn pods(&self) -> Result<Vec<PodNet>, Error> {
        let links = self.inner.netlink.links().await?;
        let mut entries: HashMap<u32, Vec<Neighbour>> = HashMap::new();
        for entry in self.inner.netlink.neighbours().await? {
            entries.entry(entry.link).or_default().push(entry);
        }
        let ours = links.into_iter().filter(|link| link_name(&link.alias) == link.name);
        let pods = ours.filter_map(|link| {
            let uid = link.alias.clone();
            let entries = entries.remove(&link.index)?;
            Some(self.pod(&uid, &link, &entries))
        });
        Ok(pods.collect())
    }

    /// The pod's network if all parts of it are there.
    async fn found(&self, uid: &str, link: &Link) -> Result<Option<PodNet>, Error> {
        if link.alias != uid || !netns::is_pinned(&self.netns_path(uid)) {
            return Ok(None);
        }
        let node = &self.inner.netlink;
        let mut entries = node.neighbours().await?;
        entries.retain(|entry| entry.link == link.index);
        let routes = node.routes().await?;
        let routed = |entry: &Neighbour| {
            routes.iter().any(|route| route.to == Cidr::host(entry.ip) && route.via == Hop::Link(link.index))
        };
        if entries.is_empty() || !entries.iter().all(routed) {
            return Ok(None);
        }
        // The inside comes last when a pod is made: its address says that the rest is there.
        let inside = netns::Netns::open(&self.netns_path(uid))?.netlink().await?;
        let addresses = inside.addresses().await?;
        let whole = entries.iter().all(|entry| addresses.iter().any(|(_, ip)| *ip == entry.ip));
        Ok(whole.then(|| self.pod(uid, link, &entries)))
    }

    fn pod(&self, uid: &str, link: &Link, entries: &[Neighbour]) -> PodNet {
        let mut ips: Vec<IpAddr> = entries.iter().map(|entry| entry.ip).collect();
        // The primary family is that of the node's first range.
        let primary_v4 = self.inner.ranges.read().first().is_none_or(|range| range.addr().is_ipv4());
        ips.sort_by_key(|ip| (ip.is_ipv4() != primary_v4, *ip));
        PodNet {
            uid: uid.to_owned(),
            netns: self.netns_path(uid),
            ips,
            host_ifname: link.name.clone(),
            host_ifindex: link.index,
            host_mac: link.mac,
            mac: entries.first().map(|entry| entry.mac).unwrap_or_default(),
        }
    }

    /// One free address of every range of the node. The caller holds the lock until the kernel has the routes.
    async fn pick_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let ranges = self.inner.ranges.read().clone();
        if ranges.is_empty() {
            return Err(Error::NoPodCidr);
        }
        let routes = self.inner.netlink.routes().await?;
        let used: HashSet<IpAddr> = routes
            .into_iter()
            .filter(|route| Cidr::host(route.to.addr()) == route.to)
            .map(|route| route.to.addr())
            .collect();
        let ipam = self.inner.ipam.lock();
        let pick = |range: Cidr| {
            let free = ipam.pick(range, &used, Instant::now());
            free.ok_or_else(|| Error::Exhausted { range, used: used.iter().filter(|ip| range.contains(**ip)).count() })
        };
        ranges.into_iter().map(pick).collect()
    }

    fn pod_route(&self, ip: IpAddr, link: u32) -> Route {
        let source = self.gateways().into_iter().find(|gateway| gateway.is_ipv4() == ip.is_ipv4());
        Route { to: Cidr::host(ip), via: Hop::Link(link), source }
    }

    fn netns_path(&self, uid: &str) -> PathBuf {
        self.inner.config.netns_dir.join(uid)
    }
}

/// The pod's own side: addresses, and everything through the node without asking who it is.
async fn configure_inside(pod: &Netlink, ips: &[IpAddr], host_mac: Mac) -> Result<(), Error> {
    let eth0 = pod.link("eth0").await?.ok_or_else(|| Error::Invalid("eth0 of the pod has vanished".into()))?;
    pod.set_up(eth0.index, None).await?;
    for ip in ips {
        let (gateway, anywhere) = if ip.is_ipv4() {
            (GATEWAY_V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        } else {
            (GATEWAY_V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        };
        pod.set_neighbour(&Neighbour { link: eth0.index, ip: gateway, mac: host_mac }).await?;
        pod.add_address(eth0.index, *ip).await?;
        let everything = Cidr::new(anywhere, 0).ok_or(Error::NoPodCidr)?;
        let route = Route { to: everything, via: Hop::Gateway(eth0.index, gateway), source: None };
        pod.replace_route(&route).await?;
    }
    Ok(())
}

/// As container runtimes set them: low ports and ping for every user; IPv6 addresses are unique without asking.
fn pod_sysctls() -> Vec<(String, &'static str)> {
    vec![
        ("net/ipv4/ip_unprivileged_port_start".into(), "0"),
        ("net/ipv4/ping_group_range".into(), "0\t2147483647"),
        ("net/ipv6/conf/default/accept_dad".into(), "0"),
        ("net/ipv6/conf/default/accept_ra".into(), "0"),
    ]
}

/// `slc` and eight hex digits of the uid's hash (FNV-1a): short enough for the kernel, the same after every restart.
pub(crate) fn link_name(uid: &str) -> String {
    let hash = uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{}{hash:08x}", limits::LINK_PREFIX)
}

/// A uid becomes a file name and a link's alias.
fn check(uid: &str) -> Result<(), Error> {
    let fits =
        (1..=128).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if fits { Ok(()) } else { Err(Error::Invalid(format!("{uid:?} is no pod uid"))) }
}

/// Locally administered, unicast.
fn random_mac() -> Mac {
    let mut mac: Mac = rand::random();
    mac[0] = (mac[0] & 0xfe) | 0x02;
    mac
}

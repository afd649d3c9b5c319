//! A pod's link: made, found again in the kernel, removed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::direct::Direct;
use crate::nl::{Hop, Link, Mac, Neighbour, Route};
use crate::{Cidr, Error, Network, PodNet, limits, netns};

/// Where a pod sends everything: an address that exists nowhere but in the pod's neighbour table.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

impl Network {
    /// Gives the pod a namespace, a link and addresses; returns what is there if it has them already.
    pub async fn create_pod(&self, uid: &str) -> Result<PodNet, Error> {
        check(uid)?;
        self.load_addresses().await?;
        let name = link_name(uid);
        if !self.inner.ipam.lock().of(uid).is_empty() {
            if let Some(link) = self.inner.netlink.link(&name).await?
                && let Some(pod) = self.found(uid, &link).await?
            {
                return Ok(pod);
            }
            // Made halfway by a daemon that died, or taken apart by somebody else.
            self.inner.ipam.lock().release(uid, Instant::now());
        }
        let ranges = self.inner.ranges.read().clone();
        if ranges.is_empty() {
            return Err(Error::NoPodCidr);
        }
        let mtu = self.pod_mtu().await?;
        if mtu < limits::IPV6_MTU && ranges.iter().any(|range| !range.addr().is_ipv4()) {
            let least = limits::IPV6_MTU;
            return Err(Error::Invalid(format!(
                "pods' links would have an MTU of {mtu}, IPv6 needs {least}: give the node's links a larger MTU"
            )));
        }
        let making = Making {
            ips: self.inner.ipam.lock().reserve(uid, &ranges, Instant::now())?,
            uid: uid.to_owned(),
            name,
            path: self.netns_path(uid),
            node: self.inner.netns.clone(),
            gateways: self.gateways(),
            mtu,
        };
        let direct = Arc::clone(&self.inner.direct);
        let made = netns::on_thread(move || making.make(&direct)).await;
        if made.is_err() {
            self.inner.sweeper.ask();
            self.inner.ipam.lock().release(uid, Instant::now());
        }
        made
    }

    /// The pod's addresses; none of a pod without a network.
    pub async fn addresses(&self, uid: &str) -> Result<HashSet<IpAddr>, Error> {
        self.load_addresses().await?;
        Ok(self.inner.ipam.lock().of(uid))
    }

    /// Removes the pod's routes and namespace, and lets its link go; nothing there is success.
    pub async fn delete_pod(&self, uid: &str) -> Result<(), Error> {
        check(uid)?;
        self.load_addresses().await?;
        let ips = self.inner.ipam.lock().of(uid);
        let (direct, name, path) = (Arc::clone(&self.inner.direct), link_name(uid), self.netns_path(uid));
        let removed = tokio::task::spawn_blocking(move || {
            let mut direct = direct.lock();
            if let Some(link) = direct.link(&name)? {
                for ip in ips {
                    direct.delete_route(&pod_route(ip, link.index, &[]))?;
                }
                direct.give_up(link.index)?;
            }
            drop(direct);
            netns::unpin(&path)
        });
        removed.await.map_err(|error| Error::Invalid(error.to_string()))??;
        self.inner.sweeper.ask();
        self.inner.ipam.lock().release(uid, Instant::now());
        Ok(())
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
            queued: link.queued,
        }
    }

    /// Reads once which addresses the kernel has routes for, and whose they are.
    async fn load_addresses(&self) -> Result<(), Error> {
        let load = async || {
            let links = self.inner.netlink.links().await?.into_iter();
            let owners: HashMap<u32, String> =
                links.filter(|link| link_name(&link.alias) == link.name).map(|link| (link.index, link.alias)).collect();
            let routes = self.inner.netlink.routes().await?;
            let mut ipam = self.inner.ipam.lock();
            for route in routes.iter().filter(|route| Cidr::host(route.to.addr()) == route.to) {
                let owner = match route.via {
                    Hop::Link(link) => owners.get(&link).map(String::as_str),
                    _ => None,
                };
                ipam.found(owner.unwrap_or_default(), route.to.addr());
            }
            Ok(())
        };
        self.inner.ipam_loaded.get_or_try_init(load).await.map(drop)
    }

    pub(crate) fn netns_path(&self, uid: &str) -> PathBuf {
        self.inner.config.netns_dir.join(uid)
    }
}

/// A pod's network that is to be made.
struct Making {
    uid: String,
    name: String,
    path: PathBuf,
    /// The node's namespace.
    node: netns::Netns,
    ips: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    mtu: u32,
}

impl Making {
    /// Makes it; the calling thread is in another namespace afterwards. A link made halfway is given up.
    fn make(self, node: &Mutex<Direct>) -> Result<PodNet, Error> {
        let inside = netns::pin_and_enter(&self.path)?;
        let mut pod = Direct::open()?;
        for (name, value) in POD_SYSCTLS {
            netns::set_sysctl(name, value)?;
        }
        if let Some(lo) = pod.link("lo")? {
            pod.set_up(lo.index, None)?;
        }
        let (mac, host_mac) = (random_mac(), random_mac());
        let link = {
            let mut node = node.lock();
            if let Some(halfway) = node.link(&self.name)? {
                // Left by a daemon that died, or given up and not gone yet.
                node.delete_link(halfway.index)?;
            }
            node.add_veth(&self.name, host_mac, &inside, mac, self.mtu)?;
            node.link(&self.name)?
        };
        let link = link.ok_or_else(|| Error::Invalid(format!("link {} has vanished", self.name)))?;
        // The pod's own side comes last: it says that the rest is there.
        let done =
            self.node_side(&mut node.lock(), link.index, mac).and_then(|()| inner_side(&mut pod, &self.ips, host_mac));
        if let Err(error) = done {
            node.lock().give_up(link.index)?;
            return Err(error);
        }
        Ok(PodNet {
            uid: self.uid,
            netns: self.path,
            ips: self.ips,
            host_ifname: self.name,
            host_ifindex: link.index,
            host_mac,
            mac,
            queued: false,
        })
    }

    fn node_side(&self, node: &mut Direct, link: u32, mac: Mac) -> Result<(), Error> {
        self.node.enter()?;
        for (name, value) in LINK_SYSCTLS {
            netns::set_sysctl(&format!("net/ipv6/conf/{}/{name}", self.name), value)?;
        }
        node.set_up(link, Some(&self.uid))?;
        for ip in &self.ips {
            node.set_neighbour(&Neighbour { link, ip: *ip, mac })?;
            node.replace_route(&pod_route(*ip, link, &self.gateways))?;
        }
        Ok(())
    }
}

fn pod_route(ip: IpAddr, link: u32, gateways: &[IpAddr]) -> Route {
    let source = gateways.iter().copied().find(|gateway| gateway.is_ipv4() == ip.is_ipv4());
    Route { to: Cidr::host(ip), via: Hop::Link(link), source }
}

/// The pod's own side: addresses, and everything through the node without asking who it is.
fn inner_side(pod: &mut Direct, ips: &[IpAddr], host_mac: Mac) -> Result<(), Error> {
    let eth0 = pod.link("eth0")?.ok_or_else(|| Error::Invalid("eth0 of the pod has vanished".into()))?;
    pod.set_up(eth0.index, None)?;
    for ip in ips {
        let (gateway, anywhere) = if ip.is_ipv4() {
            (GATEWAY_V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        } else {
            (GATEWAY_V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        };
        pod.set_neighbour(&Neighbour { link: eth0.index, ip: gateway, mac: host_mac })?;
        pod.add_address(eth0.index, *ip)?;
        let everything = Cidr::new(anywhere, 0).ok_or(Error::NoPodCidr)?;
        pod.replace_route(&Route { to: everything, via: Hop::Gateway(eth0.index, gateway), source: None })?;
    }
    Ok(())
}

/// The node's side has no IPv6 address, asks for none, and takes no pod for a router.
const LINK_SYSCTLS: [(&str, &str); 2] = [("addr_gen_mode", "1"), ("accept_ra", "0")];

/// As container runtimes set them: low ports and ping for every user; IPv6 addresses are unique without asking.
const POD_SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0\t2147483647"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

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

//! The node's links and addresses, and the rules for its routes: which addresses node ports answer on, which address masqueraded traffic leaves with,
//! and which links get the uplink programs. Read from the kernel at start and whenever it says that something changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::sys::socket::{AddressFamily, SockaddrLike};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use sluice_ebpf_common::{Address, Settings, SourceKey};
use tokio_util::sync::CancellationToken;

use crate::attach::Link;
use crate::dataplane::{Dataplane, Uplinks};
use crate::range::wire;
use crate::{Error, rules, sys};

const ETHERNET: u16 = 1;

/// A link as far as we care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Interface {
    index: u32,
    ethernet: bool,
    addresses: Vec<IpAddr>,
}

/// Reads the links of this namespace by name.
fn scan() -> Result<BTreeMap<String, Interface>, Error> {
    let entries = nix::ifaddrs::getifaddrs().map_err(|errno| Error::system("list the links", errno.into()))?;
    let mut links: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in entries {
        let link = links.entry(entry.interface_name).or_default();
        let Some(address) = entry.address else { continue };
        match address.family() {
            Some(AddressFamily::Packet) => {
                if let Some(hardware) = address.as_link_addr() {
                    link.index = hardware.ifindex() as u32;
                    link.ethernet = hardware.hatype() == ETHERNET;
                }
            }
            Some(AddressFamily::Inet) => {
                link.addresses.extend(address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip())));
            }
            Some(AddressFamily::Inet6) => {
                link.addresses.extend(address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())));
            }
            _ => {}
        }
    }
    Ok(links)
}

impl Dataplane {
    /// Brings the address maps and the uplinks' programs in line with the kernel's links.
    pub(crate) fn reconcile_links(&self) -> Result<(), Error> {
        let links = scan()?;
        let inner = &self.inner;
        let addresses = links.values().flat_map(|link| link.addresses.iter().copied());
        let configured = &inner.config.node_addresses;
        let locals: BTreeMap<Address, u32> = addresses
            .chain(configured.iter().copied())
            .filter(|address| !address.is_loopback())
            .map(|address| (wire(address), inner.config.node_port_addresses.local(configured, address)))
            .collect();
        for (flag, closed) in inner.config.node_port_addresses.flags(configured) {
            self.set_flag(flag, closed)?;
        }
        replace(&mut inner.locals.lock(), &locals, "local addresses")?;
        let source = |link: &Interface, version: u32| {
            let own = |address: &&IpAddr| address.is_ipv4() == (version == 4) && is_source(address);
            let address = link.addresses.iter().find(own)?;
            Some((SourceKey { link: link.index, version }, wire(*address)))
        };
        let sources: BTreeMap<SourceKey, Address> =
            links.values().flat_map(|link| [4, 6].into_iter().filter_map(|version| source(link, version))).collect();
        replace(&mut inner.sources.lock(), &sources, "source addresses")?;
        let is_uplink = |name: &str, link: &Interface| match &inner.config.uplinks {
            Uplinks::Every { except } => link.ethernet && !is_pod(name, except),
            Uplinks::Named(names) => names.iter().any(|known| known == name),
        };
        let plain = rules::are_plain().map_err(|error| Error::system("read the rules for routes", error))?;
        self.set_flag(Settings::PLAIN_RULES, plain)?;
        self.ask_anew()?;
        if !configured.iter().any(IpAddr::is_ipv6) {
            let six = links.iter().filter(|(name, link)| is_uplink(name, link)).find_map(|(_, link)| source(link, 6));
            let six = six.map_or_else(Address::default, |(_, six)| six);
            self.change_settings(|settings| settings.families[1].node = six)?;
        }
        let Uplinks::Every { except } = &inner.config.uplinks else { return Ok(()) };
        let wanted: BTreeSet<Link> = links
            .into_iter()
            .filter(|(name, link)| link.ethernet && !is_pod(name, except))
            .map(|(name, link)| Link { index: link.index, name })
            .collect();
        let mut uplinks = inner.uplinks.lock();
        for gone in uplinks.difference(&wanted) {
            self.detach_uplink(gone)?;
        }
        let mut attached: BTreeSet<Link> = uplinks.intersection(&wanted).cloned().collect();
        for link in wanted.difference(&attached.clone()) {
            match self.attach_uplink(link) {
                Ok(()) => drop(attached.insert(link.clone())),
                // It may have gone again; if not, the next change tries again.
                Err(error) => tracing::warn!(link = link.name, %error, "services do not answer on this link"),
            }
        }
        *uplinks = attached;
        Ok(())
    }

    pub(crate) fn set_flag(&self, flag: u32, set: bool) -> Result<(), Error> {
        self.change_settings(|settings| {
            settings.flags = if set { settings.flags | flag } else { settings.flags & !flag };
        })
    }

    /// Follows the kernel's links and addresses until the shutdown.
    pub async fn follow_links(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|error| Error::system("listen for changes of links", error))?;
        let listener = tokio::spawn(connection);
        self.reconcile_links()?;
        let except = match &self.inner.config.uplinks {
            Uplinks::Every { except } => except.clone(),
            Uplinks::Named(_) => Vec::new(),
        };
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.next() => {
                    let Some((message, _)) = message else { break };
                    let mut matters = self.notice(&message, &except);
                    while let Ok((message, _)) = messages.try_recv() {
                        matters |= self.notice(&message, &except);
                    }
                    if matters && let Err(error) = self.reconcile_links() {
                        tracing::warn!(%error, "the node's links could not be read");
                    }
                }
            }
        }
        listener.abort();
        Ok(())
    }

    /// Do the links have to be read anew after this message?
    fn notice(&self, message: &NetlinkMessage<RouteNetlinkMessage>, except: &[String]) -> bool {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => concerns(link, except),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                // A bridge says the same of a port that it lets go.
                let index = link.header.index;
                if Link::by_index(index).is_err()
                    && let Err(error) = self.forget_link(index)
                {
                    tracing::warn!(%error, "the programs of a link that is gone could not be unpinned");
                }
                concerns(link, except)
            }
            _ => true,
        }
    }
}

/// Pods' links come and go all the time and change nothing here.
fn concerns(link: &LinkMessage, except: &[String]) -> bool {
    let veth = |kind: &LinkInfo| matches!(kind, LinkInfo::Kind(InfoKind::Veth));
    let is_veth =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkInfo(info) if info.iter().any(veth));
    let is_named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if starts(name, except));
    !(link.attributes.iter().any(is_veth) && link.attributes.iter().any(is_named))
}

fn starts(name: &str, except: &[String]) -> bool {
    except.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

/// A link that nothing is known about any more is treated as a pod's: it is gone.
fn is_pod(name: &str, except: &[String]) -> bool {
    starts(name, except) && sys::is_veth(name).unwrap_or(true)
}

/// May traffic leave with this address?
fn is_source(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

pub(crate) fn replace<K, V>(map: &mut HashMap<MapData, K, V>, wanted: &BTreeMap<K, V>, what: &str) -> Result<(), Error>
where
    K: Pod + Ord,
    V: Pod + PartialEq,
{
    let failed = |error| Error::ebpf(format!("write the {what}"), error);
    let known: BTreeMap<K, V> = map.iter().collect::<Result<_, _>>().map_err(failed)?;
    for (key, value) in wanted {
        if known.get(key) != Some(value) {
            map.insert(*key, *value, 0).map_err(failed)?;
        }
    }
    for key in known.keys().filter(|key| !wanted.contains_key(key)) {
        map.remove(key).map_err(failed)?;
    }
    Ok(())
}

//! The links of this network namespace: their Ethernet addresses and networks, and which of them an address is announced on.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::sys::socket::{AddressFamily, SockaddrLike};

use crate::frame::Mac;

const ETHERNET: u16 = 1;

/// An Ethernet link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    /// Its addresses with the lengths of their prefixes.
    pub(crate) addresses: Vec<(IpAddr, u32)>,
}

impl Link {
    /// The link's own address in the network that holds `address`.
    pub(crate) fn beside(&self, address: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().find(|(own, prefix)| same_network(*own, address, *prefix)).map(|(own, _)| *own)
    }
}

/// The links by name.
pub(crate) type Links = BTreeMap<String, Link>;

/// Reads the Ethernet links.
pub(crate) fn scan() -> io::Result<Links> {
    let mut links = Links::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(address) = entry.address else { continue };
        if address.family() == Some(AddressFamily::Packet)
            && let Some(hardware) = address.as_link_addr()
            && hardware.hatype() == ETHERNET
            && let Some(mac) = hardware.addr()
        {
            let link = links.entry(entry.interface_name).or_default();
            (link.index, link.mac) = (hardware.ifindex() as u32, mac);
            continue;
        }
        let ip = |address: &nix::sys::socket::SockaddrStorage| {
            let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        };
        if let (Some(own), Some(mask)) = (ip(&address), entry.netmask.as_ref().and_then(ip)) {
            let prefix = match mask {
                IpAddr::V4(mask) => mask.to_bits().count_ones(),
                IpAddr::V6(mask) => mask.to_bits().count_ones(),
            };
            links.entry(entry.interface_name).or_default().addresses.push((own, prefix));
        }
    }
    links.retain(|_, link| link.index != 0);
    Ok(links)
}

/// The links that an address is announced on: those that are named; else those whose network holds it; else those with
/// an address of the node itself.
pub(crate) fn chosen<'a>(links: &'a Links, address: IpAddr, named: &'a [String], node: &'a [IpAddr]) -> Vec<&'a Link> {
    let pick = |fits: &dyn Fn(&str, &Link) -> bool| -> Vec<&'a Link> {
        links.iter().filter(|(name, link)| fits(name, link)).map(|(_, link)| link).collect()
    };
    if !named.is_empty() {
        return pick(&|name, _| named.iter().any(|known| known == name));
    }
    let beside = pick(&|_, link| link.beside(address).is_some());
    if !beside.is_empty() {
        return beside;
    }
    pick(&|_, link| link.addresses.iter().any(|(own, _)| node.contains(own)))
}

/// The link by which a neighbour is watched, and its own address there.
pub(crate) fn toward(links: &Links, neighbour: IpAddr) -> Option<(&Link, IpAddr)> {
    links.values().find_map(|link| Some((link, link.beside(neighbour)?)))
}

fn same_network(a: IpAddr, b: IpAddr, prefix: u32) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= prefix,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= prefix,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn links_are_chosen() {
        let link = |index: u32, addresses: &[(&str, u32)]| Link {
            index,
            mac: [0; 6],
            addresses: addresses.iter().map(|(address, prefix)| (ip(address), *prefix)).collect(),
        };
        let links: Links = [
            ("eth0".to_owned(), link(1, &[("10.0.0.5", 24), ("2001:db8::5", 64)])),
            ("eth1".to_owned(), link(2, &[("192.0.2.5", 24)])),
            ("eth2".to_owned(), link(3, &[])),
        ]
        .into();
        let check = |address: &str, named: &[&str], expected: &[u32]| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            let node = [ip("10.0.0.5")];
            let found = chosen(&links, ip(address), &named, &node);
            assert_eq!(found.iter().map(|link| link.index).collect::<Vec<_>>(), expected, "{address}");
        };
        check("192.0.2.9", &[], &[2]);
        check("2001:db8::9", &[], &[1]);
        check("198.51.100.9", &[], &[1]);
        check("192.0.2.9", &["eth0", "eth2", "eth9"], &[1, 3]);
        let found = toward(&links, ip("192.0.2.1")).map(|(link, own)| (link.index, own));
        assert_eq!(found, Some((2, ip("192.0.2.5"))));
        assert_eq!(toward(&links, ip("203.0.113.1")), None);
    }

    #[test]
    fn the_kernels_links_are_read() {
        // Loopback is no Ethernet link, whatever else there is.
        assert!(!scan().unwrap().contains_key("lo"));
    }
}

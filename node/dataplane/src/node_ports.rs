//! On which of the node's own addresses node ports answer (kube-proxy's `nodePortAddresses`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_ebpf_common::{NO_NODE_PORTS, Settings};

use crate::Range;

/// As upstream: a family that nothing is said about has node ports on every address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of them, loopback included.
    #[default]
    All,
    /// The node's addresses in the API.
    Primary,
    /// Those in these ranges.
    Within(Vec<Range>),
}

impl NodePortAddresses {
    /// What the map of local addresses says of one; `node` are the node's addresses in the API.
    pub(crate) fn local(&self, node: &[IpAddr], address: IpAddr) -> u32 {
        if self.answers(node, address) { 0 } else { NO_NODE_PORTS }
    }

    /// Whether node ports answer on an address.
    pub(crate) fn answers(&self, node: &[IpAddr], address: IpAddr) -> bool {
        match self {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => {
                let mut own = node.iter().filter(|own| own.is_ipv4() == address.is_ipv4()).peekable();
                own.peek().is_none() || own.any(|own| *own == address)
            }
            NodePortAddresses::Within(ranges) => {
                let mut own = ranges.iter().filter(|range| range.is_ipv4() == address.is_ipv4()).peekable();
                own.peek().is_none() || own.any(|range| range.holds(address))
            }
        }
    }

    /// The settings' bits for loopback addresses, which no map has.
    pub(crate) fn flags(&self, node: &[IpAddr]) -> [(u32, bool); 2] {
        [
            (Settings::NO_LOOPBACK_V4, !self.answers(node, Ipv4Addr::LOCALHOST.into())),
            (Settings::NO_LOOPBACK_V6, !self.answers(node, Ipv6Addr::LOCALHOST.into())),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_family_of_which_nothing_is_said_has_them_everywhere() {
        let within =
            |ranges: &[&str]| NodePortAddresses::Within(ranges.iter().map(|range| range.parse().unwrap()).collect());
        let node: Vec<IpAddr> = vec!["10.1.0.1".parse().unwrap()];
        for (addresses, expected) in [
            (NodePortAddresses::All, "10.1.0.1 10.9.0.1 127.0.0.1 fd01::1 ::1"),
            (NodePortAddresses::Primary, "10.1.0.1 fd01::1 ::1"),
            (within(&["10.9.0.0/16"]), "10.9.0.1 fd01::1 ::1"),
            (within(&["fd01::/64"]), "10.1.0.1 10.9.0.1 127.0.0.1 fd01::1"),
            (within(&["127.0.0.0/8", "10.1.0.0/16", "::1/128"]), "10.1.0.1 127.0.0.1 ::1"),
        ] {
            let all = ["10.1.0.1", "10.9.0.1", "127.0.0.1", "fd01::1", "::1"];
            let open: Vec<&str> =
                all.into_iter().filter(|address| addresses.local(&node, address.parse().unwrap()) == 0).collect();
            assert_eq!(open.join(" "), expected, "{addresses:?}");
            let loopback = addresses.flags(&node).map(|(_, closed)| !closed);
            assert_eq!(loopback, ["127.0.0.1", "::1"].map(|address| open.contains(&address)), "{addresses:?}");
        }
    }
}

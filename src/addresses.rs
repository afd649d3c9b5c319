//! Addresses and ranges as settings say them: one of each address family at most, separated by commas, the primary one
//! first (upstream's form). Pure; every error names its field.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use sluice_dataplane::NodePortAddresses;
use sluice_network::Cidr;

/// The prefix of one node's range in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePrefixes {
    pub v4: u8,
    pub v6: u8,
}

/// Upstream's defaults.
impl Default for NodePrefixes {
    fn default() -> Self {
        Self { v4: 24, v6: 64 }
    }
}

/// One or two ranges.
pub(crate) fn ranges(field: &str, text: &str) -> Result<Vec<Cidr>> {
    let ranges = text.split(',').map(|part| range(field, part)).collect::<Result<Vec<_>>>()?;
    let families: Vec<bool> = ranges.iter().map(|range| range.addr().is_ipv4()).collect();
    one_of_each(field, text, &families)?;
    Ok(ranges)
}

/// A node's one or two addresses; each is one that others can reach.
pub(crate) fn node_ips(field: &str, text: &str) -> Result<Vec<IpAddr>> {
    let one = |part: &str| {
        let Ok(ip) = part.trim().parse::<IpAddr>() else { bail!("{field}: {part:?} is no IP address") };
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
            bail!("{field}: other nodes cannot reach this one by {ip}: give an address of a network that they share");
        }
        Ok(ip)
    };
    let ips = text.split(',').map(one).collect::<Result<Vec<_>>>()?;
    one_of_each(field, text, &ips.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>())?;
    Ok(ips)
}

/// Link-local addresses are the link's: who answers there sees the pod itself.
const LINK_LOCAL: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];

/// Any number of ranges, up to what the data plane takes.
pub(crate) fn unmasqueraded(field: &str, given: &[String]) -> Result<Vec<Cidr>> {
    let usual = LINK_LOCAL.map(str::to_owned);
    let texts = match given {
        [] => &usual[..],
        [one] if one == "none" => &[],
        many => many,
    };
    if texts.len() > sluice_dataplane::UNMASQUERADED {
        bail!("{field}: at most {} ranges", sluice_dataplane::UNMASQUERADED);
    }
    texts.iter().map(|text| range(field, text)).collect()
}

/// `primary`, or any number of ranges; none for every address.
pub(crate) fn node_ports(field: &str, given: &[String]) -> Result<NodePortAddresses> {
    match given {
        [] => Ok(NodePortAddresses::All),
        [one] if one == "primary" => Ok(NodePortAddresses::Primary),
        many if many.iter().any(|text| text == "primary") => bail!("{field}: primary stands alone"),
        many => {
            let one = |text: &String| {
                let range = range(field, text)?;
                sluice_dataplane::Range::new(range.addr(), range.prefix())
                    .with_context(|| format!("{field}: {text:?} is no address range"))
            };
            many.iter().map(one).collect::<Result<_>>().map(NodePortAddresses::Within)
        }
    }
}

/// What the cluster's ranges have to be to each other.
pub(crate) fn check(pods: &[Cidr], services: &[Cidr], nodes: NodePrefixes) -> Result<()> {
    for range in pods {
        let (limit, field) = match range.addr() {
            IpAddr::V4(_) => (nodes.v4, "nodeCidrMaskSizeIpv4"),
            IpAddr::V6(_) => (nodes.v6, "nodeCidrMaskSizeIpv6"),
        };
        let largest = Cidr::host(range.addr()).prefix() - 2;
        if limit > largest {
            bail!("{field}: /{limit} has no room for pods: at most /{largest}");
        }
        if range.prefix() > limit {
            bail!("podCidr: {range} is smaller than the /{limit} that one node gets ({field})");
        }
    }
    for range in services {
        if !pods.iter().any(|pods| pods.addr().is_ipv4() == range.addr().is_ipv4()) {
            bail!("serviceCidr: pods have no addresses of the family of {range}: give podCidr a range of it");
        }
        if let Some(pods) = pods.iter().find(|pods| pods.contains(range.addr()) || range.contains(pods.addr())) {
            bail!("serviceCidr: {range} and podCidr {pods} have addresses in common");
        }
    }
    Ok(())
}

/// Pods reach the API server through a Service of the first family: it needs an address of that family behind it.
pub(crate) fn reached(services: &[Cidr], server: &[IpAddr]) -> Result<()> {
    let Some(first) = services.first() else { return Ok(()) };
    if server.is_empty() || server.iter().any(|ip| ip.is_ipv4() == first.addr().is_ipv4()) {
        return Ok(());
    }
    let own = server.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    bail!(
        "serviceCidr: pods will look for the API server at an address of {first}, but it has {own} alone: give it one of that \
         family (--node-ip or --advertise), or put the other family's range first"
    )
}

fn range(field: &str, text: &str) -> Result<Cidr> {
    text.trim().parse().map_err(|error| anyhow::anyhow!("{field}: {text:?} is no address range: {error}"))
}

fn one_of_each(field: &str, text: &str, families: &[bool]) -> Result<()> {
    match families {
        [_] => Ok(()),
        [one, other] if one != other => Ok(()),
        [_, _] => bail!("{field}: {text:?}: two have to be one of IPv4 and one of IPv6"),
        _ => bail!("{field}: {text:?}: one, or one of IPv4 and one of IPv6"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome<T>(result: Result<T>) -> String {
        result.map_or_else(|error| error.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn one_range_or_one_of_each_family() {
        for (text, expected) in [
            ("10.244.0.0/16", "fine"),
            ("fd00::/48", "fine"),
            ("10.244.0.0/16,fd00::/48", "fine"),
            ("fd00::/48, 10.244.0.0/16", "fine"),
            ("", "podCidr: \"\" is no address range: "),
            ("10.0.0.0/8,", "podCidr: \"\" is no address range: "),
            (
                "10.0.0.0/8,10.1.0.0/16",
                "podCidr: \"10.0.0.0/8,10.1.0.0/16\": two have to be one of IPv4 and one of IPv6",
            ),
            ("10.0.0.0/8,fd00::/48,fd01::/48", "one, or one of IPv4 and one of IPv6"),
        ] {
            let got = outcome(ranges("podCidr", text));
            assert!(got.contains(expected), "{text}: {got}");
        }
    }

    #[test]
    fn places_without_masquerade() {
        for (given, expected) in [
            (&[][..], "169.254.0.0/16 fe80::/10"),
            (&["none"], ""),
            (&["10.0.0.0/8", "fd12::/16"], "10.0.0.0/8 fd12::/16"),
            (&["10.0.0.0/8", "none"], "nonMasqueradeCidr: \"none\" is no address range"),
        ] {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            let got = match unmasqueraded("nonMasqueradeCidr", &given) {
                Ok(ranges) => ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            };
            assert!(got.starts_with(expected) && got.is_empty() == expected.is_empty(), "{given:?}: {got}");
        }
    }

    #[test]
    fn addresses_with_node_ports() {
        let given = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let field = "nodePortAddresses";
        assert_eq!(node_ports(field, &[]).unwrap(), NodePortAddresses::All);
        assert_eq!(node_ports(field, &given(&["primary"])).unwrap(), NodePortAddresses::Primary);
        let ranges = ["10.0.0.0/8", "fd12::/16"];
        let within = NodePortAddresses::Within(ranges.iter().map(|range| range.parse().unwrap()).collect());
        assert_eq!(node_ports(field, &given(&ranges)).unwrap(), within);
        for (texts, expected) in [
            (["primary", "10.0.0.0/8"], "nodePortAddresses: primary stands alone"),
            (["10.0.0.0/8", "all"], "nodePortAddresses: \"all\" is no address range"),
        ] {
            let got = node_ports(field, &given(&texts)).unwrap_err().to_string();
            assert!(got.starts_with(expected), "{got}");
        }
    }

    #[test]
    fn nodes_are_reachable_by_their_addresses() {
        for (text, expected) in [
            ("192.0.2.1", "fine"),
            ("2001:db8::1,192.0.2.1", "fine"),
            ("192.0.2.1,192.0.2.2", "two have to be"),
            ("somewhere", "nodeIp: \"somewhere\" is no IP address"),
            ("0.0.0.0", "cannot reach this one by 0.0.0.0"),
            ("fe80::1", "cannot reach this one by fe80::1"),
            ("192.0.2.1,::1", "cannot reach this one by ::1"),
        ] {
            let got = outcome(node_ips("nodeIp", text));
            assert!(got.contains(expected), "{text}: {got}");
        }
    }

    #[test]
    fn the_api_server_has_an_address_of_the_first_family() {
        for (services, server, expected) in [
            ("10.96.0.0/16", "192.0.2.1", "fine"),
            ("fd00::/108,10.96.0.0/16", "192.0.2.1,2001:db8::1", "fine"),
            ("fd00::/108,10.96.0.0/16", "192.0.2.1", "at an address of fd00::/108, but it has 192.0.2.1 alone"),
        ] {
            let got = outcome(reached(&ranges("s", services).unwrap(), &node_ips("n", server).unwrap()));
            assert!(got.contains(expected), "{services} {server}: {got}");
        }
        assert_eq!(outcome(reached(&ranges("s", "fd00::/108").unwrap(), &[])), "fine");
    }

    #[test]
    fn ranges_fit_each_other() {
        let check = |pods: &str, services: &str, nodes: (u8, u8), expected: &str| {
            let (pods, services) = (ranges("p", pods).unwrap(), ranges("s", services).unwrap());
            let got = outcome(super::check(&pods, &services, NodePrefixes { v4: nodes.0, v6: nodes.1 }));
            assert!(got.contains(expected), "{got}");
        };
        let usual = (24, 64);
        check("10.244.0.0/16,fd00::/48", "10.96.0.0/16,fd01::/108", usual, "fine");
        check("10.244.0.0/16,fd00::/48", "fd01::/108", usual, "fine");
        check(
            "10.244.0.0/25",
            "10.96.0.0/16",
            usual,
            "podCidr: 10.244.0.0/25 is smaller than the /24 that one node gets",
        );
        check("10.244.0.0/25", "10.96.0.0/16", (26, 64), "fine");
        check("10.244.0.0/16", "10.96.0.0/16", (31, 64), "nodeCidrMaskSizeIpv4: /31 has no room");
        check("fd00::/48", "fd01::/108", (24, 127), "nodeCidrMaskSizeIpv6: /127 has no room");
        check("10.244.0.0/16", "fd01::/108", usual, "serviceCidr: pods have no addresses of the family of fd01::/108");
        check(
            "10.0.0.0/8",
            "10.96.0.0/16",
            usual,
            "serviceCidr: 10.96.0.0/16 and podCidr 10.0.0.0/8 have addresses in common",
        );
    }
}

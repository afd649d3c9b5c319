//! One range of Services' addresses. Pure but for the choice among free ones.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rand::Rng as _;

/// Prefixes that are taken: one with so many addresses that none of them is ever searched for long, and so few at least.
const V4_PREFIXES: std::ops::RangeInclusive<u32> = 8..=30;
const V6_PREFIXES: std::ops::RangeInclusive<u32> = 64..=126;

/// A range of which the network's own address, and an IPv4 network's broadcast address, is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    base: u128,
    bits: u32,
    v4: bool,
}

impl Range {
    /// From `10.96.0.0/16` or `10.96.0.0/16,fd00:96::/108`: one, or one of each family, the default one first.
    pub(crate) fn parse_all(cidrs: &str) -> anyhow::Result<Vec<Self>> {
        let ranges = cidrs.split(',').map(|cidr| Self::parse(cidr.trim())).collect::<anyhow::Result<Vec<_>>>()?;
        if ranges.len() > 2 || ranges.len() == 2 && ranges[0].v4 == ranges[1].v4 {
            anyhow::bail!("the service ranges {cidrs} have to be one, or one of IPv4 and one of IPv6");
        }
        Ok(ranges)
    }

    /// From `10.96.0.0/16`.
    pub(crate) fn parse(cidr: &str) -> anyhow::Result<Self> {
        let wrong = || anyhow::anyhow!("the service range {cidr} is no network such as 10.96.0.0/16 or fd00:96::/108");
        let (address, bits) = cidr.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u32 = bits.parse().map_err(|_| wrong())?;
        let (value, width, prefixes) = match address {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32, V4_PREFIXES),
            IpAddr::V6(ip) => (ip.to_bits(), 128, V6_PREFIXES),
        };
        if !prefixes.contains(&prefix) {
            anyhow::bail!("the service range {cidr} has to be between /{} and /{}", prefixes.start(), prefixes.end());
        }
        let bits = width - prefix;
        Ok(Self { base: value >> bits << bits, bits, v4: address.is_ipv4() })
    }

    /// As `ipFamilies` names it.
    pub(crate) fn family(self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    /// The address at an offset.
    pub(crate) fn at(self, offset: u128) -> IpAddr {
        match self.v4 {
            // The base and every offset of an IPv4 range are within 32 bits.
            true => Ipv4Addr::from_bits((self.base + offset) as u32).into(),
            false => Ipv6Addr::from_bits(self.base + offset).into(),
        }
    }

    /// May a Service have this address?
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let value = match address {
            IpAddr::V4(ip) if self.v4 => u128::from(ip.to_bits()),
            IpAddr::V6(ip) if !self.v4 => ip.to_bits(),
            _ => return false,
        };
        value > self.base && value < self.base + self.end()
    }

    /// A free address, from upstream's upper band first: the lower one is for those who ask for an
    /// address by name.
    pub(crate) fn free(self, used: &BTreeSet<String>) -> Option<IpAddr> {
        let size = 1u128 << self.bits;
        let reserved = (size / 16).clamp(16, 256).min(size / 2);
        let upper = self.end() - reserved;
        let start = rand::rng().random_range(0..upper);
        let upper = (0..upper).map(|i| reserved + (start + i) % upper);
        upper.chain(1..reserved).map(|offset| self.at(offset)).find(|address| !used.contains(&address.to_string()))
    }

    /// The offset after the last address that is given.
    fn end(self) -> u128 {
        (1u128 << self.bits) - u128::from(self.v4)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at(0), if self.v4 { 32 } else { 128 } - self.bits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_parse() {
        for (cidr, tenth, printed, inside, outside) in [
            (
                "10.96.7.0/16",
                "10.96.0.10",
                "10.96.0.0/16",
                "10.96.255.254",
                &["10.96.0.0", "10.96.255.255", "10.97.0.1", "9.0.0.1", "fd00::1"][..],
            ),
            (
                "fd00:96::/108",
                "fd00:96::a",
                "fd00:96::/108",
                "fd00:96::f:ffff",
                &["fd00:96::", "fd00:96::10:0", "10.96.0.1"],
            ),
        ] {
            let range = Range::parse(cidr).unwrap();
            assert_eq!((range.at(10).to_string(), range.to_string()), (tenth.to_owned(), printed.to_owned()));
            assert!(range.contains(inside.parse().unwrap()), "{inside}");
            for outside in outside {
                assert!(!range.contains(outside.parse().unwrap()), "{outside}");
            }
        }
    }

    #[test]
    fn one_range_or_one_of_each_family() {
        for (cidrs, expected) in [
            ("10.96.0.0/16", Ok("IPv4")),
            ("fd00::/64", Ok("IPv6")),
            ("fd00::/108, 10.96.0.0/16", Ok("IPv6 IPv4")),
            ("10.96.0.0", Err("is no network such as")),
            ("10.0.0.0/7", Err("between /8 and /30")),
            ("fd00::/63", Err("between /64 and /126")),
            ("10.96.0.0/16,10.97.0.0/16", Err("one of IPv4 and one of IPv6")),
            ("10.96.0.0/16,fd00::/108,fd01::/108", Err("one of IPv4 and one of IPv6")),
        ] {
            let got = Range::parse_all(cidrs).map(|all| all.iter().map(|r| r.family()).collect::<Vec<_>>().join(" "));
            match expected {
                Ok(families) => assert_eq!(got.unwrap(), families),
                Err(why) => assert!(got.unwrap_err().to_string().contains(why), "{cidrs}"),
            }
        }
    }

    #[test]
    fn a_small_range_is_used_up_to_the_last_address() {
        for (cidr, count) in [("10.0.0.0/29", 6), ("fd00::/125", 7)] {
            let range = Range::parse(cidr).unwrap();
            let mut used = BTreeSet::new();
            while let Some(address) = range.free(&used) {
                assert!(range.contains(address), "{address}");
                assert!(used.insert(address.to_string()));
            }
            assert_eq!(used.len(), count);
        }
    }
}

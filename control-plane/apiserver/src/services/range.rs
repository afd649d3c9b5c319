//! Ranges of Services' addresses: one as configured, those of ServiceCIDRs, and the choice among free addresses of one.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rand::Rng as _;
use serde_json::Value;
use sluice_api::resource::builtin;

use crate::{meta, storage::Storage};

/// The ServiceCIDR that is made from the configuration.
pub(crate) const DEFAULT: &str = "kubernetes";

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

    /// From `10.96.0.0/16`, as configured.
    pub(crate) fn parse(cidr: &str) -> anyhow::Result<Self> {
        let (range, prefix) = Self::read(cidr).ok_or_else(|| {
            anyhow::anyhow!("the service range {cidr} is no network such as 10.96.0.0/16 or fd00:96::/108")
        })?;
        let prefixes = if range.v4 { V4_PREFIXES } else { V6_PREFIXES };
        if !prefixes.contains(&prefix) {
            anyhow::bail!("the service range {cidr} has to be between /{} and /{}", prefixes.start(), prefixes.end());
        }
        Ok(range)
    }

    /// Of a ServiceCIDR, which may be of any size, but for IPv6 ranges larger than a /64 (upstream's).
    pub(crate) fn of(cidr: &str) -> Option<Self> {
        Self::read(cidr).map(|(range, _)| range).filter(|range| range.bits <= 64)
    }

    /// The range and its prefix.
    fn read(cidr: &str) -> Option<(Self, u32)> {
        let (address, prefix) = cidr.split_once('/')?;
        let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
        let (value, width) = match address {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32u32),
            IpAddr::V6(ip) => (ip.to_bits(), 128),
        };
        let bits = width.checked_sub(prefix)?;
        // Shifting by all of its bits empties a number.
        let base = value.checked_shr(bits).unwrap_or(0).checked_shl(bits).unwrap_or(0);
        Some((Self { base, bits, v4: address.is_ipv4() }, prefix))
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
    pub(crate) fn free(self, is_taken: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let (size, hosts) = (1u128 << self.bits, self.end().saturating_sub(1));
        let reserved = if size <= 16 { 0 } else { (size / 16).clamp(16, 256) };
        // The offsets of one band, from a random one on.
        let band = |first: u128, count: u128| {
            let start = if count == 0 { 0 } else { rand::rng().random_range(0..count) };
            (0..count).map(move |i| first + (start + i) % count)
        };
        let offsets = band(1 + reserved, hosts - reserved).chain(band(1, reserved));
        offsets.map(|offset| self.at(offset)).find(|address| !is_taken(address))
    }

    /// How many addresses there are to give, as upstream counts: at most what a signed number of 64 bits holds.
    pub(super) fn hosts(self) -> u64 {
        u64::try_from(self.end().saturating_sub(1)).unwrap_or(u64::MAX).min(i64::MAX.unsigned_abs())
    }

    /// The offset after the last address that is given.
    fn end(self) -> u128 {
        (1u128 << self.bits) - u128::from(self.v4)
    }
}

/// The ranges of all ServiceCIDRs.
pub(super) fn all(storage: &Storage) -> Vec<Range> {
    cidrs(storage, |_| true)
}

/// The ranges that addresses are given from: those of ServiceCIDRs that are ready and stay, the default one's first.
pub(super) fn ready(storage: &Storage) -> Vec<Range> {
    cidrs(storage, is_ready)
}

fn cidrs(storage: &Storage, wanted: impl Fn(&Value) -> bool) -> Vec<Range> {
    let Some(row) = builtin().by_path("networking.k8s.io", "v1", "servicecidrs") else { return Vec::new() };
    let mut found = storage.list(row.store_prefix(), "").items;
    found.sort_by_key(|object| &*object.name != DEFAULT);
    let objects = found.iter().map(|object| object.value()).filter(|object| wanted(object));
    objects.flat_map(|object| ranges(&object)).collect()
}

fn ranges(object: &Value) -> Vec<Range> {
    meta::strings(&object["spec"]["cidrs"]).into_iter().filter_map(Range::of).collect()
}

/// One whose controller has said nothing yet is ready (upstream's `isReady`).
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    !meta::deleting(object) && ready.is_none_or(|condition| condition["status"] == "True")
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at(0), if self.v4 { 32 } else { 128 } - self.bits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use serde_json::json;

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
        for (cidr, count) in [
            ("10.0.0.0/24", 254),
            ("10.0.0.0/29", 6),
            ("10.0.0.0/31", 0),
            ("10.0.0.0/32", 0),
            ("fd00::/120", 255),
            ("fd00::/125", 7),
            ("fd00::/128", 0),
        ] {
            let range = Range::of(cidr).unwrap();
            let mut used = BTreeSet::new();
            while let Some(address) = range.free(|address| used.contains(address)) {
                assert!(range.contains(address), "{address}");
                assert!(used.insert(address));
            }
            assert_eq!(used.len(), count);
        }
    }

    #[test]
    fn the_lower_band_is_given_last() {
        for (cidr, band) in [("10.96.0.0/16", 256), ("10.96.0.0/24", 16), ("fd00::/64", 256)] {
            let range = Range::of(cidr).unwrap();
            for _ in 0..50 {
                assert!(range.free(|_| false).unwrap() > range.at(band), "{cidr}");
            }
        }
        let range = Range::of("10.96.0.0/24").unwrap();
        assert!(range.free(|address| *address > range.at(16)).unwrap() <= range.at(16));
    }

    #[test]
    fn service_cidrs_have_ranges_of_many_sizes() {
        for (cidr, expected) in [
            ("10.0.0.0/4", Some("0.0.0.0/4")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0/33", None),
            ("fd00::/64", Some("fd00::/64")),
            ("fd00::/63", None),
            ("::/0", None),
            ("10.0.0.0", None),
        ] {
            assert_eq!(Range::of(cidr).map(|range| range.to_string()).as_deref(), expected, "{cidr}");
        }
    }

    #[test]
    fn only_what_is_ready_and_stays_gives_addresses() {
        let condition = |status: &str| json!({"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": status}]});
        for (object, expected) in [
            (json!({}), true),
            (json!({"status": condition("True")}), true),
            (json!({"status": condition("False")}), false),
            (json!({"status": condition("True"), "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), false),
        ] {
            assert_eq!(is_ready(&object), expected, "{object}");
        }
    }
}

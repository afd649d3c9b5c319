//! Which address a pod gets. Pure: what is in use comes in from the kernel, and so does the time.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::{Cidr, limits};

/// Remembers what was released a short time ago.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    released: HashMap<IpAddr, Instant>,
}

impl Ipam {
    /// The lowest free address of the range that is not cooling down, else the one released the longest ago. The first two
    /// addresses (network and gateway) and an IPv4 range's last (broadcast) are never given.
    pub(crate) fn pick(&self, range: Cidr, used: &HashSet<IpAddr>, now: Instant) -> Option<IpAddr> {
        let last = if range.addr().is_ipv4() { range.size().saturating_sub(1) } else { range.size() };
        let mut oldest: Option<(Instant, IpAddr)> = None;
        for address in (2..last).map_while(|index| range.nth(index)) {
            if used.contains(&address) {
                continue;
            }
            match self.released.get(&address) {
                Some(at) if now.saturating_duration_since(*at) < limits::COOL_DOWN => {
                    if oldest.is_none_or(|(than, _)| *at < than) {
                        oldest = Some((*at, address));
                    }
                }
                _ => return Some(address),
            }
        }
        oldest.map(|(_, address)| address)
    }

    /// The address is free from now on.
    pub(crate) fn release(&mut self, address: IpAddr, now: Instant) {
        if self.released.len() >= limits::COOLING {
            self.released.retain(|_, at| now.saturating_duration_since(*at) < limits::COOL_DOWN);
        }
        if self.released.len() < limits::COOLING {
            self.released.insert(address, now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn used(addresses: &[&str]) -> HashSet<IpAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_lowest_free_address_is_given() {
        let now = Instant::now();
        for (range, taken, want) in [
            ("10.0.0.0/24", vec![], Some("10.0.0.2")),
            ("10.0.0.0/24", vec!["10.0.0.2", "10.0.0.4"], Some("10.0.0.3")),
            ("10.0.0.0/30", vec![], Some("10.0.0.2")),
            ("10.0.0.0/30", vec!["10.0.0.2"], None),
            ("10.0.0.0/31", vec![], None),
            ("fd00::/126", vec!["fd00::2"], Some("fd00::3")),
            ("fd00::/64", vec![], Some("fd00::2")),
        ] {
            let got = Ipam::default().pick(range.parse().unwrap(), &used(&taken), now);
            assert_eq!(got, want.map(|text| text.parse().unwrap()), "{range} {taken:?}");
        }
    }

    #[test]
    fn a_released_address_rests_while_others_are_free() {
        let range: Cidr = "10.0.0.0/29".parse().unwrap();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut ipam = Ipam::default();
        ipam.release("10.0.0.3".parse().unwrap(), start);
        ipam.release("10.0.0.2".parse().unwrap(), start + second);
        let pick = |ipam: &Ipam, taken: &[&str], at| ipam.pick(range, &used(taken), at).unwrap().to_string();
        assert_eq!(pick(&ipam, &[], start + second), "10.0.0.4");
        let others = ["10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(pick(&ipam, &others, start + 2 * second), "10.0.0.3");
        assert_eq!(pick(&ipam, &[], start + second + limits::COOL_DOWN), "10.0.0.2");
    }
}

//! Which address a pod gets. Pure: what is in use comes in from the kernel at the start, and so does the time.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::{Cidr, Error, limits};

/// Knows the addresses in use, and what was released a short time ago.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    used: HashMap<IpAddr, String>,
    released: HashMap<IpAddr, Instant>,
}

impl Ipam {
    /// The kernel has this address; an owner that is not known is the empty one.
    pub(crate) fn found(&mut self, owner: &str, address: IpAddr) {
        self.used.insert(address, owner.to_owned());
    }

    /// One free address of every range, taken from now on.
    pub(crate) fn reserve(&mut self, owner: &str, ranges: &[Cidr], now: Instant) -> Result<Vec<IpAddr>, Error> {
        let mut picked = Vec::with_capacity(ranges.len());
        for range in ranges {
            let used = || self.used.keys().filter(|ip| range.contains(**ip)).count();
            let free = self.pick(*range, now).ok_or_else(|| Error::Exhausted { range: *range, used: used() });
            picked.push(free?);
        }
        for address in &picked {
            self.found(owner, *address);
        }
        Ok(picked)
    }

    /// The owner's addresses.
    pub(crate) fn of(&self, owner: &str) -> HashSet<IpAddr> {
        self.used.iter().filter(|(_, name)| *name == owner).map(|(ip, _)| *ip).collect()
    }

    /// The owner has gone: its addresses are free from now on, but rest while others are free.
    pub(crate) fn release(&mut self, owner: &str, now: Instant) {
        for address in self.of(owner) {
            self.used.remove(&address);
            if self.released.len() >= limits::COOLING {
                self.released.retain(|_, at| now.saturating_duration_since(*at) < limits::COOL_DOWN);
            }
            if self.released.len() < limits::COOLING {
                self.released.insert(address, now);
            }
        }
    }

    /// The lowest free address of the range that is not cooling down, else the one released the longest ago. The first two
    /// addresses (network and gateway) and an IPv4 range's last (broadcast) are never given.
    fn pick(&self, range: Cidr, now: Instant) -> Option<IpAddr> {
        let last = if range.addr().is_ipv4() { range.size().saturating_sub(1) } else { range.size() };
        let mut oldest: Option<(Instant, IpAddr)> = None;
        for address in (2..last).map_while(|index| range.nth(index)) {
            if self.used.contains_key(&address) {
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn ipam(used: &[&str]) -> Ipam {
        let mut ipam = Ipam::default();
        used.iter().for_each(|text| ipam.found("other", text.parse().unwrap()));
        ipam
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
            let got = ipam(&taken).reserve("pod", &[range.parse().unwrap()], now).ok();
            assert_eq!(got, want.map(|text| vec![text.parse().unwrap()]), "{range} {taken:?}");
        }
    }

    #[test]
    fn an_address_is_given_once_and_to_all_families_or_none() {
        let now = Instant::now();
        let ranges = ["10.0.0.0/29", "fd00::/126"].map(|range| range.parse().unwrap());
        let mut ipam = Ipam::default();
        let text = |ips: Vec<IpAddr>| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(ipam.reserve("a", &ranges, now).unwrap()), ["10.0.0.2", "fd00::2"]);
        assert_eq!(text(ipam.reserve("b", &ranges, now).unwrap()), ["10.0.0.3", "fd00::3"]);
        assert!(matches!(ipam.reserve("c", &ranges, now), Err(Error::Exhausted { used: 2, .. })));
        assert!(ipam.of("c").is_empty());
        assert_eq!(ipam.of("b").len(), 2);
        ipam.release("a", now);
        assert_eq!(text(ipam.reserve("c", &ranges, now).unwrap()), ["10.0.0.4", "fd00::2"]);
    }

    #[test]
    fn a_released_address_rests_while_others_are_free() {
        let range: Cidr = "10.0.0.0/29".parse().unwrap();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let pick = |taken: &[&str], at| {
            let mut ipam = ipam(taken);
            ipam.found("first", "10.0.0.3".parse().unwrap());
            ipam.found("second", "10.0.0.2".parse().unwrap());
            ipam.release("first", start);
            ipam.release("second", start + second);
            ipam.reserve("pod", &[range], at).unwrap()[0].to_string()
        };
        assert_eq!(pick(&[], start + second), "10.0.0.4");
        let others = ["10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(pick(&others, start + 2 * second), "10.0.0.3");
        assert_eq!(pick(&[], start + second + limits::COOL_DOWN), "10.0.0.2");
    }
}

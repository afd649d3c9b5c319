//! Runs of addresses: CIDRs and spans from one address to another, IPv4 and IPv6. What pools of load-balancer addresses
//! are made of, and what they are compared with. Pure arithmetic.

use std::{fmt, net::IpAddr};

/// A run of addresses of one family, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    v4: bool,
    first: u128,
    last: u128,
    /// Written as a prefix: its first and last address may be special.
    prefix: bool,
}

impl Block {
    /// `192.0.2.0/24`; bits behind the prefix do not matter.
    pub fn cidr(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let (v4, bits) = number(address.parse().ok()?);
        let width = if v4 { 32 } else { 128 };
        let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
        let length: u32 = length.parse().ok().filter(|length| digits && *length <= width)?;
        let host = if length == 0 { u128::MAX >> (128 - width) } else { (1u128 << (width - length)) - 1 };
        Some(Self { v4, first: bits & !host, last: bits | host, prefix: true })
    }

    /// From one address to another, which must not come before it and be of the same family.
    pub fn span(start: IpAddr, stop: IpAddr) -> Option<Self> {
        let ((v4, first), (other, last)) = (number(start), number(stop));
        (v4 == other && first <= last).then_some(Self { v4, first, last, prefix: false })
    }

    /// As an `AddressBlock` writes it: a CIDR, or a start with or without a stop; empty texts are absent fields.
    pub fn parse(cidr: &str, start: &str, stop: &str) -> Option<Self> {
        if !cidr.is_empty() {
            return Self::cidr(cidr);
        }
        let stop = if stop.is_empty() { start } else { stop };
        Self::span(start.parse().ok()?, stop.parse().ok()?)
    }

    /// One address.
    pub fn one(address: IpAddr) -> Self {
        let (v4, number) = number(address);
        Self { v4, first: number, last: number, prefix: false }
    }

    /// Without the first and last address, if it is a prefix of more than two addresses.
    pub fn without_ends(self) -> Self {
        if self.prefix && self.last - self.first > 1 {
            Self { first: self.first + 1, last: self.last - 1, ..self }
        } else {
            self
        }
    }

    /// Whether any address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.v4 == other.v4 && self.first <= other.last && other.first <= self.last
    }

    pub fn contains(self, address: IpAddr) -> bool {
        self.overlaps(Self::one(address))
    }

    /// IPv4 or IPv6.
    pub fn is_ipv4(self) -> bool {
        self.v4
    }

    /// The first address.
    pub fn first(self) -> IpAddr {
        self.address(self.first)
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        self.address(self.last)
    }

    /// How many addresses; all of IPv6 reads one less.
    pub fn size(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// The address at a distance from the first one.
    pub fn nth(self, distance: u128) -> Option<IpAddr> {
        let number = self.first.checked_add(distance)?;
        (number <= self.last).then(|| self.address(number))
    }

    fn address(self, number: u128) -> IpAddr {
        if self.v4 { IpAddr::from((number as u32).to_be_bytes()) } else { IpAddr::from(number.to_be_bytes()) }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first(), self.last()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, _) if self.prefix && (self.size().is_power_of_two()) => {
                let width = if self.v4 { 32 } else { 128 };
                write!(f, "{first}/{}", width - self.size().trailing_zeros())
            }
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (true, v4.to_bits().into()),
        IpAddr::V6(v6) => (false, v6.to_bits()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn block(text: &str) -> Option<Block> {
        match text.split_once('-') {
            Some((start, stop)) => Block::span(start.parse().unwrap(), stop.parse().unwrap()),
            None => Block::cidr(text),
        }
    }

    #[test]
    fn blocks_are_read() {
        let check = |text: &str, first: &str, last: &str, size: u128| {
            let block = block(text).unwrap();
            assert_eq!((block.first().to_string(), block.last().to_string()), (first.into(), last.into()), "{text}");
            assert_eq!(block.size(), size, "{text}");
            if size < u128::MAX {
                assert_eq!((block.nth(size - 1), block.nth(size)), (Some(block.last()), None), "{text}");
            }
        };
        check("192.0.2.0/24", "192.0.2.0", "192.0.2.255", 256);
        check("192.0.2.77/31", "192.0.2.76", "192.0.2.77", 2);
        check("192.0.2.7/32", "192.0.2.7", "192.0.2.7", 1);
        check("0.0.0.0/0", "0.0.0.0", "255.255.255.255", 1 << 32);
        check("2001:db8::/120", "2001:db8::", "2001:db8::ff", 256);
        check("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", u128::MAX);
        check("192.0.2.9-192.0.3.1", "192.0.2.9", "192.0.3.1", 249);
        for bad in ["192.0.2.0/33", "192.0.2.0", "192.0.2.0/", "192.0.2.0/+4", "2001:db8::/129", "a/8"] {
            assert_eq!(Block::cidr(bad), None, "{bad}");
        }
        assert_eq!(block("192.0.2.9-192.0.2.8"), None);
        assert_eq!(block("192.0.2.9-2001:db8::1"), None);
    }

    #[test]
    fn ends_are_kept_back_from_prefixes_alone() {
        let check = |text: &str, shown: &str| assert_eq!(block(text).unwrap().without_ends().to_string(), shown);
        check("192.0.2.0/29", "192.0.2.1-192.0.2.6");
        check("192.0.2.0/31", "192.0.2.0/31");
        check("192.0.2.1/32", "192.0.2.1");
        check("192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.9");
    }

    #[test]
    fn overlaps_are_found() {
        let check = |a: &str, b: &str, expected: bool| {
            let (a, b) = (block(a).unwrap(), block(b).unwrap());
            assert_eq!((a.overlaps(b), b.overlaps(a)), (expected, expected), "{a} {b}");
        };
        check("192.0.2.0/24", "192.0.2.255-192.0.3.9", true);
        check("192.0.2.0/24", "192.0.3.0/24", false);
        check("0.0.0.0/0", "::/0", false);
        assert!(block("192.0.2.0/24").unwrap().contains("192.0.2.1".parse().unwrap()));
        assert!(!block("192.0.2.0/24").unwrap().contains("::1".parse().unwrap()));
    }
}

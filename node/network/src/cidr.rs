//! An address range in CIDR notation. Pure; used wherever a range of pods or services is named.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network address with its prefix length; host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Host bits of `addr` are cleared. `None` if the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        let bits = width(addr);
        if prefix > bits {
            return None;
        }
        let mask = mask(bits, prefix);
        Some(Self { addr: from_bits(to_bits(addr) & mask, addr.is_ipv4()), prefix })
    }

    /// The range that holds this address alone.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: width(addr) }
    }

    /// First address of the range.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the range holds the address (families must agree).
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && Self::new(addr, self.prefix) == Some(*self)
    }

    /// Number of addresses, saturating.
    pub fn size(&self) -> u128 {
        1u128.checked_shl(u32::from(width(self.addr) - self.prefix)).unwrap_or(u128::MAX)
    }

    /// The address `index` places after the first; `None` outside the range.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        (index < self.size()).then(|| from_bits(to_bits(self.addr) + index, self.addr.is_ipv4()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A text that is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range like 10.244.0.0/16")]
pub struct ParseError(String);

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let addr = addr.parse().map_err(|_| wrong())?;
        Self::new(addr, prefix.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn mask(bits: u8, prefix: u8) -> u128 {
    let all = if bits == 128 { u128::MAX } else { u128::from(u32::MAX) };
    let host = 1u128.checked_shl(u32::from(bits - prefix)).map_or(u128::MAX, |size| size - 1);
    all & !host
}

fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn from_bits(bits: u128, v4: bool) -> IpAddr {
    if v4 {
        // The callers keep an IPv4 value within 32 bits.
        IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_parse_and_print() {
        for (text, want) in [
            ("10.244.3.7/16", Ok("10.244.0.0/16")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("10.0.0.1/32", Ok("10.0.0.1/32")),
            ("fd00::7/64", Ok("fd00::/64")),
            ("::/0", Ok("::/0")),
            ("10.0.0.0/33", Err(())),
            ("10.0.0.0", Err(())),
            ("pods/8", Err(())),
        ] {
            let got = text.parse::<Cidr>().map(|cidr| cidr.to_string()).map_err(|_| ());
            assert_eq!(got, want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_first() {
        let range: Cidr = "10.244.1.0/24".parse().unwrap();
        assert_eq!(range.size(), 256);
        assert_eq!(range.nth(1), Some("10.244.1.1".parse().unwrap()));
        assert_eq!(range.nth(256), None);
        assert!(range.contains("10.244.1.255".parse().unwrap()));
        assert!(!range.contains("10.244.2.0".parse().unwrap()));
        assert!(!range.contains("fd00::1".parse().unwrap()));
    }
}

//! An IP network, and addresses as the maps hold them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sluice_ebpf_common::Address;

/// An IP network, `10.244.0.0/16` or `fd00:10::/56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    /// Host bits are cleared; `None` if the prefix is longer than the address.
    pub fn new(address: impl Into<IpAddr>, prefix: u8) -> Option<Range> {
        let address = match address.into() {
            IpAddr::V4(address) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask4(prefix))),
            IpAddr::V6(address) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask6(prefix))),
            _ => return None,
        };
        Some(Range { address, prefix })
    }

    /// Is the other network one of its own, or the same?
    pub(crate) fn contains(self, other: Range) -> bool {
        self.prefix <= other.prefix && Range::new(other.address, self.prefix) == Some(self)
    }

    /// Is this one of its addresses?
    pub(crate) fn holds(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Range::new(address, self.prefix) == Some(self)
    }

    /// Is it a network of IPv4 addresses?
    pub(crate) fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Address and mask in network order, as the maps hold them.
    pub(crate) fn wire(self) -> (Address, Address) {
        let mask = match self.address {
            IpAddr::V4(_) => {
                let last = mask4(self.prefix).to_be();
                Address { words: [u32::MAX, u32::MAX, u32::MAX, last] }
            }
            IpAddr::V6(_) => wire(Ipv6Addr::from_bits(mask6(self.prefix))),
        };
        (wire(self.address), mask)
    }

    /// Bits of the prefix in the form that both families share.
    pub(crate) fn bits(self) -> u32 {
        u32::from(self.prefix) + if self.is_ipv4() { 96 } else { 0 }
    }

    /// From what [`Self::wire`] and [`Self::bits`] gave.
    pub(crate) fn unwire(address: Address, bits: u32) -> Option<Range> {
        let prefix = if address.is_v4() { bits.checked_sub(96)? } else { bits };
        Range::new(unwire(address), u8::try_from(prefix).ok()?)
    }
}

/// A network's address alone, as the maps hold it.
pub(crate) fn wire_key(range: Range) -> Address {
    wire(range.address)
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// An address in network order, as the maps hold it.
pub(crate) fn wire(address: impl Into<IpAddr>) -> Address {
    match address.into() {
        IpAddr::V4(address) => Address::v4(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            Address { words: [word(0), word(4), word(8), word(12)] }
        }
    }
}

/// The address that a map holds.
pub(crate) fn unwire(address: Address) -> IpAddr {
    if address.is_v4() {
        return IpAddr::from(address.last().to_ne_bytes());
    }
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(address.words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets)
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let wrong = || format!("`{text}` is no IP network; write it as 10.244.0.0/16 or fd00:10::/56");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        Range::new(address, prefix.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_masks() {
        let cases = [
            ("10.244.3.9/16", Ok("10.244.0.0/16")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("192.168.1.1/32", Ok("192.168.1.1/32")),
            ("10.0.0.0", Err(())),
            ("10.0.0.0/33", Err(())),
            ("fd00:1:2:3:4::/64", Ok("fd00:1:2:3::/64")),
            ("fd00::/129", Err(())),
        ];
        for (text, expected) in cases {
            let got = text.parse::<Range>().map(|range| range.to_string()).map_err(|_| ());
            assert_eq!(got, expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn wire_form_is_network_order() {
        let parse = |text: &str| text.parse::<Range>().unwrap_or_else(|error| panic!("{error}"));
        let (address, mask) = parse("10.244.0.0/16").wire();
        assert_eq!(address.last().to_ne_bytes(), [10, 244, 0, 0]);
        assert_eq!(mask.last().to_ne_bytes(), [255, 255, 0, 0]);
        for text in ["10.244.0.0/16", "0.0.0.0/0", "fd00:1:2:3::/64", "::/0"] {
            let range = parse(text);
            let (address, mask) = range.wire();
            assert!(address.within(&address, &mask) || text == "::/0", "{text}");
            assert_eq!(Range::unwire(address, range.bits()), Some(range));
        }
        assert_eq!(unwire(wire(Ipv6Addr::LOCALHOST)), Ipv6Addr::LOCALHOST);
    }
}

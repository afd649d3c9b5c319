//! An IPv4 network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network, `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    address: Ipv4Addr,
    prefix: u8,
}

impl Range {
    /// Host bits are cleared; `None` if the prefix is longer than 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Range> {
        if prefix > 32 {
            return None;
        }
        let mut range = Range { address, prefix };
        range.address = Ipv4Addr::from_bits(address.to_bits() & range.mask_bits());
        Some(range)
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// Address and mask in network order, as the maps hold them.
    pub(crate) fn wire(self) -> (u32, u32) {
        (wire(self.address), self.mask_bits().to_be())
    }
}

/// An address in network order, as the maps hold it.
pub(crate) fn wire(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The address that a map holds.
pub(crate) fn unwire(address: u32) -> Ipv4Addr {
    Ipv4Addr::from(address.to_ne_bytes())
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let wrong = || format!("`{text}` is no IPv4 network; write it as 10.244.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
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
            ("fd00::/64", Err(())),
        ];
        for (text, expected) in cases {
            let got = text.parse::<Range>().map(|range| range.to_string()).map_err(|_| ());
            assert_eq!(got, expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn wire_form_is_network_order() {
        let (address, mask) = Range::new(Ipv4Addr::new(10, 244, 0, 0), 16).map(Range::wire).unwrap_or_default();
        assert_eq!(address.to_ne_bytes(), [10, 244, 0, 0]);
        assert_eq!(mask.to_ne_bytes(), [255, 255, 0, 0]);
    }
}

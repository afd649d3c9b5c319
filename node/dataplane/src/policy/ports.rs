//! Ranges of ports as prefixes, as the trie of rules has them, and ports by their names. Pure.

use super::model::NamedPort;
use crate::model::Protocol;

/// The fewest prefixes that are exactly the ports from the first to the last one: value and length, 30 at most.
pub(crate) fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut found = Vec::new();
    let (mut next, last) = (u32::from(first), u32::from(last));
    while next <= last {
        let aligned = next.trailing_zeros().min(16);
        let fits = (last - next + 1).ilog2();
        let free = aligned.min(fits);
        found.push((next as u16, 16 - free));
        next += 1 << free;
    }
    found
}

/// Ports of a protocol with a name.
pub(super) fn called<'a>(ports: &'a [NamedPort], name: &'a str, protocol: Protocol) -> impl Iterator<Item = u16> + 'a {
    ports.iter().filter(move |known| &*known.name == name && known.protocol == protocol).map(|known| known.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_exactly_the_range() {
        assert_eq!(prefixes(80, 80), [(80, 16)]);
        assert_eq!(prefixes(0, 65_535), [(0, 0)]);
        assert_eq!(prefixes(32_768, 65_535), [(32_768, 1)]);
        assert_eq!(prefixes(9, 8), []);
        for (first, last) in [(1, 65_534), (79, 81), (80, 8_080), (30_000, 32_767), (5, 5), (65_535, 65_535)] {
            let found = prefixes(first, last);
            assert!(found.len() <= 30);
            for port in 0..=u16::MAX {
                let covered = found.iter().filter(|(value, bits)| *bits == 0 || (value ^ port) >> (16 - bits) == 0);
                assert_eq!(covered.count(), usize::from((first..=last).contains(&port)), "{first}-{last}: {port}");
            }
        }
    }
}

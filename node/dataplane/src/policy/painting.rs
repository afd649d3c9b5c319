//! What becomes of every protocol and port between a pod and one peer: rules paint it in their order, and what they made is said
//! in the fewest entries of the trie. Pure.

use sluice_ebpf_common::RuleKey;

use super::ports::prefixes;
use crate::model::Protocol;

/// What is known of a port so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// No rule has matched yet.
    Open,
    /// The rest of the tier is skipped.
    Passed,
    Allowed,
    Denied,
}

/// Ports of a protocol, or everything when there is none.
pub(super) type Span = Option<(Protocol, u16, u16)>;

/// An entry of the trie but for whom it is for: protocol, port, bits of the key, and does it deny?
pub(super) type Entry = (u8, u16, u32, bool);

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Every protocol and port.
#[derive(Clone, Debug)]
pub(super) struct Painting {
    /// Of each protocol with ports: ranges in order, without gaps.
    ports: [Vec<(u16, u16, Paint)>; 3],
    /// Of every other protocol.
    rest: Paint,
}

impl Painting {
    pub(super) fn new() -> Painting {
        Painting { ports: std::array::from_fn(|_| vec![(0, u16::MAX, Paint::Open)]), rest: Paint::Open }
    }

    /// Paints what is still open.
    pub(super) fn paint(&mut self, span: Span, with: Paint) {
        match span {
            None => self.replace(Paint::Open, with),
            Some((protocol, first, last)) if first <= last => {
                for (known, ranges) in PROTOCOLS.iter().zip(&mut self.ports) {
                    if *known == protocol {
                        cut(ranges, first, last, with);
                    }
                }
            }
            Some(_) => {}
        }
    }

    /// Everything that is so is otherwise now.
    pub(super) fn replace(&mut self, from: Paint, to: Paint) {
        let all = self.ports.iter_mut().flatten().map(|(_, _, paint)| paint).chain([&mut self.rest]);
        all.filter(|paint| **paint == from).for_each(|paint| *paint = to);
    }

    /// Is everything decided, as far as this tier goes?
    pub(super) fn is_done(&self) -> bool {
        self.rest != Paint::Open && self.ports.iter().flatten().all(|(_, _, paint)| *paint != Paint::Open)
    }

    /// The entries that say it; what nothing decided is allowed.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let rest = self.rest == Paint::Denied;
        let mut entries = vec![(0, 0, RuleKey::ANY_PORT, rest)];
        for (protocol, ranges) in PROTOCOLS.iter().zip(&self.ports) {
            let exceptions = |denies: bool| -> Vec<Entry> {
                let other = merged(ranges).into_iter().filter(|(_, _, denied)| *denied != denies);
                let prefixes = other.flat_map(|(first, last, _)| prefixes(first, last));
                prefixes.map(|(port, bits)| (protocol.number(), port, RuleKey::ANY_NUMBER + bits, !denies)).collect()
            };
            let (as_rest, turned) = (exceptions(rest), exceptions(!rest));
            if as_rest.len() <= turned.len() + 1 {
                entries.extend(as_rest);
            } else {
                entries.push((protocol.number(), 0, RuleKey::ANY_NUMBER, !rest));
                entries.extend(turned);
            }
        }
        entries
    }
}

fn cut(ranges: &mut Vec<(u16, u16, Paint)>, first: u16, last: u16, with: Paint) {
    let old = std::mem::take(ranges);
    for (from, to, paint) in old {
        if paint != Paint::Open || to < first || from > last {
            ranges.push((from, to, paint));
            continue;
        }
        if from < first {
            ranges.push((from, first - 1, paint));
        }
        ranges.push((from.max(first), to.min(last), with));
        if to > last {
            ranges.push((last + 1, to, paint));
        }
    }
}

/// Neighbouring ranges with the same end are one: first, last, denied.
fn merged(ranges: &[(u16, u16, Paint)]) -> Vec<(u16, u16, bool)> {
    let mut merged: Vec<(u16, u16, bool)> = Vec::new();
    for (first, last, paint) in ranges {
        let denied = *paint == Paint::Denied;
        match merged.last_mut() {
            Some((_, end, same)) if *same == denied => *end = *last,
            _ => merged.push((*first, *last, denied)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(first: u16, last: u16) -> Span {
        Some((Protocol::Tcp, first, last))
    }

    #[test]
    fn the_first_that_paints_decides() {
        let mut painting = Painting::new();
        painting.paint(tcp(80, 80), Paint::Allowed);
        painting.paint(tcp(0, 1023), Paint::Denied);
        painting.paint(tcp(9, 8), Paint::Denied);
        assert!(!painting.is_done());
        let entries = painting.entries();
        assert!(entries.contains(&(0, 0, RuleKey::ANY_PORT, false)));
        assert!(!entries.iter().any(|(_, port, _, denies)| *port == 80 && *denies));
        painting.paint(None, Paint::Denied);
        assert!(painting.is_done());
        assert_eq!(painting.entries(), [(0, 0, RuleKey::ANY_PORT, true), (6, 80, RuleKey::BITS, false)]);
    }

    #[test]
    fn the_shorter_way_to_say_it_is_taken() {
        let mut painting = Painting::new();
        painting.paint(tcp(443, 443), Paint::Allowed);
        painting.paint(tcp(0, u16::MAX), Paint::Denied);
        let expected =
            [(0, 0, RuleKey::ANY_PORT, false), (6, 0, RuleKey::ANY_NUMBER, true), (6, 443, RuleKey::BITS, false)];
        assert_eq!(painting.entries(), expected);
        assert_eq!(Painting::new().entries(), [(0, 0, RuleKey::ANY_PORT, false)]);
    }
}

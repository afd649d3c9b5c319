//! The headers of plain packets, read with one look: IPv4 without options or fragments, IPv6 without extension headers, TCP or
//! UDP. Everything else is not plain, and the stack's.

use sluice_ebpf_common::{Address, FlowKey, FlowKind, protocol};

use crate::Bytes;
use crate::header::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

pub(crate) const LIFE_4: u32 = ETHERNET + 8;
pub(crate) const LIFE_6: u32 = ETHERNET + 4;

/// A plain packet's first word, in the bits of the other one.
pub(crate) const PLAIN_4: u32 = 0x4500_0000_u32.to_be();
pub(crate) const VERSION_4: u32 = 0xff00_0000_u32.to_be();
pub(crate) const PLAIN_6: u32 = 0x6000_0000_u32.to_be();
pub(crate) const VERSION_6: u32 = 0xf000_0000_u32.to_be();
/// The more-fragments bit and the offset.
pub(crate) const FRAGMENT: u32 = 0x3fff_u32.to_be();

/// What a plain packet's headers say.
pub(crate) struct Plain {
    /// Under which the answers of a service's backend are found.
    pub(crate) key: FlowKey,
    /// The first word.
    pub(crate) start: u32,
    /// Where the time to live stands, and the word there.
    pub(crate) life_at: u32,
    pub(crate) life: u32,
    pub(crate) hops: u8,
    /// Where the ports stand.
    pub(crate) transport: u32,
}

#[inline(always)]
pub(crate) fn plain<P: Bytes>(packet: &P) -> Option<Plain> {
    match packet.ethertype() {
        ETHERTYPE_IPV4 => plain_v4(packet),
        ETHERTYPE_IPV6 => plain_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn plain_v4<P: Bytes>(packet: &P) -> Option<Plain> {
    let [start, fragment, life, source, destination, ports] = packet.read_headers::<6>(ETHERNET)?;
    let [hops, number, ..] = life.to_ne_bytes();
    if start & VERSION_4 != PLAIN_4 || fragment & FRAGMENT != 0 || !has_ports(number) {
        return None;
    }
    let key = key(Address::v4(source), Address::v4(destination), ports, number);
    Some(Plain { key, start, life_at: LIFE_4, life, hops, transport: ETHERNET + 20 })
}

#[inline(always)]
fn plain_v6<P: Bytes>(packet: &P) -> Option<Plain> {
    let words = packet.read_headers::<11>(ETHERNET)?;
    let [_, _, number, hops] = words[1].to_ne_bytes();
    let source = Address { words: [words[2], words[3], words[4], words[5]] };
    let destination = Address { words: [words[6], words[7], words[8], words[9]] };
    // An IPv4 address in this form has no place on a wire, and would be taken for IPv4 in the maps.
    if words[0] & VERSION_6 != PLAIN_6 || !has_ports(number) || source.is_v4() || destination.is_v4() {
        return None;
    }
    let key = key(source, destination, words[10], number);
    Some(Plain { key, start: words[0], life_at: LIFE_6, life: words[1], hops, transport: ETHERNET + 40 })
}

#[inline(always)]
fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

#[inline(always)]
fn key(source: Address, destination: Address, ports: u32, number: u8) -> FlowKey {
    let [source_high, source_low, high, low] = ports.to_ne_bytes();
    FlowKey {
        source,
        destination,
        source_port: u16::from_ne_bytes([source_high, source_low]),
        destination_port: u16::from_ne_bytes([high, low]),
        protocol: number,
        kind: FlowKind::ServiceReply as u8,
        reserved: 0,
    }
}

/// May it be the end of a connection between machines: not "this network", loopback, multicast, or of one link alone? Linux
/// sends IPv4 packets for the latter on; those are clouds' services for their machines, which nodes' firewalls keep pods from.
#[inline(always)]
pub(crate) fn is_end(address: &Address) -> bool {
    let [first, second, third, last] = address.words;
    if address.is_v4() {
        let [high, low, ..] = last.to_ne_bytes();
        return high != 0 && high != 127 && high < 224 && (high != 169 || low != 254);
    }
    let [high, low, ..] = first.to_ne_bytes();
    let link_alone = high == 0xfe && low & 0xc0 == 0x80;
    // ::/96, where "none" and loopback are.
    high != 0xff && !link_alone && first | second | third != 0
}

/// The word with the time to live, less one; with IPv4 the header's checksum stands beside it (RFC 1141: one less in the upper
/// byte of a word is 256 more in the sum's complement).
#[inline(always)]
pub(crate) fn one_hop_less(life: u32, at: u32) -> u32 {
    let [first, second, third, fourth] = life.to_ne_bytes();
    if at == LIFE_6 {
        return u32::from_ne_bytes([first, second, third, fourth.wrapping_sub(1)]);
    }
    let sum = u32::from(u16::from_be_bytes([third, fourth])) + 0x0100;
    let [third, fourth] = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
    u32::from_ne_bytes([first.wrapping_sub(1), second, third, fourth])
}

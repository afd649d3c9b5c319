//! Packets from a pod to another pod of the same node: put into it at once, without the node's stack in between. What the
//! stack would do to them is done here (one hop less, the Ethernet addresses of the other link, the service's address in
//! place of a backend's); whatever else it might have to say about a packet is left to it.
//!
//! Plain packets only: IPv4 without options or fragments, IPv6 without extension headers, TCP or UDP. Both pods have to
//! be known, so that the stack sees either both directions of a connection or none; and a source address that is another
//! pod's is the stack's to judge.

use sluice_ebpf_common::{Address, FlowKey, FlowKind, PodLink, Reason, protocol};

use crate::header::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, End, Header, Kind, rewrite};
use crate::{MARK_NEEDS_SOURCE, Maps, Packet, Verdict, flow};

/// The way by the stack, as [`find`] says it; else the link's index, with [`ANSWER`] above it.
const STACK: u64 = 0;
/// The packet may belong to a service's connection: its source is the backend's then.
const ANSWER: u64 = 1 << 32;
/// The packet is half changed.
const BROKEN: u64 = u64::MAX;

const PLAIN_4: u32 = 0x4500_0000_u32.to_be();
const VERSION_4: u32 = 0xff00_0000_u32.to_be();
const PLAIN_6: u32 = 0x6000_0000_u32.to_be();
const VERSION_6: u32 = 0xf000_0000_u32.to_be();
/// The more-fragments bit and the offset.
const FRAGMENT: u32 = 0x3fff_u32.to_be();

/// Puts a packet into the pod that it is for; `None` if the stack has to see it, and then it is as it was.
#[inline(always)]
pub(crate) fn neighbour<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Option<Verdict> {
    let way = find(packet, maps);
    if way == STACK {
        return None;
    }
    if way == BROKEN || way & ANSWER != 0 && !answer(packet, maps) {
        maps.count_reason(Reason::Rewrite);
        return Some(Verdict::Drop(Reason::Rewrite));
    }
    Some(Verdict::Into(way as u32))
}

/// What a plain packet's headers say.
struct Plain {
    key: FlowKey,
    /// Where the time to live stands, and the word there.
    life_at: u32,
    life: u32,
    hops: u8,
}

/// Finds the pod and makes the packet one of its link. A function of its own in the kernel, where the stack is small.
#[inline(never)]
fn find<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> u64 {
    let Some(Plain { key, life_at, life, hops }) = plain(packet) else { return STACK };
    let Some(to) = maps.pod(&key.destination) else { return STACK };
    let Some(from) = maps.pod(&key.source) else { return STACK };
    let ours = from.link == maps.link() && to.link != from.link;
    if !ours || hops <= 1 || packet.mark() & MARK_NEEDS_SOURCE != 0 || !fits(packet, &to) {
        return STACK;
    }
    let way = match maps.flow(&key, |_| ()) {
        Some(()) => u64::from(to.link) | ANSWER,
        None => u64::from(to.link),
    };
    if packet.write_counted(life_at, one_hop_less(life, life_at)).is_none()
        || packet.write_words(0, to.ethernet).is_none()
    {
        return BROKEN;
    }
    way
}

#[inline(always)]
fn fits<P: Packet>(packet: &P, to: &PodLink) -> bool {
    packet.length() <= to.mtu + ETHERNET || packet.fits(to.link)
}

/// Gives an answer the service's address. The flow is looked at first and then acted on, not one within the other: the
/// kernel's stack is small.
#[inline(never)]
fn answer<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> bool {
    let mut header = Header::default();
    let mut target = (Address::default(), 0);
    service_of(packet, maps, &mut header, &mut target)
        && rewrite(packet, &header, End::Source, &target.0, target.1).is_ok()
}

#[inline(never)]
fn service_of<P: Packet, M: Maps>(packet: &P, maps: &M, header: &mut Header, target: &mut (Address, u16)) -> bool {
    let Some(Plain { key, life_at, .. }) = plain(packet) else { return false };
    let v4 = life_at == LIFE_4;
    let transport = if v4 { TRANSPORT_4 } else { TRANSPORT_6 };
    *header = Header {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        ip: ETHERNET as u16,
        transport: transport as u16,
        protocol: key.protocol,
        kind: Kind::Ports,
        v4,
        ..Header::default()
    };
    if key.protocol == protocol::TCP {
        let Some([flags]) = packet.read::<1>(transport + 13) else { return false };
        header.tcp_flags = flags;
    }
    let (now, bytes) = (maps.now(), packet.length());
    let found = maps.flow(&key, |flow| {
        flow::touch(flow, header, now, bytes);
        *target = (flow.address, flow.port);
        (flow.service, flow.backend)
    });
    let Some((service, backend)) = found else { return false };
    flow::count(maps, service, backend, 1, bytes.into());
    true
}

const LIFE_4: u32 = ETHERNET + 8;
const LIFE_6: u32 = ETHERNET + 4;
const TRANSPORT_4: u32 = ETHERNET + 20;
const TRANSPORT_6: u32 = ETHERNET + 40;

#[inline(always)]
fn plain<P: Packet>(packet: &P) -> Option<Plain> {
    match packet.ethertype() {
        ETHERTYPE_IPV4 => plain_v4(packet),
        ETHERTYPE_IPV6 => plain_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn plain_v4<P: Packet>(packet: &P) -> Option<Plain> {
    let [start, fragment, life, source, destination, ports] = packet.read_words::<6>(ETHERNET)?;
    let [hops, number, ..] = life.to_ne_bytes();
    if start & VERSION_4 != PLAIN_4 || fragment & FRAGMENT != 0 || !has_ports(number) {
        return None;
    }
    let key = key(Address::v4(source), Address::v4(destination), ports, number);
    Some(Plain { key, life_at: LIFE_4, life, hops })
}

#[inline(always)]
fn plain_v6<P: Packet>(packet: &P) -> Option<Plain> {
    let words = packet.read_words::<11>(ETHERNET)?;
    let [_, _, number, hops] = words[1].to_ne_bytes();
    let source = Address { words: [words[2], words[3], words[4], words[5]] };
    let destination = Address { words: [words[6], words[7], words[8], words[9]] };
    // An IPv4 address in this form has no place on a wire, and would be taken for IPv4 in the maps.
    if words[0] & VERSION_6 != PLAIN_6 || !has_ports(number) || source.is_v4() || destination.is_v4() {
        return None;
    }
    Some(Plain { key: key(source, destination, words[10], number), life_at: LIFE_6, life: words[1], hops })
}

#[inline(always)]
fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

/// Under which the answers of a service's backend are found.
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

/// The word with the time to live, less one; with IPv4 the header's checksum stands beside it (RFC 1141: one less in the upper
/// byte of a word is 256 more in the sum's complement).
#[inline(always)]
fn one_hop_less(life: u32, at: u32) -> u32 {
    let [first, second, third, fourth] = life.to_ne_bytes();
    if at == LIFE_6 {
        return u32::from_ne_bytes([first, second, third, fourth.wrapping_sub(1)]);
    }
    let sum = u32::from(u16::from_be_bytes([third, fourth])) + 0x0100;
    let [third, fourth] = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
    u32::from_ne_bytes([first.wrapping_sub(1), second, third, fourth])
}

//! Direct server return, on the load balancer's side: a client's packet goes to the backend's node as it is, inside another
//! packet (RFC 2003 for IPv4, RFC 2473 for IPv6), and the backend's node answers the client itself ([`crate::decap`]).
//!
//! The outer packet goes from this node's address to the backend's, so the routes to pods lead it there. The backend's port
//! stands where nothing else is needed: in the identification of an IPv4 packet that is never cut (RFC 6864, section 4.1), in
//! the flow label of an IPv6 packet (RFC 6437: the same for all packets of a connection).

use sluice_ebpf_common::cache::{Record, Record4, Record6};
use sluice_ebpf_common::{Address, Backend, Flow, FlowKind, Frontend, Reason, known, limits, protocol};

use crate::cache::Fast;
use crate::family::{Plain, fold};
use crate::header::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Header, transport_header};
use crate::shortcut::Desk;
use crate::target::Target;
use crate::{InsertError, Maps, Packet, Raw, Scratch, Verdict, flow, refuse, trail};

/// Bytes of an outer IPv4 header.
pub(crate) const OUTER_V4: u32 = 20;
/// Bytes of an outer IPv6 header.
pub(crate) const OUTER_V6: u32 = 40;
/// Hops that an outer packet may take.
const LIFE: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// The smallest packet that every IPv6 link carries.
const SMALLEST_V6: u32 = 1280;

/// What the kernel says about the way to an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The link that leads there; 0 for none, or when the packet is too long for it.
    pub link: u32,
    /// Longest IP packet where this one is too long, else 0.
    pub mtu: u32,
}

/// A packet that may be put into another one, or taken out of it.
pub trait Tunnel: Packet {
    /// Bytes of payload in each of the packets that this one will be cut into by the kernel or the card; 0 if it stays whole.
    fn segment(&self) -> u32;
    /// Asks the kernel for the way of an IP packet of `length` bytes.
    fn way(&self, source: &Address, destination: &Address, length: u32, hop: &mut Hop);
    /// Makes room for an outer IP header behind the Ethernet header; its content is undefined. `shrink` makes the segments
    /// that the packet will be cut into smaller by as much.
    fn encapsulate(&mut self, v4: bool, shrink: bool) -> Option<()>;
    /// Takes the outer IP header off.
    fn decapsulate(&mut self, v4: bool) -> Option<()>;
}

/// A packet between two nodes while it is looked at, in the scratch space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    /// The client's packet.
    pub(crate) header: Header,
    /// The backend's address.
    pub(crate) address: Address,
    /// Its port, network order.
    pub(crate) port: u16,
    pub(crate) reserved: u16,
    pub(crate) backend: u32,
    /// What the client asked for.
    pub(crate) frontend: Frontend,
    hop: Hop,
}

/// Where a connection's first packet went, in one of a few places that a processor keeps for the time until the second one
/// comes. Nothing else is written for the first one, so that a flood of them costs little and displaces nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// The connection, as [`known::trace`] makes it.
    trace: u64,
    service: u32,
    backend: u32,
    /// The port of this node that it goes on with, network order; 0 if the backend answers by itself.
    port: u16,
    reserved: [u16; 3],
}

impl Begun {
    /// The port that this connection has, 0 for none.
    #[inline(always)]
    pub(crate) fn port(&self, trace: u64, target: &Target) -> u16 {
        let same = self.trace == trace && self.service == target.service && self.backend == target.backend;
        if same { self.port } else { 0 }
    }

    #[inline(always)]
    pub(crate) fn new(trace: u64, target: &Target, port: u16) -> Begun {
        Begun { trace, service: target.service, backend: target.backend, port, reserved: [0; 3] }
    }
}

/// How many connections a processor remembered in a second of the coarse clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    second: u32,
    made: u32,
}

impl Rate {
    /// So many in this second, for tests.
    pub const fn after(second: u32, made: u32) -> Rate {
        Rate { second, made }
    }

    /// One more, if there may be.
    #[inline(always)]
    fn admits(&mut self, now: u32) -> bool {
        if self.second != now {
            *self = Rate { second: now, made: 0 };
        }
        self.made = self.made.wrapping_add(1);
        self.made <= limits::NEW_FLOWS
    }
}

/// Does the backend get the client's packets inside others? Only another node of the cluster takes them out again, and a pod
/// that asks itself would not answer itself. The target's flags say so then.
#[inline(always)]
pub(crate) fn applies<M: Maps>(maps: &M, header: &Header, frontend: &Frontend, target: &mut Target) -> bool {
    frontend.flags & Frontend::DIRECT != 0 && target.has(Flow::NEEDS_SOURCE) && reaches(maps, header, target)
}

#[inline(always)]
fn reaches<M: Maps>(maps: &M, header: &Header, target: &mut Target) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let family = settings.family(header.v4);
    let to_node = target.address.within(&family.cluster_network, &family.cluster_mask) || maps.is_node(&target.address);
    if !to_node || family.node.last() == 0 || target.address.same(&header.source) {
        return false;
    }
    target.flags = Flow::ENCAPSULATED;
    true
}

/// A client's connection as one number.
#[inline(always)]
pub(crate) fn trace(header: &Header) -> u64 {
    known::trace(&flow::key(header, FlowKind::Service))
}

/// Where its beginning is remembered.
#[inline(always)]
pub(crate) fn place(trace: u64) -> u32 {
    trace as u32 >> 8 & (limits::BEGUN - 1)
}

/// Is this the beginning of a connection of which the flow table knows nothing? The trace is the connection's.
#[inline(always)]
pub(crate) fn opens_unknown<M: Maps>(maps: &M, header: &Header, trace: u64) -> bool {
    if !header.opens() {
        return false;
    }
    let (word, bit) = known::place(trace);
    maps.known(word).is_some_and(|word| word >> bit & 1 == 0)
}

/// The backend to which a connection's first packet went, if that is still there; 0 for none: backends' numbers begin with 1.
/// By direct return the packets after it ask for it; else it is sent once more, with the port that it had. What clients keep by
/// their address is known without it.
#[inline(always)]
pub(crate) fn begun<M: Maps>(maps: &M, header: &Header, frontend: &Frontend, trace: u64) -> u32 {
    let direct = frontend.flags & Frontend::DIRECT != 0;
    if direct == header.opens() || frontend.affinity != 0 { 0 } else { noted(maps, frontend, direct, trace) }
}

/// A function of its own in the kernel, so that the verifier forgets how it was found.
#[inline(never)]
fn noted<M: Maps>(maps: &M, frontend: &Frontend, direct: bool, trace: u64) -> u32 {
    let known = maps.begun(
        place(trace),
        #[inline(always)]
        |begun| {
            let same = begun.trace == trace && begun.service == frontend.service && direct == (begun.port == 0);
            if same { begun.backend } else { 0 }
        },
    );
    let known = known.unwrap_or(0);
    let there = maps.backend(known).is_some_and(|backend| backend.flags & Backend::USED != 0);
    maps.hide(if there { known } else { 0 })
}

/// Remembers where a new connection goes, if it may. It does not have to: every node's table leads there, too, as long as the
/// service's backends stay the same. What only opens one is noted by its trace, for the next packet alone.
#[inline(always)]
pub(crate) fn remember<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32, trace: u64) {
    if !header.opens() {
        return enter(maps, header, target, bytes);
    }
    maps.begun(
        place(trace),
        #[inline(always)]
        |begun| *begun = Begun::new(trace, target, 0),
    );
}

/// Makes the one entry that it has.
#[inline(never)]
fn enter<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32) {
    let made = maps.scratch(
        #[inline(always)]
        |Scratch { key, flow, rate, .. }| {
            let now = maps.now();
            if !rate.admits(now) {
                return Err(InsertError::Full);
            }
            *key = flow::key(header, FlowKind::Service);
            *flow = Flow {
                other: *key,
                address: target.address,
                port: target.port,
                flags: Flow::ENCAPSULATED | header.closes(),
                service: target.service,
                backend: target.backend,
                created: now,
                seen: now,
                packets: 1,
                bytes: bytes.into(),
                ..Flow::default()
            };
            flow::make_known(maps, key);
            maps.insert_flow(key, flow)
        },
    );
    match made {
        Some(Ok(())) => maps.flow_created(),
        // Another CPU was faster, and its choice the same, but for a change of the table just now.
        Some(Err(InsertError::Exists)) => return,
        _ => {
            maps.count_reason(Reason::Unremembered);
            return;
        }
    }
    maps.count(target.service, target.backend, |counters| counters.connections += 1);
}

/// Notes what [`carry_out`] has to know, once the packet was counted.
#[inline(always)]
pub(crate) fn note<M: Maps>(maps: &M, header: &Header, target: &Target) {
    maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| {
            carried.header = *header;
            carried.address = target.address;
            carried.port = target.port;
        },
    );
}

/// Carries out what a verdict leaves to be done: puts the packet into another one, makes it an answer.
#[inline(always)]
pub fn carry_out<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, verdict: Verdict) -> Verdict {
    let verdict = match verdict {
        Verdict::Encapsulate => encapsulate(packet, maps),
        verdict => verdict,
    };
    let fits = if let Verdict::TooBig(mtu) = verdict { mtu } else { 0 };
    match verdict {
        Verdict::Refuse(_) | Verdict::TooBig(_) => refuse(packet, maps, fits),
        verdict => verdict,
    }
}

/// Carries out [`Verdict::Encapsulate`].
#[inline(always)]
fn encapsulate<P: Tunnel, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let result = match ask(packet, maps) {
        0 => {
            maps.count_reason(Reason::TooBig);
            return Verdict::TooBig(told(maps));
        }
        shrink => put(packet, maps, shrink == SHRINK),
    };
    result.unwrap_or_else(|| {
        maps.count_reason(Reason::Rewrite);
        Verdict::Drop(Reason::Rewrite)
    })
}

/// The packet is put into another one as it is, or in smaller segments. (0: it is too long.)
const WHOLE: u32 = 1;
const SHRINK: u32 = 2;

/// Asks for the way, which then stands in the scratch space.
#[inline(never)]
fn ask<P: Tunnel, M: Maps>(packet: &P, maps: &M) -> u32 {
    let Some(settings) = maps.settings() else { return WHOLE };
    let asked = maps.scratch(
        #[inline(always)]
        |Scratch { carried: Carried { header, address, hop, .. }, .. }| {
            let outer = if header.v4 { OUTER_V4 } else { OUTER_V6 };
            let segment = packet.segment();
            let (shrink, length) = match segment {
                0 => (WHOLE, packet.length().wrapping_sub(ETHERNET) + outer),
                // Cut anew, so that no packet is longer than those that came.
                _ if header.protocol == protocol::TCP => (SHRINK, headers(packet, header) + segment),
                _ => (WHOLE, headers(packet, header) + segment + outer),
            };
            *hop = Hop::default();
            packet.way(&settings.family(header.v4).node, address, length, hop);
            if hop.link != 0 || hop.mtu == 0 {
                return shrink;
            }
            hop.mtu = hop.mtu.saturating_sub(outer);
            if !header.v4 && hop.mtu < SMALLEST_V6 {
                hop.mtu = SMALLEST_V6;
            }
            0
        },
    );
    asked.unwrap_or(WHOLE)
}

/// Bytes of the headers that each of a packet's segments has.
#[inline(always)]
fn headers<P: Tunnel>(packet: &P, header: &Header) -> u32 {
    let transport = u32::from(header.transport);
    transport.wrapping_sub(ETHERNET) + transport_header(packet, transport, header.protocol).unwrap_or(20)
}

/// Puts the packet into another one.
#[inline(never)]
fn put<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, shrink: bool) -> Option<Verdict> {
    let settings = maps.settings()?;
    maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| {
            let Carried { header, address, port, hop, .. } = carried;
            if hop.link == 0 {
                maps.count_reason(Reason::NoWay);
                return Some(Verdict::Drop(Reason::NoWay));
            }
            let [start] = packet.read_words::<1>(ETHERNET)?;
            if header.v4 {
                age_v4(packet)?
            } else {
                age_v6(packet)?
            }
            packet.encapsulate(header.v4, shrink)?;
            let length = packet.length().wrapping_sub(ETHERNET);
            let node = &settings.family(header.v4).node;
            if header.v4 {
                let (from, to) = (node.last(), address.last());
                packet.write_words(ETHERNET, outer_v4(start, length, *port, from, to, rest_v4(*port, from, to)))?;
            } else {
                packet.write_words(ETHERNET, outer_v6_first(start, length - OUTER_V6, *port))?;
                packet.write_words(ETHERNET + 8, node.words)?;
                packet.write_words(ETHERNET + 24, address.words)?;
            }
            Some(Verdict::Onward(hop.link))
        },
    )?
}

/// One hop less, unless it was the last one: then the backend's node says so.
#[inline(always)]
fn age_v4<P: Packet>(packet: &mut P) -> Option<()> {
    let [word] = packet.read_words::<1>(ETHERNET + 8)?;
    let [life, number, high, low] = word.to_ne_bytes();
    if life > 1 {
        let new = u32::from_ne_bytes([life - 1, number, high, low]);
        packet.write(ETHERNET + 8, [life - 1])?;
        packet.fix_ip_checksum(ETHERNET + 10, word, new)?;
    }
    Some(())
}

#[inline(always)]
fn age_v6<P: Packet>(packet: &mut P) -> Option<()> {
    let [life] = packet.read::<1>(ETHERNET + 7)?;
    if life > 1 { packet.write(ETHERNET + 7, [life - 1]) } else { Some(()) }
}

/// An outer IPv4 header. `start` is the inner one's first word, whose class of traffic and congestion marks are taken over
/// (RFC 6040, section 4.1); `length` is the whole packet's; `rest` sums up what is the same for all of a connection.
#[inline(always)]
pub(crate) fn outer_v4(start: u32, length: u32, port: u16, source: u32, destination: u32, rest: u16) -> [u32; 5] {
    let [_, class, ..] = start.to_ne_bytes();
    let [high, low] = (length as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, class, high, low]);
    let [high, low] = (!fold(u64::from(rest) + u64::from(first))).to_ne_bytes();
    [first, unsliced(port), u32::from_ne_bytes([LIFE, protocol::IPV4, high, low]), source, destination]
}

/// The sum of an outer IPv4 header's words but the first one, as they stand there.
#[inline(always)]
pub(crate) fn rest_v4(port: u16, source: u32, destination: u32) -> u16 {
    let third = u32::from_ne_bytes([LIFE, protocol::IPV4, 0, 0]);
    fold([unsliced(port), third, source, destination].into_iter().map(u64::from).sum())
}

/// The second word of an outer IPv4 header.
#[inline(always)]
fn unsliced(port: u16) -> u32 {
    let ([one, other], [high, low]) = (port.to_ne_bytes(), DONT_FRAGMENT.to_be_bytes());
    u32::from_ne_bytes([one, other, high, low])
}

/// The first two words of an outer IPv6 header; `length` is the inner packet's.
#[inline(always)]
pub(crate) fn outer_v6_first(start: u32, length: u32, port: u16) -> [u32; 2] {
    let class = u32::from_be(start) & 0x0ff0_0000;
    let first = 0x6000_0000 | class | u32::from(u16::from_be(port));
    let second = (length & 0xffff) << 16 | u32::from(protocol::IPV6) << 8 | u32::from(LIFE);
    [first.to_be(), second.to_be()]
}

/// Decides the same for the flow cache, where the driver sends the packet on.
#[inline(always)]
pub(crate) fn finish<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let Desk { header, onward, length, path, target, .. } = desk;
    let outer = if header.v4 { OUTER_V4 as u16 } else { OUTER_V6 as u16 };
    (path.source, path.destination) = (settings.family(header.v4).node, target.address);
    (path.source_port, path.destination_port) = (0, target.port);
    (path.service, path.backend) = (target.service, target.backend);
    path.encapsulate = true;
    let length = length.saturating_add(outer);
    if !trail::known(maps, settings, &target.address, length, target.backend, &mut path.route) {
        *onward = *header;
        (onward.source, onward.destination) = (path.source, path.destination);
        if !trail::find(maps, settings, onward, length, target.backend, &mut path.route) {
            return false;
        }
    }
    path.route.mtu = path.route.mtu.saturating_sub(outer);
    true
}

/// Puts a packet that a driver received into another one, as its record says.
#[inline(always)]
pub(crate) fn carry_v4<P: Raw>(packet: &mut P, plain: &Plain<u32>, record: &Record4) -> Option<()> {
    let [life, number, high, low] = plain.life.to_ne_bytes();
    let old = u64::from(u16::from_ne_bytes([high, low]));
    let total = (!old & 0xffff)
        + u64::from(!u16::from_ne_bytes([life, number]))
        + u64::from(u16::from_ne_bytes([life.wrapping_sub(1), number]));
    let [high, low] = (!fold(total)).to_ne_bytes();
    packet.write_words(ETHERNET + 8, [u32::from_ne_bytes([life.wrapping_sub(1), number, high, low])])?;
    packet.prepend(OUTER_V4)?;
    let length = u32::from(plain.length) + OUTER_V4;
    let (from, to) = (record.new_source, record.new_destination);
    let outer = outer_v4(plain.start, length, backend_port(record), from, to, record.delta);
    packet.write_head(record.ethernet, ETHERTYPE_IPV4, outer)
}

/// The same for IPv6.
#[inline(always)]
pub(crate) fn carry_v6<P: Raw>(packet: &mut P, plain: &Plain<[u32; 4]>, record: &Record6) -> Option<()> {
    let [high, low, number, life] = plain.life.to_ne_bytes();
    packet.write_words(ETHERNET + 4, [u32::from_ne_bytes([high, low, number, life.wrapping_sub(1)])])?;
    packet.prepend(OUTER_V6)?;
    let [one, two] = outer_v6_first(plain.start, plain.length.into(), backend_port(record));
    packet.write_head(record.ethernet, ETHERTYPE_IPV6, [one, two])?;
    packet.write_words(ETHERNET + 8, record.new_source)?;
    packet.write_words(ETHERNET + 24, record.new_destination)
}

/// What [`Record4::delta`] says of a record that puts packets into others.
#[inline(always)]
pub(crate) fn rest_of(record: &Record4) -> u16 {
    rest_v4(backend_port(record), record.new_source, record.new_destination)
}

#[inline(always)]
fn backend_port<A, S>(record: &Record<A, S>) -> u16 {
    let [_, _, high, low] = record.new_ports.to_ne_bytes();
    u16::from_ne_bytes([high, low])
}

/// How long a packet may be that [`ask`] found too long.
#[inline(always)]
fn told<M: Maps>(maps: &M) -> u32 {
    let mtu = maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| carried.hop.mtu,
    );
    mtu.unwrap_or(0)
}

//! The fast path: a plain packet of a connection that was seen before is rewritten by what its record says, in one look at
//! one cache line. It decides nothing: what has no valid record goes to [`crate::shortcut`], which makes one.
//!
//! Plain: IPv4 without options or fragments, IPv6 without extension headers, TCP or UDP. Offsets are constants then, and
//! nearly everything is plain.

use sluice_ebpf_common::cache::{Bucket4, Bucket6, Record, action};
use sluice_ebpf_common::{Address, Flow, Settings, protocol};

use crate::family::{Family, IP, Plain, V4, V6, fold};
use crate::header::{ACK, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FIN, Header, Kind, RST, SYN, transport_header};
use crate::shortcut::{Desk, Route, decide};
use crate::{Change, Maps, Raw, Trail, flow};

/// The maps and clocks that the fast path needs besides.
pub trait Fast: Maps {
    /// Lends an IPv4 bucket of the cache.
    fn bucket4<R>(&self, index: u32, with: impl FnOnce(&mut Bucket4) -> R) -> Option<R>;
    /// Lends an IPv6 bucket of the cache.
    fn bucket6<R>(&self, index: u32, with: impl FnOnce(&mut Bucket6) -> R) -> Option<R>;
    /// Lends the place where decisions are made, which is this processor's own and holds anything.
    fn desk<R>(&self, with: impl FnOnce(&mut Desk) -> R) -> Option<R>;
    /// Lends the way to a backend, one of a few that are kept: this processor's own, and of any backend.
    fn trail<R>(&self, backend: u32, with: impl FnOnce(&mut Trail) -> R) -> Option<R>;
    /// Number of this processor.
    fn processor(&self) -> u32;
    /// The kernel's timer ticks.
    fn jiffies(&self) -> u64;
    /// The VLAN tags of the packet, 0 for none; see [`sluice_ebpf_common::cache::Uplink::vlan`].
    fn vlan(&self) -> u32;
    /// The generation of a service's last change, 0 for none.
    fn generation(&self, service: u32) -> u32;
    /// Asks the kernel where a packet with these ends goes; false unless it can be sent on a link at once. `length` is the
    /// IP packet's.
    fn route(&self, header: &Header, length: u16, route: &mut Route) -> bool;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel's stack gets it, changed or not.
    Stack,
    /// It leaves by the link with this index.
    Out(u32),
    /// It could not be changed.
    Drop,
}

/// Handles a packet from outside before the kernel's stack sees it. What is not changed here is left to the programs on the
/// link, which do all of this, too.
#[inline(always)]
pub fn uplink<P: Raw, M: Fast>(packet: &mut P, maps: &M) -> Way {
    let ethertype = packet.ethertype();
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 {
        return Way::Stack;
    }
    let v4 = maps.hide(ethertype.into()) == u32::from(ETHERTYPE_IPV4);
    // A call costs half a lookup where the kernel guards its returns, and a flood opens connections. (There is no room for both
    // families here: the verifier would go twice through all that follows.)
    let mut way = if v4 && opens::<V4, P, M>(packet, maps) { UNKNOWN } else { look(packet, maps, v4) };
    if way == UNKNOWN {
        let decided = maps.hide(decide(maps));
        way = if decided == NOTHING { STACK } else { act(packet, maps, v4, decided) };
    }
    match way {
        STACK | UNKNOWN => Way::Stack,
        DROP => Way::Drop,
        link => Way::Out(link),
    }
}

/// The same on a link whose driver does not run that program. What is for the cluster's pods by their own addresses is left to
/// the link's other program at once: it is no service's. So is, next, what may not be handled here.
#[inline(always)]
pub fn onward<P: Raw, M: Fast>(packet: &mut P, maps: &M, may: impl FnOnce() -> bool) -> Way {
    if is_for_pods(packet, maps).unwrap_or(true) || !may() { Way::Stack } else { uplink(packet, maps) }
}

#[inline(always)]
fn is_for_pods<P: Raw, M: Fast>(packet: &P, maps: &M) -> Option<bool> {
    let v4 = packet.ethertype() == ETHERTYPE_IPV4;
    let family = maps.settings()?.family(v4);
    let destination = if v4 {
        let [destination] = packet.read_words::<1>(IP + 16)?;
        Address::v4(destination)
    } else {
        Address { words: packet.read_words::<4>(IP + 24)? }
    };
    Some(destination.within(&family.cluster_network, &family.cluster_mask))
}

/// What a look at the cache comes to, as one register: these, or the link to leave by.
const STACK: u32 = 0;
const DROP: u32 = u32::MAX;
const UNKNOWN: u32 = u32::MAX - 1;
/// To the stack, without a change that the record asks for.
const UNTOUCHED: u32 = u32::MAX - 2;

/// Does the packet open a connection? The cache has no record of it then, and it is put on the desk at once.
#[inline(always)]
fn opens<F: Family, P: Raw, M: Fast>(packet: &P, maps: &M) -> bool {
    let Some([flags]) = packet.read::<1>(F::TRANSPORT + 13) else { return false };
    if flags & (SYN | ACK) != SYN {
        return false;
    }
    // Parsed at the desk, so that nothing of it is kept on the stack over a call: the verifier would tell the ways apart by that.
    let asked = maps.desk(
        #[inline(always)]
        |desk| {
            let Some(plain) = F::parse(packet) else { return false };
            let opens = plain.tcp_flags & (SYN | ACK) == SYN;
            if opens {
                ask::<F, P>(desk, packet, &plain, None);
            }
            opens
        },
    );
    asked == Some(true)
}

/// What was decided: it is on the desk; it is, about a connection of which nothing was known; to know nothing about this packet.
/// Or the cache knows nothing already.
pub(crate) const DECIDED: u32 = 1;
pub(crate) const BEGUN: u32 = 2;
pub(crate) const FORGET: u32 = 3;
pub(crate) const NOTHING: u32 = 4;

#[inline(always)]
fn look<P: Raw, M: Fast>(packet: &mut P, maps: &M, v4: bool) -> u32 {
    if v4 { look_v4(packet, maps) } else { look_v6(packet, maps) }
}

#[inline(always)]
fn act<P: Raw, M: Fast>(packet: &mut P, maps: &M, v4: bool, decided: u32) -> u32 {
    if v4 { act_v4(packet, maps, decided) } else { act_v6(packet, maps, decided) }
}

/// Functions of their own in the kernel: what they need of the stack is free again when a decision is made.
#[inline(never)]
fn look_v4<P: Raw, M: Fast>(packet: &mut P, maps: &M) -> u32 {
    look_up::<V4, P, M>(packet, maps)
}

#[inline(never)]
fn look_v6<P: Raw, M: Fast>(packet: &mut P, maps: &M) -> u32 {
    if opens::<V6, P, M>(packet, maps) { UNKNOWN } else { look_up::<V6, P, M>(packet, maps) }
}

#[inline(never)]
fn act_v4<P: Raw, M: Fast>(packet: &mut P, maps: &M, decided: u32) -> u32 {
    act_on::<V4, P, M>(packet, maps, decided)
}

#[inline(never)]
fn act_v6<P: Raw, M: Fast>(packet: &mut P, maps: &M, decided: u32) -> u32 {
    act_on::<V6, P, M>(packet, maps, decided)
}

/// The protocol of a record that is in use, but no packet's.
const NOBODYS: u8 = 0xff;

/// Bytes of a record that are counted at most before they are added up.
const BYTES: u32 = 1 << 31;

/// Does what the packet's record says, if there is one that holds; else the packet is put on the desk.
#[inline(always)]
fn look_up<F: Family, P: Raw, M: Fast>(packet: &mut P, maps: &M) -> u32 {
    let Some(plain) = F::parse(packet) else { return STACK };
    let Some(settings) = maps.settings() else { return STACK };
    let tick = settings.tick(maps.jiffies()) as u16;
    let place = maps.hide(place::<F, M>(maps, settings, &plain, tick));
    record_at::<F, M>(
        maps,
        place,
        #[inline(always)]
        |record| {
            if !holds::<F, M>(maps, settings, &plain, record, tick) {
                maps.desk(
                    #[inline(always)]
                    |desk| ask::<F, P>(desk, packet, &plain, Some(record)),
                );
                return UNKNOWN;
            }
            let way = apply::<F, P>(packet, &plain, record);
            if way == UNTOUCHED {
                return STACK;
            }
            record.packets = record.packets.wrapping_add(1);
            record.bytes = record.bytes.wrapping_add(ETHERNET + u32::from(plain.length));
            way
        },
    )
}

/// Makes the decision on the desk a record, and does what it says.
#[inline(always)]
fn act_on<F: Family, P: Raw, M: Fast>(packet: &mut P, maps: &M, decided: u32) -> u32 {
    let Some(plain) = F::parse(packet) else { return STACK };
    let Some(settings) = maps.settings() else { return STACK };
    let tick = settings.tick(maps.jiffies()) as u16;
    // What opens a connection has no record but one place for all, and the next packet makes one: a flood displaces nobody's.
    // Where there may be one of an earlier connection, it takes that one's place.
    let opens = plain.tcp_flags & (SYN | ACK) == SYN;
    let place = maps.hide(if opens && decided == BEGUN {
        share::<F, M>(maps, settings).0 << 1
    } else {
        place::<F, M>(maps, settings, &plain, tick)
    });
    record_at::<F, M>(
        maps,
        place,
        #[inline(always)]
        |record| {
            // Another connection's.
            if decided == FORGET && !matches::<F>(record, &plain) {
                return STACK;
            }
            if opens {
                settle::<F, M>(maps, record);
            }
            if decided == FORGET || !write::<F, M>(maps, settings, &plain, record, tick) {
                record.protocol = 0;
                return STACK;
            }
            let way = apply::<F, P>(packet, &plain, record);
            if way == UNTOUCHED {
                return STACK;
            }
            // The connection's entries know of it from the decision.
            if record.service != Flow::NO_SERVICE {
                flow::count(maps, record.service, record.backend, 1, u64::from(ETHERNET + u32::from(plain.length)));
            }
            // What comes after its end is decided, too, so that nothing of it stays in a record that nobody looks at again.
            if opens || plain.tcp_flags & (FIN | RST) != 0 {
                record.protocol = NOBODYS;
            }
            way
        },
    )
}

/// What comes of the record at a place, as [`place`] says it.
#[inline(always)]
fn record_at<F: Family, M: Fast>(
    maps: &M,
    place: u32,
    with: impl FnOnce(&mut Record<F::Address, F::Spare>) -> u32,
) -> u32 {
    let way = F::bucket(
        maps,
        place >> 1,
        #[inline(always)]
        |[first, second]| with(if place & 1 == 0 { first } else { second }),
    );
    way.unwrap_or(STACK)
}

/// This processor's first bucket of a family, and the mask of the numbers of those after it.
#[inline(always)]
fn share<F: Family, M: Fast>(maps: &M, settings: &Settings) -> (u32, u32) {
    let mask = settings.cache_mask >> F::SHARE;
    (maps.processor().wrapping_mul(mask.wrapping_add(1)), mask)
}

/// Where the connection's record is or would be, as bucket times two and which of it: two hashes lead to two records each, so
/// that as many connections find room as half of all records. The one that was written longest ago gives way.
#[inline(always)]
fn place<F: Family, M: Fast>(maps: &M, settings: &Settings, plain: &Plain<F::Address>, tick: u16) -> u32 {
    let (base, mask) = share::<F, M>(maps, settings);
    let hash = hash::<F>(plain);
    let one = base.wrapping_add(hash & mask);
    let (age, way) = look_into::<F, M>(maps, one, plain, tick);
    if age == FOUND {
        return one << 1 | way;
    }
    let other = base.wrapping_add(hash.wrapping_mul(0x9e37_79b1) >> 8 & mask);
    let (other_age, other_way) = look_into::<F, M>(maps, other, plain, tick);
    if other_age > age { other << 1 | other_way } else { one << 1 | way }
}

/// More than any age.
const FOUND: u32 = u32::MAX;

/// The connection's record in a bucket, or the older one and its age.
#[inline(always)]
fn look_into<F: Family, M: Fast>(maps: &M, index: u32, plain: &Plain<F::Address>, tick: u16) -> (u32, u32) {
    let found = F::bucket(
        maps,
        index,
        #[inline(always)]
        |[first, second]| {
            if matches::<F>(first, plain) {
                return (FOUND, 0);
            }
            if matches::<F>(second, plain) {
                return (FOUND, 1);
            }
            let ages = [age(tick, first.tick, first.protocol), age(tick, second.tick, second.protocol)];
            if ages[1] > ages[0] { (ages[1], 1) } else { (ages[0], 0) }
        },
    );
    found.unwrap_or((0, 0))
}

/// Ticks since a record was written, as far as it matters: one that holds no more, or is not in use, is as good as none.
#[inline(always)]
fn age(now: u16, written: u16, protocol: u8) -> u32 {
    if protocol == 0 { HOLDS_NO_MORE } else { u32::from(now.wrapping_sub(written)).min(HOLDS_NO_MORE) }
}

/// The tick before may have ended just now.
const HOLDS_NO_MORE: u32 = 2;

#[inline(always)]
fn matches<F: Family>(record: &Record<F::Address, F::Spare>, plain: &Plain<F::Address>) -> bool {
    F::differ(&record.source, &plain.source)
        | F::differ(&record.destination, &plain.destination)
        | (record.ports ^ plain.ports)
        | u32::from(record.protocol ^ plain.protocol)
        == 0
}

/// Does the record say what to do with this packet, without another look at the truth?
#[inline(always)]
fn holds<F: Family, M: Fast>(
    maps: &M,
    settings: &Settings,
    plain: &Plain<F::Address>,
    record: &Record<F::Address, F::Spare>,
    tick: u16,
) -> bool {
    matches::<F>(record, plain)
        && record.tick == tick
        && record.stamp == stamp(maps, settings, record.service)
        && plain.tcp_flags & (FIN | SYN | RST) == 0
        && record.packets != u16::MAX
        && record.bytes < BYTES
}

/// All generations that a decision depends on, and the VLAN that it was made for. They are unique per change, so that a mixture that was there before is as
/// unlikely as it is short-lived: a record is renewed with every tick.
#[inline(always)]
fn stamp<M: Fast>(maps: &M, settings: &Settings, service: u32) -> u32 {
    let elsewhere = settings.epoch.wrapping_mul(0x9e37_79b1) ^ maps.vlan();
    maps.generation(service).wrapping_add(elsewhere)
}

#[inline(always)]
fn hash<F: Family>(plain: &Plain<F::Address>) -> u32 {
    let mut hash = F::mix(&plain.source).wrapping_mul(0x9e37_79b1) ^ F::mix(&plain.destination);
    hash = (hash ^ plain.ports).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0xc2b2_ae35) ^ u32::from(plain.protocol);
    hash ^ hash >> 13
}

/// Adds what a record counted to the counters of its service and backend, before another one takes its place: what opens a
/// connection does not bring it to the desk.
#[inline(always)]
fn settle<F: Family, M: Fast>(maps: &M, record: &mut Record<F::Address, F::Spare>) {
    if record.packets != 0 && record.service != Flow::NO_SERVICE {
        flow::count(maps, record.service, record.backend, record.packets.into(), record.bytes.into());
    }
    (record.packets, record.bytes) = (0, 0);
}

/// Puts the packet on the desk, and what the record that it has or displaces counted so far.
#[inline(always)]
fn ask<F: Family, P: Raw>(
    desk: &mut Desk,
    packet: &P,
    plain: &Plain<F::Address>,
    record: Option<&mut Record<F::Address, F::Spare>>,
) {
    let [source_high, source_low, high, low] = plain.ports.to_ne_bytes();
    desk.header = Header {
        source: F::widen(&plain.source),
        destination: F::widen(&plain.destination),
        source_port: u16::from_ne_bytes([source_high, source_low]),
        destination_port: u16::from_ne_bytes([high, low]),
        ip: IP as u16,
        transport: F::TRANSPORT as u16,
        protocol: plain.protocol,
        tcp_flags: plain.tcp_flags,
        kind: Kind::Ports,
        v4: F::TRANSPORT == V4::TRANSPORT,
        ..Header::default()
    };
    desk.length = longest::<F, P>(packet, plain);
    (desk.recorded, desk.packets, desk.bytes) = (false, 0, 0);
    let Some(record) = record else { return };
    desk.recorded = matches::<F>(record, plain);
    desk.packets = u64::from(record.packets);
    desk.bytes = u64::from(record.bytes);
    desk.path.service = record.service;
    desk.path.backend = record.backend;
    (record.packets, record.bytes) = (0, 0);
}

/// Makes the decision on the desk a record.
#[inline(always)]
fn write<F: Family, M: Fast>(
    maps: &M,
    settings: &Settings,
    plain: &Plain<F::Address>,
    record: &mut Record<F::Address, F::Spare>,
    tick: u16,
) -> bool {
    let done = maps.desk(
        #[inline(always)]
        |desk| {
            let path = &desk.path;
            let ports = path.new_ports();
            record.new_source = F::narrow(&path.source);
            record.new_destination = F::narrow(&path.destination);
            record.source = plain.source;
            record.destination = plain.destination;
            record.ports = plain.ports;
            record.protocol = plain.protocol;
            record.action = match path.route.link {
                0 => action::PASS,
                _ if path.encapsulate => action::ENCAPSULATE,
                _ => action::SEND,
            };
            record.mtu = path.route.mtu;
            record.new_ports = ports;
            if path.encapsulate {
                record.delta = F::rest(record);
            } else {
                let delta = F::change(&plain.source, &record.new_source)
                    + F::change(&plain.destination, &record.new_destination)
                    + V4::change(&plain.ports, &ports);
                record.delta = fold(delta);
            }
            record.link = path.route.link;
            record.ethernet = path.route.ethernet;
            record.service = path.service;
            record.backend = path.backend;
            if plain.tcp_flags & (SYN | ACK) != SYN {
                record.stamp = stamp(maps, settings, path.service);
            }
            record.tick = tick;
        },
    );
    done.is_some()
}

/// Length of the longest IP packet that it becomes on a wire.
#[inline(always)]
fn longest<F: Family, P: Raw>(packet: &P, plain: &Plain<F::Address>) -> u16 {
    let segment = packet.segment();
    if segment == 0 {
        return plain.length;
    }
    let Some(own) = transport_header(packet, F::TRANSPORT, plain.protocol) else { return u16::MAX };
    (F::TRANSPORT - IP + own + segment) as u16
}

/// Changes the packet as its record says.
#[inline(always)]
fn apply<F: Family, P: Raw>(
    packet: &mut P,
    plain: &Plain<F::Address>,
    record: &mut Record<F::Address, F::Spare>,
) -> u32 {
    let send = record.action != action::PASS;
    let carries = record.action == action::ENCAPSULATE;
    let length = longest::<F, P>(packet, plain);
    if send && (F::life(plain.life) <= 1 || length > record.mtu) || carries && !P::CARRIES {
        return UNTOUCHED;
    }
    let changed =
        if carries { F::encapsulate(packet, plain, record) } else { change::<F, P>(packet, plain, record, send) };
    match changed {
        None => DROP,
        Some(()) if send => record.link.into(),
        Some(()) => STACK,
    }
}

#[inline(always)]
fn change<F: Family, P: Raw>(
    packet: &mut P,
    plain: &Plain<F::Address>,
    record: &Record<F::Address, F::Spare>,
    send: bool,
) -> Option<()> {
    let tcp = plain.protocol == protocol::TCP;
    let at = if tcp { F::TRANSPORT + 16 } else { F::TRANSPORT + 6 };
    let addresses =
        F::change(&plain.source, &record.new_source) + F::change(&plain.destination, &record.new_destination);
    let change = Change {
        all: record.delta.into(),
        addresses: fold(addresses).into(),
        old_ports: plain.ports,
        new_ports: record.new_ports,
        zero_is_none: !tcp,
    };
    packet.fix_checksum(at, &change)?;
    F::write(packet, plain, record, send)?;
    if send {
        packet.write_words(0, record.ethernet)?;
    }
    Some(())
}

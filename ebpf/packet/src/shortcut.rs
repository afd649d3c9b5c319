//! The decisions behind the flow cache: where packets from outside go when they need not pass through the kernel's stack.
//! Both translations of a connection, towards the backend and from the node, are made at once, on the same flow table as the
//! programs that see the packet twice.
//!
//! In the kernel each decision is a function of its own, and everything is passed through one desk: the stack is small.

use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Scope, Settings};

use crate::cache::{BEGUN, DECIDED, FORGET, Fast, NOTHING};
use crate::egress::{self, Source};
use crate::header::Header;
use crate::ingress;
use crate::target::Target;
use crate::{Maps, encap, flow, fused, service, trail};

/// The way out to a neighbour.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Index of the link that sends; 0 for none.
    pub link: u16,
    /// Longest IP packet.
    pub mtu: u16,
    /// Ethernet addresses, first the neighbour's.
    pub ethernet: [u32; 3],
    /// Index of the link that the kernel's routes name: a VLAN's, or the same.
    pub device: u32,
    /// The node's address there, which masqueraded packets leave with.
    pub own: Address,
}

/// What becomes of a connection's packets in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Path {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) service: u32,
    pub(crate) backend: u32,
    /// The packets go inside others between these ends.
    pub(crate) encapsulate: bool,
    pub(crate) route: Route,
}

impl Path {
    /// To the stack, as it came.
    #[inline(always)]
    fn keep(&mut self, header: &Header) {
        *self = Path {
            source: header.source,
            destination: header.destination,
            source_port: header.source_port,
            destination_port: header.destination_port,
            service: Flow::NO_SERVICE,
            backend: 0,
            encapsulate: false,
            route: Route::default(),
        };
    }

    /// Both ports as the transport header has them.
    #[inline(always)]
    pub(crate) fn new_ports(&self) -> u32 {
        let ([source_high, source_low], [high, low]) =
            (self.source_port.to_ne_bytes(), self.destination_port.to_ne_bytes());
        u32::from_ne_bytes([source_high, source_low, high, low])
    }
}

/// Where a decision is made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Desk {
    /// The packet, of which only its ends matter.
    pub(crate) header: Header,
    /// The same after the destination was translated: what is routed.
    pub(crate) onward: Header,
    /// Where a client's packet goes.
    pub(crate) target: Target,
    /// What the flow table is asked for.
    key: FlowKey,
    /// How far its connection is recorded.
    record: u32,
    /// The cache has a record for it.
    pub(crate) recorded: bool,
    /// What it leaves with.
    source: Source,
    /// Length of the IP packet.
    pub(crate) length: u16,
    /// Packets that were counted for the service and backend that stand in the path before the decision.
    pub(crate) packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The decision.
    pub(crate) path: Path,
}

impl Desk {
    /// Where the [`Route`] of its decision stands, in bytes.
    pub const ROUTE: usize = core::mem::offset_of!(Desk, path) + core::mem::offset_of!(Path, route);
}

/// Decides about the connection of the packet on the desk, and what the cache has to know of it: nothing where the packet is
/// left to the kernel's stack as it is. Each step is called from here, so that what one needs of the stack is free again for
/// the next.
#[inline(always)]
pub(crate) fn decide<M: Fast>(maps: &M) -> u32 {
    let decided =
        maps.desk(
            #[inline(always)]
            |desk| match decided_before(maps, desk) {
                ANSWER => DECIDED,
                REQUEST if backend(maps, desk) && recorded(maps, desk) && reach(maps, desk) => {
                    if desk.record == BEGINS { BEGUN } else { DECIDED }
                }
                _ => {
                    if desk.recorded || desk.record != BEGINS {
                        FORGET
                    } else {
                        NOTHING
                    }
                }
            },
        );
    decided.unwrap_or(NOTHING)
}

/// A connection of which nothing was recorded; one that takes an ended one's place; one whose record says where it goes; one
/// whose record says what it leaves with, too.
const BEGINS: u32 = 0;
const AGAIN: u32 = 1;
const AIMED: u32 = 2;
const WHOLE: u32 = 3;

/// What a packet turned out to be.
const STRANGER: u32 = 0;
const ANSWER: u32 = 1;
const REQUEST: u32 = 2;

/// Settles what was counted, and decides about answers. The first one of a connection makes its entries.
#[inline(always)]
fn decided_before<M: Fast>(maps: &M, desk: &mut Desk) -> u32 {
    // Nothing to settle, and no answer: a call costs half a lookup where the kernel guards its returns.
    if desk.packets == 0 && !is_answer(maps, &desk.header) {
        desk.record = BEGINS;
        return REQUEST;
    }
    // Without room the stack tells.
    let whole = !is_answer(maps, &desk.header) || fused::join(maps, &desk.header);
    let code = begin(maps, desk);
    maps.hide(if whole { code } else { STRANGER })
}

#[inline(never)]
fn begin<M: Fast>(maps: &M, desk: &mut Desk) -> u32 {
    settle(maps, desk);
    desk.record = BEGINS;
    if is_answer(maps, &desk.header) { back(maps, desk) } else { REQUEST }
}

/// May it answer what left with this node's address?
#[inline(always)]
fn is_answer<M: Maps>(maps: &M, header: &Header) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let port = u16::from_be(header.destination_port);
    port >= settings.source_port_first && port <= settings.source_port_last
}

/// Adds what the record before counted to the service's and the backend's counters. Of another connection's nothing is left then.
#[inline(always)]
fn settle<M: Fast>(maps: &M, desk: &mut Desk) {
    let Desk { packets, bytes, path, recorded, .. } = desk;
    if *packets != 0 && path.service != Flow::NO_SERVICE {
        flow::count(maps, path.service, path.backend, *packets, *bytes);
    }
    if !*recorded {
        (*packets, *bytes) = (0, 0);
    }
}

/// Notes this packet in its connection's entry, and those that the record counted.
#[inline(always)]
fn note(flow: &mut Flow, header: &Header, now: u32, bytes: u32, (more, their_bytes): (u64, u64)) {
    flow::touch(flow, header, now, bytes);
    flow.packets += more;
    flow.bytes += their_bytes;
}

/// An answer to what left with this node's address: to a pod, or to the client of a backend elsewhere.
#[inline(always)]
fn back<M: Fast>(maps: &M, desk: &mut Desk) -> u32 {
    let Desk { header, onward, length, path, packets, bytes: their_bytes, .. } = desk;
    *onward = *header;
    path.keep(header);
    let (now, bytes, counted) = (maps.now(), u32::from(*length), (*packets, *their_bytes));
    let found = maps.flow(&flow::key(header, FlowKind::MasqueradeReply), |flow| {
        note(flow, header, now, bytes, counted);
        (onward.destination, onward.destination_port) = (flow.address, flow.port);
        if flow.flags & Flow::FUSED == 0 {
            return false;
        }
        (path.source, path.source_port) = (flow.other.destination, flow.other.destination_port);
        (path.service, path.backend) = (flow.service, flow.backend);
        true
    });
    let Some(mut of_service) = found else { return REQUEST };
    (path.destination, path.destination_port) = (onward.destination, onward.destination_port);
    if !of_service {
        let found = maps.flow(&flow::key(onward, FlowKind::ServiceReply), |flow| {
            note(flow, header, now, bytes, counted);
            (path.source, path.source_port) = (flow.address, flow.port);
            (path.service, path.backend) = (flow.service, flow.backend);
        });
        of_service = found.is_some();
    }
    if of_service && !maps.route(onward, *length, &mut path.route) { STRANGER } else { ANSWER }
}

/// Finds the backend that a client's connection to a service has, or picks one.
#[inline(never)]
fn backend<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let (address, port) = (&desk.header.destination, desk.header.destination_port);
    let Some(frontend) = service::find(maps, settings, address, port, desk.header.protocol, Scope::External) else {
        // The port of a service that was deleted: its open connections go on. A refusal is the stack's to tell.
        return service::is_node_port(maps, settings, address, port)
            && resumes(maps, desk, false)
            && carried(maps, desk);
    };
    let trace = encap::trace(&desk.header);
    let unknown = encap::opens_unknown(maps, &desk.header, trace);
    if !resumes(maps, desk, unknown) {
        let Desk { header, target, .. } = desk;
        target.flags = Flow::NEEDS_SOURCE;
        ingress::aim_by(maps, trace);
        if ingress::aim_at(maps, header, &frontend, target).is_err() {
            return false;
        }
        encap::applies(maps, header, &frontend, target);
    }
    carried(maps, desk)
}

/// Finds the way of what goes inside other packets.
#[inline(always)]
fn carried<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    !desk.target.has(Flow::ENCAPSULATED) || encap::finish(maps, desk)
}

/// Records a connection whose backend was picked just now. What leaves the node is recorded when it is known by which link.
#[inline(always)]
fn recorded<M: Maps>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { header, length, target, record, .. } = desk;
    let length = u32::from(*length);
    if matches!(*record, AIMED | WHOLE) || target.has(Flow::NEEDS_SOURCE) {
        return true;
    }
    if target.has(Flow::ENCAPSULATED) {
        encap::remember(maps, header, target, length, ingress::aimed_by(maps));
        return true;
    }
    ingress::enter(maps, header, target, length).is_ok()
}

/// Finds a client's connection that is under way, unless nothing is known of it. What may be known opens again: the cache may have
/// a record of it.
#[inline(always)]
fn resumes<M: Maps>(maps: &M, desk: &mut Desk, unknown: bool) -> bool {
    if !unknown && connection(maps, desk) {
        return true;
    }
    desk.record = if desk.record == BEGINS && (unknown || !desk.header.opens()) { BEGINS } else { AGAIN };
    false
}

#[inline(never)]
fn connection<M: Maps>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { header, key, length, target, source, record, packets, bytes, .. } = desk;
    *key = flow::key(header, FlowKind::Service);
    ingress::resume(maps, header, key, target, u32::from(*length), |flow| {
        flow.packets += *packets;
        flow.bytes += *bytes;
        *record = AIMED;
        if flow.flags & Flow::FUSED != 0 {
            *source = Source { address: flow.other.destination, port: flow.other.destination_port };
            *record = WHOLE;
        }
    })
}

/// Finds the way to the backend with both translations, unless that is found already.
#[inline(always)]
fn reach<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    desk.target.has(Flow::ENCAPSULATED) || finish(maps, desk)
}

/// Makes both translations, or none.
#[inline(always)]
fn finish<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { header, path, target, .. } = desk;
    path.keep(header);
    (path.destination, path.destination_port) = (target.address, target.port);
    (path.service, path.backend) = (target.service, target.backend);
    !target.has(Flow::NEEDS_SOURCE) || way(maps, desk) && leave(maps, desk)
}

/// The way to the backend. What opens a connection takes the one that others took, where the client's address makes no
/// difference; the packets after it are asked about with all that routes may look at, and on every tick.
#[inline(never)]
fn way<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let Desk { header, onward, length, path, target, record, .. } = desk;
    let kept = *record == BEGINS && header.opens() && settings.flags & Settings::PLAIN_RULES != 0;
    if kept && trail::known(maps, settings, &target.address, *length, target.backend, &mut path.route) {
        return true;
    }
    *onward = *header;
    (onward.destination, onward.destination_port) = (target.address, target.port);
    let found = if kept {
        trail::find(maps, settings, onward, *length, target.backend, &mut path.route)
    } else {
        trail::ask(maps, settings, onward, *length, &mut path.route)
    };
    maps.hide(found.into()) != 0
}

/// Gives the packet the source that it leaves with.
#[inline(always)]
fn leave<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { header, onward, length, path, target, source, record, .. } = desk;
    let length = u32::from(*length);
    let known = match *record {
        WHOLE => true,
        // The stack finds a port for what it began.
        AIMED => egress::keeps(maps, onward, length, source),
        _ => {
            source.address = path.route.own;
            fused::make(maps, header, target, source, length)
        }
    };
    (path.source, path.source_port) = (source.address, source.port);
    known
}

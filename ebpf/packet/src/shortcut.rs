//! The decisions behind the flow cache: where packets from outside go when they need not pass through the kernel's stack.
//! Both translations of a connection, towards the backend and from the node, are made at once, on the same flow table as the
//! programs that see the packet twice.
//!
//! In the kernel each decision is a function of its own, and everything is passed through one desk: the stack is small.

use sluice_ebpf_common::{Address, Flow, FlowKind, Scope};

use crate::cache::Fast;
use crate::egress::{self, Source};
use crate::header::Header;
use crate::ingress::{Target, known, new};
use crate::{flow, service};

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
    pub(crate) route: Route,
}

impl Path {
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
    onward: Header,
    /// Where a client's packet goes.
    target: Target,
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

/// Decides about the connection of the packet on the desk; false leaves the packet to the kernel's stack as it is. Each step
/// is called from here, so that what one needs of the stack is free again for the next.
#[inline(always)]
pub(crate) fn decide<M: Fast>(maps: &M) -> bool {
    let decided = maps.desk(
        #[inline(always)]
        |desk| match begin(maps, desk) {
            ANSWER => true,
            REQUEST => backend(maps, desk) && finish(maps, desk),
            _ => false,
        },
    );
    decided.unwrap_or(false)
}

/// What a packet turned out to be.
const STRANGER: u32 = 0;
const ANSWER: u32 = 1;
const REQUEST: u32 = 2;

/// Settles what was counted, and decides about answers.
#[inline(never)]
fn begin<M: Fast>(maps: &M, desk: &mut Desk) -> u32 {
    settle(maps, desk);
    let Some(settings) = maps.settings() else { return STRANGER };
    desk.path = Path {
        source: desk.header.source,
        destination: desk.header.destination,
        source_port: desk.header.source_port,
        destination_port: desk.header.destination_port,
        service: Flow::NO_SERVICE,
        backend: 0,
        route: Route::default(),
    };
    desk.onward = desk.header;
    let port = u16::from_be(desk.header.destination_port);
    if port < settings.source_port_first || port > settings.source_port_last {
        return REQUEST;
    }
    match back(maps, desk) {
        None => REQUEST,
        Some(true) => ANSWER,
        Some(false) => STRANGER,
    }
}

/// Adds what the record before counted to the service's and the backend's counters.
#[inline(always)]
fn settle<M: Fast>(maps: &M, desk: &Desk) {
    let Desk { packets, bytes, path, .. } = desk;
    if *packets == 0 || path.service == Flow::NO_SERVICE {
        return;
    }
    maps.count_service(path.service, |counters| {
        counters.packets += packets;
        counters.bytes += bytes;
    });
    maps.count_backend(path.backend, |counters| {
        counters.packets += packets;
        counters.bytes += bytes;
    });
}

/// An answer to what left with this node's address: to a pod, or to the client of a backend elsewhere. `None` if it is none,
/// false if it cannot be sent on.
#[inline(always)]
fn back<M: Fast>(maps: &M, desk: &mut Desk) -> Option<bool> {
    let Desk { header, onward, length, path, .. } = desk;
    let (now, bytes) = (maps.now(), u32::from(*length));
    maps.flow(&flow::key(header, FlowKind::MasqueradeReply), |flow| {
        flow::touch(flow, header, now, bytes);
        (onward.destination, onward.destination_port) = (flow.address, flow.port);
    })?;
    (path.destination, path.destination_port) = (onward.destination, onward.destination_port);
    let found = maps.flow(&flow::key(onward, FlowKind::ServiceReply), |flow| {
        flow::touch(flow, header, now, bytes);
        (path.source, path.source_port) = (flow.address, flow.port);
        (path.service, path.backend) = (flow.service, flow.backend);
    });
    Some(found.is_none() || maps.route(onward, *length, &mut path.route))
}

/// Finds the backend that a client's connection to a service has, or picks one.
#[inline(never)]
fn backend<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { header, length, target, .. } = desk;
    let Some(settings) = maps.settings() else { return false };
    let (address, port) = (&header.destination, header.destination_port);
    let frontend = service::find(maps, settings, address, port, header.protocol, Scope::External);
    if frontend.is_none() && !service::is_node_port(maps, settings, address, port) {
        return false;
    }
    if known(maps, header, target, u32::from(*length)) {
        return true;
    }
    target.needs_source = true;
    // A refusal is the stack's to tell.
    frontend.is_some_and(|frontend| new(maps, header, &frontend, target, u32::from(*length)).is_ok())
}

/// Makes both translations, or none.
#[inline(always)]
fn finish<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { onward, length, path, target, .. } = desk;
    (path.destination, path.destination_port) = (target.address, target.port);
    (path.service, path.backend) = (target.service, target.backend);
    (onward.destination, onward.destination_port) = (target.address, target.port);
    !target.needs_source || maps.route(onward, *length, &mut path.route) && leave(maps, desk)
}

/// Gives the packet the source that it leaves with.
#[inline(always)]
fn leave<M: Fast>(maps: &M, desk: &mut Desk) -> bool {
    let Desk { onward, length, path, source, .. } = desk;
    if egress::source(maps, onward, path.route.device, u32::from(*length), source).is_err() {
        return false;
    }
    (path.source, path.source_port) = (source.address, source.port);
    true
}

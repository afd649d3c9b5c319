//! Packets that go out: to the outside on an uplink, to a pod on its link.

use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, RangeKey, Reason, Settings, limits};

use crate::header::{End, Header, Kind, parse, rewrite};
use crate::{InsertError, MARK_NEEDS_SOURCE, Maps, Packet, Scratch, Verdict, error, flow, fragment, fused, nat};

/// A packet on its way to a pod: answers of a backend get the service address back as their source; what a pod sent to
/// itself through a service arrives from the node.
#[inline(always)]
pub fn egress_pod<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let Some(mut header) = parse(packet) else { return Verdict::Pass };
    if header.is_fragment() {
        fragment::complete(maps, &mut header);
    }
    if header.kind == Kind::IcmpError {
        return verdict(maps, error::from_backend(packet, maps, &header));
    }
    if header.kind != Kind::Ports || header.is_echo() {
        return Verdict::Pass;
    }
    if !take_mark(packet) {
        return verdict(maps, from_service(packet, maps, &header).map(|_| ()));
    }
    if maps.settings().is_none() {
        return Verdict::Pass;
    }
    verdict(maps, masquerade(packet, maps, &header))
}

/// A packet on its way out of the node: answers of a backend get the service address back as their source; pods'
/// traffic to the outside, and clients' traffic that was sent on to a backend elsewhere, leaves with the node's address.
#[inline(always)]
pub fn egress_uplink<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let Some(mut header) = parse(packet) else { return Verdict::Pass };
    if header.is_fragment() {
        fragment::complete(maps, &mut header);
    }
    if header.kind == Kind::IcmpError {
        return verdict(maps, error::from_backend(packet, maps, &header));
    }
    let Some(settings) = maps.settings() else { return Verdict::Pass };
    if !take_mark(packet) {
        if header.kind == Kind::Ports && !header.is_echo() {
            match from_service(packet, maps, &header) {
                Ok(false) => {}
                other => return verdict(maps, other.map(|_| ())),
            }
        }
        // Nodes have routes to each other's pods, and an answer to a connection that a node sent on must come back
        // from the pod's own address.
        if !leaves(settings, &header) || maps.is_node(&header.destination) || keeps_source(maps, &header) {
            return Verdict::Pass;
        }
    }
    verdict(maps, masquerade(packet, maps, &header))
}

/// Was it decided on ingress that the source must become this node?
#[inline(always)]
fn take_mark<P: Packet>(packet: &mut P) -> bool {
    let mark = packet.mark();
    if mark & MARK_NEEDS_SOURCE != 0 {
        packet.set_mark(mark & !MARK_NEEDS_SOURCE);
    }
    mark & MARK_NEEDS_SOURCE != 0
}

#[inline(always)]
fn verdict<M: Maps>(maps: &M, result: Result<(), Reason>) -> Verdict {
    match result {
        Ok(()) => Verdict::Pass,
        Err(reason) => {
            maps.count_reason(reason);
            Verdict::Drop(reason)
        }
    }
}

/// Is it a pod's packet to the outside of the cluster?
#[inline(always)]
fn leaves(settings: &Settings, header: &Header) -> bool {
    let family = settings.family(header.v4);
    header.source.within(&family.pod_network, &family.pod_mask)
        && !header.destination.within(&family.cluster_network, &family.cluster_mask)
}

/// Is it bound for one of the places where pods are known by their own addresses?
#[inline(always)]
fn keeps_source<M: Maps>(maps: &M, header: &Header) -> bool {
    maps.in_range(&RangeKey { service: RangeKey::UNMASQUERADED, address: header.destination })
}

/// Gives a backend's answer the service's address; false for anything else.
#[inline(always)]
pub(crate) fn from_service<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<bool, Reason> {
    let (now, bytes) = (maps.now(), packet.length());
    let found = maps.flow(&flow::key(header, FlowKind::ServiceReply), |flow| {
        flow::touch(flow, header, now, bytes);
        (flow.address, flow.port, flow.service, flow.backend)
    });
    let Some((address, port, service, backend)) = found else { return Ok(false) };
    flow::count(maps, service, backend, 1, bytes.into());
    rewrite(packet, header, End::Source, &address, port)?;
    Ok(true)
}

#[inline(always)]
fn masquerade<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<(), Reason> {
    match header.kind {
        Kind::Ports => {}
        // A pod that answers a ping from the outside was asked under its own address.
        Kind::EchoReply | Kind::IcmpError => return Ok(()),
        Kind::Fragment => return Err(Reason::Fragment),
        Kind::Other => return Err(Reason::Protocol),
    }
    let mut from = Source::default();
    source(maps, header, maps.link(), packet.length(), &mut from)?;
    rewrite(packet, header, End::Source, &from.address, from.port)
}

/// What a packet leaves with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Source {
    pub(crate) address: Address,
    pub(crate) port: u16,
}

/// The source that a packet leaves with on a link: what its connection has, or a port that is free. Each step is a function of
/// its own in the kernel, where the stack is small.
#[inline(always)]
pub(crate) fn source<M: Maps>(
    maps: &M,
    header: &Header,
    link: u32,
    bytes: u32,
    from: &mut Source,
) -> Result<(), Reason> {
    if keeps(maps, header, bytes, from) { Ok(()) } else { find(maps, header, link, bytes, from) }
}

/// The source that a packet's connection has.
#[inline(always)]
pub(crate) fn keeps<M: Maps>(maps: &M, header: &Header, bytes: u32, from: &mut Source) -> bool {
    match recorded(maps, header, bytes, from) {
        UNKNOWN => false,
        DIVIDED => fused::stands(maps, header, from),
        _ => true,
    }
}

/// Whether a connection's source is recorded, and if it was divided from an entry that may be gone.
const UNKNOWN: u32 = 0;
const DIVIDED: u32 = 1;
const RECORDED: u32 = 2;

#[inline(never)]
fn recorded<M: Maps>(maps: &M, header: &Header, bytes: u32, from: &mut Source) -> u32 {
    let now = maps.now();
    let found = maps.flow(&flow::key(header, FlowKind::Masquerade), |flow| {
        flow::touch(flow, header, now, bytes);
        *from = Source { address: flow.address, port: flow.port };
        if flow.flags & Flow::FUSED == 0 { RECORDED } else { DIVIDED }
    });
    found.unwrap_or(UNKNOWN)
}

#[inline(never)]
fn find<M: Maps>(maps: &M, header: &Header, link: u32, bytes: u32, from: &mut Source) -> Result<(), Reason> {
    let settings = maps.settings().ok_or(Reason::FlowsFull)?;
    from.address = own_address(maps, settings, link, header.v4);
    let allocated = maps.scratch(
        #[inline(always)]
        |scratch| allocate(maps, settings, header, scratch, &from.address, bytes),
    );
    let (address, port) = allocated.ok_or(Reason::FlowsFull)??;
    *from = Source { address, port };
    Ok(())
}

/// The node's address on a link.
#[inline(always)]
pub(crate) fn own_address<M: Maps>(maps: &M, settings: &Settings, link: u32, v4: bool) -> Address {
    maps.source_address(link, v4).unwrap_or(settings.family(v4).node)
}

/// Takes a port that is free towards the remote end of a reply, and records that direction.
#[inline(always)]
pub(crate) fn claim<M: Maps>(maps: &M, settings: &Settings, reply: &mut FlowKey, flow: &Flow) -> Result<(), Reason> {
    for _ in 0..limits::PORT_PROBES {
        nat::take(maps, settings, reply).ok_or(Reason::PortsExhausted)?;
        match maps.insert_flow(reply, flow) {
            Ok(()) => return Ok(()),
            // Left over from before; its port is taken now.
            Err(InsertError::Exists) => {}
            Err(InsertError::Full) => {
                nat::give(maps, settings, reply);
                return Err(Reason::FlowsFull);
            }
        }
    }
    Err(Reason::PortsExhausted)
}

/// Finds a port of the node that is free towards this destination and records both directions.
#[inline(always)]
fn allocate<M: Maps>(
    maps: &M,
    settings: &Settings,
    header: &Header,
    scratch: &mut Scratch,
    address: &Address,
    bytes: u32,
) -> Result<(Address, u16), Reason> {
    let address = *address;
    let now = maps.now();
    let Scratch { key, reply, flow, .. } = scratch;
    *key = flow::key(header, FlowKind::Masquerade);
    *flow = Flow {
        other: *key,
        address: header.source,
        port: header.source_port,
        service: Flow::NO_SERVICE,
        created: now,
        seen: now,
        ..Flow::default()
    };
    *reply = FlowKey {
        source: header.destination,
        destination: address,
        source_port: header.destination_port,
        destination_port: 0,
        protocol: header.protocol,
        kind: FlowKind::MasqueradeReply as u8,
        reserved: 0,
    };
    claim(maps, settings, reply, flow)?;
    flow.other = *reply;
    flow.address = address;
    flow.port = reply.destination_port;
    flow.packets = 1;
    flow.bytes = u64::from(bytes);
    let made = flow::complete(maps, key, flow);
    if made.is_err() {
        nat::give(maps, settings, reply);
    }
    match made {
        Ok(()) => Ok((address, flow.port)),
        // Another CPU was faster with a packet of the same connection: its port holds.
        Err(InsertError::Exists) => maps.flow(key, |flow| (flow.address, flow.port)).ok_or(Reason::FlowsFull),
        Err(InsertError::Full) => Err(Reason::FlowsFull),
    }
}

//! Packets that come in: from the outside on an uplink, from a pod on its link.

use sluice_ebpf_common::{Backend, Flow, FlowKey, FlowKind, Frontend, Reason, Scope, Settings, protocol};

use crate::header::{End, Header, Kind, parse, parse_quote, rewrite, rewrite_error};
use crate::{InsertError, MARK_NEEDS_SOURCE, Maps, Packet, Verdict, flow, service};

/// The destination that a packet of a service goes to.
#[derive(Clone, Copy)]
struct Target {
    address: u32,
    port: u16,
    needs_source: bool,
    service: u32,
    backend: u32,
}

/// Handles a packet that comes in. Replies to masqueraded connections find their pod again; packets for service
/// addresses find a backend. Anything else passes untouched.
#[inline(always)]
pub fn ingress<P: Packet, M: Maps>(packet: &mut P, maps: &M, scope: Scope) -> Verdict {
    let Some(header) = parse(packet) else { return Verdict::Pass };
    let Some(settings) = maps.settings() else { return Verdict::Pass };
    let result = match header.kind {
        Kind::Fragment | Kind::Other => Ok(()),
        Kind::IcmpError => deliver_error(packet, maps, &header),
        Kind::EchoReply => unmasquerade(packet, maps, &settings, &header).map(|_| ()),
        Kind::Ports => match unmasquerade(packet, maps, &settings, &header) {
            Ok(false) => to_service(packet, maps, &settings, &header, scope),
            other => other.map(|_| ()),
        },
    };
    match result {
        Ok(()) => Verdict::Pass,
        Err(reason) => {
            maps.count_reason(reason);
            // The kernel's own answer (a reset, or the unreachable route) is the right one for a service without
            // endpoints, so such packets go on as they came.
            if reason == Reason::NoEndpoint { Verdict::Pass } else { Verdict::Drop(reason) }
        }
    }
}

#[inline(always)]
fn unmasquerade<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    settings: &Settings,
    header: &Header,
) -> Result<bool, Reason> {
    let number = u16::from_be(header.destination_port);
    if number < settings.source_port_first || number > settings.source_port_last {
        return Ok(false);
    }
    let (now, bytes) = (maps.now(), packet.length());
    let found = maps.flow(&flow::key(header, FlowKind::MasqueradeReply), |flow| {
        flow::touch(flow, header, now, bytes);
        (flow.address, flow.port)
    });
    let Some((address, port)) = found else { return Ok(false) };
    rewrite(packet, header, End::Destination, address, port).ok_or(Reason::Rewrite)?;
    Ok(true)
}

/// An ICMP error (a smaller path MTU, most of all) about a packet that left with this node's address goes on to who sent
/// it: the pod of a masqueraded connection, or the backend whose answer left with the service's address.
#[inline(always)]
fn deliver_error<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<(), Reason> {
    let Some(quote) = parse_quote(packet, header) else { return Ok(()) };
    if quote.kind != Kind::Ports {
        return Ok(());
    }
    // The quoted packet went out, so the connection's incoming direction has its ends swapped.
    let mut key = FlowKey {
        source: quote.destination,
        destination: quote.source,
        source_port: quote.destination_port,
        destination_port: quote.source_port,
        protocol: quote.protocol,
        kind: FlowKind::MasqueradeReply as u8,
        reserved: 0,
    };
    let mut target = maps.flow(&key, |flow| (flow.address, flow.port));
    if target.is_none() {
        key.kind = FlowKind::Service as u8;
        target = maps.flow(&key, |flow| (flow.address, flow.port));
    }
    let Some((address, port)) = target else { return Ok(()) };
    rewrite_error(packet, header, &quote, address, port).ok_or(Reason::Rewrite)
}

#[inline(always)]
fn to_service<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    settings: &Settings,
    header: &Header,
    scope: Scope,
) -> Result<(), Reason> {
    if header.protocol == protocol::ICMP {
        return Ok(());
    }
    let frontend = service::find(maps, settings, header.destination, header.destination_port, header.protocol, scope);
    let target = match frontend {
        Some(frontend) => match known(maps, header, packet.length()) {
            Some(target) => target,
            None => new(maps, header, &frontend, scope, packet.length())?,
        },
        // A service that was deleted: its open connections go on.
        None if service::is_node_port(maps, settings, header.destination, header.destination_port) => {
            let Some(target) = known(maps, header, packet.length()) else { return Ok(()) };
            target
        }
        None => return Ok(()),
    };
    let bytes = u64::from(packet.length());
    maps.count_service(target.service, |counters| {
        counters.packets += 1;
        counters.bytes += bytes;
    });
    maps.count_backend(target.backend, |counters| {
        counters.packets += 1;
        counters.bytes += bytes;
    });
    if target.needs_source {
        packet.set_mark(packet.mark() | MARK_NEEDS_SOURCE);
    }
    rewrite(packet, header, End::Destination, target.address, target.port).ok_or(Reason::Rewrite)
}

/// The target of a connection that is under way, unless it must be picked again: a new connection from the same port
/// (the old one was closed, or its backend is gone), or datagrams for a backend that is gone.
#[inline(always)]
fn known<M: Maps>(maps: &M, header: &Header, bytes: u32) -> Option<Target> {
    let now = maps.now();
    let key = flow::key(header, FlowKind::Service);
    let (target, closed, other) = maps.flow(&key, |flow| {
        let closed = flow.flags & (Flow::FIN | Flow::RST) != 0;
        flow::touch(flow, header, now, bytes);
        let target = Target {
            address: flow.address,
            port: flow.port,
            needs_source: flow.flags & Flow::NEEDS_SOURCE != 0,
            service: flow.service,
            backend: flow.backend,
        };
        (target, closed, flow.other)
    })?;
    if !header.opens() && header.protocol == protocol::TCP {
        return Some(target);
    }
    let backend = maps.backend(target.backend).unwrap_or_default();
    let alive = backend.flags & Backend::USED != 0 && backend.address == target.address && backend.port == target.port;
    if alive && !(closed && header.opens()) {
        return Some(target);
    }
    maps.remove_flow(&key);
    maps.remove_flow(&other);
    None
}

#[inline(always)]
fn new<M: Maps>(maps: &M, header: &Header, frontend: &Frontend, scope: Scope, bytes: u32) -> Result<Target, Reason> {
    let (id, backend) = service::pick(maps, frontend).inspect_err(|_| {
        maps.count_service(frontend.service, |counters| counters.refused += 1);
    })?;
    // A backend elsewhere has to answer through this node, and a pod that reached itself would not answer itself.
    let elsewhere = scope == Scope::External && backend.flags & Backend::LOCAL == 0;
    let needs_source = elsewhere || backend.address == header.source;
    let now = maps.now();
    let key = flow::key(header, FlowKind::Service);
    let reply_key = FlowKey {
        source: backend.address,
        destination: header.source,
        source_port: backend.port,
        destination_port: header.source_port,
        protocol: header.protocol,
        kind: FlowKind::ServiceReply as u8,
        reserved: 0,
    };
    let mut flow = Flow {
        other: key,
        address: header.destination,
        port: header.destination_port,
        flags: 0,
        service: frontend.service,
        backend: id,
        created: now,
        seen: now,
        packets: 0,
        bytes: 0,
    };
    // A leftover of an older connection from the same client port gives way: the backend can know only one of them.
    if maps.insert_flow(&reply_key, &flow) == Err(InsertError::Exists) {
        maps.remove_flow(&reply_key);
        maps.insert_flow(&reply_key, &flow).map_err(|_| Reason::FlowsFull)?;
    }
    flow.other = reply_key;
    flow.address = backend.address;
    flow.port = backend.port;
    flow.flags = if needs_source { Flow::NEEDS_SOURCE } else { 0 };
    flow.packets = 1;
    flow.bytes = u64::from(bytes);
    match flow::complete(maps, &key, &flow) {
        Ok(()) => {}
        // Another CPU was faster with a packet of the same connection: its choice holds.
        Err(InsertError::Exists) => {
            return maps
                .flow(&key, |flow| Target {
                    address: flow.address,
                    port: flow.port,
                    needs_source: flow.flags & Flow::NEEDS_SOURCE != 0,
                    service: flow.service,
                    backend: flow.backend,
                })
                .ok_or(Reason::FlowsFull);
        }
        Err(InsertError::Full) => return Err(Reason::FlowsFull),
    }
    maps.count_service(frontend.service, |counters| counters.connections += 1);
    maps.count_backend(id, |counters| counters.connections += 1);
    Ok(Target { address: backend.address, port: backend.port, needs_source, service: frontend.service, backend: id })
}

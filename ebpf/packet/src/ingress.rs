//! Packets that come in: from the outside on an uplink, from a pod on its link.

use sluice_ebpf_common::{Backend, Flow, FlowKey, FlowKind, Frontend, Reason, Scope, Settings};

use crate::header::{End, Header, Kind, parse, parse_quote, rewrite, rewrite_error};
use crate::path::{self, Paths, Routed};
use crate::straight::{Stage, straight};
use crate::target::Target;
use crate::{
    InsertError, MARK_NEEDS_SOURCE, Maps, Packet, Scratch, Tunnel, Verdict, decap, encap, flow, fragment, fused, nat,
    own, service,
};

/// Handles a packet that a pod sends: what is for another pod of this node is put into it, and what is for the outside leaves at
/// once. Packets for service addresses find a backend before that.
#[inline(always)]
pub fn from_pod<P: Routed, M: Paths>(packet: &mut P, maps: &M) -> Verdict {
    if let Some(verdict) = straight(packet, maps, Stage::Sent) {
        return verdict;
    }
    match by_itself(packet, maps, Scope::Internal) {
        PASSED | TRANSLATED if own::answers(packet, maps) => Verdict::Home,
        PASSED | TRANSLATED => straight(packet, maps, Stage::Looked).unwrap_or(Verdict::Pass),
        code => verdict(code),
    }
}

/// Handles a packet that comes in on an uplink. Replies to masqueraded connections find their pod again; packets for service
/// addresses find a backend, and those that another node sent inside a packet of its own their pod. What is for a pod of
/// this node then is put into it; anything else passes.
#[inline(always)]
pub fn from_outside<P: Routed, M: Paths>(packet: &mut P, maps: &M) -> Verdict {
    if let Some(verdict) = straight(packet, maps, Stage::Came) {
        return verdict;
    }
    match by_itself(packet, maps, Scope::External) {
        PASSED | TRANSLATED if own::answers(packet, maps) => Verdict::Home,
        TRANSLATED => straight(packet, maps, Stage::Came).unwrap_or(Verdict::Pass),
        code => verdict(code),
    }
}

/// What both do to a packet before it is put into a pod or sent on.
#[inline(always)]
pub fn ingress<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, scope: Scope) -> Verdict {
    match by_itself(packet, maps, scope) {
        PASSED | TRANSLATED if own::answers(packet, maps) => Verdict::Home,
        code => verdict(code),
    }
}

/// What [`translate`] says, as one word; a reason stands above the last two.
const PASSED: u32 = 0;
const TRANSLATED: u32 = 1;
const REFUSED: u32 = 2;
const DROPPED: u32 = 3;
const CARRIED: u32 = 4;
const REASON: u32 = 8;

#[inline(always)]
fn verdict(code: u32) -> Verdict {
    let reason = || Reason::ALL.get((code >> REASON) as usize).copied().unwrap_or(Reason::Rewrite);
    match code & ((1 << REASON) - 1) {
        REFUSED => Verdict::Refuse(reason()),
        DROPPED => Verdict::Drop(reason()),
        CARRIED => Verdict::Encapsulate,
        _ => Verdict::Pass,
    }
}

/// A function of its own in the kernel, so that what follows has the small stack for itself. It says its result in one word:
/// the verifier forgets all that led to it before it walks what follows.
#[inline(never)]
fn by_itself<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, scope: Scope) -> u32 {
    translate(packet, maps, scope)
}

/// [`TRANSLATED`] for a packet that goes to a backend or back to a pod now, [`CARRIED`] for one that has to be put into another for that.
#[inline(always)]
fn translate<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, scope: Scope) -> u32 {
    let mut header = Header::default();
    if !read(packet, &mut header) {
        return PASSED;
    }
    if scope == Scope::External && header.is_carrier() {
        return match decap::deliver(packet, maps, &mut header) {
            Ok(()) => TRANSLATED,
            Err(reason) => DROPPED | (reason as u32) << REASON,
        };
    }
    if header.is_fragment() {
        fragment::complete(maps, &mut header);
    }
    let Some(settings) = maps.settings() else { return PASSED };
    let mut done = PASSED;
    let mut target = Target {
        address: header.destination,
        port: header.destination_port,
        flags: 0,
        service: Flow::NO_SERVICE,
        backend: 0,
    };
    let result = match header.kind {
        Kind::Fragment => {
            maps.count_reason(Reason::Fragment);
            Ok(())
        }
        Kind::Other => Ok(()),
        Kind::IcmpError => match deliver_error(packet, maps, &header) {
            Ok(false) if scope == Scope::External => deliver_straight(packet, maps, &header),
            other => other.map(|_| ()),
        },
        Kind::EchoReply => unmasquerade(packet, maps, settings, &header, &mut target).map(|_| ()),
        Kind::Ports => match unmasquerade(packet, maps, settings, &header, &mut target) {
            Ok(false) => to_service(packet, maps, settings, &header, scope, &mut target, &mut done),
            other => {
                done = TRANSLATED;
                other.map(|_| ())
            }
        },
    };
    match result {
        Ok(()) => done,
        Err(reason) => {
            maps.count_reason(reason);
            if reason != Reason::NoEndpoint {
                DROPPED | (reason as u32) << REASON
            } else if maps.is_local(&header.destination) {
                // The kernel answers for its own addresses as for any closed port.
                PASSED
            } else {
                REFUSED | (reason as u32) << REASON
            }
        }
    }
}

/// Reads the headers. A function of its own in the kernel, where the stack is small.
#[inline(never)]
pub(crate) fn read<P: Packet>(packet: &P, header: &mut Header) -> bool {
    let parsed = parse(packet);
    if let Some(parsed) = parsed {
        *header = parsed;
    }
    parsed.is_some()
}

#[inline(always)]
fn unmasquerade<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    settings: &Settings,
    header: &Header,
    target: &mut Target,
) -> Result<bool, Reason> {
    let number = u16::from_be(header.destination_port);
    if number < settings.source_port_first || number > settings.source_port_last {
        return Ok(false);
    }
    let mut found = masqueraded(maps, header, target, packet.length());
    if !found {
        if !fused::join(maps, header) {
            return Err(Reason::FlowsFull);
        }
        found = masqueraded(maps, header, target, packet.length());
    }
    if !found {
        // The node would end a connection that it does not know, and the flow may only not be here yet.
        let waits = maps.holds() && maps.is_local(&header.destination);
        return if waits { Err(Reason::FlowsFull) } else { Ok(false) };
    }
    if target.has(Flow::FUSED) {
        fused::divide(maps, header, FlowKind::MasqueradeReply)?;
    }
    rewrite(packet, header, End::Destination, &target.address, target.port)?;
    Ok(true)
}

/// Finds who sent what a packet answers. A function of its own in the kernel, where the stack is small.
#[inline(never)]
fn masqueraded<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32) -> bool {
    let now = maps.now();
    let found = maps.flow(&flow::key(header, FlowKind::MasqueradeReply), |flow| {
        flow::touch(flow, header, now, bytes);
        *target = Target::of(flow);
    });
    found.is_some()
}

/// An ICMP error (a smaller path MTU, most of all) about a packet that left with this node's address goes on to who sent
/// it: the pod of a masqueraded connection, or the backend whose answer left with the service's address. Rare, and so a
/// function of its own in the kernel, where the stack is small. False if the connection of the packet that it quotes is not known.
#[inline(never)]
fn deliver_error<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<bool, Reason> {
    let quoted = maps.scratch(
        #[inline(always)]
        |scratch| quoted(packet, header, scratch),
    );
    if quoted != Some(true) {
        return Ok(true);
    }
    // It may be about what only opened a connection.
    maps.join();
    let flags = maps.scratch(
        #[inline(always)]
        |scratch| deliver_quoted(packet, maps, header, scratch),
    );
    let flags = maps.hide(flags.unwrap_or(Ok(UNKNOWN))?);
    if flags == UNKNOWN {
        return Ok(false);
    }
    if flags & u32::from(Flow::FUSED) != 0 {
        maps.divide().then_some(()).ok_or(Reason::FlowsFull)?;
    }
    Ok(true)
}

/// No flags of a connection.
const UNKNOWN: u32 = 1 << 16;

/// The same for an error about an answer that went to the client by itself, where this node does not remember the connection: the
/// Service's table says where it goes, as for the client's packets. The quote stands in the scratch space.
#[inline(always)]
fn deliver_straight<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<(), Reason> {
    if !asked(maps) {
        return Ok(());
    }
    let place = maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| {
            let (client, frontend) = (&carried.header, &carried.frontend);
            service::planned(maps, frontend, client, encap::trace(client))
        },
    );
    rename_answer(packet, maps, header, place.unwrap_or(0))
}

/// Makes the quoted answer a packet of the client, and finds the Service that it asks; false unless that is answered straight.
#[inline(never)]
fn asked<M: Maps>(maps: &M) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let direct = maps.scratch(
        #[inline(always)]
        |Scratch { quote, carried, .. }| {
            let (client, frontend) = (&mut carried.header, &mut carried.frontend);
            *client = *quote;
            (client.source, client.source_port) = (quote.destination, quote.destination_port);
            (client.destination, client.destination_port) = (quote.source, quote.source_port);
            client.tcp_flags = 0;
            serves(maps, settings, client, Scope::External, frontend)
                && frontend.flags & Frontend::DIRECT != 0
                && frontend.count != 0
                && service::admits(maps, frontend, &client.source)
        },
    );
    maps.hide(u32::from(direct == Some(true))) != 0
}

/// Sends the error on to the backend at this place, if that is on another node: connections to the others are remembered.
#[inline(never)]
fn rename_answer<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header, place: u32) -> Result<(), Reason> {
    let renamed = maps.scratch(
        #[inline(always)]
        |Scratch { quote, carried, .. }| {
            let Some((_, backend)) = service::at(maps, &carried.frontend, place) else { return Some(()) };
            if backend.flags & Backend::LOCAL != 0 {
                return Some(());
            }
            rewrite_error(packet, header, quote, End::Destination, &(backend.address, backend.port))
        },
    );
    if renamed == Some(Some(())) { Ok(()) } else { Err(Reason::Rewrite) }
}

/// Reads the packet that an error quotes, and makes the key that its answers have.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, header: &Header, scratch: &mut Scratch) -> bool {
    let Scratch { key, quote, .. } = scratch;
    if parse_quote(packet, header, quote).is_none() || quote.kind != Kind::Ports {
        return false;
    }
    *key = back_to(quote);
    true
}

/// The quoted packet went out, so the connection's incoming direction has its ends swapped.
#[inline(always)]
fn back_to(quote: &Header) -> FlowKey {
    FlowKey {
        source: quote.destination,
        destination: quote.source,
        source_port: quote.destination_port,
        destination_port: quote.source_port,
        protocol: quote.protocol,
        kind: FlowKind::MasqueradeReply as u8,
        reserved: 0,
    }
}

#[inline(always)]
fn deliver_quoted<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    header: &Header,
    scratch: &mut Scratch,
) -> Result<u32, Reason> {
    let Scratch { key, quote, .. } = scratch;
    *key = back_to(quote);
    let mut target = maps.flow(key, |flow| (flow.address, flow.port, flow.flags));
    if target.is_none() {
        key.kind = FlowKind::Service as u8;
        target = maps.flow(key, |flow| (flow.address, flow.port, flow.flags));
    }
    let Some((address, port, flags)) = target else { return Ok(UNKNOWN) };
    rewrite_error(packet, header, quote, End::Destination, &(address, port)).ok_or(Reason::Rewrite)?;
    Ok(flags.into())
}

#[inline(always)]
fn to_service<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    settings: &Settings,
    header: &Header,
    scope: Scope,
    target: &mut Target,
    done: &mut u32,
) -> Result<(), Reason> {
    if header.is_echo() {
        return Ok(());
    }
    let mut frontend = Frontend::default();
    let served = serves(maps, settings, header, scope, &mut frontend);
    // The port of a service that was deleted: its open connections go on.
    if !served && !service::is_node_port(maps, settings, &header.destination, header.destination_port) {
        return Ok(());
    }
    if !known(maps, header, target, packet.length()) {
        if !served {
            return Ok(());
        }
        target.flags = if scope == Scope::External { Flow::NEEDS_SOURCE } else { 0 };
        new(maps, header, &frontend, target, packet.length()).inspect_err(|_| {
            maps.count_service(frontend.service, |counters| counters.refused += 1);
        })?;
    }
    if target.has(Flow::FUSED) {
        fused::divide(maps, header, FlowKind::Service)?;
    }
    flow::count(maps, target.service, target.backend, 1, packet.length().into());
    if scope == Scope::External && target.has(Flow::ENCAPSULATED) {
        encap::note(maps, header, target);
        *done = CARRIED;
        return Ok(());
    }
    if target.has(Flow::NEEDS_SOURCE) {
        packet.set_mark(packet.mark() | MARK_NEEDS_SOURCE);
    }
    *done = TRANSLATED;
    rewrite(packet, header, End::Destination, &target.address, target.port)
}

/// Finds the frontend that a packet is for. A function of its own in the kernel, where the stack is small.
#[inline(never)]
pub(crate) fn serves<M: Maps>(
    maps: &M,
    settings: &Settings,
    header: &Header,
    scope: Scope,
    frontend: &mut Frontend,
) -> bool {
    let found = service::find(maps, settings, &header.destination, header.destination_port, header.protocol, scope);
    if let Some(found) = found {
        *frontend = found;
    }
    found.is_some()
}

/// Finds the target of a connection that is under way, unless it must be picked again: a new connection from the same port
/// (the old one was closed, or its backend is gone), or datagrams for a backend that is gone.
#[inline(never)]
pub(crate) fn known<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32) -> bool {
    resume(maps, header, &flow::key(header, FlowKind::Service), target, bytes, |_| {})
}

/// The same; `also` sees the connection's entry.
#[inline(always)]
pub(crate) fn resume<M: Maps>(
    maps: &M,
    header: &Header,
    key: &FlowKey,
    target: &mut Target,
    bytes: u32,
    also: impl FnOnce(&mut Flow),
) -> bool {
    let now = maps.now();
    let found = maps.flow(key, |flow| {
        let closed = flow.flags & (Flow::FIN | Flow::RST) != 0;
        flow::touch(flow, header, now, bytes);
        *target = Target::of(flow);
        also(flow);
        closed
    });
    let Some(closed) = found else { return false };
    if !header.opens() && header.has_connections() {
        return true;
    }
    let backend = maps.backend(target.backend).unwrap_or_default();
    let alive =
        backend.flags & Backend::USED != 0 && backend.address.same(&target.address) && backend.port == target.port;
    if alive && !(closed && header.opens()) {
        return true;
    }
    forget(maps, key);
    target.flags = 0;
    false
}

/// Removes a connection, and gives its port back if it has one. A function of its own in the kernel, where the stack is
/// small.
#[inline(never)]
pub(crate) fn forget<M: Maps>(maps: &M, key: &FlowKey) {
    let Some(other) = maps.flow(key, |flow| flow.other) else { return };
    let removed = maps.remove_flow(&other);
    maps.remove_flow(key);
    if removed
        && other.kind == FlowKind::MasqueradeReply as u8
        && let Some(settings) = maps.settings()
    {
        nat::give(maps, settings, &other);
    }
}

/// Picks a backend for a new connection and records it. The target's flag `NEEDS_SOURCE` says whether a backend elsewhere has to
/// answer through this node. Two functions of their own in the kernel, one after the other, where the stack is small: older
/// kernels count what each function in a chain of calls uses in steps of 32 bytes.
#[inline(always)]
fn new<M: Maps>(maps: &M, header: &Header, frontend: &Frontend, target: &mut Target, bytes: u32) -> Result<(), Reason> {
    let outside = target.has(Flow::NEEDS_SOURCE);
    let trace = encap::trace(header);
    aim_by(maps, trace);
    aim(maps, header, frontend, target)?;
    if outside && encap::applies(maps, header, frontend, target) {
        encap::remember(maps, header, target, bytes, trace);
        return Ok(());
    }
    enter(maps, header, target, bytes)
}

/// Says which connection [`aim`] is about, by its trace: the kernel's stack has no room for it there.
#[inline(always)]
pub(crate) fn aim_by<M: Maps>(maps: &M, trace: u64) {
    maps.scratch(
        #[inline(always)]
        |scratch| scratch.trace = trace,
    );
}

/// The connection's trace again.
#[inline(always)]
pub(crate) fn aimed_by<M: Maps>(maps: &M) -> u64 {
    let trace = maps.scratch(
        #[inline(always)]
        |scratch| scratch.trace,
    );
    trace.unwrap_or(0)
}

/// Picks a backend for a connection.
#[inline(never)]
pub(crate) fn aim<M: Maps>(maps: &M, header: &Header, frontend: &Frontend, target: &mut Target) -> Result<(), Reason> {
    aim_at(maps, header, frontend, target)
}

/// The same where it is, for callers that have room on the kernel's stack: a call costs time.
#[inline(always)]
pub(crate) fn aim_at<M: Maps>(
    maps: &M,
    header: &Header,
    frontend: &Frontend,
    target: &mut Target,
) -> Result<(), Reason> {
    let (id, backend) = choose(maps, header, frontend)?;
    target.address = backend.address;
    target.port = backend.port;
    target.service = frontend.service;
    target.backend = id;
    // A pod that reached itself would not answer itself.
    let elsewhere = target.has(Flow::NEEDS_SOURCE) && backend.flags & Backend::LOCAL == 0;
    let needed = elsewhere || backend.address.same(&header.source);
    target.flags = maps.hide(if needed { Flow::NEEDS_SOURCE.into() } else { 0 }) as u16;
    Ok(())
}

#[inline(never)]
pub(crate) fn enter<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32) -> Result<(), Reason> {
    let recorded = maps
        .scratch(
            #[inline(always)]
            |scratch| record(maps, header, scratch, target, bytes),
        )
        .ok_or(Reason::FlowsFull)??;
    if recorded {
        maps.count(target.service, target.backend, |counters| counters.connections += 1);
    }
    Ok(())
}

/// Records both directions of a new connection; false if another CPU was faster, whose choice then holds.
#[inline(always)]
fn record<M: Maps>(
    maps: &M,
    header: &Header,
    scratch: &mut Scratch,
    target: &mut Target,
    bytes: u32,
) -> Result<bool, Reason> {
    let now = maps.now();
    let Scratch { key, reply, flow, .. } = scratch;
    *key = flow::key(header, FlowKind::Service);
    *reply = FlowKey {
        source: target.address,
        destination: header.source,
        source_port: target.port,
        destination_port: header.source_port,
        protocol: header.protocol,
        kind: FlowKind::ServiceReply as u8,
        reserved: 0,
    };
    *flow = Flow {
        other: *key,
        address: header.destination,
        port: header.destination_port,
        service: target.service,
        backend: target.backend,
        created: now,
        seen: now,
        ..Flow::default()
    };
    match maps.insert_flow(reply, flow) {
        Ok(()) => {}
        // A leftover of an older connection from the same client port gives way: the backend can know only one of them.
        Err(InsertError::Exists) => {
            maps.remove_flow(reply);
            maps.insert_flow(reply, flow).map_err(|_| Reason::FlowsFull)?;
        }
        Err(InsertError::Full) => return Err(Reason::FlowsFull),
    }
    path::note_answer(maps, reply);
    flow.other = *reply;
    flow.address = target.address;
    flow.port = target.port;
    flow.flags = target.flags & Flow::NEEDS_SOURCE;
    flow.packets = 1;
    flow.bytes = u64::from(bytes);
    match flow::complete(maps, key, flow) {
        Ok(()) => Ok(true),
        Err(InsertError::Exists) => {
            *target = maps.flow(key, |flow| Target::of(flow)).ok_or(Reason::FlowsFull)?;
            Ok(false)
        }
        Err(InsertError::Full) => Err(Reason::FlowsFull),
    }
}

#[inline(always)]
fn choose<M: Maps>(maps: &M, header: &Header, frontend: &Frontend) -> Result<(u32, Backend), Reason> {
    if !service::admits(maps, frontend, &header.source) {
        return Err(Reason::SourceRange);
    }
    service::pick(
        maps,
        frontend,
        &service::of_client(header, frontend),
        #[inline(always)]
        || service::planned(maps, frontend, header, aimed_by(maps)),
    )
}

//! Connections through this node to a backend elsewhere, as the driver's program makes them: both ends of their packets
//! change at once, so two entries say everything. Each one's other key, turned round, is what its packets become.
//!
//! What only opens a connection makes but one of them, that of the answers: the first answer makes the other one, so that a
//! flood from clients that are not there costs half as much.
//!
//! The programs on the links change one end at a time, on the way in and on the way out. When one of them meets such a
//! connection (fragments, options, a packet too long for the link), it divides it: two more entries tell the way out what
//! the first two say.

use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Reason, known};

use crate::egress::{self, Source};
use crate::header::Header;
use crate::ingress::Target;
use crate::{Begun, InsertError, Maps, Scratch, encap, flow, hide, nat};

/// Records a new connection from a client through `source`'s address to the target, and finds the port that it leaves with.
/// False if the stack has to see to it: without room, or when another processor was faster.
#[inline(never)]
pub(crate) fn make<M: Maps>(maps: &M, header: &Header, target: &Target, source: &mut Source, bytes: u32) -> bool {
    let made = maps.scratch(
        #[inline(always)]
        |scratch| record(maps, header, scratch, target, source, bytes),
    );
    if made == Some(NEW) {
        maps.count_service(target.service, |counters| counters.connections += 1);
        maps.count_backend(target.backend, |counters| counters.connections += 1);
    }
    hide(made.unwrap_or(FAILED)) != FAILED
}

/// What becomes of a packet that none of a connection's entries knew: it began one, it opens one again, there is no room.
const NEW: u32 = 0;
const AGAIN: u32 = 1;
const FAILED: u32 = 2;

#[inline(always)]
fn record<M: Maps>(
    maps: &M,
    header: &Header,
    scratch: &mut Scratch,
    target: &Target,
    source: &mut Source,
    bytes: u32,
) -> u32 {
    let Some(settings) = maps.settings() else { return FAILED };
    let now = maps.now();
    let Scratch { key, reply, flow, .. } = scratch;
    *key = flow::key(header, FlowKind::Service);
    *reply = FlowKey {
        source: target.address,
        destination: source.address,
        source_port: target.port,
        destination_port: 0,
        protocol: header.protocol,
        kind: FlowKind::MasqueradeReply as u8,
        reserved: 0,
    };
    *flow = Flow {
        other: *key,
        address: header.source,
        port: header.source_port,
        flags: Flow::FUSED,
        service: target.service,
        backend: target.backend,
        created: now,
        seen: now,
        ..Flow::default()
    };
    let trace = known::trace(key);
    if header.opens() {
        (flow.flags, flow.opened_by) = (Flow::FUSED | Flow::HALF, bytes);
        reply.destination_port = begun(maps, trace, target);
        if reply.destination_port != 0 && opens_again(maps, reply, key, now) {
            source.port = reply.destination_port;
            return AGAIN;
        }
    }
    if egress::claim(maps, settings, reply, flow).is_err() {
        return FAILED;
    }
    source.port = reply.destination_port;
    // The kernel's verifier walks what is in between once, as it does not follow what stands there.
    if flow.flags & Flow::HALF != 0 {
        maps.begun(
            encap::place(trace),
            #[inline(always)]
            |begun| *begun = Begun::new(trace, target, source.port),
        );
        maps.flow_created();
        return NEW;
    }
    flow.other = *reply;
    flow.address = target.address;
    flow.port = target.port;
    flow.flags = Flow::FUSED | Flow::NEEDS_SOURCE;
    flow.packets = 1;
    flow.bytes = u64::from(bytes);
    if flow::complete(maps, key, flow).is_ok() {
        return NEW;
    }
    nat::give(maps, settings, reply);
    FAILED
}

/// The port with which this processor let the same connection go on before.
#[inline(always)]
fn begun<M: Maps>(maps: &M, trace: u64, target: &Target) -> u16 {
    let port = maps.begun(
        encap::place(trace),
        #[inline(always)]
        |begun| begun.port(trace, target),
    );
    port.unwrap_or(0)
}

/// Is the connection still being opened that has this entry for its answers?
#[inline(always)]
fn opens_again<M: Maps>(maps: &M, reply: &FlowKey, key: &FlowKey, now: u32) -> bool {
    let found = maps.flow(reply, |flow| {
        flow.seen = now;
        flow.flags & (Flow::HALF | Flow::RST) == Flow::HALF && flow.other.same(key)
    });
    found == Some(true)
}

/// What [`join`] says: both entries are there; the client has another connection by now, and this one is gone; the flow table
/// is full.
pub(crate) const JOINED: u32 = 0;
pub(crate) const STALE: u32 = 1;
const FULL: u32 = 2;

/// Makes the client's entry of a connection that was only opened, now that it is answered.
#[inline(always)]
pub(crate) fn join<M: Maps>(maps: &M, header: &Header) -> u32 {
    maps.scratch(
        #[inline(always)]
        |scratch| scratch.key = flow::key(header, FlowKind::MasqueradeReply),
    );
    join_known(maps)
}

/// The same for the connection whose answers have the key in the scratch space; the client's key stands there then.
#[inline(never)]
pub(crate) fn join_known<M: Maps>(maps: &M) -> u32 {
    let joined = maps.scratch(
        #[inline(always)]
        |scratch| whole(maps, scratch),
    );
    hide(joined.unwrap_or(FULL))
}

#[inline(always)]
fn whole<M: Maps>(maps: &M, scratch: &mut Scratch) -> u32 {
    let Some(settings) = maps.settings() else { return FULL };
    let Scratch { key, reply, flow, .. } = scratch;
    *reply = *key;
    *flow = Flow { other: *reply, address: reply.source, port: reply.source_port, ..Flow::default() };
    let found = maps.flow(reply, |entry| {
        *key = entry.other;
        flow.flags = Flow::FUSED | Flow::NEEDS_SOURCE;
        (flow.service, flow.backend) = (entry.service, entry.backend);
        (flow.created, flow.seen) = (entry.created, entry.seen);
        (flow.packets, flow.bytes) = (1, entry.opened_by.into());
    });
    if found.is_none() {
        return STALE;
    }
    flow::make_known(maps, key);
    match maps.insert_flow(key, flow) {
        Ok(()) => {}
        Err(InsertError::Full) => return FULL,
        // Another processor saw the answer, too; or the client went on by another way meanwhile.
        Err(InsertError::Exists) => {
            if maps.flow(key, |known| known.other.same(reply)) != Some(true) {
                if maps.remove_flow(reply) {
                    nat::give(maps, settings, reply);
                }
                return STALE;
            }
        }
    }
    maps.flow(reply, |entry| {
        entry.flags &= !Flow::HALF;
        entry.opened_by = 0;
    });
    JOINED
}

/// Divides the connection that one of this packet's entries is of, unless that was done already.
#[inline(always)]
pub(crate) fn divide<M: Maps>(maps: &M, header: &Header, kind: FlowKind) -> Result<(), Reason> {
    maps.scratch(
        #[inline(always)]
        |scratch| scratch.key = flow::key(header, kind),
    );
    divide_known(maps)
}

/// Divides the connection of the key in the scratch space.
#[inline(never)]
pub(crate) fn divide_known<M: Maps>(maps: &M) -> Result<(), Reason> {
    maps.scratch(
        #[inline(always)]
        |scratch| apart(maps, scratch),
    )
    .unwrap_or(Ok(()))
}

#[inline(always)]
fn apart<M: Maps>(maps: &M, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch { key, reply, flow, address, port, .. } = scratch;
    let now = maps.now();
    *flow = Flow { created: now, seen: now, ..Flow::default() };
    let found = maps.flow(key, |entry| {
        *reply = entry.other;
        (flow.service, flow.backend) = (entry.service, entry.backend);
    });
    if found.is_none() {
        return Ok(());
    }
    if key.kind == FlowKind::MasqueradeReply as u8 {
        core::mem::swap(key, reply);
    }
    // What the answers leave with, and what the client's packets leave with.
    (flow.address, flow.port) = (key.destination, key.destination_port);
    (*address, *port) = (reply.destination, reply.destination_port);
    (key.destination, key.destination_port) = (reply.source, reply.source_port);
    key.kind = FlowKind::Masquerade as u8;
    (reply.destination, reply.destination_port) = (key.source, key.source_port);
    reply.kind = FlowKind::ServiceReply as u8;
    if names(maps, key, address, *port) && names(maps, reply, &flow.address, flow.port) {
        return Ok(());
    }
    // What is missing may only not be here yet.
    if maps.holds() {
        return Err(Reason::FlowsFull);
    }
    // Of an earlier connection of the same client.
    maps.remove_flow(key);
    maps.remove_flow(reply);
    flow.other = *key;
    insert(maps, reply, flow)?;
    flow.other = *reply;
    (flow.address, flow.port) = (*address, *port);
    flow.flags = Flow::FUSED;
    (flow.service, flow.backend) = (Flow::NO_SERVICE, 0);
    insert(maps, key, flow)
}

#[inline(always)]
fn names<M: Maps>(maps: &M, key: &FlowKey, address: &Address, port: u16) -> bool {
    maps.flow(key, |flow| flow.address.same(address) && flow.port == port) == Some(true)
}

/// Another processor's entry says the same.
#[inline(always)]
fn insert<M: Maps>(maps: &M, key: &FlowKey, flow: &Flow) -> Result<(), Reason> {
    match maps.insert_flow(key, flow) {
        Ok(()) | Err(InsertError::Exists) => Ok(()),
        Err(InsertError::Full) => Err(Reason::FlowsFull),
    }
}

/// Is the connection still there that the entry for its way out was divided from? Else the entry is removed: its port may be
/// another's by now.
#[inline(never)]
pub(crate) fn stands<M: Maps>(maps: &M, header: &Header, from: &Source) -> bool {
    let stands = maps.scratch(
        #[inline(always)]
        |Scratch { key, reply, .. }| {
            *reply = FlowKey {
                source: header.destination,
                destination: from.address,
                source_port: header.destination_port,
                destination_port: from.port,
                protocol: header.protocol,
                kind: FlowKind::MasqueradeReply as u8,
                reserved: 0,
            };
            if names(maps, reply, &header.source, header.source_port) {
                return true;
            }
            *key = flow::key(header, FlowKind::Masquerade);
            maps.remove_flow(key);
            false
        },
    );
    stands == Some(true)
}

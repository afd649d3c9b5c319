//! Connections through this node to a backend elsewhere, as the driver's program makes them: both ends of their packets
//! change at once, so two entries say everything. Each one's other key, turned round, is what its packets become.
//!
//! The programs on the links change one end at a time, on the way in and on the way out. When one of them meets such a
//! connection (fragments, options, a packet too long for the link), it divides it: two more entries tell the way out what
//! the first two say.

use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Reason};

use crate::egress::{self, Source};
use crate::header::Header;
use crate::ingress::Target;
use crate::{InsertError, Maps, Scratch, flow, nat};

/// Records a new connection from a client through `source`'s address to the target, and finds the port that it leaves with.
/// False if the stack has to see to it: without room, or when another processor was faster.
#[inline(never)]
pub(crate) fn make<M: Maps>(maps: &M, header: &Header, target: &Target, source: &mut Source, bytes: u32) -> bool {
    let made = maps.scratch(
        #[inline(always)]
        |scratch| record(maps, header, scratch, target, source, bytes),
    );
    if made != Some(true) {
        return false;
    }
    maps.count_service(target.service, |counters| counters.connections += 1);
    maps.count_backend(target.backend, |counters| counters.connections += 1);
    true
}

#[inline(always)]
fn record<M: Maps>(
    maps: &M,
    header: &Header,
    scratch: &mut Scratch,
    target: &Target,
    source: &mut Source,
    bytes: u32,
) -> bool {
    let Some(settings) = maps.settings() else { return false };
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
    if egress::claim(maps, settings, reply, flow).is_err() {
        return false;
    }
    source.port = reply.destination_port;
    flow.other = *reply;
    flow.address = target.address;
    flow.port = target.port;
    flow.flags = Flow::FUSED | Flow::NEEDS_SOURCE;
    flow.packets = 1;
    flow.bytes = u64::from(bytes);
    let made = flow::complete(maps, key, flow).is_ok();
    if !made {
        nat::give(maps, settings, reply);
    }
    made
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

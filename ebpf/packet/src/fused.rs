//! Connections through this node to a backend elsewhere, as the driver's program makes them: both ends of their packets
//! change at once, so two entries say everything. Each one's other key, turned round, is what its packets become.
//!
//! What only opens a TCP connection makes neither: it stands in a place of its own until the first answer makes both
//! ([`sluice_ebpf_common::opened`]).
//!
//! The programs on the links change one end at a time, on the way in and on the way out. When one of them meets such a
//! connection (fragments, options, a packet too long for the link), it divides it: two more entries tell the way out what
//! the first two say.

use core::sync::atomic::{Ordering, compiler_fence};

use sluice_ebpf_common::opened::{self, Opened};
use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Reason, known, protocol};

use crate::egress::{self, Source};
use crate::header::Header;
use crate::target::Target;
use crate::{Begun, InsertError, Maps, Scratch, encap, flow, nat, path};

/// Records a new connection from a client through `source`'s address to the target, and finds the port that it leaves with.
/// False if the stack has to see to it: without room, or when another processor was faster.
#[inline(never)]
pub(crate) fn make<M: Maps>(maps: &M, header: &Header, target: &Target, source: &mut Source, bytes: u32) -> bool {
    let made = maps.scratch(
        #[inline(always)]
        |scratch| record(maps, header, scratch, target, source, bytes),
    );
    if made == Some(NEW) {
        maps.count(target.service, target.backend, |counters| counters.connections += 1);
    }
    maps.hide(made.unwrap_or(FAILED)) != FAILED
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
    // A connection of before with the same ends could not give way to what is only opened.
    if maps.holds() {
        return FAILED;
    }
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
        reply.destination_port = begun(maps, trace, target);
        if reply.destination_port != 0 && opens_again(maps, reply, key, now) {
            source.port = reply.destination_port;
            return AGAIN;
        }
        if nat::take(maps, settings, reply).is_none() {
            return FAILED;
        }
        source.port = reply.destination_port;
        if open(maps, reply, key, target, bytes, now) {
            maps.begun(
                encap::place(trace),
                #[inline(always)]
                |begun| *begun = Begun::new(trace, target, source.port),
            );
            maps.flow_created();
            return NEW;
        }
        nat::give(maps, settings, reply);
    }
    if egress::claim(maps, settings, reply, flow).is_err() {
        return FAILED;
    }
    source.port = reply.destination_port;
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

/// Is the connection still being opened that has this key for its answers?
#[inline(always)]
fn opens_again<M: Maps>(maps: &M, reply: &FlowKey, key: &FlowKey, now: u32) -> bool {
    let found = find(
        maps,
        reply,
        #[inline(always)]
        |opened| {
            opened.seen = now;
            opened.client.same(key)
        },
    );
    found.is_some_and(|(_, same)| same)
}

/// Puts a connection into one of its places, if one is free.
#[inline(always)]
fn open<M: Maps>(maps: &M, reply: &FlowKey, client: &FlowKey, target: &Target, bytes: u32, now: u32) -> bool {
    let first = opened::place(known::trace(reply));
    let taken = maps.places(opened::bit(first).0).unwrap_or(u64::MAX);
    // Another processor may be faster.
    let Some(place) = opened::free(first, taken).filter(|place| maps.take_place(*place)) else { return false };
    let put = maps.opened(
        place,
        #[inline(always)]
        |opened| {
            (opened.reply, opened.client) = (*reply, *client);
            (opened.service, opened.backend) = (target.service, target.backend);
            (opened.seen, opened.bytes) = (now, bytes);
            compiler_fence(Ordering::Release);
            opened.state = Opened::WAITS;
        },
    );
    put.is_some()
}

/// Lends the place of the connection with this key for its answers, and says which it is.
#[inline(always)]
fn find<M: Maps, R>(maps: &M, reply: &FlowKey, with: impl FnOnce(&mut Opened) -> R) -> Option<(u32, R)> {
    let place = maps.seek(reply)?;
    Some((place, maps.opened(place, with)?))
}

/// The place of a connection that was only opened, by the key for its answers.
#[inline(always)]
pub fn seek<M: Maps>(maps: &M, reply: &FlowKey) -> Option<u32> {
    let first = opened::place(known::trace(reply));
    let taken = maps.places(opened::bit(first).0)?;
    (0..opened::NEAR).map(|step| opened::next(first, step)).find(
        #[inline(always)]
        |place| taken >> opened::bit(*place).1 & 1 == 1 && stands_at(maps, *place, reply),
    )
}

#[inline(always)]
fn stands_at<M: Maps>(maps: &M, place: u32, reply: &FlowKey) -> bool {
    let stands = maps.opened(
        place,
        #[inline(always)]
        |opened| opened.waits() && opened.reply.same(reply),
    );
    stands == Some(true)
}

/// Makes the entries of a connection that was only opened, if this is its first answer; false if there is no room for them.
#[inline(always)]
pub(crate) fn join<M: Maps>(maps: &M, header: &Header) -> bool {
    if header.protocol != protocol::TCP {
        return true;
    }
    maps.scratch(
        #[inline(always)]
        |scratch| scratch.key = flow::key(header, FlowKind::MasqueradeReply),
    );
    maps.join()
}

/// The same for the connection whose answers have the key in the scratch space.
#[inline(always)]
pub fn join_known<M: Maps>(maps: &M) -> bool {
    let joined = maps.scratch(
        #[inline(always)]
        |scratch| whole(maps, scratch),
    );
    joined == Some(true)
}

#[inline(always)]
fn whole<M: Maps>(maps: &M, scratch: &mut Scratch) -> bool {
    let Some(settings) = maps.settings() else { return true };
    let Scratch { key, reply, flow, .. } = scratch;
    *reply = *key;
    let found = find(
        maps,
        reply,
        #[inline(always)]
        |opened| {
            *key = opened.client;
            *flow = Flow {
                other: opened.client,
                address: opened.client.source,
                port: opened.client.source_port,
                flags: Flow::FUSED,
                service: opened.service,
                backend: opened.backend,
                created: opened.seen,
                seen: opened.seen,
                bytes: opened.bytes.into(),
                ..Flow::default()
            };
        },
    );
    let Some((place, ())) = found else { return true };
    let bytes = flow.bytes;
    flow.bytes = 0;
    match maps.insert_flow(reply, flow) {
        Ok(()) => {}
        // Another processor saw the answer, too; or it was left over from before.
        Err(InsertError::Exists) => {
            if maps.flow(reply, |known| known.other.same(key)) != Some(true) {
                maps.remove_flow(reply);
                if maps.insert_flow(reply, flow).is_err() {
                    return false;
                }
            }
        }
        Err(InsertError::Full) => return false,
    }
    (flow.other, flow.address, flow.port) = (*reply, reply.source, reply.source_port);
    (flow.flags, flow.packets, flow.bytes) = (Flow::FUSED | Flow::NEEDS_SOURCE, 1, bytes);
    flow::make_known(maps, key);
    match maps.insert_flow(key, flow) {
        Ok(()) => {}
        Err(InsertError::Full) => {
            maps.remove_flow(reply);
            return false;
        }
        // The client may have gone on by another way meanwhile: this is nobody's answer then.
        Err(InsertError::Exists) => {
            if maps.flow(key, |known| known.other.same(reply)) != Some(true) {
                maps.remove_flow(reply);
                nat::give(maps, settings, reply);
            }
        }
    }
    maps.opened(
        place,
        #[inline(always)]
        |opened| opened.state = 0,
    );
    maps.give_place(place);
    true
}

/// Divides the connection that one of this packet's entries is of, unless that was done already.
#[inline(always)]
pub(crate) fn divide<M: Maps>(maps: &M, header: &Header, kind: FlowKind) -> Result<(), Reason> {
    maps.scratch(
        #[inline(always)]
        |scratch| scratch.key = flow::key(header, kind),
    );
    if maps.divide() { Ok(()) } else { Err(Reason::FlowsFull) }
}

/// Divides the connection of the key in the scratch space; false if there is no room.
#[inline(always)]
pub fn divide_known<M: Maps>(maps: &M) -> bool {
    let divided = maps.scratch(
        #[inline(always)]
        |scratch| apart(maps, scratch),
    );
    divided != Some(false)
}

#[inline(always)]
fn apart<M: Maps>(maps: &M, scratch: &mut Scratch) -> bool {
    let Scratch { key, reply, flow, address, port, .. } = scratch;
    let now = maps.now();
    *flow = Flow { created: now, seen: now, ..Flow::default() };
    let found = maps.flow(key, |entry| {
        *reply = entry.other;
        (flow.service, flow.backend) = (entry.service, entry.backend);
    });
    if found.is_none() {
        return true;
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
        return true;
    }
    // What is missing may only not be here yet.
    if maps.holds() {
        return false;
    }
    // Of an earlier connection of the same client.
    maps.remove_flow(key);
    maps.remove_flow(reply);
    flow.other = *key;
    if !insert(maps, reply, flow) {
        return false;
    }
    path::note_answer(maps, reply);
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
fn insert<M: Maps>(maps: &M, key: &FlowKey, flow: &Flow) -> bool {
    maps.insert_flow(key, flow) != Err(InsertError::Full)
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

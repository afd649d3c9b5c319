//! Direct server return, on the backend's side: what a load balancer put into another packet ([`crate::encap`]) is taken out
//! and goes to the pod that the load balancer chose. From there on it is a connection like any other of a service: answers
//! leave with the service's address, straight to the client.
//!
//! Packets for a service are taken from other nodes alone. Other packets inside packets are none of our business: pods may have
//! tunnels of their own.

use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Frontend, FrontendKey, Reason, Scope, known};

use crate::encap::{Carried, OUTER_V4, OUTER_V6, Tunnel};
use crate::header::{ETHERNET, End, Header, Kind, parse_inner, rewrite};
use crate::ingress::{enter, forget};
use crate::target::Target;
use crate::{Maps, Scratch, flow, fragment, sctp, service};

/// What a packet that carries another one turned out to be, or a [`Reason`] to drop it, above these.
const FOREIGN: u32 = 0;
const OURS: u32 = 1;
const REASONS: u32 = 2;

#[inline(always)]
const fn no(reason: Reason) -> u32 {
    REASONS + reason as u32
}

/// Takes the inner packet out of one that another node sent for a service, and sends it to its pod. The header is the inner
/// packet's then. What each step needs of the kernel's small stack is free again for the next.
#[inline(always)]
pub(crate) fn deliver<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, header: &mut Header) -> Result<(), Reason> {
    if read(packet, maps, header) != OURS {
        return Ok(());
    }
    let reason = match look(maps, header) {
        FOREIGN => return Ok(()),
        OURS => match to_pod(packet, maps, header) {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        },
        told => reason(told),
    };
    maps.count_reason(reason);
    Err(reason)
}

#[inline(always)]
fn to_pod<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, header: &mut Header) -> Result<(), Reason> {
    open(packet, maps, header).ok_or(Reason::Rewrite)?;
    let mut target = Target::default();
    if !settle(maps, header, &mut target, packet.length()) {
        enter(maps, header, &mut target, packet.length())?;
    }
    flow::count(maps, target.service, target.backend, 1, packet.length().into());
    rewrite(packet, header, End::Destination, &target.address, target.port)
}

/// The reason that a step told.
#[inline(always)]
fn reason(told: u32) -> Reason {
    match told.wrapping_sub(REASONS) {
        number if number == Reason::Stranger as u32 => Reason::Stranger,
        number if number == Reason::NotServed as u32 => Reason::NotServed,
        number if number == Reason::SourceRange as u32 => Reason::SourceRange,
        _ => Reason::Fragment,
    }
}

/// Is it for a pod of this node, or for the node itself?
#[inline(always)]
fn to_here<M: Maps>(maps: &M, outer: &Header) -> (bool, bool) {
    let Some(settings) = maps.settings() else { return (false, false) };
    let family = settings.family(outer.v4);
    let to_pod = outer.destination.within(&family.pod_network, &family.pod_mask);
    (to_pod, to_pod || maps.is_local(&outer.destination))
}

/// Reads the inner packet, which then stands in the scratch space.
#[inline(never)]
fn read<P: Tunnel, M: Maps>(packet: &P, maps: &M, outer: &Header) -> u32 {
    let read = maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| {
            let inner = &mut carried.header;
            if parse_inner(packet, outer.v4, outer.transport.into(), inner).is_none() {
                return FOREIGN;
            }
            if inner.is_fragment() {
                fragment::complete(maps, inner);
            }
            OURS
        },
    );
    read.unwrap_or(FOREIGN)
}

/// Is it a client's packet for a service, from a load balancer, for a backend here?
#[inline(never)]
fn look<M: Maps>(maps: &M, outer: &Header) -> u32 {
    let looked = maps.scratch(
        #[inline(always)]
        |Scratch { key, carried, .. }| admit(maps, outer, key, carried),
    );
    looked.unwrap_or(FOREIGN)
}

#[inline(always)]
fn admit<M: Maps>(maps: &M, outer: &Header, key: &mut FlowKey, carried: &mut Carried) -> u32 {
    let (to_pod, here) = to_here(maps, outer);
    if !here {
        return FOREIGN;
    }
    let from_node = maps.is_node(&outer.source);
    let Carried { header: inner, frontend, .. } = carried;
    if inner.kind != Kind::Ports || inner.is_echo() {
        return match inner.kind {
            Kind::Fragment if from_node && to_pod => no(Reason::Fragment),
            _ => FOREIGN,
        };
    }
    let known = find(maps, inner, frontend);
    // A service that is gone: its open connections go on.
    *key = flow::key(inner, FlowKind::Service);
    if !known && maps.flow(key, |_| ()).is_none() {
        return if from_node && to_pod { no(Reason::NotServed) } else { FOREIGN };
    }
    if !from_node {
        return no(Reason::Stranger);
    }
    if !service::admits(maps, frontend, &inner.source) {
        return no(Reason::SourceRange);
    }
    carried.address = outer.destination;
    carried.port = outer.identification.to_be();
    carried.backend = Flow::NO_BACKEND;
    // To count for it: nearly always the table names the same one here.
    if frontend.count != 0
        && let Some((id, backend)) =
            service::at(maps, frontend, service::planned(maps, frontend, inner, known::trace(key)))
        && backend.address.same(&carried.address)
    {
        carried.backend = id;
    }
    OURS
}

/// Finds the frontend of a packet that came to another node: a node port is asked for on that node's addresses.
#[inline(always)]
fn find<M: Maps>(maps: &M, inner: &Header, frontend: &mut Frontend) -> bool {
    *frontend = Frontend { service: Flow::NO_SERVICE, ..Frontend::default() };
    let mut key = FrontendKey {
        address: inner.destination,
        port: inner.destination_port,
        protocol: inner.protocol,
        scope: Scope::External as u8,
    };
    for _ in 0..2 {
        if let Some(found) = maps.frontend(&key) {
            *frontend = found;
            return true;
        }
        key.address.words = [0, 0, if inner.v4 { Address::ANY_V4.words[2] } else { 0 }, 0];
    }
    false
}

/// Takes the outer header off.
#[inline(never)]
fn open<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, header: &mut Header) -> Option<()> {
    let [start] = packet.read_words::<1>(ETHERNET)?;
    let start = u32::from_be(start);
    let (outer, congested) = if header.v4 {
        (OUTER_V4, start & 0x0003_0000 == 0x0003_0000)
    } else {
        (OUTER_V6, start & 0x0030_0000 == 0x0030_0000)
    };
    // An IPv4 header may have options, which none of ours has.
    if u32::from(header.transport) != ETHERNET + outer {
        return None;
    }
    let v4 = header.v4;
    packet.decapsulate(v4)?;
    maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| {
            *header = carried.header;
            if !v4 {
                carried.port = (start as u16).to_be();
            }
        },
    );
    header.ip = ETHERNET as u16;
    header.transport = header.transport.wrapping_sub(outer as u16);
    header.tcp_flags = flags(packet, header)?;
    if congested {
        mark(packet, v4)?;
    }
    Some(())
}

/// What the parser does not read inside of another packet.
#[inline(always)]
fn flags<P: Tunnel>(packet: &P, header: &Header) -> Option<u8> {
    if header.part.is_later() || !header.has_connections() {
        return Some(0);
    }
    let [chunk, flags] = packet.read::<2>(u32::from(header.transport) + 12)?;
    Some(if header.protocol == sluice_ebpf_common::protocol::TCP { flags } else { sctp::flags(chunk) })
}

/// A router marked the outer packet: the inner one says so, if its ends understand (RFC 6040, section 4.2).
#[inline(always)]
fn mark<P: Tunnel>(packet: &mut P, v4: bool) -> Option<()> {
    let [word] = packet.read_words::<1>(ETHERNET)?;
    let value = u32::from_be(word);
    let bits = if v4 { 0x0003_0000 } else { 0x0030_0000 };
    if value & bits == 0 || value & bits == bits {
        return Some(());
    }
    let new = (value | bits).to_be();
    packet.write_words(ETHERNET, [new])?;
    if v4 { packet.fix_ip_checksum(ETHERNET + 10, word, new) } else { Some(()) }
}

/// Where a packet that was taken out goes: to the pod that the load balancer chose. A connection that had another one before
/// begins anew: false.
#[inline(never)]
fn settle<M: Maps>(maps: &M, header: &Header, target: &mut Target, bytes: u32) -> bool {
    let known = maps.scratch(
        #[inline(always)]
        |Scratch { key, carried, .. }| {
            *key = flow::key(header, FlowKind::Service);
            *target = Target {
                address: carried.address,
                port: carried.port,
                service: carried.frontend.service,
                backend: carried.backend,
                ..Target::default()
            };
            let now = maps.now();
            let same = maps.flow(key, |flow| {
                let closed = flow.flags & (Flow::FIN | Flow::RST) != 0;
                let same = flow.address.same(&target.address) && flow.port == target.port;
                if !same || closed && header.opens() {
                    return false;
                }
                flow::touch(flow, header, now, bytes);
                (target.service, target.backend) = (flow.service, flow.backend);
                true
            });
            if same == Some(false) {
                forget(maps, key);
            }
            same == Some(true)
        },
    );
    known == Some(true)
}

//! What the node's own sockets send to services by SCTP: no hook sees its addresses, so it is translated by packet. Service
//! addresses lead to a link of the node's own, the home link, where this is asked on the way out; on the loopback link it
//! is for node ports and for answers of the node's own servers.
//!
//! An answer comes as any packet to the node, and goes in once more by the home link ([`Verdict::Home`]). There it gets the
//! service's address as on a pod's link ([`crate::egress_pod`]), and a strict check of sources finds that the way to this
//! address is the link that the packet came by.

use sluice_ebpf_common::{Flow, FlowKind, Frontend, Reason, Scope, protocol};

use crate::egress::{Source, from_service, source};
use crate::header::{End, Header, Kind, parse_quote, rewrite};
use crate::ingress::{aim as pick, aim_by, enter, known, read, serves};
use crate::target::Target;
use crate::{ETHERNET, Hop, Maps, Packet, Scratch, Tunnel, Verdict, flow, fragment, service};

/// What [`decide`] says, as one word; a reason, a link or a length stands above the last eight.
const PASSED: u64 = 0;
const HOME: u64 = 1;
const ONWARD: u64 = 2;
const REFUSED: u64 = 3;
const DROPPED: u64 = 4;
const TOO_BIG: u64 = 5;
/// It needs a source that is known elsewhere; its header stands in the scratch space.
const LENT: u64 = 6;
const MORE: u32 = 8;

/// Handles a packet that the node sends on its loopback link or its home link.
#[inline(always)]
pub fn from_node<P: Tunnel, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let mut code = decide(packet, maps);
    if code == LENT {
        code = lend_source(packet, maps);
    }
    let more = (code >> MORE) as u32;
    let reason = || Reason::ALL.get(more as usize).copied().unwrap_or(Reason::Rewrite);
    match code & ((1 << MORE) - 1) {
        PASSED => Verdict::Pass,
        HOME => Verdict::Home,
        ONWARD => Verdict::Onward(more),
        REFUSED => Verdict::Refuse(reason()),
        TOO_BIG => Verdict::TooBig(more),
        _ => Verdict::Drop(reason()),
    }
}

/// This and what it calls are functions of their own in the kernel, where the stack is small.
#[inline(never)]
fn decide<P: Tunnel, M: Maps>(packet: &mut P, maps: &M) -> u64 {
    let mut header = Header::default();
    if !read(packet, &mut header) || header.kind != Kind::Ports || header.protocol != protocol::SCTP {
        return unserved(maps, &header);
    }
    if header.is_fragment() {
        fragment::complete(maps, &mut header);
    }
    match send(packet, maps, &mut header) {
        Ok(code) => code,
        Err(reason) => lost(maps, reason, reason == Reason::NoEndpoint),
    }
}

#[inline(always)]
fn lost<M: Maps>(maps: &M, reason: Reason, refused: bool) -> u64 {
    maps.count_reason(reason);
    if refused { REFUSED | (reason as u64) << MORE } else { DROPPED | (reason as u64) << MORE }
}

/// What is no service's goes on, but by the home link it goes nowhere.
#[inline(always)]
fn unserved<M: Maps>(maps: &M, header: &Header) -> u64 {
    if maps.link() != maps.home() {
        return PASSED;
    }
    // An ICMP error must not be answered.
    lost(maps, Reason::NoEndpoint, header.kind == Kind::Ports)
}

#[inline(always)]
fn send<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, header: &mut Header) -> Result<u64, Reason> {
    if answer(packet, maps, header)? {
        return Ok(PASSED);
    }
    let mut target = Target::default();
    if !aim(maps, header, packet.length(), &mut target)? {
        return Ok(unserved(maps, header));
    }
    flow::count(maps, target.service, target.backend, 1, packet.length().into());
    rewrite(packet, header, End::Destination, &target.address, target.port)?;
    if maps.is_local(&target.address) {
        return Ok(if maps.link() == maps.home() { HOME } else { PASSED });
    }
    (header.destination, header.destination_port) = (target.address, target.port);
    if header.source.is_loopback() {
        maps.scratch(
            #[inline(always)]
            |Scratch { carried, .. }| carried.header = *header,
        );
        return Ok(LENT);
    }
    leave(packet, maps, header)
}

/// An answer of the node's own server.
#[inline(never)]
fn answer<P: Tunnel, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<bool, Reason> {
    from_service(packet, maps, header)
}

/// Gives a packet from a loopback address one that is known elsewhere, and finds its link.
#[inline(never)]
fn lend_source<P: Tunnel, M: Maps>(packet: &mut P, maps: &M) -> u64 {
    let header = maps.scratch(
        #[inline(always)]
        |Scratch { carried, .. }| carried.header,
    );
    let Some(mut header) = header else { return DROPPED };
    let mut from = Source::default();
    let lent = source(maps, &header, maps.link(), packet.length(), &mut from)
        .and_then(|()| rewrite(packet, &header, End::Source, &from.address, from.port));
    header.source = from.address;
    lent.and_then(|()| leave(packet, maps, &header)).unwrap_or_else(|reason| lost(maps, reason, false))
}

/// Finds the link that leads to the packet's destination.
#[inline(never)]
fn leave<P: Tunnel, M: Maps>(packet: &P, maps: &M, header: &Header) -> Result<u64, Reason> {
    let mut hop = Hop::default();
    packet.way(&header.source, &header.destination, packet.length().wrapping_sub(ETHERNET), &mut hop);
    if hop.link != 0 {
        return Ok(ONWARD | u64::from(hop.link) << MORE);
    }
    if hop.mtu == 0 {
        return Err(Reason::NoWay);
    }
    maps.count_reason(Reason::TooBig);
    Ok(TOO_BIG | u64::from(hop.mtu) << MORE)
}

/// Finds the backend of the packet's connection, or picks one; false when it is for no service.
#[inline(always)]
fn aim<M: Maps>(maps: &M, header: &Header, bytes: u32, target: &mut Target) -> Result<bool, Reason> {
    let Some(settings) = maps.settings() else { return Ok(false) };
    let mut frontend = Frontend::default();
    let served = serves(maps, settings, header, Scope::Internal, &mut frontend);
    if !served && !service::is_node_port(maps, settings, &header.destination, header.destination_port) {
        // The address of a service that was deleted: its open connections go on.
        return Ok(maps.link() == maps.home() && known(maps, header, target, bytes));
    }
    if known(maps, header, target, bytes) {
        return Ok(true);
    }
    if !served {
        return Ok(false);
    }
    target.flags = 0;
    // A choice by chance needs no trace.
    aim_by(maps, 0);
    let begun = pick(maps, header, &frontend, target).and_then(|()| enter(maps, header, target, bytes));
    begun.inspect_err(|_| maps.count_service(frontend.service, |counters| counters.refused += 1))?;
    Ok(true)
}

/// Does a packet that came in answer one that the node sent to a service, or is it an ICMP error about one? A function of its
/// own in the kernel, which reads the packet once more: the verifier walks it once, not at the end of each way there.
#[inline(never)]
pub(crate) fn answers<P: Packet, M: Maps>(packet: &P, maps: &M) -> bool {
    if maps.home() == 0 {
        return false;
    }
    let mut header = Header::default();
    if !read(packet, &mut header) {
        return false;
    }
    let answers = match header.kind {
        Kind::Ports => known_to_node(maps, &header),
        Kind::IcmpError => quotes(packet, maps, &header),
        _ => false,
    };
    maps.hide(answers.into()) != 0
}

/// Is it a backend's answer to the node?
#[inline(always)]
fn known_to_node<M: Maps>(maps: &M, header: &Header) -> bool {
    let own = header.destination.is_loopback() || maps.is_local(&header.destination);
    header.protocol == protocol::SCTP
        && own
        && maps.flow(&flow::key(header, FlowKind::ServiceReply), |_: &mut Flow| ()).is_some()
}

/// Does it quote a packet of the node to a backend? The other way round that is an answer.
#[inline(always)]
fn quotes<P: Packet, M: Maps>(packet: &P, maps: &M, header: &Header) -> bool {
    let found = maps.scratch(
        #[inline(always)]
        |Scratch { quote, .. }| {
            parse_quote(packet, header, quote)?;
            (quote.source, quote.destination) = (quote.destination, quote.source);
            (quote.source_port, quote.destination_port) = (quote.destination_port, quote.source_port);
            known_to_node(maps, quote).then_some(())
        },
    );
    found.flatten().is_some()
}

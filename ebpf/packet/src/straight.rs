//! Packets that pass the node without its stack: into a pod of this node, from another one or from outside, and from a pod to the
//! outside by the link and the neighbour that the kernel's routes name. What the stack would do to them is done here (one
//! hop less, the Ethernet addresses of the other link, the service's address in place of a backend's); whatever else
//! it might have to say about a packet is left to it: it tells the sender of a packet that is too long for the way.
//!
//! Plain packets only ([`crate::plain`]), by known pods and uplinks alone, so that the stack sees either both directions of a
//! connection or none. A source address that is another pod's, the node's, or nobody's at all is the stack's to judge.

use sluice_ebpf_common::{Address, FlowKey, FrontendKey, PodLink, Reason, Scope, protocol};

use crate::header::{ETHERNET, End, Header, Kind, rewrite};
use crate::path::{self, Kept, LEAVES, Path, Paths, Routed, UNKNOWN};
use crate::plain::{LIFE_4, LIFE_6, Plain, is_end, one_hop_less, plain};
use crate::{MARK_SETTLED, Maps, Packet, Verdict, flow};

/// When a packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A pod sent it.
    Sent,
    /// The same, after it was found out whether it is for a service.
    Looked,
    /// It came from outside.
    Came,
}

/// The way by the stack, as [`find`] says it; else the link's index, with one of the following above it perhaps.
const STACK: u64 = 0;
/// The packet may belong to a service's connection: its source is the backend's then.
const ANSWER: u64 = 1 << 32;
/// It is no link, but the place of a way to the outside.
const LEAVE: u64 = 1 << 33;
/// The packet is half changed.
const BROKEN: u64 = u64::MAX;

/// Sends a packet on past the stack; `None` if that has to see it, and then it is as it was.
#[inline(always)]
pub(crate) fn straight<P: Routed, M: Paths>(packet: &mut P, maps: &M, stage: Stage) -> Option<Verdict> {
    let way = find(packet, maps, stage);
    if way == STACK {
        return None;
    }
    if way == BROKEN || way & ANSWER != 0 && !answer(packet, maps) {
        maps.count_reason(Reason::Rewrite);
        return Some(Verdict::Drop(Reason::Rewrite));
    }
    Some(if way & LEAVE == 0 { Verdict::Into(way as u32) } else { Verdict::Leave(way as u32) })
}

/// Says that everything was decided which the uplink's program would do to a packet on its way out.
#[inline(always)]
pub fn settle<P: Packet>(packet: &mut P) {
    packet.set_mark(MARK_SETTLED);
}

/// Was everything that the uplink's program would do to a packet on its way out decided when the pod sent it?
#[inline(always)]
pub fn settled<P: Packet>(packet: &mut P) -> bool {
    let settled = packet.mark() == MARK_SETTLED;
    if settled {
        packet.set_mark(0);
    }
    settled
}

/// Finds the pod or the uplink, and makes the packet one of that link. A function of its own in the kernel, where the stack is
/// small.
#[inline(never)]
fn find<P: Routed, M: Paths>(packet: &mut P, maps: &M, stage: Stage) -> u64 {
    let Some(plain) = plain(packet) else { return STACK };
    // What has a mark may have a route by it, and what the stack shall do may stand there.
    if plain.hops <= 1 || packet.mark() != 0 || stage == Stage::Came && !packet.is_addressed() {
        return STACK;
    }
    let Some(kept) = Kept::of(maps, &plain) else { return STACK };
    let mut decided = if stage == Stage::Looked { UNKNOWN } else { path::known(packet, maps, &plain, &kept) };
    if decided == UNKNOWN {
        decided = decide(packet, maps, &plain, &kept, stage);
    }
    match decided {
        LEAVES => leave(packet, maps, &plain, &kept, stage),
        Path::INTO => into(packet, maps, &plain, &kept),
        _ => STACK,
    }
}

/// Looks at both ends, and keeps the way with what was found.
#[inline(always)]
fn decide<P: Routed, M: Paths>(packet: &P, maps: &M, plain: &Plain, kept: &Kept, stage: Stage) -> u32 {
    let Plain { key, .. } = plain;
    let Some(to) = maps.pod(&key.destination) else {
        return if stage != Stage::Came && onward(packet, maps, plain, kept, stage) { LEAVES } else { UNKNOWN };
    };
    let from = match stage {
        Stage::Came => packet.is_for_node() && is_outside(maps, key),
        _ => sends(maps, &key.source) && to.link != maps.link(),
    };
    if !from {
        return UNKNOWN;
    }
    path::keep(maps, plain, kept, &to);
    Path::INTO
}

#[inline(always)]
fn into<P: Routed, M: Paths>(packet: &mut P, maps: &M, plain: &Plain, kept: &Kept) -> u64 {
    let to = path::pod(maps, kept);
    if !fits(packet, &to) {
        return STACK;
    }
    let answer = if path::answers_service(maps, plain, kept) { ANSWER } else { 0 };
    let way = u64::from(to.link) | answer;
    if age(packet, plain).is_none() || packet.write_headers(0, to.ethernet).is_none() {
        return BROKEN;
    }
    way
}

/// Before it is known whether a packet is for a service, those alone go onward that are for another node's pod.
#[inline(always)]
fn onward<P: Routed, M: Paths>(packet: &P, maps: &M, plain: &Plain, kept: &Kept, stage: Stage) -> bool {
    let Plain { key, .. } = plain;
    let settled = stage == Stage::Sent;
    if settled && !is_for_pod(maps, key) || !sends(maps, &key.source) || !is_end(&key.destination) {
        return false;
    }
    path::find(packet, maps, plain, kept, if settled { LEAVES } else { UNKNOWN })
}

#[inline(always)]
fn leave<P: Routed, M: Paths>(packet: &mut P, maps: &M, plain: &Plain, kept: &Kept, stage: Stage) -> u64 {
    if age(packet, plain).is_none() {
        return BROKEN;
    }
    // An answer of a service's backend gets the service's address on the uplink.
    if stage == Stage::Sent && !path::answers_service(maps, plain, kept) {
        packet.set_mark(MARK_SETTLED);
    }
    u64::from(kept.place) | LEAVE
}

/// Is it the pod of this link that sends?
#[inline(always)]
fn sends<M: Maps>(maps: &M, source: &Address) -> bool {
    maps.pod(source).is_some_and(|from| from.link == maps.link())
}

/// May the source be a machine outside of this node?
#[inline(always)]
fn is_outside<M: Maps>(maps: &M, key: &FlowKey) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let family = settings.family(key.source.is_v4());
    is_end(&key.source) && !key.source.within(&family.pod_network, &family.pod_mask) && !maps.is_local(&key.source)
}

/// Is it for a pod of the cluster, and no service's address among theirs?
#[inline(always)]
fn is_for_pod<M: Maps>(maps: &M, key: &FlowKey) -> bool {
    let Some(settings) = maps.settings() else { return false };
    let family = settings.family(key.source.is_v4());
    let frontend = FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: Scope::Internal as u8,
    };
    key.destination.within(&family.cluster_network, &family.cluster_mask) && maps.frontend(&frontend).is_none()
}

/// One hop less. With IPv4 the header's sum stays, and with it whatever a card summed up.
#[inline(always)]
fn age<P: Packet>(packet: &mut P, plain: &Plain) -> Option<()> {
    let Plain { life_at, life, .. } = *plain;
    if life_at == LIFE_4 {
        packet.write_headers(LIFE_4, [one_hop_less(life, LIFE_4)])
    } else {
        packet.write_counted(LIFE_6, one_hop_less(life, LIFE_6))
    }
}

#[inline(always)]
fn fits<P: Packet>(packet: &P, to: &PodLink) -> bool {
    packet.length() <= to.mtu + ETHERNET || packet.fits(to.link)
}

/// Gives an answer the service's address. The flow is looked at first and then acted on, not one within the other: the
/// kernel's stack is small.
#[inline(never)]
fn answer<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> bool {
    let mut header = Header::default();
    let mut target = (Address::default(), 0);
    service_of(packet, maps, &mut header, &mut target)
        && rewrite(packet, &header, End::Source, &target.0, target.1).is_ok()
}

#[inline(never)]
fn service_of<P: Packet, M: Maps>(packet: &P, maps: &M, header: &mut Header, target: &mut (Address, u16)) -> bool {
    let Some(Plain { key, transport, .. }) = plain(packet) else { return false };
    let v4 = key.source.is_v4();
    *header = Header {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        ip: ETHERNET as u16,
        transport: transport as u16,
        protocol: key.protocol,
        kind: Kind::Ports,
        v4,
        ..Header::default()
    };
    if key.protocol == protocol::TCP {
        let Some([flags]) = packet.read::<1>(transport + 13) else { return false };
        header.tcp_flags = flags;
    }
    let (now, bytes) = (maps.now(), packet.length());
    let found = maps.flow(&key, |flow| {
        flow::touch(flow, header, now, bytes);
        *target = (flow.address, flow.port);
        (flow.service, flow.backend)
    });
    let Some((service, backend)) = found else { return false };
    flow::count(maps, service, backend, 1, bytes.into());
    true
}

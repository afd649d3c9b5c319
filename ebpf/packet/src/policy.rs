//! Network policies: may a packet come to a pod, or leave it? Asked behind the translation of what a pod sends, and before the
//! translation of what comes to it, so that both see the two ends of a connection as they are.
//!
//! A connection's first packet is judged by the rules of the direction that it opens; the verdict is remembered for both
//! directions, until the pod's generation says that it may be another one. What the node itself sends to its pods, or gets from
//! them, and what a pod sends to itself, is never judged. ICMP errors pass when they quote a packet of an allowed connection.

use sluice_ebpf_common::{Address, Allowed, AllowedKey, Guard, Reason, RuleKey, protocol};

use crate::header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Header, Kind, parse_quote};
use crate::ingress::read;
use crate::{Maps, Packet, Verdict, fragment};

/// Maps that hold policies.
pub trait Policies: Maps {
    /// What holds for the pod behind the link that the packet uses.
    fn guard(&self) -> Option<Guard>;
    /// Who the pod with this address is; 0 when no policy knows it.
    fn peer(&self, address: &Address) -> u32;
    /// Which block that policies name an address is in; 0 for none.
    fn block(&self, address: &Address) -> u32;
    /// What the rule with the longest prefix says: [`RuleKey::ALLOWS`], [`RuleKey::DENIES`], or 0 when there is none.
    fn rule(&self, key: &RuleKey) -> u32;
    /// Runs `change` on a connection that was allowed.
    fn allowed<R>(&self, key: &AllowedKey, change: impl FnOnce(&mut Allowed) -> R) -> Option<R>;
    /// Remembers an allowed connection.
    fn keep_allowed(&self, key: &AllowedKey, allowed: &Allowed);
    /// Lends the place for a packet that is judged, which is this processor's own and holds anything.
    fn judging<R>(&self, with: impl FnOnce(&mut Judging) -> R) -> Option<R>;
}

/// A packet that is judged. The kernel's stack is too small for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Judging {
    guard: Guard,
    header: Header,
    key: AllowedKey,
    /// What is looked up.
    rule: RuleKey,
    /// What is remembered.
    allowed: Allowed,
}

/// May a packet that the pod sent leave its link?
#[inline(always)]
pub fn may_send<P: Packet, M: Policies>(packet: &P, maps: &M) -> Verdict {
    judge(packet, maps, Allowed::BY_POD, 0)
}

/// May a packet reach the pod? `came_by` is the index of the link by which it came to the node, 0 when the node itself sent it.
#[inline(always)]
pub fn may_receive<P: Packet, M: Policies>(packet: &P, maps: &M, came_by: u32) -> Verdict {
    if came_by == 0 { Verdict::Pass } else { judge(packet, maps, Allowed::BY_PEER, came_by) }
}

/// `own` says which end sent the packet.
#[inline(always)]
fn judge<P: Packet, M: Policies>(packet: &P, maps: &M, own: u32, came_by: u32) -> Verdict {
    let passes = maps.judging(
        #[inline(always)]
        |judging| {
            let Some(guard) = maps.guard() else { return true };
            judging.guard = guard;
            !guard.isolates() || passes(packet, maps, judging, own, came_by)
        },
    );
    if passes == Some(true) {
        return Verdict::Pass;
    }
    let reason = if own == Allowed::BY_POD { Reason::PolicyEgress } else { Reason::PolicyIngress };
    maps.count_reason(reason);
    Verdict::Drop(reason)
}

#[inline(always)]
fn passes<P: Packet, M: Policies>(packet: &P, maps: &M, judging: &mut Judging, own: u32, came_by: u32) -> bool {
    if !matches!(packet.ethertype(), ETHERTYPE_IPV4 | ETHERTYPE_IPV6) {
        return true;
    }
    let Judging { guard, header, key, .. } = judging;
    if !read(packet, header) {
        return false;
    }
    if header.is_fragment() {
        fragment::complete(maps, header);
    }
    if header.kind == Kind::Other && header.protocol == protocol::ICMP6 && is_of_link(packet, header) {
        return true;
    }
    let free = match own {
        Allowed::BY_POD => header.source.same(&header.destination) || maps.is_local(&header.destination),
        // What the pod sent comes back: to itself, or as our answer that nobody serves it.
        _ => came_by == maps.link(),
    };
    if free {
        return true;
    }
    if header.kind == Kind::IcmpError {
        return rules(guard, own) == 0 || quotes_allowed(packet, maps, judging, own);
    }
    ends(key, header, own, maps.link());
    let (opens, opener) = (if header.opens() { own } else { 0 }, opener(header, key, own));
    known(maps, judging, opens) || opened(maps, judging, opener)
}

/// Does it belong to neighbour or multicast listener discovery, which IPv6 does not work without?
#[inline(always)]
fn is_of_link<P: Packet>(packet: &P, header: &Header) -> bool {
    matches!(packet.read::<1>(header.transport.into()), Some([130..=137 | 143]))
}

/// The connection of a packet that this end sent.
#[inline(always)]
fn ends(key: &mut AllowedKey, header: &Header, sender: u32, link: u32) {
    let (here, there) = ((header.destination, header.destination_port), (header.source, header.source_port));
    let ((pod, pod_port), (peer, peer_port)) = if sender == Allowed::BY_POD { (there, here) } else { (here, there) };
    *key = AllowedKey { pod, peer, pod_port, peer_port, link, protocol: header.protocol.into() };
}

/// The set of rules for what this end opens.
#[inline(always)]
fn rules(guard: &Guard, opener: u32) -> u32 {
    if opener == Allowed::BY_POD { guard.egress } else { guard.ingress }
}

/// Who is taken for the one that opened a connection that nobody remembers. Packets say so when it opens; in the middle of one
/// (it is older than the pod's first policy, or was forgotten) the end with the larger port is the client, as clients' ports are
/// taken from the upper half. A packet without a connection achieves nothing there.
#[inline(always)]
fn opener(header: &Header, key: &AllowedKey, own: u32) -> u32 {
    if !header.has_connections() || header.part.is_later() || header.opens() {
        return own;
    }
    let other = if own == Allowed::BY_POD { Allowed::BY_PEER } else { Allowed::BY_POD };
    if header.accepts() {
        return other;
    }
    if u16::from_be(key.pod_port) > u16::from_be(key.peer_port) { Allowed::BY_POD } else { Allowed::BY_PEER }
}

/// Is it of a connection that was allowed, and still is? A connection that both ends open is the later one's.
#[inline(never)]
fn known<M: Policies>(maps: &M, judging: &mut Judging, opens: u32) -> bool {
    let now = maps.now();
    let (key, generation) = (&judging.key, judging.guard.generation);
    let found = maps.allowed(
        key,
        #[inline(always)]
        |allowed| {
            if now.wrapping_sub(allowed.seen) > idle(key.protocol) || opens != 0 && opens != allowed.opener {
                return 0;
            }
            if allowed.generation != generation {
                return allowed.opener;
            }
            if allowed.seen != now {
                allowed.seen = now;
            }
            FRESH
        },
    );
    match found {
        None | Some(0) => false,
        Some(FRESH) => true,
        Some(opener) => opened(maps, judging, opener),
    }
}

/// No opener: the verdict holds.
const FRESH: u32 = 4;

/// Seconds after which a connection without packets is forgotten: those of the flow table.
#[inline(always)]
fn idle(number: u32) -> u32 {
    const TCP: u32 = protocol::TCP as u32;
    const SCTP: u32 = protocol::SCTP as u32;
    match number {
        TCP => 86_400,
        SCTP => 210,
        _ => 120,
    }
}

/// Judges a connection as one that this end opened, and remembers it when it is allowed.
#[inline(never)]
fn opened<M: Policies>(maps: &M, judging: &mut Judging, opener: u32) -> bool {
    let Judging { guard, key, rule, allowed, .. } = judging;
    let set = rules(guard, opener);
    let port = if opener == Allowed::BY_POD { key.peer_port } else { key.pod_port };
    let who = RuleKey::ANYBODY;
    *rule = RuleKey { set, who, protocol: key.protocol as u8, port: port.to_ne_bytes(), reserved: 0 };
    if set != 0 && !rules_allow(maps, key, rule) {
        return false;
    }
    *allowed = Allowed { generation: guard.generation, seen: maps.now(), opener };
    maps.keep_allowed(key, allowed);
    true
}

/// The first that says something decides: rules for everybody, for who the peer is as a pod, for the block that it is in.
#[inline(never)]
fn rules_allow<M: Policies>(maps: &M, key: &AllowedKey, rule: &mut RuleKey) -> bool {
    let mut found = maps.rule(rule);
    if found == 0 {
        rule.who = maps.peer(&key.peer);
        if rule.who != RuleKey::ANYBODY {
            found = maps.rule(rule);
        }
    }
    if found == 0 {
        rule.who = maps.block(&key.peer);
        if rule.who != RuleKey::ANYBODY {
            found = maps.rule(rule);
        }
    }
    found == RuleKey::ALLOWS
}

/// Does an error quote a packet of an allowed connection? The end that it goes to sent that packet.
#[inline(never)]
fn quotes_allowed<P: Packet, M: Policies>(packet: &P, maps: &M, judging: &mut Judging, own: u32) -> bool {
    let Judging { header, key, .. } = judging;
    let quoted = maps.scratch(
        #[inline(always)]
        |scratch| {
            let found = parse_quote(packet, header, &mut scratch.quote).is_some();
            let sender = if own == Allowed::BY_POD { Allowed::BY_PEER } else { Allowed::BY_POD };
            ends(key, &scratch.quote, sender, maps.link());
            found
        },
    );
    quoted == Some(true) && known(maps, judging, 0)
}

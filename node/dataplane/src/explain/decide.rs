//! What the packet library looked at and wrote, as decisions for people and programs. Pure.

use std::net::IpAddr;

use serde::Serialize;
use sluice_ebpf_common::{
    Address, Allowed, Backend, Flow, FlowKey, FlowKind, Frontend, FrontendKey, Guard, RangeKey, Reason, RuleKey, Scope,
};

use super::frame::Ends;
use super::model::Note;
use crate::End;
use crate::policy::model::Direction;
use crate::policy::named::Named;
use crate::range::unwire;

/// How a backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Choice {
    /// By chance, anew for each connection.
    Random,
    /// By the table that is the same on all nodes.
    Table,
    /// The client keeps it (session affinity).
    Affinity,
    /// It is the connection's.
    Connection,
}

/// Who allows or denies something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Because {
    /// No policy holds for the pod in this direction.
    NoPolicy,
    /// The node and its own pods, or a pod and itself: never judged.
    NeverJudged,
    /// The connection was allowed before, and nothing has changed since.
    Remembered,
    /// A rule for everybody.
    Everybody,
    /// A rule for the pods that the other end is one of.
    Pods,
    /// A rule for a block of addresses that the other end is in.
    Block,
    /// A rule that denies it, of a policy of the cluster or because no NetworkPolicy allows it.
    Denied,
    /// No rule of the pod's set.
    NoRule,
    /// Nothing is allowed: the node does not know the pod's policies yet.
    Closed,
}

/// One thing that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "about", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Decision {
    /// Nothing is served there.
    NotAService {
        /// What was asked for.
        address: End,
    },
    /// A service is.
    Service {
        /// `namespace/name:port`.
        service: String,
        /// What was asked for.
        address: End,
        /// `internal`: for this node's sockets and pods; `external`: for packets from outside.
        scope: &'static str,
        /// Backends that take new connections.
        backends: u32,
        /// Backends that only keep their connections.
        draining: u32,
        /// The traffic policy leaves this node's backends only.
        local_only: bool,
        /// Seconds for which a client keeps its backend, 0 without affinity.
        affinity_seconds: u32,
    },
    /// The service is for some clients only.
    SourceRanges {
        /// Who asks.
        client: IpAddr,
        /// Is it one of them?
        admitted: bool,
    },
    /// The connection is known.
    Connection {
        /// `service`, `answer`, `masquerade` or `masqueradeAnswer`.
        translation: &'static str,
        /// What it was translated to.
        to: End,
        /// Seconds since its last packet.
        idle_seconds: u32,
    },
    /// The client may keep a backend.
    Affinity {
        /// The one that it keeps.
        #[serde(skip_serializing_if = "Option::is_none")]
        kept: Option<End>,
    },
    /// Who answers.
    Backend {
        /// Where.
        address: End,
        /// `namespace/name` of the pod there.
        #[serde(skip_serializing_if = "Option::is_none")]
        pod: Option<String>,
        /// Runs on this node.
        local: bool,
        /// How it was chosen.
        choice: Choice,
        /// Of how many.
        of: u32,
    },
    /// An end of the packet was changed.
    Translated {
        /// `source` or `destination`.
        end: &'static str,
        /// Before.
        from: End,
        /// After.
        to: End,
    },
    /// The backend is elsewhere, and its answers have to come back by this node.
    NeedsSource,
    /// It leaves with the pod's own address, as a setting says.
    Unmasqueraded {
        /// Where to.
        destination: IpAddr,
    },
    /// Network policies were asked.
    Policy {
        /// `ingress` or `egress`, as the pod sees it.
        direction: &'static str,
        /// Their pod.
        pod: IpAddr,
        /// The other end.
        peer: IpAddr,
        /// What they say.
        allowed: bool,
        /// Why.
        because: Because,
        /// The set of rules, as the maps number them; 0 for none.
        set: u32,
        /// Who the other end is to policies: pods that no policy tells apart have one number; 0 for nobody known.
        identity: u32,
        /// The block of addresses that the other end is in; 0 for none that policies name.
        block: u32,
        /// Policies that hold for the pod in this direction, where the API is known.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        holding: Vec<String>,
        /// Rules of theirs that allow it, where the API is known.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        allowing: Vec<String>,
        /// The rule of a policy of the cluster that denies it, where the API is known.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        denying: Vec<String>,
    },
    /// It is put straight into a pod, past the node's stack.
    Straight {
        /// The node's side of the pod's link.
        link: String,
    },
    /// It leaves at once, past the node's stack.
    Onward {
        /// By this link.
        link: String,
        /// To this neighbour, where it is not the destination itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
    },
    /// The node's stack gets it, and the other programs.
    Stack,
    /// It is put into a packet to the backend's node, which answers the client itself.
    Carried {
        /// The outer packet's ends.
        source: IpAddr,
        /// The backend.
        destination: IpAddr,
    },
    /// The stack's routes.
    Route {
        /// `here`, `forward` or `nowhere`.
        kind: &'static str,
        /// The link that it goes by.
        #[serde(skip_serializing_if = "Option::is_none")]
        link: Option<String>,
        /// The neighbour, where it is not the destination itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
        /// Why nowhere.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It goes into the cluster's tunnel.
    Tunnel {
        /// `VXLAN`.
        kind: &'static str,
        /// The node at its other end.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<IpAddr>,
    },
    /// Something was counted.
    Counted {
        /// The reason's name, as `sluice drops` prints it.
        reason: &'static str,
    },
}

/// What numbers and addresses are called.
pub(super) trait Names {
    fn service(&self, id: u32) -> String;
    fn pod(&self, address: IpAddr) -> Option<String>;
    /// Policies that hold, and rules that decide.
    fn policies(&self, direction: Direction, pod: End, peer: End) -> Named;
}

pub(super) fn end(address: &Address, port: u16) -> End {
    End { address: unwire(*address), port: u16::from_be(port) }
}

/// The decisions of a program that translates.
pub(super) fn translation(
    notes: &[Note],
    before: &Ends,
    after: Option<&Ends>,
    now: u32,
    names: &impl Names,
) -> Vec<Decision> {
    let mut found = Vec::new();
    let frontend = notes
        .iter()
        .rev()
        .find_map(|note| if let Note::Frontend(key, frontend) = note { Some((key, frontend)) } else { None });
    if let Some((key, frontend)) = frontend {
        found.push(service(key, frontend, before, names));
    }
    found.extend(notes.iter().filter_map(|note| match note {
        Note::Range(key, admitted) if key.service != RangeKey::UNMASQUERADED => {
            Some(Decision::SourceRanges { client: unwire(key.address), admitted: *admitted })
        }
        Note::Range(key, true) => Some(Decision::Unmasqueraded { destination: unwire(key.address) }),
        _ => None,
    }));
    let known = known(notes);
    found.extend(known.map(|(key, flow)| connection(key, flow, now)));
    found.extend(frontend.filter(|(_, frontend)| frontend.affinity != 0).and_then(|_| affinity(notes)));
    found.extend(backend(notes, frontend.map(|(_, frontend)| frontend), known, names));
    if notes.iter().any(|note| matches!(note, Note::Made(key, flow) if key.kind == FlowKind::Service as u8 && flow.flags & Flow::NEEDS_SOURCE != 0)) {
        found.push(Decision::NeedsSource);
    }
    if let Some(after) = after {
        found.extend(changes(before, after));
    }
    found.extend(notes.iter().filter_map(|note| match note {
        Note::Reason(reason) => Some(Decision::Counted { reason: reason.name() }),
        _ => None,
    }));
    found
}

/// Which ends changed.
pub(super) fn changes(before: &Ends, after: &Ends) -> impl Iterator<Item = Decision> + use<> {
    let ends = [("source", before.source, after.source), ("destination", before.destination, after.destination)];
    ends.into_iter().filter(|(_, from, to)| from != to).map(|(end, from, to)| Decision::Translated { end, from, to })
}

fn service(key: &FrontendKey, frontend: &Frontend, before: &Ends, names: &impl Names) -> Decision {
    Decision::Service {
        service: names.service(frontend.service),
        address: before.destination,
        scope: if key.scope == Scope::External as u8 { "external" } else { "internal" },
        backends: frontend.count,
        draining: frontend.draining,
        local_only: frontend.flags & Frontend::LOCAL_ONLY != 0,
        affinity_seconds: frontend.affinity,
    }
}

/// The connection's entry that said what to do, unless it gave way to a fresh one.
fn known(notes: &[Note]) -> Option<(&FlowKey, &Flow)> {
    let fresh = |kind: u8| notes.iter().any(|note| matches!(note, Note::Made(key, _) if key.kind == kind));
    notes.iter().find_map(|note| match note {
        Note::Flow(key, flow) if !fresh(key.kind) => Some((key, flow)),
        _ => None,
    })
}

fn connection(key: &FlowKey, flow: &Flow, now: u32) -> Decision {
    let translation = match key.kind {
        0 => "service",
        1 => "answer",
        2 => "masquerade",
        _ => "masqueradeAnswer",
    };
    Decision::Connection { translation, to: end(&flow.address, flow.port), idle_seconds: now.saturating_sub(flow.seen) }
}

fn affinity(notes: &[Note]) -> Option<Decision> {
    let chosen = notes.iter().any(|note| matches!(note, Note::Random));
    notes.iter().find_map(|note| match note {
        Note::Affinity(_, Some(kept)) if !chosen => {
            Some(Decision::Affinity { kept: Some(end(&kept.backend.address, kept.backend.port)) })
        }
        Note::Affinity(..) => Some(Decision::Affinity { kept: None }),
        _ => None,
    })
}

fn backend(
    notes: &[Note],
    frontend: Option<&Frontend>,
    known: Option<(&FlowKey, &Flow)>,
    names: &impl Names,
) -> Option<Decision> {
    let row = |address: End, local: bool, choice: Choice, of: u32| Decision::Backend {
        address,
        pod: names.pod(address.address),
        local,
        choice,
        of,
    };
    let last =
        notes.iter().rev().find_map(|note| if let Note::Backend(_, backend) = note { Some(backend) } else { None });
    let of = frontend.map_or(0, |frontend| frontend.count);
    if let Some((_, flow)) = known.filter(|(key, _)| key.kind == FlowKind::Service as u8) {
        let local = last.is_some_and(|backend| backend.flags & Backend::LOCAL != 0);
        return Some(row(end(&flow.address, flow.port), local, Choice::Connection, of));
    }
    let (frontend, backend) = (frontend?, last?);
    let kept = notes.iter().any(|note| matches!(note, Note::Affinity(_, Some(kept)) if kept.backend == *backend));
    let choice = if notes.contains(&Note::Random) {
        Choice::Random
    } else if frontend.affinity != 0 && kept {
        Choice::Affinity
    } else {
        Choice::Table
    };
    Some(row(end(&backend.address, backend.port), backend.flags & Backend::LOCAL != 0, choice, of))
}

/// The decision of a program that judges; `own` says whose packet it is. One that the node itself sent is not looked at.
pub(super) fn policy(notes: &[Note], ends: &Ends, own: Direction, passes: bool, names: &impl Names) -> Decision {
    let opener = notes.iter().find_map(|note| match note {
        Note::Judged(_, allowed) | Note::Allowed(_, allowed) => Some(allowed.opener),
        _ => None,
    });
    let direction = match opener {
        Some(Allowed::BY_POD) => Direction::Egress,
        Some(_) => Direction::Ingress,
        None => own,
    };
    let (pod, peer) =
        if own == Direction::Egress { (ends.source, ends.destination) } else { (ends.destination, ends.source) };
    let guard = notes.iter().find_map(|note| if let Note::Guard(guard) = note { Some(*guard) } else { None });
    let set = guard.map_or(0, |guard: Guard| if direction == Direction::Egress { guard.egress } else { guard.ingress });
    let number = |pick: fn(&Note) -> Option<u32>| notes.iter().rev().find_map(pick).unwrap_or(0);
    let identity = number(|note| if let Note::Peer(peer) = note { Some(*peer) } else { None });
    let block = number(|note| if let Note::Block(block) = note { Some(*block) } else { None });
    let rule =
        notes.iter().rev().find_map(|note| if let Note::Rule(key, found) = note { Some((key, *found)) } else { None });
    let judged = notes.iter().any(|note| matches!(note, Note::Judged(..)));
    let remembered = notes.iter().any(|note| matches!(note, Note::Allowed(..))) && !judged;
    let isolates = guard.is_some_and(|guard| guard.isolates());
    let because = match rule {
        _ if !passes && set == Guard::CLOSED => Because::Closed,
        Some((_, RuleKey::DENIES)) if !passes => Because::Denied,
        _ if !passes => Because::NoRule,
        _ if remembered => Because::Remembered,
        Some((key, RuleKey::ALLOWS)) if key.who == 0 => Because::Everybody,
        Some((key, RuleKey::ALLOWS)) if key.who == identity => Because::Pods,
        Some((_, RuleKey::ALLOWS)) => Because::Block,
        _ if isolates && !judged || own == Direction::Ingress && guard.is_none() => Because::NeverJudged,
        _ => Because::NoPolicy,
    };
    let named = matches!(because, Because::NeverJudged).then(Default::default);
    let Named { holding, allowing, denying } = named.unwrap_or_else(|| names.policies(direction, pod, peer));
    Decision::Policy {
        direction: if direction == Direction::Egress { "egress" } else { "ingress" },
        pod: pod.address,
        peer: peer.address,
        allowed: passes,
        because,
        set,
        identity,
        block,
        holding,
        allowing,
        denying,
    }
}

/// What to do about a packet that is dropped or refused for a reason.
pub fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::NoEndpoint => {
            "no pod behind the Service is ready: look at `kubectl get endpointslices` and at its pods' readiness"
        }
        Reason::Fragment => "the first fragment was lost or came late: the sender has to send the datagram again",
        Reason::FlowsFull => {
            "the node's flow table is full: end idle connections (`sluice flows`), or spread the load over more nodes"
        }
        Reason::PortsExhausted => {
            "the node has no port left towards this destination: spread the clients over more nodes, or let connections be kept open"
        }
        Reason::Inconsistent => "the table is being changed: try again, and restart the node daemon if it stays so",
        Reason::Rewrite => "the kernel would not change the packet: look at the node's kernel log",
        Reason::Protocol => "only TCP, UDP, SCTP and ICMP echo leave the node with its address",
        Reason::NotHere => {
            "the Service's traffic policy is Local and none of its ready pods runs here: ask a node that has one, or set it to Cluster"
        }
        Reason::SourceRange => "add the client to the Service's spec.loadBalancerSourceRanges",
        Reason::NodePortTaken => "listen on a port outside of the node ports' range",
        Reason::SctpFragment => "let the SCTP ends send shorter packets",
        Reason::Unremembered => "nothing is lost: the connection goes by the table alone",
        Reason::Stranger => {
            "the sender is no node of this cluster, or the node has not heard of it yet: `kubectl get nodes -o wide`"
        }
        Reason::NotServed => {
            "the node that sent it has another picture of the Services: compare `sluice services` on both"
        }
        Reason::NoWay => "add a route to the backend's node: `ip route get` of its address says what is missing",
        Reason::TooBig => "nothing to do: the sender was told the right length",
        Reason::PolicyEgress => {
            "`sluice explain` names the policies that hold; add an egress rule for this destination to a NetworkPolicy that selects the sending pod, unless a policy of the cluster denies it"
        }
        Reason::PolicyIngress => {
            "`sluice explain` names the policies that hold; add an ingress rule for this client to a NetworkPolicy that selects the receiving pod, unless a policy of the cluster denies it"
        }
        Reason::Late => "the pod sends more than its kubernetes.io/egress-bandwidth: raise it",
    }
}

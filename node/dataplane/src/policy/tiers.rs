//! Policies of the whole cluster: with them a pod's set of rules says all there is to say about every peer, as what an earlier
//! tier denies must not be allowed by a later one. Pure.
//!
//! The tiers are asked in their order (admin, NetworkPolicies, baseline) for each class of pods and each block of addresses, and
//! only the outcome is written. A class that fares as the block around it does is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sluice_ebpf_common::RuleKey;

use super::compile::{Compiler, PeerSelector, Places, SetKey, peer_selector};
use super::model::{
    self, Action, Direction, Labels, NamedPort, Peer, Port, Selector, Tier, TierKind, TierName, TierRule, Which,
};
use super::painting::{Entry, Paint, Painting, Span};
use super::ports::called;
use super::rules::Rule;
use crate::Range;
use crate::model::{ObjectName, Protocol};

/// A policy of the cluster in the order in which they are asked.
pub(super) type Placed = (Tier, u32, TierKind, Arc<str>);

/// A rule of a tier, with whom it is for.
struct Line<'a> {
    who: BTreeSet<u32>,
    ports: &'a [Port],
    paint: Paint,
}

/// All of them: the admin tier's, those of NetworkPolicies up to `own`, the baseline tier's.
#[derive(Default)]
struct Lines<'a> {
    all: Vec<Line<'a>>,
    admin: usize,
    own: usize,
    /// Does a NetworkPolicy hold?
    isolated: bool,
}

/// A peer as it is looked up.
struct Cell<'a> {
    id: u32,
    /// The block that its addresses are in, or itself.
    block: u32,
    /// Ports with names; `None` for what is no pod.
    ports: Option<&'a [NamedPort]>,
}

/// What tells peers apart: the lines that they meet, and whether they do as pods; their ports.
type Fate<'a> = (Vec<(usize, bool)>, &'a [NamedPort]);

impl Compiler {
    /// The cluster's policies that hold for a pod, in their order.
    pub(super) fn placed(&self, (space, _): &ObjectName, labels: &Labels) -> Vec<Placed> {
        let Some(home) = self.namespaces.get(space) else { return Vec::new() };
        let holding = self.tiers.iter().filter(|(_, it)| it.namespaces.matches(home) && it.pods.matches(labels));
        let mut placed: Vec<Placed> =
            holding.map(|((kind, name), it)| (it.tier, it.priority, *kind, name.clone())).collect();
        placed.sort_unstable();
        placed
    }

    /// Does any of the cluster's policies name nodes?
    pub(crate) fn names_nodes(&self) -> bool {
        let rules = self.tiers.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        rules.flat_map(|rule| &rule.matches.peers).any(|peer| matches!(peer, Peer::Nodes(_)))
    }

    /// What the cluster's policies speak of, as [`Compiler::collect`] for others; everything is in a block, so that each address
    /// finds what becomes of it.
    pub(super) fn collect_tiers(
        &self,
        selectors: &mut BTreeSet<PeerSelector>,
        names: &mut BTreeSet<(Arc<str>, Protocol)>,
        blocks: &mut BTreeSet<Range>,
    ) {
        if self.active_tiers.is_empty() {
            return;
        }
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        blocks.extend(all.into_iter().filter_map(|address| Range::new(address, 0)));
        for policy in self.active_tiers.iter().filter_map(|(_, _, kind, name)| self.tiers.get(&(*kind, name.clone()))) {
            for rule in policy.ingress.iter().chain(&policy.egress) {
                for peer in &rule.matches.peers {
                    match peer {
                        Peer::Pods(namespaces, pods) => {
                            selectors.insert(peer_selector(&Arc::default(), namespaces, pods));
                        }
                        Peer::Block(cidr, except) => blocks.extend(except.iter().chain([cidr]).copied()),
                        Peer::Nodes(selector) => blocks.extend(self.nodes_with(selector)),
                        Peer::Nobody => {}
                    }
                }
            }
            for Port { protocol, which } in policy.egress.iter().flat_map(|rule| &rule.matches.ports) {
                if let Which::Named(port) = which {
                    names.insert((port.clone(), *protocol));
                }
            }
        }
    }

    /// Addresses of nodes, as blocks.
    pub(super) fn nodes_with<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = Range> + 'a {
        let nodes = self.nodes.values().filter(|node| selector.matches(&node.labels));
        let addresses = nodes.flat_map(|node| node.addresses.iter().copied());
        addresses.filter_map(|address| Range::new(address, if address.is_ipv4() { 32 } else { 128 }))
    }

    /// Lengths of blocks' prefixes, where policies of the cluster make it matter which block a pod is in.
    pub(super) fn block_lengths(&self) -> BTreeSet<u32> {
        let all = self.tables.blocks.keys().filter(|_| !self.active_tiers.is_empty());
        all.map(|range| range.bits()).collect()
    }

    /// The block that an address is looked up as; 0 for none.
    pub(super) fn block_of(&self, lengths: &BTreeSet<u32>, address: IpAddr) -> u32 {
        let lead = if address.is_ipv4() { 96 } else { 0 };
        let ranges =
            lengths.iter().rev().filter_map(|bits| Range::new(address, u8::try_from(bits.checked_sub(lead)?).ok()?));
        ranges.filter_map(|range| self.tables.blocks.get(&range)).next().copied().unwrap_or(0)
    }

    /// All that is to be said for a pod that policies of the cluster hold for.
    pub(super) fn tier_rules(&self, key: &SetKey, places: &Places) -> BTreeSet<Rule> {
        let lines = self.lines(key, places);
        let blocks = self.tables.blocks.values().map(|id| Cell { id: *id, block: *id, ports: None });
        let classes =
            places.classes.iter().map(|(id, class)| Cell { id: *id, block: class.block, ports: Some(&class.ports) });
        let mut made: BTreeMap<Fate<'_>, Arc<Vec<Entry>>> = BTreeMap::new();
        let mut found: BTreeMap<u32, Arc<Vec<Entry>>> = BTreeMap::new();
        for cell in blocks.chain(classes.clone()) {
            let entries =
                made.entry(fate(&lines.all, &cell)).or_insert_with_key(|fate| Arc::new(paint(key, &lines, fate)));
            found.insert(cell.id, entries.clone());
        }
        let mut others = found.values();
        if let Some(first) = others.next()
            && others.all(|other| other == first)
        {
            return rules(RuleKey::ANYBODY, first).collect();
        }
        for cell in classes.filter(|cell| cell.id != cell.block) {
            if found.get(&cell.id) == found.get(&cell.block) {
                found.remove(&cell.id);
            }
        }
        found.iter().flat_map(|(who, entries)| rules(*who, entries)).collect()
    }

    /// The rules of all tiers in their order.
    fn lines(&self, key: &SetKey, places: &Places) -> Lines<'_> {
        let nowhere = Arc::default();
        let line = |space, rule: &'_ model::Rule, paint| {
            let who = self.who(space, &rule.peers, places).into_iter().collect();
            (who, paint)
        };
        let of = |tier: Tier| {
            let placed = key.tiers.iter().filter(move |placed| placed.0 == tier);
            let policies = placed.filter_map(|(_, _, kind, name)| self.tiers.get::<TierName>(&(*kind, name.clone())));
            policies.flat_map(|policy| policy.rules(key.direction))
        };
        let placed = |rule: &'_ TierRule| -> (BTreeSet<u32>, Paint) {
            let paint = match rule.action {
                Action::Accept => Paint::Allowed,
                Action::Deny => Paint::Denied,
                Action::Pass => Paint::Passed,
            };
            line(&nowhere, &rule.matches, paint)
        };
        let mut lines = Lines { isolated: !key.policies.is_empty(), ..Lines::default() };
        for rule in of(Tier::Admin) {
            let (who, paint) = placed(rule);
            lines.all.push(Line { who, ports: &rule.matches.ports, paint });
        }
        lines.admin = lines.all.len();
        for name in &key.policies {
            let rules = self.policies.get(name).and_then(|policy| policy.rules(key.direction));
            for rule in rules.into_iter().flatten() {
                let (who, paint) = line(&name.0, rule, Paint::Allowed);
                lines.all.push(Line { who, ports: &rule.ports, paint });
            }
        }
        lines.own = lines.all.len();
        // A NetworkPolicy decides about everything.
        for rule in of(Tier::Baseline).filter(|_| key.policies.is_empty()) {
            let (who, paint) = placed(rule);
            lines.all.push(Line { who, ports: &rule.matches.ports, paint });
        }
        lines
    }
}

/// The lines that a peer meets.
fn fate<'a>(lines: &[Line<'_>], cell: &Cell<'a>) -> Fate<'a> {
    let met = lines.iter().enumerate().filter_map(|(at, line)| {
        let itself = line.who.contains(&RuleKey::ANYBODY) || line.who.contains(&cell.id);
        (itself || line.who.contains(&cell.block)).then_some((at, itself && cell.ports.is_some()))
    });
    (met.collect(), cell.ports.unwrap_or_default())
}

fn paint(key: &SetKey, lines: &Lines<'_>, (met, ports): &Fate<'_>) -> Vec<Entry> {
    let mut painting = Painting::new();
    let mut met = met.iter().peekable();
    for end in [lines.admin, lines.own, lines.all.len()] {
        while let Some((at, as_pod)) = met.next_if(|(at, _)| *at < end) {
            if !painting.is_done() {
                let line = &lines.all[*at];
                let spans = spans(key, line.ports, if *as_pod { ports } else { &[] });
                spans.into_iter().for_each(|span| painting.paint(span, line.paint));
            }
        }
        // The next tier is asked about what this one passed on, and what it said nothing of.
        painting.replace(Paint::Passed, Paint::Open);
        if end == lines.own && lines.isolated {
            painting.replace(Paint::Open, Paint::Denied);
        }
    }
    painting.entries()
}

/// Destination ports: named ones are the pod's own, or those of the peer as a pod.
fn spans(key: &SetKey, wanted: &[Port], peers: &[NamedPort]) -> Vec<Span> {
    if wanted.is_empty() {
        return vec![None];
    }
    let mut spans = Vec::new();
    for port in wanted {
        match &port.which {
            Which::All => spans.push(Some((port.protocol, 0, u16::MAX))),
            Which::Numbers(first, last) => spans.push(Some((port.protocol, *first, *last))),
            Which::Named(name) => {
                let known = if key.direction == Direction::Ingress { &key.ports } else { peers };
                spans.extend(called(known, name, port.protocol).map(|number| Some((port.protocol, number, number))));
            }
            Which::None => {}
        }
    }
    spans
}

fn rules(who: u32, entries: &[Entry]) -> impl Iterator<Item = Rule> {
    entries.iter().map(move |(protocol, port, bits, denies)| Rule {
        who,
        protocol: *protocol,
        port: *port,
        bits: *bits,
        denies: *denies,
    })
}

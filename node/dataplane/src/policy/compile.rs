//! The policy compiler: keeps policies, pods, namespaces and this node's links, and makes tables of them. Pure.
//!
//! Which policies hold for a pod of the node, and which selectors a pod of the cluster meets, is worked out when one of the two
//! changes, and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_ebpf_common::{Guard, RuleKey};

use super::model::{
    Direction, Labels, NamedPort, Namespaces, Node, Peer, Pod, Policy, Port, Selector, Snapshot, TierName, TierPolicy,
    Which,
};
use super::ports::{called, prefixes};
use super::rules::{Rule, Sets, Tables};
use super::tiers::Placed;
use crate::intern::Texts;
use crate::model::{ObjectName, Protocol};
use crate::range::wire;

/// Pods that rules name: those of one namespace, or of all with such labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Home {
    Named(Arc<str>),
    Labelled(Selector),
}

pub(super) type PeerSelector = (Home, Selector);

/// What tells pods apart: the selectors that they meet, and their ports with names that egress rules use.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    selectors: Vec<u32>,
    pub(super) ports: Vec<NamedPort>,
    /// The block that their addresses are in, where policies of the cluster hold.
    pub(super) block: u32,
}

/// What decides a set of rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetKey {
    pub(super) direction: Direction,
    pub(super) policies: Vec<ObjectName>,
    pub(super) tiers: Vec<Placed>,
    /// The pod's own, for rules of what comes to it.
    pub(super) ports: Vec<NamedPort>,
}

struct Known {
    pod: Pod,
    /// Ids of the selectors that it meets, in order.
    selectors: Vec<u32>,
}

/// A pod of this node.
struct Local {
    name: ObjectName,
    /// As it was last seen: a pod that is gone from the API is guarded until its link goes.
    pod: Option<(Labels, Vec<NamedPort>)>,
    policies: Vec<ObjectName>,
    /// Those of the cluster, in their order.
    tiers: Vec<Placed>,
    changed: bool,
}

/// The compiler with all it knows.
#[derive(Default)]
pub(crate) struct Compiler {
    texts: Texts,
    pub(super) namespaces: BTreeMap<Arc<str>, Labels>,
    pods: BTreeMap<ObjectName, Known>,
    pub(super) policies: BTreeMap<ObjectName, Policy>,
    pub(super) tiers: BTreeMap<TierName, TierPolicy>,
    pub(super) nodes: BTreeMap<Arc<str>, Node>,
    locals: BTreeMap<u32, Local>,
    changed_pods: BTreeSet<ObjectName>,
    changed_policies: BTreeSet<ObjectName>,
    /// Policies that hold for a pod of this node.
    active: BTreeSet<ObjectName>,
    pub(super) active_tiers: BTreeSet<Placed>,
    changed_tiers: BTreeSet<TierName>,
    /// Namespaces or nodes that policies of the cluster may name are others now.
    homes_changed: bool,
    selectors: BTreeMap<PeerSelector, u32>,
    names: BTreeSet<(Arc<str>, Protocol)>,
    classes: BTreeMap<Class, u32>,
    sets: BTreeMap<SetKey, u32>,
    /// Ids below are taken, or were.
    next: u32,
    pub(super) tables: Tables,
}

impl Compiler {
    /// Gives out ids from this one on.
    pub(crate) fn new(first: u32) -> Compiler {
        Compiler { next: first.max(1), ..Compiler::default() }
    }

    /// Knows all of this and nothing else.
    pub(crate) fn replace(&mut self, snapshot: Snapshot) {
        let gone = |known: Vec<ObjectName>, has: &dyn Fn(&ObjectName) -> bool| -> Vec<ObjectName> {
            known.into_iter().filter(|name| !has(name)).collect()
        };
        for name in gone(self.pods.keys().cloned().collect(), &|name| snapshot.pods.contains_key(name)) {
            self.set_pod(&name, None);
        }
        for name in gone(self.policies.keys().cloned().collect(), &|name| snapshot.policies.contains_key(name)) {
            self.set_policy(&name, None);
        }
        let spaces: Vec<Arc<str>> = self.namespaces.keys().cloned().collect();
        for name in spaces.iter().filter(|name| !snapshot.namespaces.contains_key(*name)) {
            self.set_namespace(name, None);
        }
        for name in self.tiers.keys().filter(|name| !snapshot.tiers.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.set_tier(&name, None);
        }
        for name in self.nodes.keys().filter(|name| !snapshot.nodes.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.set_node(&name, None);
        }
        for (name, node) in snapshot.nodes {
            self.set_node(&name, Some(node));
        }
        for (name, labels) in snapshot.namespaces {
            self.set_namespace(&name, Some(labels));
        }
        for (name, pod) in snapshot.pods {
            self.set_pod(&name, Some(pod));
        }
        for (name, policy) in snapshot.policies {
            self.set_policy(&name, Some(policy));
        }
        for (name, policy) in snapshot.tiers {
            self.set_tier(&name, Some(policy));
        }
    }

    /// A pod is so now, or gone; true if that is news.
    pub(crate) fn set_pod(&mut self, name: &ObjectName, pod: Option<Pod>) -> bool {
        if self.pods.get(name).map(|known| &known.pod) == pod.as_ref() {
            return false;
        }
        let mut name = name.clone();
        self.texts.share_name(&mut name);
        match pod {
            Some(mut pod) => {
                pod.labels.texts().for_each(|text| self.texts.share(text));
                pod.ports.iter_mut().for_each(|port| self.texts.share(&mut port.name));
                for local in self.locals.values_mut().filter(|local| local.name == name) {
                    local.pod = Some(seen(&pod));
                    local.changed = true;
                }
                self.pods.insert(name.clone(), Known { pod, selectors: Vec::new() });
            }
            None => drop(self.pods.remove(&name)),
        }
        self.changed_pods.insert(name);
        true
    }

    /// A namespace has such labels now, or is gone.
    pub(crate) fn set_namespace(&mut self, name: &Arc<str>, labels: Option<Labels>) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.clone(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        let first = (name.clone(), Arc::default());
        let pods = self.pods.range(first..).map(|(name, _)| name).take_while(|(space, _)| space == name);
        self.changed_pods.extend(pods.cloned());
        self.homes_changed |= !self.tiers.is_empty();
        true
    }

    /// A policy is so now, or gone.
    pub(crate) fn set_policy(&mut self, name: &ObjectName, policy: Option<Policy>) -> bool {
        if self.policies.get(name) == policy.as_ref() {
            return false;
        }
        match policy {
            Some(policy) => drop(self.policies.insert(name.clone(), policy)),
            None => drop(self.policies.remove(name)),
        }
        self.changed_policies.insert(name.clone());
        true
    }

    /// A policy of the cluster is so now, or gone.
    pub(crate) fn set_tier(&mut self, name: &TierName, policy: Option<TierPolicy>) -> bool {
        let changed = self.tiers.get(name) != policy.as_ref();
        match policy {
            Some(policy) => drop(self.tiers.insert(name.clone(), policy)),
            None => drop(self.tiers.remove(name)),
        }
        if changed {
            self.changed_tiers.insert(name.clone());
        }
        changed
    }

    /// A node is so now, or gone.
    pub(crate) fn set_node(&mut self, name: &Arc<str>, node: Option<Node>) -> bool {
        let changed = self.nodes.get(name) != node.as_ref();
        match node {
            Some(node) => drop(self.nodes.insert(name.clone(), node)),
            None => drop(self.nodes.remove(name)),
        }
        self.homes_changed |= changed && !self.tiers.is_empty();
        changed
    }

    /// The pod behind a link of this node.
    pub(crate) fn set_link(&mut self, link: u32, name: ObjectName) {
        let pod = self.pods.get(&name).map(|known| seen(&known.pod));
        if let Some(local) = self.locals.get(&link)
            && local.name == name
            && (pod.is_none() || local.pod == pod)
        {
            return;
        }
        self.locals.insert(link, Local { name, pod, policies: Vec::new(), tiers: Vec::new(), changed: true });
    }

    /// A link is gone.
    pub(crate) fn forget_link(&mut self, link: u32) {
        self.locals.remove(&link);
    }

    /// Links of this node's pods.
    pub(crate) fn links(&self) -> impl Iterator<Item = (u32, ObjectName)> {
        self.locals.iter().map(|(link, local)| (*link, local.name.clone()))
    }

    /// Pods that the API has.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.pods.keys()
    }

    /// Addresses of those pods; of two with the same one that which stays.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (IpAddr, ObjectName)> {
        let of = |deleting| self.pods.iter().filter(move |(_, known)| known.pod.deleting == deleting);
        let pairs = |(name, known): (&ObjectName, &Known)| {
            known.pod.addresses.iter().map(|address| (*address, name.clone())).collect::<Vec<_>>()
        };
        of(true).chain(of(false)).flat_map(pairs)
    }

    /// What everything known so far makes.
    pub(crate) fn compile(&mut self) -> &Tables {
        let changed_policies = mem::take(&mut self.changed_policies);
        let changed_pods = mem::take(&mut self.changed_pods);
        self.apply_policies(&changed_policies);
        let tiers = self.apply_tiers();
        let changed_tiers = mem::take(&mut self.changed_tiers);
        let homes = mem::take(&mut self.homes_changed);
        let active: BTreeSet<ObjectName> =
            self.locals.values().flat_map(|local| local.policies.iter().cloned()).collect();
        let policies = tiers || active != self.active || !changed_policies.is_disjoint(&active);
        self.active = active;
        let blocks = policies && self.collect();
        for name in &changed_pods {
            if let Some(known) = self.pods.get_mut(name) {
                let met =
                    self.selectors.iter().filter(|(selector, _)| meets(&self.namespaces, selector, name, &known.pod));
                known.selectors = met.map(|(_, id)| *id).collect();
                known.selectors.sort_unstable();
            }
        }
        let classes = (policies || !changed_pods.is_empty()) && self.classify();
        let mut changed = policies || classes;
        for local in self.locals.values_mut() {
            changed |= mem::take(&mut local.changed);
        }
        if changed || self.tables.guards.len() != self.locals.len() {
            self.make_sets(classes || blocks || homes, &changed_policies, &changed_tiers);
        }
        &self.tables
    }

    /// Finds the policies of this node's pods.
    fn apply_policies(&mut self, changed: &BTreeSet<ObjectName>) {
        for local in self.locals.values_mut() {
            let Some((labels, _)) = &local.pod else { continue };
            let first = (local.name.0.clone(), Arc::default());
            let own = |(space, _): &ObjectName| *space == local.name.0;
            if local.changed {
                let all = self.policies.range(first..).take_while(|(name, _)| own(name));
                let held = all.filter(|(_, policy)| policy.pods.matches(labels));
                local.policies = held.map(|(name, _)| name.clone()).collect();
                continue;
            }
            for name in changed.range(first..).take_while(|name| own(name)) {
                let holds = self.policies.get(name).is_some_and(|policy| policy.pods.matches(labels));
                match (holds, local.policies.binary_search(name)) {
                    (true, Err(at)) => local.policies.insert(at, name.clone()),
                    (false, Ok(at)) => drop(local.policies.remove(at)),
                    _ => continue,
                }
                local.changed = true;
            }
        }
    }

    /// Finds those of the cluster; true if there are any whose rules may be others now.
    fn apply_tiers(&mut self) -> bool {
        let changed = self.homes_changed || !self.changed_tiers.is_empty();
        let of = |local: &Local| {
            let (labels, _) = local.pod.as_ref()?;
            (changed || local.changed).then(|| self.placed(&local.name, labels))
        };
        let found: Vec<(u32, Vec<Placed>)> =
            self.locals.iter().filter_map(|(link, local)| Some((*link, of(local)?))).collect();
        for (link, tiers) in found {
            if let Some(local) = self.locals.get_mut(&link)
                && local.tiers != tiers
            {
                local.tiers = tiers;
                local.changed = true;
            }
        }
        let active: BTreeSet<Placed> = self.locals.values().flat_map(|local| local.tiers.iter().cloned()).collect();
        let differs = active != self.active_tiers;
        self.active_tiers = active;
        differs || changed && !self.active_tiers.is_empty()
    }

    /// Collects what the active policies speak of: selectors, names of ports, blocks. True if there is a block more or less.
    fn collect(&mut self) -> bool {
        let (mut selectors, mut names, mut blocks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for name in &self.active {
            let Some(policy) = self.policies.get(name) else { continue };
            let (ingress, egress) = (policy.ingress.iter().flatten(), policy.egress.iter().flatten());
            for peer in ingress.chain(egress.clone()).flat_map(|rule| &rule.peers) {
                match peer {
                    Peer::Pods(namespaces, pods) => drop(selectors.insert(peer_selector(&name.0, namespaces, pods))),
                    Peer::Block(cidr, except) => blocks.extend(except.iter().chain([cidr]).copied()),
                    Peer::Nodes(_) | Peer::Nobody => {}
                }
            }
            for Port { protocol, which } in egress.flat_map(|rule| &rule.ports) {
                if let Which::Named(port) = which {
                    names.insert((port.clone(), *protocol));
                }
            }
        }
        self.collect_tiers(&mut selectors, &mut names, &mut blocks);
        self.names = names;
        let gone: BTreeSet<u32> =
            self.selectors.iter().filter(|(selector, _)| !selectors.contains(*selector)).map(|(_, id)| *id).collect();
        if !gone.is_empty() {
            self.selectors.retain(|_, id| !gone.contains(id));
            for known in self.pods.values_mut() {
                known.selectors.retain(|id| !gone.contains(id));
            }
        }
        for selector in selectors {
            if self.selectors.contains_key(&selector) {
                continue;
            }
            let id = self.id();
            // Ids only grow, so that each pod's stay in order.
            for (name, known) in &mut self.pods {
                if meets(&self.namespaces, &selector, name, &known.pod) {
                    known.selectors.push(id);
                }
            }
            self.selectors.insert(selector, id);
        }
        let known = mem::take(&mut self.tables.blocks);
        for range in blocks {
            let id = known.get(&range).copied().unwrap_or_else(|| self.id());
            self.tables.blocks.insert(range, id);
        }
        !self.tables.blocks.keys().eq(known.keys())
    }

    /// Gives every pod its class; true if there is one more or less.
    fn classify(&mut self) -> bool {
        let old = mem::take(&mut self.classes);
        let mut peers = BTreeMap::new();
        let lengths = self.block_lengths();
        // Of two pods with one address the one that stays is meant.
        for deleting in [true, false] {
            for known in self.pods.values().filter(|known| known.pod.deleting == deleting) {
                let used = |port: &&NamedPort| self.names.contains(&(port.name.clone(), port.protocol));
                let mut ports: Vec<NamedPort> = known.pod.ports.iter().filter(used).cloned().collect();
                ports.sort_unstable();
                ports.dedup();
                for address in &known.pod.addresses {
                    if known.selectors.is_empty() && ports.is_empty() {
                        peers.insert(wire(*address), 0);
                        continue;
                    }
                    let block = self.block_of(&lengths, *address);
                    let class = Class { selectors: known.selectors.clone(), ports: ports.clone(), block };
                    let id = self.classes.get(&class).or_else(|| old.get(&class)).copied().unwrap_or_else(|| {
                        self.next += 1;
                        self.next - 1
                    });
                    self.classes.insert(class, id);
                    peers.insert(wire(*address), id);
                }
            }
        }
        peers.retain(|_, id| *id != 0);
        self.tables.peers = peers;
        !self.classes.keys().eq(old.keys())
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Makes the guards of this node's pods and their sets: all of them anew, or those with one of these policies.
    fn make_sets(&mut self, all: bool, changed: &BTreeSet<ObjectName>, changed_tiers: &BTreeSet<TierName>) {
        let (mut made, mut sets) = (BTreeMap::new(), BTreeMap::new());
        let mut next = self.next;
        let mut guards = BTreeMap::new();
        let places = Places::of(&self.classes);
        for (link, local) in &self.locals {
            let Some((_, ports)) = &local.pod else {
                guards.insert(*link, [Guard::CLOSED; 2]);
                continue;
            };
            let guard: Sets = [Direction::Ingress, Direction::Egress].map(|direction| {
                let says =
                    |name: &&ObjectName| self.policies.get(*name).is_some_and(|it| it.rules(direction).is_some());
                let policies: Vec<ObjectName> = local.policies.iter().filter(says).cloned().collect();
                let speaks = |(_, _, kind, name): &&Placed| {
                    self.tiers.get(&(*kind, name.clone())).is_some_and(|it| !it.rules(direction).is_empty())
                };
                let tiers: Vec<Placed> = local.tiers.iter().filter(speaks).cloned().collect();
                if policies.is_empty() && tiers.is_empty() {
                    return 0;
                }
                let ports = if direction == Direction::Ingress { ports.clone() } else { Vec::new() };
                let key = SetKey { direction, policies, tiers, ports };
                if let Some(id) = made.get(&key) {
                    return *id;
                }
                let id = self.sets.get(&key).copied().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                let other = |(_, _, kind, name): &Placed| changed_tiers.contains(&(*kind, name.clone()));
                let stays =
                    !all && !key.policies.iter().any(|name| changed.contains(name)) && !key.tiers.iter().any(other);
                let rules = match self.tables.sets.get(&id).filter(|_| stays) {
                    Some(rules) => rules.clone(),
                    None => {
                        let rules = self.rules(&key, &places);
                        // What did not change is told by its place.
                        self.tables.sets.get(&id).filter(|known| ***known == rules).cloned().unwrap_or(Arc::new(rules))
                    }
                };
                sets.insert(id, rules);
                made.insert(key, id);
                id
            });
            guards.insert(*link, guard);
        }
        self.next = next;
        self.sets = made;
        self.tables.guards = guards;
        self.tables.sets = sets;
    }

    fn rules(&self, key: &SetKey, places: &Places) -> BTreeSet<Rule> {
        if !key.tiers.is_empty() {
            return self.tier_rules(key, places);
        }
        let mut all = BTreeSet::new();
        for name in &key.policies {
            let Some(rules) = self.policies.get(name).and_then(|policy| policy.rules(key.direction)) else { continue };
            for rule in rules {
                let who = self.who(&name.0, &rule.peers, places);
                if rule.ports.is_empty() {
                    all.extend(who.iter().map(|who| anything(*who)));
                }
                for port in &rule.ports {
                    self.port_rules(key, port, &who, places, &mut all);
                }
            }
        }
        all
    }

    fn port_rules(&self, key: &SetKey, port: &Port, who: &[u32], places: &Places, all: &mut BTreeSet<Rule>) {
        let protocol = port.protocol.number();
        let mut add = |who: u32, first: u16, last: u16| {
            all.extend(prefixes(first, last).into_iter().map(|(port, bits)| Rule {
                who,
                protocol,
                port,
                bits: RuleKey::ANY_NUMBER + bits,
                denies: false,
            }));
        };
        match &port.which {
            Which::All => who.iter().for_each(|who| add(*who, 0, u16::MAX)),
            Which::Numbers(first, last) => who.iter().for_each(|who| add(*who, *first, *last)),
            Which::Named(name) if key.direction == Direction::Ingress => {
                for number in called(&key.ports, name, port.protocol) {
                    who.iter().for_each(|who| add(*who, number, number));
                }
            }
            // The port of whoever it goes to.
            Which::Named(name) => {
                for (id, class) in &places.classes {
                    if who.contains(id) || who.contains(&RuleKey::ANYBODY) {
                        called(&class.ports, name, port.protocol).for_each(|number| add(*id, number, number));
                    }
                }
            }
            Which::None => {}
        }
    }

    /// Whom peers of a policy mean: classes of pods and blocks, or anybody.
    pub(super) fn who(&self, space: &Arc<str>, peers: &[Peer], places: &Places) -> Vec<u32> {
        if peers.is_empty() {
            return vec![RuleKey::ANYBODY];
        }
        let mut who = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::Pods(namespaces, pods) => {
                    let id = self.selectors.get(&peer_selector(space, namespaces, pods));
                    who.extend(id.and_then(|id| places.meeting.get(id)).into_iter().flatten());
                }
                Peer::Block(cidr, except) => {
                    let inside = self.tables.blocks.range(*cidr..).take_while(|(range, _)| cidr.contains(**range));
                    let left = inside.filter(|(range, _)| !except.iter().any(|except| except.contains(**range)));
                    who.extend(left.map(|(_, id)| *id));
                }
                Peer::Nodes(selector) => {
                    who.extend(self.nodes_with(selector).filter_map(|address| self.tables.blocks.get(&address)));
                }
                Peer::Nobody => {}
            }
        }
        who.into_iter().collect()
    }
}

/// Classes by id, and those that meet each selector.
pub(super) struct Places {
    pub(super) classes: Vec<(u32, Class)>,
    meeting: BTreeMap<u32, Vec<u32>>,
}

impl Places {
    fn of(classes: &BTreeMap<Class, u32>) -> Places {
        let mut meeting: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (class, id) in classes {
            class.selectors.iter().for_each(|selector| meeting.entry(*selector).or_default().push(*id));
        }
        Places { classes: classes.iter().map(|(class, id)| (*id, class.clone())).collect(), meeting }
    }
}

fn anything(who: u32) -> Rule {
    Rule { who, protocol: 0, port: 0, bits: RuleKey::ANY_PORT, denies: false }
}

fn seen(pod: &Pod) -> (Labels, Vec<NamedPort>) {
    let mut ports = pod.ports.to_vec();
    ports.sort_unstable();
    (pod.labels.clone(), ports)
}

pub(super) fn peer_selector(space: &Arc<str>, namespaces: &Namespaces, pods: &Selector) -> PeerSelector {
    let home = match namespaces {
        Namespaces::Own => Home::Named(space.clone()),
        Namespaces::Labelled(selector) => Home::Labelled(selector.clone()),
    };
    (home, pods.clone())
}

fn meets(
    namespaces: &BTreeMap<Arc<str>, Labels>,
    (home, pods): &PeerSelector,
    (space, _): &ObjectName,
    pod: &Pod,
) -> bool {
    let at_home = match home {
        Home::Named(name) => name == space,
        Home::Labelled(selector) => namespaces.get(space).is_some_and(|labels| selector.matches(labels)),
    };
    at_home && pods.matches(&pod.labels)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;

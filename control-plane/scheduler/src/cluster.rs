//! The planner's picture of the cluster, kept up to date change by change: nodes with running sums, and counts per node of
//! the pods each selector in use matches, so that no pod is ever recounted. Fed by the driver; does no IO.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::limits;
use crate::node::{Node, NodeSpec};
use crate::pod::{Matching, Pod, Term};
use crate::wishes::{self, Found, Wishes};

/// Marks a node that lacks a topology label.
pub const NO_DOMAIN: u32 = u32::MAX;
/// Weight with which a placed pod's required affinity attracts the pods it looks for (upstream's hardPodAffinityWeight).
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// What [`Cluster::set_node`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The node is new.
    Added,
    /// Something that matters to scheduling differs.
    Changed,
    /// Nothing that matters differs.
    Same,
}

/// For each node slot the domain its topology label puts it in.
#[derive(Debug)]
pub struct Column {
    /// Domain number by node slot, [`NO_DOMAIN`] without the label.
    pub of: Vec<u32>,
    /// Number of domains.
    pub domains: usize,
}

/// Pods a selector matches, by node slot.
#[derive(Debug)]
struct MatchGroup {
    matching: Arc<Matching>,
    counts: Vec<u32>,
}

/// Placed pods that carry a term, by node slot, weighted.
#[derive(Debug)]
pub struct TermGroup {
    /// The term.
    pub term: Arc<Term>,
    /// Sum of the carriers' weights by node slot.
    pub weights: Vec<i64>,
    carriers: usize,
}

/// Nodes, placed pods and their counts.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<Node>,
    by_name: HashMap<Arc<str>, usize>,
    live: Vec<usize>,
    placed: HashMap<Arc<str>, usize>,
    namespaces: HashMap<Box<str>, BTreeMap<String, String>>,
    groups: HashMap<Box<str>, MatchGroup>,
    repelling: HashMap<Box<str>, TermGroup>,
    attracting: HashMap<Box<str>, TermGroup>,
    owners: HashMap<Arc<str>, HashMap<usize, u32>>,
    columns: HashMap<Box<str>, Arc<Column>>,
    images: HashMap<Box<str>, u32>,
    nominated: HashMap<Arc<str>, Vec<Arc<Pod>>>,
    wishes: HashMap<String, Wishes>,
}

impl Cluster {
    /// Slots of the nodes the API has.
    pub fn live(&self) -> &[usize] {
        &self.live
    }

    /// The node in a slot.
    pub fn node(&self, slot: usize) -> &Node {
        &self.nodes[slot]
    }

    /// The placed pod with this uid.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.nodes[*self.placed.get(uid)?].pods.get(uid)
    }

    /// Uids of placed pods.
    pub fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.placed.keys()
    }

    /// On how many nodes an image is present.
    pub fn image_spread(&self, image: &str) -> u32 {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// A namespace's labels.
    pub fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)
    }

    /// Takes in a node as the API has it now.
    pub fn set_node(&mut self, spec: NodeSpec) -> NodeChange {
        let slot = self.slot(&spec.name);
        let node = &mut self.nodes[slot];
        if node.present && node.spec == spec {
            return NodeChange::Same;
        }
        let change = if node.present { NodeChange::Changed } else { NodeChange::Added };
        if node.spec.labels != spec.labels || !node.present {
            self.columns.clear();
        }
        let old = std::mem::replace(&mut node.spec, spec);
        if node.present {
            for name in old.images.keys() {
                decrement(&mut self.images, name);
            }
        } else {
            node.present = true;
            self.live.push(slot);
        }
        let spec = &self.nodes[slot].spec;
        for name in spec.images.keys() {
            *self.images.entry(name.clone()).or_default() += 1;
        }
        self.wishes.values_mut().for_each(|wishes| wishes.set(slot, spec));
        change
    }

    /// Forgets a node. Pods still bound to it keep being counted until they go.
    pub fn remove_node(&mut self, name: &str) {
        let Some(&slot) = self.by_name.get(name) else { return };
        let node = &mut self.nodes[slot];
        if !node.present {
            return;
        }
        node.present = false;
        for name in std::mem::take(&mut node.spec.images).keys() {
            decrement(&mut self.images, name);
        }
        self.live.retain(|s| *s != slot);
        self.columns.clear();
    }

    /// Takes in a namespace's labels; true when they changed.
    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) -> bool {
        if self.namespaces.get(name) == Some(&labels) {
            return false;
        }
        self.namespaces.insert(name.into(), labels);
        self.groups.retain(|_, g| g.matching.namespace_selector.is_none());
        true
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
        self.groups.retain(|_, g| g.matching.namespace_selector.is_none());
    }

    /// Counts `pod` on `node` (bound or assumed), replacing what was known of it.
    pub fn place(&mut self, pod: Arc<Pod>, node: &Arc<str>) {
        self.remove(&pod.uid);
        let slot = self.slot(node);
        self.count(&pod, slot, 1);
        self.placed.insert(pod.uid.clone(), slot);
        self.nodes[slot].add(pod);
    }

    /// Counts a pod out; returns it if it was placed.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let slot = self.placed.remove(uid)?;
        let pod = self.nodes[slot].remove(uid)?;
        self.count(&pod, slot, -1);
        Some(pod)
    }

    /// Reserves room on `node` for a pod that preemption made room for.
    pub fn nominate(&mut self, pod: Arc<Pod>, node: &Arc<str>) {
        self.forget_nominated(&pod.uid);
        self.nominated.entry(node.clone()).or_default().push(pod);
    }

    /// Drops such a reservation.
    pub fn forget_nominated(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|p| &*p.uid != uid);
            !pods.is_empty()
        });
    }

    /// Pods with room reserved on a node.
    pub fn nominated(&self, node: &str) -> &[Arc<Pod>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// What pods with the wishes of this one find, by node slot. Worked out once, then kept up to date.
    pub(crate) fn found(&mut self, pod: &Pod) -> Arc<Vec<Found>> {
        let key = wishes::key(pod);
        if !self.wishes.contains_key(&key) && self.wishes.len() >= limits::WISHES {
            self.wishes.clear();
        }
        let nodes = self.nodes.iter().map(|node| &node.spec);
        self.wishes.entry(key).or_insert_with(|| Wishes::new(pod, nodes)).on.clone()
    }

    /// The domains of a topology label.
    pub fn column(&mut self, key: &str) -> Arc<Column> {
        if let Some(column) = self.columns.get(key) {
            // Slots of nodes not seen by the API may have been added since; they have no labels.
            if column.of.len() == self.nodes.len() {
                return column.clone();
            }
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut of = vec![NO_DOMAIN; self.nodes.len()];
        for &slot in &self.live {
            if let Some(value) = self.nodes[slot].spec.labels.get(key) {
                let next = u32::try_from(numbers.len()).unwrap_or(NO_DOMAIN);
                of[slot] = *numbers.entry(value).or_insert(next);
            }
        }
        let column = Arc::new(Column { of, domains: numbers.len() });
        self.columns.insert(key.into(), column.clone());
        column
    }

    /// Pods that `matching` means, by node slot. Counted once, then kept up to date.
    pub fn counts(&mut self, matching: &Arc<Matching>) -> &[u32] {
        if !self.groups.contains_key(&matching.key) {
            if self.groups.len() >= limits::COUNT_GROUPS {
                self.groups.clear();
            }
            let counts = self
                .nodes
                .iter()
                .map(|n| n.pods.values().filter(|p| matching.matches(p, |ns| self.namespaces.get(ns))).count() as u32)
                .collect();
            self.groups.insert(matching.key.clone(), MatchGroup { matching: matching.clone(), counts });
        }
        &self.groups[&matching.key].counts
    }

    /// Terms with which placed pods keep others away.
    pub fn repelling(&self) -> impl Iterator<Item = &TermGroup> {
        self.repelling.values()
    }

    /// Terms with which placed pods prefer (or dislike) others.
    pub fn attracting(&self) -> impl Iterator<Item = &TermGroup> {
        self.attracting.values()
    }

    /// Pods of one controller, by node slot.
    pub fn siblings(&self, owner: &str) -> Option<&HashMap<usize, u32>> {
        self.owners.get(owner)
    }

    /// The slot of a node by name, made if need be.
    fn slot(&mut self, name: &Arc<str>) -> usize {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        // A slot whose node is gone and empty is used again.
        let free = self.nodes.iter().position(|n| !n.present && n.pods.is_empty());
        let slot = free.unwrap_or(self.nodes.len());
        let node = Node { spec: NodeSpec { name: name.clone(), ..Default::default() }, ..Default::default() };
        match free {
            Some(slot) => {
                let old = std::mem::replace(&mut self.nodes[slot], node);
                self.by_name.remove(&old.spec.name);
            }
            None => {
                self.nodes.push(node);
                for group in self.groups.values_mut() {
                    group.counts.push(0);
                }
                for group in self.repelling.values_mut().chain(self.attracting.values_mut()) {
                    group.weights.push(0);
                }
            }
        }
        self.by_name.insert(name.clone(), slot);
        slot
    }

    fn count(&mut self, pod: &Arc<Pod>, slot: usize, sign: i32) {
        for group in self.groups.values_mut() {
            if group.matching.matches(pod, |ns| self.namespaces.get(ns)) {
                group.counts[slot] = group.counts[slot].saturating_add_signed(sign);
            }
        }
        let slots = self.nodes.len();
        for term in &pod.anti_affinity {
            carry(&mut self.repelling, term, slot, slots, sign, 1);
        }
        for term in &pod.affinity {
            carry(&mut self.attracting, term, slot, slots, sign, HARD_AFFINITY_WEIGHT);
        }
        for (weight, term) in &pod.preferred_pods {
            carry(&mut self.attracting, term, slot, slots, sign, *weight);
        }
        if let Some(owner) = pod.owner.as_ref().filter(|_| !pod.deleting) {
            let by_slot = self.owners.entry(owner.clone()).or_default();
            let count = by_slot.entry(slot).or_default();
            *count = count.saturating_add_signed(sign);
            if *count == 0 {
                by_slot.remove(&slot);
            }
            if by_slot.is_empty() {
                self.owners.remove(owner);
            }
        }
    }
}

/// Counts one carrier of a term in (`sign` 1) or out (-1).
fn carry(
    terms: &mut HashMap<Box<str>, TermGroup>,
    term: &Arc<Term>,
    slot: usize,
    slots: usize,
    sign: i32,
    weight: i64,
) {
    let group = terms.entry(term.key.clone()).or_insert_with(|| TermGroup {
        term: term.clone(),
        weights: vec![0; slots],
        carriers: 0,
    });
    group.weights[slot] += i64::from(sign) * weight;
    group.carriers = group.carriers.saturating_add_signed(sign as isize);
    if group.carriers == 0 {
        terms.remove(&term.key);
    }
}

fn decrement(counts: &mut HashMap<Box<str>, u32>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

//! What the programs look up, as plain data, and the writes from one state of it to another. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_ebpf_common::{Address, RuleKey};

use crate::Range;

/// A rule of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    /// As [`RuleKey::who`].
    pub(crate) who: u32,
    /// IP protocol number, 0 when it is for all of them.
    pub(crate) protocol: u8,
    /// First port of the prefix.
    pub(crate) port: u16,
    /// Bits of the whole key that count.
    pub(crate) bits: u32,
}

impl Rule {
    pub(crate) fn key(self, set: u32) -> RuleKey {
        RuleKey { set, who: self.who, protocol: self.protocol, port: self.port.to_be_bytes(), reserved: 0 }
    }

    pub(crate) fn of(key: &RuleKey, bits: u32) -> Rule {
        Rule { who: key.who, protocol: key.protocol, port: u16::from_be_bytes(key.port), bits }
    }
}

/// Sets of rules that hold for a pod: ingress and egress, 0 for none.
pub(crate) type Sets = [u32; 2];

/// Everything that the programs look up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) guards: BTreeMap<u32, Sets>,
    pub(crate) peers: BTreeMap<Address, u32>,
    pub(crate) blocks: BTreeMap<Range, u32>,
    pub(crate) sets: BTreeMap<u32, Arc<BTreeSet<Rule>>>,
}

/// Writes in their order: what is new, what pods' guards say, what goes; then, when something that was allowed may be denied,
/// the generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) new_rules: Vec<(u32, Rule)>,
    pub(crate) peers: Vec<(Address, u32)>,
    pub(crate) blocks: Vec<(Range, u32)>,
    pub(crate) guards: Vec<(u32, Sets)>,
    pub(crate) old_rules: Vec<(u32, Rule)>,
    pub(crate) old_peers: Vec<Address>,
    pub(crate) old_blocks: Vec<Range>,
    /// What was allowed may be denied now.
    pub(crate) narrows: bool,
}

impl Tables {
    /// The way from these tables to others. Links that the others do not have are left alone.
    pub(crate) fn plan(&self, to: &Tables) -> Plan {
        let mut plan = Plan::default();
        let nothing = Arc::default();
        for (set, rules) in &to.sets {
            let known = self.sets.get(set).unwrap_or(&nothing);
            if !Arc::ptr_eq(known, rules) {
                plan.new_rules.extend(rules.difference(known).map(|rule| (*set, *rule)));
            }
        }
        for (set, known) in &self.sets {
            let rules = to.sets.get(set).unwrap_or(&nothing);
            if !Arc::ptr_eq(known, rules) {
                plan.old_rules.extend(known.difference(rules).map(|rule| (*set, *rule)));
            }
        }
        (plan.peers, plan.old_peers) = changes(&self.peers, &to.peers);
        (plan.blocks, plan.old_blocks) = changes(&self.blocks, &to.blocks);
        let guards = to.guards.iter().filter(|(link, sets)| self.guards.get(link) != Some(sets));
        plan.guards = guards.map(|(link, sets)| (*link, *sets)).collect();
        // A pod that was nobody may only be allowed more; an address that was in another block may be allowed less.
        plan.narrows = !plan.old_rules.is_empty()
            || !plan.old_peers.is_empty()
            || !plan.old_blocks.is_empty()
            || !plan.blocks.is_empty()
            || !plan.guards.is_empty()
            || plan.peers.iter().any(|(address, _)| self.peers.contains_key(address));
        plan
    }
}

type Changes<K> = (Vec<(K, u32)>, Vec<K>);

fn changes<K: Ord + Copy>(from: &BTreeMap<K, u32>, to: &BTreeMap<K, u32>) -> Changes<K> {
    let new = to.iter().filter(|(key, value)| from.get(key) != Some(value)).map(|(key, value)| (*key, *value));
    (new.collect(), from.keys().filter(|key| !to.contains_key(key)).copied().collect())
}

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
    /// Does it deny what less particular rules allow?
    pub(crate) denies: bool,
}

impl Rule {
    pub(crate) fn key(self, set: u32) -> RuleKey {
        RuleKey { set, who: self.who, protocol: self.protocol, port: self.port.to_be_bytes(), reserved: 0 }
    }

    /// What a rule says in the kernel's map.
    pub(crate) fn value(self) -> u32 {
        if self.denies { RuleKey::DENIES } else { RuleKey::ALLOWS }
    }

    pub(crate) fn of(key: &RuleKey, bits: u32, value: u32) -> Rule {
        let denies = value == RuleKey::DENIES;
        Rule { who: key.who, protocol: key.protocol, port: u16::from_be_bytes(key.port), bits, denies }
    }

    /// The one with the same key that says the opposite.
    fn opposite(self) -> Rule {
        Rule { denies: !self.denies, ..self }
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
                // What says the opposite now has been written over.
                let gone = known.difference(rules).filter(|rule| !rules.contains(&rule.opposite()));
                plan.old_rules.extend(gone.map(|rule| (*set, *rule)));
            }
        }
        // Between two writes nothing passes that neither the old rules nor the new ones allow: what denies is written before
        // what allows, and goes after it.
        plan.new_rules.sort_by_key(|(_, rule)| !rule.denies);
        plan.old_rules.sort_by_key(|(_, rule)| rule.denies);
        (plan.peers, plan.old_peers) = changes(&self.peers, &to.peers);
        (plan.blocks, plan.old_blocks) = changes(&self.blocks, &to.blocks);
        let guards = to.guards.iter().filter(|(link, sets)| self.guards.get(link) != Some(sets));
        plan.guards = guards.map(|(link, sets)| (*link, *sets)).collect();
        // A pod that was nobody may only be allowed more; an address that was in another block may be allowed less.
        plan.narrows = !plan.old_rules.is_empty()
            || plan.new_rules.iter().any(|(_, rule)| rule.denies)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key has one rule.
    fn some_rules() -> impl Strategy<Value = BTreeSet<Rule>> {
        let one = (0_u16..8, 0_u32..4, any::<bool>());
        prop::collection::vec(one, 0..6).prop_map(|all| {
            let keyed: BTreeMap<(u16, u32), bool> =
                all.into_iter().map(|(port, free, denies)| ((port >> free << free, free), denies)).collect();
            let rule = |((port, free), denies)| Rule { who: 1, protocol: 6, port, bits: RuleKey::BITS - free, denies };
            keyed.into_iter().map(rule).collect()
        })
    }

    fn allowed(rules: &BTreeSet<Rule>, port: u16) -> bool {
        let covering = rules.iter().filter(|rule| (rule.port ^ port) >> (RuleKey::BITS - rule.bits) == 0);
        covering.max_by_key(|rule| rule.bits).is_some_and(|rule| !rule.denies)
    }

    proptest! {
        /// A packet that comes between two writes passes only if it may before them or after them.
        #[test]
        fn nothing_opens_on_the_way(from in some_rules(), to in some_rules()) {
            let tables = |rules: &BTreeSet<Rule>| {
                Tables { sets: [(1, Arc::new(rules.clone()))].into(), ..Tables::default() }
            };
            let plan = tables(&from).plan(&tables(&to));
            let mut now = from.clone();
            let new = plan.new_rules.iter().map(|(_, rule)| (rule, true));
            for (rule, is_new) in new.chain(plan.old_rules.iter().map(|(_, rule)| (rule, false))) {
                now.remove(rule);
                if is_new {
                    now.remove(&rule.opposite());
                    now.insert(*rule);
                }
                for port in 0..8 {
                    prop_assert!(!allowed(&now, port) || allowed(&from, port) || allowed(&to, port), "{port}: {now:?}");
                }
            }
            prop_assert_eq!(now, to);
        }
    }
}

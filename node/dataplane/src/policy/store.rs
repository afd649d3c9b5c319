//! The maps of policies, typed: reading what the kernel holds and carrying out a plan's writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use sluice_ebpf_common::{Address, Guard, RuleKey, maps};

use super::rules::{Plan, Rule, Sets, Tables};
use crate::pins::Pins;
use crate::range::wire_key;
use crate::store::typed;
use crate::{Error, Range};

pub(crate) struct Store {
    guards: HashMap<MapData, u32, Guard>,
    peers: HashMap<MapData, Address, u32>,
    blocks: LpmTrie<MapData, Address, u32>,
    rules: LpmTrie<MapData, RuleKey, u32>,
}

impl Store {
    pub(crate) fn open(pins: &Pins) -> Result<Store, Error> {
        Ok(Store {
            guards: typed(pins, maps::GUARDS)?,
            peers: typed(pins, maps::PEERS)?,
            blocks: typed(pins, maps::BLOCKS)?,
            rules: typed(pins, maps::RULES)?,
        })
    }

    /// Every guard, with what user space notes in it.
    pub(crate) fn guards(&self) -> Result<BTreeMap<u32, Guard>, Error> {
        self.guards.iter().collect::<Result<_, _>>().map_err(|error| Error::ebpf("read the pods' guards", error))
    }

    /// What the programs look up just now.
    pub(crate) fn read(&self) -> Result<Tables, Error> {
        let failed = |error| Error::ebpf("read the network policies", error);
        let mut sets: BTreeMap<u32, BTreeSet<Rule>> = BTreeMap::new();
        for entry in self.rules.iter() {
            let (key, value) = entry.map_err(failed)?;
            let bits = key.prefix_len();
            let key = key.data();
            sets.entry(key.set).or_default().insert(Rule::of(&key, bits, value));
        }
        let mut blocks = BTreeMap::new();
        for entry in self.blocks.iter() {
            let (key, id) = entry.map_err(failed)?;
            blocks.extend(Range::unwire(key.data(), key.prefix_len()).map(|range| (range, id)));
        }
        Ok(Tables {
            guards: self.guards()?.into_iter().map(|(link, guard)| (link, [guard.ingress, guard.egress])).collect(),
            peers: self.peers.iter().collect::<Result<_, _>>().map_err(failed)?,
            blocks,
            sets: sets.into_iter().map(|(set, rules)| (set, Arc::new(rules))).collect(),
        })
    }

    /// What is new, before any pod's guard says so.
    pub(crate) fn add(&mut self, plan: &Plan) -> Result<(), Error> {
        for (set, rule) in &plan.new_rules {
            self.rules.insert(&Key::new(rule.bits, rule.key(*set)), rule.value(), 0).map_err(failed)?;
        }
        for (range, id) in &plan.blocks {
            self.blocks.insert(&block(*range), *id, 0).map_err(failed)?;
        }
        for (address, id) in &plan.peers {
            self.peers.insert(address, id, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Says what holds for a pod.
    pub(crate) fn guard(&mut self, link: u32, [ingress, egress]: Sets, notes: (u32, [u32; 4])) -> Result<(), Error> {
        let (generation, pod) = notes;
        let guard = Guard { ingress, egress, generation, reserved: 0, pod };
        self.guards.insert(link, guard, 0).map_err(failed)
    }

    /// A link is gone; one without a guard is success.
    pub(crate) fn forget(&mut self, link: u32) -> Result<(), Error> {
        present(self.guards.remove(&link))
    }

    /// What no guard leads to any more.
    pub(crate) fn remove(&mut self, plan: &Plan) -> Result<(), Error> {
        for (set, rule) in &plan.old_rules {
            present(self.rules.remove(&Key::new(rule.bits, rule.key(*set))))?;
        }
        for range in &plan.old_blocks {
            present(self.blocks.remove(&block(*range)))?;
        }
        for address in &plan.old_peers {
            present(self.peers.remove(address))?;
        }
        Ok(())
    }
}

fn block(range: Range) -> Key<Address> {
    Key::new(range.bits(), wire_key(range))
}

fn present(removed: Result<(), MapError>) -> Result<(), Error> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map_err(failed),
    }
}

fn failed(error: MapError) -> Error {
    Error::ebpf("write the network policies", error)
}

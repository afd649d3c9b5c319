//! Who wants which frontend: keeps what everybody was compiled to, so that a change of one Service costs what that Service
//! costs. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ebpf_common::FrontendKey;

use crate::compile::{Desired, DesiredFrontend, Frontends, Owner};

/// Frontends that changed, with what they should lead to; `None` for those that nobody wants any more.
pub type Changes = BTreeMap<FrontendKey, Option<DesiredFrontend>>;

/// What everybody wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    owners: BTreeMap<Owner, Frontends>,
    claims: BTreeMap<FrontendKey, BTreeSet<Owner>>,
}

impl Wanted {
    /// Says what an owner wants now (nothing: it is gone) and adds what that changes.
    pub fn set(&mut self, owner: &Owner, frontends: Frontends, changes: &mut Changes) {
        let old = self.owners.remove(owner).unwrap_or_default();
        for key in old.keys().filter(|key| !frontends.contains_key(key)) {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.remove(owner);
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        for key in frontends.keys().filter(|key| !old.contains_key(key)) {
            self.claims.entry(*key).or_default().insert(owner.clone());
        }
        let touched: BTreeSet<FrontendKey> = old
            .iter()
            .filter(|(key, before)| frontends.get(key) != Some(before))
            .map(|(key, _)| *key)
            .chain(frontends.keys().filter(|key| !old.contains_key(key)).copied())
            .collect();
        if !frontends.is_empty() {
            self.owners.insert(owner.clone(), frontends);
        }
        for key in touched {
            let wanted = self.get(&key).cloned();
            changes.insert(key, wanted);
        }
    }

    /// Makes these the only owners.
    pub fn replace(&mut self, all: BTreeMap<Owner, Frontends>, changes: &mut Changes) {
        let gone: Vec<Owner> = self.owners.keys().filter(|owner| !all.contains_key(owner)).cloned().collect();
        for owner in gone {
            self.set(&owner, Frontends::new(), changes);
        }
        for (owner, frontends) in all {
            self.set(&owner, frontends, changes);
        }
    }

    /// What a frontend should lead to.
    pub fn get(&self, key: &FrontendKey) -> Option<&DesiredFrontend> {
        self.owners.get(self.claims.get(key)?.first()?)?.get(key)
    }

    /// The whole table.
    pub fn all(&self) -> Desired {
        let frontends = self.claims.keys().filter_map(|key| Some((*key, self.get(key)?.clone())));
        Desired { frontends: frontends.collect() }
    }

    /// Does a pod of this node have host ports?
    pub(crate) fn has_pods(&self) -> bool {
        self.owners.keys().next_back().is_some_and(|owner| matches!(owner, Owner::Pod(_)))
    }
}

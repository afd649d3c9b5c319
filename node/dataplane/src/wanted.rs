//! Who wants which frontend: keeps what everybody was compiled to, so that a change of one Service costs what that Service
//! costs. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use sluice_ebpf_common::{Address, FrontendKey, Scope, protocol};

use crate::compile::{Desired, DesiredFrontend, Frontends, Owner};

/// Frontends that changed, with what they should lead to; `None` for those that nobody wants any more.
pub type Changes = BTreeMap<FrontendKey, Option<DesiredFrontend>>;

/// What everybody wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    owners: BTreeMap<Arc<Owner>, Frontends>,
    claims: HashMap<FrontendKey, Claim>,
    /// How many frontends each address has for SCTP within the cluster.
    sctp: BTreeMap<Address, u32>,
}

/// Who wants a frontend. Nearly always that is one.
#[derive(Clone, Debug)]
enum Claim {
    One(Arc<Owner>),
    Many(BTreeSet<Arc<Owner>>),
}

impl Claim {
    /// The one who has it.
    fn first(&self) -> Option<&Arc<Owner>> {
        match self {
            Claim::One(owner) => Some(owner),
            Claim::Many(owners) => owners.first(),
        }
    }

    fn add(&mut self, owner: Arc<Owner>) {
        match self {
            Claim::One(known) if *known == owner => {}
            Claim::One(known) => *self = Claim::Many([known.clone(), owner].into()),
            Claim::Many(owners) => drop(owners.insert(owner)),
        }
    }

    /// True if nobody wants it any more.
    fn remove(&mut self, owner: &Owner) -> bool {
        match self {
            Claim::One(known) => **known == *owner,
            Claim::Many(owners) => {
                owners.remove(owner);
                owners.is_empty()
            }
        }
    }
}

impl Wanted {
    /// Says what an owner wants now (nothing: it is gone) and adds what that changes.
    pub fn set(&mut self, owner: &Owner, mut frontends: Frontends, changes: &mut Changes) {
        let (owner, old) =
            self.owners.remove_entry(owner).unwrap_or_else(|| (Arc::new(owner.clone()), Frontends::new()));
        let mut touched = Vec::new();
        for (key, before) in &old {
            let after = frontends.get(key);
            if after != Some(before) {
                touched.push(*key);
            }
            if after.is_none()
                && let Entry::Occupied(mut claim) = self.claims.entry(*key)
                && claim.get_mut().remove(&owner)
            {
                claim.remove();
                count(&mut self.sctp, key, false);
            }
        }
        for key in frontends.keys().filter(|key| !old.contains_key(key)) {
            touched.push(*key);
            match self.claims.entry(*key) {
                Entry::Occupied(mut claim) => claim.get_mut().add(owner.clone()),
                Entry::Vacant(free) => {
                    free.insert(Claim::One(owner.clone()));
                    count(&mut self.sctp, key, true);
                }
            }
        }
        if !frontends.is_empty() {
            frontends.shrink();
            self.owners.insert(owner, frontends);
        }
        for key in touched {
            let wanted = self.get(&key).cloned();
            changes.insert(key, wanted);
        }
    }

    /// Makes these the only owners.
    pub fn replace(&mut self, all: BTreeMap<Owner, Frontends>, changes: &mut Changes) {
        let gone: Vec<Arc<Owner>> =
            self.owners.keys().filter(|owner| !all.contains_key(owner.as_ref())).cloned().collect();
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

    /// Addresses that answer SCTP within the cluster; that of all addresses stands for ports of the node.
    pub(crate) fn sctp(&self) -> impl Iterator<Item = &Address> {
        self.sctp.keys()
    }

    /// Does a pod of this node have host ports?
    pub(crate) fn has_pods(&self) -> bool {
        self.owners.keys().next_back().is_some_and(|owner| matches!(**owner, Owner::Pod(_)))
    }
}

/// A frontend more or less.
fn count(sctp: &mut BTreeMap<Address, u32>, key: &FrontendKey, more: bool) {
    if (key.protocol, key.scope) != (protocol::SCTP, Scope::Internal as u8) {
        return;
    }
    let frontends = sctp.entry(key.address).or_default();
    *frontends = if more { *frontends + 1 } else { frontends.saturating_sub(1) };
    if *frontends == 0 {
        sctp.remove(&key.address);
    }
}

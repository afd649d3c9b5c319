//! Pools as the allocator sees them: which addresses each has, whom it serves, and whether it is in conflict with an older
//! pool or the cluster's own ranges. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use sluice_api::block::Block;

use super::wish::Wish;
use crate::object::Object;
use crate::types;

/// A pool that can be read; parts that cannot are left out.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: Arc<str>,
    /// What may be given out.
    pub(super) blocks: Vec<Block>,
    /// Why nothing is given out.
    pub(super) conflict: Option<String>,
    disabled: bool,
    auto_assign: bool,
    services: Selector,
    namespaces: Selector,
}

/// All pools, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) all: Vec<Pool>,
    reserved: Vec<Block>,
}

impl Pools {
    /// `reserved` are the cluster's own ranges, each with a word for what it is.
    pub(super) fn new(pools: &[Arc<types::Pool>], reserved: &[(Block, String)]) -> Self {
        let mut pools: Vec<&Arc<types::Pool>> = pools.iter().collect();
        pools.sort_by_key(|pool| (pool.created(), pool.name().to_owned()));
        let mut all: Vec<Pool> = Vec::new();
        for object in pools {
            let mut pool = Pool::new(object);
            let others = all.iter().filter(|other| other.conflict.is_none());
            let others = others.flat_map(|other| other.blocks.iter().map(|b| (*b, format!("pool {}", other.name))));
            let mut taken = reserved.iter().cloned().chain(others);
            pool.conflict = taken.find_map(|(range, what)| {
                let block = pool.blocks.iter().find(|block| block.overlaps(range))?;
                Some(format!("{block} overlaps {what} ({range})"))
            });
            all.push(pool);
        }
        Self { all, reserved: reserved.iter().map(|(block, _)| *block).collect() }
    }

    /// The pool that has the address; of several the one that is not in conflict. None for the cluster's own addresses.
    pub(super) fn of(&self, address: IpAddr) -> Option<&Pool> {
        if self.reserved.iter().any(|range| range.contains(address)) {
            return None;
        }
        let mut having = self.all.iter().filter(|pool| pool.blocks.iter().any(|block| block.contains(address)));
        let first = having.next()?;
        Some(if first.conflict.is_some() {
            having.find(|pool| pool.conflict.is_none()).unwrap_or(first)
        } else {
            first
        })
    }
}

impl Pool {
    fn new(object: &types::Pool) -> Self {
        let spec = &object.spec;
        let blocks = spec.blocks.iter().filter_map(|b| Block::parse(&b.cidr, &b.start, &b.stop));
        let ends = spec.allow_first_last != Some(false);
        let blocks = blocks.map(|block| if ends { block } else { block.without_ends() });
        Self {
            name: object.name().into(),
            blocks: blocks.collect(),
            conflict: None,
            disabled: spec.disabled,
            auto_assign: spec.auto_assign != Some(false),
            services: selector(spec.service_selector.as_ref()),
            namespaces: selector(spec.namespace_selector.as_ref()),
        }
    }

    /// Whether a Service may keep an address of this pool.
    pub(super) fn suits(&self, wish: &Wish) -> bool {
        let named = wish.pool.as_deref().is_none_or(|name| name == &*self.name);
        named && self.services.matches(&wish.labels) && self.namespaces.matches(&wish.namespace_labels)
    }

    /// Whether a Service may get a new address of this pool that it does not name.
    pub(super) fn offers(&self, wish: &Wish) -> bool {
        self.gives() && (self.auto_assign || wish.pool.is_some()) && self.suits(wish)
    }

    /// Whether new addresses are given out at all.
    pub(super) fn gives(&self) -> bool {
        !self.disabled && self.conflict.is_none()
    }

    /// How many addresses there are.
    pub(super) fn total(&self) -> u128 {
        self.blocks.iter().fold(0, |sum, block| sum.saturating_add(block.size()))
    }
}

/// Absent selects all; what cannot be read, which validation keeps out, nothing.
pub(super) fn selector(selector: Option<&LabelSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::default() };
    selector.clone().try_into().unwrap_or_else(|_| {
        let nothing = kube::core::Expression::In("sluice.dev/none".into(), std::collections::BTreeSet::new());
        [nothing].into_iter().collect()
    })
}

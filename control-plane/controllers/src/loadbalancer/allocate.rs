//! Which address every Service gets: keeps what can be kept, gives what is asked for or the first that is free, shares where
//! both sides want it. Pure, and stable: the same picture gives the same answer, and an answer written down is kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::pool::{Pool, Pools};
use super::wish::Wish;
use crate::queue::Key;

/// What became of one wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// In the order of the Service's families.
    pub(super) addresses: Vec<IpAddr>,
    /// Why something is missing.
    pub(super) refusal: Option<Refusal>,
}

/// Why a Service has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For programs.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
}

/// Answers all wishes. `excluded` are addresses that no Service may have: those of nodes.
pub(super) fn allocate(pools: &Pools, wishes: &[Wish], excluded: &HashSet<IpAddr>) -> BTreeMap<Key, Answer> {
    let mut order: Vec<&Wish> = wishes.iter().collect();
    order.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    let mut state = State { pools, excluded, holders: HashMap::new(), next: HashMap::new() };
    let kept: Vec<Vec<IpAddr>> = order.iter().map(|wish| state.keep(wish)).collect();
    order.into_iter().zip(kept).map(|(wish, kept)| (wish.key.clone(), state.answer(wish, kept))).collect()
}

struct State<'a> {
    pools: &'a Pools,
    excluded: &'a HashSet<IpAddr>,
    holders: HashMap<IpAddr, Vec<&'a Wish>>,
    /// Where the search for a free address goes on, by pool and block: before it all are taken.
    next: HashMap<(usize, usize), u128>,
}

impl<'a> State<'a> {
    /// The addresses that a Service has and may keep, at most one of each family.
    fn keep(&mut self, wish: &'a Wish) -> Vec<IpAddr> {
        let mut kept: Vec<IpAddr> = Vec::new();
        for address in &wish.current {
            let wanted = wish.families.contains(&address.is_ipv4())
                && kept.iter().all(|other| other.is_ipv4() != address.is_ipv4())
                && (wish.requested.is_empty() || wish.requested.contains(address));
            let suits = self.pools.of(*address).is_some_and(|pool| pool.suits(wish));
            if wanted && suits && self.available(*address, wish) {
                self.take(*address, wish);
                kept.push(*address);
            }
        }
        kept
    }

    fn answer(&mut self, wish: &'a Wish, mut kept: Vec<IpAddr>) -> Answer {
        let mut refusal = None;
        if let Some(word) = &wish.unreadable {
            let message = format!("{word:?} is asked for, which is no IP address");
            refusal = Some(Refusal { reason: "AddressInvalid", message });
        } else if let Some(other) = wish.requested.iter().find(|a| !wish.families.contains(&a.is_ipv4())) {
            let message = format!("{other} is asked for, whose family is not among the Service's ipFamilies");
            refusal = Some(Refusal { reason: "AddressInvalid", message });
        } else {
            for v4 in &wish.families {
                if kept.iter().any(|address| address.is_ipv4() == *v4) {
                    continue;
                }
                match self.give(wish, *v4) {
                    Ok(address) => {
                        self.take(address, wish);
                        kept.push(address);
                    }
                    Err(why) => refusal = refusal.or(Some(why)),
                }
            }
        }
        kept.sort_by_key(|address| wish.families.iter().position(|v4| *v4 == address.is_ipv4()));
        if wish.any_family && !kept.is_empty() && wish.requested.iter().all(|asked| kept.contains(asked)) {
            refusal = None;
        }
        Answer { addresses: kept, refusal }
    }

    fn give(&mut self, wish: &'a Wish, v4: bool) -> Result<IpAddr, Refusal> {
        if let Some(address) = wish.requested.iter().find(|address| address.is_ipv4() == v4) {
            return self.named(wish, *address);
        }
        if !wish.requested.is_empty() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let message = format!("addresses are asked for by name, but none of {family}, which the Service has too");
            return Err(Refusal { reason: "AddressInvalid", message });
        }
        let pools: Vec<(usize, &'a Pool)> = self.pools.all.iter().enumerate().filter(|(_, p)| p.offers(wish)).collect();
        let family = |pool: &Pool| pool.blocks.iter().any(|block| block.is_ipv4() == v4);
        if !pools.iter().any(|(_, pool)| family(pool)) {
            return Err(self.no_pool(wish, v4));
        }
        if let Some(address) = self.shared(wish, v4) {
            return Ok(address);
        }
        let free = pools.iter().find_map(|(index, pool)| self.free(*index, pool, v4));
        free.ok_or_else(|| {
            let names: Vec<&str> = pools.iter().filter(|(_, p)| family(p)).map(|(_, pool)| &*pool.name).collect();
            let message = format!("every address of the pools for this Service is in use: {}", names.join(", "));
            Refusal { reason: "PoolExhausted", message }
        })
    }

    fn no_pool(&self, wish: &Wish, v4: bool) -> Refusal {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let message = match &wish.pool {
            Some(name) => format!("the pool {name:?} that is asked for has no {family} addresses for this Service"),
            None => format!("no LoadBalancerPool has {family} addresses for this Service"),
        };
        Refusal { reason: "NoPool", message }
    }

    /// An address that is asked for by name.
    fn named(&self, wish: &Wish, address: IpAddr) -> Result<IpAddr, Refusal> {
        let refuse = |reason, message| Err(Refusal { reason, message });
        let Some(pool) = self.pools.of(address).filter(|pool| pool.suits(wish)) else {
            return refuse("AddressNotInPool", format!("{address} is in no LoadBalancerPool for this Service"));
        };
        if !pool.gives() {
            return refuse("PoolDisabled", format!("{address} is in the pool {}, which is disabled", pool.name));
        }
        if self.excluded.contains(&address) {
            return refuse("AddressInUse", format!("{address} is the address of a node"));
        }
        match self.holders.get(&address).and_then(|holders| holders.iter().find(|other| !wish.shares_with(other))) {
            Some(other) => refuse("AddressInUse", format!("{address} is in use by Service {}", other.key)),
            None => Ok(address),
        }
    }

    /// The lowest address of those who share with this Service.
    fn shared(&self, wish: &Wish, v4: bool) -> Option<IpAddr> {
        wish.sharing.as_ref()?;
        let mut all: Vec<IpAddr> = self.holders.keys().copied().filter(|address| address.is_ipv4() == v4).collect();
        all.sort_unstable();
        all.into_iter().find(|address| {
            let offered = self.pools.of(*address).is_some_and(|pool| pool.offers(wish));
            let held = self.holders.get(address).is_some_and(|holders| !holders.is_empty());
            offered && held && self.available(*address, wish)
        })
    }

    /// The first address of a pool that nobody has.
    fn free(&mut self, index: usize, pool: &Pool, v4: bool) -> Option<IpAddr> {
        for (at, block) in pool.blocks.iter().enumerate().filter(|(_, block)| block.is_ipv4() == v4) {
            let next = self.next.entry((index, at)).or_default();
            while let Some(address) = block.nth(*next) {
                if !self.holders.contains_key(&address) && !self.excluded.contains(&address) {
                    return Some(address);
                }
                *next += 1;
            }
        }
        None
    }

    fn available(&self, address: IpAddr, wish: &Wish) -> bool {
        let holders = self.holders.get(&address).map_or(&[][..], Vec::as_slice);
        !self.excluded.contains(&address) && holders.iter().all(|other| wish.shares_with(other))
    }

    fn take(&mut self, address: IpAddr, wish: &'a Wish) {
        self.holders.entry(address).or_default().push(wish);
    }
}

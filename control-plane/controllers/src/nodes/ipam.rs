//! Gives every node a range of pod addresses out of the cluster's, per address family.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::Node;

const NAME: &str = "node-ipam-controller";

/// The subnets of one cluster range.
#[derive(Debug)]
pub(super) struct Pool {
    base: u128,
    bits: u8,
    node_prefix: u8,
    /// Number of subnets, at most 65536 (as upstream).
    size: u32,
    used: BTreeSet<u32>,
    next: u32,
}

impl Pool {
    /// A pool over `cidr`, of which a node gets the prefix of the range's family.
    ///
    /// # Errors
    /// A sentence when it is no range, or smaller than one node's.
    pub(super) fn new(cidr: &str, (v4, v6): (u8, u8)) -> Result<Self, String> {
        let wrong = || format!("{cidr} is not an address range such as 10.244.0.0/16");
        let (address, prefix) = cidr.split_once('/').ok_or_else(wrong)?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let (base, bits, node_prefix) = match address.parse::<IpAddr>().map_err(|_| wrong())? {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32, v4.min(32)),
            IpAddr::V6(ip) => (u128::from(ip), 128, v6.min(128)),
        };
        if prefix > node_prefix {
            return Err(format!(
                "{cidr} is smaller than the /{node_prefix} that one node gets; give the cluster a larger range"
            ));
        }
        let size = 1u32 << (node_prefix - prefix).min(16);
        let host_bits = u32::from(bits - prefix);
        let base = base.checked_shr(host_bits).and_then(|b| b.checked_shl(host_bits)).unwrap_or(0);
        Ok(Self { base, bits, node_prefix, size, used: BTreeSet::new(), next: 0 })
    }

    /// Marks a subnet as taken; false when it is not one of this pool's.
    pub(super) fn occupy(&mut self, cidr: &str) -> bool {
        let index = self.index(cidr);
        index.inspect(|index| {
            self.used.insert(*index);
        });
        index.is_some()
    }

    /// Gives a subnet back.
    pub(super) fn release(&mut self, cidr: &str) {
        if let Some(index) = self.index(cidr) {
            self.used.remove(&index);
        }
    }

    /// Takes the next free subnet; a released one is not used again before all others were.
    pub(super) fn allocate(&mut self) -> Option<String> {
        let start = self.next;
        let index = (0..self.size).map(|i| (start + i) % self.size).find(|i| !self.used.contains(i))?;
        self.used.insert(index);
        self.next = index + 1;
        let address = self.base + (u128::from(index) << (self.bits - self.node_prefix));
        let ip = match self.bits {
            32 => IpAddr::V4(Ipv4Addr::from(u32::try_from(address).ok()?)),
            _ => IpAddr::V6(Ipv6Addr::from(address)),
        };
        Some(format!("{ip}/{}", self.node_prefix))
    }

    fn index(&self, cidr: &str) -> Option<u32> {
        let (address, prefix) = cidr.split_once('/')?;
        let address = match (address.parse::<IpAddr>().ok()?, self.bits) {
            (IpAddr::V4(ip), 32) => u128::from(u32::from(ip)),
            (IpAddr::V6(ip), 128) => u128::from(ip),
            _ => return None,
        };
        let offset = address.checked_sub(self.base)? >> (self.bits - self.node_prefix);
        let index = u32::try_from(offset).ok().filter(|index| *index < self.size)?;
        (prefix.parse::<u8>().ok()? == self.node_prefix).then_some(index)
    }
}

struct Controller {
    client: Client,
    events: Recorder,
    nodes: Arc<Store<Node>>,
    pools: Mutex<Vec<Pool>>,
    /// Ranges given to nodes that may not show them yet.
    given: Mutex<HashMap<Arc<str>, Vec<String>>>,
}

/// Starts the controller; does nothing without ranges.
///
/// # Errors
/// A sentence when a range is none.
pub(crate) fn start(context: &Context, all: &Informers) -> Result<(), String> {
    let pools = context.options.pod_cidrs.iter();
    let pools = pools.map(|cidr| Pool::new(cidr, context.options.node_prefixes)).collect::<Result<Vec<_>, _>>()?;
    if pools.is_empty() {
        return Ok(());
    }
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        events: context.events.of(NAME),
        // Every range in use is known before the first is given.
        nodes: wiring.reads(&all.nodes),
        pools: Mutex::new(pools),
        given: Mutex::default(),
    });
    let watching = controller.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| watching.node_changed(old, new, queue));
    wiring.run(context, NAME, controller);
    Ok(())
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(node) = self.nodes.get(key).filter(|node| node.spec.pod_cidrs.is_empty()) else {
            return Ok(None);
        };
        let Some(cidrs) = self.ranges_for(&key.name) else {
            self.events.normal(
                &*node,
                "CIDRNotAvailable",
                format!("Node {} status is now: CIDRNotAvailable", node.name()),
            );
            anyhow::bail!(
                "no range of pod addresses is left for node {}: give the cluster a larger pod CIDR",
                key.name
            );
        };
        let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
        rest::patch(&self.client, &*node, patch).await?;
        Ok(None)
    }
}

impl Controller {
    fn node_changed(&self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, queue: &Queue<Key>) {
        match (old, new) {
            (_, Some(node)) if node.spec.pod_cidrs.is_empty() => queue.add(node.key()),
            (_, Some(node)) => {
                self.given.lock().remove(node.name());
                let mut pools = self.pools.lock();
                for cidr in &node.spec.pod_cidrs {
                    pools.iter_mut().any(|pool| pool.occupy(cidr));
                }
            }
            (Some(node), None) => {
                let given = self.given.lock().remove(node.name()).unwrap_or_default();
                let mut pools = self.pools.lock();
                for cidr in node.spec.pod_cidrs.iter().chain(&given) {
                    pools.iter_mut().for_each(|pool| pool.release(cidr));
                }
            }
            (None, None) => {}
        }
    }

    fn ranges_for(&self, node: &Arc<str>) -> Option<Vec<String>> {
        let mut given = self.given.lock();
        if let Some(known) = given.get(node) {
            return Some(known.clone());
        }
        let mut pools = self.pools.lock();
        let mut cidrs = Vec::new();
        for index in 0..pools.len() {
            let Some(cidr) = pools[index].allocate() else {
                cidrs.iter().for_each(|cidr: &String| pools.iter_mut().for_each(|pool| pool.release(cidr)));
                return None;
            };
            cidrs.push(cidr);
        }
        given.insert(node.clone(), cidrs.clone());
        Some(cidrs)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pools() {
        let mut pool = Pool::new("10.244.7.9/22", (24, 64)).unwrap();
        assert!(pool.occupy("10.244.5.0/24"));
        assert!(!pool.occupy("10.245.0.0/24") && !pool.occupy("fd00::/64"));
        let taken: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(taken, ["10.244.4.0/24", "10.244.6.0/24", "10.244.7.0/24"]);
        pool.release("10.244.4.0/24");
        assert_eq!(pool.allocate().as_deref(), Some("10.244.4.0/24"));
        let mut six = Pool::new("fd00:10::/56", (24, 64)).unwrap();
        assert_eq!(six.allocate().as_deref(), Some("fd00:10::/64"));
        assert_eq!(six.allocate().as_deref(), Some("fd00:10:0:1::/64"));
        let mut small = Pool::new("10.0.0.0/24", (26, 112)).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| small.allocate()).collect();
        assert_eq!(taken, ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26"]);
        let mut six = Pool::new("fd00:10::/96", (26, 112)).unwrap();
        assert!(six.occupy("fd00:10::/112"));
        assert_eq!(six.allocate().as_deref(), Some("fd00:10::1:0/112"));
        for wrong in ["10.0.0.0/25", "10.0.0.0", "x/16", "10.0.0.0/y"] {
            assert!(Pool::new(wrong, (24, 64)).is_err(), "{wrong}");
        }
    }
}

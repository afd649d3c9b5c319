//! What a Service asks of the load balancer, read from its fields and annotations. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use crate::object::Object;
use crate::queue::Key;
use crate::types::Service;

/// The class of Services that are ours whatever the cluster's default is.
pub(super) const CLASS: &str = "sluice.dev/l2";
/// Addresses that are asked for, separated by commas; wins over the old field `spec.loadBalancerIP`.
const ADDRESSES: &str = "sluice.dev/load-balancer-ips";
/// The pool that is asked for.
const POOL: &str = "sluice.dev/load-balancer-pool";
/// Services with the same key may share an address.
const SHARING: &str = "sluice.dev/sharing-key";
/// Set on Services whose address is to be released before they go; upstream's name.
pub(super) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Says whether a Service has what it asks for, and marks it as ours.
pub(super) const CONDITION: &str = "sluice.dev/LoadBalancerAddress";

/// What one Service asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) key: Key,
    pub(super) created: Timestamp,
    /// Address families, true for IPv4, in the Service's order.
    pub(super) families: Vec<bool>,
    /// One family is enough.
    pub(super) any_family: bool,
    /// Addresses by name.
    pub(super) requested: Vec<IpAddr>,
    /// What of the request cannot be read.
    pub(super) unreadable: Option<String>,
    pub(super) pool: Option<String>,
    pub(super) sharing: Option<String>,
    /// Protocols and ports.
    pub(super) ports: BTreeSet<(String, i32)>,
    /// `externalTrafficPolicy: Local`.
    pub(super) local: bool,
    pub(super) selector: BTreeMap<String, String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) namespace_labels: BTreeMap<String, String>,
    /// The addresses that it has.
    pub(super) current: Vec<IpAddr>,
}

/// Whether a Service's load balancer is ours to make: its type and class say so. Without a class it is while there are
/// pools, and nobody else has given it an address.
pub(super) fn wants(service: &Service, any_pool: bool) -> bool {
    if service.spec.kind.as_deref() != Some("LoadBalancer") || service.deleting() {
        return false;
    }
    match service.spec.load_balancer_class.as_deref() {
        Some(class) => class == CLASS,
        None => is_ours(service) || any_pool && service.status.load_balancer.ingress.is_empty(),
    }
}

/// Whether we have said something of this Service before.
pub(super) fn is_ours(service: &Service) -> bool {
    service.status.conditions.iter().any(|condition| condition.type_ == CONDITION)
}

impl Wish {
    pub(super) fn new(service: &Service, namespace_labels: BTreeMap<String, String>) -> Self {
        let spec = &service.spec;
        let annotation = |name: &str| service.annotations().get(name).map(|text| text.trim()).filter(|t| !t.is_empty());
        let asked = annotation(ADDRESSES).or(spec.load_balancer_ip.as_deref()).unwrap_or_default();
        let (mut requested, mut unreadable) = (Vec::new(), None);
        for word in asked.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.parse() {
                Ok(address) => requested.push(address),
                Err(_) => unreadable = Some(word.to_owned()),
            }
        }
        let families: Vec<bool> = spec.ip_families.iter().map(|family| family == "IPv4").collect();
        let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".into());
        let ingress = service.status.load_balancer.ingress.iter();
        Self {
            key: service.key(),
            created: service.created(),
            families: if families.is_empty() { vec![true] } else { families },
            any_family: spec.ip_family_policy.as_deref() == Some("PreferDualStack"),
            requested,
            unreadable,
            pool: annotation(POOL).map(str::to_owned),
            sharing: annotation(SHARING).map(str::to_owned),
            ports: spec.ports.iter().map(|port| (protocol(&port.protocol), port.port)).collect(),
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            selector: spec.selector.clone(),
            labels: service.labels().clone(),
            namespace_labels,
            current: ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect(),
        }
    }

    /// Whether both may have one address: they say so by the same key, no port is in both, and a packet finds the same
    /// endpoints behind every node (as MetalLB has it).
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        let same_key = self.sharing.is_some() && self.sharing == other.sharing;
        let same_nodes = !self.local && !other.local
            || self.local == other.local
                && self.key.namespace == other.key.namespace
                && !self.selector.is_empty()
                && self.selector == other.selector;
        same_key && same_nodes && self.ports.is_disjoint(&other.ports)
    }
}

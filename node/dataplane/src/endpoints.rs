//! Which endpoints answer: upstream's rules of readiness, traffic policy and topology. Pure.
//!
//! The ready ones count; when there is none, those that still serve while they terminate (KEP-1669). With a `Local` policy
//! both steps look at this node's endpoints only. Hints and `trafficDistribution` narrow the ready ones (KEP-2433,
//! KEP-4444, KEP-3015), never the terminating ones. Who serves while it terminates and was not chosen keeps the flows it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_ebpf_common::Backend;

use crate::model::{Endpoint, Forwarding, Prefer, ServicePort, Slice};
use crate::range::wire;

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// How services that do not say so reach backends on other nodes.
    pub forwarding: Forwarding,
}

impl Here<'_> {
    fn has(self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }
}

/// Who answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answering {
    /// New connections, too. Sorted.
    pub(crate) backends: Arc<[Backend]>,
    /// What they have. Sorted.
    pub(crate) draining: Arc<[Backend]>,
    /// Weights of the former, none when all are equal.
    pub(crate) weights: Arc<[u16]>,
}

/// The endpoints of a service port in one address family.
pub(crate) struct Choice<'a> {
    endpoints: Vec<(&'a Endpoint, u16)>,
    here: Here<'a>,
}

impl<'a> Choice<'a> {
    pub(crate) fn new(port: &ServicePort, slices: &[&'a Slice], v4: bool, here: Here<'a>) -> Self {
        let mut endpoints = Vec::new();
        for slice in slices {
            for slice_port in &slice.ports {
                if slice_port.name == port.name && slice_port.protocol == port.protocol {
                    let family = |endpoint: &&Endpoint| endpoint.address.is_some_and(|address| address.is_ipv4() == v4);
                    endpoints.extend(slice.endpoints.iter().filter(family).map(|endpoint| (endpoint, slice_port.port)));
                }
            }
        }
        Choice { endpoints, here }
    }

    /// Everybody who may answer under the policy `Cluster`.
    pub(crate) fn everywhere(&self, prefer: Prefer) -> Answering {
        let topology = self.topology(prefer);
        let wanted = |endpoint: &Endpoint| endpoint.ready && self.fits(endpoint, topology);
        self.answering(wanted, draining)
    }

    /// Everybody who may answer under the policy `Local`.
    pub(crate) fn local(&self) -> Answering {
        let here = self.here;
        self.answering(
            |endpoint| endpoint.ready && here.has(endpoint),
            |endpoint| draining(endpoint) && here.has(endpoint),
        )
    }

    /// Is there anybody who could answer on some node?
    pub(crate) fn anywhere(&self) -> bool {
        self.endpoints.iter().any(|(endpoint, _)| endpoint.ready || draining(endpoint))
    }

    fn answering(&self, wanted: impl Fn(&Endpoint) -> bool, otherwise: impl Fn(&Endpoint) -> bool) -> Answering {
        let mut draining = self.collect(otherwise);
        let mut chosen = self.collect(wanted);
        if chosen.is_empty() {
            chosen = std::mem::take(&mut draining);
        }
        draining.retain(|(backend, _)| chosen.binary_search_by(|(known, _)| known.cmp(backend)).is_err());
        // A weight of 0 says: no new connections, unless there is nobody else.
        if chosen.iter().any(|(_, weight)| *weight > 0) && chosen.iter().any(|(_, weight)| *weight == 0) {
            draining.extend(chosen.extract_if(.., |(_, weight)| *weight == 0));
            draining.sort_unstable();
        }
        let weight = |(_, weight): &(Backend, u16)| *weight;
        let alike = chosen.iter().map(weight).all(|weight| chosen.first().is_some_and(|(_, first)| weight == *first));
        let list = |backends: Vec<(Backend, u16)>| backends.into_iter().map(|(backend, _)| backend).collect();
        Answering {
            weights: if alike { Arc::default() } else { chosen.iter().map(weight).collect() },
            backends: list(chosen),
            draining: list(draining),
        }
    }

    /// Backends with their weights, sorted. Of those that are there twice the last one counts.
    fn collect(&self, wanted: impl Fn(&Endpoint) -> bool) -> Vec<(Backend, u16)> {
        let backend = |(endpoint, port): &(&Endpoint, u16)| {
            let flags = Backend::USED | if self.here.has(endpoint) { Backend::LOCAL } else { 0 };
            let address = wire(endpoint.address?);
            Some((Backend { address, port: port.to_be(), flags }, endpoint.weight.unwrap_or(1)))
        };
        let mut all: Vec<_> = Vec::with_capacity(self.endpoints.len());
        all.extend(self.endpoints.iter().filter(|(endpoint, _)| wanted(endpoint)).filter_map(backend));
        all.sort_by_key(|(backend, _)| *backend);
        all.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
        all
    }

    /// What narrows the ready endpoints. Hints count only when every ready endpoint has them and one of them is for this
    /// place. Slices without any hint, written by others than upstream's controller, are judged by where endpoints are.
    fn topology(&self, prefer: Prefer) -> Topology {
        let ready = || self.endpoints.iter().map(|(endpoint, _)| *endpoint).filter(|endpoint| endpoint.ready);
        let judge = |rule: Topology, said: fn(&Endpoint) -> bool| {
            ready().all(said) && ready().any(|endpoint| self.fits(endpoint, rule))
        };
        if judge(Topology::NodeHint, |endpoint| !endpoint.for_nodes.is_empty()) {
            return Topology::NodeHint;
        }
        if judge(Topology::ZoneHint, |endpoint| !endpoint.for_zones.is_empty()) {
            return Topology::ZoneHint;
        }
        if ready().any(|endpoint| !(endpoint.for_nodes.is_empty() && endpoint.for_zones.is_empty())) {
            return Topology::None;
        }
        let candidates: &[Topology] = match prefer {
            Prefer::Nothing => &[],
            Prefer::Zone => &[Topology::Zone],
            Prefer::Node => &[Topology::Node, Topology::Zone],
        };
        candidates
            .iter()
            .copied()
            .find(|rule| ready().any(|endpoint| self.fits(endpoint, *rule)))
            .unwrap_or(Topology::None)
    }

    fn fits(&self, endpoint: &Endpoint, topology: Topology) -> bool {
        let zone = self.here.zone;
        match topology {
            Topology::None => true,
            Topology::NodeHint => endpoint.for_nodes.iter().any(|node| **node == *self.here.node),
            Topology::ZoneHint => zone.is_some_and(|zone| endpoint.for_zones.iter().any(|known| **known == *zone)),
            Topology::Node => self.here.has(endpoint),
            Topology::Zone => zone.is_some() && endpoint.zone.as_deref() == zone,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    None,
    NodeHint,
    ZoneHint,
    Node,
    Zone,
}

fn draining(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Ready endpoints of a service on this node, as a load balancer's health check counts them.
pub(crate) fn local_ready(slices: &[&Slice], here: Here<'_>) -> usize {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready: BTreeSet<_> = endpoints
        .filter(|endpoint| endpoint.ready && here.has(endpoint))
        .filter_map(|endpoint| endpoint.address)
        .collect();
    ready.len()
}

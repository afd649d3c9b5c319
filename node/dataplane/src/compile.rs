//! The service compiler: a Service with its slices, or a pod with host ports, to the frontends that it wants. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use sluice_ebpf_common::{Address, Backend, Frontend, FrontendKey, Scope};

use crate::Range;
pub use crate::endpoints::Here;
use crate::endpoints::{Answering, Choice, local_ready};
pub use crate::frontends::Frontends;
use crate::model::{Forwarding, ObjectName, Pod, Protocol, Service, ServicePort, Slice, Snapshot};
use crate::range::wire;

/// The table that the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What every frontend leads to.
    pub frontends: Frontends,
}

/// What a frontend leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// `namespace/name:port`, shared by all frontends of a service port.
    pub service: Arc<str>,
    /// Sorted, without duplicates.
    pub backends: Arc<[Backend]>,
    /// Those that end and take no new connections, but may keep the flows they have. Sorted, none of the above.
    pub draining: Arc<[Backend]>,
    /// The backends' weights (none: equal ones) where all nodes have to choose alike.
    pub weights: Option<Arc<[u16]>>,
    /// `Frontend::*` bits.
    pub flags: u32,
    /// Seconds for which a client keeps its backend, 0 without.
    pub affinity: u32,
    /// Clients that are served where the flags say [`Frontend::RANGES`]: the same for all frontends of a service port.
    pub ranges: Arc<BTreeSet<Range>>,
}

/// Who wants a frontend. Where two want the same one, the first by this order has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A Service.
    Service(ObjectName),
    /// A pod with host ports.
    Pod(ObjectName),
}

impl Snapshot {
    /// Where this node is.
    pub fn here(&self) -> Here<'_> {
        Here { node: &self.node, zone: self.zone.as_deref(), forwarding: self.forwarding }
    }

    /// What everybody wants.
    pub fn compile(&self) -> BTreeMap<Owner, Frontends> {
        let mut slices: BTreeMap<(&str, &str), Vec<&Slice>> = BTreeMap::new();
        for ((namespace, _), slice) in &self.slices {
            slices.entry((namespace.as_ref(), slice.service.as_ref())).or_default().push(slice);
        }
        let services = self.services.iter().map(|(name, service)| {
            let slices = slices.get(&(name.0.as_ref(), name.1.as_ref())).map_or(&[][..], Vec::as_slice);
            (Owner::Service(name.clone()), compile_service(self.here(), name, service, slices))
        });
        let pods = self.pods.iter().map(|(name, pod)| (Owner::Pod(name.clone()), compile_pod(name, pod)));
        services.chain(pods).collect()
    }
}

/// What the health check of a Service says: the number of ready endpoints on this node.
pub(crate) fn health(here: Here<'_>, slices: &[&Slice]) -> usize {
    local_ready(slices, here)
}

/// The name of a service port for people and for keeping its id over restarts.
pub(crate) fn port_name(service: &ObjectName, port: &ServicePort) -> String {
    let (namespace, name) = service;
    let suffix = suffix(port.protocol);
    match &*port.name {
        "" => format!("{namespace}/{name}:{}{suffix}", port.port),
        label => format!("{namespace}/{name}:{label}{suffix}"),
    }
}

fn suffix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
        Protocol::Sctp => "/sctp",
    }
}

/// Compiles a Service with all slices that belong to it.
pub fn compile_service(here: Here<'_>, name: &ObjectName, service: &Service, slices: &[&Slice]) -> Frontends {
    let mut frontends = Frontends::new();
    let ranges =
        if service.ranges.is_empty() { no_ranges() } else { Arc::new(service.ranges.iter().copied().collect()) };
    for port in &service.ports {
        let label: Arc<str> = port_name(name, port).into();
        for v4 in [true, false] {
            if service.cluster.iter().any(|address| address.is_ipv4() == v4) {
                let lists = Lists::new(here, service, port, slices, v4);
                let direct = service.forwarding.unwrap_or(here.forwarding) == Forwarding::Dsr;
                let family = Family { service, port, v4, direct, lists, label: &label, ranges: &ranges };
                family.compile(&mut frontends);
            }
        }
    }
    frontends
}

/// The backends of a service port by policy.
struct Lists {
    everywhere: Answering,
    here: Answering,
    anywhere: bool,
}

impl Lists {
    fn new(here: Here<'_>, service: &Service, port: &ServicePort, slices: &[&Slice], v4: bool) -> Lists {
        let choice = Choice::new(port, slices, v4, here);
        let local = service.internal_local || service.external_local;
        Lists {
            everywhere: choice.everywhere(service.prefer),
            here: if local { choice.local() } else { Answering::default() },
            anywhere: choice.anywhere(),
        }
    }
}

/// One address family of a service port.
struct Family<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    v4: bool,
    /// Backends on other nodes answer by themselves.
    direct: bool,
    lists: Lists,
    label: &'a Arc<str>,
    ranges: &'a Arc<BTreeSet<Range>>,
}

impl Family<'_> {
    fn compile(&self, to: &mut Frontends) {
        let (service, number) = (self.service, self.port.port);
        let own = |address: &&std::net::IpAddr| address.is_ipv4() == self.v4;
        for address in service.cluster.iter().filter(own) {
            self.add(to, wire(*address), number, Scope::Internal, service.internal_local, 0);
        }
        // From inside the cluster the external addresses lead to every endpoint, whatever the external policy says.
        for address in service.external.iter().filter(own) {
            self.add(to, wire(*address), number, Scope::Internal, false, 0);
            self.add(to, wire(*address), number, Scope::External, service.external_local, 0);
        }
        let ranges = if service.ranges.is_empty() { 0 } else { Frontend::RANGES };
        for address in service.balancers.iter().filter(own) {
            self.add(to, wire(*address), number, Scope::Internal, false, ranges);
            self.add(to, wire(*address), number, Scope::External, service.external_local, ranges);
        }
        if self.port.node_port != 0 {
            let any = if self.v4 { Address::ANY_V4 } else { Address::ANY_V6 };
            self.add(to, any, self.port.node_port, Scope::Internal, false, 0);
            self.add(to, any, self.port.node_port, Scope::External, service.external_local, 0);
        }
    }

    fn add(&self, to: &mut Frontends, address: Address, number: u16, scope: Scope, local: bool, flags: u32) {
        let key =
            FrontendKey { address, port: number.to_be(), protocol: self.port.protocol.number(), scope: scope as u8 };
        let elsewhere = local && self.lists.here.backends.is_empty() && self.lists.anywhere;
        let reach = match (local, scope) {
            (true, _) => Frontend::LOCAL_ONLY,
            (false, Scope::External) if self.direct => Frontend::DIRECT,
            _ => 0,
        };
        let answering = if local { &self.lists.here } else { &self.lists.everywhere };
        // Sockets are translated once for all, on one node.
        let planned = scope == Scope::External && answering.backends.len() > 1;
        let frontend = DesiredFrontend {
            service: self.label.clone(),
            backends: answering.backends.clone(),
            draining: answering.draining.clone(),
            weights: planned.then(|| answering.weights.clone()),
            flags: flags | reach | if elsewhere { Frontend::ELSEWHERE } else { 0 },
            affinity: self.service.affinity,
            ranges: if flags & Frontend::RANGES != 0 { self.ranges.clone() } else { no_ranges() },
        };
        to.insert_first(key, frontend);
    }
}

/// Compiles a pod's host ports.
pub fn compile_pod(name: &ObjectName, pod: &Pod) -> Frontends {
    let mut frontends = Frontends::new();
    for port in &pod.ports {
        let label: Arc<str> = format!("{}/{}:host-{}{}", name.0, name.1, port.host_port, suffix(port.protocol)).into();
        for address in &pod.addresses {
            let own = match port.address {
                Some(own) if own.is_ipv4() != address.is_ipv4() => continue,
                Some(own) => wire(own),
                None => wire(*address).any(),
            };
            let flags = Backend::USED | Backend::LOCAL;
            let backends: Arc<[Backend]> =
                Arc::new([Backend { address: wire(*address), port: port.port.to_be(), flags }]);
            for scope in [Scope::Internal, Scope::External] {
                let (number, protocol) = (port.host_port.to_be(), port.protocol.number());
                let key = FrontendKey { address: own, port: number, protocol, scope: scope as u8 };
                let frontend = DesiredFrontend {
                    service: label.clone(),
                    backends: backends.clone(),
                    draining: Arc::default(),
                    weights: None,
                    flags: Frontend::LOCAL_ONLY,
                    affinity: 0,
                    ranges: no_ranges(),
                };
                frontends.insert_first(key, frontend);
            }
        }
    }
    frontends
}

/// The same nothing for all: most services take every client.
fn no_ranges() -> Arc<BTreeSet<Range>> {
    static NONE: LazyLock<Arc<BTreeSet<Range>>> = LazyLock::new(Arc::default);
    NONE.clone()
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;

//! The service compiler: `(services, endpoint slices, node)` to the table that the kernel should hold. Pure.
//!
//! Follows upstream's kube-proxy in which endpoints count: the ready ones; when there is none, those that still serve
//! while they terminate (KEP-1669). With a `Local` policy both steps look at this node's endpoints only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_ebpf_common::{Backend, Frontend, FrontendKey, Scope};

use crate::model::{Endpoint, ObjectName, Protocol, Service, ServicePort, Slice, Snapshot};
use crate::range::wire;

/// The table that the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What every frontend leads to.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
}

/// What a frontend leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// `namespace/name:port`, shared by all frontends of a service port.
    pub service: Arc<str>,
    /// Sorted, without duplicates.
    pub backends: Arc<Vec<Backend>>,
    /// `Frontend::*` bits.
    pub flags: u32,
}

/// Compiles a snapshot. Two services that claim the same address and port: the first by name has it.
pub fn compile(snapshot: &Snapshot) -> Desired {
    let mut slices: BTreeMap<ObjectName, Vec<&Slice>> = BTreeMap::new();
    for ((namespace, _), slice) in &snapshot.slices {
        slices.entry((namespace.clone(), slice.service.clone())).or_default().push(slice);
    }
    let mut desired = Desired::default();
    for (name, service) in &snapshot.services {
        let slices = slices.get(name).map_or(&[][..], Vec::as_slice);
        for port in &service.ports {
            compile_port(&mut desired, &snapshot.node, name, service, port, slices);
        }
    }
    desired
}

/// The name of a service port for people and for keeping its id over restarts.
pub(crate) fn port_name(service: &ObjectName, port: &ServicePort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    };
    let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
    format!("{}/{}:{label}{protocol}", service.0, service.1)
}

fn compile_port(
    desired: &mut Desired,
    node: &str,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
    slices: &[&Slice],
) {
    let endpoints = endpoints_of(port, slices);
    let everywhere =
        Arc::new(if service.prefer_local { preferred(&endpoints, node) } else { backends(&endpoints, node, false) });
    let here = Arc::new(if service.internal_local || service.external_local {
        backends(&endpoints, node, true)
    } else {
        Vec::new()
    });
    let label: Arc<str> = port_name(name, port).into();
    let mut add = |address: u32, number: u16, scope: Scope, local: bool| {
        let key = FrontendKey { address, port: number.to_be(), protocol: port.protocol.number(), scope: scope as u8 };
        desired.frontends.entry(key).or_insert_with(|| DesiredFrontend {
            service: label.clone(),
            backends: if local { here.clone() } else { everywhere.clone() },
            flags: if local { Frontend::LOCAL_ONLY } else { 0 },
        });
    };
    for address in &service.cluster {
        add(wire(*address), port.port, Scope::Internal, service.internal_local);
    }
    // From inside the cluster the external addresses lead to every endpoint, whatever the external policy says.
    for address in &service.external {
        add(wire(*address), port.port, Scope::Internal, false);
        add(wire(*address), port.port, Scope::External, service.external_local);
    }
    if port.node_port != 0 {
        add(0, port.node_port, Scope::Internal, false);
        add(0, port.node_port, Scope::External, service.external_local);
    }
}

fn endpoints_of<'a>(port: &ServicePort, slices: &[&'a Slice]) -> Vec<(&'a Endpoint, u16)> {
    let mut found = Vec::new();
    for slice in slices {
        for slice_port in &slice.ports {
            if slice_port.name == port.name && slice_port.protocol == port.protocol {
                found.extend(slice.endpoints.iter().map(|endpoint| (endpoint, slice_port.port)));
            }
        }
    }
    found
}

/// This node's ready endpoints if it has any (KEP-3015), else all.
fn preferred(endpoints: &[(&Endpoint, u16)], node: &str) -> Vec<Backend> {
    let is_here = |endpoint: &Endpoint| endpoint.ready && endpoint.node.as_deref() == Some(node);
    let here: Vec<_> = endpoints.iter().filter(|(endpoint, _)| is_here(endpoint)).copied().collect();
    backends(if here.is_empty() { endpoints } else { &here }, node, false)
}

fn backends(endpoints: &[(&Endpoint, u16)], node: &str, local_only: bool) -> Vec<Backend> {
    let pick = |wanted: fn(&Endpoint) -> bool| -> Vec<Backend> {
        let mut set = BTreeSet::new();
        for (endpoint, port) in endpoints {
            let local = endpoint.node.as_deref() == Some(node);
            let Some(address) = endpoint.address else { continue };
            if wanted(endpoint) && (local || !local_only) {
                let flags = Backend::USED | if local { Backend::LOCAL } else { 0 };
                set.insert(Backend { address: wire(address), port: port.to_be(), flags });
            }
        }
        set.into_iter().collect()
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() { pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::SlicePort;
    use crate::range::unwire;

    fn endpoint(last: u8, state: &str, node: &str) -> Endpoint {
        Endpoint {
            address: Some(Ipv4Addr::new(10, 244, 0, last)),
            ready: state == "ready",
            serving: state == "ready" || state == "draining",
            terminating: state == "draining",
            node: Some(node.into()),
        }
    }

    fn snapshot(service: Service, endpoints: Vec<Endpoint>) -> Snapshot {
        let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
        let slice = Slice { service: "web".into(), ports, endpoints };
        Snapshot {
            services: [(("shop".to_owned(), "web".to_owned()), service)].into(),
            slices: [(("shop".to_owned(), "web-x".to_owned()), slice)].into(),
            node: "a".into(),
        }
    }

    fn web() -> Service {
        Service {
            cluster: vec![Ipv4Addr::new(10, 96, 0, 20)],
            ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 30080 }],
            ..Service::default()
        }
    }

    /// One line per frontend: `scope address:port -> backends`, a star for local backends.
    fn table(desired: &Desired) -> Vec<String> {
        let line = |(key, frontend): (&FrontendKey, &DesiredFrontend)| {
            let scope = if key.scope == Scope::Internal as u8 { "in" } else { "out" };
            let backends: Vec<_> = frontend
                .backends
                .iter()
                .map(|backend| {
                    let star = if backend.flags & Backend::LOCAL != 0 { "*" } else { "" };
                    format!("{}:{}{star}", unwire(backend.address).octets()[3], u16::from_be(backend.port))
                })
                .collect();
            format!("{scope} {}:{} {}", unwire(key.address), u16::from_be(key.port), backends.join(","))
        };
        let mut lines: Vec<_> = desired.frontends.iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn every_address_of_a_service_leads_to_its_ready_endpoints() {
        let endpoints = vec![endpoint(1, "ready", "a"), endpoint(2, "ready", "b"), endpoint(3, "no", "a")];
        let mut service = web();
        service.external = vec![Ipv4Addr::new(192, 0, 2, 1)];
        assert_eq!(
            table(&compile(&snapshot(service, endpoints))),
            [
                "in 0.0.0.0:30080 1:8080*,2:8080",
                "in 10.96.0.20:80 1:8080*,2:8080",
                "in 192.0.2.1:80 1:8080*,2:8080",
                "out 0.0.0.0:30080 1:8080*,2:8080",
                "out 192.0.2.1:80 1:8080*,2:8080",
            ]
        );
    }

    #[test]
    fn endpoints_by_state_and_policy() {
        let local = |service: &mut Service| service.external_local = true;
        let inner = |service: &mut Service| service.internal_local = true;
        let near = |service: &mut Service| service.prefer_local = true;
        let none = |_: &mut Service| {};
        type Case = (fn(&mut Service), &'static [(u8, &'static str, &'static str)], [&'static str; 3]);
        let cases: [Case; 10] = [
            (none, &[(1, "ready", "a"), (2, "draining", "a")], ["1:8080*", "1:8080*", "1:8080*"]),
            (none, &[(1, "no", "a"), (2, "draining", "b")], ["2:8080", "2:8080", "2:8080"]),
            (none, &[(1, "no", "a")], ["", "", ""]),
            (none, &[], ["", "", ""]),
            (local, &[(1, "ready", "a"), (2, "ready", "b")], ["1:8080*,2:8080", "1:8080*,2:8080", "1:8080*"]),
            (local, &[(1, "draining", "a"), (2, "ready", "b")], ["2:8080", "2:8080", "1:8080*"]),
            (inner, &[(2, "ready", "b")], ["2:8080", "", "2:8080"]),
            (near, &[(1, "ready", "a"), (2, "ready", "b")], ["1:8080*", "1:8080*", "1:8080*"]),
            (near, &[(1, "draining", "a"), (2, "ready", "b")], ["2:8080", "2:8080", "2:8080"]),
            (near, &[(1, "draining", "a")], ["1:8080*", "1:8080*", "1:8080*"]),
        ];
        for (change, endpoints, [node_in, cluster, node_out]) in cases {
            let mut service = web();
            change(&mut service);
            let list = endpoints.iter().map(|(last, state, node)| endpoint(*last, state, node)).collect();
            let expected = [
                format!("in 0.0.0.0:30080 {node_in}"),
                format!("in 10.96.0.20:80 {cluster}"),
                format!("out 0.0.0.0:30080 {node_out}"),
            ];
            assert_eq!(table(&compile(&snapshot(service, list))), expected, "{endpoints:?}");
        }
    }

    #[test]
    fn tcp_and_udp_on_one_port_stay_apart() {
        let mut service = web();
        service.ports = vec![
            ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 0 },
            ServicePort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 53, node_port: 0 },
        ];
        let mut snapshot = snapshot(service, vec![endpoint(1, "ready", "a")]);
        let slice = snapshot.slices.values_mut().next().unwrap();
        slice.ports = vec![
            SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 },
            SlicePort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 5354 },
        ];
        let desired = compile(&snapshot);
        let ports: Vec<_> = desired
            .frontends
            .iter()
            .map(|(key, frontend)| (key.protocol, u16::from_be(frontend.backends[0].port), &*frontend.service))
            .collect();
        assert_eq!(ports, [(6, 5354, "shop/web:dns-tcp"), (17, 5353, "shop/web:dns/udp")]);
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once() {
        let mut snapshot = snapshot(web(), vec![endpoint(1, "ready", "a")]);
        let twin = snapshot.slices.values().next().unwrap().clone();
        snapshot.slices.insert(("shop".into(), "web-y".into()), twin);
        assert!(compile(&snapshot).frontends.values().all(|frontend| frontend.backends.len() == 1));
    }
}

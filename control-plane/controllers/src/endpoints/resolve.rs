//! Which pods stand behind a Service, and under which ports: pure, shared by the slices and the old Endpoints.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::object::Object;
use crate::types::{Pod, Service, ServicePort};

/// An address family as slices name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// `IPv4` or `IPv6`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The pod's address of this family.
    pub(super) fn address(self, pod: &Pod) -> Option<&str> {
        pod.status.pod_ips.iter().map(|ip| ip.ip.as_str()).find(|ip| Self::of(ip) == Some(self))
    }

    fn of(ip: &str) -> Option<Self> {
        Some(if ip.parse::<IpAddr>().ok()?.is_ipv4() { Self::V4 } else { Self::V6 })
    }
}

/// The families of a Service: as it says, else that of its address, else IPv4.
pub(super) fn families(service: &Service) -> Vec<Family> {
    let named = service.spec.ip_families.iter();
    let named: Vec<_> = named.map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if !named.is_empty() {
        return named;
    }
    vec![service.spec.cluster_ip.as_deref().and_then(Family::of).unwrap_or(Family::V4)]
}

/// Whether the Service has endpoints of its pods at all.
pub(super) fn selects(service: &Service) -> bool {
    !service.spec.selector.is_empty() && service.spec.kind.as_deref() != Some("ExternalName") && !service.deleting()
}

/// Whether the Service's selector matches a pod's labels.
pub(super) fn matches(service: &Service, pod: &Pod) -> bool {
    selects(service) && service.spec.selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v))
}

/// Headless: clients are given the pods' own addresses.
pub(super) fn headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
}

/// The Service's ports as this pod serves them; a named port the pod lacks is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let resolved = service.spec.ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(protocol(port).to_owned()),
            port: Some(target(port, pod)?),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<_> = resolved.collect();
    ports.sort_by(|a, b| (&a.name, &a.protocol, a.port).cmp(&(&b.name, &b.protocol, b.port)));
    ports
}

/// The pod's host name within the Service's domain.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let named = pod.spec.subdomain.as_deref() == Some(service.name());
    pod.spec.hostname.clone().filter(|hostname| named && !hostname.is_empty())
}

/// Whether what endpoints depend on differs between two states of a pod.
pub(super) fn changed(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| pod.status.pod_ips.iter().map(|ip| ip.ip.clone()).collect::<Vec<_>>();
    old.labels() != new.labels()
        || old.ready() != new.ready()
        || old.deleting() != new.deleting()
        || old.finished() != new.finished()
        || old.spec.node_name != new.spec.node_name
        || ips(old) != ips(new)
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut served = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
            let named = served
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol(port));
            named.map(|p| p.container_port)
        }
    }
}

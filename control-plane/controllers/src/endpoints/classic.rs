//! The old Endpoints object of one Service: pure, from the Service and its pods to its subsets.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, ObjectReference};

use super::resolve;
use crate::limits;
use crate::object::Object;
use crate::types::{Pod, Service};

/// The subsets: addresses with the same ports together, sorted. At most 1000 addresses, as upstream.
pub(super) fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(family) = resolve::families(service).first().copied() else { return Vec::new() };
    let mut pods: Vec<_> = pods.iter().filter(|pod| !pod.finished() && resolve::matches(service, pod)).collect();
    pods.retain(|pod| !pod.deleting() || service.spec.publish_not_ready_addresses);
    pods.sort_by(|a, b| family.address(a).cmp(&family.address(b)).then_with(|| a.uid().cmp(b.uid())));
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    let mut count = 0;
    for pod in pods {
        let Some(ip) = family.address(pod) else { continue };
        let ports: Vec<EndpointPort> = resolve::ports(service, pod)
            .into_iter()
            .map(|p| EndpointPort {
                name: p.name.filter(|name| !name.is_empty()),
                port: p.port.unwrap_or_default(),
                protocol: p.protocol,
                app_protocol: p.app_protocol,
            })
            .collect();
        if ports.is_empty() && !resolve::headless(service) || count == limits::ENDPOINTS_ADDRESSES {
            continue;
        }
        count += 1;
        let ports = Some(ports).filter(|ports| !ports.is_empty());
        let index = subsets.iter().position(|s| s.ports == ports).unwrap_or_else(|| {
            subsets.push(EndpointSubset { ports, addresses: None, not_ready_addresses: None });
            subsets.len() - 1
        });
        let subset = &mut subsets[index];
        let ready = service.spec.publish_not_ready_addresses || pod.ready();
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address(service, pod, ip));
    }
    subsets
}

fn address(service: &Service, pod: &Pod, ip: &str) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: resolve::hostname(service, pod),
        node_name: pod.spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.ns().into()),
            name: Some(pod.name().into()),
            uid: Some(pod.uid().into()),
            ..Default::default()
        }),
    }
}

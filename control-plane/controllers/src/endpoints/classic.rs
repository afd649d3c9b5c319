//! The old Endpoints object of one Service: pure, from the Service and its pods to its subsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, ObjectReference};

use super::resolve;
use crate::limits;
use crate::object::Object;
use crate::types::{Pod, Service};

pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The Service's own and the controller's; that a Service is headless is said when it is, whatever stands on the Service.
pub(super) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    labels.remove(HEADLESS);
    if resolve::headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn the_label_of_headless_services_is_true() {
        for (address, on_service, expected) in
            [("None", false, Some("")), ("10.96.0.9", true, None), ("10.96.0.9", false, None)]
        {
            let own = if on_service { json!({HEADLESS: "", "app": "a"}) } else { json!({"app": "a"}) };
            let service = json!({"metadata": {"name": "x", "labels": own}, "spec": {"clusterIP": address}});
            let labels = labels(&serde_json::from_value(service).unwrap());
            assert_eq!(labels.get(HEADLESS).map(String::as_str), expected, "{address}");
            assert_eq!((labels["app"].as_str(), labels.len()), ("a", 2 + usize::from(expected.is_some())));
        }
    }
}

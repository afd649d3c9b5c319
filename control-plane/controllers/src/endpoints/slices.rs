//! EndpointSlices of one Service: pure, from the Service, its pods and the slices there are to the writes that make them
//! right. Endpoints stay in the slice they are in, so that a change touches as few slices as possible.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use serde_json::{Value, json};

use super::resolve::{self, Family};
use crate::limits;
use crate::object::Object;
use crate::types::{Pod, SERVICE_NAME, Service, Slice};

/// Label of the slices this controller keeps.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// One write.
#[derive(Debug)]
pub(super) enum Write {
    Create(Value),
    Update(Arc<Slice>, Value),
    Delete(Arc<Slice>),
}

/// What all slices of one source have in common.
pub(super) struct Head<'a> {
    pub(super) namespace: &'a str,
    /// The Service's name.
    pub(super) name: &'a str,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner: Value,
}

/// What is wanted in one slice.
struct Wanted<'a> {
    head: &'a Head<'a>,
    family: Family,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// The writes that make `existing` right. `zone_of` finds a node's zone.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<Slice>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut leftover: Vec<Arc<Slice>> = existing.to_vec();
    let head = Head {
        namespace: service.ns(),
        name: service.name(),
        labels: labels(service),
        annotations: BTreeMap::new(),
        owner: service.as_controller(),
    };
    for family in resolve::families(service) {
        let mut groups: Vec<(Vec<EndpointPort>, HashMap<String, Endpoint>)> = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.finished() && resolve::matches(service, pod)) {
            let Some(address) = family.address(pod) else { continue };
            let endpoint = endpoint(service, pod, address, zone_of);
            let ports = resolve::ports(service, pod);
            let index = groups.iter().position(|(known, _)| *known == ports).unwrap_or_else(|| {
                groups.push((ports, HashMap::new()));
                groups.len() - 1
            });
            groups[index].1.insert(identity(&endpoint), endpoint);
        }
        if groups.is_empty() {
            // One empty slice says that the Service is known and has nobody.
            groups.push((Vec::new(), HashMap::new()));
        }
        for (ports, endpoints) in groups {
            reconcile(&head, family, &ports, endpoints, &mut leftover, &mut writes);
        }
    }
    writes.extend(leftover.into_iter().map(Write::Delete));
    writes
}

/// Whether two states of one endpoint are of the same pod.
pub(super) fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(","))
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone_of: &dyn Fn(&str) -> Option<String>) -> Endpoint {
    let (serving, terminating) = (pod.ready(), pod.deleting());
    let node = pod.spec.node_name.clone();
    let zone = node.as_deref().and_then(zone_of);
    let near_zone = || zone.clone().map(|name| vec![ForZone { name }]);
    let near_node = || node.clone().map(|name| vec![ForNode { name }]);
    let hints = match service.spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Some(EndpointHints { for_zones: near_zone(), for_nodes: None }),
        Some("PreferSameNode") => Some(EndpointHints { for_zones: near_zone(), for_nodes: near_node() }),
        _ => None,
    };
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(service.spec.publish_not_ready_addresses || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: resolve::hostname(service, pod),
        hints: hints.filter(|h| h.for_zones.is_some() || h.for_nodes.is_some()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.ns().into()),
            name: Some(pod.name().into()),
            uid: Some(pod.uid().into()),
            ..Default::default()
        }),
        zone,
        node_name: node,
        deprecated_topology: None,
    }
}

/// Makes the slices of one family and one set of ports right; takes those it uses out of `leftover`.
pub(super) fn reconcile(
    head: &Head<'_>,
    family: Family,
    ports: &[EndpointPort],
    mut wanted: HashMap<String, Endpoint>,
    leftover: &mut Vec<Arc<Slice>>,
    writes: &mut Vec<Write>,
) {
    let fits = |slice: &Arc<Slice>| {
        slice.address_type == family.name() && same_ports(&slice.ports, ports) && !slice.deleting()
    };
    let (mine, others): (Vec<_>, Vec<_>) = leftover.drain(..).partition(fits);
    *leftover = others;
    // What stays where it is, in its present state.
    let mut kept: Vec<(Arc<Slice>, Vec<Endpoint>)> = mine
        .into_iter()
        .map(|slice| {
            let endpoints = slice.endpoints.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
            (slice, endpoints)
        })
        .collect();
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    new.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    // New ones go first into slices that change anyway, fullest first, then into any that has room.
    kept.sort_by_key(|(slice, endpoints)| (slice.endpoints == *endpoints, std::cmp::Reverse(endpoints.len())));
    let mut empty_spared = new.is_empty() && kept.iter().all(|(_, endpoints)| endpoints.is_empty());
    for (slice, mut endpoints) in kept {
        let room = limits::ENDPOINTS_PER_SLICE.saturating_sub(endpoints.len()).min(new.len());
        endpoints.extend(new.drain(..room));
        if endpoints.is_empty() && !std::mem::take(&mut empty_spared) {
            writes.push(Write::Delete(slice));
            continue;
        }
        let same = slice.endpoints == endpoints;
        let body = body(&Wanted { head, family, ports: ports.to_vec(), endpoints }, Some(&slice));
        let labelled = *slice.labels() == head.labels
            && head.annotations.iter().all(|(k, v)| slice.annotations().get(k) == Some(v));
        if !same || !labelled {
            writes.push(Write::Update(slice, body));
        }
    }
    let nobody = empty_spared.then(Vec::new);
    for endpoints in new.chunks(limits::ENDPOINTS_PER_SLICE).map(<[_]>::to_vec).chain(nobody) {
        writes.push(Write::Create(body(&Wanted { head, family, ports: ports.to_vec(), endpoints }, None)));
    }
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let key = |p: &EndpointPort| {
        (
            p.name.clone().unwrap_or_default(),
            p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            p.port,
            p.app_protocol.clone(),
        )
    };
    let sorted = |ports: &[EndpointPort]| {
        let mut keys: Vec<_> = ports.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(a) == sorted(b)
}

fn body(wanted: &Wanted<'_>, existing: Option<&Slice>) -> Value {
    let mut metadata = json!({
        "namespace": wanted.head.namespace, "labels": wanted.head.labels, "ownerReferences": [wanted.head.owner],
    });
    if !wanted.head.annotations.is_empty() {
        metadata["annotations"] = json!(wanted.head.annotations);
    }
    match existing {
        Some(slice) => {
            metadata["name"] = json!(slice.name());
            metadata["uid"] = json!(slice.uid());
            metadata["resourceVersion"] = json!(slice.meta_version());
        }
        None => metadata["generateName"] = json!(format!("{}-", wanted.head.name)),
    }
    json!({"metadata": metadata, "addressType": wanted.family.name(), "endpoints": wanted.endpoints, "ports": wanted.ports})
}

/// The Service's labels, those with a meaning of their own aside.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let reserved = [SERVICE_NAME, MANAGED_BY, HEADLESS];
    let own = service.labels().iter().filter(|(key, _)| !reserved.contains(&key.as_str()));
    let mut labels: BTreeMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(SERVICE_NAME.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if resolve::headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn service(extra: Value) -> Service {
        let mut value = json!({"metadata": {"name": "web", "namespace": "n", "uid": "s", "labels": {"team": "x"}},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
        json_patch::merge(&mut value, &extra);
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, ip: &str, extra: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}});
        json_patch::merge(&mut value, &extra);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn zones(node: &str) -> Option<String> {
        (node == "n1").then(|| "z1".into())
    }

    /// Applies writes as the API would.
    fn apply(slices: &mut Vec<Arc<Slice>>, writes: Vec<Write>, serial: &mut u32) {
        for write in writes {
            match write {
                Write::Create(mut body) => {
                    *serial += 1;
                    body["metadata"]["name"] = json!(format!("web-{serial}"));
                    slices.push(Arc::new(serde_json::from_value(body).unwrap()));
                }
                Write::Update(old, body) => {
                    let slot = slices.iter_mut().find(|s| s.name() == old.name()).unwrap();
                    *slot = Arc::new(serde_json::from_value(body).unwrap());
                }
                Write::Delete(old) => slices.retain(|s| s.name() != old.name()),
            }
        }
    }

    #[test]
    fn one_pod() {
        let writes = plan(&service(json!({})), &[pod("a", "10.0.0.1", json!({}))], &[], &zones);
        let [Write::Create(body)] = writes.as_slice() else { panic!("{writes:?}") };
        assert_eq!(body["endpoints"][0]["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
        assert_eq!(body["endpoints"][0]["zone"], "z1");
        assert_eq!(body["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(body["metadata"]["labels"], json!({MANAGED_BY: MANAGER, SERVICE_NAME: "web", "team": "x"}));
        assert_eq!(body["addressType"], "IPv4");
    }

    #[test]
    fn conditions() {
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let always = json!({"spec": {"publishNotReadyAddresses": true}});
        for (service_extra, pod_extra, expected) in [
            (json!({}), not_ready.clone(), (false, false, false)),
            (always.clone(), not_ready, (true, false, false)),
            (json!({}), leaving.clone(), (false, true, true)),
            (always, leaving, (true, true, true)),
        ] {
            let writes = plan(&service(service_extra), &[pod("a", "10.0.0.1", pod_extra)], &[], &zones);
            let [Write::Create(body)] = writes.as_slice() else { panic!() };
            let got = &body["endpoints"][0]["conditions"];
            assert_eq!(*got, json!({"ready": expected.0, "serving": expected.1, "terminating": expected.2}));
        }
    }

    #[test]
    fn nobody_and_nothing_to_do() {
        let svc = service(json!({}));
        let (mut slices, mut serial) = (Vec::new(), 0);
        apply(&mut slices, plan(&svc, &[], &[], &zones), &mut serial);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
        assert!(plan(&svc, &[], &slices, &zones).is_empty());
        // Finished pods, pods of others and pods without an address are no endpoints.
        let pods = [
            pod("done", "10.0.0.1", json!({"status": {"phase": "Succeeded"}})),
            pod("other", "10.0.0.2", json!({"metadata": {"labels": {"app": "db"}}})),
            pod("v6", "fd00::1", json!({})),
        ];
        assert!(plan(&svc, &pods, &slices, &zones).is_empty());
    }

    #[test]
    fn ports_by_name_may_differ_per_pod() {
        let other = json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 9090}]}]}});
        let writes =
            plan(&service(json!({})), &[pod("a", "10.0.0.1", json!({})), pod("b", "10.0.0.2", other)], &[], &zones);
        assert_eq!(writes.len(), 2);
    }

    #[test]
    fn headless_names_and_hints() {
        let svc =
            service(json!({"spec": {"clusterIP": "None", "ports": null, "trafficDistribution": "PreferSameNode"}}));
        let named = pod("a", "10.0.0.1", json!({"spec": {"hostname": "a-0", "subdomain": "web"}}));
        let writes = plan(&svc, &[named], &[], &zones);
        let [Write::Create(body)] = writes.as_slice() else { panic!() };
        assert_eq!(body["endpoints"][0]["hostname"], "a-0");
        assert_eq!(body["endpoints"][0]["hints"], json!({"forNodes": [{"name": "n1"}], "forZones": [{"name": "z1"}]}));
        assert_eq!(body["metadata"]["labels"][HEADLESS], "");
        assert_eq!(body["ports"], json!([]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Whatever pods come and go: every pod is in exactly one slice, no slice is too large, and a second look changes nothing.
        #[test]
        fn every_pod_once(rounds in prop::collection::vec(prop::collection::btree_set(0u16..400, 0..260), 1..6)) {
            let svc = service(json!({}));
            let (mut slices, mut serial) = (Vec::new(), 0);
            for round in rounds {
                let pods: Vec<_> = round.iter().map(|i| pod(&format!("p{i}"), &format!("10.0.{}.{}", i / 200, i % 200), json!({}))).collect();
                let writes = plan(&svc, &pods, &slices, &zones);
                apply(&mut slices, writes, &mut serial);
                let mut seen: Vec<_> = slices.iter().flat_map(|s| &s.endpoints).map(identity).collect();
                seen.sort();
                let mut expected: Vec<_> = pods.iter().map(|p| format!("{} {}", p.uid(), p.status.pod_ips[0].ip)).collect();
                expected.sort();
                prop_assert_eq!(seen, expected);
                prop_assert!(slices.iter().all(|s| s.endpoints.len() <= limits::ENDPOINTS_PER_SLICE));
                prop_assert!(plan(&svc, &pods, &slices, &zones).is_empty());
            }
        }
    }
}

//! EndpointSlices of Endpoints that someone else than the endpoints controller writes, for Services without a selector: so
//! that whoever reads only slices finds them too.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use kube::Client;

use super::resolve::Family;
use super::slices::{self, Head, MANAGED_BY, Write};
use crate::context::Context;
use crate::expectations::Expectations;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::types::{Endpoints, SERVICE_NAME, Service, Slice};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotation: when the cause of the last change came about.
pub(super) const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

struct Controller {
    client: Client,
    services: Arc<Store<Service>>,
    slices: Arc<Store<Slice>>,
    endpoints: Arc<Store<Endpoints>>,
    expectations: Arc<Expectations>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        // Service, Endpoints and the label of slices share one name.
        services: wiring.drives(&all.services),
        slices: wiring.reads(&all.slices),
        endpoints: wiring.drives(&all.endpoints),
        expectations: Arc::default(),
    });
    let expectations = controller.expectations.clone();
    wiring.wakes(&all.slices, move |old, new, queue| {
        let Some(slice) = new.or(old).filter(|slice| mirrored(slice)) else { return };
        let Some(service) = slice.labels().get(SERVICE_NAME) else { return };
        let key = Key::new(slice.ns(), service);
        if old.is_none() {
            expectations.created(&key, 1);
        }
        queue.add(key);
    });
    wiring.run(context, "endpointslicemirroring-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let existing = self.slices.indexed(&format!("{}/{}", key.namespace, key.name));
        let existing: Vec<_> = existing.into_iter().filter(|slice| mirrored(slice)).collect();
        let service = self.services.get(key).filter(|service| service.spec.selector.is_empty());
        let source = self.endpoints.get(key).filter(|e| service.is_some() && !e.deleting() && !skipped(e));
        if !self.expectations.met(key) {
            return Ok(None);
        }
        let writes = match source {
            Some(source) => plan(&source, &existing),
            None => existing.into_iter().map(Write::Delete).collect(),
        };
        let creations = writes.iter().filter(|write| matches!(write, Write::Create(_))).count();
        if creations > 0 {
            self.expectations.expect_creations(key, creations);
        }
        stream::iter(writes)
            .map(|write| super::carry_out(&self.client, &self.expectations, key, write))
            .buffer_unordered(limits::WRITES_IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        Ok(None)
    }
}

fn mirrored(slice: &Slice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

fn skipped(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(SKIP).is_some_and(|skip| skip == "true") || endpoints.annotations().contains_key(LEADER)
}

/// The writes that make `existing` right.
fn plan(source: &Endpoints, existing: &[Arc<Slice>]) -> Vec<Write> {
    let mut labels: BTreeMap<String, String> = source.labels().clone();
    labels.insert(SERVICE_NAME.into(), source.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = source.annotations().clone();
    annotations.retain(|key, _| key != TRIGGER && key != "kubectl.kubernetes.io/last-applied-configuration");
    let head = Head { namespace: source.ns(), name: source.name(), labels, annotations, owner: source.as_controller() };
    let mut writes = Vec::new();
    let mut leftover = existing.to_vec();
    for (family, ports, endpoints) in groups(&source.subsets) {
        slices::reconcile(&head, family, &ports, endpoints, &mut leftover, &mut writes);
    }
    writes.extend(leftover.into_iter().map(Write::Delete));
    writes
}

type Group = (Family, Vec<EndpointPort>, HashMap<String, Endpoint>);

/// Endpoints by family and ports.
fn groups(subsets: &[EndpointSubset]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in subsets {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let waiting = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(waiting).take(limits::ENDPOINTS_ADDRESSES) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
            let index = groups.iter().position(|(f, p, _)| *f == family && *p == ports).unwrap_or_else(|| {
                groups.push((family, ports.clone(), HashMap::new()));
                groups.len() - 1
            });
            let endpoint = endpoint(address, ready);
            groups[index].2.insert(slices::identity(&endpoint), endpoint);
        }
    }
    groups
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn mirrors_what_was_written_by_hand() {
        let source: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "n", "uid": "e", "labels": {"a": "b"}, "annotations": {TRIGGER: "x", "c": "d"}},
            "subsets": [{"ports": [{"name": "sql", "port": 5432}],
                "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}]}],
        }))
        .unwrap();
        let writes = plan(&source, &[]);
        let bodies: Vec<_> =
            writes.iter().map(|w| if let Write::Create(body) = w { body } else { panic!("{w:?}") }).collect();
        let families: Vec<_> = bodies.iter().map(|b| b["addressType"].as_str().unwrap()).collect();
        assert_eq!(families, ["IPv4", "IPv6"]);
        let body = bodies[0];
        assert_eq!(body["ports"], json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]));
        assert_eq!(body["endpoints"][1]["conditions"], json!({"ready": false}));
        assert_eq!(body["metadata"]["labels"], json!({"a": "b", SERVICE_NAME: "db", MANAGED_BY: MANAGER}));
        assert_eq!(body["metadata"]["annotations"], json!({"c": "d"}));
        assert_eq!(body["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        let slices: Vec<Arc<Slice>> =
            bodies.iter().map(|b| Arc::new(serde_json::from_value((*b).clone()).unwrap())).collect();
        assert!(plan(&source, &slices).is_empty());
        let emptied = Endpoints { subsets: Vec::new(), ..source };
        assert_eq!(plan(&emptied, &slices).len(), 2);
    }
}

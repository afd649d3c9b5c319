//! What Services hold: read from the cache, each Service once after every change of it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;
use sluice_api::resource::Resource;
use sluice_store::Revision;

use super::Taken;
use crate::{
    meta,
    storage::{Storage, StoredObject},
};

/// The addresses and ports of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) ports: BTreeSet<u16>,
}

/// What is known of the Services that hold more than the one address which their selectable fields tell.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By uid, with the revision that was read.
    held: HashMap<Box<str>, (Revision, Arc<Held>)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    ports: Vec<Port>,
    health_check_node_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    node_port: Option<u16>,
}

impl Held {
    /// Of a Service with its fields filled in.
    pub(super) fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let listed = meta::strings(&spec["clusterIPs"]).into_iter().chain(spec["clusterIP"].as_str());
        let numbers = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0);
        Self {
            // `None` is no address.
            addresses: listed.filter_map(|a| a.parse().ok()).collect(),
            ports: numbers.chain([&spec["healthCheckNodePort"]]).filter_map(port).collect(),
        }
    }

    /// Of a stored Service.
    pub(super) fn read(object: &StoredObject) -> Self {
        // What cannot be read holds nothing.
        let Stored { spec } = object.parse().unwrap_or_default();
        let ports = spec.ports.iter().filter_map(|port| port.node_port).chain(spec.health_check_node_port);
        Self {
            addresses: spec.cluster_ips.iter().filter_map(|a| a.parse().ok()).collect(),
            ports: ports.filter(|port| *port > 0).collect(),
        }
    }
}

impl Known {
    /// What all Services but one (namespace and name) hold. `second` says that they may have a second address.
    pub(super) fn of_others(
        &mut self,
        storage: &Storage,
        services: &Resource,
        own: Option<(&str, &str)>,
        second: bool,
    ) -> Taken {
        let mut before = std::mem::take(&mut self.held);
        let mut taken = Taken::default();
        for object in storage.list(services.store_prefix(), "").items {
            if own == Some((&*object.namespace, &*object.name)) {
                continue;
            }
            let field = |name: &str| {
                let at = services.selectable.iter().position(|f| f == name);
                at.and_then(|i| object.fields.get(i)).map_or("", |text| &**text)
            };
            taken.addresses.extend(field("spec.clusterIP").parse::<IpAddr>());
            if second || matches!(field("spec.type"), "NodePort" | "LoadBalancer") {
                let known = before.remove(&object.uid).filter(|(revision, _)| *revision == object.revision);
                let known = known.unwrap_or_else(|| (object.revision, Arc::new(Held::read(&object))));
                taken.add(&known.1);
                self.held.insert(object.uid.clone(), known);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_service_holds() {
        let check = |spec: Value, addresses: &[&str], ports: &[u16]| {
            let held = Held::of(&json!({"spec": spec}));
            let expected = Held {
                addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
                ports: ports.iter().copied().collect(),
            };
            assert_eq!(held, expected);
        };
        check(json!({"clusterIP": "None", "clusterIPs": ["None"]}), &[], &[]);
        check(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}), &["10.0.0.1", "fd00::1"], &[]);
        check(
            json!({"ports": [{"nodePort": 30001}, {"port": 1}, {"nodePort": 0}], "healthCheckNodePort": 30002}),
            &[],
            &[30001, 30002],
        );
    }
}

//! Services, EndpointSlices, pods and nodes as the API writes them, as far as we care, and what the compiler makes of them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Resource;
use serde::Deserialize;

use crate::limits;
use crate::model::{Endpoint, Forwarding, HostPort, Pod, Prefer, Protocol, Service, ServicePort, Slice, SlicePort};

/// Annotation of a Service: `dsr` or `snat`; anything else is as none.
const FORWARDING: &str = "sluice.dev/forwarding-mode";
/// Annotation of a slice: the weight of its endpoints for external connections, 0 to 1,000.
const WEIGHT: &str = "sluice.dev/weight";
/// Annotation of a slice.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a Service, whatever its value: no proxy serves it, even at a cluster address that it has.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Affinity without a timeout of its own: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

macro_rules! view {
    ($name:ident, $kind:literal, $group:literal, $api:literal, $plural:literal, $scope:ident) => {
        impl Resource for $name {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn api_version(_: &()) -> Cow<'_, str> {
                $api.into()
            }
            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use view;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceView {
    metadata: ObjectMeta,
    spec: ServiceSpecView,
    status: ServiceStatusView,
}
view!(ServiceView, "Service", "", "v1", "services", NamespaceResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpecView {
    r#type: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Vec<PortView>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    traffic_distribution: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfigView>,
    #[serde(rename = "loadBalancerSourceRanges")]
    ranges: Option<Vec<String>>,
    health_check_node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfigView {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIpView {
    timeout_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortView {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
    node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatusView {
    load_balancer: LoadBalancerView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancerView {
    ingress: Vec<IngressView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IngressView {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SliceView {
    metadata: ObjectMeta,
    address_type: String,
    endpoints: Option<Vec<EndpointView>>,
    ports: Option<Vec<PortView>>,
}

impl SliceView {
    /// When the cause of its last change came about, as the controller noted it.
    pub(crate) fn trigger(&self) -> Option<Timestamp> {
        self.metadata.annotations.as_ref()?.get(TRIGGER)?.parse().ok()
    }
}
view!(SliceView, "EndpointSlice", "discovery.k8s.io", "discovery.k8s.io/v1", "endpointslices", NamespaceResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct EndpointView {
    addresses: Vec<String>,
    conditions: ConditionsView,
    node_name: Option<String>,
    zone: Option<String>,
    hints: Option<HintsView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HintsView {
    for_zones: Option<Vec<NamedView>>,
    for_nodes: Option<Vec<NamedView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NamedView {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConditionsView {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodView {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: PodSpecView,
    pub(crate) status: PodStatusView,
}
view!(PodView, "Pod", "", "v1", "pods", NamespaceResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodSpecView {
    pub(crate) host_network: bool,
    pub(crate) containers: Vec<ContainerView>,
    pub(crate) init_containers: Option<Vec<ContainerView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerView {
    pub(crate) ports: Option<Vec<ContainerPortView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ContainerPortView {
    pub(crate) name: Option<String>,
    pub(crate) container_port: u16,
    pub(crate) host_port: Option<u16>,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: Option<String>,
    pub(crate) protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatusView {
    pub(crate) phase: Option<String>,
    #[serde(rename = "podIPs")]
    pub(crate) ips: Option<Vec<PodIpView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodIpView {
    pub(crate) ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeView {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: NodeSpecView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpecView {
    taints: Option<Vec<TaintView>>,
}

impl NodeSpecView {
    pub(crate) fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().flatten().any(|taint| taint.key == key)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TaintView {
    key: String,
}
view!(NodeView, "Node", "", "v1", "nodes", ClusterResourceScope);

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn is_local(policy: &Option<String>) -> bool {
    policy.as_deref() == Some("Local")
}

impl From<ServiceView> for Option<Service> {
    /// `None` for services that another proxy or the DNS alone serves.
    fn from(view: ServiceView) -> Option<Service> {
        let labels = view.metadata.labels.as_ref();
        let not_ours = labels.is_some_and(|labels| [OTHER_PROXY, HEADLESS].iter().any(|key| labels.contains_key(*key)));
        let spec = view.spec;
        if not_ours || spec.r#type == "ExternalName" || spec.cluster_ip == "None" {
            return None;
        }
        let cluster = if spec.cluster_ips.is_empty() { vec![spec.cluster_ip] } else { spec.cluster_ips };
        let balancers = view.status.load_balancer.ingress.iter();
        let balancers = balancers.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let ports = spec.ports.into_iter().filter_map(|port| {
            Some(ServicePort {
                name: port.name.unwrap_or_default().into(),
                protocol: Protocol::from_api(port.protocol.as_deref())?,
                port: port.port?,
                node_port: port.node_port.unwrap_or(0),
            })
        });
        let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
        let forwarding = view.metadata.annotations.as_ref().and_then(|annotations| annotations.get(FORWARDING));
        let affine = spec.session_affinity.as_deref() == Some("ClientIP");
        Some(Service {
            cluster: addresses(&cluster),
            external: addresses(&spec.external_ips.unwrap_or_default()),
            balancers: addresses(balancers.filter_map(|ingress| ingress.ip.as_ref())),
            ranges: spec.ranges.iter().flatten().filter_map(|range| range.parse().ok()).collect(),
            ports: ports.collect(),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local: is_local(&spec.external_traffic_policy),
            prefer: match spec.traffic_distribution.as_deref() {
                Some("PreferSameNode") => Prefer::Node,
                Some("PreferSameZone" | "PreferClose") => Prefer::Zone,
                _ => Prefer::Nothing,
            },
            affinity: if affine { timeout.unwrap_or(AFFINITY_SECONDS) } else { 0 },
            forwarding: forwarding.and_then(|word| Forwarding::from_word(word)),
            health_check_port: spec.health_check_node_port.unwrap_or(0),
        })
    }
}

impl From<SliceView> for Option<Slice> {
    /// `None` for slices of names and of no service.
    fn from(view: SliceView) -> Option<Slice> {
        if view.address_type != "IPv4" && view.address_type != "IPv6" {
            return None;
        }
        let service = view.metadata.labels?.remove(SERVICE_NAME)?;
        let weight = view.metadata.annotations.and_then(|annotations| weight(annotations.get(WEIGHT)?));
        let ports = view.ports.unwrap_or_default().into_iter().filter_map(|port| {
            Some(SlicePort {
                name: port.name.unwrap_or_default().into(),
                protocol: Protocol::from_api(port.protocol.as_deref())?,
                port: port.port?,
            })
        });
        let endpoints = view.endpoints.unwrap_or_default().into_iter().map(|endpoint| {
            // Unknown means ready; serving follows ready when it is not said (discovery/v1 API reference).
            let ready = endpoint.conditions.ready.unwrap_or(true);
            let hints = endpoint.hints.unwrap_or_default();
            Endpoint {
                address: endpoint.addresses.first().and_then(|text| text.parse().ok()),
                ready,
                serving: endpoint.conditions.serving.unwrap_or(ready),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.map(Into::into),
                zone: endpoint.zone.map(Into::into),
                for_zones: names(hints.for_zones),
                for_nodes: names(hints.for_nodes),
                weight,
            }
        });
        Some(Slice { service: service.into(), ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

fn weight(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|weight| *weight <= limits::WEIGHT)
}

fn names(views: Option<Vec<NamedView>>) -> Box<[Arc<str>]> {
    views.into_iter().flatten().map(|view| view.name.into()).collect()
}

impl From<PodView> for Option<Pod> {
    /// `None` for pods without host ports or without an address, and for those that ended.
    fn from(view: PodView) -> Option<Pod> {
        let ended = matches!(view.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || view.spec.host_network {
            return None;
        }
        let addresses: Vec<IpAddr> = view.status.ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let containers = view.spec.containers.iter().chain(view.spec.init_containers.iter().flatten());
        let ports: Vec<HostPort> = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                Some(HostPort {
                    protocol: Protocol::from_api(port.protocol.as_deref())?,
                    address: host_address(port.host_ip.as_deref()),
                    host_port: port.host_port.filter(|number| *number != 0)?,
                    port: port.container_port,
                })
            })
            .collect();
        (!ports.is_empty() && !addresses.is_empty()).then_some(Pod { addresses, ports })
    }
}

/// The unspecified address means all, as does none.
fn host_address(text: Option<&str>) -> Option<IpAddr> {
    text?.parse().ok().filter(|address: &IpAddr| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Option<Service> {
        serde_json::from_value::<ServiceView>(value).unwrap().into()
    }

    #[test]
    fn services_as_the_api_writes_them() {
        let full = service(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {FORWARDING: "dsr"}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
                "externalIPs": ["192.0.2.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
                "sessionAffinity": "ClientIP", "trafficDistribution": "PreferClose", "healthCheckNodePort": 30009,
                "loadBalancerSourceRanges": [" 198.51.100.7/24", "nonsense"],
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30001, "protocol": "TCP"},
                    {"name": "sctp", "port": 81, "protocol": "SCTP"}
                ]
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}]}}
        }))
        .unwrap();
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(full.cluster, parse(&["10.96.0.9", "fd00::9"]));
        assert_eq!((full.external, full.balancers), (parse(&["192.0.2.7"]), parse(&["192.0.2.8"])));
        assert_eq!(full.ranges, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!((full.affinity, full.health_check_port), (10_800, 30_009));
        assert_eq!(full.prefer, Prefer::Zone);
        assert_eq!(full.forwarding, Some(Forwarding::Dsr));
        let protocols: Vec<_> = full.ports.iter().map(|port| port.protocol).collect();
        assert_eq!(protocols, [Protocol::Tcp, Protocol::Sctp]);
        assert_eq!((full.ports[0].port, full.ports[0].node_port), (80, 30001));
        assert!(full.external_local && !full.internal_local);
        for spec in [json!({"clusterIP": "None"}), json!({"type": "ExternalName", "externalName": "x"})] {
            assert_eq!(service(json!({"metadata": {"name": "x"}, "spec": spec})), None);
        }
        for (label, value, ours) in [(OTHER_PROXY, "y", false), (HEADLESS, "", false), ("app", "y", true)] {
            let labelled =
                json!({"metadata": {"name": "x", "labels": {label: value}}, "spec": {"clusterIP": "10.96.0.9"}});
            assert_eq!(service(labelled).is_some(), ours, "{label}");
        }
    }

    #[test]
    fn slices_as_the_api_writes_them() {
        let slice: Option<Slice> = serde_json::from_value::<SliceView>(json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_NAME: "web"},
                "annotations": {WEIGHT: "3"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {}, "zone": "z",
                    "hints": {"forZones": [{"name": "y"}], "forNodes": [{"name": "n"}]}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "a"}
            ]
        }))
        .unwrap()
        .into();
        let slice = slice.unwrap();
        let states: Vec<_> =
            slice.endpoints.iter().map(|endpoint| (endpoint.ready, endpoint.serving, endpoint.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, true, true)]);
        assert_eq!(slice.endpoints[1].node.as_deref(), Some("a"));
        assert_eq!(
            (slice.endpoints[1].weight, weight("1001"), weight("-1"), weight(" 0")),
            (Some(3), None, None, Some(0))
        );
        let first = &slice.endpoints[0];
        assert_eq!((first.zone.as_deref(), &*first.for_zones[0], &*first.for_nodes[0]), (Some("z"), "y", "n"));
        let empty = json!({"metadata": {"labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4", "endpoints": null, "ports": null});
        assert!(Option::<Slice>::from(serde_json::from_value::<SliceView>(empty).unwrap()).is_some());
    }

    #[test]
    fn pods_as_the_api_writes_them() {
        let pod = |host_network: bool, phase: &str| -> Option<Pod> {
            serde_json::from_value::<PodView>(json!({
                "metadata": {"name": "a", "namespace": "shop"},
                "spec": {"hostNetwork": host_network, "containers": [
                    {"name": "a", "ports": [
                        {"containerPort": 80, "hostPort": 8080, "protocol": "TCP"},
                        {"containerPort": 53, "hostPort": 53, "hostIP": "10.1.0.1", "protocol": "UDP"},
                        {"containerPort": 81, "hostPort": 8081, "hostIP": "0.0.0.0"},
                        {"containerPort": 9}
                    ]},
                    {"name": "b"}
                ]},
                "status": {"phase": phase, "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}, {"ip": "fd44::9"}]}
            }))
            .unwrap()
            .into()
        };
        let found = pod(false, "Running").unwrap();
        assert_eq!(found.addresses.len(), 2);
        let ports: Vec<_> =
            found.ports.iter().map(|port| (port.host_port, port.port, port.address.is_some())).collect();
        assert_eq!(ports, [(8080, 80, false), (53, 53, true), (8081, 81, false)]);
        assert_eq!((pod(true, "Running"), pod(false, "Failed")), (None, None));
    }
}

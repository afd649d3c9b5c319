//! Services and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::EndpointSubset;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{nullable, resource};
use crate::informer::Kind;

/// Label that names a slice's service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    pub(crate) spec: ServiceSpec,
    /// The load balancer's addresses.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: ServiceStatus,
}
resource!(Service, "", "v1", "Service", "services", NamespaceResourceScope);
impl Kind for Service {
    /// What no other Service may have: its cluster IPs and its node ports.
    fn indexes(&self) -> Vec<String> {
        let ports: BTreeSet<u16> = self.node_ports().into_iter().map(|(port, _)| port).collect();
        self.addresses().into_iter().chain(ports.into_iter().map(Service::port_index)).collect()
    }
}

impl Service {
    /// Its cluster IPs, each in the one form that names IPAddresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let addresses = self.spec.cluster_ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
        addresses.map(|ip| ip.to_string()).collect()
    }

    /// Its node ports with their protocols, the one for health checks last.
    pub(crate) fn node_ports(&self) -> Vec<(u16, &str)> {
        let ports = self.spec.ports.iter();
        let ports = ports.map(|port| (port.node_port.unwrap_or(0), port.protocol.as_deref().unwrap_or("TCP")));
        let health = self.spec.health_check_node_port.map(|port| (port, "TCP"));
        ports.chain(health).filter(|(port, _)| *port > 0).collect()
    }

    /// By which Services with a node port are found.
    pub(crate) fn port_index(port: u16) -> String {
        format!("port {port}")
    }
}

/// What is wanted of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    /// Labels of its pods; without any, endpoints are made by others.
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: BTreeMap<String, String>,
    /// Ports.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ServicePort>,
    /// Address, `None` for headless ones.
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    /// Addresses, the first one included.
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub(crate) cluster_ips: Vec<String>,
    /// Pods that are not ready are published too.
    pub(crate) publish_not_ready_addresses: bool,
    /// ClusterIP, ExternalName, ...
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// IPv4, IPv6 or both.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip_families: Vec<String>,
    /// SingleStack, PreferDualStack or RequireDualStack.
    pub(crate) ip_family_policy: Option<String>,
    /// `Local`: only endpoints of the node that a packet comes to answer it.
    pub(crate) external_traffic_policy: Option<String>,
    /// Whose business the load balancer is.
    pub(crate) load_balancer_class: Option<String>,
    /// The address that is asked for.
    #[serde(rename = "loadBalancerIP")]
    pub(crate) load_balancer_ip: Option<String>,
    /// Where load balancers ask whether a node has endpoints.
    pub(crate) health_check_node_port: Option<u16>,
    /// `PreferSameZone` (or `PreferClose`) and `PreferSameNode` fill in hints.
    pub(crate) traffic_distribution: Option<String>,
}

/// What became of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    /// Addresses from outside.
    #[serde(deserialize_with = "nullable")]
    pub(crate) load_balancer: LoadBalancerStatus,
    /// What is to be said of it.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<Condition>,
}

/// Addresses from outside.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancerStatus {
    /// One by one.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ingress: Vec<LoadBalancerIngress>,
}

/// An address from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancerIngress {
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ip: Option<String>,
    /// VIP: packets arrive with the address as their destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ip_mode: Option<String>,
    /// Others' balancers may have a name instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServicePort {
    /// Name.
    pub(crate) name: Option<String>,
    /// TCP, UDP or SCTP.
    pub(crate) protocol: Option<String>,
    /// Number on the service's address.
    pub(crate) port: i32,
    /// Number on every node.
    pub(crate) node_port: Option<u16>,
    /// Number or name on the pods.
    pub(crate) target_port: Option<IntOrString>,
    /// Application protocol.
    pub(crate) app_protocol: Option<String>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Slice {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// IPv4 or IPv6.
    pub(crate) address_type: String,
    /// Endpoints.
    #[serde(deserialize_with = "nullable")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// Ports of all of them.
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<EndpointPort>,
}
resource!(Slice, "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", NamespaceResourceScope);

impl Kind for Slice {
    fn indexes(&self) -> Vec<String> {
        let labels = self.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        service.map(|service| format!("{namespace}/{service}")).into_iter().collect()
    }
}

/// The old Endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoints {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Addresses and ports.
    #[serde(deserialize_with = "nullable")]
    pub(crate) subsets: Vec<EndpointSubset>,
}
resource!(Endpoints, "", "v1", "Endpoints", "endpoints", NamespaceResourceScope);
impl Kind for Endpoints {}

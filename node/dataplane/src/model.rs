//! What the service compiler looks at: plain views of Services, EndpointSlices and pods with nothing else in them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_ebpf_common::protocol;

use crate::Range;

/// `(namespace, name)`.
pub type ObjectName = (Arc<str>, Arc<str>);

/// Everything that decides the service table of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services by name.
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices by name.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// Pods of this node with host ports, by name.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// This node's name, to tell local endpoints.
    pub node: String,
    /// This node's zone (label `topology.kubernetes.io/zone`).
    pub zone: Option<String>,
    /// How services that do not say so reach backends on other nodes.
    pub forwarding: Forwarding,
}

/// How packets from outside get from the node that they come to to a backend on another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// With that node's address as their source: answers come back through it.
    #[default]
    Snat,
    /// As they are, inside packets of that node's own: the backend's node answers the client itself (direct server return).
    Dsr,
}

impl Forwarding {
    /// From the words `snat` and `dsr`; `None` for anything else.
    pub fn from_word(word: &str) -> Option<Forwarding> {
        match word.trim() {
            "snat" => Some(Forwarding::Snat),
            "dsr" => Some(Forwarding::Dsr),
            _ => None,
        }
    }
}

/// Transport protocols that services have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: by packet only, as its sockets have no hooks.
    Sctp,
}

impl Protocol {
    /// From the API's spelling; `None` for anything else.
    pub fn from_api(text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => protocol::TCP,
            Protocol::Udp => protocol::UDP,
            Protocol::Sctp => protocol::SCTP,
        }
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Cluster addresses; empty for headless services.
    pub cluster: Vec<IpAddr>,
    /// External addresses.
    pub external: Vec<IpAddr>,
    /// Addresses of the load balancer.
    pub balancers: Vec<IpAddr>,
    /// Clients that the load balancer's addresses serve; empty for all.
    pub ranges: Vec<Range>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Which endpoints are preferred when slices give no hints.
    pub prefer: Prefer,
    /// Seconds for which a client keeps its backend, 0 without affinity.
    pub affinity: u32,
    /// How its external addresses reach backends on other nodes; the node's own way if it does not say.
    pub forwarding: Option<Forwarding>,
    /// Port that says whether this node has endpoints, 0 for none.
    pub health_check_port: u16,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// All endpoints alike.
    #[default]
    Nothing,
    /// Those of this zone.
    Zone,
    /// Those of this node.
    Node,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// May be empty when it is the only one.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the cluster and external addresses.
    pub port: u16,
    /// Port of the node's addresses, 0 for none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Name of the Service in the same namespace.
    pub service: Arc<str>,
    /// Ports of every endpoint.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; the first one is used, as upstream does.
    pub address: Option<IpAddr>,
    /// Takes new connections.
    pub ready: bool,
    /// Works, though it may be terminating.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
    /// Zones that should use it.
    pub for_zones: Box<[Arc<str>]>,
    /// Nodes that should use it.
    pub for_nodes: Box<[Arc<str>]>,
    /// Its part of new external connections, beside the others' (1 by default); 0 for none.
    pub weight: Option<u16>,
}

/// A pod of this node with host ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host ports.
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Protocol.
    pub protocol: Protocol,
    /// The node's address; `None` for all of them.
    pub address: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub port: u16,
}

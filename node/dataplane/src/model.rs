//! What the service compiler looks at: plain views of Services and EndpointSlices with nothing else in them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use sluice_ebpf_common::protocol;

/// `(namespace, name)`.
pub type ObjectName = (String, String);

/// Everything that decides the service table of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services by name.
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices by name.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// This node's name, to tell local endpoints.
    pub node: String,
}

/// Transport protocols that services have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// From the API's spelling; `None` for SCTP, which is not translated yet.
    pub fn from_api(text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => protocol::TCP,
            Protocol::Udp => protocol::UDP,
        }
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Cluster addresses; empty for headless services.
    pub cluster: Vec<Ipv4Addr>,
    /// Addresses from outside the cluster: external addresses and those of a load balancer.
    pub external: Vec<Ipv4Addr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `trafficDistribution: PreferSameNode`.
    pub prefer_local: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// May be empty when it is the only one.
    pub name: String,
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
    pub service: String,
    /// Ports of every endpoint.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; the first one is used, as upstream does.
    pub address: Option<Ipv4Addr>,
    /// Takes new connections.
    pub ready: bool,
    /// Works, though it may be terminating.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<String>,
}

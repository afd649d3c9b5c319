//! The service table: who is asked for (frontends), who answers (backends), and the node's own settings.

/// From where a frontend may be used.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// From sockets of this node and packets of its pods.
    Internal = 0,
    /// From packets that come in on any other link.
    External = 1,
}

/// Key of a frontend. `address` 0 stands for every local address of the node (node ports).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// Network order.
    pub address: u32,
    /// Network order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`Scope`] as a number.
    pub scope: u8,
}

/// A frontend: a run of backend ids in the slab.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Unique per write over all frontends; a reader that sees it change reads again.
    pub generation: u32,
    /// Service id: index of name and counters.
    pub service: u32,
    /// First slab word of the list.
    pub base: u32,
    /// Words in the list; 0 means that the service has no endpoint.
    pub count: u32,
    /// `Frontend::*` bits.
    pub flags: u32,
    /// Seconds of client affinity, 0 without. Not used yet.
    pub affinity: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

impl Frontend {
    /// The list holds this node's backends only, so the client's address is kept.
    pub const LOCAL_ONLY: u32 = 1;
}

/// A place where a service is answered. Slots are immutable while any list names them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Network order.
    pub address: u32,
    /// Network order.
    pub port: u16,
    /// `Backend::*` bits.
    pub flags: u16,
}

impl Backend {
    /// The backend runs on this node.
    pub const LOCAL: u16 = 1;
    /// The slot is in use.
    pub const USED: u16 = 2;
}

/// Words of the slab in one element of its map: a cache line, because array elements smaller than 8 bytes waste memory.
pub const SLAB_LINE: usize = 16;

/// Name of a service port for people, zero padded: `namespace/name:port`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// UTF-8.
    pub bytes: [u8; Self::LENGTH],
}

impl ServiceName {
    /// Room for two DNS labels, a port name, separators.
    pub const LENGTH: usize = 160;
}

/// What was carried for a service or a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections (or first datagrams of a socket) sent to a backend.
    pub connections: u64,
    /// Packets translated one by one, both directions. Sockets' own traffic is not seen here.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Connections refused because there was no endpoint.
    pub refused: u64,
}

/// The node, as the programs need to know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Address that masqueraded traffic leaves with when the link has none of its own. Network order.
    pub node_address: u32,
    /// This node's pods. Network order.
    pub pod_network: u32,
    /// Mask of `pod_network`; 0 turns masquerading off.
    pub pod_mask: u32,
    /// All pods of the cluster: traffic to them keeps its source.
    pub cluster_network: u32,
    /// Mask of `cluster_network`.
    pub cluster_mask: u32,
    /// First node port, host order.
    pub node_port_first: u16,
    /// Last node port, host order.
    pub node_port_last: u16,
    /// First masquerade port, host order.
    pub source_port_first: u16,
    /// Last masquerade port, host order.
    pub source_port_last: u16,
    /// 1: only sockets of the node and of known pods are translated, others' traffic is translated packet by packet when
    /// it arrives. 0 while no pod's namespace is known: every socket below the cgroup is translated.
    pub known_only: u32,
    /// Cookie of the node's own network namespace: only its sockets may use loopback node ports.
    pub host_cookie: u64,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 8 && align_of::<FrontendKey>() == 4);
    assert!(size_of::<Frontend>() == 32 && align_of::<Frontend>() == 4);
    assert!(size_of::<Backend>() == 8 && align_of::<Backend>() == 4);
    assert!(size_of::<ServiceName>() == ServiceName::LENGTH);
    assert!(size_of::<Counters>() == 32 && align_of::<Counters>() == 8);
    assert!(size_of::<Settings>() == 40 && align_of::<Settings>() == 8);
};

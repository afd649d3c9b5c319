//! The service table: who is asked for (frontends), who answers (backends), and the node's own settings.

use crate::Address;

/// From where a frontend may be used.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// From sockets of this node and packets of its pods.
    Internal = 0,
    /// From packets that come in on any other link.
    External = 1,
}

/// Key of a frontend. [`Address::ANY_V4`] and [`Address::ANY_V6`] stand for every local address of the node (node ports, host
/// ports).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address that is asked for.
    pub address: Address,
    /// Network order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`Scope`] as a number.
    pub scope: u8,
}

/// A frontend: a run of words in the slab. First the ids of the backends that take new connections, in ascending order so that
/// most stay in place when one comes or goes; then the ids of those that only keep their flows; then, where every node
/// has to choose alike, a table of places in the first list, two in a word, the lower half first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Unique per write over all frontends; a reader that sees it change reads again.
    pub generation: u32,
    /// Service id: index of name and counters.
    pub service: u32,
    /// First slab word of the list.
    pub base: u32,
    /// Backends that take new connections; 0 means that nobody can answer.
    pub count: u32,
    /// `Frontend::*` bits.
    pub flags: u32,
    /// Seconds for which a client keeps its backend, 0 without.
    pub affinity: u32,
    /// Backends that take no new connections and keep their flows.
    pub draining: u32,
    /// Places in the table; 0 without one: any backend will do.
    pub table: u32,
}

impl Frontend {
    /// First slab word of the table.
    #[inline(always)]
    pub const fn table_base(&self) -> u32 {
        self.base.wrapping_add(self.count).wrapping_add(self.draining)
    }

    /// The list holds this node's backends only, so the client's address is kept.
    pub const LOCAL_ONLY: u32 = 1;
    /// Only clients of the service's source ranges are served.
    pub const RANGES: u32 = 2;
    /// There are endpoints on other nodes: while the list is empty, packets are dropped and not refused, as the client may
    /// be sent to another node when it tries again.
    pub const ELSEWHERE: u32 = 4;
    /// Backends on other nodes get the client's packets inside others and answer the client themselves.
    pub const DIRECT: u32 = 8;
}

/// A place where a service is answered. Slots are immutable while any list names them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The address that answers.
    pub address: Address,
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

/// Who keeps its backend of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The client's address, or the cookie of its network namespace in the first two words.
    pub client: Address,
    /// Service id.
    pub service: u32,
    /// [`AffinityKey::ADDRESS`] or [`AffinityKey::NAMESPACE`].
    pub kind: u32,
}

impl AffinityKey {
    /// The client is known by its address (packets).
    pub const ADDRESS: u32 = 0;
    /// The client is known by its network namespace (sockets, which have no address yet when they connect).
    pub const NAMESPACE: u32 = 1;
}

/// The backend that a client keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// What the backend's slot held: a slot may be reused.
    pub backend: Backend,
    /// Backend id.
    pub id: u32,
    /// Where the list named it.
    pub index: u32,
    /// Seconds of the coarse monotonic clock at the last new connection.
    pub seen: u32,
}

/// A source range of a service, key of a longest-prefix trie: the service is part of every prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// Service id.
    pub service: u32,
    /// A client's address, or a range's.
    pub address: Address,
}

impl RangeKey {
    /// In place of a service id: destinations outside of the cluster that pods' packets go to with the pod's own address.
    pub const UNMASQUERADED: u32 = u32::MAX;
    /// Bits of the service id, which every prefix has.
    pub const SERVICE_BITS: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = 160;
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

/// What the node is in one address family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Address that masqueraded traffic leaves with when the link has none of its own.
    pub node: Address,
    /// This node's pods.
    pub pod_network: Address,
    /// Mask of `pod_network`; empty turns masquerading off.
    pub pod_mask: Address,
    /// All pods of the cluster: traffic to them keeps its source.
    pub cluster_network: Address,
    /// Mask of `cluster_network`.
    pub cluster_mask: Address,
}

/// The node, as the programs need to know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// IPv4, IPv6.
    pub families: [Family; 2],
    /// Cookie of the node's own network namespace: only its sockets may use loopback node ports.
    pub host_cookie: u64,
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
    /// `Settings::*` bits.
    pub flags: u32,
    /// Processors, which is how many counters each id has.
    pub processors: u32,
    /// Raised when links, addresses or routes change: no cached decision holds any more.
    pub epoch: u32,
    /// Buckets of the flow cache for each processor, less one: a power of two. 0 turns the cache off.
    pub cache_mask: u32,
    /// The kernel's timer ticks make a second when shifted right by this.
    pub tick_shift: u32,
}

impl Settings {
    /// There are frontends on every local address outside the node ports (host ports).
    pub const HOST_PORTS: u32 = 1;
    /// The kernel has no other rules for routes than those that it begins with, so a packet's way depends on where it goes.
    pub const PLAIN_RULES: u32 = 2;
    /// Node ports do not answer on the loopback addresses of IPv4.
    pub const NO_LOOPBACK_V4: u32 = 4;
    /// The same for IPv6.
    pub const NO_LOOPBACK_V6: u32 = 8;
    /// Somebody follows connections: the programs tell of them.
    pub const FOLLOWED: u32 = 16;

    /// What holds for IPv4 or IPv6.
    #[inline(always)]
    pub const fn family(&self, v4: bool) -> &Family {
        if v4 { &self.families[0] } else { &self.families[1] }
    }

    /// The clock's tick, about a second, at so many of the kernel's timer ticks.
    #[inline(always)]
    pub const fn tick(&self, jiffies: u64) -> u32 {
        (jiffies >> (self.tick_shift & 15)) as u32
    }
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 20 && align_of::<FrontendKey>() == 4);
    assert!(size_of::<Frontend>() == 32 && align_of::<Frontend>() == 4);
    assert!(size_of::<Backend>() == 20 && align_of::<Backend>() == 4);
    assert!(size_of::<AffinityKey>() == 24 && align_of::<AffinityKey>() == 4);
    assert!(size_of::<Affinity>() == 32 && align_of::<Affinity>() == 4);
    assert!(size_of::<RangeKey>() == 20 && align_of::<RangeKey>() == 4);
    assert!(size_of::<ServiceName>() == ServiceName::LENGTH);
    assert!(size_of::<Counters>() == 32 && align_of::<Counters>() == 8);
    assert!(size_of::<Settings>() == 200 && align_of::<Settings>() == 8);
};

//! Types shared by the eBPF programs and user space: map keys and values, events, reasons.
//!
//! Invariants: no_std, no logic beyond constructors and names, every type `#[repr(C)]` without padding and checked for
//! size and alignment at compile time. Addresses and ports are in network byte order exactly as they stand in a packet
//! (`u32::from_ne_bytes(octets)`, `port.to_be()`), so no program ever swaps bytes on its fast path. Both address families
//! share every map.
//!
//! A change of any layout here, or of a map's type, must raise [`SCHEMA`]: maps of two schemas live in different pin
//! directories and are never mixed.
#![no_std]

mod address;
pub mod bench;
pub mod cache;
mod flow;
pub mod known;
pub mod lost;
pub mod opened;
mod pace;
mod pod;
mod policy;
pub mod ports;
pub mod probe;
mod reason;
mod service;
mod socket;
pub mod stream;

pub use address::Address;
pub use flow::{Flow, FlowKey, FlowKind, FragmentKey, FragmentPorts};
pub use pace::Pace;
pub use pod::{Owner, PodLink};
pub use policy::{Allowed, AllowedKey, Guard, RuleKey};
pub use reason::Reason;
pub use service::{
    Affinity, AffinityKey, Backend, Counters, Family, Frontend, FrontendKey, RangeKey, SLAB_LINE, Scope, ServiceName,
    Settings,
};
pub use socket::{SOCKET_TRANSLATIONS, SocketState, Translation};

/// Version of everything in this crate that is visible in a pinned map.
pub const SCHEMA: u32 = 6;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 inside an IP packet.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 inside an IP packet.
    pub const IPV6: u8 = 41;
    /// ICMP for IPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Bounds of the maps as declared in the object. Those that also stand in [`start`] begin smaller and grow while they are
/// in use, up to these.
pub mod limits {
    /// Frontends: one per service address, port, protocol and scope.
    pub const FRONTENDS: u32 = 1_048_576;
    /// Backend slots; an id is an index.
    pub const BACKENDS: u32 = 2_097_152;
    /// Words of the slab that holds backend lists.
    pub const SLAB: u32 = 8_388_608;
    /// Service ports that have a name and counters; an id is an index.
    pub const SERVICES: u32 = 262_144;
    /// Clients that keep their backends; the least recently used give way.
    pub const AFFINITIES: u32 = 32_768;
    /// Source ranges of all services.
    pub const RANGES: u32 = 16_384;
    /// Words of a list that are searched for the backend that a client keeps, around the place where it was.
    pub const AFFINITY_WINDOW: u32 = 32;
    /// Extension headers of an IPv6 packet that are looked past.
    pub const EXTENSIONS: u32 = 2;
    /// Datagrams in fragments whose ports are remembered at a time; the least recently used give way.
    pub const FRAGMENTS: u32 = 8_192;
    /// Entries of the flow map, two for each translation of a connection; two for both when the driver's program makes them.
    pub const FLOWS: u32 = 4_194_304;
    /// Local addresses and links of the node.
    pub const LOCALS: u32 = 4_096;
    /// Other nodes' addresses.
    pub const NODES: u32 = 16_384;
    /// Buckets of the flow cache over all processors, per address family.
    pub const CACHE_BUCKETS: u32 = 524_288;
    /// Buckets of the flow cache for one processor at most.
    pub const CACHE_BUCKETS_EACH: u32 = 65_536;
    /// Pods of the node.
    pub const PODS: u32 = 4_096;
    /// Places of namespaces whose owners are found at once; a power of two.
    pub const OWNERS: u32 = PODS;
    /// Addresses of the node's pods whose packets go past its stack.
    pub const POD_ADDRESSES: u32 = 2 * PODS;
    /// The kernel's reasons for a drop that are told apart, from 0 on; Linux 6.18 has about 120.
    pub const KERNEL_REASONS: u32 = 256;
    /// Addresses of pods of the cluster that policies of this node's pods name.
    pub const PEERS: u32 = 262_144;
    /// Networks that policies of this node's pods name.
    pub const BLOCKS: u32 = 65_536;
    /// Rules of all sets; a range of ports takes up to 30.
    pub const RULES: u32 = 1_048_576;
    /// Connections of pods with policies that are remembered as allowed; the least recently used are judged again.
    pub const ALLOWED: u32 = 65_536;
    /// Places of pods with a limit of what they send; the first is nobody's.
    pub const PACES: u32 = PODS + 1;
    /// Services, and pods, that the probe programs count for; a power of two.
    pub const FIGURES: u32 = 2_048;
    /// Bytes of the event ring.
    pub const EVENTS: u32 = 65_536;
    /// Bytes of the ring for whoever follows connections.
    pub const STREAM: u32 = 262_144;
    /// Bytes in it from which on everything that comes wakes the reader, who else is woken by what comes into an empty ring.
    pub const STREAM_FILLED: u32 = STREAM / 4;
    /// Looks for a free port for a masqueraded connection: the first one finds it, unless another processor takes it.
    pub const PORT_PROBES: u32 = 2;
    /// Connections that one processor of a load balancer remembers in a second; what comes faster is a flood, and goes by the
    /// table of backends alone. As Katran has it (`MAX_CONN_RATE` in its `balancer_consts.h`).
    pub const NEW_FLOWS: u32 = 125_000;
    /// Connections of which one processor saw the first packet alone; a power of two. More share these places.
    pub const BEGUN: u32 = 1_024;
    /// Places that count which answers' entries were made in the flow table; a power of two.
    pub const ANSWERS: u32 = 4_096;
    /// Backends elsewhere to which a processor keeps the way, for a tick at most; a power of two. More share these places.
    pub const TRAILS: u32 = 256;
}

/// Sizes that growing maps begin with: enough for a small cluster.
pub mod start {
    /// As [`limits::FRONTENDS`](super::limits::FRONTENDS).
    pub const FRONTENDS: u32 = 8_192;
    /// As [`limits::BACKENDS`](super::limits::BACKENDS).
    pub const BACKENDS: u32 = 8_192;
    /// As [`limits::SLAB`](super::limits::SLAB).
    pub const SLAB: u32 = 65_536;
    /// As [`limits::SERVICES`](super::limits::SERVICES).
    pub const SERVICES: u32 = 4_096;
    /// As [`limits::RANGES`](super::limits::RANGES).
    pub const RANGES: u32 = 1_024;
    /// As [`limits::FLOWS`](super::limits::FLOWS).
    pub const FLOWS: u32 = 65_536;
}

/// Names of the maps, as pinned and as declared in the object.
pub mod maps {
    /// `FrontendKey` to `Frontend`.
    pub const FRONTENDS: &str = "frontends";
    /// Backend id to `Backend`.
    pub const BACKENDS: &str = "backends";
    /// Lists of backend ids.
    pub const SLAB: &str = "slab";
    /// Service id to `ServiceName`, for people; the programs never read it.
    pub const NAMES: &str = "names";
    /// `AffinityKey` to `Affinity`.
    pub const AFFINITIES: &str = "affinities";
    /// Prefixes of `RangeKey`, for services that serve some clients only.
    pub const RANGES: &str = "ranges";
    /// `FlowKey` to `Flow`.
    pub const FLOWS: &str = "flows";
    /// The other flow map while one replaces the other; never pinned under this name.
    pub const FLOWS_BESIDE: &str = "flows_beside";
    /// Places of connections that were only opened; see `opened`.
    pub const OPENED: &str = "opened";
    /// Bits of those that somebody has.
    pub const PLACES: &str = "places";
    /// `FragmentKey` to `FragmentPorts`.
    pub const FRAGMENTS: &str = "fragments";
    /// Bits of the ports that masqueraded connections have; see `ports`.
    pub const PORTS: &str = "ports";
    /// The bits of `known`.
    pub const KNOWN: &str = "known";
    /// How many entries for answers were made in the flow table, by a hash of their key.
    pub const ANSWERS: &str = "answers";
    /// Local addresses, each with 0 or [`NO_NODE_PORTS`](super::NO_NODE_PORTS).
    pub const LOCALS: &str = "locals";
    /// Addresses of the other nodes.
    pub const NODES: &str = "nodes";
    /// `SourceKey` to the address that masqueraded traffic leaves with.
    pub const SOURCES: &str = "sources";
    /// Cookies of the pods' network namespaces, with the index of the node's side of their link.
    pub const NAMESPACES: &str = "namespaces";
    /// `Owner` by `Owner::place`: most of the same.
    pub const OWNERS: &str = "owners";
    /// Addresses of pods whose packets go past the node's stack, with their `PodLink`.
    pub const PODS: &str = "pods";
    /// Link index to `Guard`.
    pub const GUARDS: &str = "guards";
    /// Addresses of the cluster's pods, with who they are to policies.
    pub const PEERS: &str = "peers";
    /// Prefixes of addresses that policies name, with who is in them.
    pub const BLOCKS: &str = "blocks";
    /// Prefixes of `RuleKey`: what policies allow.
    pub const RULES: &str = "rules";
    /// `AllowedKey` to `Allowed`.
    pub const ALLOWED: &str = "allowed";
    /// Indices of the node's side of limited pods' links, with a place in the next one.
    pub const PACED: &str = "paced";
    /// `Pace` by place.
    pub const PACES: &str = "paces";
    /// Flow cache for IPv4: buckets of records, each processor's in a row.
    pub const CACHE4: &str = "cache4";
    /// Flow cache for IPv6.
    pub const CACHE6: &str = "cache6";
    /// Service id to the generation of the last change to it.
    pub const GENERATIONS: &str = "generations";
    /// Link index to `Uplink`.
    pub const UPLINKS: &str = "uplinks";
    /// One `Settings`.
    pub const SETTINGS: &str = "settings";
    /// One word: the index of the link that leads to Services by packet for the node itself, 0 while there is none.
    pub const HOME: &str = "home";
    /// One word: 1 while user space sweeps the flow map.
    pub const SWEEPER: &str = "sweeper";
    /// `Counters` by service id times processors plus processor.
    pub const SERVICE_COUNTERS: &str = "service_counters";
    /// `Counters` by backend id times processors plus processor.
    pub const BACKEND_COUNTERS: &str = "backend_counters";
    /// `Reason` to packets, per CPU.
    pub const REASONS: &str = "reasons";
    /// The kernel's own reasons to packets, per CPU.
    pub const LOST: &str = "lost";
    /// `ProbeKey` by seat.
    pub const SEATS: &str = "seats";
    /// `ProbeFigures` by seat, per CPU.
    pub const MEASURED: &str = "measured";
    /// Ring of `Event`.
    pub const EVENTS: &str = "events";
    /// Ring of what is told of connections; see `stream`.
    pub const STREAM: &str = "stream";
    /// `Telling` by `stream::bucket`, per CPU.
    pub const TELLING: &str = "telling";
    /// `Telling` by the kernel's reason, per CPU.
    pub const TELLING_LOST: &str = "telling_lost";
    /// One `LostFields`; not pinned, as the program that reads it.
    pub const LOST_FIELDS: &str = "lost_fields";
    /// Socket storage of `SocketState`.
    pub const SOCKETS: &str = "sockets";
    /// What programs do while flow maps are replaced: a constant of the object.
    pub mod mode {
        /// There is one flow map.
        pub const NORMAL: u8 = 0;
        /// Flows are made in one map and looked up in a second one, too.
        pub const BESIDE: u8 = 1;
        /// No flow is made: packets that would need one are dropped, to be sent again.
        pub const HOLD: u8 = 2;
    }
    /// Revision of a map's layout, beside its type and sizes: raised when the same bytes mean something else.
    pub fn revision(name: &str) -> u32 {
        match name {
            FLOWS | PORTS => 2,
            _ => 1,
        }
    }
    /// Every pinned map.
    pub const ALL: [&str; 44] = [
        FRONTENDS,
        BACKENDS,
        SLAB,
        NAMES,
        AFFINITIES,
        RANGES,
        FLOWS,
        OPENED,
        PLACES,
        FRAGMENTS,
        PORTS,
        KNOWN,
        ANSWERS,
        LOCALS,
        NODES,
        SOURCES,
        NAMESPACES,
        OWNERS,
        PODS,
        GUARDS,
        PEERS,
        BLOCKS,
        RULES,
        ALLOWED,
        PACED,
        PACES,
        CACHE4,
        CACHE6,
        GENERATIONS,
        UPLINKS,
        SETTINGS,
        HOME,
        SWEEPER,
        SERVICE_COUNTERS,
        BACKEND_COUNTERS,
        REASONS,
        LOST,
        SEATS,
        MEASURED,
        EVENTS,
        STREAM,
        TELLING,
        TELLING_LOST,
        SOCKETS,
    ];
}

/// The hardware address of the link that leads to Services by packet for the node itself, of both its ends.
pub const HOME_MAC: [u8; 6] = [0x02, 0x51, 0xce, 0, 0, 1];

/// Of a local address: node ports do not answer on it.
pub const NO_NODE_PORTS: u32 = 1;

/// Key of the addresses that masqueraded traffic leaves with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// Link index.
    pub link: u32,
    /// 4 or 6.
    pub version: u32,
}

const _: () = assert!(size_of::<SourceKey>() == 8);

/// What the programs tell user space through the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of the `Event::*` constants.
    pub kind: u32,
    /// Depends on the kind; 0 now.
    pub value: u32,
}

impl Event {
    /// A flow was created while nobody swept the flow map.
    pub const FLOWS: u32 = 1;
}

const _: () = assert!(size_of::<Event>() == 8);

#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code)]
    use super::bench::Round;
    use super::cache::{Record, Uplink};
    use super::lost::LostFields;
    use super::opened::Opened;
    use super::probe::{ProbeFields, ProbeFigures, ProbeKey};
    use super::stream::{Telling, Told, ToldLost};
    use super::{
        Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Counters, Flow, FlowKey, FragmentKey,
        FragmentPorts, Frontend, FrontendKey, Guard, Owner, Pace, PodLink, RangeKey, RuleKey, ServiceName, Settings,
        SocketState, SourceKey,
    };

    macro_rules! plain_old_data {
        ($($name:ty),* $(,)?) => {
            // SAFETY: all are `#[repr(C)]`, `Copy`, made of integers only and without padding, as asserted beside
            // their definitions, so every bit pattern is a value and every byte is initialised.
            $(unsafe impl aya::Pod for $name {})*
        };
    }

    plain_old_data!(
        Address,
        Affinity,
        AffinityKey,
        Allowed,
        AllowedKey,
        Backend,
        Counters,
        Flow,
        FlowKey,
        FragmentKey,
        FragmentPorts,
        Opened,
        Frontend,
        FrontendKey,
        Guard,
        LostFields,
        Owner,
        Pace,
        PodLink,
        ProbeFields,
        ProbeFigures,
        ProbeKey,
        RangeKey,
        Round,
        RuleKey,
        ServiceName,
        Settings,
        SocketState,
        SourceKey,
        Telling,
        Told,
        ToldLost,
        Uplink,
    );

    // SAFETY: as above; the sizes asserted beside the definition leave no padding.
    unsafe impl<A: aya::Pod, S: aya::Pod> aya::Pod for Record<A, S> {}
}

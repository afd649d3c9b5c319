//! Every bound of this crate that is not the size of a map (those are in `sluice_ebpf_common::limits`).

use std::time::Duration;

/// How long freed slots and slab runs rest before they are used again. A program that read the old table runs for
/// microseconds.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(1);

/// Changes that come within this time of each other are compiled together.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(3);

/// A steady stream of changes is compiled at least this often.
pub(crate) const DEBOUNCE_MOST: Duration = Duration::from_millis(50);

/// Time between two looks at the flow map while it is not empty.
pub(crate) const SWEEP: Duration = Duration::from_secs(10);

/// Idle seconds after which a flow entry is removed; as in nf_conntrack.
pub(crate) mod idle {
    /// TCP, established.
    pub(crate) const TCP: u32 = 86_400;
    /// TCP, answered by nobody.
    pub(crate) const TCP_OPENING: u32 = 120;
    /// TCP and SCTP, after FIN (SHUTDOWN) in both directions or RST (ABORT).
    pub(crate) const TCP_CLOSED: u32 = 30;
    /// SCTP, answered; its ends send heartbeats every 30 seconds.
    pub(crate) const SCTP: u32 = 210;
    /// UDP, answered.
    pub(crate) const UDP: u32 = 120;
    /// UDP and SCTP without an answer, ICMP.
    pub(crate) const OTHER: u32 = 30;
}

/// Ports for masqueraded connections, above the kernel's default range for its own sockets.
pub(crate) const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Where the proxy says that it works, as upstream's does.
pub(crate) const HEALTH_PORT: u16 = 10_256;

/// How long a health check may take to ask.
pub(crate) const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// The largest weight of an endpoint.
pub(crate) const WEIGHT: u16 = 1_000;

/// Problems kept for `status`.
pub(crate) const PROBLEMS: usize = 32;
/// Places that pods' packets go to with the pod's own address.
pub const UNMASQUERADED: usize = 64;

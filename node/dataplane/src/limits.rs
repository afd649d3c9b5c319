//! Every bound of this crate that is not the size of a map (those are in `sluice_ebpf_common::limits`).

use std::time::Duration;

use sluice_ebpf_common::{Flow, FlowKey, limits, start};

/// How long freed slots and slab runs rest before they are used again. A program that read the old table runs for
/// microseconds.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(1);

/// Frontends without room that one pass tries again at most.
pub(crate) const RETRIES: usize = 256;

/// Events that are taken in before a pass begins, as long as there are some: a steady stream of them does not keep it from
/// beginning.
pub(crate) const GATHERED: usize = 1_024;

/// Changes of a pass that are timed from their causes at most.
pub(crate) const CAUSES: usize = 1_024;

/// Time between two looks at the flow map while it is not empty.
pub(crate) const SWEEP: Duration = Duration::from_secs(10);

/// The same while it fills.
pub(crate) const SWEEP_BUSY: Duration = Duration::from_secs(1);

/// Time between two looks for datagram sockets whose backend is gone, at least.
pub(crate) const DATAGRAMS: Duration = Duration::from_millis(200);

/// How long the maps of an earlier build are kept for a rollback.
pub(crate) const KEEP: Duration = Duration::from_secs(600);

/// Idle seconds after which a flow entry is removed. Where nothing else is said these are nf_conntrack's defaults (Linux,
/// Documentation/networking/nf_conntrack-sysctl.rst), as kube-proxy leaves them or sets them itself (its
/// `conntrack.tcpEstablishedTimeout` of 24 h). A flow whose service or backend is gone drains under the same rules: it is
/// never removed for that.
pub(crate) mod idle {
    /// TCP, established: kube-proxy's 24 h, where nf_conntrack alone has 5 days.
    pub(crate) const TCP: u32 = 86_400;
    /// TCP, answered by nobody: `nf_conntrack_tcp_timeout_syn_sent`.
    pub(crate) const TCP_OPENING: u32 = 120;
    /// TCP and SCTP, after FIN (SHUTDOWN) in both directions or RST (ABORT): `nf_conntrack_tcp_timeout_last_ack`; what is sent
    /// again after that is answered by the backend's own state.
    pub(crate) const TCP_CLOSED: u32 = 30;
    /// SCTP, answered: `nf_conntrack_sctp_timeout_established` of Linux 6.1 and newer; its ends send heartbeats every 30
    /// seconds.
    pub(crate) const SCTP: u32 = 210;
    /// UDP, answered: `nf_conntrack_udp_timeout_stream`.
    pub(crate) const UDP: u32 = 120;
    /// UDP and SCTP without an answer, ICMP: `nf_conntrack_udp_timeout`, `nf_conntrack_icmp_timeout`.
    pub(crate) const OTHER: u32 = 30;
}

/// Ports for masqueraded connections, above the kernel's default range for its own sockets.
pub(crate) const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Bytes of an entry of the flow map, for which the kernel makes room beforehand: its own 48, key and value.
const FLOW: u64 = 48 + size_of::<(FlowKey, Flow)>() as u64;

/// Entries that the flow map may have on a machine with so much memory: a sixteenth of it.
pub(crate) fn flows(memory: u64) -> u32 {
    let fits = (memory / 16 / FLOW).max(1).ilog2();
    (1 << fits.min(31)).clamp(start::FLOWS, limits::FLOWS)
}

/// Connections that ended and may still be taken for known ones, beside as many as there are.
pub(crate) const STRANGERS: u64 = 16_384;

/// Where the proxy says that it works, as upstream's does.
pub(crate) const HEALTH_PORT: u16 = 10_256;

/// Where the node alone may ask it how it routes, as upstream's is asked.
pub(crate) const STATUS_PORT: u16 = 10_249;

/// How long a health check may take to ask.
pub(crate) const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// The largest weight of an endpoint.
pub(crate) const WEIGHT: u16 = 1_000;

/// Problems kept for `status`.
pub(crate) const PROBLEMS: usize = 32;
/// Places that pods' packets go to with the pod's own address.
pub const UNMASQUERADED: usize = 64;

/// Service ports with series of their own among the metrics: 6 each.
pub(crate) const SERVICE_SERIES: usize = 500;

/// Backends with series of their own among the metrics: 4 each, and as many lines that say whose they are.
pub(crate) const BACKEND_SERIES: usize = 2_000;

/// Seats of figures that are given up before others get them.
pub(crate) const SEATS_GOING: usize = 64;

/// Service ports whose TCP connections have series of their own among the metrics: 60 each.
pub(crate) const TCP_SERVICE_SERIES: usize = 200;

/// Pods whose TCP connections have series of their own among the metrics: 61 each. Twice upstream's pods of a node.
pub(crate) const TCP_POD_SERIES: usize = 220;

/// Time between two looks at the flow table while somebody follows connections, at least.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// A look takes one part of so many of a processor's time.
pub(crate) const LOOK_SHARE: u32 = 50;

/// Connections in the flow table that are looked at for those who follow.
pub(crate) const FOLLOWED: usize = 65_536;

/// Seconds between two words about a connection that goes on.
pub(crate) const PERIOD: u32 = 10;

/// Those who follow connections at a time.
pub(crate) const FOLLOWERS: usize = 16;

/// Events that wait for the slowest of them.
pub(crate) const WAITING: usize = 4_096;

/// How long what is told waits for what may be told with it: a wake-up costs more than everything else about an event.
pub(crate) const GATHER: Duration = Duration::from_millis(50);

/// Events that are taken from the ring before others have a turn.
pub(crate) const EVENTS_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_map_grows_with_the_machine() {
        let cases = [(1 << 20, 65_536), (1 << 30, 262_144), (4 << 30, 1_048_576), (u64::MAX, 4_194_304)];
        for (memory, entries) in cases {
            assert_eq!(flows(memory), entries, "{memory}");
        }
    }
}

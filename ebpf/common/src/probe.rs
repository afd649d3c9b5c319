//! What the probe programs count about TCP connections of this node's sockets and its pods', and for whom.

use crate::Address;

/// Buckets of a duration: bucket `n` is for up to 2ⁿ microseconds, the last one for all that is longer.
pub const DURATION_BUCKETS: usize = 32;

/// Whose figures.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeKey {
    /// A Service's address, as it was asked for.
    pub address: Address,
    /// Its port, in network order.
    pub port: u16,
    /// A `ProbeKey::*` constant.
    pub kind: u16,
    /// Index of the node's side of a pod's link.
    pub link: u32,
}

impl ProbeKey {
    /// Of connections to a Service: address and port.
    pub const SERVICE: u16 = 0;
    /// Of a pod's sockets: link.
    pub const POD: u16 = 1;
    /// Of the node's own sockets.
    pub const NODE: u16 = 2;
    /// Of everybody for whom there is no place.
    pub const REST: u16 = 3;
}

/// Durations by length.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many fell into each bucket.
    pub counts: [u64; DURATION_BUCKETS],
    /// Their sum.
    pub microseconds: u64,
}

/// What was counted, on one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeFigures {
    /// From the first SYN to the answer, for each connection that was opened.
    pub connect: Durations,
    /// The smoothed round-trip time of each connection that ended.
    pub round_trip: Durations,
    /// Connections that were taken from others.
    pub accepted: u64,
    /// Attempts that came to nothing.
    pub failed: u64,
    /// Connections that ended.
    pub closed: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Those of them that ask for a connection.
    pub syn_retransmits: u64,
    /// Resets that came for a connection.
    pub resets_received: u64,
    /// Resets that were sent for one.
    pub resets_sent: u64,
    /// Payload that the other end acknowledged, of connections that ended.
    pub sent_bytes: u64,
    /// Payload that came, of connections that ended.
    pub received_bytes: u64,
    /// Figures that were counted here for want of a place of their own.
    pub unplaced: u64,
}

/// What a socket remembers whose first SYN was not answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// When it sent that, in milliseconds of the monotonic clock.
    pub first_sent: u32,
    /// 1 once it asked again.
    pub asked_again: u32,
}

/// Where the running kernel has what is read, in bytes from the start of its structure.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeFields {
    /// `sock_common.skc_net`
    pub net: u32,
    /// `net.net_cookie`
    pub cookie: u32,
    /// `sock_common.skc_family`
    pub family: u32,
    /// `sock_common.skc_dport`
    pub port: u32,
    /// `sock_common.skc_daddr`
    pub address4: u32,
    /// `sock_common.skc_v6_daddr`
    pub address6: u32,
    /// `tcp_sock.srtt_us`
    pub round_trip: u32,
    /// `tcp_sock.bytes_acked`
    pub acknowledged: u32,
    /// `tcp_sock.bytes_received`
    pub received: u32,
    /// `sock_common.skc_rcv_saddr`
    pub own4: u32,
    /// `sock_common.skc_v6_rcv_saddr`
    pub own6: u32,
    /// `inet_sock.inet_sport`, which stays when the socket ends
    pub own_port: u32,
    /// `sock_common.skc_state`
    pub state: u32,
    /// `tcp_sock.retrans_stamp`, while a connection is asked for
    pub first_sent: u32,
    /// `sock.sk_max_ack_backlog`
    pub backlog: u32,
}

const _: () = {
    assert!(size_of::<ProbeKey>() == 24 && align_of::<ProbeKey>() == 4);
    assert!(size_of::<Durations>() == 264 && align_of::<Durations>() == 8);
    assert!(size_of::<ProbeFigures>() == 608 && align_of::<ProbeFigures>() == 8);
    assert!(size_of::<Watched>() == 8 && align_of::<Watched>() == 4);
    assert!(size_of::<ProbeFields>() == 60);
    assert!(DURATION_BUCKETS.is_power_of_two());
};

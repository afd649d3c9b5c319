//! What the probe programs count about TCP connections of this node's sockets and its pods', and for whom.

use crate::limits;

/// Buckets of a duration: bucket `n` is for up to 2ⁿ microseconds, the last one for all that is longer.
pub const DURATION_BUCKETS: usize = 32;

/// Whose figures: what stands in a seat, whose index the figures have. A kind, and the id of a Service or the index of the
/// node's side of a pod's link.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeKey(pub u64);

impl ProbeKey {
    /// Nobody's: who needs a seat takes it.
    pub const NOBODY: ProbeKey = ProbeKey(0);
    /// The node's own sockets'.
    pub const NODE: ProbeKey = ProbeKey::new(Self::OTHER, 0);
    /// Everybody's for whom there is no seat.
    pub const REST: ProbeKey = ProbeKey::new(Self::OTHER, 1);
    /// It is given up, but a program may still count there.
    pub const GOING: ProbeKey = ProbeKey::new(Self::OTHER, 2);

    const SERVICE: u32 = 1;
    const POD: u32 = 2;
    const OTHER: u32 = 3;

    #[inline(always)]
    const fn new(kind: u32, number: u32) -> ProbeKey {
        ProbeKey((kind as u64) << 32 | number as u64)
    }

    /// Of connections to a Service.
    #[inline(always)]
    pub const fn of_service(id: u32) -> ProbeKey {
        ProbeKey::new(Self::SERVICE, id)
    }

    /// Of a pod's sockets.
    #[inline(always)]
    pub const fn of_pod(link: u32) -> ProbeKey {
        ProbeKey::new(Self::POD, link)
    }

    /// The Service's id.
    pub fn service(self) -> Option<u32> {
        (self.0 >> 32 == Self::SERVICE.into()).then_some(self.0 as u32)
    }

    /// The pod's link.
    pub fn pod(self) -> Option<u32> {
        (self.0 >> 32 == Self::POD.into()).then_some(self.0 as u32)
    }

    /// The first of [`seat::LOOKS`] places in a row where its seat may be. Ids and links come in a row each, ids from 1:
    /// they meet only when there are many, and the seats that are always the same one's are out of the way.
    #[inline(always)]
    pub const fn first_seat(self) -> u32 {
        let apart = if self.0 >> 32 == Self::POD as u64 { limits::FIGURES / 2 } else { seat::REST };
        (self.0 as u32).wrapping_add(apart) % limits::FIGURES
    }
}

/// Indices of seats that are always the same one's.
pub mod seat {
    /// The node's.
    pub const NODE: u32 = 0;
    /// Everybody's who has none.
    pub const REST: u32 = 1;
    /// Places in a row where a seat may be.
    pub const LOOKS: u32 = 8;
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
    /// Connections that ended and whose round trips nobody measured.
    pub unmeasured: u64,
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

impl ProbeFigures {
    /// Connections that ended.
    pub fn closed(&self) -> u64 {
        self.unmeasured + self.round_trip.counts.iter().sum::<u64>()
    }
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
    /// `tcp_sock.total_retrans`
    pub sent_again: u32,
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
    assert!(size_of::<ProbeKey>() == 8 && align_of::<ProbeKey>() == 8);
    assert!(limits::FIGURES.is_power_of_two());
    assert!(size_of::<Durations>() == 264 && align_of::<Durations>() == 8);
    assert!(size_of::<ProbeFigures>() == 608 && align_of::<ProbeFigures>() == 8);
    assert!(size_of::<Watched>() == 8 && align_of::<Watched>() == 4);
    assert!(size_of::<ProbeFields>() == 64);
    assert!(DURATION_BUCKETS.is_power_of_two());
};

//! What the programs tell whoever follows connections: an event in a ring, a fixed number of bytes, never payload beyond the
//! headers of a lost packet, which user space reads the ends from and forgets.
//!
//! Every kind of event, and every reason for a loss, has a bucket of tokens on each processor. What finds none, or no room in
//! the ring, is counted beside what was told.

use crate::{Address, FlowKey, Reason};

/// A step of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// A `Told::*` kind.
    pub kind: u16,
    /// [`Told::REFUSED`]: a [`Reason`].
    pub reason: u16,
    /// Index of the node's side of the pod's link, 0 for the node.
    pub link: u32,
    /// Both ends. Of a socket the own end is the source; of a connection that a policy allowed the pod is.
    pub ends: FlowKey,
    /// The backend, or the Service that a socket asked for.
    pub address: Address,
    /// Its port, in network order.
    pub port: u16,
    /// `Flow` bits; [`Told::OPENER`]; `Allowed::BY_POD` or `Allowed::BY_PEER`.
    pub flags: u16,
    /// The number of the Service of a [`Told::FLOW`].
    pub service: u32,
    /// Microseconds: of connecting, or of a round trip at the end.
    pub took: u64,
    /// Payload that the other end acknowledged.
    pub sent: u64,
    /// Payload that came.
    pub received: u64,
}

impl Told {
    /// The flow table has a connection.
    pub const FLOW: u16 = 0;
    /// A socket's connection was opened by it.
    pub const OPENED: u16 = 1;
    /// A socket took a connection.
    pub const ACCEPTED: u16 = 2;
    /// A socket asked for a connection in vain.
    pub const FAILED: u16 = 3;
    /// A socket's connection ended.
    pub const CLOSED: u16 = 4;
    /// A pod's policies allowed a connection.
    pub const ALLOWED: u16 = 5;
    /// A socket's address was refused.
    pub const REFUSED: u16 = 6;
    /// A packet was lost: a [`ToldLost`].
    pub const LOST: u16 = 7;
    /// A packet was lost by the kernel: a [`ToldLost`].
    pub const LOST_BY_KERNEL: u16 = 8;
    /// A socket's datagrams go to a Service.
    pub const DATAGRAMS: u16 = 9;
    /// Of a socket that ended: it opened the connection.
    pub const OPENER: u16 = 1;
}

/// A packet that was lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldLost {
    /// [`Told::LOST`] or [`Told::LOST_BY_KERNEL`].
    pub kind: u16,
    /// A [`Reason`], or the kernel's number.
    pub reason: u16,
    /// Index of the link that it was on; of one that a pod's part of the kernel lost, of the node's side of the pod's link.
    pub link: u32,
    /// Bytes below that are the packet's.
    pub length: u32,
    /// The whole packet's.
    pub bytes: u32,
    /// Its first bytes; by the kernel, from its IP header on.
    pub head: [u8; Self::HEAD],
}

impl ToldLost {
    /// Enough for the ends: Ethernet, IPv6, an extension header, ports.
    pub const HEAD: usize = 96;
    /// Less than that is no packet of IP.
    pub const LEAST: u32 = 34;
}

/// What was told and what was not, on one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// The tick that tokens were taken in.
    pub tick: u32,
    /// How many.
    pub taken: u32,
    /// Events with a token.
    pub tried: u64,
    /// Events without a token.
    pub limited: u64,
    /// Those of them that found no room in the ring.
    pub full: u64,
}

/// Places of what is told: one for each bucket.
pub mod bucket {
    use super::Reason;

    /// Connections of the flow table.
    pub const FLOWS: u32 = 0;
    /// Sockets.
    pub const SOCKETS: u32 = 1;
    /// Connections that policies allowed.
    pub const ALLOWED: u32 = 2;
    /// Of the first reason; the others follow.
    pub const REASONS: u32 = 3;
    /// Room for more reasons than there are.
    pub const COUNT: u32 = 64;

    const _: () = assert!(REASONS + Reason::COUNT <= COUNT);
}

/// Tokens of each bucket in a tick, about a second, on each processor.
pub const TOKENS: u32 = 2_000;

const _: () = {
    assert!(size_of::<Told>() == 96 && align_of::<Told>() == 8);
    assert!(size_of::<ToldLost>() == 112 && align_of::<ToldLost>() == 4);
    assert!(size_of::<Telling>() == 32 && align_of::<Telling>() == 8);
};

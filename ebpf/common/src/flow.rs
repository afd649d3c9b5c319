//! The flow table: what was decided for connections that are translated packet by packet.

use crate::Address;

/// Which translation a flow entry is for, and which direction of it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowKind {
    /// Client to service address: the destination becomes the backend. Looked up on ingress.
    Service = 0,
    /// Backend to client: the source becomes the service address. Looked up on egress.
    ServiceReply = 1,
    /// Pod (or client of a remote backend) to the outside: the source becomes the node. Looked up on egress.
    Masquerade = 2,
    /// Outside to the node's port: the destination becomes the pod. Looked up on ingress.
    MasqueradeReply = 3,
}

/// A connection as seen in one direction at one hook. Aligned so that programs copy it by eights.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Where the packet comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Network order; the identifier for ICMP echo.
    pub source_port: u16,
    /// Network order; 0 for ICMP echo.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`FlowKind`] as a number.
    pub kind: u8,
    /// Zero.
    pub reserved: u16,
}

impl FlowKey {
    /// As [`Address::same`].
    #[inline(always)]
    pub const fn same(&self, other: &FlowKey) -> bool {
        let ports = self.source_port ^ other.source_port | self.destination_port ^ other.destination_port;
        let numbers = (self.protocol ^ other.protocol) | (self.kind ^ other.kind);
        self.source.same(&other.source) & self.destination.same(&other.destination) & (ports | numbers as u16 == 0)
    }
}

/// What to do with the packets of a direction. Both directions have an entry and name each other; an entry is removed
/// only by user space, never by another connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The other direction's key.
    pub other: FlowKey,
    /// Address to write.
    pub address: Address,
    /// Port to write, network order.
    pub port: u16,
    /// `Flow::*` bits.
    pub flags: u16,
    /// Service id, or [`Flow::NO_SERVICE`].
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Seconds of the coarse monotonic clock at creation.
    pub created: u32,
    /// Seconds of the coarse monotonic clock at the last packet.
    pub seen: u32,
    /// Zero.
    pub reserved: u32,
    /// Packets in this direction.
    pub packets: u64,
    /// Bytes in this direction.
    pub bytes: u64,
}

impl Flow {
    /// A FIN was seen in this direction.
    pub const FIN: u16 = 1;
    /// A RST was seen in this direction.
    pub const RST: u16 = 2;
    /// The backend is on another node: the source must become this node on the way out.
    pub const NEEDS_SOURCE: u16 = 4;
    /// Both ends of the packets change, into the other direction's key turned round; on the way out: from such a connection.
    pub const FUSED: u16 = 8;
    /// The backend is on another node and answers the client itself: packets go there inside others. Such a connection has no
    /// answers here, so its one entry names itself as the other direction's.
    pub const ENCAPSULATED: u16 = 16;
    /// A packet was seen that acknowledged another one.
    pub const ACKNOWLEDGED: u16 = 32;
    /// Service id of a plain masquerade.
    pub const NO_SERVICE: u32 = u32::MAX;
    /// Backend id of a connection whose backend was chosen by another node.
    pub const NO_BACKEND: u32 = u32::MAX;
}

/// A datagram that comes in fragments, as seen at one hook.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Where the fragments come from.
    pub source: Address,
    /// Where they go.
    pub destination: Address,
    /// What they have in common; an IPv6 datagram's is folded to 16 bits.
    pub identification: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// What the first fragment's transport header says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Network order; the identifier of an ICMP echo request.
    pub source_port: u16,
    /// Network order; the identifier of an ICMP echo reply.
    pub destination_port: u16,
    /// 1: an ICMP echo reply.
    pub echo_reply: u32,
}

const _: () = {
    assert!(size_of::<FragmentKey>() == 40 && align_of::<FragmentKey>() == 8);
    assert!(size_of::<FragmentPorts>() == 8 && align_of::<FragmentPorts>() == 4);
    assert!(size_of::<FlowKey>() == 40 && align_of::<FlowKey>() == 8);
    assert!(size_of::<Flow>() == 96 && align_of::<Flow>() == 8);
};

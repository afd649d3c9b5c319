//! A pod as the other pods of its node see it, and as its sockets tell of it.

use crate::limits;

/// The way into a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLink {
    /// Index of the node's side of its link.
    pub link: u32,
    /// Longest IP packet on it.
    pub mtu: u32,
    /// Ethernet addresses of a packet on it, first the pod's, then the node's side's.
    pub ethernet: [u32; 3],
}

impl PodLink {
    /// From both Ethernet addresses.
    #[must_use]
    pub const fn new(link: u32, mtu: u32, pod: [u8; 6], node: [u8; 6]) -> PodLink {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (pod, node);
        let ethernet =
            [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([i, j, k, l])];
        PodLink { link, mtu, ethernet }
    }

    /// Is the node's side the same link?
    #[must_use]
    pub const fn same_node_side(&self, other: &PodLink) -> bool {
        let ([_, _, a, b], [_, _, c, d]) = (self.ethernet[1].to_ne_bytes(), other.ethernet[1].to_ne_bytes());
        self.link == other.link && a == c && b == d && self.ethernet[2] == other.ethernet[2]
    }
}

/// A network namespace, and the pod that has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The namespace's cookie.
    pub namespace: u64,
    /// Index of the node's side of the pod's link; 0 for nobody.
    pub link: u32,
    /// [`Owner::BY_PACKET`].
    pub flags: u32,
}

impl Owner {
    /// Services are translated packet by packet for this pod: its connections are told by the flow table, so its sockets only
    /// count. It stands in this table alone, and gives its place to nobody whose sockets are translated.
    pub const BY_PACKET: u32 = 1;

    /// A pod's.
    #[must_use]
    pub const fn new(namespace: u64, link: u32, flags: u32) -> Owner {
        Owner { namespace, link, flags }
    }

    /// Where a namespace's owner stands, unless another one does. Cookies come in rows that begin at multiples of a power of
    /// two, so their lowest bits are often the same.
    #[inline(always)]
    #[must_use]
    pub const fn place(namespace: u64) -> u32 {
        // 2⁶⁴ by the golden ratio.
        (namespace.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % limits::OWNERS
    }
}

const _: () = {
    assert!(size_of::<PodLink>() == 20 && align_of::<PodLink>() == 4);
    assert!(size_of::<Owner>() == 16 && align_of::<Owner>() == 8);
};

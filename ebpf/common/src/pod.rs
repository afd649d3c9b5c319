//! A pod as the other pods of its node see it.

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

const _: () = assert!(size_of::<PodLink>() == 20 && align_of::<PodLink>() == 4);

//! What the program on the kernel's own losses is told before it runs.

use crate::limits;

/// Where the running kernel has what is read of a packet that it drops, in bytes from the start of its structure, and which
/// reasons are told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostFields {
    /// `sk_buff.len`
    pub length: u32,
    /// `sk_buff.protocol`
    pub protocol: u32,
    /// `sk_buff.head`
    pub head: u32,
    /// `sk_buff.data`
    pub data: u32,
    /// `sk_buff.tail`, from the head
    pub tail: u32,
    /// `sk_buff.network_header`, from the head
    pub network: u32,
    /// `sk_buff.dev`
    pub device: u32,
    /// `sk_buff.sk`
    pub socket: u32,
    /// `net_device.ifindex`
    pub index: u32,
    /// `net_device.nd_net`
    pub of_device: u32,
    /// `sock_common.skc_net`
    pub of_socket: u32,
    /// `net.net_cookie`
    pub cookie: u32,
    /// A bit for each of the kernel's reasons.
    pub told: [u32; limits::KERNEL_REASONS as usize / 32],
}

impl LostFields {
    /// Is a reason told? The last one stands for all that are larger.
    #[inline(always)]
    #[must_use]
    pub fn tells(&self, reason: u32) -> bool {
        self.told.get((reason / 32) as usize).is_some_and(|bits| bits >> (reason % 32) & 1 != 0)
    }
}

const _: () = assert!(size_of::<LostFields>() == 80 && limits::KERNEL_REASONS.is_multiple_of(32));

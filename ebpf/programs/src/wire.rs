//! The XDP program: packets on uplinks, in the driver, before the kernel's stack sees them.
#![allow(unsafe_code)]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sluice_ebpf_common::Reason;
use sluice_ebpf_common::cache::Uplink;
use sluice_packet::{Bytes, ETHERNET, Raw, Way, uplink};

use crate::kernel::{Kernel, Wire};
use crate::{maps, stream};

const TAG: u16 = 0x8100_u16.to_be();
const OUTER_TAG: u16 = 0x88a8_u16.to_be();
/// Bytes of a VLAN tag.
const TAG_LENGTH: i32 = 4;

/// From the outside. VLAN tags are taken off before the look at the packet, and put back after it.
#[xdp(frags)]
pub fn uplink_xdp(context: XdpContext) -> u32 {
    let mut packet = Buffer { context: context.ctx };
    if let Some(verdict) = handled(&mut packet) {
        return verdict;
    }
    stream::lost_early(packet.context, Reason::Rewrite);
    XDP_DROP
}

/// What becomes of the packet; `None` when it is half changed.
#[inline(always)]
fn handled(packet: &mut Buffer) -> Option<u32> {
    let mut tags = Tags::default();
    if matches!(packet.ethertype(), TAG | OUTER_TAG) {
        untag(packet, &mut tags)?;
    }
    // SAFETY: the context is valid for the whole program.
    let link = unsafe { (*packet.context).ingress_ifindex };
    let length = maps::hide(tags.length as u32);
    let wire = Wire { context: packet.context.cast(), link, vlan: maps::hide(tags.vlan) };
    let way = uplink(packet, &Kernel::Wire(wire));
    if length != 0 {
        tag(packet, &tags)?;
    }
    match way {
        Way::Stack => Some(XDP_PASS),
        Way::Drop => None,
        Way::Out(to) if to == link => Some(XDP_TX),
        // SAFETY: the helper has no preconditions.
        Way::Out(to) => Some(unsafe { bpf_redirect(to, 0) as u32 }),
    }
}

/// The VLAN tags of a packet.
#[derive(Default)]
struct Tags {
    first: u32,
    second: u32,
    /// Bytes of both, 0 for none.
    length: i32,
    /// As `Uplink::vlan` makes it.
    vlan: u32,
}

/// Takes one or two tags off. A function of its own, as such links have less of a hurry.
#[inline(never)]
fn untag(packet: &mut Buffer, tags: &mut Tags) -> Option<()> {
    let [first, next] = packet.read_words::<2>(12)?;
    let ends = packet.read_words::<3>(0)?;
    let [high, low, ..] = next.to_ne_bytes();
    // The type behind a tag stands in its place once the tag is gone.
    *tags = Tags { first, second: next, length: TAG_LENGTH, vlan: Uplink::vlan(0, id(first)) };
    if matches!(u16::from_ne_bytes([high, low]), TAG | OUTER_TAG) {
        tags.length = 2 * TAG_LENGTH;
        tags.vlan = Uplink::vlan(tags.vlan, id(next));
        packet.write_words(8, ends)?;
    } else {
        packet.write_words(4, ends)?;
    }
    // SAFETY: the context is valid for the whole program.
    if unsafe { bpf_xdp_adjust_head(packet.context, tags.length) } == 0 { Some(()) } else { None }
}

/// Puts the tags back.
#[inline(never)]
fn tag(packet: &mut Buffer, tags: &Tags) -> Option<()> {
    let [a, b, c] = packet.read_words::<3>(0)?;
    // SAFETY: the context is valid for the whole program.
    if unsafe { bpf_xdp_adjust_head(packet.context, -tags.length) } != 0 {
        return None;
    }
    if tags.length > TAG_LENGTH {
        packet.write_words(0, [a, b, c, tags.first, tags.second])
    } else {
        packet.write_words(0, [a, b, c, tags.first])
    }
}

/// The VLAN of a tag.
#[inline(always)]
fn id(tag: u32) -> u16 {
    u32::from_be(tag) as u16 & 0x0fff
}

/// A packet whose bytes are reached without helpers.
struct Buffer {
    context: *mut xdp_md,
}

impl Buffer {
    /// Where `length` bytes at `offset` are. All arithmetic is in whole registers, as the verifier wants it.
    #[inline(always)]
    fn at(&self, offset: u32, length: usize) -> Option<usize> {
        // SAFETY: the context is valid for the whole program.
        let (start, end) = unsafe { ((*self.context).data as usize, (*self.context).data_end as usize) };
        let at = start + offset as usize;
        if at + length > end { None } else { Some(at) }
    }
}

// SAFETY of all blocks: `at` says that the bytes are there. Words may stand at any address: the kernel runs such programs on
// machines that read them there.
impl Bytes for Buffer {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let at = self.at(offset, N)?;
        // SAFETY: see above.
        Some(unsafe { (at as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let at = self.at(offset, N * 4)?;
        // SAFETY: see above.
        Some(unsafe { (at as *const [u32; N]).read() })
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        let Some(at) = self.at(12, 2) else { return 0 };
        // SAFETY: see above.
        unsafe { (at as *const u16).read() }
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let at = self.at(offset, N)?;
        if N == 2 {
            // SAFETY: see above.
            unsafe { (at as *mut u16).write(u16::from_ne_bytes([bytes[0], bytes[1]])) };
        } else {
            // SAFETY: see above.
            unsafe { (at as *mut [u8; N]).write(bytes) };
        }
        Some(())
    }

    #[inline(always)]
    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        let at = self.at(offset, N * 4)?;
        // SAFETY: see above.
        unsafe { (at as *mut [u32; N]).write(words) };
        Some(())
    }
}

impl Raw for Buffer {
    const CARRIES: bool = true;

    #[inline(always)]
    fn prepend(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: the context is valid for the whole program.
        if unsafe { bpf_xdp_adjust_head(self.context, -(bytes as i32)) } == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn write_head<const N: usize>(&mut self, ethernet: [u32; 3], ethertype: u16, ip: [u32; N]) -> Option<()> {
        let behind = ETHERNET as usize;
        let at = self.at(0, behind + N * 4)?;
        // SAFETY: see above.
        unsafe {
            (at as *mut [u32; 3]).write(ethernet);
            ((at + 12) as *mut u16).write(ethertype);
            ((at + behind) as *mut [u32; N]).write(ip);
        }
        Some(())
    }
}

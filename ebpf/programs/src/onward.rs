//! The TC program before the others on uplinks whose driver does not run the XDP program: the same decisions on the same flow
//! table, with the kernel's account of checksums kept right. A connection to a backend elsewhere has two entries then, and its
//! packets pass no stack. What it does not send on, the next program gets, translated or as it came.
#![allow(unsafe_code)]

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_store_bytes};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use sluice_ebpf_common::Reason;
use sluice_ebpf_common::cache::Uplink;
use sluice_packet::{Bytes, Change, Maps, Packet, Raw, Routed, Way, onward, settle};

use crate::kernel::{Kernel, Wire};
use crate::{stream, traffic};

/// From the outside, before the stack and [`traffic::uplink_in`].
#[classifier]
pub fn uplink_onward(context: TcContext) -> i32 {
    let mut skb = traffic::Buffer { skb: context.skb.skb };
    // What has a mark may have a route by it.
    if !skb.is_addressed() || skb.mark() != 0 {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the context is valid for the whole program.
    let link = unsafe { (*skb.skb).ifindex };
    let maps = Kernel::Wire(Wire { context: skb.skb.cast(), link, vlan: Uplink::ON_LINK });
    match onward(&mut Linear { skb: skb.skb }, &maps, || skb.is_for_node()) {
        Way::Stack => TC_ACT_UNSPEC,
        Way::Drop => {
            maps.count_reason(Reason::Rewrite);
            stream::lost(skb.skb, Reason::Rewrite as u32);
            TC_ACT_SHOT as i32
        }
        Way::Out(to) => {
            settle(&mut skb);
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_redirect(to, 0) as i32 }
        }
    }
}

/// A packet of which only what the kernel has in one piece is read, without helpers: headers nearly always are.
struct Linear {
    skb: *mut __sk_buff,
}

impl Linear {
    #[inline(always)]
    fn store(&mut self, offset: u32, bytes: *const u8, length: u32, flags: u32) -> Option<()> {
        // SAFETY: the helper checks offset and length; the bytes are live locals of that length.
        let result = unsafe { bpf_skb_store_bytes(self.skb, offset, bytes.cast(), length, flags.into()) };
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn replace(&mut self, offset: u32, from: u32, to: u32, flags: u32) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.skb, offset, from.into(), to.into(), flags.into()) };
        if result == 0 { Some(()) } else { None }
    }
}

// SAFETY of all blocks: `traffic::at` says that the bytes are there. Words may stand at any address: the kernel runs such
// programs on machines that read them there.
impl Bytes for Linear {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let at = traffic::at(self.skb, offset, N)?;
        // SAFETY: see above.
        Some(unsafe { (at as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let at = traffic::at(self.skb, offset, N * 4)?;
        // SAFETY: see above.
        Some(unsafe { (at as *const [u32; N]).read() })
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the context is valid for the whole program.
        unsafe { (*self.skb).protocol as u16 }
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.store(offset, bytes.as_ptr(), N as u32, 0)
    }

    #[inline(always)]
    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        self.store(offset, words.as_ptr().cast(), N as u32 * 4, 0)
    }
}

impl Raw for Linear {
    /// The next program does.
    const CARRIES: bool = false;

    #[inline(always)]
    fn prepend(&mut self, _: u32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the context is valid for the whole program.
        unsafe { (*self.skb).gso_size }
    }

    /// What a card summed up covers the IP header, too, but no change of the ports: their checksum makes up for it.
    #[inline(always)]
    fn write_ends<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        let length = (N as u32 - 1) * 4;
        self.store(offset, words.as_ptr().cast(), length, BPF_F_RECOMPUTE_CSUM)?;
        self.store(offset + length, (&raw const words[N - 1]).cast(), 4, 0)
    }

    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: &Change) -> Option<()> {
        let zero = if change.zero_is_none { BPF_F_MARK_MANGLED_0 } else { 0 };
        self.replace(offset, 0, change.addresses, BPF_F_PSEUDO_HDR | zero)?;
        self.replace(offset, change.old_ports, change.new_ports, 4 | zero)
    }
}

//! TC programs: packets on uplinks and on pods' links (their host side).
#![allow(unsafe_code)]

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use sluice_ebpf_common::{Address, FlowKey, HOME_MAC, Reason};
use sluice_packet::{
    Bytes, Covered, Exit, Hop, Maps, Packet, Routed, Tunnel, Verdict, carry_out, egress_pod, egress_uplink, from_node,
    from_outside, from_pod, may_receive, may_send, settled,
};

use crate::kernel::Kernel;
use crate::{pace, route, stream};

/// A packet's type when its Ethernet address is the link's.
const PACKET_HOST: u8 = 0;

/// From the outside.
#[classifier]
pub fn uplink_in(context: TcContext) -> i32 {
    let (mut packet, maps) = open(&context);
    let verdict = from_outside(&mut packet, &maps);
    close(&mut packet, &maps, verdict)
}

/// To the outside.
#[classifier]
pub fn uplink_out(context: TcContext) -> i32 {
    let (mut packet, maps) = open(&context);
    if !pace::depart(packet.skb) {
        stream::lost(packet.skb, Reason::Late as u32);
        return TC_ACT_SHOT as i32;
    }
    if settled(&mut packet) {
        return TC_ACT_UNSPEC;
    }
    let verdict = egress_uplink(&mut packet, &maps);
    close(&mut packet, &maps, verdict)
}

/// From a pod.
#[classifier]
pub fn pod_in(context: TcContext) -> i32 {
    let (mut packet, maps) = open(&context);
    pace::note(packet.skb);
    let verdict = from_pod(&mut packet, &maps);
    close(&mut packet, &maps, verdict)
}

/// To a pod.
#[classifier]
pub fn pod_out(context: TcContext) -> i32 {
    let (mut packet, maps) = open(&context);
    let verdict = egress_pod(&mut packet, &maps);
    close(&mut packet, &maps, verdict)
}

/// From the node itself, on its loopback link and on its home link.
#[classifier]
pub fn own_out(context: TcContext) -> i32 {
    let (mut packet, maps) = (Buffer { skb: context.skb.skb }, Kernel::Own(link_of(&context)));
    let verdict = from_node(&mut packet, &maps);
    match carried_out(&mut packet, &maps, verdict) {
        // It was on its way out.
        Verdict::Answer => home(&mut packet, &maps),
        verdict => act(&mut packet, &maps, verdict),
    }
}

/// To the node itself, on its home link: what services answer it.
#[classifier]
pub fn own_in(context: TcContext) -> i32 {
    let (mut packet, maps) = open(&context);
    let verdict = egress_pod(&mut packet, &maps);
    close(&mut packet, &maps, verdict)
}

/// From a pod, behind the program that translates: what network policies deny goes no further.
#[classifier]
pub fn policy_in(context: TcContext) -> i32 {
    let (packet, maps) = open(&context);
    judged(&packet, may_send(&packet, &maps))
}

/// To a pod, before the program that translates.
#[classifier]
pub fn policy_out(context: TcContext) -> i32 {
    let (packet, maps) = open(&context);
    // SAFETY: the context is valid for the whole program.
    let came_by = unsafe { (*packet.skb).ingress_ifindex };
    judged(&packet, may_receive(&packet, &maps, came_by))
}

#[inline(always)]
fn judged(packet: &Buffer, verdict: Verdict) -> i32 {
    let Verdict::Drop(reason) = verdict else { return TC_ACT_UNSPEC };
    stream::lost(packet.skb, reason as u32);
    TC_ACT_SHOT as i32
}

#[inline(always)]
fn open(context: &TcContext) -> (Buffer, Kernel) {
    (Buffer { skb: context.skb.skb }, Kernel::Link(link_of(context)))
}

#[inline(always)]
fn link_of(context: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*context.skb.skb).ifindex }
}

/// Lets the packet come in by the home link, as one that is for it.
#[inline(always)]
fn home(packet: &mut Buffer, maps: &Kernel) -> i32 {
    if packet.write(0, HOME_MAC).is_none() {
        return TC_ACT_SHOT as i32;
    }
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(maps.home(), BPF_F_INGRESS.into()) as i32 }
}

/// Passing means "the next program decides": others' programs on the same link stay in effect.
#[inline(always)]
fn close(packet: &mut Buffer, maps: &Kernel, verdict: Verdict) -> i32 {
    match carried_out(packet, maps, verdict) {
        // SAFETY: the context is valid for the whole program.
        Verdict::Answer => unsafe { bpf_redirect((*packet.skb).ifindex, 0) as i32 },
        verdict => act(packet, maps, verdict),
    }
}

#[inline(always)]
fn carried_out(packet: &mut Buffer, maps: &Kernel, verdict: Verdict) -> Verdict {
    // As it came: the answer takes its place.
    if let Verdict::Refuse(reason) = verdict {
        stream::lost(packet.skb, reason as u32);
    }
    carry_out(packet, maps, verdict)
}

#[inline(always)]
fn act(packet: &mut Buffer, maps: &Kernel, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => {
            stream::lost(packet.skb, reason as u32);
            TC_ACT_SHOT as i32
        }
        Verdict::Refuse(_) | Verdict::TooBig(_) | Verdict::Encapsulate | Verdict::Answer => TC_ACT_SHOT as i32,
        // Not through the kernel's stack, which takes a packet from outside with an own source for a forged one.
        // SAFETY: without a neighbour of its own the helper asks the kernel's routes.
        Verdict::Onward(link) => unsafe { bpf_redirect_neigh(link, core::ptr::null_mut(), 0, 0) as i32 },
        Verdict::Leave(place) => route::leave(place),
        Verdict::Home => home(packet, maps),
        Verdict::Into(link) => {
            pace::forget(packet.skb);
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_redirect_peer(link, 0) as i32 }
        }
    }
}

pub struct Buffer {
    pub skb: *mut __sk_buff,
}

/// Where `length` bytes at `offset` are, if the kernel has them in one piece with the packet's beginning: headers nearly always
/// are. All arithmetic is in whole registers, as the verifier wants it.
#[inline(always)]
pub fn at(skb: *const __sk_buff, offset: u32, length: usize) -> Option<usize> {
    // SAFETY: the context is valid for the whole program.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let at = start + offset as usize;
    if at + length > end { None } else { Some(at) }
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    if result == 0 { Some(()) } else { None }
}

/// `BPF_F_MARK_MANGLED_0` keeps "no checksum" of UDP as it is.
#[inline(always)]
fn zero(zero_is_none: bool) -> u64 {
    if zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 }
}

// SAFETY of all blocks: `skb` is the program's context; the helpers check offsets and lengths themselves, and the
// buffers are live locals of the length that is passed. [`at`] says that bytes are there, and words may stand at any address: the
// kernel runs such programs on machines that read them there.
impl Bytes for Buffer {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: see above; on success the helper wrote all bytes.
        unsafe {
            done(bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32))?;
            Some(bytes.assume_init())
        }
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: see above; on success the helper wrote all bytes.
        unsafe {
            done(bpf_skb_load_bytes(self.skb.cast(), offset, words.as_mut_ptr().cast(), N as u32 * 4))?;
            Some(words.assume_init())
        }
    }

    /// Only links with Ethernet headers have these programs, so the kernel's own reading is that header's.
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: see above.
        unsafe { (*self.skb).protocol as u16 }
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_skb_store_bytes(self.skb, offset, bytes.as_ptr().cast(), N as u32, 0) })
    }

    #[inline(always)]
    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_skb_store_bytes(self.skb, offset, words.as_ptr().cast(), N as u32 * 4, 0) })
    }

    #[inline(always)]
    fn read_headers<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let Some(at) = at(self.skb, offset, N * 4) else { return self.read_words(offset) };
        // SAFETY: see above.
        Some(unsafe { (at as *const [u32; N]).read() })
    }

    #[inline(always)]
    fn write_headers<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        let Some(at) = at(self.skb, offset, N * 4) else { return self.write_words(offset, words) };
        // SAFETY: see above. The kernel makes a packet that others see, too, this program's own before it starts.
        unsafe { (at as *mut [u32; N]).write(words) };
        Some(())
    }
}

// SAFETY of all blocks: as above.
impl Packet for Buffer {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: see above.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_l3_csum_replace(self.skb, offset, from.into(), to.into(), 4) })
    }

    #[inline(always)]
    fn fix_address_checksum(&mut self, offset: u32, from: &Address, to: &Address, kind: Covered) -> Option<()> {
        let flags = match kind {
            Covered::Pseudo => u64::from(BPF_F_PSEUDO_HDR),
            Covered::PseudoOrNone => u64::from(BPF_F_PSEUDO_HDR) | zero(true),
            Covered::Payload => 0,
        };
        let (from, to) = (from.words.as_ptr().cast_mut(), to.words.as_ptr().cast_mut());
        let size = size_of::<Address>() as u32;
        // What all IPv4 addresses have in common adds nothing to the difference.
        // SAFETY: see above; the first helper only reads both addresses.
        done(unsafe {
            let difference = bpf_csum_diff(from, size, to, size, 0);
            bpf_l4_csum_replace(self.skb, offset, 0, difference as u64, flags)
        })
    }

    #[inline(always)]
    fn fix_word_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()> {
        let flags = 4 | u64::from(BPF_F_PSEUDO_HDR) | zero(zero_is_none);
        // SAFETY: see above.
        done(unsafe { bpf_l4_csum_replace(self.skb, offset, from.into(), to.into(), flags) })
    }

    #[inline(always)]
    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_l4_csum_replace(self.skb, offset, from.into(), to.into(), 2 | zero(zero_is_none)) })
    }

    #[inline(always)]
    fn insert(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_skb_adjust_room(self.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        // SAFETY: see above.
        done(unsafe { bpf_skb_change_tail(self.skb, length, 0) })
    }

    #[inline(always)]
    fn write_counted(&mut self, offset: u32, word: u32) -> Option<()> {
        let (from, flags) = ((&raw const word).cast(), u64::from(BPF_F_RECOMPUTE_CSUM));
        // SAFETY: see above.
        done(unsafe { bpf_skb_store_bytes(self.skb, offset, from, size_of::<u32>() as u32, flags) })
    }

    #[inline(always)]
    fn fits(&self, link: u32) -> bool {
        let mut mtu = 0_u32;
        // SAFETY: see above; the helper writes the link's MTU.
        unsafe { bpf_check_mtu(self.skb.cast(), link, &raw mut mtu, 0, BPF_MTU_CHK_SEGS.into()) == 0 }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: see above.
        unsafe { (*self.skb).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: see above.
        unsafe { (*self.skb).mark = mark }
    }
}

// SAFETY of all blocks: as above.
impl Tunnel for Buffer {
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: see above.
        unsafe { (*self.skb).gso_size }
    }

    #[inline(always)]
    fn way(&self, source: &Address, destination: &Address, length: u32, to: &mut Hop) {
        route::hop(self.skb, source, destination, length, to);
    }

    #[inline(always)]
    fn encapsulate(&mut self, v4: bool, shrink: bool) -> Option<()> {
        let (bytes, family) = if v4 { (20, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) } else { (40, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) };
        let segments = if shrink { 0 } else { BPF_F_ADJ_ROOM_FIXED_GSO };
        // SAFETY: see above.
        done(unsafe { bpf_skb_adjust_room(self.skb, bytes, BPF_ADJ_ROOM_MAC, u64::from(family | segments)) })
    }

    #[inline(always)]
    fn decapsulate(&mut self, v4: bool) -> Option<()> {
        let bytes = if v4 { 20 } else { 40 };
        // What was cut before it was put into another one is as long as it was.
        // SAFETY: see above.
        done(unsafe { bpf_skb_adjust_room(self.skb, -bytes, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)) })
    }
}

// SAFETY of all blocks: as above.
impl Routed for Buffer {
    #[inline(always)]
    fn is_addressed(&self) -> bool {
        // SAFETY: see above.
        let (kind, tagged) = unsafe { ((*self.skb).pkt_type, (*self.skb).vlan_present) };
        kind == u32::from(PACKET_HOST) && tagged == 0
    }

    #[inline(always)]
    fn is_for_node(&self) -> bool {
        // SAFETY: see above.
        self.is_addressed() && !route::is_slave(unsafe { (*self.skb).ifindex })
    }

    #[inline(always)]
    fn exit(&self, key: &FlowKey, start: u32, length: u32, exit: &mut Exit) {
        route::exit(self.skb, key, start, length, exit);
    }
}

//! Programs of the packet bench: wrappers that put a packet back as it was, choose its flow and run the program under test by
//! a tail call, and the floors that its cost is compared with. One of each for TC and for XDP, as a tail call stays in one kind;
//! one more for the trace point of the probes.
//!
//! Built only for the BPF target, by `cargo xtask ebpf`; for any other target this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The macros export every program and map by name; nothing links to them by path.
#![allow(unreachable_pub)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    #![allow(unsafe_code)]

    use core::ptr::{read_volatile, write_volatile};

    use aya_ebpf::bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_action::XDP_ABORTED, xdp_action::XDP_PASS,
    };
    use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, ProgramArray};
    use aya_ebpf::helpers::{
        bpf_get_prandom_u32, bpf_skb_adjust_room, bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_get_buff_len,
    };
    use aya_ebpf::macros::{btf_map, btf_tracepoint, classifier, xdp};
    use aya_ebpf::programs::{BtfTracePointContext, TcContext, XdpContext};
    use sluice_ebpf_common::bench::{FLOOR_ENTRIES, FLOOR_KEY, Round};

    #[btf_map(name = "round")]
    pub static ROUND: Array<Round, 1> = Array::new();

    #[btf_map(name = "target_tc")]
    pub static TARGET_TC: ProgramArray<1> = ProgramArray::new();

    #[btf_map(name = "target_xdp")]
    pub static TARGET_XDP: ProgramArray<1> = ProgramArray::new();

    #[btf_map(name = "floor_hash")]
    pub static FLOOR_HASH: HashMap<[u32; 4], u64, { FLOOR_ENTRIES as usize }> = HashMap::new();

    #[btf_map(name = "floor_lru")]
    pub static FLOOR_LRU: LruHashMap<[u32; 4], u64, { FLOOR_ENTRIES as usize }> = LruHashMap::new();

    /// Bytes that the growing floor adds: an IPv4 header.
    const GROWTH: i32 = 20;

    // SAFETY of all blocks: contexts are valid for the whole program; `round` points to the map's one value, which only this
    // processor uses while it measures; masks keep indices inside.

    /// Chooses the packet's flow and writes it into the template.
    #[inline(always)]
    unsafe fn choose(round: *mut Round) {
        // SAFETY: see above.
        unsafe {
            let number = if (*round).random != 0 {
                bpf_get_prandom_u32()
            } else {
                let next = (*round).next;
                (*round).next = next.wrapping_add(1);
                next
            } & (*round).mask;
            let template = (&raw mut (*round).template).cast::<u32>();
            let address = (*round).first.wrapping_add(number & ((1 << Round::ADDRESS_BITS) - 1));
            write_volatile(template.add((*round).address as usize & 15), address.to_be());
            let port = u32::from(Round::FIRST_PORT) + (number >> Round::ADDRESS_BITS & 0x7fff);
            let half = template.cast::<u16>().add(((*round).ports as usize & 15) * 2);
            write_volatile(half, (port as u16).to_be());
        }
    }

    #[classifier]
    pub fn wrap_tc(context: TcContext) -> i32 {
        let Some(round) = ROUND.get_ptr_mut(0) else { return TC_ACT_SHOT as i32 };
        // SAFETY: see above.
        unsafe {
            let skb = context.skb.skb;
            let grown = (*skb).len as i32 - (*round).length as i32;
            if grown != 0 && bpf_skb_adjust_room(skb, -grown, BPF_ADJ_ROOM_MAC, 0) != 0 {
                return TC_ACT_SHOT as i32;
            }
            choose(round);
            let template = (&raw const (*round).template).cast::<u8>().add(Round::PAD);
            bpf_skb_store_bytes(skb, 0, template.cast(), Round::RESTORED as u32, 0);
            (*skb).mark = (*round).mark;
            TARGET_TC.tail_call(&context, 0);
        }
        TC_ACT_SHOT as i32
    }

    #[xdp(frags)]
    pub fn wrap_xdp(context: XdpContext) -> u32 {
        let Some(round) = ROUND.get_ptr_mut(0) else { return XDP_ABORTED };
        // SAFETY: see above.
        unsafe {
            let md = context.ctx;
            let grown = bpf_xdp_get_buff_len(md) as i32 - (*round).length as i32;
            if grown != 0 && bpf_xdp_adjust_head(md, grown) != 0 {
                return XDP_ABORTED;
            }
            choose(round);
            let (start, end) =
                (read_volatile(&raw const (*md).data) as usize, read_volatile(&raw const (*md).data_end));
            if start + Round::RESTORED > end as usize {
                return XDP_ABORTED;
            }
            let template = (&raw const (*round).template).cast::<u32>();
            // The first word's second half is the frame's beginning.
            write_volatile(start as *mut u16, read_volatile(template.cast::<u16>().add(1)));
            for word in 1..Round::WORDS {
                write_volatile((start + word * 4 - Round::PAD) as *mut u32, read_volatile(template.add(word)));
            }
            TARGET_XDP.tail_call(&context, 0);
        }
        XDP_ABORTED
    }

    #[classifier]
    pub fn empty_tc(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    #[xdp(frags)]
    pub fn empty_xdp(_context: XdpContext) -> u32 {
        XDP_PASS
    }

    /// What being called at each change of a connection's state costs.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    pub fn empty_state(_context: BtfTracePointContext) -> i32 {
        0
    }

    /// Adds what the wrapper has to take away again.
    #[classifier]
    pub fn grow_tc(context: TcContext) -> i32 {
        // SAFETY: see above.
        unsafe { bpf_skb_adjust_room(context.skb.skb, GROWTH, BPF_ADJ_ROOM_MAC, 0) as i32 }
    }

    #[xdp(frags)]
    pub fn grow_xdp(context: XdpContext) -> u32 {
        // SAFETY: see above.
        if unsafe { bpf_xdp_adjust_head(context.ctx, -GROWTH) } == 0 { XDP_PASS } else { XDP_ABORTED }
    }

    #[classifier]
    pub fn hash_tc(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC.wrapping_add(hash() as i32)
    }

    #[xdp(frags)]
    pub fn hash_xdp(_context: XdpContext) -> u32 {
        XDP_PASS + hash()
    }

    #[classifier]
    pub fn lru_tc(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC.wrapping_add(lru() as i32)
    }

    #[xdp(frags)]
    pub fn lru_xdp(_context: XdpContext) -> u32 {
        XDP_PASS + lru()
    }

    /// 0 when the key was found.
    #[inline(always)]
    fn hash() -> u32 {
        u32::from(FLOOR_HASH.get_ptr(FLOOR_KEY).is_none())
    }

    /// 0 when the key was found.
    #[inline(always)]
    fn lru() -> u32 {
        u32::from(FLOOR_LRU.get_ptr(FLOOR_KEY).is_none())
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// The kernel offers its helpers to GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

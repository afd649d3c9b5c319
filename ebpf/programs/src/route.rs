//! The kernel's routes and neighbours for packets that are sent on as they are.
#![allow(unsafe_code)]

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT,
    bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use sluice_ebpf_common::FlowKey;
use sluice_ebpf_common::cache::Uplink;
use sluice_packet::{Exit, PATHS};

use crate::kernel::between;
use crate::maps;

const _: () = assert!(size_of::<bpf_redir_neigh>() == 20);

/// Where the routes send a packet. What is asked stands in a map: the kernel's stack is small. A neighbour that is not known
/// yet is asked for when the packet is sent.
#[inline(never)]
pub fn exit(skb: *mut __sk_buff, key: &FlowKey, start: u32, length: u32, exit: &mut Exit) {
    *exit = Exit::default();
    let Some(ask) = maps::QUESTION.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own value; packet programs do not interrupt each other. Every bit pattern is a request.
    let ask = unsafe { &mut *ask };
    let v4 = key.source.is_v4();
    between(ask, v4, &key.source, &key.destination);
    (ask.l4_protocol, ask.sport, ask.dport) = (key.protocol, key.source_port, key.destination_port);
    let [_, tos, ..] = start.to_ne_bytes();
    ask.__bindgen_anon_2.flowinfo =
        if v4 { u32::from_ne_bytes([tos, 0, 0, 0]) } else { start & 0x0fff_ffff_u32.to_be() };
    ask.__bindgen_anon_1.tot_len = if length > u32::from(u16::MAX) { u16::MAX } else { length as u16 };
    // SAFETY: the context is valid for the whole program, and the request of the length that is passed.
    let result = unsafe {
        ask.ifindex = (*skb).ifindex;
        fib_lookup(skb.cast(), &raw mut *ask, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
    const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
    const TOO_LONG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
    match result {
        TOO_LONG => return,
        SUCCESS | NO_NEIGHBOUR if maps::UPLINKS.get_ptr(ask.ifindex).is_some() => exit.link = ask.ifindex,
        _ => {}
    }
    // Without a neighbour the kernel does not say how long a packet may be.
    exit.mtu = match result {
        // SAFETY: the kernel filled it in; older kernels leave what was asked.
        SUCCESS => unsafe { ask.__bindgen_anon_1.mtu_result }.into(),
        NO_NEIGHBOUR => length,
        _ => u32::MAX,
    };
    exit.family = ask.family.into();
    // SAFETY: every bit pattern is an address.
    exit.neighbour = unsafe { ask.__bindgen_anon_4.ipv6_dst };
}

/// Is it a bond's? The links below a VLAN's are others.
#[inline(always)]
pub fn is_slave(link: u32) -> bool {
    let Some(uplink) = maps::UPLINKS.get_ptr(link) else { return false };
    // SAFETY: the map returned a pointer to a whole value.
    let Uplink { parent, vlan, .. } = unsafe { read_volatile(uplink) };
    parent != link && parent != 0 && vlan == 0
}

/// Sends a packet by the way at a place.
#[inline(always)]
pub fn leave(place: u32) -> i32 {
    let Some(path) = maps::PATHS.get_ptr_mut(place % PATHS) else { return TC_ACT_SHOT as i32 };
    // SAFETY: this CPU's own value; a family and an address are what the kernel reads, in the length that is passed.
    unsafe {
        let exit = &mut (*path).exit;
        let neighbour = (&raw mut exit.family).cast::<bpf_redir_neigh>();
        bpf_redirect_neigh(exit.link, neighbour, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

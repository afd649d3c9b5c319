//! The kernel's routes and neighbours.
#![allow(unsafe_code)]

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT,
    bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use sluice_ebpf_common::cache::Uplink;
use sluice_ebpf_common::{Address, FlowKey, protocol};
use sluice_packet::{Exit, Header, Hop, PATHS, Route};

use crate::kernel::Wire;
use crate::maps;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
const TOO_LONG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;

const _: () = assert!(size_of::<bpf_redir_neigh>() == 20);

/// Writes the ends of the packet that is asked about.
#[inline(always)]
fn between(ask: &mut bpf_fib_lookup, v4: bool, source: &Address, destination: &Address) {
    ask.family = if v4 { AF_INET } else { AF_INET6 };
    if v4 {
        ask.__bindgen_anon_3.ipv4_src = source.last();
        ask.__bindgen_anon_4.ipv4_dst = destination.last();
    } else {
        ask.__bindgen_anon_3.ipv6_src = source.words;
        ask.__bindgen_anon_4.ipv6_dst = destination.words;
    }
}

/// Asks the kernel's routes and neighbours. A function of its own, as the request takes much of the stack.
#[inline(never)]
pub fn way_out(wire: &Wire, header: &Header, length: u16, route: &mut Route) -> bool {
    // SAFETY: all zeroes is a valid request.
    let mut ask: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    between(&mut ask, header.v4, &header.source, &header.destination);
    ask.l4_protocol = header.protocol;
    ask.sport = header.source_port;
    ask.dport = header.destination_port;
    ask.ifindex = comes_by(wire.link);
    ask.__bindgen_anon_1.tot_len = length;
    // SAFETY: the context is valid for the whole program, and the request a live local of the length that is passed.
    let result = unsafe { fib_lookup(wire.context, &raw mut ask, size_of::<bpf_fib_lookup>() as i32, 0) };
    if result != SUCCESS {
        return false;
    }
    let Some(device) = maps::UPLINKS.get_ptr(ask.ifindex) else { return false };
    // SAFETY: the map returned a pointer to a whole value.
    let Uplink { flags, parent, vlan, .. } = unsafe { read_volatile(device) };
    let (link, reached) = if wire.vlan == Uplink::ON_LINK {
        (ask.ifindex, true)
    } else {
        (parent, flags & Uplink::NATIVE != 0 && vlan == wire.vlan)
    };
    if !reached || link > u32::from(u16::MAX) {
        return false;
    }
    // SAFETY: the kernel filled it in; older kernels leave what was asked.
    route.mtu = unsafe { ask.__bindgen_anon_1.mtu_result };
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (ask.dmac, ask.smac);
    route.ethernet =
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([i, j, k, l])];
    route.link = link as u16;
    route.device = ask.ifindex;
    true
}

/// Asks the kernel's routes about a packet of this node's own that comes to be on a link. A neighbour that is not known yet is
/// asked for when the packet is sent.
#[inline(never)]
pub fn hop(skb: *mut __sk_buff, source: &Address, destination: &Address, length: u32, to: &mut Hop) {
    // SAFETY: all zeroes is a valid request.
    let mut ask: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let v4 = destination.is_v4();
    between(&mut ask, v4, source, destination);
    ask.l4_protocol = if v4 { protocol::IPV4 } else { protocol::IPV6 };
    // SAFETY: the context is valid for the whole program.
    ask.ifindex = unsafe { (*skb).ifindex };
    ask.__bindgen_anon_1.tot_len = if length > u32::from(u16::MAX) { u16::MAX } else { length as u16 };
    // SAFETY: as above.
    let result = unsafe { fib_lookup(skb.cast(), &raw mut ask, size_of::<bpf_fib_lookup>() as i32, 0) };
    match result {
        SUCCESS | NO_NEIGHBOUR => to.link = ask.ifindex,
        // SAFETY: the kernel filled it in.
        TOO_LONG => to.mtu = unsafe { ask.__bindgen_anon_1.mtu_result }.into(),
        _ => {}
    }
}

/// The link that routes know a packet's link by: a bond's slave has no addresses and forwards nothing.
#[inline(always)]
fn comes_by(link: u32) -> u32 {
    let Some(uplink) = maps::UPLINKS.get_ptr(link) else { return link };
    // SAFETY: the map returned a pointer to a whole value.
    let parent = unsafe { read_volatile(addr_of!((*uplink).parent)) };
    if parent == 0 { link } else { parent }
}

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

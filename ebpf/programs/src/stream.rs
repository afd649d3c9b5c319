//! Telling whoever follows connections. Never for a packet of a connection that goes well: when an entry of the flow table is
//! made, a socket's state changes, a policy allows, something is lost. While nobody follows, that costs a look at a word.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::bindings::{__sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, xdp_md};
use aya_ebpf::helpers::{
    bpf_jiffies64, bpf_ringbuf_query, bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use sluice_ebpf_common::stream::{TOKENS, Telling, Told, ToldLost, bucket};
use sluice_ebpf_common::{
    Address, AllowedKey, Flow, FlowKey, FlowKind, Reason, Settings, Translation, limits, protocol,
};
use sluice_packet::Maps;

use crate::kernel::Kernel;
use crate::maps;

/// Does anybody follow?
#[inline(always)]
pub fn followed() -> bool {
    maps::SETTINGS.get(0).is_some_and(|settings| settings.flags & Settings::FOLLOWED != 0)
}

/// A place in the ring, if somebody follows and the bucket has a token.
#[inline(always)]
pub fn place<T: 'static>(bucket: u32) -> Option<RingBufEntry<T>> {
    let settings = maps::SETTINGS.get(0)?;
    if settings.flags & Settings::FOLLOWED == 0 {
        return None;
    }
    lend(settings, maps::TELLING.get_ptr_mut(bucket)?)
}

/// A place in the ring, if a bucket, of this processor's, has a token.
#[inline(always)]
pub fn lend<T: 'static>(settings: &Settings, telling: *mut Telling) -> Option<RingBufEntry<T>> {
    // SAFETY: this processor's own value. An interrupt may come in between and take a token of the same tick; what is counted
    // is counted by atomic operations.
    unsafe {
        let tick = settings.tick(bpf_jiffies64());
        if read_volatile(addr_of!((*telling).tick)) != tick {
            (*telling).tick = tick;
            (*telling).taken = 0;
        }
        if read_volatile(addr_of!((*telling).taken)) >= TOKENS {
            add(addr_of_mut!((*telling).limited), 1);
            return None;
        }
        (*telling).taken += 1;
        add(addr_of_mut!((*telling).tried), 1);
        let entry = maps::STREAM.reserve_untyped::<T>(0);
        if entry.is_none() {
            add(addr_of_mut!((*telling).full), 1);
        }
        entry
    }
}

/// Gives a place back to be read. What comes into an empty ring wakes the reader, who waits a moment for more of it; only what
/// finds a good part of the ring filled wakes again, so that this moment never loses anything.
#[inline(always)]
pub fn give<T>(entry: RingBufEntry<T>) {
    // SAFETY: the helper has no preconditions.
    let filled =
        unsafe { bpf_ringbuf_query((&raw const maps::STREAM).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    let haste = filled >= u64::from(limits::STREAM_FILLED);
    entry.submit(if haste { u64::from(BPF_RB_FORCE_WAKEUP) } else { 0 });
}

/// The flow table has an entry more. Those of answers, and of the second half of a way, say nothing of their own. The verifier
/// looks at a function with a name of its own once, whoever calls it.
#[unsafe(no_mangle)]
pub extern "C" fn tell_flow(key: *const FlowKey, flow: *const Flow, link: u32) -> u32 {
    // SAFETY: the verifier sees to it that a pointer is null or to a whole value.
    if let (Some(key), Some(flow)) = unsafe { (key.as_ref(), flow.as_ref()) } {
        entered(key, flow, link);
    }
    0
}

#[inline(always)]
fn entered(key: &FlowKey, flow: &Flow, link: u32) {
    let answers = key.kind == FlowKind::ServiceReply as u8 || key.kind == FlowKind::MasqueradeReply as u8;
    if answers || key.kind == FlowKind::Masquerade as u8 && flow.flags & Flow::FUSED != 0 {
        return;
    }
    let Some(mut entry) = place::<Told>(bucket::FLOWS) else { return };
    let told = entry.as_mut_ptr();
    // SAFETY: the ring lends a whole place; every field is written before it is given back.
    unsafe {
        ((*told).kind, (*told).reason, (*told).link) = (Told::FLOW, 0, link);
        (*told).ends = *key;
        ((*told).address, (*told).port, (*told).flags) = (flow.address, flow.port, flow.flags);
        (*told).service = flow.service;
        ((*told).took, (*told).sent, (*told).received) = (0, 0, 0);
    }
    give(entry);
}

/// A pod's policies allowed a connection that nobody remembered.
#[inline(never)]
pub fn allowed(key: &AllowedKey, opener: u32) {
    let Some(mut entry) = place::<Told>(bucket::ALLOWED) else { return };
    let told = entry.as_mut_ptr();
    // SAFETY: as above.
    unsafe {
        ((*told).kind, (*told).reason, (*told).link) = (Told::ALLOWED, 0, key.link);
        ends(told, &key.pod, &key.peer, key.pod_port, key.peer_port, key.protocol as u8);
        nobody(told);
        (*told).flags = opener as u16;
    }
    give(entry);
}

/// A socket asked for a Service that nobody can answer.
#[inline(never)]
pub fn refused(cookie: u64, address: &Address, port: u16, protocol: u8, reason: u32) {
    let Some(mut entry) = place::<Told>(bucket::REASONS + reason) else { return };
    let told = entry.as_mut_ptr();
    // SAFETY: as above; the map returned a pointer to a whole value.
    unsafe {
        let link = maps::NAMESPACES.get_ptr(cookie).map_or(0, |link| read_volatile(link));
        ((*told).kind, (*told).reason, (*told).link) = (Told::REFUSED, reason as u16, link);
        ends(told, &address.any(), address, 0, port, protocol);
        nobody(told);
    }
    give(entry);
}

/// A socket's datagrams go to a Service. It may not have an address or a port yet.
#[inline(never)]
pub fn datagrams(cookie: u64, translation: &Translation) {
    let Some(mut entry) = place::<Told>(bucket::SOCKETS) else { return };
    let told = entry.as_mut_ptr();
    // SAFETY: as in `refused`.
    unsafe {
        let link = maps::NAMESPACES.get_ptr(cookie).map_or(0, |link| read_volatile(link));
        ((*told).kind, (*told).reason, (*told).link) = (Told::DATAGRAMS, 0, link);
        let (address, port) = (&translation.backend_address, translation.backend_port);
        ends(told, &address.any(), address, 0, port, protocol::UDP);
        nobody(told);
        ((*told).address, (*told).port) = (translation.service_address, translation.service_port);
    }
    give(entry);
}

/// A packet is lost, or refused by an answer.
#[inline(never)]
pub fn lost(skb: *mut __sk_buff, reason: u32) {
    // SAFETY: the context is valid for the whole program.
    let (bytes, link) = unsafe { ((*skb).len, (*skb).ifindex) };
    // SAFETY: the caller's promise; the helper checks the length.
    tell_lost(bytes, link, reason, |head, length| unsafe { bpf_skb_load_bytes(skb.cast(), 0, head, length) });
}

/// A packet is lost in the driver: counted, and told.
#[inline(never)]
pub fn lost_early(context: *mut xdp_md, reason: Reason) {
    // SAFETY: the context is valid for the whole program.
    let (bytes, link) = unsafe { (bpf_xdp_get_buff_len(context) as u32, (*context).ingress_ifindex) };
    Kernel::Link(link).count_reason(reason);
    // SAFETY: the caller's promise; the helper checks the length.
    tell_lost(bytes, link, reason as u32, |head, length| unsafe { bpf_xdp_load_bytes(context, 0, head, length) });
}

/// Tells of a lost packet, whose beginning `load` puts where it is told to; it says 0 when it could.
#[inline(always)]
fn tell_lost(bytes: u32, link: u32, reason: u32, load: impl FnOnce(*mut c_void, u32) -> i64) {
    if bytes < ToldLost::LEAST {
        return;
    }
    let Some(mut entry) = place::<ToldLost>(bucket::REASONS + reason) else { return };
    let told = entry.as_mut_ptr();
    let mut length = bytes;
    if length > ToldLost::HEAD as u32 {
        length = ToldLost::HEAD as u32;
    }
    // SAFETY: as in `flow`; the helper writes as many bytes as it is told, and zeroes where it fails.
    unsafe {
        ((*told).kind, (*told).reason, (*told).link) = (Told::LOST, reason as u16, link);
        ((*told).length, (*told).bytes) = (length, bytes);
        if load(addr_of_mut!((*told).head).cast(), length) != 0 {
            (*told).length = 0;
        }
    }
    give(entry);
}

/// Writes both ends. SAFETY: `told` has to be a place that the ring lends.
#[inline(always)]
pub unsafe fn ends(told: *mut Told, own: &Address, other: &Address, own_port: u16, other_port: u16, protocol: u8) {
    // SAFETY: as the caller promised.
    unsafe {
        ((*told).ends.source, (*told).ends.destination) = (*own, *other);
        ((*told).ends.source_port, (*told).ends.destination_port) = (own_port, other_port);
        ((*told).ends.protocol, (*told).ends.kind, (*told).ends.reserved) = (protocol, 0, 0);
    }
}

/// Says nothing of a backend, a Service or figures. SAFETY: as above.
#[inline(always)]
pub unsafe fn nobody(told: *mut Told) {
    // SAFETY: as the caller promised.
    unsafe {
        ((*told).address, (*told).port, (*told).flags) = (Address { words: [0; 4] }, 0, 0);
        (*told).service = Flow::NO_SERVICE;
        ((*told).took, (*told).sent, (*told).received) = (0, 0, 0);
    }
}

/// Adds to a word that others change as well.
#[inline(always)]
pub fn add(count: *mut u64, value: u64) {
    // SAFETY: a word of a map's value. (The library has no atomic operations for this target.)
    unsafe { asm!("lock *(u64 *)({count} + 0) += {value}", count = in(reg) count, value = in(reg) value) };
}

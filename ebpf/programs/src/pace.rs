//! Limits of what pods send, kept by departure times: a pod's link notes whose packet it is, an uplink says when it leaves, and
//! the queue there (`fq`) holds it until then. The note is the number of the queue that the packet came by, which lives as long
//! as the packet does on this node and means nothing once it is out.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use sluice_ebpf_common::{Pace, Reason, limits};
use sluice_packet::Maps;
use sluice_packet::pace::{Turn, takes, turn};

use crate::kernel::Kernel;
use crate::maps;

/// Notes whose packet it is, if its pod has a limit.
#[inline(always)]
pub fn note(skb: *mut __sk_buff) {
    let Some(all) = maps::PACES.get_ptr(Pace::ALL) else { return };
    // SAFETY: a word of an array map.
    if unsafe { read_volatile(&raw const (*all).rate) } != 0 {
        note_pod(skb);
    }
}

/// A function of its own, so that nothing else is looked at twice for it.
#[inline(never)]
fn note_pod(skb: *mut __sk_buff) {
    // SAFETY: the context is valid for the whole program; the map returned a pointer to a whole value.
    unsafe {
        let Some(place) = maps::PACED.get_ptr((*skb).ifindex) else { return };
        (*skb).queue_mapping = Pace::NOTE + read_volatile(place);
    }
}

/// It stays on this node.
#[inline(always)]
pub fn forget(skb: *mut __sk_buff) {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*skb).queue_mapping = 0 }
}

/// Says when a packet leaves. False when it would wait for too long.
#[inline(always)]
pub fn depart(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid for the whole program.
    let place = unsafe { (*skb).queue_mapping }.wrapping_sub(Pace::NOTE);
    place == Pace::ALL || place >= limits::PACES || depart_in_turn(skb, place)
}

/// A function of its own, as above.
#[inline(never)]
fn depart_in_turn(skb: *mut __sk_buff, place: u32) -> bool {
    let Some(pace) = maps::PACES.get_ptr_mut(place) else { return true };
    // SAFETY: the context is valid for the whole program; the map returned a pointer to a whole value, whose words all processors
    // change by atomic operations.
    unsafe {
        let bytes = (*skb).wire_len;
        let rate = read_volatile(&raw const (*pace).rate);
        if rate == 0 {
            return true;
        }
        let (next, now) = (&raw mut (*pace).next, bpf_ktime_get_ns());
        let seen = read_volatile(next);
        match turn(now, seen) {
            Turn::Waits => {}
            // Whoever comes first says so for all.
            Turn::Idle => exchange(next, seen, now),
            Turn::Late => {
                Kernel::Link((*skb).ifindex).count_reason(Reason::Late);
                return false;
            }
        }
        (*skb).tstamp = add(next, takes(bytes, rate));
    }
    true
}

/// SAFETY: `word` has to be one of an array map's.
#[inline(always)]
unsafe fn exchange(word: *mut u64, from: u64, to: u64) {
    // SAFETY: as the caller promised. (The library has no atomic operations for this target.)
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {to})", inout("r0") from => _, word = in(reg) word, to = in(reg) to);
    }
}

/// The word as it was before. SAFETY: as above.
#[inline(always)]
unsafe fn add(word: *mut u64, more: u64) -> u64 {
    let mut value = more;
    // SAFETY: as the caller promised.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})", value = inout(reg) value, word = in(reg) word);
    }
    value
}

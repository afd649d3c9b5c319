//! What the kernel drops, by its own reasons, counted wherever it happens on the machine.
#![allow(unsafe_code)]

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use sluice_ebpf_common::limits;

use crate::maps;

/// Arguments of the tracepoint: the packet, the place in the code, the reason.
const REASON: usize = 2;

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kernel_drop(context: RawTracePointContext) -> i32 {
    let reason: u32 = context.arg(REASON);
    // Reasons of subsystems (wireless, Open vSwitch) have large numbers, and share the last place.
    let place = reason.min(limits::KERNEL_REASONS - 1);
    if let Some(count) = maps::LOST.get_ptr_mut(place) {
        // SAFETY: this processor's own value; a packet that is dropped by an interrupt meanwhile may not be counted.
        unsafe { *count += 1 };
    }
    0
}

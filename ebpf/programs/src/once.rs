//! Functions with names of their own: the verifier looks at each once, whoever calls it, where it walks any other one on every
//! path that leads there. They do the same wherever a program runs.
#![allow(unsafe_code)]

use sluice_ebpf_common::FlowKey;
use sluice_packet::{divide_known, join_known, seek};

use crate::kernel::Kernel;

/// No place.
pub const NOWHERE: u32 = u32::MAX;

/// Where a connection stands that was only opened.
#[unsafe(no_mangle)]
pub extern "C" fn seek_opened(reply: *const FlowKey) -> u32 {
    // SAFETY: the verifier sees to it that a pointer is null or to a whole value.
    let Some(reply) = (unsafe { reply.as_ref() }) else { return NOWHERE };
    seek(&Kernel::Link(0), reply).unwrap_or(NOWHERE)
}

/// Makes the entries of a connection that was only opened, seen on a link.
#[unsafe(no_mangle)]
pub extern "C" fn join_opened(link: u32) -> u32 {
    join_known(&Kernel::Link(link)).into()
}

/// Divides a connection through this node, seen on a link.
#[unsafe(no_mangle)]
pub extern "C" fn divide_fused(link: u32) -> u32 {
    divide_known(&Kernel::Link(link)).into()
}

//! Which clients' connections may stand in the flow table: one bit for many of them, in so few words that they stay in a
//! processor's own cache. A bit that is not set tells of a stranger that its entry need not be looked for.

use crate::{Address, FlowKey};

/// Words; a power of two.
pub const WORDS: u32 = 16_384;

/// A connection as one number. Whoever finds two that are the same reaches another backend of the same service with one. Nodes
/// choose backends by it, and those of another version have to choose alike: it stays as it is.
#[inline(always)]
pub const fn trace(key: &FlowKey) -> u64 {
    let ports = (key.source_port as u64) << 16 | key.destination_port as u64;
    let mut trace = fold(&key.source).wrapping_mul(MIX) ^ fold(&key.destination);
    trace = (trace ^ trace >> 29 ^ ports ^ (key.protocol as u64) << 32).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (trace ^ trace >> 32).wrapping_mul(0x94d0_49bb_1331_11eb)
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
const fn fold(address: &Address) -> u64 {
    let [a, b, c, d] = address.words;
    ((a as u64) << 32 | b as u64).wrapping_mul(MIX) ^ ((c as u64) << 32 | d as u64)
}

/// The word that holds a connection's bit, and which bit.
#[inline(always)]
pub const fn place(trace: u64) -> (u32, u32) {
    ((trace >> 38) as u32 & (WORDS - 1), (trace >> 32) as u32 & 63)
}

const _: () = assert!(WORDS.is_power_of_two());

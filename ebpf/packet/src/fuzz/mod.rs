//! What must hold for any packet and any order of events, as functions of bytes: `ebpf/fuzz` hands them what a fuzzer makes
//! up, the tests its seeds. Each panics where something does not hold. On the host alone, over the tests' maps.
#![allow(clippy::unwrap_used)]

mod changes;
mod node;
mod packets;
#[cfg(test)]
mod seeds;
mod visits;
mod whole;

pub use changes::changes;
pub use packets::packets;
pub use visits::Visit;

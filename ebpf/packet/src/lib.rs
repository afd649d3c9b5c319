//! What the data plane does with a packet or a socket address, generic over how packets and maps are reached.
//!
//! The same source runs in the kernel (through `sluice-ebpf-programs`) and on the host under tests. Invariants: no_std,
//! no allocation, no panic, no loop without a constant bound, no clock or randomness of its own: everything comes
//! through [`Packet`] and [`Maps`].
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;
#[cfg(any(test, feature = "fuzz"))]
extern crate std;

mod access;
mod cache;
mod decap;
mod egress;
mod encap;
mod error;
mod family;
mod flow;
mod fragment;
mod fused;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod header;
mod ingress;
mod nat;
mod own;
pub mod pace;
mod path;
mod plain;
mod policy;
pub mod probe;
mod reject;
mod sctp;
mod service;
mod shortcut;
mod socket;
mod straight;
mod target;
#[cfg(any(test, feature = "fuzz"))]
mod tests;
mod trail;

pub use access::{Bytes, Change, Covered, InsertError, Maps, Packet, Raw, Scratch, Verdict};
pub use cache::{Fast, Way, onward, uplink};
pub use egress::{egress_pod, egress_uplink};
pub use encap::{Begun, Carried, Hop, Rate, Tunnel, carry_out};
pub use fused::{divide_known, join_known, seek};
pub use header::{ETHERNET, Header, Kind, Part};
pub use ingress::{from_outside, from_pod, ingress};
pub use own::from_node;
pub use path::{Exit, PATHS, Path, Paths, Routed};
pub use policy::{Judging, Policies, may_receive, may_send};
pub use reject::refuse;
pub use service::{find, pick};
pub use shortcut::{Desk, Route};
pub use socket::{SocketVerdict, answers_from, asked_for, connect, may_listen, original, remember, send};
pub use straight::{settle, settled};
pub use trail::Trail;

/// Bit of a packet's mark that carries the decision "the source must become this node" from ingress to egress.
pub const MARK_NEEDS_SOURCE: u32 = 0x2000;

/// The whole mark of a packet that a pod's link sent on and that leaves as it is.
pub const MARK_SETTLED: u32 = 0x51c3_1000;

//! The packet logic on the host: packets in, verdict and packets out, over maps made of `BTreeMap`s.
#![allow(clippy::unwrap_used)]

mod checksums;
mod direct;
mod errors;
mod fragments;
mod frame;
mod fused;
mod maglev;
mod masquerade;
mod neighbours;
mod sctp;
mod services;
mod shortcut;
mod sockets;
mod world;

//! The packet logic on the host: packets in, verdict and packets out, over maps made of `BTreeMap`s.
#![allow(clippy::unwrap_used)]

#[cfg(test)]
mod checksums;
#[cfg(test)]
mod direct;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod fragments;
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod frame;
#[cfg(test)]
mod fused;
#[cfg(test)]
mod maglev;
#[cfg(test)]
mod masquerade;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod outward;
#[cfg(test)]
mod own;
#[cfg(test)]
mod pace;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod sctp;
#[cfg(test)]
mod services;
#[cfg(test)]
mod shortcut;
#[cfg(test)]
mod sockets;
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod world;

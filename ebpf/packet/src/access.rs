//! The two doors of this crate: a packet's bytes and the maps.

use sluice_ebpf_common::{Backend, Counters, Flow, FlowKey, Frontend, FrontendKey, Reason, Settings};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on, changed or not.
    Pass,
    /// Is dropped; the reason was counted.
    Drop(Reason),
}

/// Why a flow entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The map is full.
    Full,
}

/// A packet that starts with its Ethernet header. Every function returns `None` where the packet ends too early or the
/// kernel refuses; a half-changed packet must then be dropped.
pub trait Packet {
    /// Length in bytes.
    fn length(&self) -> u32;
    /// Reads `N` bytes.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Writes `N` bytes; checksums are not touched.
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;
    /// Updates the IPv4 header checksum at `offset` for a changed word.
    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()>;
    /// Updates a transport checksum at `offset` for a changed address of the pseudo header. `zero_is_none` (UDP): a
    /// checksum of 0 stays 0.
    fn fix_address_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()>;
    /// Updates a transport checksum at `offset` for a changed 16-bit word of the payload it covers.
    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()>;
    /// The mark that goes with the packet through the kernel.
    fn mark(&self) -> u32;
    /// Changes the mark.
    fn set_mark(&mut self, mark: u32);
}

/// The maps. Values are copies; counters and flow updates are relaxed.
pub trait Maps {
    /// The node's settings, `None` before user space wrote them.
    fn settings(&self) -> Option<Settings>;
    /// A frontend, never a mixture of two writes.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// A word of the slab.
    fn slot(&self, index: u32) -> Option<u32>;
    /// A backend slot.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// Is this one of the node's own addresses (loopback included for the node's own sockets)?
    fn is_local(&self, address: u32) -> bool;
    /// Is this another node's address?
    fn is_node(&self, address: u32) -> bool;
    /// Are this socket's addresses translated? Those of namespaces that are no pod's may lead anywhere.
    fn translates(&self, settings: &Settings) -> bool;
    /// The address that masqueraded traffic leaves with on the packet's link, 0 when there is none.
    fn source_address(&self) -> u32;
    /// Runs `change` on a flow entry.
    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R>;
    /// Adds a flow entry if its key is free.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    /// Removes a flow entry.
    fn remove_flow(&self, key: &FlowKey);
    /// Told after a flow was created.
    fn flow_created(&self);
    /// Seconds of the coarse monotonic clock.
    fn now(&self) -> u32;
    /// A random word.
    fn random(&self) -> u32;
    /// Adds to a service's counters.
    fn count_service(&self, id: u32, add: impl FnOnce(&mut Counters));
    /// Adds to a backend's counters.
    fn count_backend(&self, id: u32, add: impl FnOnce(&mut Counters));
    /// Counts a refusal.
    fn count_reason(&self, reason: Reason);
}

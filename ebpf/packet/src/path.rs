//! The ways that pods' packets take to the outside, as the kernel's routes tell them: kept for a connection's packets until the
//! clock ticks, or until links change, so that not every packet asks.

use sluice_ebpf_common::FlowKey;

use crate::header::{ETHERNET, transport_header};
use crate::plain::Plain;
use crate::{Fast, Tunnel};

/// A packet that may be sent on where the stack would send it.
pub trait Routed: Tunnel {
    /// Is it meant for the link that it came by, by its Ethernet address? What is tagged for a VLAN is that link's, and what comes
    /// by a bond's slave the bond's, which knows whose packets count.
    fn is_for_node(&self) -> bool;
    /// Asks the kernel for the way of this packet, whose headers begin with `start` and whose longest part on a wire has `length`
    /// bytes.
    fn exit(&self, key: &FlowKey, start: u32, length: u32, exit: &mut Exit);
}

/// Maps that keep ways.
pub trait Paths: Fast {
    /// Lends the way that is kept at one of [`PATHS`] places: this processor's own, and of any connection.
    fn path<R>(&self, place: u32, with: impl FnOnce(&mut Path) -> R) -> Option<R>;
}

/// Ways that a processor keeps; a power of two.
pub const PATHS: u32 = 256;

/// Where a packet leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Index of an uplink; 0 when the stack has to see the packet.
    pub link: u32,
    /// Longest IP packet of which that is true.
    pub mtu: u32,
    /// The neighbour's address family, as the kernel counts them.
    pub family: u32,
    /// Its address; of IPv4 the first word.
    pub neighbour: [u32; 4],
}

/// The way of a connection's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    key: FlowKey,
    /// Traffic class, and flow label of IPv6.
    class: u32,
    stamp: u32,
    tick: u32,
    /// Where they leave.
    pub exit: Exit,
}

/// No place.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// The place of a packet's way, or [`NOWHERE`] when the stack has to see it.
#[inline(always)]
pub(crate) fn find<P: Routed, M: Paths>(packet: &P, maps: &M, plain: &Plain) -> u32 {
    let Some(settings) = maps.settings() else { return NOWHERE };
    let Some(length) = length(packet, plain) else { return NOWHERE };
    let Plain { key, start, .. } = plain;
    let class = if key.source.is_v4() { start & 0x00ff_0000_u32.to_be() } else { *start };
    let stamp = settings.epoch.wrapping_mul(0x9e37_79b1) ^ maps.link();
    let tick = settings.tick(maps.jiffies());
    let place = place(key);
    let leaves = maps.path(
        place,
        #[inline(always)]
        |path| {
            let different = (path.class ^ class) | (path.stamp ^ stamp) | (path.tick ^ tick);
            if different != 0 || !same(&path.key, key) || length > path.exit.mtu {
                (path.key, path.class, path.stamp, path.tick) = (*key, class, stamp, tick);
                packet.exit(key, *start, length, &mut path.exit);
            }
            path.exit.link != 0
        },
    );
    if leaves == Some(true) { place } else { NOWHERE }
}

#[inline(always)]
fn same(one: &FlowKey, other: &FlowKey) -> bool {
    one.source.same(&other.source) && one.destination.same(&other.destination) && ends(one) == ends(other)
}

/// Ports and protocol.
#[inline(always)]
fn ends(key: &FlowKey) -> u64 {
    u64::from(key.source_port) | u64::from(key.destination_port) << 16 | u64::from(key.protocol) << 32
}

#[inline(always)]
fn place(key: &FlowKey) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (key.source.words, key.destination.words);
    let ports = u32::from(key.source_port) << 16 | u32::from(key.destination_port);
    let all =
        a ^ b.rotate_left(5) ^ c.rotate_left(9) ^ d ^ (e ^ f.rotate_left(5) ^ g.rotate_left(9) ^ h).rotate_left(16);
    (all ^ ports ^ u32::from(key.protocol)).wrapping_mul(0x9e37_79b1) >> (32 - PATHS.trailing_zeros())
}

/// Bytes of the longest packet that it becomes on a wire.
#[inline(always)]
fn length<P: Tunnel>(packet: &P, plain: &Plain) -> Option<u32> {
    let segment = packet.segment();
    if segment == 0 {
        return Some(packet.length().wrapping_sub(ETHERNET));
    }
    let own = transport_header(packet, plain.transport, plain.key.protocol)?;
    Some(plain.transport.wrapping_sub(ETHERNET) + own + segment)
}

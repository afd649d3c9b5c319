//! The ways that packets of a connection take past the stack: kept until the clock ticks, or until links or pods change, so that
//! not every packet asks the kernel's routes, and who its ends are.

use sluice_ebpf_common::{FlowKey, PodLink, limits};

use crate::header::{ETHERNET, transport_header};
use crate::plain::Plain;
use crate::{Fast, Maps, Tunnel};

/// A packet that may be sent on where the stack would send it.
pub trait Routed: Tunnel {
    /// Is it meant for the link that it came by, by its Ethernet address? What is tagged for a VLAN is that link's.
    fn is_addressed(&self) -> bool;
    /// The same of a link whose packets count: what comes by a bond's slave is the bond's, which knows.
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
    /// What else holds for them on this link: [`UNKNOWN`], [`LEAVES`], [`Path::INTO`].
    pub decided: u32,
    /// The flow table had nothing about them when so many answers' entries had been made, less one; 0 if it had or was not asked.
    quiet: u32,
    /// Where they leave; or the pod's link, its longest packet and, in the neighbour's place, the Ethernet addresses there.
    pub exit: Exit,
}

impl Path {
    /// They are put into the pod that the exit says.
    pub const INTO: u32 = 2;
}

/// Each packet has to be looked at.
pub(crate) const UNKNOWN: u32 = 0;
/// They leave by the exit, whatever else could become of them.
pub(crate) const LEAVES: u32 = 1;

/// Where the way of a packet is kept, and what it depends on beside the packet's ends.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) place: u32,
    class: u32,
    stamp: u32,
    tick: u32,
    /// As [`Path::quiet`], by now.
    quiet: u32,
}

impl Kept {
    #[inline(always)]
    pub(crate) fn of<M: Paths>(maps: &M, plain: &Plain) -> Option<Kept> {
        let settings = maps.settings()?;
        let Plain { key, start, .. } = plain;
        let class = if key.source.is_v4() { start & 0x00ff_0000_u32.to_be() } else { *start };
        let stamp = settings.epoch.wrapping_mul(0x9e37_79b1) ^ maps.link();
        let hash = hash(key);
        let quiet = maps.answers(answers(hash)).wrapping_add(1);
        Some(Kept { place: place(hash), class, stamp, tick: settings.tick(maps.jiffies()), quiet })
    }

    #[inline(always)]
    fn is(&self, path: &Path, key: &FlowKey) -> bool {
        (path.class ^ self.class) | (path.stamp ^ self.stamp) | (path.tick ^ self.tick) == 0 && same(&path.key, key)
    }

    #[inline(always)]
    fn note(&self, path: &mut Path, key: &FlowKey) {
        (path.key, path.class, path.stamp, path.tick) = (*key, self.class, self.stamp, self.tick);
        path.quiet = 0;
    }
}

/// May the flow table have an entry for this packet, as an answer's? Only if one was made since an earlier packet of the
/// connection had none. Whoever asks has a way kept for it.
#[inline(always)]
pub(crate) fn answers_service<M: Paths>(maps: &M, plain: &Plain, kept: &Kept) -> bool {
    let quiet = maps.path(
        kept.place,
        #[inline(always)]
        |path| path.quiet,
    );
    if kept.quiet != 0 && quiet == Some(kept.quiet) {
        return false;
    }
    let found = maps.flow(&plain.key, |_| ()).is_some();
    // What is not there may only not be here yet.
    let quiet = if found || maps.holds() { 0 } else { kept.quiet };
    maps.path(
        kept.place,
        #[inline(always)]
        |path| path.quiet = quiet,
    );
    found
}

/// An entry for a connection's answers was made, and none of them can have come yet.
#[inline(always)]
pub(crate) fn note_answer<M: Maps>(maps: &M, reply: &FlowKey) {
    maps.note_answer(answers(hash(reply)));
}

/// What was decided about an earlier packet of the connection, if it holds for this one.
#[inline(always)]
pub(crate) fn known<P: Routed, M: Paths>(packet: &P, maps: &M, plain: &Plain, kept: &Kept) -> u32 {
    let known = maps.path(
        kept.place,
        #[inline(always)]
        |path| if kept.is(path, &plain.key) { (path.decided, path.exit.mtu) } else { (UNKNOWN, 0) },
    );
    match known {
        Some((LEAVES, mtu)) if length(packet, plain).is_some_and(|length| length <= mtu) => LEAVES,
        Some((Path::INTO, _)) => Path::INTO,
        _ => UNKNOWN,
    }
}

/// Finds a packet's way to the outside, and keeps with it what was decided; false when the stack has to see the packet.
#[inline(always)]
pub(crate) fn find<P: Routed, M: Paths>(packet: &P, maps: &M, plain: &Plain, kept: &Kept, decided: u32) -> bool {
    let Some(length) = length(packet, plain) else { return false };
    let leaves = maps.path(
        kept.place,
        #[inline(always)]
        |path| {
            if !kept.is(path, &plain.key) || path.decided == Path::INTO || length > path.exit.mtu {
                kept.note(path, &plain.key);
                packet.exit(&plain.key, plain.start, length, &mut path.exit);
            }
            path.decided = decided;
            path.exit.link != 0
        },
    );
    leaves == Some(true)
}

/// Keeps the pod that a connection's packets are put into.
#[inline(always)]
pub(crate) fn keep<M: Paths>(maps: &M, plain: &Plain, kept: &Kept, to: &PodLink) {
    let [a, b, c] = to.ethernet;
    maps.path(
        kept.place,
        #[inline(always)]
        |path| {
            kept.note(path, &plain.key);
            path.decided = Path::INTO;
            path.exit = Exit { link: to.link, mtu: to.mtu, family: 0, neighbour: [a, b, c, 0] };
        },
    );
}

/// The pod of a way that is kept.
#[inline(always)]
pub(crate) fn pod<M: Paths>(maps: &M, kept: &Kept) -> PodLink {
    let pod = maps.path(
        kept.place,
        #[inline(always)]
        |path| {
            let Exit { link, mtu, neighbour: [a, b, c, _], .. } = path.exit;
            PodLink { link, mtu, ethernet: [a, b, c] }
        },
    );
    pod.unwrap_or_default()
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
fn place(hash: u32) -> u32 {
    hash >> (32 - PATHS.trailing_zeros())
}

/// Where answers' entries are counted.
#[inline(always)]
fn answers(hash: u32) -> u32 {
    hash >> (32 - limits::ANSWERS.trailing_zeros())
}

#[inline(always)]
fn hash(key: &FlowKey) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (key.source.words, key.destination.words);
    let ports = u32::from(key.source_port) << 16 | u32::from(key.destination_port);
    let all =
        a ^ b.rotate_left(5) ^ c.rotate_left(9) ^ d ^ (e ^ f.rotate_left(5) ^ g.rotate_left(9) ^ h).rotate_left(16);
    (all ^ ports ^ u32::from(key.protocol)).wrapping_mul(0x9e37_79b1)
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

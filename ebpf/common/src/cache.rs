//! The flow cache: what was decided for a connection's packets, finished to the last byte. It may lose anything at any time;
//! the truth is in the flow table.

/// What to do with one direction's packets. `A` is an address as it stands in the packet, `S` fills the last cache line.
///
/// A record belongs to one processor, so nothing in it is shared. It holds for packets with these ends as long as its stamp
/// fits and until the clock ticks; then the slow path looks again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<A, S> {
    /// Where the packets come from.
    pub source: A,
    /// Where they go.
    pub destination: A,
    /// Source port and destination port as the transport header has them.
    pub ports: u32,
    /// IP protocol number; 0 for an unused record.
    pub protocol: u8,
    /// One of the `action::*` numbers.
    pub action: u8,
    /// Longest IP packet that may leave on the link.
    pub mtu: u16,
    /// Source to write.
    pub new_source: A,
    /// Destination to write.
    pub new_destination: A,
    /// Ports to write.
    pub new_ports: u32,
    /// What the transport checksum changes by; with [`action::ENCAPSULATE`] the sum of the outer IPv4 header but for its first
    /// word.
    pub delta: u16,
    /// Link to leave by.
    pub link: u16,
    /// Ethernet addresses to write, first the destination.
    pub ethernet: [u32; 3],
    /// Service id, or [`crate::Flow::NO_SERVICE`].
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// All generations that the decision depends on, mixed.
    pub stamp: u32,
    /// The clock's tick when it was written.
    pub tick: u16,
    /// Packets since then.
    pub packets: u16,
    /// Their bytes.
    pub bytes: u32,
    /// Zero.
    pub spare: S,
}

/// What a record says to do.
pub mod action {
    /// Rewrite, and let the kernel deliver the packet.
    pub const PASS: u8 = 0;
    /// Rewrite, and send the packet out by the record's link.
    pub const SEND: u8 = 1;
    /// Put the packet as it is into another one, between the record's new ends, and send that out by the record's link. The
    /// second of the new ports is the backend's, which travels in the outer header.
    pub const ENCAPSULATE: u8 = 2;
}

/// IPv4: one cache line.
pub type Record4 = Record<u32, [u32; 0]>;
/// IPv6: two cache lines.
pub type Record6 = Record<[u32; 4], [u32; 4]>;

/// The records that one hash leads to.
pub type Bucket<A, S> = [Record<A, S>; 2];
/// For IPv4.
pub type Bucket4 = [Record4; 2];
/// For IPv6.
pub type Bucket6 = [Record6; 2];

/// A link that packets may be sent out on at once, without the kernel's stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// [`Uplink::NATIVE`] when the XDP program is attached in the driver.
    pub flags: u32,
    /// Why it is not: 0, or one of the `Uplink::WHY_*` numbers, or a number of the kernel's errors.
    pub reason: u32,
    /// The link whose driver sends the packets: itself, what a VLAN's link is on, or the bond that it is a slave of.
    pub parent: u32,
    /// The VLAN that its packets are tagged with there, as [`Uplink::vlan`] makes it; 0 for none.
    pub vlan: u32,
}

impl Uplink {
    /// The driver runs the XDP program.
    pub const NATIVE: u32 = 1;
    /// Turned off by configuration.
    pub const WHY_OFF: u32 = 0x1_0000;
    /// Packets come with unfinished checksums, as nothing is ever sent on a wire.
    pub const WHY_VETH: u32 = 0x1_0001;
    /// No hardware of its own: what comes in came in by another link.
    pub const WHY_VIRTUAL: u32 = 0x1_0002;
    /// The kernel does not take the program.
    pub const WHY_REFUSED: u32 = 0x1_0003;
    /// The bond that it is a slave of has it.
    pub const WHY_BOND: u32 = 0x1_0004;

    /// Is the program attached to this link itself?
    pub const fn runs(&self) -> bool {
        self.flags & Uplink::NATIVE != 0 && self.reason == 0
    }

    /// In place of a VLAN: where the program runs on the link itself, behind the driver. What is decided there holds for no
    /// driver.
    pub const ON_LINK: u32 = 1 << 31;

    /// Adds a VLAN tag inside those that are there already.
    #[inline(always)]
    pub const fn vlan(outer: u32, id: u16) -> u32 {
        outer << 16 | 0x1000 | (id & 0x0fff) as u32
    }
}

const _: () = {
    assert!(size_of::<Record4>() == 64 && align_of::<Record4>() == 4);
    assert!(size_of::<Record6>() == 128 && align_of::<Record6>() == 4);
    assert!(size_of::<Uplink>() == 16);
};

//! The two doors of this crate: a packet's bytes and the maps.

use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Counters, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendKey, PodLink, RangeKey, Reason, Settings,
};

use crate::family::fold;
use crate::header::ETHERNET;
use crate::{Begun, Carried, Header, Rate, fused};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on, changed or not.
    Pass,
    /// Nobody will answer, so [`crate::carry_out`] has to; the reason was counted.
    Refuse(Reason),
    /// Became an answer that goes back where the packet came from.
    Answer,
    /// Is put into the pod behind the link with this index.
    Into(u32),
    /// Is dropped; the reason was counted.
    Drop(Reason),
    /// Is too long to go inside another packet, so [`crate::carry_out`] has to tell the length that fits; it was counted.
    TooBig(u32),
    /// Goes to the backend's node inside another packet: [`crate::carry_out`] has to put it there.
    Encapsulate,
    /// Leaves at once by the link with this index, to the neighbour that the kernel knows for it.
    Onward(u32),
    /// The same, as the way at this place says ([`crate::Paths`]).
    Leave(u32),
    /// Comes in by the home link ([`Maps::home`]).
    Home,
}

/// How a checksum covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// By its pseudo header.
    Pseudo,
    /// By its pseudo header, and a checksum of 0 stays 0 (UDP).
    PseudoOrNone,
    /// As part of the payload.
    Payload,
}

/// Why a flow entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The map is full.
    Full,
}

/// A new flow while it is made, a quoted packet, a carried one. The kernel's stack is too small for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scratch {
    /// One direction.
    pub key: FlowKey,
    /// The other one.
    pub reply: FlowKey,
    /// What is inserted.
    pub flow: Flow,
    /// The packet that an ICMP error quotes.
    pub quote: Header,
    /// A packet that travels inside another one.
    pub carried: Carried,
    /// Stays from packet to packet.
    pub rate: Rate,
    /// The connection that a backend is chosen for, as a number.
    pub trace: u64,
    /// An end that is kept meanwhile.
    pub address: Address,
    /// Its port.
    pub port: u16,
}

/// A packet's bytes, from its Ethernet header on. Every function returns `None` where the packet ends too early or the kernel
/// refuses; a half-changed packet must then be dropped.
pub trait Bytes {
    /// Reads `N` bytes.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Reads `N` words as they stand in the packet.
    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// The protocol that the Ethernet header names, in network order.
    fn ethertype(&self) -> u16;
    /// Writes `N` bytes; checksums are not touched.
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;
    /// Writes `N` words as they are to stand in the packet; checksums are not touched.
    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()>;

    /// [`Self::read_words`] at an offset that is a number in the program: the kernel may read there without a helper.
    #[inline(always)]
    fn read_headers<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.read_words(offset)
    }

    /// [`Self::write_words`] at such an offset.
    #[inline(always)]
    fn write_headers<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        self.write_words(offset, words)
    }
}

/// A packet as a driver received it; or as it comes in on a link, which keeps account of what a checksum covers.
pub trait Raw: Bytes {
    /// Can it be put into another packet here?
    const CARRIES: bool;
    /// Makes room before the frame; its content is undefined, and offsets count from there on.
    fn prepend(&mut self, bytes: u32) -> Option<()>;

    /// Writes the Ethernet header, and what follows it.
    #[inline(always)]
    fn write_head<const N: usize>(&mut self, ethernet: [u32; 3], ethertype: u16, ip: [u32; N]) -> Option<()> {
        self.write_words(0, ethernet)?;
        self.write(12, ethertype.to_ne_bytes())?;
        self.write_words(ETHERNET, ip)
    }

    /// As [`crate::Tunnel::segment`].
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    /// Writes the last words of an IP header, and the ports behind them.
    #[inline(always)]
    fn write_ends<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        self.write_words(offset, words)
    }

    /// Updates the transport checksum at `offset`.
    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: &Change) -> Option<()> {
        let old = u16::from_ne_bytes(self.read::<2>(offset)?);
        if change.zero_is_none && old == 0 {
            return Some(());
        }
        let new = !fold(u64::from(!old) + u64::from(change.all));
        // With UDP 0 means that there is no checksum.
        let new = if new == 0 { u16::MAX } else { new };
        self.write(offset, new.to_ne_bytes())
    }
}

/// What new ends change about a transport checksum.
pub struct Change {
    /// The sum of all that changes, folded.
    pub all: u32,
    /// That of the addresses alone.
    pub addresses: u32,
    /// Both ports before.
    pub old_ports: u32,
    /// Both ports after.
    pub new_ports: u32,
    /// 0 says that there is no checksum.
    pub zero_is_none: bool,
}

/// A packet that the kernel's stack keeps account of: what a checksum covers, and a mark.
pub trait Packet: Bytes {
    /// Length in bytes.
    fn length(&self) -> u32;
    /// Updates the IPv4 header checksum at `offset` for a changed word.
    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()>;
    /// Updates a transport checksum at `offset` for a changed address.
    fn fix_address_checksum(&mut self, offset: u32, from: &Address, to: &Address, kind: Covered) -> Option<()>;
    /// Updates a transport checksum at `offset` for a changed word of its pseudo header.
    fn fix_word_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()>;
    /// Updates a transport checksum at `offset` for a changed 16-bit word of the payload it covers.
    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()>;
    /// Inserts bytes between the Ethernet header and the IP header; their content is undefined.
    fn insert(&mut self, bytes: u32) -> Option<()>;
    /// Cuts the packet to a length.
    fn truncate(&mut self, length: u32) -> Option<()>;
    /// Writes a word of the IP header as it is to stand in the packet; a sum that the network card made is kept right.
    fn write_counted(&mut self, offset: u32, word: u32) -> Option<()>;
    /// Are the packets that it is cut into on a link (one, mostly) short enough for that link?
    fn fits(&self, link: u32) -> bool;
    /// The mark that goes with the packet through the kernel.
    fn mark(&self) -> u32;
    /// Changes the mark.
    fn set_mark(&mut self, mark: u32);
}

/// The maps. Values are copies; counters and flow updates are relaxed.
pub trait Maps {
    /// The same value, of which the kernel's verifier knows nothing from here on: it would walk the rest of a program once for
    /// each value that it knows.
    fn hide(&self, value: u32) -> u32 {
        value
    }
    /// The node's settings, `None` before user space wrote them.
    fn settings(&self) -> Option<&Settings>;
    /// A frontend, never a mixture of two writes.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// A word of the slab.
    fn slot(&self, index: u32) -> Option<u32>;
    /// A backend slot.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// What holds for one of the node's own addresses (loopback included for the node's own sockets): 0 or
    /// [`NO_NODE_PORTS`](sluice_ebpf_common::NO_NODE_PORTS).
    fn local(&self, address: &Address) -> Option<u32>;
    /// Is this one of them?
    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        self.local(address).is_some()
    }
    /// The link of this node's pod with this address, if packets may go straight into it.
    fn pod(&self, address: &Address) -> Option<PodLink>;
    /// Is this another node's address?
    fn is_node(&self, address: &Address) -> bool;
    /// Are this socket's addresses translated? Those of namespaces that are no pod's may lead anywhere.
    fn translates(&self, settings: &Settings) -> bool;
    /// The cookie of the network namespace that a socket is in, 0 for packets.
    fn namespace(&self) -> u64;
    /// Index of the link that the packet uses, 0 for sockets.
    fn link(&self) -> u32;
    /// Index of the link that leads to services by packet for the node's own sockets, 0 while there is none.
    fn home(&self) -> u32;
    /// The address that masqueraded traffic leaves with on a link, if it has one.
    fn source_address(&self, link: u32, v4: bool) -> Option<Address>;
    /// The backend that a client keeps.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers the backend that a client keeps.
    fn keep_affinity(&self, key: &AffinityKey, affinity: &Affinity);
    /// Is this client in the service's source ranges?
    fn in_range(&self, key: &RangeKey) -> bool;
    /// Lends one of the places for connections that just began, which are this processor's own.
    fn begun<R>(&self, place: u32, with: impl FnOnce(&mut Begun) -> R) -> Option<R>;
    /// Lends the scratch space, which is this processor's own and holds anything.
    fn scratch<R>(&self, with: impl FnOnce(&mut Scratch) -> R) -> Option<R>;
    /// Runs `change` on a flow entry.
    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R>;
    /// May no flow be made or removed just now, and some not be there that others still make?
    fn holds(&self) -> bool;
    /// Adds a flow entry if its key is free. While no flow may be made there is no room.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    /// Removes a flow entry; false if there was none, or while none may be removed.
    fn remove_flow(&self, key: &FlowKey) -> bool;
    /// Lends one of the places of connections that were only opened.
    fn opened<R>(&self, place: u32, with: impl FnOnce(&mut Opened) -> R) -> Option<R>;
    /// A word of the bits of those that somebody has.
    fn places(&self, word: u32) -> Option<u64>;
    /// Takes one of them; false if somebody has it.
    fn take_place(&self, place: u32) -> bool;
    /// Gives it back.
    fn give_place(&self, place: u32);
    /// The place of the connection with this key for its answers. This and the next two are functions that the kernel's
    /// verifier looks at once, whoever calls them.
    #[inline(always)]
    fn seek(&self, reply: &FlowKey) -> Option<u32>
    where
        Self: Sized,
    {
        fused::seek(self, reply)
    }
    /// As [`fused::join_known`].
    #[inline(always)]
    fn join(&self) -> bool
    where
        Self: Sized,
    {
        fused::join_known(self)
    }
    /// As [`fused::divide_known`].
    #[inline(always)]
    fn divide(&self) -> bool
    where
        Self: Sized,
    {
        fused::divide_known(self)
    }
    /// The ports of a datagram that comes in fragments.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remembers the ports of a datagram that comes in fragments.
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
    /// A word of the bits of taken ports.
    fn ports(&self, word: u32) -> Option<u64>;
    /// Sets one of them; false if it was set.
    fn take_port(&self, word: u32, bit: u32) -> bool;
    /// Clears one of them.
    fn give_port(&self, word: u32, bit: u32);
    /// A word of the bits of connections that may be known.
    fn known(&self, word: u32) -> Option<u64>;
    /// Sets one of them.
    fn make_known(&self, word: u32, bit: u32);
    /// How many entries for answers were made whose keys share this place.
    fn answers(&self, place: u32) -> u32;
    /// Counts one more.
    fn note_answer(&self, place: u32);
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
    /// Adds to both.
    fn count(&self, service: u32, backend: u32, add: impl Fn(&mut Counters)) {
        self.count_service(service, &add);
        self.count_backend(backend, &add);
    }
    /// Counts a refusal.
    fn count_reason(&self, reason: Reason);
}

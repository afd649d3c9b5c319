//! A packet on the host, as the packet library wants it: made of the ends that are asked about, changed as the programs would.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;

use serde::Serialize;
use sluice_ebpf_common::{Address, FlowKey, protocol};
use sluice_packet::{Bytes, Covered, ETHERNET, Exit, Hop, Packet, Raw, Route as Out, Routed, Tunnel};

use super::routes::{Route, Routes};
use crate::End;
use crate::range::{unwire, wire};

const IP: usize = ETHERNET as usize;
const V4: [u8; 2] = [0x08, 0x00];
const V6: [u8; 2] = [0x86, 0xdd];
const HOPS: u8 = 64;
/// TCP flags and their uses.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// SCTP chunks.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// Where a packet comes from and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// Where from.
    pub source: End,
    /// Where to.
    pub destination: End,
}

/// What a packet is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The first one.
    Opens,
    /// The first one's answer.
    Accepts,
    /// One in the middle.
    Continues,
}

/// What the kernel said about ways, by the packets that were asked about.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) exits: RefCell<Vec<(FlowKey, Exit)>>,
    /// The way out that a program before the stack found.
    pub(super) out: Cell<Out>,
    /// The routes to backends' nodes.
    pub(super) routes: Option<Routes>,
    /// Is what comes in by the link the node's own?
    pub(super) for_node: bool,
}

/// A frame.
#[derive(Clone)]
pub(super) struct Frame<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) mark: u32,
    pub(super) ways: &'a Ways,
}

/// The bytes of a packet between these ends, in a frame from one Ethernet address to another.
pub(super) fn packet(ends: &Ends, number: u8, role: Role, [to, from]: [[u8; 6]; 2]) -> Vec<u8> {
    let (source, destination) = (ends.source.address, ends.destination.address);
    let mut segment = transport(ends, number, role);
    match number {
        protocol::TCP => fill_sum(&mut segment, 16, pseudo(source, destination, number)),
        protocol::UDP => fill_sum(&mut segment, 6, pseudo(source, destination, number)),
        _ => {
            let sum = crc32c(&segment).to_le_bytes();
            segment[8..12].copy_from_slice(&sum);
        }
    }
    let mut bytes = [to, from].concat();
    let length = segment.len() as u16;
    if source.is_ipv4() {
        bytes.extend(V4);
        bytes.extend([0x45, 0]);
        bytes.extend((20 + length).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, HOPS, number, 0, 0]);
        bytes.extend(octets(source));
        bytes.extend(octets(destination));
        let header = sum(&bytes[IP..], 0);
        bytes[IP + 10..IP + 12].copy_from_slice(&header.to_be_bytes());
    } else {
        bytes.extend(V6);
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([number, HOPS]);
        bytes.extend(octets(source));
        bytes.extend(octets(destination));
    }
    bytes.extend(segment);
    bytes
}

fn transport(ends: &Ends, number: u8, role: Role) -> Vec<u8> {
    let mut segment = [ends.source.port.to_be_bytes(), ends.destination.port.to_be_bytes()].concat();
    match (number, role) {
        (protocol::TCP, _) => {
            let flags = match role {
                Role::Opens => SYN,
                Role::Accepts => SYN | ACK,
                Role::Continues => ACK,
            };
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        (protocol::UDP, _) => segment.extend([0, 8, 0, 0]),
        (_, Role::Opens | Role::Accepts) => {
            // A tag, room for a sum, the chunk: its tag, window, streams and first number.
            let (tag, kind) = if role == Role::Opens { (0, INIT) } else { (1, INIT_ACK) };
            segment.extend([0, 0, 0, tag, 0, 0, 0, 0, kind, 0, 0, 20]);
            segment.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        }
        (_, Role::Continues) => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, DATA, 3, 0, 20]);
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    segment
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What a sum over a pseudo header begins with, less the length.
fn pseudo(source: IpAddr, destination: IpAddr, number: u8) -> u32 {
    let bytes = [octets(source), octets(destination), vec![0, number]].concat();
    u32::from(!sum(&bytes, 0))
}

fn fill_sum(segment: &mut [u8], at: usize, start: u32) {
    let total = sum(segment, start + segment.len() as u32);
    // With UDP zero would say that there is none.
    let total = if total == 0 { u16::MAX } else { total };
    segment[at..at + 2].copy_from_slice(&total.to_be_bytes());
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let pair = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    !fold(bytes.chunks(2).map(pair).sum::<u32>() + start)
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            remainder = (remainder >> 1) ^ if remainder & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    !remainder
}

impl Frame<'_> {
    fn v4(&self) -> bool {
        self.bytes.get(12..14) == Some(&V4)
    }

    /// The ends of a packet without options or extension headers; of one without ports, with port 0.
    pub(super) fn ends(&self) -> Option<Ends> {
        let (from, to, at, number) = if self.v4() {
            let word = |at: usize| self.read::<4>((IP + at) as u32).map(IpAddr::from);
            (word(12)?, word(16)?, IP + 20, *self.bytes.get(IP + 9)?)
        } else {
            let long = |at: usize| self.read::<16>((IP + at) as u32).map(IpAddr::from);
            (long(8)?, long(24)?, IP + 40, *self.bytes.get(IP + 6)?)
        };
        let has_ports = matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP);
        let port = |at: usize| {
            if has_ports { self.read::<2>(at as u32).map_or(0, u16::from_be_bytes) } else { 0 }
        };
        Some(Ends {
            source: End { address: from, port: port(at) },
            destination: End { address: to, port: port(at + 2) },
        })
    }

    /// The packet that is carried inside, where it is one that goes to a backend's node.
    pub(super) fn carried(&self) -> Option<Ends> {
        let (at, number) = if self.v4() { (20, *self.bytes.get(IP + 9)?) } else { (40, *self.bytes.get(IP + 6)?) };
        if !matches!(number, protocol::IPV4 | protocol::IPV6) {
            return None;
        }
        let mut bytes = self.bytes.clone();
        bytes.drain(IP..IP + at);
        Frame { bytes, mark: 0, ways: self.ways }.ends()
    }

    /// The ends of the packet that is on its way, be it inside another one.
    pub(super) fn seen(&self) -> Option<Ends> {
        self.carried().or_else(|| self.ends())
    }

    /// One hop less, and other Ethernet addresses: what the stack does to a packet that it forwards.
    pub(super) fn forwarded(&mut self, [to, from]: [[u8; 6]; 2]) -> Option<()> {
        self.address([to, from])?;
        if self.v4() {
            let [life, number] = self.read::<2>((IP + 8) as u32)?;
            self.write((IP + 8) as u32, [life.saturating_sub(1)])?;
            self.fix((IP + 10) as u32, &[life, number], &[life.saturating_sub(1), number])
        } else {
            let [life] = self.read::<1>((IP + 7) as u32)?;
            self.write((IP + 7) as u32, [life.saturating_sub(1)])
        }
    }

    /// Other Ethernet addresses.
    pub(super) fn address(&mut self, [to, from]: [[u8; 6]; 2]) -> Option<()> {
        self.write(0, to)?;
        self.write(6, from)
    }

    /// RFC 1624: HC' = ~(~HC + ~m + m').
    fn fix(&mut self, offset: u32, from: &[u8], to: &[u8]) -> Option<()> {
        let mut total = u32::from(!u16::from_be_bytes(self.read::<2>(offset)?));
        for (from, to) in from.chunks_exact(2).zip(to.chunks_exact(2)) {
            total += u32::from(!u16::from_be_bytes([from[0], from[1]])) + u32::from(u16::from_be_bytes([to[0], to[1]]));
        }
        self.write(offset, (!fold(total)).to_be_bytes())
    }

    fn fix_transport(&mut self, offset: u32, from: &[u8], to: &[u8], zero_is_none: bool) -> Option<()> {
        if zero_is_none && self.read::<2>(offset)? == [0, 0] {
            return Some(());
        }
        self.fix(offset, from, to)?;
        if zero_is_none && self.read::<2>(offset)? == [0, 0] {
            self.write(offset, [0xff, 0xff])?;
        }
        Some(())
    }
}

impl Bytes for Frame<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let at = offset as usize;
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (at, word) in (0..).zip(words.iter_mut()) {
            *word = u32::from_ne_bytes(self.read::<4>(offset + 4 * at)?);
        }
        Some(words)
    }

    fn ethertype(&self) -> u16 {
        self.read(12).map_or(0, u16::from_ne_bytes)
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let at = offset as usize;
        self.bytes.get_mut(at..at.checked_add(N)?)?.copy_from_slice(&bytes);
        Some(())
    }

    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        (offset..).step_by(4).zip(words).try_for_each(|(at, word)| self.write(at, word.to_ne_bytes()))
    }
}

impl Packet for Frame<'_> {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        self.fix(offset, &from.to_ne_bytes(), &to.to_ne_bytes())
    }

    fn fix_address_checksum(&mut self, offset: u32, from: &Address, to: &Address, kind: Covered) -> Option<()> {
        self.fix_transport(offset, &octets(unwire(*from)), &octets(unwire(*to)), kind == Covered::PseudoOrNone)
    }

    fn fix_word_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn insert(&mut self, bytes: u32) -> Option<()> {
        self.bytes.splice(IP..IP, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        self.bytes.resize(length as usize, 0);
        Some(())
    }

    fn write_counted(&mut self, offset: u32, word: u32) -> Option<()> {
        self.write(offset, word.to_ne_bytes())
    }

    /// The packets that are asked about are as short as packets get.
    fn fits(&self, _: u32) -> bool {
        true
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
}

impl Tunnel for Frame<'_> {
    fn segment(&self) -> u32 {
        0
    }

    fn way(&self, _: &Address, destination: &Address, _: u32, hop: &mut Hop) {
        let found = self.ways.routes.as_ref().and_then(|routes| routes.find(None, unwire(*destination), 0, 0).ok());
        *hop = match found {
            Some(Route::By { link, .. }) => Hop { link, mtu: 0 },
            _ => Hop::default(),
        };
    }

    fn encapsulate(&mut self, v4: bool, _: bool) -> Option<()> {
        self.insert(if v4 { 20 } else { 40 })
    }

    fn decapsulate(&mut self, v4: bool) -> Option<()> {
        let end = IP + if v4 { 20 } else { 40 };
        (self.bytes.len() >= end).then(|| drop(self.bytes.drain(IP..end)))
    }
}

impl Routed for Frame<'_> {
    fn is_addressed(&self) -> bool {
        self.ways.for_node
    }

    fn is_for_node(&self) -> bool {
        self.ways.for_node
    }

    fn exit(&self, key: &FlowKey, _: u32, _: u32, exit: &mut Exit) {
        let exits = self.ways.exits.borrow();
        *exit = exits.iter().find(|(known, _)| known == key).map(|(_, exit)| *exit).unwrap_or_default();
    }
}

/// A frame before the kernel's stack has it, where it may be put into another packet or not.
pub(super) struct Early<'a, 'b, const CARRIES: bool>(pub(super) &'a mut Frame<'b>);

impl<const CARRIES: bool> Bytes for Early<'_, '_, CARRIES> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.read_words(offset)
    }

    fn ethertype(&self) -> u16 {
        self.0.ethertype()
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.0.write(offset, bytes)
    }

    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        self.0.write_words(offset, words)
    }
}

impl<const CARRIES: bool> Raw for Early<'_, '_, CARRIES> {
    const CARRIES: bool = CARRIES;

    fn prepend(&mut self, bytes: u32) -> Option<()> {
        self.0.bytes.splice(0..0, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }
}

/// The key under which a connection between these ends is found.
pub(super) fn key(ends: &Ends, number: u8, kind: sluice_ebpf_common::FlowKind) -> FlowKey {
    FlowKey {
        source: wire(ends.source.address),
        destination: wire(ends.destination.address),
        source_port: ends.source.port.to_be(),
        destination_port: ends.destination.port.to_be(),
        protocol: number,
        kind: kind as u8,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        let end = |text: &str| {
            let end: std::net::SocketAddr = text.parse().unwrap();
            End { address: end.ip(), port: end.port() }
        };
        Ends { source: end(source), destination: end(destination) }
    }

    #[test]
    fn packets_say_their_ends_and_their_sums_are_right() {
        let ways = Ways::default();
        for (source, destination) in [("10.0.0.1:5", "10.0.0.2:80"), ("[fd00::1]:5", "[fd00::2]:80")] {
            for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                for role in [Role::Opens, Role::Accepts, Role::Continues] {
                    let ends = ends(source, destination);
                    let bytes = packet(&ends, number, role, [[2; 6], [4; 6]]);
                    let mut frame = Frame { bytes, mark: 0, ways: &ways };
                    assert_eq!(frame.ends(), Some(ends), "{number}");
                    assert!(valid(&frame.bytes), "{number} {role:?}");
                    frame.forwarded([[6; 6], [8; 6]]).unwrap();
                    assert!(valid(&frame.bytes) && frame.bytes[..6] == [6; 6], "{number} {role:?}");
                    assert_eq!(frame.carried(), None);
                }
            }
        }
    }

    fn valid(bytes: &[u8]) -> bool {
        let v4 = bytes[12..14] == V4;
        let (number, at) = if v4 { (bytes[IP + 9], IP + 20) } else { (bytes[IP + 6], IP + 40) };
        let segment = &bytes[at..];
        let addresses = if v4 { &bytes[IP + 12..at] } else { &bytes[IP + 8..at] };
        let start = u32::from(!sum(addresses, u32::from(number) + segment.len() as u32));
        let transport = if number == protocol::SCTP {
            let mut packet = segment.to_vec();
            packet[8..12].fill(0);
            crc32c(&packet).to_le_bytes() == segment[8..12]
        } else {
            sum(segment, start) == 0
        };
        transport && (!v4 || sum(&bytes[IP..at], 0) == 0)
    }
}

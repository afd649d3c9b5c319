//! A packet made of bytes, and addresses from their text.

use std::net::{IpAddr, SocketAddr};
use std::string::String;
use std::vec;
use std::vec::Vec;

use sluice_ebpf_common::{Address, FlowKey, protocol};

use crate::{Bytes, Covered, ETHERNET, Exit, Hop, Packet, Raw, Routed, Tunnel};

/// An address in the maps' form.
pub(crate) fn wire(text: &str) -> Address {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(address) => Address::v4(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => unbytes(&address.octets()),
    }
}

fn unbytes(bytes: &[u8]) -> Address {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    Address { words: [word(0), word(4), word(8), word(12)] }
}

/// An IPv4 mask in the maps' form.
pub(crate) fn mask(text: &str) -> Address {
    Address { words: [u32::MAX, u32::MAX, u32::MAX, wire(text).last()] }
}

/// The address as it stands in a packet.
fn octets(address: &Address) -> Vec<u8> {
    let all: Vec<u8> = address.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if address.is_v4() { all[12..].to_vec() } else { all }
}

/// `1.2.3.4:80` or `[fd00::1]:80` in the maps' form; `*` stands for every address of the node, `[*]` for every IPv6 one.
pub(crate) fn end(text: &str) -> (Address, u16) {
    let text = text.replace("[*]", "[::]").replace('*', "0.0.0.0");
    let end: SocketAddr = text.parse().unwrap();
    (wire(&std::format!("{}", end.ip())), end.port().to_be())
}

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN: u8 = 0x01;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
}

pub(crate) fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// Bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            remainder = (remainder >> 1) ^ if remainder & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    !remainder
}

fn ip(protocol: u8, source: &Address, destination: &Address, payload: &[u8]) -> Vec<u8> {
    let mut bytes;
    if source.is_v4() {
        bytes = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        bytes[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        bytes.extend(octets(source));
        bytes.extend(octets(destination));
        let checksum = sum(&bytes, 0);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        bytes.extend(octets(source));
        bytes.extend(octets(destination));
    }
    bytes.extend(payload);
    bytes
}

fn pseudo(protocol: u8, source: &Address, destination: &Address, length: usize) -> u32 {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    u32::from(!sum(&bytes, 0))
}

fn frame(ip: Vec<u8>) -> Frame {
    let kind = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, kind[0], kind[1]];
    bytes.extend(ip);
    Frame { bytes, mark: 0 }
}

impl Frame {
    pub(crate) fn tcp(source: &str, destination: &str, flags: u8, payload: &[u8]) -> Frame {
        let ((from, from_port), (to, to_port)) = (end(source), end(destination));
        let mut segment = Vec::new();
        segment.extend(from_port.to_ne_bytes());
        segment.extend(to_port.to_ne_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        segment.extend(payload);
        let checksum = sum(&segment, pseudo(protocol::TCP, &from, &to, segment.len()));
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::TCP, &from, &to, &segment))
    }

    pub(crate) fn udp(source: &str, destination: &str, payload: &[u8]) -> Frame {
        let ((from, from_port), (to, to_port)) = (end(source), end(destination));
        let mut datagram = Vec::new();
        datagram.extend(from_port.to_ne_bytes());
        datagram.extend(to_port.to_ne_bytes());
        datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let checksum = match sum(&datagram, pseudo(protocol::UDP, &from, &to, datagram.len())) {
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::UDP, &from, &to, &datagram))
    }

    /// An SCTP packet with one chunk of this kind and 16 bytes more than a payload.
    pub(crate) fn sctp(source: &str, destination: &str, chunk: u8, payload: &[u8]) -> Frame {
        let ((from, from_port), (to, to_port)) = (end(source), end(destination));
        let mut packet = Vec::new();
        packet.extend(from_port.to_ne_bytes());
        packet.extend(to_port.to_ne_bytes());
        packet.extend([1, 2, 3, 4, 0, 0, 0, 0, chunk, 0]);
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0xaa, 0xbb, 0xcc, 0xdd, 0, 0, 4, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        packet.extend(payload);
        packet.resize(packet.len().next_multiple_of(4), 0);
        let checksum = crc32c(&packet);
        packet[8..12].copy_from_slice(&checksum.to_le_bytes());
        frame(ip(protocol::SCTP, &from, &to, &packet))
    }

    /// An ICMP echo request (8) or reply (0).
    pub(crate) fn echo(source: &str, destination: &str, kind: u8, identifier: u16) -> Frame {
        let (from, to) = (wire(source), wire(destination));
        let kind = match (from.is_v4(), kind) {
            (true, kind) => kind,
            (false, 8) => 128,
            (false, _) => 129,
        };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend([0, 1, b'p', b'i', b'n', b'g']);
        Frame::icmp(&from, &to, message)
    }

    fn icmp(from: &Address, to: &Address, mut message: Vec<u8>) -> Frame {
        let (number, start) = if from.is_v4() {
            (protocol::ICMP, 0)
        } else {
            (protocol::ICMP6, pseudo(protocol::ICMP6, from, to, message.len()))
        };
        let checksum = sum(&message, start);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(number, from, to, &message))
    }

    /// An ICMP error about another frame.
    pub(crate) fn error(source: &str, destination: &str, about: &Frame) -> Frame {
        let (from, to) = (wire(source), wire(destination));
        let kind = if from.is_v4() { [3, 3] } else { [1, 4] };
        let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 0, 0];
        message.extend(&about.bytes[14..about.transport() + 8]);
        Frame::icmp(&from, &to, message)
    }

    /// Another frame inside of one between nodes, with the backend's port where it belongs.
    pub(crate) fn carrying(source: &str, destination: &str, port: u16, inner: &Frame) -> Frame {
        let (from, to) = (wire(source), wire(destination));
        let number = if from.is_v4() { protocol::IPV4 } else { protocol::IPV6 };
        let mut frame = frame(ip(number, &from, &to, &inner.bytes[14..]));
        let at = if frame.v4() { 18 } else { 16 };
        frame.bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        if frame.v4() {
            frame.fix_ip_header();
        }
        frame
    }

    /// Cuts an IP datagram into fragments, the first one with so many bytes of its payload.
    pub(crate) fn fragments(&self, first: usize) -> [Frame; 2] {
        let at = self.transport();
        let (head, payload) = self.bytes.split_at(at);
        let (one, two) = payload.split_at(first);
        let make = |part: &[u8], offset: usize, more: u16| {
            let mut bytes = head.to_vec();
            let word = (offset as u16 / 8) << if self.v4() { 0 } else { 3 };
            if self.v4() {
                bytes[16..18].copy_from_slice(&((at - 14 + part.len()) as u16).to_be_bytes());
                bytes[20..22].copy_from_slice(&(word | more << 13).to_be_bytes());
            } else {
                bytes[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
                bytes.extend([bytes[20], 0]);
                bytes.extend((word | more).to_be_bytes());
                bytes.extend([0, 7, 0, 9]);
                bytes[20] = 44;
            }
            bytes.extend(part);
            let mut frame = Frame { bytes, mark: self.mark };
            if frame.v4() {
                frame.fix_ip_header();
            }
            frame
        };
        [make(one, 0, 1), make(two, first, 0)]
    }

    /// Puts fragments together again.
    pub(crate) fn whole(fragments: &[Frame; 2]) -> Frame {
        let [first, second] = fragments;
        let at = if first.v4() { first.transport() } else { first.transport() + 8 };
        let mut bytes = first.bytes.clone();
        bytes.extend(&second.bytes[at..]);
        if first.v4() {
            bytes[20..22].copy_from_slice(&[0x40, 0]);
            let length = bytes.len() as u16 - 14;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
        } else {
            bytes[20] = bytes[54];
            bytes.drain(54..62);
            let length = bytes.len() as u16 - 54;
            bytes[18..20].copy_from_slice(&length.to_be_bytes());
        }
        let mut frame = Frame { bytes, mark: first.mark };
        if frame.v4() {
            frame.fix_ip_header();
        }
        frame
    }

    /// Makes the IPv4 header's checksum right.
    pub(crate) fn fix_ip_header(&mut self) {
        let end = self.transport();
        self.bytes[24..26].fill(0);
        let checksum = sum(&self.bytes[14..end], 0);
        self.bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    }

    pub(crate) fn v4(&self) -> bool {
        self.bytes[12] == 8
    }

    /// Where the transport header starts, without extension headers.
    pub(crate) fn transport(&self) -> usize {
        if self.v4() { 14 + usize::from(self.bytes[14] & 15) * 4 } else { 54 }
    }

    /// Time to live.
    pub(crate) fn life(&self) -> u8 {
        self.bytes[if self.v4() { 22 } else { 21 }]
    }

    pub(crate) fn protocol(&self) -> u8 {
        if self.v4() { self.bytes[23] } else { self.bytes[20] }
    }

    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&self.bytes[at..at + 4]).unwrap());
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&self.bytes[at..at + 16]).unwrap());
        if self.v4() { (v4(26), v4(30)) } else { (v6(22), v6(38)) }
    }

    /// `source:port > destination:port`, for ICMP with the identifier as both ports.
    pub(crate) fn ends(&self) -> String {
        let at = self.transport();
        let icmp = matches!(self.protocol(), protocol::ICMP | protocol::ICMP6);
        let (from, to) = if icmp { (at + 4, at + 4) } else { (at, at + 2) };
        let port = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let (source, destination) = self.addresses();
        std::format!("{} > {}", SocketAddr::new(source, port(from)), SocketAddr::new(destination, port(to)))
    }

    /// Are all checksums right?
    pub(crate) fn valid(&self) -> bool {
        let (header, payload) = self.bytes[14..].split_at(self.transport() - 14);
        let (source, destination) = self.addresses();
        let start = |number| {
            let text = |address: IpAddr| wire(&std::format!("{address}"));
            pseudo(number, &text(source), &text(destination), payload.len())
        };
        let start = match self.protocol() {
            protocol::ICMP => 0,
            protocol::SCTP => {
                let (stated, mut packet) = (payload[8..12].to_vec(), payload.to_vec());
                packet[8..12].fill(0);
                return (!self.v4() || sum(header, 0) == 0) && stated == crc32c(&packet).to_le_bytes();
            }
            protocol::UDP if payload[6..8] == [0, 0] => return !self.v4() || sum(header, 0) == 0,
            number => start(number),
        };
        (!self.v4() || sum(header, 0) == 0) && sum(payload, start) == 0
    }
}

impl Frame {
    fn fix(&mut self, offset: u32, from: &[u8], to: &[u8]) -> Option<()> {
        let at = offset as usize;
        let old = u16::from_be_bytes(self.read::<2>(offset)?);
        // RFC 1624: HC' = ~(~HC + ~m + m').
        let mut total = u32::from(!old);
        for (from, to) in from.chunks(2).zip(to.chunks(2)) {
            total += u32::from(!u16::from_be_bytes([from[0], from[1]])) + u32::from(u16::from_be_bytes([to[0], to[1]]));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        self.bytes.get_mut(at..at + 2)?.copy_from_slice(&(!(total as u16)).to_be_bytes());
        Some(())
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

impl Bytes for Frame {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.get(offset as usize..offset as usize + N)?.try_into().ok()
    }

    fn read_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (at, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.read::<4>(offset + 4 * at as u32)?);
        }
        Some(words)
    }

    fn ethertype(&self) -> u16 {
        self.read(12).map_or(0, u16::from_ne_bytes)
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.bytes.get_mut(offset as usize..offset as usize + N)?.copy_from_slice(&bytes);
        Some(())
    }

    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        (offset..).step_by(4).zip(words).try_for_each(|(at, word)| self.write(at, word.to_ne_bytes()))
    }
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        self.fix(offset, &from.to_ne_bytes(), &to.to_ne_bytes())
    }

    fn fix_address_checksum(&mut self, offset: u32, from: &Address, to: &Address, kind: Covered) -> Option<()> {
        self.fix_transport(offset, &octets(from), &octets(to), kind == Covered::PseudoOrNone)
    }

    fn fix_word_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn insert(&mut self, bytes: u32) -> Option<()> {
        let at = ETHERNET as usize;
        self.bytes.splice(at..at, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        self.bytes.truncate(length as usize);
        Some(())
    }

    fn write_counted(&mut self, offset: u32, word: u32) -> Option<()> {
        self.write_words(offset, [word])
    }

    fn fits(&self, _: u32) -> bool {
        false
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
}

impl Raw for Frame {
    const CARRIES: bool = true;

    fn prepend(&mut self, bytes: u32) -> Option<()> {
        self.bytes.splice(0..0, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }
}

/// The link that leads to other nodes, and its longest packet. The last network of a family has no route.
pub(crate) const ONWARD: (u32, u32) = (3, 1500);

impl Tunnel for Frame {
    fn segment(&self) -> u32 {
        0
    }

    fn way(&self, _: &Address, destination: &Address, length: u32, hop: &mut Hop) {
        let lost = ["10.244.8.8", "fd44:0:0:8::8"].iter().any(|pod| *destination == wire(pod));
        if !lost {
            let (link, mtu) = ONWARD;
            *hop = if length > mtu { Hop { link: 0, mtu } } else { Hop { link, mtu: 0 } };
        }
    }

    fn encapsulate(&mut self, v4: bool, _: bool) -> Option<()> {
        self.insert(if v4 { 20 } else { 40 })
    }

    fn decapsulate(&mut self, v4: bool) -> Option<()> {
        let at = ETHERNET as usize;
        self.bytes.drain(at..at + if v4 { 20 } else { 40 });
        Some(())
    }
}

impl Routed for Frame {
    /// Others' Ethernet addresses are groups'.
    fn is_addressed(&self) -> bool {
        self.bytes[0] & 1 == 0
    }

    fn is_for_node(&self) -> bool {
        self.is_addressed()
    }

    fn exit(&self, key: &FlowKey, _: u32, length: u32, exit: &mut Exit) {
        let mut hop = Hop::default();
        self.way(&key.source, &key.destination, length, &mut hop);
        // This node's own pods are on other links than uplinks.
        let (v4, v6) = (mask("255.255.255.0"), wire("ffff:ffff:ffff:ffff::"));
        let within = |text, mask| key.destination.within(&wire(text), mask);
        if within("10.244.0.0", &v4) || within("fd44::", &v6) || key.destination == wire("10.1.0.1") {
            *exit = Exit { mtu: u32::MAX, ..Exit::default() };
            return;
        }
        *exit = Exit { link: hop.link, mtu: if hop.link == 0 { 0 } else { ONWARD.1 }, ..Exit::default() };
    }
}

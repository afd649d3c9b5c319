//! A packet made of bytes and maps made of collections.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::vec;
use std::vec::Vec;

use sluice_ebpf_common::{Backend, Counters, Flow, FlowKey, Frontend, FrontendKey, Reason, Scope, Settings, protocol};

use crate::{ETHERNET, InsertError, Maps, Packet};

/// An address in the maps' form.
pub(crate) fn wire(text: &str) -> u32 {
    u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets())
}

/// `1.2.3.4:80` in the maps' form.
pub(crate) fn end(text: &str) -> (u32, u16) {
    let (address, port) = text.split_once(':').unwrap();
    (wire(address), port.parse::<u16>().unwrap().to_be())
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

fn ip(protocol: u8, source: u32, destination: u32, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes.extend(source.to_ne_bytes());
    bytes.extend(destination.to_ne_bytes());
    let checksum = sum(&bytes, 0);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn pseudo(protocol: u8, source: u32, destination: u32, length: usize) -> u32 {
    let mut bytes = Vec::new();
    bytes.extend(source.to_ne_bytes());
    bytes.extend(destination.to_ne_bytes());
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    u32::from(!sum(&bytes, 0))
}

fn frame(ip: Vec<u8>) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
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
        let checksum = sum(&segment, pseudo(protocol::TCP, from, to, segment.len()));
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::TCP, from, to, &segment))
    }

    pub(crate) fn udp(source: &str, destination: &str, payload: &[u8]) -> Frame {
        let ((from, from_port), (to, to_port)) = (end(source), end(destination));
        let mut datagram = Vec::new();
        datagram.extend(from_port.to_ne_bytes());
        datagram.extend(to_port.to_ne_bytes());
        datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let checksum = match sum(&datagram, pseudo(protocol::UDP, from, to, datagram.len())) {
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::UDP, from, to, &datagram))
    }

    /// An ICMP echo request (8) or reply (0).
    pub(crate) fn echo(source: &str, destination: &str, kind: u8, identifier: u16) -> Frame {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend([0, 1, b'p', b'i', b'n', b'g']);
        let checksum = sum(&message, 0);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::ICMP, wire(source), wire(destination), &message))
    }

    /// An ICMP error about another frame.
    pub(crate) fn error(source: &str, destination: &str, about: &Frame) -> Frame {
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(&about.bytes[14..14 + 28]);
        let checksum = sum(&message, 0);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        frame(ip(protocol::ICMP, wire(source), wire(destination), &message))
    }

    /// `source:port > destination:port`, for ICMP with the identifier as both ports.
    pub(crate) fn ends(&self) -> std::string::String {
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&self.bytes[at..at + 4]).unwrap());
        let port = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let (from, to) = if self.bytes[23] == protocol::ICMP { (38, 38) } else { (34, 36) };
        std::format!("{}:{} > {}:{}", address(26), port(from), address(30), port(to))
    }

    /// Are all checksums right?
    pub(crate) fn valid(&self) -> bool {
        let (header, payload) = self.bytes[14..].split_at(20);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let start = match header[9] {
            protocol::ICMP => 0,
            protocol::UDP if payload[6..8] == [0, 0] => return sum(header, 0) == 0,
            number => pseudo(number, word(12), word(16), payload.len()),
        };
        sum(header, 0) == 0 && sum(payload, start) == 0
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

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.get(offset as usize..offset as usize + N)?.try_into().ok()
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.bytes.get_mut(offset as usize..offset as usize + N)?.copy_from_slice(&bytes);
        Some(())
    }

    fn fix_ip_checksum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        self.fix(offset, &from.to_ne_bytes(), &to.to_ne_bytes())
    }

    fn fix_address_checksum(&mut self, offset: u32, from: u32, to: u32, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn fix_port_checksum(&mut self, offset: u32, from: u16, to: u16, zero_is_none: bool) -> Option<()> {
        self.fix_transport(offset, &from.to_ne_bytes(), &to.to_ne_bytes(), zero_is_none)
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
}

/// The maps of a node 10.1.0.1 with pods in 10.244.0.0/24 of 10.244.0.0/16.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(crate) slab: Vec<u32>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, Flow>>,
    pub(crate) flow_limit: usize,
    pub(crate) services: RefCell<BTreeMap<u32, Counters>>,
    pub(crate) reasons: RefCell<Vec<Reason>>,
    /// Handed out in a row, over and over.
    pub(crate) random: Vec<u32>,
    next: Cell<usize>,
}

impl World {
    pub(crate) fn new() -> World {
        let settings = Settings {
            node_address: wire("10.1.0.1"),
            pod_network: wire("10.244.0.0"),
            pod_mask: wire("255.255.255.0"),
            cluster_network: wire("10.244.0.0"),
            cluster_mask: wire("255.255.0.0"),
            node_port_first: 30000,
            node_port_last: 32767,
            source_port_first: 61000,
            source_port_last: 65535,
            ..Settings::default()
        };
        World {
            settings,
            frontends: BTreeMap::new(),
            slab: Vec::new(),
            backends: BTreeMap::new(),
            flows: RefCell::default(),
            flow_limit: 100,
            services: RefCell::default(),
            reasons: RefCell::default(),
            random: vec![0, 1 << 30, 1 << 31, 3 << 30],
            next: Cell::new(0),
        }
    }

    /// Adds a frontend (`*:30080` for a node port); backends marked with `~` are on other nodes.
    pub(crate) fn serve(&mut self, protocol: u8, scope: Scope, frontend: &str, backends: &[&str]) {
        let (address, port) = end(&frontend.replace('*', "0.0.0.0"));
        let base = self.slab.len() as u32;
        for text in backends {
            let (address, port) = end(text.trim_start_matches('~'));
            let flags = Backend::USED | if text.starts_with('~') { 0 } else { Backend::LOCAL };
            let id = self.backends.len() as u32 + 1;
            self.backends.insert(id, Backend { address, port, flags });
            self.slab.push(id);
        }
        let key = FrontendKey { address, port, protocol, scope: scope as u8 };
        let generation = self.frontends.len() as u32 + 1;
        let count = backends.len() as u32;
        self.frontends.insert(key, Frontend { generation, service: 1, base, count, ..Frontend::default() });
    }

    /// Takes the last backend that was added out of service.
    pub(crate) fn retire(&mut self, id: u32) {
        self.backends.get_mut(&id).unwrap().flags &= !Backend::USED;
    }
}

impl Maps for World {
    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slab.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn is_local(&self, address: u32) -> bool {
        address == wire("10.1.0.1") || address == wire("127.0.0.1")
    }

    fn is_node(&self, address: u32) -> bool {
        address == wire("10.1.0.3")
    }

    fn translates(&self, settings: &Settings) -> bool {
        settings.known_only == 0
    }

    fn source_address(&self) -> u32 {
        0
    }

    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.flows.borrow_mut().get_mut(key).map(change)
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if flows.len() >= self.flow_limit {
            return Err(InsertError::Full);
        }
        flows.insert(*key, *flow);
        Ok(())
    }

    fn remove_flow(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }

    fn flow_created(&self) {}

    fn now(&self) -> u32 {
        1000
    }

    fn random(&self) -> u32 {
        let at = self.next.get();
        self.next.set(at + 1);
        self.random[at % self.random.len()]
    }

    fn count_service(&self, id: u32, add: impl FnOnce(&mut Counters)) {
        add(self.services.borrow_mut().entry(id).or_default());
    }

    fn count_backend(&self, _: u32, _: impl FnOnce(&mut Counters)) {}

    fn count_reason(&self, reason: Reason) {
        self.reasons.borrow_mut().push(reason);
    }
}

/// The length that every test frame has at least.
pub(crate) const SHORTEST: usize = ETHERNET as usize + 20 + 8;

//! Reading and rewriting the headers that translation is about: IPv4 and IPv6 with TCP, UDP or ICMP.

use sluice_ebpf_common::{Address, limits, protocol};

use crate::{Covered, Packet};

/// Bytes before the IP header.
pub const ETHERNET: u32 = 14;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const IP_CHECKSUM: u32 = 10;
const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;
const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;
const IP6_SOURCE: u32 = 8;
const IP6_DESTINATION: u32 = 24;
const IP6_LENGTH: u32 = 40;
/// Where a fragment's offset stands in the IPv6 fragment header, and its bits.
const FRAGMENT6_OFFSET_MASK: u16 = 0xfff8;

const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const ICMP_CHECKSUM: u32 = 2;
const ICMP_IDENTIFIER: u32 = 4;
/// An ICMP error quotes the packet it is about after this many bytes.
const ICMP_QUOTE: u32 = 8;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What the transport part allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// TCP, or UDP, or an ICMP echo: there are ports.
    Ports,
    /// An ICMP echo reply, whose identifier is the destination's.
    EchoReply,
    /// An ICMP error about another packet.
    IcmpError,
    /// A fragment without transport header.
    Fragment,
    /// Any other protocol.
    #[default]
    Other,
}

/// The headers of a packet. Addresses and ports in network order. Aligned so that programs copy by eights.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, or identifier of an echo request.
    pub source_port: u16,
    /// Destination port, or identifier of an echo reply.
    pub destination_port: u16,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of the transport header.
    pub transport: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// What the transport part allows.
    pub kind: Kind,
    /// IPv4, else IPv6.
    pub v4: bool,
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl Header {
    /// A TCP connection's first packet.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (SYN | ACK) == SYN
    }

    /// An echo request, whose identifier stands for the source port.
    #[inline(always)]
    pub(crate) fn is_echo(&self) -> bool {
        self.protocol == protocol::ICMP || self.protocol == protocol::ICMP6
    }

    /// The FIN and RST bits as flow flags.
    #[inline(always)]
    pub(crate) fn closes(&self) -> u16 {
        let fin = if self.tcp_flags & FIN != 0 { sluice_ebpf_common::Flow::FIN } else { 0 };
        let rst = if self.tcp_flags & RST != 0 { sluice_ebpf_common::Flow::RST } else { 0 };
        fin | rst
    }
}

/// Reads the headers; `None` for anything that is not whole IPv4 or IPv6.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Header> {
    let start = match packet.ethertype() {
        ETHERTYPE_IPV4 => start_v4(packet, ETHERNET)?,
        ETHERTYPE_IPV6 => start_v6(packet, ETHERNET)?,
        _ => return None,
    };
    // Through memory, by whole words: the kernel's verifier then does not walk the programs once for each thing that a
    // header can say.
    rest(packet, start).map(core::hint::black_box)
}

/// Is it an IPv4 packet?
#[inline(always)]
pub(crate) fn is_v4<P: Packet>(packet: &P) -> bool {
    packet.ethertype() == ETHERTYPE_IPV4
}

/// Reads the packet quoted by an ICMP error: the addresses and ports are those of the packet as it left. Rare, and so a
/// function of its own in the kernel, where the stack is small.
#[inline(never)]
pub(crate) fn parse_quote<P: Packet>(packet: &P, error: &Header, quote: &mut Header) -> Option<()> {
    let ip = error.transport + ICMP_QUOTE;
    let start = if error.v4 { start_v4(packet, ip)? } else { start_v6(packet, ip)? };
    *quote = rest(packet, start)?;
    Some(())
}

/// What an IP header says.
#[derive(Clone, Copy)]
struct Start {
    source: Address,
    destination: Address,
    ip: u32,
    transport: u32,
    protocol: u8,
    fragment: bool,
    v4: bool,
}

#[inline(always)]
fn start_v4<P: Packet>(packet: &P, ip: u32) -> Option<Start> {
    let words = packet.read_words::<5>(ip)?;
    let [version, ..] = words[0].to_ne_bytes();
    let length = u32::from(version & 0x0f) * 4;
    if version >> 4 != 4 || length < 20 {
        return None;
    }
    let [_, protocol, ..] = words[2].to_ne_bytes();
    Some(Start {
        source: Address::v4(words[3]),
        destination: Address::v4(words[4]),
        ip,
        transport: ip + length,
        protocol,
        fragment: u32::from_be(words[1]) & u32::from(FRAGMENT_OFFSET_MASK) != 0,
        v4: true,
    })
}

#[inline(always)]
fn start_v6<P: Packet>(packet: &P, ip: u32) -> Option<Start> {
    let words = packet.read_words::<10>(ip)?;
    let [version, ..] = words[0].to_ne_bytes();
    if version >> 4 != 6 {
        return None;
    }
    let source = Address { words: [words[2], words[3], words[4], words[5]] };
    let destination = Address { words: [words[6], words[7], words[8], words[9]] };
    // An IPv4 address in this form has no place on a wire, and would be taken for IPv4 in the maps.
    if source.is_v4() || destination.is_v4() {
        return None;
    }
    let [_, _, mut protocol, _] = words[1].to_ne_bytes();
    let mut transport = ip + IP6_LENGTH;
    let mut fragment = false;
    if is_extension(protocol) {
        let end = skip(packet, protocol, transport);
        if end == 0 {
            return None;
        }
        protocol = end as u8;
        fragment = end & FRAGMENT != 0;
        transport = (end >> 32) as u32;
    }
    Some(Start { source, destination, ip, transport, protocol, fragment, v4: false })
}

/// Hop-by-hop, routing and destination options, fragments.
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 60)
}

/// Bit of what [`skip`] returns.
const FRAGMENT: u64 = 0x100;

/// Looks past extension headers: the protocol behind them, [`FRAGMENT`] for a fragment without transport header, and above
/// them where the next header starts; 0 if the packet ends too early. Rare, and so a function of its own in the kernel, whose
/// verifier walks it once for each way to call it.
#[inline(never)]
fn skip<P: Packet>(packet: &P, protocol: u8, transport: u32) -> u64 {
    let (mut protocol, mut transport) = (protocol, transport);
    for _ in 0..limits::EXTENSIONS {
        if !is_extension(protocol) {
            break;
        }
        let Some(start) = packet.read::<4>(transport) else { return 0 };
        let fragment = protocol == 44;
        protocol = start[0];
        if fragment {
            transport += 8;
            if u16::from_be_bytes([start[2], start[3]]) & FRAGMENT6_OFFSET_MASK != 0 {
                return u64::from(transport) << 32 | FRAGMENT | u64::from(protocol);
            }
        } else {
            // The length counts eights after the first.
            transport += (u32::from(start[1]) + 1) * 8;
        }
    }
    u64::from(transport) << 32 | u64::from(protocol)
}

#[inline(always)]
fn rest<P: Packet>(packet: &P, start: Start) -> Option<Header> {
    let ports = if start.fragment {
        Ports { kind: Kind::Fragment, ..Ports::default() }
    } else {
        read_ports(packet, start.protocol, start.v4, start.ip, start.transport)?
    };
    Some(Header {
        source: start.source,
        destination: start.destination,
        source_port: ports.source,
        destination_port: ports.destination,
        ip: start.ip,
        transport: start.transport,
        protocol: start.protocol,
        tcp_flags: ports.tcp_flags,
        kind: ports.kind,
        v4: start.v4,
    })
}

/// What a transport header says.
#[derive(Clone, Copy, Default)]
struct Ports {
    kind: Kind,
    source: u16,
    destination: u16,
    tcp_flags: u8,
}

#[inline(always)]
fn read_ports<P: Packet>(packet: &P, protocol: u8, v4: bool, ip: u32, at: u32) -> Option<Ports> {
    let mut ports = Ports::default();
    match (protocol, v4) {
        (protocol::TCP | protocol::UDP, _) => {
            // An error quotes eight bytes at least, which is too little for the flags.
            let word = if protocol == protocol::TCP && ip == ETHERNET {
                let words = packet.read_words::<4>(at)?;
                let [_, flags, ..] = words[3].to_ne_bytes();
                ports.tcp_flags = flags;
                words[0]
            } else {
                packet.read_words::<1>(at)?[0]
            };
            let [source_high, source_low, high, low] = word.to_ne_bytes();
            ports.kind = Kind::Ports;
            ports.source = u16::from_ne_bytes([source_high, source_low]);
            ports.destination = u16::from_ne_bytes([high, low]);
        }
        (protocol::ICMP, true) | (protocol::ICMP6, false) => {
            let icmp = packet.read::<8>(at)?;
            let identifier = u16::from_ne_bytes([icmp[4], icmp[5]]);
            match (icmp[0], v4) {
                (8, true) | (128, false) => {
                    ports.kind = Kind::Ports;
                    ports.source = identifier;
                }
                (0, true) | (129, false) => {
                    ports.kind = Kind::EchoReply;
                    ports.destination = identifier;
                }
                (3 | 11 | 12, true) | (1..=4, false) => ports.kind = Kind::IcmpError,
                _ => {}
            }
        }
        _ => {}
    }
    Some(ports)
}

/// Writes a new address and port at one end and keeps all checksums right.
#[inline(never)]
pub(crate) fn rewrite<P: Packet>(
    packet: &mut P,
    header: &Header,
    end: End,
    address: &Address,
    port: u16,
) -> Option<()> {
    let (old_address, old_port, port_at) = match end {
        End::Source => (&header.source, header.source_port, 0),
        End::Destination => (&header.destination, header.destination_port, 2),
    };
    let (checksum, port_at, covered) = match header.protocol {
        protocol::TCP => (TCP_CHECKSUM, port_at, Some(Covered::Pseudo)),
        protocol::UDP => (UDP_CHECKSUM, port_at, Some(Covered::PseudoOrNone)),
        protocol::ICMP6 => (ICMP_CHECKSUM, ICMP_IDENTIFIER, Some(Covered::Pseudo)),
        _ => (ICMP_CHECKSUM, ICMP_IDENTIFIER, None),
    };
    let checksum = header.transport + checksum;
    if header.v4 {
        let (from, to) = (old_address.last(), address.last());
        if from != to {
            if let Some(covered) = covered {
                packet.fix_word_checksum(checksum, from, to, covered == Covered::PseudoOrNone)?;
            }
            write_address(packet, header, end, old_address, address)?;
        }
    } else if !old_address.same(address) {
        if let Some(covered) = covered {
            packet.fix_address_checksum(checksum, old_address, address, covered)?;
        }
        write_address(packet, header, end, old_address, address)?;
    }
    if old_port != port {
        packet.fix_port_checksum(checksum, old_port, port, covered == Some(Covered::PseudoOrNone))?;
        packet.write(header.transport + port_at, port.to_ne_bytes())?;
    }
    Some(())
}

/// Writes an address into an IP header, whose own checksum (IPv4) is kept right.
#[inline(always)]
fn write_address<P: Packet>(packet: &mut P, header: &Header, end: End, from: &Address, to: &Address) -> Option<()> {
    if header.v4 {
        packet.fix_ip_checksum(header.ip + IP_CHECKSUM, from.last(), to.last())?;
        let at = if end == End::Source { IP_SOURCE } else { IP_DESTINATION };
        packet.write(header.ip + at, to.last().to_ne_bytes())
    } else {
        let at = if end == End::Source { IP6_SOURCE } else { IP6_DESTINATION };
        packet.write(header.ip + at, bytes(to))
    }
}

/// Rewrites an ICMP error towards `address`: its own destination, and the source of the packet that it quotes.
///
/// With IPv4 the quoted header's checksum makes up for its new address, so the ICMP checksum changes by the port alone; an
/// IPv6 header has none, and the ICMPv6 checksum covers both addresses that change. A quoted UDP checksum is left as it is:
/// nobody verifies it (RFC 5508, section 4.2 allows this for errors).
#[inline(never)]
pub(crate) fn rewrite_error<P: Packet>(
    packet: &mut P,
    error: &Header,
    quote: &Header,
    address: &Address,
    port: u16,
) -> Option<()> {
    let checksum = error.transport + ICMP_CHECKSUM;
    if !error.v4 {
        packet.fix_address_checksum(checksum, &error.destination, address, Covered::Pseudo)?;
        packet.fix_address_checksum(checksum, &quote.source, address, Covered::Payload)?;
    }
    write_address(packet, error, End::Destination, &error.destination, address)?;
    write_address(packet, quote, End::Source, &quote.source, address)?;
    let port_at = if quote.is_echo() { ICMP_IDENTIFIER } else { 0 };
    packet.fix_port_checksum(checksum, quote.source_port, port, false)?;
    packet.write(quote.transport + port_at, port.to_ne_bytes())
}

/// The address as it stands in an IPv6 header.
#[inline(always)]
fn bytes(address: &Address) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(address.words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

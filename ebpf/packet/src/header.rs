//! Reading and rewriting the headers that translation is about: IPv4 and IPv6 with TCP, UDP or ICMP.

use sluice_ebpf_common::{Address, limits, protocol};

use crate::{Covered, Packet};

/// Bytes before the IP header.
pub const ETHERNET: u32 = 14;

const ETHERTYPE: u32 = 12;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
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

const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
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

/// The headers of a packet. Addresses and ports in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What the transport part allows.
    pub kind: Kind,
    /// IPv4, else IPv6.
    pub v4: bool,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of the transport header.
    pub transport: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, or identifier of an echo request.
    pub source_port: u16,
    /// Destination port, or identifier of an echo reply.
    pub destination_port: u16,
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
    let mut header = Header::default();
    match packet.read::<2>(ETHERTYPE)? {
        ETHERTYPE_IPV4 => parse_v4(packet, ETHERNET, &mut header)?,
        ETHERTYPE_IPV6 => parse_v6(packet, ETHERNET, &mut header)?,
        _ => return None,
    }
    Some(header)
}

/// Reads the packet quoted by an ICMP error: the addresses and ports are those of the packet as it left.
#[inline(always)]
pub(crate) fn parse_quote<P: Packet>(packet: &P, error: &Header) -> Option<Header> {
    let ip = error.transport + ICMP_QUOTE;
    let mut quote = Header::default();
    if error.v4 {
        parse_v4(packet, ip, &mut quote)?
    } else {
        parse_v6(packet, ip, &mut quote)?
    }
    Some(quote)
}

/// As are all that read or write much: a function of its own in the kernel, where the stack is small.
#[inline(never)]
fn parse_v4<P: Packet>(packet: &P, ip: u32, header: &mut Header) -> Option<()> {
    let bytes = packet.read::<20>(ip)?;
    let length = u32::from(bytes[0] & 0x0f) * 4;
    if bytes[0] >> 4 != 4 || length < 20 {
        return None;
    }
    *header = Header {
        kind: Kind::Other,
        v4: true,
        ip,
        transport: ip + length,
        protocol: bytes[9],
        tcp_flags: 0,
        source: Address::v4(u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]])),
        destination: Address::v4(u32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]])),
        source_port: 0,
        destination_port: 0,
    };
    if u16::from_be_bytes([bytes[6], bytes[7]]) & FRAGMENT_OFFSET_MASK != 0 {
        header.kind = Kind::Fragment;
        return Some(());
    }
    parse_transport(packet, header)
}

#[inline(never)]
fn parse_v6<P: Packet>(packet: &P, ip: u32, header: &mut Header) -> Option<()> {
    let start = packet.read::<8>(ip)?;
    if start[0] >> 4 != 6 {
        return None;
    }
    *header = Header {
        kind: Kind::Other,
        v4: false,
        ip,
        transport: ip + IP6_LENGTH,
        protocol: start[6],
        tcp_flags: 0,
        source: packet.read_address(ip + IP6_SOURCE)?,
        destination: packet.read_address(ip + IP6_DESTINATION)?,
        source_port: 0,
        destination_port: 0,
    };
    // An IPv4 address in this form has no place on a wire, and would be taken for IPv4 in the maps.
    if header.source.is_v4() || header.destination.is_v4() {
        return None;
    }
    for _ in 0..limits::EXTENSIONS {
        match header.protocol {
            // Hop-by-hop, routing and destination options: the length counts eights after the first.
            0 | 43 | 60 => {
                let start = packet.read::<2>(header.transport)?;
                header.protocol = start[0];
                header.transport += (u32::from(start[1]) + 1) * 8;
            }
            44 => {
                let start = packet.read::<4>(header.transport)?;
                header.protocol = start[0];
                header.transport += 8;
                if u16::from_be_bytes([start[2], start[3]]) & FRAGMENT6_OFFSET_MASK != 0 {
                    header.kind = Kind::Fragment;
                    return Some(());
                }
            }
            _ => break,
        }
    }
    parse_transport(packet, header)
}

#[inline(always)]
fn parse_transport<P: Packet>(packet: &P, header: &mut Header) -> Option<()> {
    match (header.protocol, header.v4) {
        (protocol::TCP | protocol::UDP, _) => {
            let ports = if header.protocol == protocol::TCP && header.ip == ETHERNET {
                let start = packet.read::<{ TCP_FLAGS + 1 }>(header.transport)?;
                header.tcp_flags = start[TCP_FLAGS];
                [start[0], start[1], start[2], start[3]]
            } else {
                packet.read::<4>(header.transport)?
            };
            header.kind = Kind::Ports;
            header.source_port = u16::from_ne_bytes([ports[0], ports[1]]);
            header.destination_port = u16::from_ne_bytes([ports[2], ports[3]]);
        }
        (protocol::ICMP, true) | (protocol::ICMP6, false) => {
            let icmp = packet.read::<8>(header.transport)?;
            let identifier = u16::from_ne_bytes([icmp[4], icmp[5]]);
            match (icmp[0], header.v4) {
                (8, true) | (128, false) => {
                    header.kind = Kind::Ports;
                    header.source_port = identifier;
                }
                (0, true) | (129, false) => {
                    header.kind = Kind::EchoReply;
                    header.destination_port = identifier;
                }
                (3 | 11 | 12, true) | (1..=4, false) => header.kind = Kind::IcmpError,
                _ => {}
            }
        }
        _ => {}
    }
    Some(())
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
    if !old_address.same(address) {
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

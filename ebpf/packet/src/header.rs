//! Reading and rewriting the headers that translation is about: IPv4 with TCP, UDP or ICMP.

use sluice_ebpf_common::protocol;

use crate::Packet;

/// Bytes before the IP header.
pub const ETHERNET: u32 = 14;

const ETHERTYPE: u32 = 12;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const IP_CHECKSUM: u32 = 10;
const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;
const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    Other,
}

/// The headers of a packet. Addresses and ports in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the transport part allows.
    pub kind: Kind,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of the transport header.
    pub transport: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
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

    /// The FIN and RST bits as flow flags.
    #[inline(always)]
    pub(crate) fn closes(&self) -> u16 {
        let fin = if self.tcp_flags & FIN != 0 { sluice_ebpf_common::Flow::FIN } else { 0 };
        let rst = if self.tcp_flags & RST != 0 { sluice_ebpf_common::Flow::RST } else { 0 };
        fin | rst
    }
}

/// Reads the headers; `None` for anything that is not whole IPv4.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Header> {
    if packet.read::<2>(ETHERTYPE)? != ETHERTYPE_IPV4 {
        return None;
    }
    parse_ip(packet, ETHERNET)
}

/// Reads the packet quoted by an ICMP error: the addresses and ports are those of the packet as it left.
#[inline(always)]
pub(crate) fn parse_quote<P: Packet>(packet: &P, error: &Header) -> Option<Header> {
    parse_ip(packet, error.transport + ICMP_QUOTE)
}

#[inline(always)]
fn parse_ip<P: Packet>(packet: &P, ip: u32) -> Option<Header> {
    let bytes = packet.read::<20>(ip)?;
    let length = u32::from(bytes[0] & 0x0f) * 4;
    if bytes[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let mut header = Header {
        kind: Kind::Other,
        ip,
        transport: ip + length,
        protocol: bytes[9],
        tcp_flags: 0,
        source: u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
        destination: u32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]),
        source_port: 0,
        destination_port: 0,
    };
    if u16::from_be_bytes([bytes[6], bytes[7]]) & FRAGMENT_OFFSET_MASK != 0 {
        header.kind = Kind::Fragment;
        return Some(header);
    }
    match header.protocol {
        protocol::TCP | protocol::UDP => {
            let ports = if header.protocol == protocol::TCP && ip == ETHERNET {
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
        protocol::ICMP => {
            let icmp = packet.read::<8>(header.transport)?;
            let identifier = u16::from_ne_bytes([icmp[4], icmp[5]]);
            match icmp[0] {
                8 => {
                    header.kind = Kind::Ports;
                    header.source_port = identifier;
                }
                0 => {
                    header.kind = Kind::EchoReply;
                    header.destination_port = identifier;
                }
                3 | 11 | 12 => header.kind = Kind::IcmpError,
                _ => {}
            }
        }
        _ => {}
    }
    Some(header)
}

/// Writes a new address and port at one end and keeps all checksums right.
#[inline(always)]
pub(crate) fn rewrite<P: Packet>(packet: &mut P, header: &Header, end: End, address: u32, port: u16) -> Option<()> {
    let (old_address, old_port, at, port_at) = match end {
        End::Source => (header.source, header.source_port, IP_SOURCE, 0),
        End::Destination => (header.destination, header.destination_port, IP_DESTINATION, 2),
    };
    let (checksum, port_at, pseudo, zero_is_none) = match header.protocol {
        protocol::TCP => (TCP_CHECKSUM, port_at, true, false),
        protocol::UDP => (UDP_CHECKSUM, port_at, true, true),
        _ => (ICMP_CHECKSUM, ICMP_IDENTIFIER, false, false),
    };
    let checksum = header.transport + checksum;
    if old_address != address {
        if pseudo {
            packet.fix_address_checksum(checksum, old_address, address, zero_is_none)?;
        }
        packet.fix_ip_checksum(header.ip + IP_CHECKSUM, old_address, address)?;
        packet.write(header.ip + at, address.to_ne_bytes())?;
    }
    if old_port != port {
        packet.fix_port_checksum(checksum, old_port, port, zero_is_none)?;
        packet.write(header.transport + port_at, port.to_ne_bytes())?;
    }
    Some(())
}

/// Rewrites an ICMP error towards `address`: its own destination, and the source of the packet that it quotes.
///
/// The quoted header's checksum makes up for its new address, so the ICMP checksum changes by the port alone. A quoted
/// UDP checksum is left as it is: nobody verifies it (RFC 5508, section 4.2 allows this for errors).
#[inline(always)]
pub(crate) fn rewrite_error<P: Packet>(
    packet: &mut P,
    error: &Header,
    quote: &Header,
    address: u32,
    port: u16,
) -> Option<()> {
    packet.fix_ip_checksum(error.ip + IP_CHECKSUM, error.destination, address)?;
    packet.write(error.ip + IP_DESTINATION, address.to_ne_bytes())?;
    packet.fix_ip_checksum(quote.ip + IP_CHECKSUM, quote.source, address)?;
    packet.write(quote.ip + IP_SOURCE, address.to_ne_bytes())?;
    let port_at = if quote.protocol == protocol::ICMP { ICMP_IDENTIFIER } else { 0 };
    packet.fix_port_checksum(error.transport + ICMP_CHECKSUM, quote.source_port, port, false)?;
    packet.write(quote.transport + port_at, port.to_ne_bytes())
}

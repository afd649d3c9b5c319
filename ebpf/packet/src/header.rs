//! Reading and rewriting the headers that translation is about: IPv4 and IPv6 with TCP, UDP, SCTP or ICMP.

use sluice_ebpf_common::{Address, Reason, limits, protocol};

use crate::{Bytes, Covered, Packet, sctp};

/// Bytes before the IP header.
pub const ETHERNET: u32 = 14;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const IP_CHECKSUM: u32 = 10;
const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;
const IP6_SOURCE: u32 = 8;
const IP6_DESTINATION: u32 = 24;
const IP6_LENGTH: u32 = 40;

const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const ICMP_CHECKSUM: u32 = 2;
const ICMP_IDENTIFIER: u32 = 4;
/// An ICMP error quotes the packet it is about after this many bytes.
const ICMP_QUOTE: u32 = 8;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// What the transport part allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// TCP, UDP, SCTP, or an ICMP echo: there are ports.
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

/// How much of a datagram a packet is. Bits without branches, as the kernel's verifier walks every branch of a program.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part(u8);

impl Part {
    /// By the bits of an IPv4 header.
    #[inline(always)]
    const fn of(fragment: u32) -> Part {
        let later = ((fragment & 0x1fff) + 0x1fff) >> 13;
        Part((later << 1 | fragment >> 13 & 1) as u8)
    }

    /// The first fragment of several: the one with the transport header.
    #[inline(always)]
    pub const fn is_first(self) -> bool {
        self.0 == 1
    }

    /// A later fragment.
    #[inline(always)]
    pub const fn is_later(self) -> bool {
        self.0 & 2 != 0
    }

    /// One of several.
    #[inline(always)]
    pub const fn is_fragment(self) -> bool {
        self.0 != 0
    }
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
    pub ip: u16,
    /// Offset of the transport header.
    pub transport: u16,
    /// What all fragments of a datagram have in common; an IPv6 datagram's is folded.
    pub identification: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, or what an SCTP packet does in TCP's terms, else 0.
    pub tcp_flags: u8,
    /// What the transport part allows.
    pub kind: Kind,
    /// IPv4, else IPv6.
    pub v4: bool,
    /// How much of a datagram this is.
    pub part: Part,
    /// Zero.
    pub reserved: u8,
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl Header {
    /// A TCP connection's first packet, or an SCTP association's.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.tcp_flags & (SYN | ACK) == SYN
    }

    /// The answer to such a packet.
    #[inline(always)]
    pub(crate) fn accepts(&self) -> bool {
        self.tcp_flags & (SYN | ACK) == SYN | ACK
    }

    /// A protocol whose packets say when a connection starts.
    #[inline(always)]
    pub(crate) fn has_connections(&self) -> bool {
        self.protocol == protocol::TCP || self.protocol == protocol::SCTP
    }

    /// A fragment of something that can be translated.
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.part.is_fragment() && !matches!(self.kind, Kind::Other | Kind::IcmpError)
    }

    /// An echo request, whose identifier stands for the source port.
    #[inline(always)]
    pub(crate) fn is_echo(&self) -> bool {
        self.protocol == protocol::ICMP || self.protocol == protocol::ICMP6
    }

    /// Does it carry another IP packet of its own family?
    #[inline(always)]
    pub(crate) fn is_carrier(&self) -> bool {
        let number = if self.v4 { protocol::IPV4 } else { protocol::IPV6 };
        self.protocol == number && self.part == Part(0)
    }

    /// The FIN, RST and ACK bits as flow flags.
    #[inline(always)]
    pub(crate) fn closes(&self) -> u16 {
        let fin = if self.tcp_flags & FIN != 0 { sluice_ebpf_common::Flow::FIN } else { 0 };
        let rst = if self.tcp_flags & RST != 0 { sluice_ebpf_common::Flow::RST } else { 0 };
        let answers = self.tcp_flags & (SYN | ACK) == ACK;
        fin | rst | if answers { sluice_ebpf_common::Flow::ACKNOWLEDGED } else { 0 }
    }
}

/// Reads the headers; `None` for anything that is not whole IPv4 or IPv6.
#[inline(always)]
pub(crate) fn parse<P: Packet>(packet: &P) -> Option<Header> {
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

/// Reads the packet quoted by an ICMP error: the addresses and ports are those of the packet as it left.
#[inline(always)]
pub(crate) fn parse_quote<P: Packet>(packet: &P, error: &Header, quote: &mut Header) -> Option<()> {
    parse_inner(packet, error.v4, u32::from(error.transport) + ICMP_QUOTE, quote)
}

/// Reads the packet of that family that starts at an offset inside another one, without its TCP flags. Rare, and so in
/// functions of their own in the kernel, where the stack is small.
#[inline(always)]
pub(crate) fn parse_inner<P: Packet>(packet: &P, v4: bool, ip: u32, inner: &mut Header) -> Option<()> {
    *inner = Header::default();
    inner_start(packet, v4, ip, inner)?;
    inner_rest(packet, inner)
}

#[inline(never)]
fn inner_start<P: Packet>(packet: &P, v4: bool, ip: u32, inner: &mut Header) -> Option<()> {
    let start = if v4 { start_v4(packet, ip)? } else { start_v6(packet, ip)? };
    (inner.source, inner.destination) = (start.source, start.destination);
    (inner.ip, inner.transport) = (start.ip as u16, start.transport as u16);
    (inner.protocol, inner.v4) = (start.protocol, v4);
    (inner.identification, inner.part) = (start.identification, start.part);
    Some(())
}

#[inline(never)]
fn inner_rest<P: Packet>(packet: &P, inner: &mut Header) -> Option<()> {
    if inner.part.is_later() {
        inner.kind = Kind::Fragment;
        return Some(());
    }
    let ports = read_ports(packet, inner.protocol, inner.v4, inner.ip.into(), inner.transport.into())?;
    (inner.kind, inner.tcp_flags) = (ports.kind, ports.tcp_flags);
    (inner.source_port, inner.destination_port) = (ports.source, ports.destination);
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
    identification: u16,
    part: Part,
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
    let fragment = u32::from_be(words[1]);
    Some(Start {
        source: Address::v4(words[3]),
        destination: Address::v4(words[4]),
        ip,
        transport: ip + length,
        protocol,
        identification: (fragment >> 16) as u16,
        part: Part::of(fragment),
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
    let [_, _, protocol, _] = words[1].to_ne_bytes();
    let mut end = u64::from(ip + IP6_LENGTH) << 32 | u64::from(protocol);
    if is_extension(protocol) {
        end = skip(packet, end);
        if end == 0 {
            return None;
        }
    }
    Some(Start {
        source,
        destination,
        ip,
        transport: (end >> 32) as u32,
        protocol: end as u8,
        identification: (end >> 16) as u16,
        part: Part((end >> PART) as u8),
        v4: false,
    })
}

/// Hop-by-hop, routing and destination options, fragments.
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 60)
}

/// Where [`skip`] says how much of a datagram it is, and what its fragments have in common.
const PART: u32 = 8;
const IDENTIFICATION: u32 = 16;

/// Looks past extension headers. Takes and returns in one word the protocol of the next header, a fragment's [`PART`] and
/// [`IDENTIFICATION`] above it, and in the upper half where the next header starts; 0 if the packet ends too early. Rare, and
/// so a function of its own in the kernel, whose verifier walks it once for each way to call it.
#[inline(never)]
fn skip<P: Packet>(packet: &P, start: u64) -> u64 {
    let (mut protocol, mut transport, mut fragment) = (start as u8, (start >> 32) as u32, 0);
    for _ in 0..limits::EXTENSIONS {
        if !is_extension(protocol) {
            break;
        }
        let Some([next, length, high, low]) = packet.read::<4>(transport) else { return 0 };
        if protocol == 44 {
            let Some([identification]) = packet.read_words::<1>(transport + 4) else { return 0 };
            // As it would stand in an IPv4 header.
            let bits = u32::from(u16::from_be_bytes([high, low]));
            let part = Part::of(bits >> 3 | (bits & 1) << 13);
            let folded = (identification ^ identification >> 16) as u16;
            fragment = u64::from(folded) << IDENTIFICATION | u64::from(part.0) << PART;
            transport += 8;
            protocol = next;
            if part.is_later() {
                break;
            }
        } else {
            // The length counts eights after the first.
            transport += (u32::from(length) + 1) * 8;
            protocol = next;
        }
    }
    u64::from(transport) << 32 | fragment | u64::from(protocol)
}

#[inline(always)]
fn rest<P: Packet>(packet: &P, start: Start) -> Option<Header> {
    let ports = if start.part.is_later() {
        Ports { kind: Kind::Fragment, ..Ports::default() }
    } else {
        read_ports(packet, start.protocol, start.v4, start.ip, start.transport)?
    };
    Some(Header {
        source: start.source,
        destination: start.destination,
        source_port: ports.source,
        destination_port: ports.destination,
        ip: start.ip as u16,
        transport: start.transport as u16,
        protocol: start.protocol,
        tcp_flags: ports.tcp_flags,
        kind: ports.kind,
        v4: start.v4,
        identification: start.identification,
        part: start.part,
        reserved: 0,
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
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => {
            // An error quotes eight bytes at least, which is too little for the flags.
            let word = if protocol != protocol::UDP && ip == ETHERNET {
                let words = packet.read_words::<4>(at)?;
                let [chunk, flags, ..] = words[3].to_ne_bytes();
                ports.tcp_flags = if protocol == protocol::TCP { flags } else { sctp::flags(chunk) };
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

/// Bytes of a TCP or UDP header.
#[inline(always)]
pub(crate) fn transport_header<P: Bytes>(packet: &P, transport: u32, number: u8) -> Option<u32> {
    match number {
        protocol::TCP => packet.read::<1>(transport + 12).map(|[length]| u32::from(length >> 4) * 4),
        _ => Some(8),
    }
}

/// Writes a new address and port at one end and keeps all checksums right.
#[inline(always)]
pub(crate) fn rewrite<P: Packet>(
    packet: &mut P,
    header: &Header,
    end: End,
    address: &Address,
    port: u16,
) -> Result<(), Reason> {
    let old_port = if end == End::Source { header.source_port } else { header.destination_port };
    if header.protocol == protocol::SCTP && header.part.is_fragment() && old_port != port {
        return Err(Reason::SctpFragment);
    }
    write_end(packet, header, end, address, port).ok_or(Reason::Rewrite)
}

/// In the kernel a function of its own, which all ways share.
#[inline(never)]
fn write_end<P: Packet>(packet: &mut P, header: &Header, end: End, address: &Address, port: u16) -> Option<()> {
    let (old_address, old_port, port_at) = match end {
        End::Source => (&header.source, header.source_port, 0),
        End::Destination => (&header.destination, header.destination_port, 2),
    };
    let (checksum, port_at, covered) = match header.protocol {
        protocol::TCP => (TCP_CHECKSUM, port_at, Some(Covered::Pseudo)),
        protocol::UDP => (UDP_CHECKSUM, port_at, Some(Covered::PseudoOrNone)),
        protocol::ICMP6 => (ICMP_CHECKSUM, ICMP_IDENTIFIER, Some(Covered::Pseudo)),
        // Knows no addresses.
        protocol::SCTP => (sctp::CHECKSUM, port_at, None),
        _ => (ICMP_CHECKSUM, ICMP_IDENTIFIER, None),
    };
    let transport = u32::from(header.transport);
    let checksum = transport + checksum;
    if header.part.is_later() {
        // The first one's checksum covers all of it.
        return write_address(packet, header, end, old_address, address);
    }
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
        if header.protocol == protocol::SCTP {
            let changed = u32::from_ne_bytes(port_change(end, old_port ^ port));
            sctp::fix_checksum(packet, checksum, changed, length(packet, header)?)?;
        } else {
            packet.fix_port_checksum(checksum, old_port, port, covered == Some(Covered::PseudoOrNone))?;
        }
        packet.write(transport + port_at, port.to_ne_bytes())?;
    }
    Some(())
}

/// The bits of both ports that change, as they stand in the packet.
#[inline(always)]
fn port_change(end: End, bits: u16) -> [u8; 4] {
    let [high, low] = bits.to_ne_bytes();
    if end == End::Source { [high, low, 0, 0] } else { [0, 0, high, low] }
}

/// Bytes from the transport header to the end of the IP packet; a frame may be padded.
#[inline(always)]
fn length<P: Packet>(packet: &P, header: &Header) -> Option<u32> {
    let (at, start) = if header.v4 { (2, 0) } else { (4, IP6_LENGTH) };
    let total = u16::from_be_bytes(packet.read::<2>(u32::from(header.ip) + at)?);
    Some((u32::from(header.ip) + start + u32::from(total)).wrapping_sub(header.transport.into()))
}

/// Writes an address into an IP header, whose own checksum (IPv4) is kept right.
#[inline(always)]
fn write_address<P: Packet>(packet: &mut P, header: &Header, end: End, from: &Address, to: &Address) -> Option<()> {
    let ip = u32::from(header.ip);
    if header.v4 {
        packet.fix_ip_checksum(ip + IP_CHECKSUM, from.last(), to.last())?;
        let at = if end == End::Source { IP_SOURCE } else { IP_DESTINATION };
        packet.write(ip + at, to.last().to_ne_bytes())
    } else {
        let at = if end == End::Source { IP6_SOURCE } else { IP6_DESTINATION };
        packet.write(ip + at, bytes(to))
    }
}

/// Rewrites an ICMP error at one end: towards `address` its own destination and the source of the packet that it quotes, from
/// `address` the quoted destination, and its own source where that is the same; a router between keeps its name.
///
/// With IPv4 the quoted header's checksum makes up for its new address, so the ICMP checksum changes by the port alone; an
/// IPv6 header has none, and the ICMPv6 checksum covers both addresses that change. A quoted UDP checksum is left as it is:
/// nobody verifies it (RFC 5508, section 4.2 allows this for errors).
#[inline(never)]
pub(crate) fn rewrite_error<P: Packet>(
    packet: &mut P,
    error: &Header,
    quote: &Header,
    end: End,
    (address, port): &(Address, u16),
) -> Option<()> {
    let checksum = u32::from(error.transport) + ICMP_CHECKSUM;
    let (outer, inner, inner_end, old_port, port_at) = match end {
        End::Destination => (&error.destination, &quote.source, End::Source, quote.source_port, 0),
        End::Source => (&error.source, &quote.destination, End::Destination, quote.destination_port, 2),
    };
    if end == End::Destination || outer.same(inner) {
        if !error.v4 {
            packet.fix_address_checksum(checksum, outer, address, Covered::Pseudo)?;
        }
        write_address(packet, error, end, outer, address)?;
    }
    if !error.v4 {
        packet.fix_address_checksum(checksum, inner, address, Covered::Payload)?;
    }
    write_address(packet, quote, inner_end, inner, address)?;
    let port_at = if quote.is_echo() { ICMP_IDENTIFIER } else { port_at };
    packet.fix_port_checksum(checksum, old_port, *port, false)?;
    packet.write(u32::from(quote.transport) + port_at, port.to_ne_bytes())
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

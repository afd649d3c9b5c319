//! Answering a packet that nobody will: the packet becomes an ICMP "port unreachable" about itself, which makes a TCP
//! connect fail at once, as with upstream's proxy; or "fragmentation needed" and "packet too big", when it does not fit into
//! another one. An SCTP client would go on trying after such an error and is refused
//! by an ABORT, as a node without that port would do (RFC 9260, section 8.4).

use sluice_ebpf_common::{Reason, protocol};

use crate::header::{ETHERNET, is_v4};
use crate::{Maps, Packet, Verdict, sctp};

const IP4: u32 = 20;
const IP6: u32 = 40;
const ICMP: u32 = 8;
/// Bytes of a transport header that an error quotes: what there surely is. (RFC 792 wants eight; the kernel does not cut a
/// TCP packet off before a checksum that a network card was to fill in.)
const QUOTED_TCP: u32 = 20;
const QUOTED_UDP: u32 = 8;
const TTL: u8 = 64;

/// Turns a packet into the error about it: that nobody is there (`mtu` 0), or how long it may be. In the kernel the parts are
/// functions of their own, with their own part of the small stack.
#[inline(always)]
pub fn refuse<P: Packet, M: Maps>(packet: &mut P, maps: &M, mtu: u32) -> Verdict {
    let mtu = maps.hide(mtu);
    let answered = if is_v4(packet) { reject_v4(packet, mtu) } else { reject_v6(packet, mtu) };
    match answered {
        Some(()) => Verdict::Answer,
        None => {
            maps.count_reason(Reason::Rewrite);
            Verdict::Drop(Reason::Rewrite)
        }
    }
}

#[inline(always)]
fn reject_v4<P: Packet>(packet: &mut P, mtu: u32) -> Option<()> {
    let words = packet.read_words::<5>(ETHERNET)?;
    let [start, ..] = words[0].to_ne_bytes();
    let [_, number, ..] = words[2].to_ne_bytes();
    if mtu == 0 && number == protocol::SCTP && start & 0x0f == 5 {
        return abort_v4(packet, words[4], words[3]);
    }
    // Type 3, code 3 or code 4 (RFC 1191).
    error_v4(packet, if mtu == 0 { 0x0303 } else { 0x0304 }, mtu)
}

#[inline(never)]
fn abort_v4<P: Packet>(packet: &mut P, source: u32, destination: u32) -> Option<()> {
    sctp::abort(packet, ETHERNET + IP4)?;
    packet.truncate(ETHERNET + IP4 + sctp::ABORT)?;
    header_v4(packet, IP4 + sctp::ABORT, protocol::SCTP, source, destination)?;
    turn(packet)
}

/// Makes an error of this type and code; what follows is the length that is said to fit. As the other family's, a function of
/// its own in the kernel, where the stack is small.
#[inline(never)]
fn error_v4<P: Packet>(packet: &mut P, kind: u32, mtu: u32) -> Option<()> {
    let words = packet.read_words::<5>(ETHERNET)?;
    let [start, ..] = words[0].to_ne_bytes();
    let [_, number, ..] = words[2].to_ne_bytes();
    let (source, destination) = (words[3], words[4]);
    let ip = u32::from(start & 0x0f) * 4;
    let tcp = number == protocol::TCP;
    let quoted = if tcp { QUOTED_TCP } else { QUOTED_UDP };
    let quote = ip + quoted;
    let start = sum_transport(packet, ETHERNET + ip, tcp)?;
    packet.insert(IP4 + ICMP)?;
    packet.truncate(ETHERNET + IP4 + ICMP + quote)?;
    let length = IP4 + ICMP + quote;
    header_v4(packet, length, protocol::ICMP, destination, source)?;
    // The quoted IP header is valid, so it adds nothing to a checksum.
    packet.write(ETHERNET + IP4, word(kind << 16 | u32::from(fold(kind + mtu + start))))?;
    packet.write(ETHERNET + IP4 + 4, word(mtu))?;
    turn(packet)
}

/// Writes a whole IPv4 header.
#[inline(always)]
fn header_v4<P: Packet>(packet: &mut P, length: u32, number: u8, source: u32, destination: u32) -> Option<()> {
    let addresses = halves(source) + halves(destination);
    let checksum = fold(0x4500 + length + 0x4000 + (u32::from(TTL) << 8 | u32::from(number)) + addresses);
    packet.write(ETHERNET, word(0x4500_0000 | length))?;
    packet.write(ETHERNET + 4, word(0x4000))?;
    packet.write(ETHERNET + 8, word(u32::from(TTL) << 24 | u32::from(number) << 16 | u32::from(checksum)))?;
    packet.write(ETHERNET + 12, source.to_ne_bytes())?;
    packet.write(ETHERNET + 16, destination.to_ne_bytes())
}

/// Writes a whole IPv6 header: the answer to the packet that had these words.
#[inline(always)]
fn header_v6<P: Packet>(packet: &mut P, length: u32, number: u8, words: &[u32; 10]) -> Option<()> {
    packet.write(ETHERNET, word(0x6000_0000))?;
    packet.write(ETHERNET + 4, word(length << 16 | u32::from(number) << 8 | u32::from(TTL)))?;
    // Both addresses, the other way round.
    for at in 0..4 {
        packet.write(ETHERNET + 8 + 4 * at, words[at as usize + 6].to_ne_bytes())?;
        packet.write(ETHERNET + 24 + 4 * at, words[at as usize + 2].to_ne_bytes())?;
    }
    Some(())
}

#[inline(always)]
fn reject_v6<P: Packet>(packet: &mut P, mtu: u32) -> Option<()> {
    let [number] = packet.read::<1>(ETHERNET + 6)?;
    if mtu == 0 && number == protocol::SCTP {
        return abort_v6(packet);
    }
    // Not worth the trouble behind extension headers.
    if mtu == 0 && number != protocol::TCP && number != protocol::UDP {
        return None;
    }
    // Type 1, code 4; type 2, code 0 (RFC 8201).
    error_v6(packet, if mtu == 0 { 0x0104 } else { 0x0200 }, mtu)
}

#[inline(never)]
fn abort_v6<P: Packet>(packet: &mut P) -> Option<()> {
    let words = packet.read_words::<10>(ETHERNET)?;
    sctp::abort(packet, ETHERNET + IP6)?;
    packet.truncate(ETHERNET + IP6 + sctp::ABORT)?;
    header_v6(packet, sctp::ABORT, protocol::SCTP, &words)?;
    turn(packet)
}

#[inline(never)]
fn error_v6<P: Packet>(packet: &mut P, kind: u32, mtu: u32) -> Option<()> {
    let words = packet.read_words::<10>(ETHERNET)?;
    let [_, _, number, _] = words[1].to_ne_bytes();
    let tcp = number == protocol::TCP;
    // Of an extension header no less than of a datagram's.
    let quoted = if tcp { QUOTED_TCP } else { QUOTED_UDP };
    let start = halves(words[0]) + halves(words[1]) + sum_transport(packet, ETHERNET + IP6, tcp)?;
    packet.insert(IP6 + ICMP)?;
    packet.truncate(ETHERNET + IP6 + ICMP + IP6 + quoted)?;
    let length = ICMP + IP6 + quoted;
    header_v6(packet, length, protocol::ICMP6, &words)?;
    // Both addresses count twice: in the pseudo header and in the quote.
    let mut addresses = 0;
    for word in &words[2..] {
        addresses += halves(*word);
    }
    let pseudo = addresses + length + u32::from(protocol::ICMP6);
    let total = kind + mtu + pseudo + addresses + start;
    packet.write(ETHERNET + IP6, word(kind << 16 | u32::from(fold(total))))?;
    packet.write(ETHERNET + IP6 + 4, word(mtu))?;
    turn(packet)
}

/// Sends the frame back where it came from.
#[inline(always)]
fn turn<P: Packet>(packet: &mut P) -> Option<()> {
    let (to, from) = (packet.read::<6>(0)?, packet.read::<6>(6)?);
    packet.write(0, from)?;
    packet.write(6, to)
}

/// The sum of the quoted part of a transport header.
#[inline(always)]
fn sum_transport<P: Packet>(packet: &P, at: u32, tcp: bool) -> Option<u32> {
    let mut total = sum(packet, at)?;
    if tcp {
        total += sum(packet, at + 8)? + halves(u32::from_ne_bytes(packet.read::<4>(at + 16)?));
    }
    Some(total)
}

/// The sum of eight bytes, as checksums count them.
#[inline(always)]
fn sum<P: Packet>(packet: &P, at: u32) -> Option<u32> {
    let first = u32::from_ne_bytes(packet.read::<4>(at)?);
    let second = u32::from_ne_bytes(packet.read::<4>(at + 4)?);
    Some(halves(first) + halves(second))
}

/// The sum of a word's halves; the word is in network order.
#[inline(always)]
fn halves(word: u32) -> u32 {
    let word = u32::from_be(word);
    (word >> 16) + (word & 0xffff)
}

#[inline(always)]
fn word(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

#[inline(always)]
fn fold(mut total: u32) -> u16 {
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

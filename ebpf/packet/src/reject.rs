//! Answering a packet that nobody will: the packet becomes an ICMP "port unreachable" about itself, which makes a TCP
//! connect fail at once, as with upstream's proxy. An SCTP client would go on trying after such an error and is refused
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

/// Turns a packet into the error about it. In the kernel this is a function of its own, with its own part of the
/// small stack.
#[inline(always)]
pub fn refuse<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let answered = if is_v4(packet) { reject_v4(packet) } else { reject_v6(packet) };
    match answered {
        Some(()) => Verdict::Answer,
        None => {
            maps.count_reason(Reason::Rewrite);
            Verdict::Drop(Reason::Rewrite)
        }
    }
}

/// As the other family's, a function of its own in the kernel, where the stack is small.
#[inline(never)]
fn reject_v4<P: Packet>(packet: &mut P) -> Option<()> {
    let words = packet.read_words::<5>(ETHERNET)?;
    let [start, ..] = words[0].to_ne_bytes();
    let [_, number, ..] = words[2].to_ne_bytes();
    let (source, destination) = (words[3], words[4]);
    let ip = u32::from(start & 0x0f) * 4;
    if number == protocol::SCTP && ip == IP4 {
        sctp::abort(packet, ETHERNET + IP4)?;
        packet.truncate(ETHERNET + IP4 + sctp::ABORT)?;
        header_v4(packet, IP4 + sctp::ABORT, protocol::SCTP, destination, source)?;
        return turn(packet);
    }
    let tcp = number == protocol::TCP;
    let quoted = if tcp { QUOTED_TCP } else { QUOTED_UDP };
    let quote = ip + quoted;
    let start = sum_transport(packet, ETHERNET + ip, tcp)?;
    packet.insert(IP4 + ICMP)?;
    packet.truncate(ETHERNET + IP4 + ICMP + quote)?;
    let length = IP4 + ICMP + quote;
    header_v4(packet, length, protocol::ICMP, destination, source)?;
    // Type 3, code 3. The quoted IP header is valid, so it adds nothing to a checksum.
    packet.write(ETHERNET + IP4, word(0x0303_0000 | u32::from(fold(0x0303 + start))))?;
    packet.write(ETHERNET + IP4 + 4, word(0))?;
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

#[inline(never)]
fn reject_v6<P: Packet>(packet: &mut P) -> Option<()> {
    let words = packet.read_words::<10>(ETHERNET)?;
    let [_, _, number, _] = words[1].to_ne_bytes();
    if number == protocol::SCTP {
        sctp::abort(packet, ETHERNET + IP6)?;
        packet.truncate(ETHERNET + IP6 + sctp::ABORT)?;
        header_v6(packet, sctp::ABORT, protocol::SCTP, &words)?;
        return turn(packet);
    }
    let tcp = number == protocol::TCP;
    let quoted = if tcp { QUOTED_TCP } else { QUOTED_UDP };
    // Not worth the trouble behind extension headers.
    if !tcp && number != protocol::UDP {
        return None;
    }
    let start = halves(words[0]) + halves(words[1]) + sum_transport(packet, ETHERNET + IP6, tcp)?;
    packet.insert(IP6 + ICMP)?;
    packet.truncate(ETHERNET + IP6 + ICMP + IP6 + quoted)?;
    let length = ICMP + IP6 + quoted;
    header_v6(packet, length, protocol::ICMP6, &words)?;
    // Type 1, code 4. Both addresses count twice: in the pseudo header and in the quote.
    let mut addresses = 0;
    for word in &words[2..] {
        addresses += halves(*word);
    }
    let pseudo = addresses + length + u32::from(protocol::ICMP6);
    packet.write(ETHERNET + IP6, word(0x0104_0000 | u32::from(fold(0x0104 + pseudo + addresses + start))))?;
    packet.write(ETHERNET + IP6 + 4, word(0))?;
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

//! Answering a packet that nobody will: the packet becomes an ICMP "port unreachable" about itself, which makes a TCP
//! connect fail at once, as with upstream's proxy.

use sluice_ebpf_common::{Address, Reason, protocol};

use crate::header::{ETHERNET, parse};
use crate::{Maps, Packet, Verdict};

const IP4: u32 = 20;
const IP6: u32 = 40;
const ICMP: u32 = 8;
/// Bytes of a transport header that an error quotes: what there surely is. (RFC 792 wants eight; the kernel does not cut a
/// TCP packet off before a checksum that a network card was to fill in.)
const QUOTED_TCP: u32 = 20;
const QUOTED_UDP: u32 = 8;
const TTL: u8 = 64;

/// Turns a TCP or UDP packet into the error about it. In the kernel this is a function of its own, with its own part of the
/// small stack.
#[inline(never)]
pub fn refuse<P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    match reject(packet) {
        Some(()) => Verdict::Answer,
        None => {
            maps.count_reason(Reason::Rewrite);
            Verdict::Drop(Reason::Rewrite)
        }
    }
}

#[inline(always)]
fn reject<P: Packet>(packet: &mut P) -> Option<()> {
    let header = parse(packet)?;
    let tcp = header.protocol == protocol::TCP;
    let quoted = if tcp { QUOTED_TCP } else { QUOTED_UDP };
    if header.v4 {
        let quote = header.transport - header.ip + quoted;
        let start = sum_transport(packet, header.transport, tcp)?;
        packet.insert(IP4 + ICMP)?;
        packet.truncate(ETHERNET + IP4 + ICMP + quote)?;
        let length = IP4 + ICMP + quote;
        let addresses = halves(header.source.last()) + halves(header.destination.last());
        let checksum = fold(0x4500 + length + 0x4000 + (u32::from(TTL) << 8 | u32::from(protocol::ICMP)) + addresses);
        packet.write(ETHERNET, word(0x4500_0000 | length))?;
        packet.write(ETHERNET + 4, word(0x4000))?;
        packet
            .write(ETHERNET + 8, word(u32::from(TTL) << 24 | u32::from(protocol::ICMP) << 16 | u32::from(checksum)))?;
        packet.write(ETHERNET + 12, header.destination.last().to_ne_bytes())?;
        packet.write(ETHERNET + 16, header.source.last().to_ne_bytes())?;
        // Type 3, code 3. The quoted IP header is valid, so it adds nothing to a checksum.
        packet.write(ETHERNET + IP4, word(0x0303_0000 | u32::from(fold(0x0303 + start))))?;
        packet.write(ETHERNET + IP4 + 4, word(0))?;
    } else {
        // Not worth the trouble behind extension headers.
        if header.transport != header.ip + IP6 {
            return None;
        }
        let start = sum(packet, header.ip)? + sum_transport(packet, header.transport, tcp)?;
        packet.insert(IP6 + ICMP)?;
        packet.truncate(ETHERNET + IP6 + ICMP + IP6 + quoted)?;
        let length = ICMP + IP6 + quoted;
        packet.write(ETHERNET, word(0x6000_0000))?;
        packet.write(ETHERNET + 4, word(length << 16 | u32::from(protocol::ICMP6) << 8 | u32::from(TTL)))?;
        write_address(packet, ETHERNET + 8, &header.destination)?;
        write_address(packet, ETHERNET + 24, &header.source)?;
        // Type 1, code 4. Both addresses count twice: in the pseudo header and in the quote.
        let mut addresses = 0;
        for at in 0..4 {
            addresses += halves(header.source.words[at]) + halves(header.destination.words[at]);
        }
        let pseudo = addresses + length + u32::from(protocol::ICMP6);
        packet.write(ETHERNET + IP6, word(0x0104_0000 | u32::from(fold(0x0104 + pseudo + addresses + start))))?;
        packet.write(ETHERNET + IP6 + 4, word(0))?;
    }
    let (to, from) = (packet.read::<6>(0)?, packet.read::<6>(6)?);
    packet.write(0, from)?;
    packet.write(6, to)
}

#[inline(always)]
fn write_address<P: Packet>(packet: &mut P, at: u32, address: &Address) -> Option<()> {
    packet.write(at, address.words[0].to_ne_bytes())?;
    packet.write(at + 4, address.words[1].to_ne_bytes())?;
    packet.write(at + 8, address.words[2].to_ne_bytes())?;
    packet.write(at + 12, address.words[3].to_ne_bytes())
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

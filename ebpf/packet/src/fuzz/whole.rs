//! Packets that are what they say: lengths and checksums right, nothing before the transport header but the IP header.

use std::vec::Vec;

use sluice_ebpf_common::{Address, protocol};

use crate::tests::frame::{Frame, crc32c, sum};

/// Where a packet's source stands, and its length; the destination follows.
fn addresses(frame: &Frame) -> (usize, usize) {
    if frame.v4() { (26, 4) } else { (22, 16) }
}

fn number(bytes: &[u8]) -> Address {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    if bytes.len() == 4 { Address::v4(word(0)) } else { Address { words: [word(0), word(4), word(8), word(12)] } }
}

pub(super) fn source(frame: &Frame) -> Address {
    let (at, length) = addresses(frame);
    number(&frame.bytes[at..at + length])
}

pub(super) fn destination(frame: &Frame) -> Address {
    let (at, length) = addresses(frame);
    number(&frame.bytes[at + length..at + 2 * length])
}

/// Is it IP with a whole header?
pub(super) fn is_ip(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    match bytes.get(12..15) {
        Some([8, 0, start]) => start >> 4 == 4 && start & 15 >= 5 && bytes.len() >= frame.transport(),
        Some([0x86, 0xdd, start]) => start >> 4 == 6 && bytes.len() >= 54,
        _ => false,
    }
}

/// Where the checksum of the transport header stands, if it is one that we know and no fragment.
fn checksum(frame: &Frame) -> Option<usize> {
    if !is_ip(frame) || frame.v4() && (frame.bytes[20] & 0x3f != 0 || frame.bytes[21] != 0) {
        return None;
    }
    let at = frame.transport();
    let (offset, least) = match (frame.protocol(), frame.v4()) {
        (protocol::TCP, _) => (16, 20),
        (protocol::UDP, _) => (6, 8),
        (protocol::SCTP, _) => (8, 12),
        (protocol::ICMP, true) | (protocol::ICMP6, false) => (2, 8),
        _ => return None,
    };
    // SCTP's packets are padded to whole words.
    let padded = frame.protocol() != protocol::SCTP || (frame.bytes.len() - at).is_multiple_of(4);
    (padded && frame.bytes.len() >= at + least).then_some(at + offset)
}

/// Has it the length that it says, and a transport header that we know?
pub(super) fn is_whole(frame: &Frame) -> bool {
    let stated = |at: usize| usize::from(u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]]));
    checksum(frame).is_some()
        && frame.bytes.len() == if frame.v4() { 14 + stated(16) } else { 54 + stated(18) }
        && (frame.v4() || source(frame).words[..2] != [0, 0] && destination(frame).words[..2] != [0, 0])
}

/// Are its checksums right, as far as they can be known?
pub(super) fn is_right(frame: &Frame) -> bool {
    is_whole(frame) && frame.valid()
}

/// Makes lengths and checksums right; a datagram without a checksum stays one.
pub(super) fn seal(frame: &mut Frame) {
    if !is_ip(frame) {
        return;
    }
    let length = (frame.bytes.len() - 14) as u16;
    if frame.v4() {
        frame.bytes[16..18].copy_from_slice(&length.to_be_bytes());
    } else {
        frame.bytes[18..20].copy_from_slice(&(length - 40).to_be_bytes());
    }
    if let Some(at) = checksum(frame) {
        seal_transport(frame, at);
    }
    if frame.v4() {
        frame.fix_ip_header();
    }
}

fn seal_transport(frame: &mut Frame, at: usize) {
    let start = frame.transport();
    let (number, length) = (frame.protocol(), frame.bytes.len() - start);
    if number == protocol::UDP {
        frame.bytes[start + 4..start + 6].copy_from_slice(&(length as u16).to_be_bytes());
        if frame.v4() && frame.bytes[at..at + 2] == [0, 0] {
            return;
        }
    }
    if number == protocol::SCTP {
        frame.bytes[at..at + 4].fill(0);
        let checksum = crc32c(&frame.bytes[start..]);
        frame.bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
        return;
    }
    frame.bytes[at..at + 2].fill(0);
    let (from, size) = addresses(frame);
    let mut covered: Vec<u8> = Vec::new();
    if number != protocol::ICMP {
        covered.extend(&frame.bytes[from..from + 2 * size]);
        covered.extend([0, number]);
        covered.extend((length as u16).to_be_bytes());
    }
    covered.extend(&frame.bytes[start..]);
    let checksum = match sum(&covered, 0) {
        0 if number == protocol::UDP => 0xffff,
        checksum => checksum,
    };
    frame.bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// An answer to a whole packet, where one can be made up.
pub(super) fn answer(frame: &Frame) -> Option<Frame> {
    let mut answer = frame.clone();
    answer.mark = 0;
    let (from, size) = addresses(frame);
    let (first, second) = answer.bytes[from..from + 2 * size].split_at_mut(size);
    first.swap_with_slice(second);
    let at = frame.transport();
    match (frame.protocol(), frame.bytes[at]) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => {
            answer.bytes.swap(at, at + 2);
            answer.bytes.swap(at + 1, at + 3);
            if frame.protocol() == protocol::TCP {
                answer.bytes[at + 13] = 0x12;
            }
        }
        (protocol::ICMP, 8) => answer.bytes[at] = 0,
        (protocol::ICMP6, 128) => answer.bytes[at] = 129,
        _ => return None,
    }
    // As far away as any other.
    answer.bytes[if frame.v4() { 22 } else { 21 }] = 64;
    seal(&mut answer);
    Some(answer)
}

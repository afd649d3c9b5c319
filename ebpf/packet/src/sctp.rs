//! SCTP: its checksum, and what its packets do to an association.
//!
//! The checksum is a CRC32c over the whole packet. A CRC is linear: when the ports change by some bits, the checksum changes
//! by the remainder of those bits followed by as many zeros as there are bytes behind the ports, whatever these are. So no
//! payload is read: the remainder of the changed word is carried over the rest of the packet in four steps, one for
//! each hexadecimal digit of its length in words, by tables made at compile time.

use crate::Packet;

/// Offset of the checksum in the header.
pub(crate) const CHECKSUM: u32 = 8;
/// Bytes of a packet that says ABORT.
pub(crate) const ABORT: u32 = 16;
/// Bytes of the ports, which come first.
const PORTS: u32 = 4;
/// Where an INIT says which tag its sender wants to see.
const TAG: u32 = 16;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Castagnoli's polynomial, lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Hexadecimal digits of a packet's length in words.
const DIGITS: usize = 4;

/// What a digit does to a remainder, by the remainder's own eight hexadecimal digits.
type Step = [[u32; 16]; 8];
/// For each digit of a length and each of its values.
static STEPS: [[Step; 16]; DIGITS] = steps();

/// What the first kinds of chunks do to an association, in TCP's terms (RFC 9260, section 3.2).
static FLAGS: [u8; 16] =
    [ACK, SYN, SYN | ACK, ACK, ACK, ACK, RST, FIN | ACK, FIN | ACK, ACK, ACK, ACK, ACK, ACK, FIN | ACK, ACK];

/// What a packet does that starts with a chunk of this kind.
#[inline(always)]
pub(crate) fn flags(chunk: u8) -> u8 {
    // A look-up, as the kernel's verifier walks every branch of a program.
    FLAGS[usize::from(chunk) & 15] & u8::from(chunk < 16).wrapping_neg()
}

/// Brings the checksum in line with ports that change by these bits (as they stand in the packet) in a packet of so many
/// bytes. A checksum of 0 is one that the kernel or a network card has yet to compute, and stays.
#[inline(always)]
pub(crate) fn fix_checksum<P: Packet>(packet: &mut P, at: u32, changed: u32, length: u32) -> Option<()> {
    let old = u32::from_le_bytes(packet.read::<4>(at)?);
    if old == 0 {
        return Some(());
    }
    // Packets are padded to whole words; any other one is damaged, and stays so.
    let difference = carry(u32::from_le(changed), length.wrapping_sub(PORTS) / 4 + 1);
    packet.write(at, (old ^ difference).to_le_bytes())
}

/// Turns the packet with this transport header into the ABORT about it, which is [`ABORT`] bytes long (RFC 9260,
/// section 8.4); `None` for what must not be answered.
#[inline(never)]
pub(crate) fn abort<P: Packet>(packet: &mut P, at: u32) -> Option<()> {
    let [ports, tag, checksum, chunk] = packet.read_words::<4>(at)?;
    let [chunk, ..] = chunk.to_ne_bytes();
    let (tag, reflected) = match flags(chunk) {
        SYN => (u32::from_ne_bytes(packet.read::<4>(at + TAG)?), 0),
        RST => return None,
        _ => (tag, 1),
    };
    let mut words = [ports.rotate_left(16), tag, 0, u32::from_ne_bytes([6, reflected, 0, 4])];
    if checksum != 0 {
        let mut remainder = u32::MAX;
        for word in words {
            remainder = step(remainder ^ u32::from_le(word), 0, 1);
        }
        words[2] = (!remainder).to_le();
    }
    for (word, at) in words.into_iter().zip((at..).step_by(4)) {
        packet.write(at, word.to_ne_bytes())?;
    }
    Some(())
}

/// The remainder of a word followed by zeros, of which there are so many words, the first one included.
#[inline(always)]
fn carry(mut remainder: u32, words: u32) -> u32 {
    for digit in 0..DIGITS {
        remainder = step(remainder, digit, (words >> (4 * digit)) as usize);
    }
    remainder
}

#[inline(always)]
fn step(remainder: u32, digit: usize, value: usize) -> u32 {
    let tables = &STEPS[digit & 3][value & 15];
    let mut result = 0;
    for nibble in 0..8 {
        result ^= tables[nibble][(remainder >> (4 * nibble)) as usize & 15];
    }
    result
}

const fn steps() -> [[Step; 16]; DIGITS] {
    let mut steps = [[[[0; 16]; 8]; 16]; DIGITS];
    // What the value 1 of the digit does to each bit of a remainder.
    let mut bits = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        bits[bit] = word(1 << bit);
        bit += 1;
    }
    let mut digit = 0;
    while digit < DIGITS {
        // What the value so far does.
        let mut done = [0; 32];
        let mut bit = 0;
        while bit < 32 {
            done[bit] = 1 << bit;
            bit += 1;
        }
        let mut value = 0;
        while value < 16 {
            steps[digit][value] = tables(&done);
            done = after(&done, &bits);
            value += 1;
        }
        bits = done;
        digit += 1;
    }
    steps
}

/// One after the other.
const fn after(first: &[u32; 32], second: &[u32; 32]) -> [u32; 32] {
    let mut both = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        let mut rest = first[bit];
        while rest != 0 {
            both[bit] ^= second[rest.trailing_zeros() as usize];
            rest &= rest - 1;
        }
        bit += 1;
    }
    both
}

const fn tables(bits: &[u32; 32]) -> Step {
    let mut tables = [[0; 16]; 8];
    let mut nibble = 0;
    while nibble < 8 {
        let mut value = 0;
        while value < 16 {
            let mut bit = 0;
            while bit < 4 {
                if value >> bit & 1 != 0 {
                    tables[nibble][value] ^= bits[4 * nibble + bit];
                }
                bit += 1;
            }
            value += 1;
        }
        nibble += 1;
    }
    tables
}

/// The remainder after one word of zeros.
const fn word(mut remainder: u32) -> u32 {
    let mut bit = 0;
    while bit < 32 {
        remainder = (remainder >> 1) ^ if remainder & 1 != 0 { POLYNOMIAL } else { 0 };
        bit += 1;
    }
    remainder
}

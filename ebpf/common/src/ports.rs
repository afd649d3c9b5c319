//! Which ports of the node are taken by masqueraded connections: rows of bits, one row for each remote end (several remote
//! ends that fall on one row share it), so that a port serves as many connections as there are remote ends.

use crate::Address;

/// Rows; a power of two.
pub const ROWS: u32 = 1_024;
/// Words of a row: one whose bits say which groups are full, two for each group, and rest.
pub const ROW: u32 = 80;
/// Ports of a group.
pub const GROUP: u32 = 128;
/// Groups of a row at most.
pub const GROUPS: u32 = 39;

/// The first word of the row for a remote end.
#[inline(always)]
pub const fn row(address: &Address, port: u16, protocol: u8) -> u32 {
    let [a, b, c, d] = address.words;
    let mut hash = (a ^ b.rotate_left(9) ^ c.rotate_left(18) ^ d).wrapping_mul(0x9e37_79b1);
    // Neighbours differ in the uppermost bits alone, which a product does not move down.
    hash = (hash ^ hash >> 15 ^ port as u32 ^ (protocol as u32) << 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    (hash >> 16 & (ROWS - 1)) * ROW
}

/// The word of a row that holds a port's bit, and which bit; `number` counts from the first masquerade port.
#[inline(always)]
pub const fn place(row: u32, number: u32) -> (u32, u32) {
    (row + 1 + number / 64, number % 64)
}

/// The bit of a row's first word that says that a port's group is full.
#[inline(always)]
pub const fn group(number: u32) -> u32 {
    number / GROUP
}

const _: () = assert!(ROWS.is_power_of_two() && GROUPS * 2 < ROW && GROUPS < 64);

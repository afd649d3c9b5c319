//! Connections that clients only opened, through this node to a backend elsewhere. They stand in places of their own until they
//! are answered: a place costs a fraction of two entries of the flow table, and a flood of clients that are not there leaves
//! that table to those that are.

use crate::FlowKey;

/// Places; a power of two.
pub const PLACES: u32 = 65_536;
/// A connection may stand in any of so many places side by side; a power of two. Of one connection for every two places a
/// twentieth finds none of them free.
pub const NEAR: u32 = 8;
/// Words of the bits that say which places somebody has: so few that they stay in a processor's own cache.
pub const WORDS: u32 = PLACES / 64;

/// What stands at a place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// One of the `Opened::*` numbers; 0 while it is made.
    pub state: u32,
    /// Seconds of the coarse monotonic clock at the last packet that opened it.
    pub seen: u32,
    /// Bytes of the first one.
    pub bytes: u32,
    /// Service id.
    pub service: u32,
    /// The key that its answers will have.
    pub reply: FlowKey,
    /// The key that the client's packets will have.
    pub client: FlowKey,
    /// Backend id.
    pub backend: u32,
    /// Zero: two cache lines.
    pub reserved: [u32; 7],
}

impl Opened {
    /// It waits for an answer.
    pub const WAITS: u32 = 1;
    /// It waited for too long: user space is about to free the place.
    pub const ENDED: u32 = 2;

    /// Does it wait for an answer?
    #[inline(always)]
    pub const fn waits(&self) -> bool {
        self.state == Opened::WAITS
    }
}

/// The word that holds a place's bit, and which bit.
#[inline(always)]
pub const fn bit(place: u32) -> (u32, u32) {
    ((place / 64) & (WORDS - 1), place % 64)
}

/// The first of a connection's places, by its answers' [`trace`](crate::known::trace).
#[inline(always)]
pub const fn place(trace: u64) -> u32 {
    (trace >> 40) as u32 & (PLACES - 1)
}

/// The next place of a connection whose first one this is.
#[inline(always)]
pub const fn next(first: u32, step: u32) -> u32 {
    first & !(NEAR - 1) | first.wrapping_add(step) & (NEAR - 1)
}

/// The first free one of them, by the word that holds their bits.
#[inline(always)]
pub const fn free(first: u32, taken: u64) -> Option<u32> {
    let near = !(taken >> (first & 63 & !(NEAR - 1))) as u8;
    let from_first = near.rotate_right(first & (NEAR - 1));
    if from_first == 0 { None } else { Some(next(first, from_first.trailing_zeros())) }
}

const _: () = assert!(NEAR == u8::BITS);
const _: () = assert!(PLACES.is_power_of_two() && size_of::<Opened>() == 128 && align_of::<Opened>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_place_is_found_from_any_of_them() {
        for first in [0, 5, 7, 63, 64, PLACES - 1] {
            let places: [u32; NEAR as usize] = core::array::from_fn(|step| next(first, step as u32));
            let mut taken = 0;
            for place in places {
                assert_eq!((free(first, taken), bit(place).0), (Some(place), bit(first).0));
                taken |= 1 << bit(place).1;
            }
            assert_eq!((taken.count_ones(), free(first, taken)), (NEAR, None));
            let last = places[places.len() - 1];
            assert_eq!(free(first, !(1 << bit(last).1)), Some(last));
        }
    }
}

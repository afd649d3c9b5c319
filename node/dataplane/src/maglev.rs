//! Maglev tables (NSDI 2016): for each of a prime number of slots the backend that its connections go to, computed by every
//! node alike from the backends alone, so that few connections move when one of them comes or goes. Pure.
//!
//! Each backend has a permutation of the slots; in turn, and as often as its weight says, each takes the first free slot of
//! its own.

use sluice_ebpf_common::Backend;

/// Slots by number of backends: primes, at least [`SLOTS_EACH`] for a backend. The last step is a large one: a tenth more
/// slots would move 1.7 % of the others' connections when one of 100 backends goes, 65,537 move 0.6 %.
const SIZES: [u32; 7] = [251, 509, 1_021, 2_039, 4_093, 8_191, 65_537];
const SLOTS_EACH: u32 = 100;

/// The number of slots for so many backends; none for one that everything goes to anyway.
pub(crate) fn slots(backends: usize) -> u32 {
    let wanted = (backends as u32).saturating_mul(SLOTS_EACH);
    let [.., most] = SIZES;
    if backends < 2 { 0 } else { SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(most) }
}

/// For each slot the place of its backend in `backends`. Weights are theirs in the same order, none for equal ones, and not
/// all 0.
fn table(backends: &[Backend], weights: &[u16]) -> Vec<u16> {
    let size = slots(backends.len());
    let weight = |at: usize| u64::from(weights.get(at).copied().unwrap_or(1));
    let most = (0..backends.len()).map(weight).max().unwrap_or(0);
    let mut turns: Vec<Turn> = backends.iter().map(|backend| Turn::new(backend, size)).collect();
    let mut table = vec![None; size as usize];
    let mut left = if most == 0 { 0 } else { size };
    let mut round = 0;
    while left > 0 {
        round += 1;
        for (at, turn) in turns.iter_mut().enumerate() {
            // The heaviest takes a slot in every round.
            if round * weight(at) < turn.due || weight(at) == 0 || left == 0 {
                continue;
            }
            turn.due += most;
            while table[turn.slot as usize].is_some() {
                turn.next(size);
            }
            table[turn.slot as usize] = Some(at as u16);
            left -= 1;
        }
    }
    table.into_iter().flatten().collect()
}

/// The table of backends with these ids, in which a place is that of the ordered ids, packed as programs read it.
pub(crate) fn packed(backends: &[Backend], ids: &[u32], weights: &[u16]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_unstable_by_key(|at| ids[*at]);
    let mut places = vec![0; ids.len()];
    for (place, at) in order.into_iter().enumerate() {
        places[at] = place as u16;
    }
    let table: Vec<u16> = table(backends, weights).into_iter().map(|at| places[usize::from(at)]).collect();
    pack(&table)
}

/// Two places in a word, the lower half first, as programs read them.
fn pack(places: &[u16]) -> Vec<u32> {
    let half = |pair: &[u16], at: usize| u32::from(pair.get(at).copied().unwrap_or(0));
    places.chunks(2).map(|pair| half(pair, 0) | half(pair, 1) << 16).collect()
}

/// Words of a packed table.
pub(crate) fn words(slots: u32) -> u32 {
    slots.div_ceil(2)
}

/// A backend on its way through its permutation.
struct Turn {
    slot: u32,
    skip: u32,
    due: u64,
}

impl Turn {
    fn new(backend: &Backend, size: u32) -> Turn {
        let size = u64::from(size.max(2));
        let (first, second) = (hash(backend, 1), hash(backend, 2));
        Turn { slot: (first % size) as u32, skip: (second % (size - 1)) as u32 + 1, due: 0 }
    }

    fn next(&mut self, size: u32) {
        self.slot = (self.slot + self.skip) % size;
    }
}

/// The same on every node and in every version: of the address and port alone (FNV-1a, then the finish of MurmurHash3).
fn hash(backend: &Backend, seed: u64) -> u64 {
    let address = backend.address.words.iter().flat_map(|word| word.to_ne_bytes());
    let bytes = address.chain(backend.port.to_ne_bytes());
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut state = bytes.fold(start, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    state = (state ^ state >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ state >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ state >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_ebpf_common::Address;

    use super::*;

    fn backends(hosts: impl IntoIterator<Item = u32>) -> Vec<Backend> {
        let backend = |host: u32| Backend { address: Address::v4(host.to_be()), port: 80_u16.to_be(), flags: 0 };
        hosts.into_iter().map(|host| backend(0x0af4_0000 + host)).collect()
    }

    /// The backend of each slot.
    fn chosen(all: &[Backend]) -> Vec<Backend> {
        table(all, &[]).into_iter().map(|at| all[usize::from(at)]).collect()
    }

    #[test]
    fn sizes() {
        let cases = [(0, 0), (1, 0), (2, 251), (3, 509), (81, 8_191), (82, 65_537), (100, 65_537), (9_000, 65_537)];
        for (count, expected) in cases {
            assert_eq!(slots(count), expected, "{count}");
        }
        for size in SIZES {
            assert!((2..size).take_while(|by| by * by <= size).all(|by| size % by != 0), "{size} is a prime");
        }
    }

    #[test]
    fn weights_are_kept() {
        for weights in [&[1, 1, 2][..], &[3, 1, 0], &[100, 1, 1], &[5, 5, 5]] {
            let table = table(&backends(0..3), weights);
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (at, weight) in weights.iter().enumerate() {
                let share = table.iter().filter(|place| usize::from(**place) == at).count() as f64 / table.len() as f64;
                let expected = f64::from(*weight) / total;
                assert!((share - expected).abs() < 0.01, "{weights:?}: {share} for {expected}");
            }
        }
    }

    #[test]
    fn places_are_packed_by_twos() {
        assert_eq!(pack(&[1, 2, 3]), [0x0002_0001, 3]);
        assert_eq!(words(3), 2);
    }

    #[test]
    fn what_a_change_costs() {
        for count in [2, 10, 100, 1_000] {
            let all = backends(0..count);
            let start = std::time::Instant::now();
            let table = table(&all, &[]);
            println!("{count} backends: {} slots, {} bytes, {:?}", table.len(), table.len() * 2, start.elapsed());
            assert_eq!(table.len() as u32, slots(all.len()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        /// Of the connections of the 99 that stay, at most 1 in 100 moves when one goes, and none is lost by the order in
        /// which backends are named.
        #[test]
        fn few_move_when_one_goes(first in 0_u32..60_000, gone in 0_usize..100) {
            let all = backends(first..first + 100);
            let mut fewer = all.clone();
            let gone = fewer.remove(gone);
            let (before, after) = (chosen(&all), chosen(&fewer));
            let moved = before.iter().zip(&after).filter(|(before, after)| **before != gone && before != after).count();
            prop_assert!(moved * 100 <= before.len(), "{moved} of {}", before.len());
            let even = before.len() / 100;
            for backend in &all {
                let share = before.iter().filter(|chosen| *chosen == backend).count();
                prop_assert!(share.abs_diff(even) <= 1, "{share} of {even}");
            }
        }
    }
}

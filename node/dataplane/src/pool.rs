//! Numbers to give out: ids and runs of slab words. What is given back rests before it is used again, as a program may
//! still be reading it. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Ids from 1 up to a limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    /// Ids from here on were never given out.
    next: u32,
    free: BTreeSet<u32>,
    resting: VecDeque<(Duration, u32)>,
}

impl Ids {
    /// With these taken.
    pub(crate) fn new(taken: impl Iterator<Item = u32>) -> Ids {
        let taken: BTreeSet<u32> = taken.collect();
        let next = taken.last().map_or(1, |last| last + 1);
        Ids { next, free: (1..next).filter(|id| !taken.contains(id)).collect(), resting: VecDeque::new() }
    }

    /// The lowest free id below the limit.
    pub(crate) fn take(&mut self, limit: u32) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        (self.next < limit).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// An id that nobody has seen needs no rest.
    pub(crate) fn untake(&mut self, id: u32) {
        self.free.insert(id);
    }

    pub(crate) fn give_back(&mut self, id: u32, until: Duration) {
        self.resting.push_back((until, id));
    }

    /// Lets rested ids go; true if there are any.
    pub(crate) fn wake(&mut self, now: Duration) -> bool {
        let before = self.free.len();
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.free.extend(self.resting.pop_front().map(|(_, id)| id));
        }
        self.free.len() > before
    }

    pub(crate) fn rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// How many rest.
    pub(crate) fn resting(&self) -> u32 {
        self.resting.len() as u32
    }
}

/// Runs of words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    /// Free runs: first word, length. Neighbours are always joined.
    free: BTreeMap<u32, u32>,
    /// The same as length, first word.
    by_length: BTreeSet<(u32, u32)>,
    resting: VecDeque<(Duration, u32, u32)>,
    /// Words that are not free.
    taken: u32,
}

impl Runs {
    /// Of so many words, with these runs (in order) taken.
    pub(crate) fn new(size: u32, taken: impl Iterator<Item = (u32, u32)>) -> Runs {
        let mut runs = Runs { taken: size, ..Runs::default() };
        let mut at = 0;
        for (base, length) in taken {
            if base > at {
                runs.join(at, base - at);
            }
            at = at.max(base.saturating_add(length));
        }
        if size > at {
            runs.join(at, size - at);
        }
        runs
    }

    /// The shortest free run that is long enough, and of those the first.
    pub(crate) fn take(&mut self, length: u32) -> Option<u32> {
        let (free, base) = *self.by_length.range((length, 0)..).next()?;
        self.remove(base, free);
        if free > length {
            self.insert(base + length, free - length);
        }
        self.taken += length;
        Some(base)
    }

    pub(crate) fn give_back(&mut self, base: u32, length: u32, until: Duration) {
        self.resting.push_back((until, base, length));
    }

    /// Lets rested runs go; true if there are any.
    pub(crate) fn wake(&mut self, now: Duration) -> bool {
        let mut any = false;
        while self.resting.front().is_some_and(|(until, ..)| *until <= now) {
            if let Some((_, base, length)) = self.resting.pop_front() {
                self.join(base, length);
                any = true;
            }
        }
        any
    }

    /// These words are free now.
    fn join(&mut self, mut base: u32, mut length: u32) {
        self.taken -= length;
        if let Some((before, free)) = self.free.range(..base).next_back().map(|(before, free)| (*before, *free))
            && before + free == base
        {
            self.remove(before, free);
            (base, length) = (before, free + length);
        }
        if let Some(free) = self.free.get(&(base + length)).copied() {
            self.remove(base + length, free);
            length += free;
        }
        self.insert(base, length);
    }

    fn insert(&mut self, base: u32, length: u32) {
        self.free.insert(base, length);
        self.by_length.insert((length, base));
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.free.remove(&base);
        self.by_length.remove(&(length, base));
    }

    pub(crate) fn rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Words that are in use or rest.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// There are more words at the end now.
    pub(crate) fn grow(&mut self, size: u32, new: u32) {
        if new > size {
            self.taken += new - size;
            self.join(size, new - size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const LATER: Duration = Duration::from_secs(1);

    #[test]
    fn ids_rest_and_come_back() {
        let mut ids = Ids::new([1, 4].into_iter());
        assert_eq!([ids.take(6), ids.take(6), ids.take(6), ids.take(6)], [Some(2), Some(3), Some(5), None]);
        ids.give_back(3, LATER);
        ids.wake(NOW);
        assert_eq!(ids.take(6), None);
        assert!(ids.rests());
        ids.wake(LATER);
        assert_eq!(ids.take(6), Some(3));
        assert!(!ids.rests());
    }

    #[test]
    fn runs_rest_join_and_come_back() {
        let mut runs = Runs::new(10, [(2, 2)].into_iter());
        assert_eq!([runs.take(3), runs.take(2), runs.take(3), runs.take(1)], [Some(4), Some(0), Some(7), None]);
        for (base, length) in [(4, 3), (0, 2), (2, 2)] {
            runs.give_back(base, length, LATER);
        }
        assert!(!runs.wake(NOW));
        assert_eq!((runs.take(1), runs.taken()), (None, 10));
        assert!(runs.wake(LATER));
        runs.grow(10, 14);
        assert_eq!(runs.taken(), 3);
        assert_eq!(runs.take(7), Some(0), "three neighbours are one run again");
        assert_eq!(runs.take(4), Some(10), "what is new at the end");
    }

    #[test]
    fn the_shortest_run_is_taken() {
        let mut runs = Runs::new(20, [(8, 1), (12, 1)].into_iter());
        assert_eq!([runs.take(3), runs.take(7), runs.take(7), runs.take(9)], [Some(9), Some(13), Some(0), None]);
        assert_eq!(runs.taken(), 19);
    }
}

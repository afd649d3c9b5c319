//! Counters of service ports and backends: one set per id and processor, added to by the programs. They are mapped into memory
//! only while somebody looks, as the kernel takes the whole mapping for this process's memory: 134 MB for the most backends on
//! two processors, and more on more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sluice_ebpf_common::Counters;

use crate::store::{descriptor, processors};
use crate::words::Words;
use crate::{Error, sys};

/// Words of one set.
const WORDS: usize = size_of::<Counters>() / 4;

/// Sets that are cleared one by one; for more of them the whole map is looked at.
const FEW: usize = 4_096;

/// One map of counters.
pub(crate) struct CounterMap {
    map: OwnedFd,
    ids: usize,
    processors: usize,
}

/// All counters as they are now.
pub(crate) struct Counts {
    words: Words,
    processors: usize,
}

impl CounterMap {
    /// The pinned map, which has counters for so many ids.
    pub(crate) fn open(path: &Path, ids: u32) -> Result<CounterMap, Error> {
        Ok(CounterMap { map: descriptor(path)?, ids: ids as usize, processors: processors()? })
    }

    /// Looks at all of them.
    pub(crate) fn counts(&self) -> Result<Counts, Error> {
        self.look(false).map_err(|error| Error::system("map the counters into memory", error))
    }

    fn look(&self, writable: bool) -> io::Result<Counts> {
        let words = Words::map(self.map.as_fd(), self.ids * self.processors * WORDS, writable)?;
        Ok(Counts { words, processors: self.processors })
    }

    /// Sets the counters of ids to zero.
    pub(crate) fn clear(&self, ids: &[u32]) -> io::Result<()> {
        let sets = |id: &u32| {
            let first = *id as usize * self.processors;
            first..first + self.processors
        };
        if ids.len() * self.processors <= FEW {
            let keys: Vec<u32> = ids.iter().flat_map(|id| sets(id).map(|set| set as u32)).collect();
            return sys::update_batch(self.map.as_fd(), &keys, &vec![Counters::default(); keys.len()]);
        }
        let counts = self.look(true)?;
        for set in ids.iter().flat_map(sets) {
            (set * WORDS..(set + 1) * WORDS).for_each(|word| counts.words.set(word, 0));
        }
        Ok(())
    }

    /// Adds what was counted in the map that this one replaces.
    pub(crate) fn add(&self, old: &CounterMap) -> Result<(), Error> {
        let failed = |error| Error::system("map the counters into memory", error);
        let (from, to) = (old.counts()?, self.look(true).map_err(failed)?);
        for at in (0..from.words.len()).step_by(2) {
            if let Some(count @ 1..) = from.words.get_long(at) {
                to.words.add_long(at, count);
            }
        }
        Ok(())
    }
}

impl Counts {
    /// An id's counters over all processors.
    pub(crate) fn of(&self, id: u32) -> Counters {
        let mut totals = [0_u64; WORDS / 2];
        for processor in 0..self.processors {
            let first = (id as usize * self.processors + processor) * WORDS;
            for (at, total) in totals.iter_mut().enumerate() {
                *total += self.words.get_long(first + at * 2).unwrap_or(0);
            }
        }
        let [connections, packets, bytes, refused] = totals;
        Counters { connections, packets, bytes, refused }
    }
}

//! How much was told, and how much not: as the programs count it beside the buckets.

use aya::maps::{MapData, PerCpuArray};
use sluice_ebpf_common::maps;
use sluice_ebpf_common::stream::{Telling, bucket};
use sluice_metrics::Text;

use crate::Error;
use crate::metrics::catalog;
use crate::pins::Pins;
use crate::store::typed;

/// Sums over all processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Events that came to be in the ring.
    pub(crate) told: u64,
    /// Events that found no token.
    pub(crate) limited: u64,
    /// Events that found no room in the ring.
    pub(crate) full: u64,
}

impl Count {
    fn plus(self, other: &Telling) -> Count {
        Count {
            told: self.told + other.tried.saturating_sub(other.full),
            limited: self.limited + other.limited,
            full: self.full + other.full,
        }
    }

    fn and(self, other: Count) -> Count {
        Count { told: self.told + other.told, limited: self.limited + other.limited, full: self.full + other.full }
    }
}

/// Of connections in the flow table, sockets, policies, losses.
pub(crate) type Counts = [(&'static str, Count); 4];

/// As the maps count; nothing where the daemon that runs is of a build without them.
pub(crate) fn read(pins: &Pins) -> Result<Counts, Error> {
    let mut counts: Counts = ["connections", "sockets", "policies", "drops"].map(|of| (of, Count::default()));
    if !pins.map(maps::TELLING).exists() && pins.map(maps::SETTINGS).exists() {
        return Ok(counts);
    }
    let map: PerCpuArray<MapData, Telling> = typed(pins, maps::TELLING)?;
    for place in 0..bucket::COUNT {
        let values = map.get(&place, 0).map_err(|error| Error::ebpf("read what was told of connections", error))?;
        let sum = values.iter().fold(Count::default(), |sum, one| sum.plus(one));
        let of = &mut counts[place.min(bucket::REASONS) as usize].1;
        *of = of.and(sum);
    }
    Ok(counts)
}

/// What was lost for want of tokens, and of room, in all.
pub(crate) fn lost(counts: &Counts) -> [u64; 2] {
    counts.iter().fold([0; 2], |[limited, full], (_, count)| [limited + count.limited, full + count.full])
}

/// Writes the metrics; `late` is what followers were too slow for.
pub(crate) fn write(text: &mut Text, pins: &Pins, followers: usize, late: u64) -> Result<(), Error> {
    let counts = read(pins)?;
    let mut series = text.metric(&catalog::TOLD);
    counts.iter().for_each(|(of, count)| series.add(&[of], count.told));
    let mut series = text.metric(&catalog::UNTOLD);
    for (of, count) in &counts {
        series.add(&[of, "rate"], count.limited);
        series.add(&[of, "ring"], count.full);
    }
    series.add(&["all", "reader"], late);
    text.single(&catalog::FOLLOWERS, followers);
    Ok(())
}

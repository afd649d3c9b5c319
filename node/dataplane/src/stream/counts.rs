//! How much was told, and how much not: as the programs count it beside the buckets.

use aya::maps::{MapData, PerCpuArray};
use sluice_ebpf_common::stream::{Telling, bucket};
use sluice_ebpf_common::{limits, maps};
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

/// Of connections in the flow table, sockets, policies, losses, the kernel's losses.
pub(crate) type Counts = [(&'static str, Count); 5];

/// As the maps count; nothing where the daemon that runs is of a build without them.
pub(crate) fn read(pins: &Pins) -> Result<Counts, Error> {
    let mut counts: Counts = ["connections", "sockets", "policies", "drops", "kernel"].map(|of| (of, Count::default()));
    for (place, sum) in sums(pins, maps::TELLING, bucket::COUNT)? {
        let of = &mut counts[place.min(bucket::REASONS) as usize].1;
        *of = of.and(sum);
    }
    for (_, sum) in sums(pins, maps::TELLING_LOST, limits::KERNEL_REASONS)? {
        counts[4].1 = counts[4].1.and(sum);
    }
    Ok(counts)
}

/// By place, over all processors.
fn sums(pins: &Pins, name: &str, places: u32) -> Result<Vec<(u32, Count)>, Error> {
    if !pins.map(name).exists() && pins.map(maps::SETTINGS).exists() {
        return Ok(Vec::new());
    }
    let map: PerCpuArray<MapData, Telling> = typed(pins, name)?;
    let sum = |place| {
        let values = map.get(&place, 0).map_err(|error| Error::ebpf("read what was told of connections", error))?;
        Ok((place, values.iter().fold(Count::default(), |sum, one| sum.plus(one))))
    };
    (0..places).map(sum).collect()
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

//! The embedded eBPF object: loaded onto the pinned maps, or onto fresh ones that are then pinned.

use aya::maps::{Map, MapData};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use sluice_ebpf_common::{limits, maps};

use crate::Error;
use crate::pins::Pins;

static OBJECT: &[u8] = include_bytes_aligned!(env!("SLUICE_EBPF_OBJECT_PATH"));

/// Creates or takes over the maps and prepares the programs; nothing is attached yet.
pub(crate) fn load(pins: &Pins, processors: u32) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(maps::SERVICE_COUNTERS, limits::SERVICES * processors);
    loader.map_max_entries(maps::BACKEND_COUNTERS, limits::BACKENDS * processors);
    let buckets = buckets(processors);
    loader.map_max_entries(maps::CACHE4, buckets * processors);
    loader.map_max_entries(maps::CACHE6, buckets / 2 * processors);
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(OBJECT).map_err(|error| Error::ebpf("load the eBPF object", error))
}

/// Buckets of the flow cache for each processor: a power of two. IPv6 has half of them.
pub(crate) fn buckets(processors: u32) -> u32 {
    let share = (limits::CACHE_BUCKETS / processors.max(1)).max(2);
    (1 << share.ilog2()).min(limits::CACHE_BUCKETS_EACH)
}

/// Opens a pinned map.
pub(crate) fn open(pins: &Pins, name: &str) -> Result<Map, Error> {
    let path = pins.map(name);
    if !path.exists() {
        return Err(Error::NotLoaded(path.parent().unwrap_or(&path).to_path_buf()));
    }
    let data = MapData::from_pin(&path).map_err(|error| Error::ebpf(format!("open {}", path.display()), error))?;
    Map::from_map_data(data).map_err(|error| Error::ebpf(format!("open {}", path.display()), error))
}

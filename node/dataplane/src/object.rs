//! The embedded eBPF object: what its maps look like, and loading it onto pinned maps or onto fresh ones that are then
//! pinned.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use sluice_ebpf_common::limits;
use sluice_ebpf_common::maps::{self, mode};

use crate::migrate::{Build, Layout};
use crate::resize::Sizes;
use crate::store::processors;
use crate::{Error, probes};

static OBJECT: &[u8] = include_bytes_aligned!(env!("SLUICE_EBPF_OBJECT_PATH"));

/// The constant that holds a `maps::mode`.
const MODE: &str = "MODE";

/// The constant that holds `ProbeFields`.
const PROBE_FIELDS: &str = "PROBE_FIELDS";

/// What programs do about flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode<'a> {
    /// Make them and look them up in one map.
    Normal,
    /// Look them up in the map that is pinned there, too.
    Beside(&'a Path),
    /// Look them up, make none.
    Hold,
}

/// A number for all that makes programs what they are, but for the mode and their maps: what else is put into them is the
/// running kernel's.
pub(crate) fn number() -> u64 {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    hasher.finish()
}

/// Creates or takes over the maps and prepares the programs; nothing is attached yet. Each map is pinned at the place that
/// is said for it, or taken from there.
pub(crate) fn load(place: impl Fn(&str) -> PathBuf, sizes: &Sizes, mode: Mode<'_>) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for (name, entries) in entries(sizes)? {
        loader.map_max_entries(name, entries);
    }
    let number = match mode {
        Mode::Normal => mode::NORMAL,
        Mode::Hold => mode::HOLD,
        Mode::Beside(path) => {
            loader.map_pin_path(maps::FLOWS_BESIDE, path);
            mode::BESIDE
        }
    };
    loader.override_global(MODE, &number, true);
    // Without them the probes are not loaded.
    if let Ok(fields) = probes::fields() {
        loader.override_global(PROBE_FIELDS, fields, true);
    }
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for name in maps::ALL {
        loader.map_pin_path(name, place(name));
    }
    loader.load(OBJECT).map_err(|error| Error::ebpf("load the eBPF object", error))
}

/// The object on some of the maps that are pinned where it is said, which have to be there, and on maps of its own, which are
/// pinned nowhere, for the rest.
pub(crate) fn load_beside(
    place: impl Fn(&str) -> PathBuf,
    shared: &[&str],
    sizes: &[(&'static str, u32)],
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for (name, entries) in sizes {
        loader.map_max_entries(name, *entries);
    }
    for name in shared {
        let path = place(name);
        // The loader would make what is missing.
        open(&path)?;
        loader.map_pin_path(name, path);
    }
    loader.load(OBJECT).map_err(|error| Error::ebpf("load the eBPF object", error))
}

/// What the maps of the object look like; growing maps have at least the sizes that they start with.
pub(crate) fn layouts(build: &Build) -> Result<BTreeMap<&'static str, Layout>, Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| Error::ebpf("read the eBPF object", error))?;
    let least: BTreeMap<&str, u32> = entries(&build.start)?.into_iter().collect();
    let layout = |name: &'static str| {
        let map =
            object.maps.get(name).ok_or_else(|| Error::Kernel(format!("the embedded object has no map {name}")))?;
        Ok((
            name,
            Layout {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                flags: map.map_flags(),
                entries: least.get(name).copied().unwrap_or(map.max_entries()),
                revision: (build.revision)(name),
            },
        ))
    };
    maps::ALL.into_iter().map(layout).collect()
}

/// Entries of the maps whose size is not a constant.
fn entries(sizes: &Sizes) -> Result<Vec<(&'static str, u32)>, Error> {
    let processors = processors()? as u32;
    let buckets = buckets(processors);
    let caches = [(maps::CACHE4, buckets * processors), (maps::CACHE6, buckets / 2 * processors)];
    Ok(sizes.entries()?.into_iter().chain(caches).collect())
}

/// Buckets of the flow cache for each processor: a power of two. IPv6 has half of them.
pub(crate) fn buckets(processors: u32) -> u32 {
    let share = (limits::CACHE_BUCKETS / processors.max(1)).max(2);
    (1 << share.ilog2()).min(limits::CACHE_BUCKETS_EACH)
}

/// Opens a pinned map.
pub(crate) fn open(path: &Path) -> Result<Map, Error> {
    if !path.exists() {
        return Err(Error::NotLoaded(path.parent().unwrap_or(path).to_path_buf()));
    }
    let data = MapData::from_pin(path).map_err(|error| Error::ebpf(format!("open {}", path.display()), error))?;
    Map::from_map_data(data).map_err(|error| Error::ebpf(format!("open {}", path.display()), error))
}

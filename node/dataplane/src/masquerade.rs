//! Places outside of the cluster that know pods by their own addresses: packets there are not masqueraded. They share the
//! trie of the services' source ranges, under an id that no service has; the service table never touches them.

use std::collections::BTreeSet;

use aya::maps::MapData;
use aya::maps::lpm_trie::LpmTrie;
use sluice_ebpf_common::{RangeKey, maps};

use crate::dataplane::Dataplane;
use crate::limits::UNMASQUERADED;
use crate::store::{range_key, typed};
use crate::{Error, Range};

impl Dataplane {
    /// Makes these the places that pods' packets reach with the pod's own address; at most [`UNMASQUERADED`] of them.
    pub fn set_unmasqueraded(&self, ranges: &[Range]) -> Result<(), Error> {
        // The map may be replaced by a larger one while the table changes.
        let _table = self.inner.table.lock();
        let mut map: LpmTrie<MapData, RangeKey, u32> = typed(&self.inner.pins, maps::RANGES)?;
        let mut known = BTreeSet::new();
        for key in map.keys() {
            let key = key.map_err(|error| Error::ebpf("read the ranges that are not masqueraded", error))?;
            let RangeKey { service, address } = key.data();
            if service == RangeKey::UNMASQUERADED {
                known.extend(Range::unwire(address, key.prefix_len().saturating_sub(RangeKey::SERVICE_BITS)));
            }
        }
        let wanted: BTreeSet<Range> = ranges.iter().copied().take(UNMASQUERADED).collect();
        let failed = |error| Error::ebpf("write the ranges that are not masqueraded", error);
        for range in known.difference(&wanted) {
            map.remove(&range_key(RangeKey::UNMASQUERADED, *range)).map_err(failed)?;
        }
        for range in wanted.difference(&known) {
            map.insert(&range_key(RangeKey::UNMASQUERADED, *range), 1, 0).map_err(failed)?;
        }
        Ok(())
    }
}

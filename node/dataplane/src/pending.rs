//! Counts that still stand in the flow cache: a record's packets are added to the counters when the next tick's first packet
//! comes, so that what an idle connection carried last is only there. Read by whoever asks for the counters.

use std::collections::HashMap;
use std::os::fd::AsFd;

use aya::maps::MapInfo;
use sluice_ebpf_common::cache::{Record4, Record6};
use sluice_ebpf_common::{Flow, maps};

use crate::pins::Pins;
use crate::words::Words;
use crate::{Error, sys};

/// Packets and bytes by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) services: HashMap<u32, (u64, u64)>,
    pub(crate) backends: HashMap<u32, (u64, u64)>,
}

/// Where a record's fields are, in words.
struct Fields {
    size: usize,
    service: usize,
    backend: usize,
    tick_and_packets: usize,
    bytes: usize,
}

macro_rules! fields {
    ($record:ty) => {
        Fields {
            size: size_of::<$record>() / 4,
            service: std::mem::offset_of!($record, service) / 4,
            backend: std::mem::offset_of!($record, backend) / 4,
            tick_and_packets: std::mem::offset_of!($record, tick) / 4,
            bytes: std::mem::offset_of!($record, bytes) / 4,
        }
    };
}

/// Reads the whole cache.
pub(crate) fn read(pins: &Pins) -> Result<Pending, Error> {
    let mut pending = Pending::default();
    for (name, fields) in [(maps::CACHE4, fields!(Record4)), (maps::CACHE6, fields!(Record6))] {
        let path = pins.map(name);
        let buckets =
            MapInfo::from_pin(&path).map_err(|error| Error::ebpf(format!("read {name}"), error))?.max_entries();
        let words = buckets as usize * 2 * fields.size;
        let cache = sys::open_pinned(&path)
            .and_then(|map| Words::map(map.as_fd(), words, false))
            .map_err(|error| Error::system(format!("map {name} into memory"), error))?;
        let word = |at: usize| cache.get(at).unwrap_or(0);
        for at in (0..words).step_by(fields.size) {
            // The packets are the word's second half in memory.
            let [.., low, high] = word(at + fields.tick_and_packets).to_ne_bytes();
            let packets = u64::from(u16::from_ne_bytes([low, high]));
            let service = word(at + fields.service);
            if packets == 0 || service == Flow::NO_SERVICE {
                continue;
            }
            let bytes = u64::from(word(at + fields.bytes));
            let add = |sum: &mut (u64, u64)| *sum = (sum.0 + packets, sum.1 + bytes);
            add(pending.services.entry(service).or_default());
            add(pending.backends.entry(word(at + fields.backend)).or_default());
        }
    }
    Ok(pending)
}

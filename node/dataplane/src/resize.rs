//! Growing maps while they are in use. Which map has to grow is decided by pure functions; the driver makes larger maps beside
//! the old ones, copies, and puts programs that use them behind the links.
//!
//! The service table is written by this process alone: old and new maps hold the same when the programs change. Flows are made
//! by the programs, so they change in three steps in which no program ever misses a flow that another one made: first all
//! look at the old map and then at the new one, then all make flows in the new one and look at the old one, too; when
//! everything is copied, the old map is left alone. A process that dies in between leaves `next-<map>` pins; the next one
//! goes on from there.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::TcAttachType;
use sluice_ebpf_common::{SLAB_LINE, limits, maps, start};

use crate::dataplane::{Inner, Table};
use crate::migrate::Copy;
use crate::object::Mode;
use crate::pins::Pins;
use crate::plan::Capacity;
use crate::store::{Store, processors};
use crate::{Dataplane, Error, attach, kept, object, sys};

/// Sizes of the maps that grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Maps of the service table.
    pub table: Capacity,
    /// Entries of the flow map.
    pub flows: u32,
}

impl Sizes {
    /// For a small cluster.
    pub const START: Sizes = Sizes {
        table: Capacity {
            frontends: start::FRONTENDS,
            backends: start::BACKENDS,
            slab: start::SLAB,
            services: start::SERVICES,
            ranges: start::RANGES,
        },
        flows: start::FLOWS,
    };

    /// The bounds.
    pub const MOST: Sizes = Sizes {
        table: Capacity {
            frontends: limits::FRONTENDS,
            backends: limits::BACKENDS,
            slab: limits::SLAB,
            services: limits::SERVICES,
            ranges: limits::RANGES,
        },
        flows: limits::FLOWS,
    };

    /// Entries of each map.
    pub(crate) fn entries(&self) -> Result<Vec<(&'static str, u32)>, Error> {
        let Capacity { frontends, backends, slab, services, ranges } = self.table;
        let each = processors()? as u32;
        Ok(vec![
            (maps::FRONTENDS, frontends),
            (maps::BACKENDS, backends),
            (maps::SLAB, slab.div_ceil(SLAB_LINE as u32)),
            (maps::NAMES, services),
            (maps::RANGES, ranges),
            (maps::GENERATIONS, services),
            (maps::SERVICE_COUNTERS, services.saturating_mul(each)),
            (maps::BACKEND_COUNTERS, backends.saturating_mul(each)),
            (maps::FLOWS, self.flows),
        ])
    }

    /// Sizes that hold so much without pressure, as far as the bounds allow; never smaller than now.
    pub(crate) fn holding(&self, need: Sizes, most: &Sizes) -> Sizes {
        let (own, need, flows) = (self.table, need.table, need.flows);
        let most_of = most.table;
        Sizes {
            table: Capacity {
                frontends: room(own.frontends, need.frontends, most_of.frontends),
                backends: room(own.backends, need.backends, most_of.backends),
                slab: room(own.slab, need.slab, most_of.slab),
                services: room(own.services, need.services, most_of.services),
                ranges: room(own.ranges, need.ranges, most_of.ranges),
            },
            flows: room(self.flows, flows, most.flows),
        }
    }

    /// At least so large in everything.
    pub(crate) fn at_least(&self, other: Sizes) -> Sizes {
        let (a, b) = (self.table, other.table);
        Sizes {
            table: Capacity {
                frontends: a.frontends.max(b.frontends),
                backends: a.backends.max(b.backends),
                slab: a.slab.max(b.slab),
                services: a.services.max(b.services),
                ranges: a.ranges.max(b.ranges),
            },
            flows: self.flows.max(other.flows),
        }
    }

    /// Sizes of the maps of a set; those that are missing have none.
    pub(crate) fn of(pins: &Pins) -> Sizes {
        let size = |name: &str| {
            let map = sys::open_pinned(&pins.map(name)).ok();
            map.and_then(|map| sys::map_info(map.as_fd()).ok()).map_or(0, |info| info.entries)
        };
        Sizes {
            table: Capacity {
                frontends: size(maps::FRONTENDS),
                backends: size(maps::BACKENDS),
                slab: size(maps::SLAB).saturating_mul(SLAB_LINE as u32),
                services: size(maps::NAMES),
                ranges: size(maps::RANGES),
            },
            flows: size(maps::FLOWS),
        }
    }
}

/// Above four fifths a map is grown to a power of two that is not.
fn room(size: u32, need: u32, most: u32) -> u32 {
    if presses(need, size) {
        let wanted = (u64::from(need) * 5 / 4 + 1).next_power_of_two().min(u64::from(most));
        return (wanted as u32).max(size);
    }
    size
}

/// Is a map of this size under pressure?
pub(crate) fn presses(used: u32, size: u32) -> bool {
    u64::from(used) * 5 > u64::from(size) * 4
}

/// Loads the programs onto maps pinned at these places: all that are attached now have another to take their place.
pub(crate) fn programs(
    pins: &Pins,
    place: impl Fn(&str) -> PathBuf,
    sizes: &Sizes,
    mode: Mode<'_>,
) -> Result<Ebpf, Error> {
    let mut ebpf = object::load(&place, sizes, mode)?;
    if mode == Mode::Normal {
        kept::take(&mut ebpf, pins, place)?;
    }
    attach::load_programs(&mut ebpf, pins)?;
    Ok(ebpf)
}

/// Ends what an earlier process began and did not finish, before any map of the set is used. Returns what the programs have
/// to look at beside the flow map until everything is copied.
pub(crate) fn settle(pins: &Pins) -> Result<bool, Error> {
    for name in maps::ALL.into_iter().filter(|name| *name != maps::FLOWS) {
        pins.forget_next(name)?;
    }
    let Ok(next) = sys::open_pinned(&pins.next(maps::FLOWS)) else { return Ok(false) };
    let info = sys::map_info(next.as_fd()).map_err(|error| Error::system("ask the kernel about a map", error))?;
    let mut any = false;
    sys::read_all(next.as_fd(), info.key as usize, info.value as usize, |keys, _| any |= !keys.is_empty())
        .map_err(|error| Error::system("read the flows", error))?;
    if !any {
        pins.forget_next(maps::FLOWS)?;
    }
    Ok(any)
}

/// The same in a set that another build left: its flows are brought together, so that they can go along.
pub(crate) fn gather(pins: &Pins) -> Result<(), Error> {
    if settle(pins)? {
        Copy::NEW.between(&open(&pins.next(maps::FLOWS))?, &open(&pins.map(maps::FLOWS))?)?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    sys::open_pinned(path).map_err(|error| Error::system(format!("open {}", path.display()), error))
}

impl Inner {
    /// Puts programs behind every link.
    pub(crate) fn flip(&self, ebpf: &mut Ebpf) -> Result<(), Error> {
        self.flip_packets(ebpf, attach::BOTH)?;
        attach::attach_sockets(ebpf, &self.pins, &self.cgroup)
    }

    /// Puts programs behind the links that see packets in these directions.
    pub(crate) fn flip_packets(&self, ebpf: &mut Ebpf, sides: &[TcAttachType]) -> Result<(), Error> {
        attach::take_over(ebpf, &self.pins, sides)?;
        for link in self.uplinks.lock().iter() {
            attach::attach_traffic(ebpf, &self.pins, self.traffic, &attach::UPLINK_PROGRAMS, link, sides)?;
        }
        Ok(())
    }

    /// The second and third step of a new flow map, pinned as the next one: programs make flows there and look at the old one,
    /// too; everything is copied; the old one is left alone.
    pub(crate) fn finish_flows(&self, sizes: &Sizes, place: impl Fn(&str) -> PathBuf) -> Result<(), Error> {
        let pins = &self.pins;
        let (old, new) = (pins.map(maps::FLOWS), pins.next(maps::FLOWS));
        let at = |name: &str| if name == maps::FLOWS { new.clone() } else { place(name) };
        self.flip(&mut programs(pins, at, sizes, Mode::Beside(&old))?)?;
        grace()?;
        Copy::NEW.between(&open(&old)?, &open(&new)?)?;
        pins.advance(maps::FLOWS)
    }
}

/// Waits until no program of before runs any more.
pub(crate) fn grace() -> Result<(), Error> {
    sys::grace().map_err(|error| Error::system("wait for programs that run", error))
}

/// Waits until the packet programs of before have ended, which may be much sooner: they run to their end on their processor
/// before a thread gets it.
pub(crate) fn let_packets_pass() -> Result<(), Error> {
    let online = aya::util::online_cpus().map_err(|(_, error)| Error::system("list the processors", error))?;
    if sys::visit_processors(&online) { Ok(()) } else { grace() }
}

impl Dataplane {
    /// Gives the maps other sizes. Connections, and flows that are made meanwhile, go on.
    pub(crate) fn resize(&self, table: &mut Table, sizes: Sizes) -> Result<(), Error> {
        let inner = &self.inner;
        let pins = &inner.pins;
        let (before, after) = (table.sizes.entries()?, sizes.entries()?);
        let grown: BTreeSet<&str> =
            before.iter().zip(&after).filter(|(old, new)| old != new).map(|(_, (name, _))| *name).collect();
        tracing::info!(maps = ?grown, "larger maps take the place of those that are nearly full");
        // Nobody sweeps or attaches meanwhile.
        let _sweeping = inner.sweeping.lock();
        let mut ebpf = inner.ebpf.lock();
        settle(pins)?;
        pins.forget_next(maps::FLOWS)?;
        let place = |name: &str| if grown.contains(name) { pins.next(name) } else { pins.map(name) };
        let flows = |path: PathBuf| move |name: &str| if name == maps::FLOWS { path.clone() } else { place(name) };
        let (old_flows, new_flows) = (pins.map(maps::FLOWS), pins.next(maps::FLOWS));
        let grows = grown.contains(maps::FLOWS);
        let mut first = match grows {
            true => {
                drop(object::load(place, &sizes, Mode::Beside(&old_flows))?);
                programs(pins, flows(old_flows.clone()), &sizes, Mode::Beside(&new_flows))?
            }
            false => programs(pins, place, &sizes, Mode::Normal)?,
        };
        let mut store = Store::open_at(place, true)?;
        store.fill(&table.tables, &grown)?;
        for name in [maps::RANGES, maps::GENERATIONS].into_iter().filter(|name| grown.contains(name)) {
            Copy::ALL.between(&open(&pins.map(name))?, &open(&pins.next(name))?)?;
        }
        inner.flip(&mut first)?;
        grace()?;
        if grows {
            inner.finish_flows(&sizes, place)?;
        }
        store.take_counts(&table.store, &grown)?;
        grown.iter().filter(|name| **name != maps::FLOWS).try_for_each(|name| pins.advance(name))?;
        if grows {
            first = programs(pins, |name| pins.map(name), &sizes, Mode::Normal)?;
            inner.flip(&mut first)?;
        }
        kept::keep(&first, pins)?;
        *ebpf = first;
        table.tables.resize(store.capacity());
        (table.store, table.sizes) = (store, sizes);
        drop(ebpf);
        sys::give_memory_back();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_grows_before_it_is_full_and_up_to_its_bound() {
        // Size, what it has to hold, its bound, new size.
        let cases = [
            (1024, 819, 4096, 1024),
            (1024, 820, 4096, 2048),
            (1024, 1700, 4096, 4096),
            (1024, 9000, 4096, 4096),
            (4096, 4096, 4096, 4096),
            (4096, 0, 4096, 4096),
            (8, 3_400_000_000, u32::MAX, u32::MAX),
        ];
        for (size, need, most, expected) in cases {
            assert_eq!(room(size, need, most), expected, "{size} {need} {most}");
        }
    }
}

//! The maps of the service table, typed: reading what the kernel holds and carrying out a plan's writes.

use std::os::fd::AsFd;
use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues};
use sluice_ebpf_common::{Backend, Counters, Frontend, FrontendKey, SLAB_LINE, ServiceName, maps};

use crate::object::open;
use crate::pins::Pins;
use crate::plan::{Capacity, Tables, Write};
use crate::{Error, sys};

/// The maps of the service table.
pub(crate) struct Store {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    backends: Array<MapData, Backend>,
    slab: sys::Words,
    names: HashMap<MapData, u32, ServiceName>,
    service_counters: PerCpuArray<MapData, Counters>,
    backend_counters: PerCpuArray<MapData, Counters>,
    capacity: Capacity,
    cpus: usize,
}

/// A typed map, or a sentence about what is wrong with the pinned one.
pub(crate) fn typed<T>(pins: &Pins, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(open(pins, name)?).map_err(|error| Error::ebpf(format!("use the map {name}"), error))
}

fn size(pins: &Pins, name: &str) -> Result<u32, Error> {
    MapInfo::from_pin(pins.map(name))
        .map(|info| info.max_entries())
        .map_err(|error| Error::ebpf(format!("read the size of the map {name}"), error))
}

impl Store {
    /// Opens the pinned maps, from any process.
    pub(crate) fn open(pins: &Pins, writable: bool) -> Result<Store, Error> {
        let _: Array<MapData, [u32; SLAB_LINE]> = typed(pins, maps::SLAB)?;
        let capacity = Capacity {
            frontends: size(pins, maps::FRONTENDS)?,
            backends: size(pins, maps::BACKENDS)?,
            slab: size(pins, maps::SLAB)?.saturating_mul(SLAB_LINE as u32),
            services: size(pins, maps::NAMES)?,
        };
        let fd = MapInfo::from_pin(pins.map(maps::SLAB))
            .and_then(|info| info.fd())
            .map_err(|error| Error::ebpf("open the slab", error))?;
        let slab = sys::Words::map(fd.as_fd(), capacity.slab as usize, writable)
            .map_err(|error| Error::system("map the slab into memory", error))?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| Error::system("count the processors", error))?;
        Ok(Store {
            frontends: typed(pins, maps::FRONTENDS)?,
            backends: typed(pins, maps::BACKENDS)?,
            slab,
            names: typed(pins, maps::NAMES)?,
            service_counters: typed(pins, maps::SERVICE_COUNTERS)?,
            backend_counters: typed(pins, maps::BACKEND_COUNTERS)?,
            capacity,
            cpus,
        })
    }

    /// Sizes of the maps.
    pub(crate) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What the kernel holds now. A frontend whose list makes no sense gets an
    /// impossible one, and so is written anew or removed.
    pub(crate) fn read(&self) -> Result<Tables, Error> {
        let mut tables = Tables::default();
        for entry in self.names.iter() {
            let (id, name) = entry.map_err(|error| Error::ebpf("read the names", error))?;
            tables.names.insert(id, decode_name(&name).into());
        }
        for entry in self.frontends.iter() {
            let (key, frontend) = entry.map_err(|error| Error::ebpf("read the frontends", error))?;
            tables.generation = tables.generation.max(frontend.generation);
            let Some(backends) = self.resolve(&frontend) else {
                tables.frontends.insert(key, Frontend { count: 0, base: u32::MAX, ..frontend });
                continue;
            };
            if frontend.count > 0 {
                tables.lists.insert(frontend.base, Arc::new(backends.iter().map(|(id, _)| *id).collect()));
            }
            tables.backends.extend(backends);
            tables.frontends.insert(key, frontend);
        }
        Ok(tables)
    }

    fn resolve(&self, frontend: &Frontend) -> Option<Vec<(u32, Backend)>> {
        let mut backends = Vec::new();
        for at in frontend.base..frontend.base.checked_add(frontend.count)? {
            let id = self.slab.get(at as usize)?;
            let backend = self.backends.get(&id, 0).ok()?;
            if backend.flags & Backend::USED == 0 {
                return None;
            }
            backends.push((id, backend));
        }
        Some(backends)
    }

    /// Carries out the writes in their order.
    pub(crate) fn apply(&mut self, writes: &[Write]) -> Result<(), Error> {
        for write in writes {
            self.write(write)?;
        }
        Ok(())
    }

    fn write(&mut self, write: &Write) -> Result<(), Error> {
        let result = match write {
            Write::Name(id, name) => zero(&mut self.service_counters, *id, self.cpus)
                .and_then(|()| self.names.insert(*id, encode_name(name), 0)),
            Write::Backend(id, backend) => {
                zero(&mut self.backend_counters, *id, self.cpus).and_then(|()| self.backends.set(*id, *backend, 0))
            }
            Write::RetireBackend(id, backend) => self.backends.set(*id, *backend, 0),
            Write::List(base, ids) => {
                for (id, at) in ids.iter().zip(*base..) {
                    self.slab.set(at as usize, *id);
                }
                Ok(())
            }
            Write::Frontend(key, frontend) => self.frontends.insert(*key, *frontend, 0),
            Write::RemoveFrontend(key) => self.frontends.remove(key),
            Write::RemoveName(id) => self.names.remove(id),
        };
        result.map_err(|error| Error::ebpf(format!("write the service table ({write:?})"), error))
    }

    /// A service port's counters over all processors.
    pub(crate) fn service_counters(&self, id: u32) -> Counters {
        sum(self.service_counters.get(&id, 0))
    }

    /// A backend's counters over all processors.
    pub(crate) fn backend_counters(&self, id: u32) -> Counters {
        sum(self.backend_counters.get(&id, 0))
    }
}

fn zero(map: &mut PerCpuArray<MapData, Counters>, id: u32, cpus: usize) -> Result<(), MapError> {
    map.set(id, PerCpuValues::try_from(vec![Counters::default(); cpus])?, 0)
}

fn sum(values: Result<PerCpuValues<Counters>, MapError>) -> Counters {
    let mut total = Counters::default();
    for value in values.iter().flat_map(|values| values.iter()) {
        total.connections += value.connections;
        total.packets += value.packets;
        total.bytes += value.bytes;
        total.refused += value.refused;
    }
    total
}

fn encode_name(name: &str) -> ServiceName {
    let mut bytes = [0; ServiceName::LENGTH];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    ServiceName { bytes }
}

fn decode_name(name: &ServiceName) -> String {
    let end = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..end]).into_owned()
}

//! The maps of the service table, typed: reading what the kernel holds and carrying out a plan's writes.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use sluice_ebpf_common::{Backend, Frontend, FrontendKey, RangeKey, SLAB_LINE, ServiceName, maps};

use crate::counters::{CounterMap, Counts};
use crate::maglev;
use crate::object::open;
use crate::pins::Pins;
use crate::plan::{Capacity, Contents, List, Tables, Write};
use crate::range::wire_key;
use crate::words::Words;
use crate::{Error, Range, sys};

/// Backends with their ids.
type Numbered = Vec<(u32, Backend)>;

/// The maps of the service table.
pub(crate) struct Store {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    frontends_fd: OwnedFd,
    backends_fd: OwnedFd,
    slab: Words,
    names: HashMap<MapData, u32, ServiceName>,
    names_fd: OwnedFd,
    ranges: LpmTrie<MapData, RangeKey, u32>,
    generations: Array<MapData, u32>,
    generations_fd: OwnedFd,
    service_counters: CounterMap,
    backend_counters: CounterMap,
    capacity: Capacity,
}

/// A typed map, or a sentence about what is wrong with the pinned one.
pub(crate) fn typed<T>(pins: &Pins, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    typed_at(&pins.map(name))
}

fn typed_at<T>(path: &Path) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(open(path)?).map_err(|error| Error::ebpf(format!("use the map {}", path.display()), error))
}

fn size(path: &Path) -> Result<u32, Error> {
    MapInfo::from_pin(path)
        .map(|info| info.max_entries())
        .map_err(|error| Error::ebpf(format!("read the size of the map {}", path.display()), error))
}

pub(crate) fn descriptor(path: &Path) -> Result<OwnedFd, Error> {
    sys::open_pinned(path).map_err(|error| Error::system(format!("open {}", path.display()), error))
}

pub(crate) fn words(path: &Path, words: usize, writable: bool) -> Result<Words, Error> {
    Words::map(descriptor(path)?.as_fd(), words, writable)
        .map_err(|error| Error::system(format!("map {} into memory", path.display()), error))
}

/// How many processors there may ever be: each id has a counter for each of them.
pub(crate) fn processors() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(_, error)| Error::system("count the processors", error))
}

impl Store {
    /// Opens the pinned maps, from any process.
    pub(crate) fn open(pins: &Pins, writable: bool) -> Result<Store, Error> {
        Store::open_at(|name| pins.map(name), writable)
    }

    /// Opens maps that are pinned where it is said for each.
    pub(crate) fn open_at(place: impl Fn(&str) -> PathBuf, writable: bool) -> Result<Store, Error> {
        let at = |name| place(name);
        let _: Array<MapData, [u32; SLAB_LINE]> = typed_at(&at(maps::SLAB))?;
        let _: Array<MapData, Backend> = typed_at(&at(maps::BACKENDS))?;
        let capacity = Capacity {
            frontends: size(&at(maps::FRONTENDS))?,
            backends: size(&at(maps::BACKENDS))?,
            slab: size(&at(maps::SLAB))?.saturating_mul(SLAB_LINE as u32),
            services: size(&at(maps::NAMES))?,
            ranges: size(&at(maps::RANGES))?,
        };
        Ok(Store {
            frontends: typed_at(&at(maps::FRONTENDS))?,
            frontends_fd: descriptor(&at(maps::FRONTENDS))?,
            backends_fd: descriptor(&at(maps::BACKENDS))?,
            slab: words(&at(maps::SLAB), capacity.slab as usize, writable)?,
            names: typed_at(&at(maps::NAMES))?,
            names_fd: descriptor(&at(maps::NAMES))?,
            ranges: typed_at(&at(maps::RANGES))?,
            generations: typed_at(&at(maps::GENERATIONS))?,
            generations_fd: descriptor(&at(maps::GENERATIONS))?,
            service_counters: CounterMap::open(&at(maps::SERVICE_COUNTERS), capacity.services)?,
            backend_counters: CounterMap::open(&at(maps::BACKEND_COUNTERS), capacity.backends)?,
            capacity,
        })
    }

    /// Writes what the kernel should hold into maps that are new; ranges and generations are copied by whoever makes them.
    pub(crate) fn fill(&mut self, tables: &Tables, fresh: &BTreeSet<&str>) -> Result<(), Error> {
        let failed = |error| Error::system("write the service table", error);
        let is_fresh = |name: &str| fresh.contains(name);
        if is_fresh(maps::NAMES) {
            let names = tables.names().map(|(id, name)| (id, encode_name(name)));
            update(&self.names_fd, names).map_err(failed)?;
        }
        if is_fresh(maps::BACKENDS) {
            update(&self.backends_fd, tables.backends()).map_err(failed)?;
        }
        if is_fresh(maps::SLAB) {
            tables.lists().for_each(|(base, list)| self.write_list(base, list));
        }
        if is_fresh(maps::FRONTENDS) {
            update(&self.frontends_fd, tables.frontends()).map_err(failed)?;
        }
        Ok(())
    }

    /// Adds what was counted in the maps that these ones replace.
    pub(crate) fn take_counts(&self, old: &Store, fresh: &BTreeSet<&str>) -> Result<(), Error> {
        let pairs = [
            (maps::SERVICE_COUNTERS, &old.service_counters, &self.service_counters),
            (maps::BACKEND_COUNTERS, &old.backend_counters, &self.backend_counters),
        ];
        pairs.into_iter().filter(|(name, ..)| fresh.contains(name)).try_for_each(|(_, from, to)| to.add(from))
    }

    fn write_list(&self, base: u32, list: &List) {
        for (word, at) in list.ids.iter().chain(&list.table).zip(base..) {
            self.slab.set(at as usize, *word);
        }
    }

    /// Sizes of the maps.
    pub(crate) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What the kernel holds now. A frontend whose list makes no sense gets an
    /// impossible one, and so is written anew or removed.
    pub(crate) fn read(&self) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        let failed = |error| Error::system("read the service table", error);
        sys::read_each(self.names_fd.as_fd(), |id: u32, name: ServiceName| {
            contents.names.insert(id, decode_name(&name).into());
        })
        .map_err(failed)?;
        for entry in self.ranges.keys() {
            let key = entry.map_err(|error| Error::ebpf("read the source ranges", error))?;
            let RangeKey { service, address } = key.data();
            let bits = key.prefix_len().saturating_sub(RangeKey::SERVICE_BITS);
            contents.ranges.entry(service).or_default().extend(Range::unwire(address, bits));
        }
        let mut frontends: Vec<(FrontendKey, Frontend)> = Vec::new();
        sys::read_each(self.frontends_fd.as_fd(), |key, frontend| frontends.push((key, frontend))).map_err(failed)?;
        let mut all: Vec<Backend> = Vec::new();
        if !frontends.is_empty() {
            // In the order of their ids.
            sys::read_each(self.backends_fd.as_fd(), |_: u32, backend| all.push(backend)).map_err(failed)?;
        }
        for (key, frontend) in frontends {
            contents.generation = contents.generation.max(frontend.generation);
            let Some((backends, table)) = self.resolve(&frontend, &all) else {
                contents.frontends.insert(key, Frontend { count: 0, draining: 0, base: u32::MAX, ..frontend });
                continue;
            };
            if !backends.is_empty() {
                let ids = backends.iter().map(|(id, _)| *id).collect();
                contents.lists.insert(frontend.base, Arc::new(List { ids, table: table.into() }));
            }
            contents.backends.extend(backends);
            contents.frontends.insert(key, frontend);
        }
        Ok(contents)
    }

    /// The backends of a frontend and its packed table.
    fn resolve(&self, frontend: &Frontend, all: &[Backend]) -> Option<(Numbered, Vec<u32>)> {
        let mut backends = Vec::new();
        let end = frontend.base.checked_add(frontend.count)?.checked_add(frontend.draining)?;
        for at in frontend.base..end {
            let id = self.slab.get(at as usize)?;
            let backend = *all.get(id as usize)?;
            if backend.flags & Backend::USED == 0 {
                return None;
            }
            backends.push((id, backend));
        }
        let table = end..end.checked_add(maglev::words(frontend.table))?;
        Some((backends, table.map(|at| self.slab.get(at as usize)).collect::<Option<_>>()?))
    }

    /// Carries out the writes in their order; neighbours of one kind go in one call.
    pub(crate) fn apply(&mut self, writes: &[Write]) -> Result<(), Error> {
        let same = |a: &Write, b: &Write| std::mem::discriminant(a) == std::mem::discriminant(b);
        writes.chunk_by(same).try_for_each(|run| self.write_run(run))
    }

    fn write_run(&mut self, run: &[Write]) -> Result<(), Error> {
        let batch = match run {
            [Write::Name(..), ..] => {
                let names: Vec<_> = run.iter().filter_map(name).collect();
                let ids: Vec<u32> = names.iter().map(|(id, _)| *id).collect();
                self.service_counters.clear(&ids).and_then(|()| update(&self.names_fd, names.into_iter()))
            }
            [Write::Backend(..) | Write::RetireBackend(..), ..] => {
                let ids: Vec<u32> = run.iter().filter_map(new_backend).collect();
                let written = self.backend_counters.clear(&ids);
                written.and_then(|()| update(&self.backends_fd, run.iter().filter_map(backend)))
            }
            [Write::Frontend(..), ..] => {
                update(&self.frontends_fd, run.iter().filter_map(frontend)).and_then(|()| {
                    // After the flip: what is cached before it holds no more.
                    let generation = |(_, frontend): (FrontendKey, Frontend)| (frontend.service, frontend.generation);
                    update(&self.generations_fd, run.iter().filter_map(frontend).map(generation))
                })
            }
            _ => return run.iter().try_for_each(|write| self.write(write)),
        };
        batch.map_err(|error| Error::system("write the service table", error))
    }

    fn write(&mut self, write: &Write) -> Result<(), Error> {
        let result = match write {
            Write::List(base, list) => {
                self.write_list(*base, list);
                Ok(())
            }
            Write::Range(service, range) => self.ranges.insert(&range_key(*service, *range), 1, 0),
            Write::RemoveRange(service, range) => self.ranges.remove(&range_key(*service, *range)),
            Write::RemoveFrontend(key) => self.remove_frontend(key),
            Write::RemoveName(id) => self.names.remove(id),
            // Written in batches.
            Write::Name(..) | Write::Backend(..) | Write::RetireBackend(..) | Write::Frontend(..) => Ok(()),
        };
        result.map_err(|error| Error::ebpf(format!("write the service table ({write:?})"), error))
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        let gone = self.frontends.get(key, 0)?;
        self.frontends.remove(key)?;
        // No frontend is ever written with this generation.
        self.generations.set(gone.service, !gone.generation, 0)
    }

    /// Counters of service ports and of backends.
    pub(crate) fn counts(&self) -> Result<(Counts, Counts), Error> {
        Ok((self.service_counters.counts()?, self.backend_counters.counts()?))
    }
}

fn name(write: &Write) -> Option<(u32, ServiceName)> {
    if let Write::Name(id, name) = write { Some((*id, encode_name(name))) } else { None }
}

fn new_backend(write: &Write) -> Option<u32> {
    if let Write::Backend(id, _) = write { Some(*id) } else { None }
}

fn backend(write: &Write) -> Option<(u32, Backend)> {
    match write {
        Write::Backend(id, backend) | Write::RetireBackend(id, backend) => Some((*id, *backend)),
        _ => None,
    }
}

fn frontend(write: &Write) -> Option<(FrontendKey, Frontend)> {
    if let Write::Frontend(key, frontend) = write { Some((*key, *frontend)) } else { None }
}

fn update<K: aya::Pod, V: aya::Pod>(map: &OwnedFd, entries: impl Iterator<Item = (K, V)>) -> std::io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
    sys::update_batch(map.as_fd(), &keys, &values)
}

pub(crate) fn range_key(service: u32, range: Range) -> Key<RangeKey> {
    Key::new(RangeKey::SERVICE_BITS + range.bits(), RangeKey { service, address: wire_key(range) })
}

fn encode_name(name: &str) -> ServiceName {
    let mut bytes = [0; ServiceName::LENGTH];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    ServiceName { bytes }
}

pub(crate) fn decode_name(name: &ServiceName) -> String {
    let end = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..end]).into_owned()
}

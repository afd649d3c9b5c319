//! What the kernel holds, for people: read from the pinned maps and links alone, by any process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo, PerCpuArray};
use serde::Serialize;
use sluice_ebpf_common::probe::ProbeKey;
use sluice_ebpf_common::{Backend, Frontend, Reason, SCHEMA, Scope, limits, maps};

use crate::attach::{GUARD_PROGRAMS, Link, POD_PROGRAMS, SOCKET_PROGRAMS, uplink_filters};
use crate::counters::Counts;
use crate::flows::protocol_name;
use crate::measured::TcpRow;
use crate::pending::{self, Pending};
use crate::pins::{Pins, cgroup_root};
use crate::plan::{Capacity, Contents};
use crate::range::unwire;
use crate::store::{Store, typed};
use crate::wire::{self, UplinkRow};
use crate::{Dataplane, Error, datagrams, neighbours, pace, probes, sweep, sys};

/// How deep the cgroup tree is searched for the cgroup that programs are attached to.
const CGROUP_DEPTH: usize = 8;

/// A service port as the kernel serves it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its number in the maps.
    #[serde(skip)]
    pub(crate) id: u32,
    /// `namespace/name:port`.
    pub service: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Addresses and ports that are answered.
    pub frontends: Vec<FrontendRow>,
    /// Everybody who answers, over all frontends.
    pub backends: Vec<BackendRow>,
    /// Connections and unconnected sockets sent to a backend.
    pub connections: u64,
    /// Packets translated one by one, both directions.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections refused for lack of an endpoint.
    pub refused: u64,
    /// What was measured of TCP connections, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRow>,
}

/// An address and port that is answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// `None`: every address of the node in its family.
    pub address: Option<IpAddr>,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Port.
    pub port: u16,
    /// `internal`: this node's sockets and pods; `external`: packets from outside.
    pub scope: &'static str,
    /// Number of backends in its list.
    pub backends: u32,
    /// Backends that take no new connections and keep their flows.
    pub draining: u32,
    /// Slots of the table by which all nodes choose alike, 0 without one.
    pub table_slots: u32,
    /// The list holds this node's backends only.
    pub local_only: bool,
    /// Seconds for which a client keeps its backend, 0 without affinity.
    pub affinity_seconds: u32,
    /// Clients that are served; empty for all.
    pub source_ranges: Vec<String>,
}

/// Somebody who answers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Its number in the maps.
    #[serde(skip)]
    pub(crate) id: u32,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Runs on this node.
    pub local: bool,
    /// As for the service.
    pub connections: u64,
    /// As for the service.
    pub packets: u64,
    /// As for the service.
    pub bytes: u64,
}

/// The health of the data plane.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Programs and where they are attached.
    pub programs: Vec<ProgramRow>,
    /// How packets come in on each uplink.
    pub uplinks: Vec<UplinkRow>,
    /// Maps, their use and their limits.
    pub maps: Vec<MapRow>,
    /// Pods whose egress limit is kept by departure times.
    pub paced: usize,
    /// Connections translated packet by packet now.
    pub flows: usize,
    /// Packets and connections refused, by reason; those that never happened are left out.
    pub refused: BTreeMap<&'static str, u64>,
    /// What is wrong and what to do; empty when all is well.
    pub problems: Vec<String>,
}

/// A program in the kernel.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramRow {
    /// Its name.
    pub name: String,
    /// A link's name or a cgroup's path.
    pub attached: String,
    /// Its id in the kernel.
    pub id: u32,
    /// Instructions that the verifier walked through to prove it safe; 0 when the kernel does not tell.
    pub verified_instructions: u32,
}

/// A map in the kernel.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapRow {
    /// Its name.
    pub name: &'static str,
    /// Entries in use.
    pub used: usize,
    /// Entries at most, until it grows.
    pub limit: u32,
    /// Entries that it may ever have.
    pub bound: u32,
    /// What to do when it is full.
    #[serde(skip)]
    advice: &'static str,
}

fn row(name: &'static str, used: usize, limit: u32, bound: u32) -> MapRow {
    let advice = match name {
        maps::FLOWS => "new connections by packet are refused: end idle ones, or spread the load over more nodes",
        maps::PODS => "packets to further pods of this node pass through its stack",
        _ => "new services are refused: remove services or endpoints that nobody needs",
    };
    MapRow { name, used, limit, bound, advice }
}

/// The service table under a pin directory.
pub fn services(pin_dir: &Path) -> Result<Vec<ServiceRow>, Error> {
    services_in(&Pins::new(pin_dir, SCHEMA))
}

fn services_in(pins: &Pins) -> Result<Vec<ServiceRow>, Error> {
    let store = Store::open(pins, false)?;
    let tables = store.read()?;
    let mut rows = rows(pins, &store, &tables)?;
    let measured = probes::read(pins)?;
    for row in rows.iter_mut().filter(|row| row.protocol == "TCP") {
        row.tcp = measured.get(&ProbeKey::of_service(row.id)).map(TcpRow::of);
    }
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    Ok(rows)
}

/// What the maps hold, for figures.
pub(crate) struct Seen {
    /// In the order of their numbers.
    pub(crate) services: Vec<ServiceRow>,
    pub(crate) maps: Vec<MapRow>,
    pub(crate) tables: Contents,
}

/// Reads the service table once; so many entries of the flow map are in use.
pub(crate) fn seen(pins: &Pins, flows: usize) -> Result<Seen, Error> {
    let store = Store::open(pins, false)?;
    let tables = store.read()?;
    let maps = maps_of(pins, store.capacity(), &tables, flows)?;
    Ok(Seen { services: rows(pins, &store, &tables)?, maps, tables })
}

fn maps_of(pins: &Pins, capacity: Capacity, tables: &Contents, flows: usize) -> Result<Vec<MapRow>, Error> {
    let slab = tables.lists.values().map(|list| list.words() as usize).sum();
    let flow_limit = MapInfo::from_pin(pins.map(maps::FLOWS)).map_or(0, |info| info.max_entries());
    Ok(vec![
        row(maps::FRONTENDS, tables.frontends.len(), capacity.frontends, limits::FRONTENDS),
        row(maps::BACKENDS, tables.backends.len(), capacity.backends, limits::BACKENDS),
        row(maps::SLAB, slab, capacity.slab, limits::SLAB),
        row(maps::NAMES, tables.names.len(), capacity.services, limits::SERVICES),
        row(maps::RANGES, tables.ranges.values().map(BTreeSet::len).sum(), capacity.ranges, limits::RANGES),
        row(maps::FLOWS, flows, flow_limit, crate::limits::flows(sys::memory())),
        row(maps::PODS, neighbours::count(pins)?, limits::POD_ADDRESSES, limits::POD_ADDRESSES),
    ])
}

/// Service ports in the order of their numbers.
fn rows(pins: &Pins, store: &Store, tables: &Contents) -> Result<Vec<ServiceRow>, Error> {
    let (services, backends) = store.counts()?;
    let pending = pending::read(pins)?;
    let mut rows: BTreeMap<(u32, u8), ServiceRow> = BTreeMap::new();
    let mut answering: BTreeMap<(u32, u8), BTreeSet<u32>> = BTreeMap::new();
    for (key, frontend) in &tables.frontends {
        let id = (frontend.service, key.protocol);
        let row = rows.entry(id).or_insert_with(|| {
            let counters = services.of(frontend.service);
            let (packets, bytes) = pending.services.get(&frontend.service).copied().unwrap_or_default();
            ServiceRow {
                id: frontend.service,
                service: tables.names.get(&frontend.service).map_or_else(|| "?".into(), ToString::to_string),
                protocol: protocol_name(key.protocol),
                frontends: Vec::new(),
                backends: Vec::new(),
                connections: counters.connections,
                packets: counters.packets + packets,
                bytes: counters.bytes + bytes,
                refused: counters.refused,
                tcp: None,
            }
        });
        let ranges = tables.ranges.get(&frontend.service).filter(|_| frontend.flags & Frontend::RANGES != 0);
        row.frontends.push(FrontendRow {
            address: (key.address != key.address.any()).then(|| unwire(key.address)),
            family: if key.address.is_v4() { "IPv4" } else { "IPv6" },
            port: u16::from_be(key.port),
            scope: if key.scope == Scope::External as u8 { "external" } else { "internal" },
            backends: frontend.count,
            draining: frontend.draining,
            table_slots: frontend.table,
            local_only: frontend.flags & Frontend::LOCAL_ONLY != 0,
            affinity_seconds: frontend.affinity,
            source_ranges: ranges.into_iter().flatten().map(ToString::to_string).collect(),
        });
        let list = tables.lists.get(&frontend.base).filter(|_| frontend.count > 0);
        let ids = list.iter().flat_map(|list| list.ids.iter().take(frontend.count as usize).copied());
        answering.entry(id).or_default().extend(ids);
    }
    for (id, row) in &mut rows {
        let ids = answering.get(id).into_iter().flatten();
        row.backends = ids.filter_map(|id| Some(backend(&backends, &pending, *id, tables.backends.get(id)?))).collect();
    }
    Ok(rows.into_values().collect())
}

fn backend(counts: &Counts, pending: &Pending, id: u32, backend: &Backend) -> BackendRow {
    let counters = counts.of(id);
    let (packets, bytes) = pending.backends.get(&id).copied().unwrap_or_default();
    BackendRow {
        id,
        address: unwire(backend.address),
        port: u16::from_be(backend.port),
        local: backend.flags & Backend::LOCAL != 0,
        connections: counters.connections,
        packets: counters.packets + packets,
        bytes: counters.bytes + bytes,
    }
}

/// The health of the data plane under a pin directory. Link names are those of the calling network namespace.
pub fn status(pin_dir: &Path) -> Result<Status, Error> {
    status_in(&Pins::new(pin_dir, SCHEMA))
}

fn status_in(pins: &Pins) -> Result<Status, Error> {
    let store = Store::open(pins, false)?;
    let tables = store.read()?;
    let mut problems = Vec::new();
    let programs = programs(pins, &mut problems)?;
    let flows = sweep::count(pins)?;
    let maps = maps_of(pins, store.capacity(), &tables, flows * 2)?;
    // A map below its bound grows by itself.
    for map in maps.iter().filter(|map| map.used * 10 > map.limit as usize * 9 && map.limit >= map.bound) {
        problems.push(format!(
            "the map {} is nearly full ({} of {}) and cannot grow further: what is served goes on, {}",
            map.name, map.used, map.limit, map.advice
        ));
    }
    problems.extend(datagrams::problem());
    problems.extend(pace::problems(pins, wire::indices(pins)?.into_iter())?);
    let (uplinks, paced) = (wire::rows(pins)?, pace::count(pins)?);
    Ok(Status { programs, uplinks, maps, paced, flows, refused: refused(pins)?, problems })
}

fn refused(pins: &Pins) -> Result<BTreeMap<&'static str, u64>, Error> {
    let counts: PerCpuArray<MapData, u64> = typed(pins, maps::REASONS)?;
    let mut refused = BTreeMap::new();
    for reason in Reason::ALL {
        let values = counts.get(&(*reason as u32), 0).map_err(|error| Error::ebpf("read the reasons", error))?;
        let total = values.iter().sum();
        if total > 0 {
            refused.insert(reason.text(), total);
        }
    }
    Ok(refused)
}

fn programs(pins: &Pins, problems: &mut Vec<String>) -> Result<Vec<ProgramRow>, Error> {
    let mut rows = Vec::new();
    let names = pins.link_names();
    let wanted = SOCKET_PROGRAMS.iter().map(|(name, _)| name).chain(GUARD_PROGRAMS.iter().map(|(name, _)| name));
    for missing in wanted.filter(|name| !names.iter().any(|known| known == *name)) {
        problems.push(format!("the program {missing} is not attached: restart the node daemon"));
    }
    let verified: BTreeMap<u32, u32> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| Some((program.id(), program.verified_instruction_count()?)))
        .collect();
    let mut cgroups: BTreeMap<u64, String> = BTreeMap::new();
    for name in names {
        let path = pins.link(&name);
        let link = sys::open_pinned(&path).map_err(|error| Error::system(format!("open {}", path.display()), error))?;
        let target =
            sys::link_target(link.as_fd()).map_err(|error| Error::system(format!("read {}", path.display()), error))?;
        let (program, attached) = match name.rsplit_once('-') {
            Some((program, _)) => (program.to_owned(), Link::name_of(target.link_index())),
            None => {
                let id = target.cgroup();
                (name.clone(), cgroups.entry(id).or_insert_with(|| cgroup_path(id)).clone())
            }
        };
        if target.link_index() == 0 {
            problems.push(format!("what {program} was attached to is gone ({name}): restart the node daemon"));
        }
        let verified_instructions = verified.get(&target.program).copied().unwrap_or(0);
        rows.push(ProgramRow { name: program, attached, id: target.program, verified_instructions });
    }
    filters(pins, &verified, &mut rows)?;
    Ok(rows)
}

/// The programs that links have as filters.
fn filters(pins: &Pins, verified: &BTreeMap<u32, u32>, rows: &mut Vec<ProgramRow>) -> Result<(), Error> {
    let pods = pins.filters().into_iter().flat_map(|index| POD_PROGRAMS.map(|(name, ..)| (name, index)));
    let uplinks = pins.uplink_filters().into_iter();
    let uplinks =
        uplinks.flat_map(|index| uplink_filters(pins, index).into_iter().map(move |(name, ..)| (name, index)));
    let pinned = pods.map(|(name, index)| (name, index, pins.filter(name, index)));
    for (name, index, path) in pinned.chain(uplinks.map(|(name, index)| (name, index, pins.uplink_filter(name, index))))
    {
        let failed = |error| Error::system(format!("read {}", path.display()), error);
        let id = sys::open_pinned(&path).and_then(|program| sys::program_id(program.as_fd())).map_err(failed)?;
        let verified_instructions = verified.get(&id).copied().unwrap_or(0);
        rows.push(ProgramRow { name: name.into(), attached: Link::name_of(index), id, verified_instructions });
    }
    Ok(())
}

fn cgroup_path(id: u64) -> String {
    let found = cgroup_root().ok().and_then(|root| find(&root, id, CGROUP_DEPTH));
    found.map_or_else(|| format!("cgroup {id}"), |path| path.display().to_string())
}

fn find(path: &Path, id: u64, depth: usize) -> Option<PathBuf> {
    if path.metadata().ok()?.ino() == id {
        return Some(path.to_path_buf());
    }
    if depth == 0 {
        return None;
    }
    let below =
        std::fs::read_dir(path).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| entry.path()).find_map(|path| find(&path, id, depth - 1))
}

impl Dataplane {
    /// The service table as the kernel holds it.
    pub fn services(&self) -> Result<Vec<ServiceRow>, Error> {
        services_in(&self.inner.pins)
    }

    /// The health of this data plane, with what the compiler could not place.
    pub fn status(&self) -> Result<Status, Error> {
        let mut status = status_in(&self.inner.pins)?;
        status.problems.extend(self.problems());
        Ok(status)
    }
}

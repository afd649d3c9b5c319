//! From the table that the kernel holds to the table it should hold: an ordered list of writes. Pure.
//!
//! Order: names, backends, lists into free slab runs, then one frontend write each that flips to the new list, then what
//! nobody needs any more. A reader sees the old or the new list of a frontend, never a mixture. Slots and runs that
//! became free rest for a while before they are used again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sluice_ebpf_common::{Backend, Frontend, FrontendKey};

use crate::compile::Desired;
use crate::limits::QUARANTINE;

/// Sizes of the kernel's maps.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Frontends.
    pub frontends: u32,
    /// Backend slots.
    pub backends: u32,
    /// Slab words.
    pub slab: u32,
    /// Service ids.
    pub services: u32,
}

/// The kernel's table, and what rests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Frontends as written.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Backend lists by their first word.
    pub lists: BTreeMap<u32, Arc<Vec<u32>>>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Service ports by id.
    pub names: BTreeMap<u32, Arc<str>>,
    /// Highest generation used.
    pub generation: u32,
    /// Backend ids and slab runs `(base, length)` that rest until the given time.
    resting_backends: BTreeMap<u32, Duration>,
    resting_runs: BTreeMap<u32, (u32, Duration)>,
    resting_names: BTreeMap<u32, Duration>,
}

/// One write to the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new service port; its counters start at zero.
    Name(u32, Arc<str>),
    /// A new backend; its counters start at zero.
    Backend(u32, Backend),
    /// A backend list.
    List(u32, Arc<Vec<u32>>),
    /// Flips a frontend to its list.
    Frontend(FrontendKey, Frontend),
    /// A frontend is gone.
    RemoveFrontend(FrontendKey),
    /// Nobody leads to this backend any more: its flows may go on, nothing new may start.
    RetireBackend(u32, Backend),
    /// A service port is gone.
    RemoveName(u32),
}

/// Writes, and what did not fit.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In order.
    pub writes: Vec<Write>,
    /// Sentences about what could not be placed.
    pub problems: Vec<String>,
}

/// Plans the way from `tables` to `desired` and leaves `tables` as they will be. `now` is any steady clock.
pub fn plan(tables: &mut Tables, desired: &Desired, capacity: Capacity, now: Duration) -> Plan {
    let mut planner = Planner::new(tables, capacity, now);
    planner.place(desired);
    planner.clean(desired);
    planner.plan
}

struct Planner<'a> {
    tables: &'a mut Tables,
    capacity: Capacity,
    now: Duration,
    plan: Plan,
    names: HashMap<Arc<str>, u32>,
    backends: HashMap<Backend, u32>,
    lists: HashMap<Arc<Vec<u32>>, u32>,
    next_backend: u32,
    next_name: u32,
}

impl<'a> Planner<'a> {
    fn new(tables: &'a mut Tables, capacity: Capacity, now: Duration) -> Self {
        tables.resting_backends.retain(|_, until| *until > now);
        tables.resting_runs.retain(|_, (_, until)| *until > now);
        tables.resting_names.retain(|_, until| *until > now);
        let names = tables.names.iter().map(|(id, name)| (name.clone(), *id)).collect();
        let backends = tables.backends.iter().map(|(id, backend)| (*backend, *id)).collect();
        let lists = tables.lists.iter().map(|(base, list)| (list.clone(), *base)).collect();
        Planner { tables, capacity, now, plan: Plan::default(), names, backends, lists, next_backend: 1, next_name: 1 }
    }

    fn place(&mut self, desired: &Desired) {
        let mut flips = Vec::new();
        let mut count = self.tables.frontends.len();
        for (key, wanted) in &desired.frontends {
            let old = self.tables.frontends.get(key).copied();
            if old.is_none() && count >= self.capacity.frontends as usize {
                self.problem(format!("{}: the frontend map is full ({})", wanted.service, self.capacity.frontends));
                continue;
            }
            let Some(service) = self.name(&wanted.service) else { continue };
            let Some(ids) = self.ids(&wanted.service, &wanted.backends) else { continue };
            let length = ids.len() as u32;
            let Some(base) = self.list(&wanted.service, ids) else { continue };
            let unchanged = |old: Frontend| {
                old.service == service && old.base == base && old.count == length && old.flags == wanted.flags
            };
            if old.is_some_and(unchanged) {
                continue;
            }
            count += usize::from(old.is_none());
            self.tables.generation = self.tables.generation.wrapping_add(1);
            let frontend = Frontend {
                generation: self.tables.generation,
                service,
                base,
                count: length,
                flags: wanted.flags,
                affinity: 0,
                reserved: [0; 2],
            };
            flips.push((*key, frontend));
        }
        for (key, frontend) in flips {
            self.tables.frontends.insert(key, frontend);
            self.plan.writes.push(Write::Frontend(key, frontend));
        }
    }

    fn clean(&mut self, desired: &Desired) {
        let until = self.now + QUARANTINE;
        let gone: Vec<_> =
            self.tables.frontends.keys().filter(|key| !desired.frontends.contains_key(key)).copied().collect();
        for key in gone {
            self.tables.frontends.remove(&key);
            self.plan.writes.push(Write::RemoveFrontend(key));
        }
        let bases: BTreeSet<u32> = self
            .tables
            .frontends
            .values()
            .filter(|frontend| frontend.count > 0)
            .map(|frontend| frontend.base)
            .collect();
        let resting_runs = &mut self.tables.resting_runs;
        self.tables.lists.retain(|base, list| {
            let kept = bases.contains(base);
            if !kept {
                resting_runs.insert(*base, (list.len() as u32, until));
            }
            kept
        });
        let listed: BTreeSet<u32> = self.tables.lists.values().flat_map(|list| list.iter().copied()).collect();
        let (resting_backends, writes) = (&mut self.tables.resting_backends, &mut self.plan.writes);
        self.tables.backends.retain(|id, backend| {
            let kept = listed.contains(id);
            if !kept {
                let retired = Backend { flags: backend.flags & !Backend::USED, ..*backend };
                writes.push(Write::RetireBackend(*id, retired));
                resting_backends.insert(*id, until);
            }
            kept
        });
        let named: BTreeSet<u32> = self.tables.frontends.values().map(|frontend| frontend.service).collect();
        let resting_names = &mut self.tables.resting_names;
        self.tables.names.retain(|id, _| {
            let kept = named.contains(id);
            if !kept {
                writes.push(Write::RemoveName(*id));
                resting_names.insert(*id, until);
            }
            kept
        });
    }

    fn name(&mut self, name: &Arc<str>) -> Option<u32> {
        if let Some(id) = self.names.get(name) {
            return Some(*id);
        }
        let tables = &self.tables;
        let free = (self.next_name..self.capacity.services)
            .find(|id| !tables.names.contains_key(id) && !tables.resting_names.contains_key(id));
        let Some(id) = free else {
            self.problem(format!("{name}: no service id is free ({})", self.capacity.services));
            return None;
        };
        self.next_name = id + 1;
        self.names.insert(name.clone(), id);
        self.tables.names.insert(id, name.clone());
        self.plan.writes.push(Write::Name(id, name.clone()));
        Some(id)
    }

    fn ids(&mut self, service: &str, wanted: &[Backend]) -> Option<Vec<u32>> {
        let mut ids = Vec::with_capacity(wanted.len());
        for backend in wanted {
            ids.push(self.backend(service, *backend)?);
        }
        Some(ids)
    }

    fn backend(&mut self, service: &str, backend: Backend) -> Option<u32> {
        if let Some(id) = self.backends.get(&backend) {
            return Some(*id);
        }
        let tables = &self.tables;
        let free = (self.next_backend..self.capacity.backends)
            .find(|id| !tables.backends.contains_key(id) && !tables.resting_backends.contains_key(id));
        let Some(id) = free else {
            self.problem(format!("{service}: no backend slot is free ({})", self.capacity.backends));
            return None;
        };
        self.next_backend = id + 1;
        self.backends.insert(backend, id);
        self.tables.backends.insert(id, backend);
        self.plan.writes.push(Write::Backend(id, backend));
        Some(id)
    }

    fn list(&mut self, service: &str, ids: Vec<u32>) -> Option<u32> {
        if ids.is_empty() {
            return Some(0);
        }
        let ids = Arc::new(ids);
        if let Some(base) = self.lists.get(&ids) {
            return Some(*base);
        }
        let Some(base) = self.free_run(ids.len() as u32) else {
            self.problem(format!(
                "{service}: the slab has no room for {} backends ({})",
                ids.len(),
                self.capacity.slab
            ));
            return None;
        };
        self.lists.insert(ids.clone(), base);
        self.tables.lists.insert(base, ids.clone());
        self.plan.writes.push(Write::List(base, ids));
        Some(base)
    }

    /// After the last run in use, else the first gap that is large enough.
    fn free_run(&self, length: u32) -> Option<u32> {
        let end = |last: Option<(u32, u32)>| last.map_or(0, |(base, length)| base + length);
        let used = end(self.tables.lists.last_key_value().map(|(base, list)| (*base, list.len() as u32)));
        let resting = end(self.tables.resting_runs.last_key_value().map(|(base, (length, _))| (*base, *length)));
        let top = used.max(resting);
        if length <= self.capacity.slab.saturating_sub(top) {
            return Some(top);
        }
        let mut runs: BTreeMap<u32, u32> =
            self.tables.lists.iter().map(|(base, list)| (*base, list.len() as u32)).collect();
        runs.extend(self.tables.resting_runs.iter().map(|(base, (length, _))| (*base, *length)));
        let mut at = 0;
        for (base, used) in runs {
            if base.saturating_sub(at) >= length {
                return Some(at);
            }
            at = at.max(base + used);
        }
        None
    }

    fn problem(&mut self, text: String) {
        self.plan.problems.push(text);
    }
}

impl Tables {
    /// Is anything resting, so that a plan that did not fit may fit later?
    pub(crate) fn rests(&self) -> bool {
        !(self.resting_backends.is_empty() && self.resting_runs.is_empty() && self.resting_names.is_empty())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

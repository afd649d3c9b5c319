//! From the table that the kernel holds to the table it should hold: an ordered list of writes for what changed. Pure.
//!
//! Order: names, backends, lists with their tables into free slab runs, source ranges, then one frontend write each that flips to the new
//! list, then what nobody needs any more. A reader sees the old or the new list of a frontend, never a mixture. Slots and
//! runs that became free rest for a while before they are used again. The cost is that of the changed frontends, whatever
//! the size of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_ebpf_common::{Backend, Frontend, FrontendKey};

use crate::Range;
use crate::compile::DesiredFrontend;
use crate::limits::QUARANTINE;
use crate::maglev;
use crate::pool::{Ids, Runs};
use crate::resize::presses;
use crate::wanted::{Changes, Wanted};

/// Sizes of the kernel's maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends.
    pub frontends: u32,
    /// Backend slots.
    pub backends: u32,
    /// Slab words.
    pub slab: u32,
    /// Service ids.
    pub services: u32,
    /// Source ranges.
    pub ranges: u32,
}

/// What the kernel's maps hold, as read from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Frontends as written.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Backend lists by their first word.
    pub lists: BTreeMap<u32, Arc<List>>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Service ports by id.
    pub names: BTreeMap<u32, Arc<str>>,
    /// Source ranges by service id.
    pub ranges: BTreeMap<u32, BTreeSet<Range>>,
    /// Highest generation used.
    pub generation: u32,
}

/// What stands in a run of slab words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct List {
    /// Backend ids: those that take connections, then those that only keep their flows.
    pub ids: Vec<u32>,
    /// The packed table behind them; empty without one.
    pub table: Vec<u32>,
}

impl List {
    /// Words of the run.
    pub fn words(&self) -> u32 {
        (self.ids.len() + self.table.len()) as u32
    }
}

/// One write to the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new service port; its counters start at zero.
    Name(u32, Arc<str>),
    /// A new backend; its counters start at zero.
    Backend(u32, Backend),
    /// A backend list.
    List(u32, Arc<List>),
    /// A source range of a service.
    Range(u32, Range),
    /// Flips a frontend to its list.
    Frontend(FrontendKey, Frontend),
    /// A frontend is gone.
    RemoveFrontend(FrontendKey),
    /// Nobody leads to this backend any more: its flows may go on, nothing new may start.
    RetireBackend(u32, Backend),
    /// A source range is gone.
    RemoveRange(u32, Range),
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

/// The kernel's table with what is needed to change it.
#[derive(Clone, Debug)]
pub struct Tables {
    capacity: Capacity,
    contents: Contents,
    /// Users of each list, backend and name.
    list_users: HashMap<u32, u32>,
    backend_users: HashMap<u32, u32>,
    name_users: HashMap<u32, u32>,
    by_list: HashMap<Arc<List>, u32>,
    by_backend: HashMap<Backend, u32>,
    by_name: HashMap<Arc<str>, u32>,
    ranges: u32,
    backend_ids: Ids,
    name_ids: Ids,
    runs: Runs,
    /// Names that an earlier process left without a frontend.
    orphans: Vec<u32>,
    /// What found no room, to be tried again.
    unplaced: BTreeMap<FrontendKey, DesiredFrontend>,
}

impl Tables {
    /// From what the kernel holds.
    pub fn new(contents: Contents, capacity: Capacity) -> Tables {
        let mut tables = Tables {
            capacity,
            list_users: HashMap::new(),
            backend_users: HashMap::new(),
            name_users: HashMap::new(),
            by_list: contents.lists.iter().map(|(base, list)| (list.clone(), *base)).collect(),
            by_backend: contents.backends.iter().map(|(id, backend)| (*backend, *id)).collect(),
            by_name: contents.names.iter().map(|(id, name)| (name.clone(), *id)).collect(),
            ranges: contents.ranges.values().map(|ranges| ranges.len() as u32).sum(),
            backend_ids: Ids::new(contents.backends.keys().copied()),
            name_ids: Ids::new(contents.names.keys().copied()),
            runs: Runs::new(capacity.slab, contents.lists.iter().map(|(base, list)| (*base, list.words()))),
            orphans: Vec::new(),
            unplaced: BTreeMap::new(),
            contents,
        };
        for frontend in tables.contents.frontends.values() {
            if frontend.count + frontend.draining > 0 {
                *tables.list_users.entry(frontend.base).or_default() += 1;
            }
            *tables.name_users.entry(frontend.service).or_default() += 1;
        }
        tables.orphans =
            tables.contents.names.keys().filter(|id| !tables.name_users.contains_key(id)).copied().collect();
        for id in tables.contents.lists.values().flat_map(|list| list.ids.iter()) {
            *tables.backend_users.entry(*id).or_default() += 1;
        }
        tables
    }

    /// What the kernel holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// What has to change for the kernel to hold exactly what is wanted, whatever it holds now.
    pub fn difference(&self, wanted: &Wanted) -> Changes {
        let mut changes: Changes = self.contents.frontends.keys().map(|key| (*key, None)).collect();
        changes.extend(wanted.all().frontends.into_iter().map(|(key, frontend)| (key, Some(frontend))));
        changes
    }

    /// What the maps have to hold while these changes are made: the old and the new, and what rests. Never too little; exact
    /// only where a map would come under pressure.
    pub(crate) fn need(&self, changes: &Changes) -> Capacity {
        let contents = &self.contents;
        let wanted = || changes.values().flatten();
        let fresh = |key: &&FrontendKey| !contents.frontends.contains_key(key);
        let placed = changes.iter().filter(|(_, wanted)| wanted.is_some()).map(|(key, _)| key);
        let names: HashSet<&str> =
            wanted().map(|wanted| &*wanted.service).filter(|name| !self.by_name.contains_key(*name)).collect();
        // Frontends of a service port share their lists.
        let pointers = |wanted: &DesiredFrontend| {
            (Arc::as_ptr(&wanted.backends), Arc::as_ptr(&wanted.draining), wanted.weights.as_ref().map(Arc::as_ptr))
        };
        let lists: HashMap<_, (&FrontendKey, &DesiredFrontend)> = changes
            .iter()
            .filter_map(|(key, wanted)| wanted.as_ref().map(|wanted| (pointers(wanted), (key, wanted))))
            .collect();
        let used: u32 = contents.lists.values().map(|list| list.words()).sum();
        let (backends, slab) =
            (contents.backends.len() as u32 + self.backend_ids.resting(), used + self.runs.resting());
        let most: u32 = lists.values().map(|(_, wanted)| words(wanted)).sum();
        let roomy = !presses(backends + most, self.capacity.backends) && !presses(slab + most, self.capacity.slab);
        let (more_backends, more_slab) = if roomy { (most, most) } else { self.exactly(lists.into_values()) };
        let ranges: u32 = wanted().map(|wanted| wanted.ranges.len() as u32).max().map_or(0, |_| {
            let distinct: HashMap<&str, u32> = wanted()
                .map(|wanted| (&*wanted.service, wanted.ranges.len() as u32))
                .filter(|(_, all)| *all > 0)
                .collect();
            distinct.values().sum()
        });
        Capacity {
            frontends: (contents.frontends.len() + placed.filter(fresh).count()) as u32,
            backends: backends + more_backends,
            slab: slab + more_slab,
            services: (contents.names.len() + names.len()) as u32 + self.name_ids.resting(),
            ranges: self.ranges + ranges,
        }
    }

    /// Backends and slab words that these frontends' lists need beside what is there.
    fn exactly<'a>(&self, lists: impl Iterator<Item = (&'a FrontendKey, &'a DesiredFrontend)>) -> (u32, u32) {
        let (mut fresh, mut slab) = (HashSet::<&Backend>::new(), 0);
        for (key, wanted) in lists {
            let all = || wanted.backends.iter().chain(wanted.draining.iter());
            let known: Option<Vec<u32>> = all().map(|backend| self.by_backend.get(backend).copied()).collect();
            let old = self.contents.frontends.get(key).and_then(|old| self.contents.lists.get(&old.base));
            let same = known.zip(old).is_some_and(|(mut ids, old)| {
                let (taking, draining) = ids.split_at_mut(wanted.backends.len());
                taking.sort_unstable();
                draining.sort_unstable();
                ids == old.ids
            });
            if !same {
                slab += words(wanted);
                fresh.extend(all().filter(|backend| !self.by_backend.contains_key(*backend)));
            }
        }
        (fresh.len() as u32, slab)
    }

    /// The maps have other sizes now, and hold what they held.
    pub(crate) fn resize(&mut self, capacity: Capacity) {
        self.runs.grow(self.capacity.slab, capacity.slab);
        self.capacity = capacity;
    }

    /// Plans the changes and leaves the tables as they will be. `now` is any steady clock.
    pub fn plan(&mut self, changes: &Changes, now: Duration) -> Plan {
        self.backend_ids.wake(now);
        self.name_ids.wake(now);
        self.runs.wake(now);
        let mut changes = changes.clone();
        for (key, frontend) in std::mem::take(&mut self.unplaced) {
            changes.entry(key).or_insert(Some(frontend));
        }
        let mut step = Step {
            tables: self,
            until: now + QUARANTINE,
            before: Vec::new(),
            flips: Vec::new(),
            problems: Vec::new(),
            planned: HashMap::new(),
        };
        let mut released = Vec::new();
        // What goes frees its entry before the new ones are counted.
        for key in changes.iter().filter(|(_, wanted)| wanted.is_none()).map(|(key, _)| key) {
            if let Some(old) = step.tables.contents.frontends.remove(key) {
                released.push(old);
                step.flips.push(Write::RemoveFrontend(*key));
            }
        }
        for (key, wanted) in changes {
            let Some(wanted) = wanted else { continue };
            match step.place(&key, &wanted) {
                Placed::Same => {}
                Placed::New(old) => released.extend(old),
                Placed::Full => drop(step.tables.unplaced.insert(key, wanted)),
            }
        }
        let mut after = Vec::new();
        for old in released {
            step.release(old, &mut after);
        }
        for id in std::mem::take(&mut step.tables.orphans) {
            if !step.tables.name_users.contains_key(&id) {
                step.remove_name(id, &mut after);
            }
        }
        let Step { before, flips, problems, .. } = step;
        let mut writes = before;
        writes.sort_by_key(|write| match write {
            Write::Name(..) => 0,
            Write::Backend(..) => 1,
            Write::List(..) => 2,
            _ => 3,
        });
        // New frontends before the removal of old ones: a moved address is never without one.
        let (removed, placed): (Vec<_>, Vec<_>) =
            flips.into_iter().partition(|write| matches!(write, Write::RemoveFrontend(_)));
        writes.extend(placed);
        writes.extend(removed);
        writes.extend(after);
        Plan { writes, problems }
    }

    /// May what found no room find some when what rests now has rested?
    pub(crate) fn may_fit_later(&self) -> bool {
        !self.unplaced.is_empty() && (self.backend_ids.rests() || self.name_ids.rests() || self.runs.rests())
    }
}

/// Slab words of a frontend's list.
fn words(wanted: &DesiredFrontend) -> u32 {
    let taking = wanted.backends.len();
    let table = wanted.weights.as_ref().map_or(0, |_| maglev::words(maglev::slots(taking)));
    (taking + wanted.draining.len()) as u32 + table
}

enum Placed {
    Same,
    New(Option<Frontend>),
    Full,
}

struct Step<'a> {
    tables: &'a mut Tables,
    until: Duration,
    before: Vec<Write>,
    flips: Vec<Write>,
    problems: Vec<String>,
    /// Tables computed in this step, by their backends and weights: the addresses of a service port share one.
    planned: HashMap<Weighed, Vec<u32>>,
}

/// Backend ids and their weights.
type Weighed = (Vec<u32>, Arc<Vec<u16>>);

impl Step<'_> {
    fn place(&mut self, key: &FrontendKey, wanted: &DesiredFrontend) -> Placed {
        let old = self.tables.contents.frontends.get(key).copied();
        let limit = self.tables.capacity.frontends;
        if old.is_none() && self.tables.contents.frontends.len() >= limit as usize {
            self.problems.push(format!("{}: the frontend map is full ({limit})", wanted.service));
            return Placed::Full;
        }
        let Some(service) = self.name(&wanted.service) else { return Placed::Full };
        if wanted.flags & Frontend::RANGES != 0 && !self.ranges(service, wanted) {
            self.unused_name(service);
            return Placed::Full;
        }
        let Some((base, table)) = self.list(wanted) else {
            self.unused_name(service);
            return Placed::Full;
        };
        let (count, draining) = (wanted.backends.len() as u32, wanted.draining.len() as u32);
        let same = |old: Frontend| {
            (old.service, old.base, old.count, old.draining, old.table) == (service, base, count, draining, table)
                && (old.flags, old.affinity) == (wanted.flags, wanted.affinity)
        };
        if old.is_some_and(same) {
            return Placed::Same;
        }
        let tables = &mut *self.tables;
        *tables.name_users.entry(service).or_default() += 1;
        if count + draining > 0 {
            *tables.list_users.entry(base).or_default() += 1;
        }
        tables.contents.generation = tables.contents.generation.wrapping_add(1);
        let (generation, flags, affinity) = (tables.contents.generation, wanted.flags, wanted.affinity);
        let frontend = Frontend { generation, service, base, count, flags, affinity, draining, table };
        tables.contents.frontends.insert(*key, frontend);
        self.flips.push(Write::Frontend(*key, frontend));
        Placed::New(old)
    }

    fn name(&mut self, name: &Arc<str>) -> Option<u32> {
        if let Some(id) = self.tables.by_name.get(name) {
            return Some(*id);
        }
        let limit = self.tables.capacity.services;
        let Some(id) = self.tables.name_ids.take(limit) else {
            self.problems.push(format!("{name}: no service id is free ({limit})"));
            return None;
        };
        self.tables.by_name.insert(name.clone(), id);
        self.tables.contents.names.insert(id, name.clone());
        self.before.push(Write::Name(id, name.clone()));
        Some(id)
    }

    /// Takes back a name that was made for a frontend that found no room.
    fn unused_name(&mut self, id: u32) {
        if !self.tables.name_users.contains_key(&id) {
            self.before.retain(|write| !matches!(write, Write::Name(made, _) | Write::Range(made, _) if *made == id));
            self.forget_name(id);
            self.tables.name_ids.untake(id);
        }
    }

    /// Forgets a name, and returns its source ranges.
    fn forget_name(&mut self, id: u32) -> BTreeSet<Range> {
        if let Some(name) = self.tables.contents.names.remove(&id) {
            self.tables.by_name.remove(&name);
        }
        let ranges = self.tables.contents.ranges.remove(&id).unwrap_or_default();
        self.tables.ranges -= ranges.len() as u32;
        ranges
    }

    /// A name that nobody uses any more.
    fn remove_name(&mut self, id: u32, after: &mut Vec<Write>) {
        let ranges = self.forget_name(id);
        self.tables.name_ids.give_back(id, self.until);
        after.extend(ranges.into_iter().map(|range| Write::RemoveRange(id, range)));
        after.push(Write::RemoveName(id));
    }

    /// The first word of the list of a frontend's backends, in the order of their ids, and the slots of the table behind it.
    fn list(&mut self, wanted: &DesiredFrontend) -> Option<(u32, u32)> {
        let backends = || wanted.backends.iter().chain(wanted.draining.iter());
        if backends().next().is_none() {
            return Some((0, 0));
        }
        let mut ids = Vec::with_capacity(wanted.backends.len() + wanted.draining.len());
        let mut made = Vec::new();
        for backend in backends() {
            let Some((id, new)) = self.backend(&wanted.service, *backend) else {
                self.unused_backends(&made);
                return None;
            };
            ids.push(id);
            made.extend(new.then_some(id));
        }
        let (taking, draining) = ids.split_at_mut(wanted.backends.len());
        let (table, slots) = match &wanted.weights {
            Some(weights) => (self.table(&wanted.backends, taking, weights), maglev::slots(taking.len())),
            None => (Vec::new(), 0),
        };
        taking.sort_unstable();
        draining.sort_unstable();
        let without = (slots > 0).then(|| ids.clone());
        let placed = self.run(List { ids, table }).map(|base| (base, slots)).or_else(|| {
            let base = self.run(List { ids: without?, table: Vec::new() })?;
            self.problems.push(format!(
                "{}: the slab has no room for a table of {slots} slots; connections that change nodes may change backends",
                wanted.service
            ));
            Some((base, 0))
        });
        if placed.is_none() {
            let (size, count) = (self.tables.capacity.slab, backends().count());
            self.problems.push(format!("{}: the slab has no room for {count} backends ({size})", wanted.service));
            self.unused_backends(&made);
        }
        placed
    }

    /// The packed table of these backends, whose ids are in the same order.
    fn table(&mut self, backends: &[Backend], ids: &[u32], weights: &Arc<Vec<u16>>) -> Vec<u32> {
        let made = self.planned.entry((ids.to_vec(), weights.clone()));
        made.or_insert_with(|| maglev::packed(backends, ids, weights)).clone()
    }

    /// The first word of a list that is there, or is written now; `None` without room.
    fn run(&mut self, list: List) -> Option<u32> {
        if let Some(base) = self.tables.by_list.get(&list) {
            return Some(*base);
        }
        let base = self.tables.runs.take(list.words())?;
        for id in &list.ids {
            *self.tables.backend_users.entry(*id).or_default() += 1;
        }
        let list = Arc::new(list);
        self.tables.by_list.insert(list.clone(), base);
        self.tables.contents.lists.insert(base, list.clone());
        self.before.push(Write::List(base, list));
        Some(base)
    }

    /// The id of a backend, and whether it is a new one.
    fn backend(&mut self, service: &str, backend: Backend) -> Option<(u32, bool)> {
        if let Some(id) = self.tables.by_backend.get(&backend) {
            return Some((*id, false));
        }
        let limit = self.tables.capacity.backends;
        let Some(id) = self.tables.backend_ids.take(limit) else {
            self.problems.push(format!("{service}: no backend slot is free ({limit})"));
            return None;
        };
        self.tables.by_backend.insert(backend, id);
        self.tables.contents.backends.insert(id, backend);
        self.before.push(Write::Backend(id, backend));
        Some((id, true))
    }

    /// Takes back backends that were made for a list that found no room.
    fn unused_backends(&mut self, ids: &[u32]) {
        for id in ids {
            self.before.retain(|write| !matches!(write, Write::Backend(made, _) if made == id));
            if let Some(backend) = self.tables.contents.backends.remove(id) {
                self.tables.by_backend.remove(&backend);
            }
            self.tables.backend_ids.untake(*id);
        }
    }

    /// Brings the source ranges of a service in line. New ones come before the flips; old ones may go at once, too, as the
    /// service says so.
    fn ranges(&mut self, service: u32, wanted: &DesiredFrontend) -> bool {
        let old = self.tables.contents.ranges.get(&service).cloned().unwrap_or_default();
        let (added, gone) =
            (wanted.ranges.difference(&old).count() as u32, old.difference(&wanted.ranges).count() as u32);
        let limit = self.tables.capacity.ranges;
        if self.tables.ranges - gone + added > limit {
            self.problems.push(format!("{}: the map of source ranges is full ({limit})", wanted.service));
            return false;
        }
        self.tables.ranges = self.tables.ranges - gone + added;
        self.before.extend(wanted.ranges.difference(&old).map(|range| Write::Range(service, *range)));
        self.before.extend(old.difference(&wanted.ranges).map(|range| Write::RemoveRange(service, *range)));
        self.tables.contents.ranges.insert(service, (*wanted.ranges).clone());
        true
    }

    /// A frontend's old state is needed by nobody.
    fn release(&mut self, old: Frontend, after: &mut Vec<Write>) {
        if old.count + old.draining > 0
            && less(&mut self.tables.list_users, old.base)
            && let Some(list) = self.tables.contents.lists.remove(&old.base)
        {
            self.tables.by_list.remove(&list);
            self.tables.runs.give_back(old.base, list.words(), self.until);
            for id in &list.ids {
                if less(&mut self.tables.backend_users, *id)
                    && let Some(backend) = self.tables.contents.backends.remove(id)
                {
                    self.tables.by_backend.remove(&backend);
                    self.tables.backend_ids.give_back(*id, self.until);
                    after.push(Write::RetireBackend(*id, Backend { flags: backend.flags & !Backend::USED, ..backend }));
                }
            }
        }
        if less(&mut self.tables.name_users, old.service) {
            self.remove_name(old.service, after);
        }
    }
}

/// One user less; true if it was the last one.
fn less(users: &mut HashMap<u32, u32>, id: u32) -> bool {
    match users.get_mut(&id) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        _ => users.remove(&id).is_some(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

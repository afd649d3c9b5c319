//! From the table that the kernel holds to the table it should hold: an ordered list of writes for what changed. Pure.
//!
//! Order: names, backends, lists with their tables into free slab runs, source ranges, then one frontend write each that flips to the new
//! list, then what nobody needs any more. A reader sees the old or the new list of a frontend, never a mixture. Slots and
//! runs that became free rest for a while before they are used again. The cost is that of the changed frontends, whatever
//! the size of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use sluice_ebpf_common::{Backend, Frontend, FrontendKey};

use crate::Range;
use crate::compile::DesiredFrontend;
use crate::held::{Held, Lists};
use crate::limits::{QUARANTINE, RETRIES};
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
    pub ids: Box<[u32]>,
    /// The packed table behind them; empty without one.
    pub table: Box<[u32]>,
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
    frontends: hashbrown::HashMap<FrontendKey, Frontend>,
    backends: Held<Backend>,
    names: Held<Arc<str>>,
    lists: Lists,
    ranges: BTreeMap<u32, BTreeSet<Range>>,
    range_count: u32,
    generation: u32,
    backend_ids: Ids,
    name_ids: Ids,
    runs: Runs,
    /// Names that an earlier process left without a frontend.
    orphans: Vec<u32>,
    /// What found no room, to be tried again.
    unplaced: BTreeMap<FrontendKey, Unplaced>,
    /// How many of them have not been tried since something became free, and the last one that was.
    untried: (usize, Option<FrontendKey>),
}

impl Tables {
    /// From what the kernel holds.
    pub fn new(contents: Contents, capacity: Capacity) -> Tables {
        let mut tables = Tables {
            capacity,
            range_count: contents.ranges.values().map(|ranges| ranges.len() as u32).sum(),
            backend_ids: Ids::new(contents.backends.keys().copied()),
            name_ids: Ids::new(contents.names.keys().copied()),
            runs: Runs::new(capacity.slab, contents.lists.iter().map(|(base, list)| (*base, list.words()))),
            frontends: contents.frontends.into_iter().collect(),
            backends: Held::new(contents.backends),
            names: Held::new(contents.names),
            lists: Lists::default(),
            ranges: contents.ranges,
            generation: contents.generation,
            orphans: Vec::new(),
            unplaced: BTreeMap::new(),
            untried: (0, None),
        };
        for (base, list) in contents.lists {
            list.ids.iter().for_each(|id| tables.backends.add_user(*id));
            tables.lists.insert(base, list);
        }
        for frontend in tables.frontends.values() {
            if frontend.count + frontend.draining > 0 {
                tables.lists.add_user(frontend.base);
            }
            tables.names.add_user(frontend.service);
        }
        tables.orphans = tables.names.iter().map(|(id, _)| id).filter(|id| !tables.names.is_used(*id)).collect();
        tables
    }

    /// What the kernel holds.
    pub fn contents(&self) -> Contents {
        Contents {
            frontends: self.frontends().collect(),
            lists: self.lists().map(|(base, list)| (base, list.clone())).collect(),
            backends: self.backends().collect(),
            names: self.names().map(|(id, name)| (id, name.clone())).collect(),
            ranges: self.ranges.clone(),
            generation: self.generation,
        }
    }

    pub(crate) fn frontends(&self) -> impl Iterator<Item = (FrontendKey, Frontend)> {
        self.frontends.iter().map(|(key, frontend)| (*key, *frontend))
    }

    pub(crate) fn backends(&self) -> impl Iterator<Item = (u32, Backend)> {
        self.backends.iter().map(|(id, backend)| (id, *backend))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.names.iter()
    }

    /// Lists by their first word.
    pub(crate) fn lists(&self) -> impl Iterator<Item = (u32, &Arc<List>)> {
        self.lists.iter()
    }

    /// What has to change for the kernel to hold exactly what is wanted, whatever it holds now.
    pub fn difference(&self, wanted: &Wanted) -> Changes {
        let mut changes: Changes = self.frontends.keys().map(|key| (*key, None)).collect();
        changes.extend(wanted.all().frontends.into_iter().map(|(key, frontend)| (key, Some(frontend))));
        changes
    }

    /// What the maps have to hold while these changes are made: the old and the new, and what rests. Never too little; exact
    /// only where a map would come under pressure.
    pub(crate) fn need(&self, changes: &Changes) -> Capacity {
        let wanted = || changes.values().flatten();
        let fresh = |key: &&FrontendKey| !self.frontends.contains_key(*key);
        let placed = changes.iter().filter(|(_, wanted)| wanted.is_some()).map(|(key, _)| key);
        let names: HashSet<&str> =
            wanted().map(|wanted| &*wanted.service).filter(|name| self.names.find(*name).is_none()).collect();
        // Frontends of a service port share their lists.
        let pointers = |wanted: &DesiredFrontend| {
            (Arc::as_ptr(&wanted.backends), Arc::as_ptr(&wanted.draining), wanted.weights.as_ref().map(Arc::as_ptr))
        };
        let lists: HashMap<_, (&FrontendKey, &DesiredFrontend)> = changes
            .iter()
            .filter_map(|(key, wanted)| wanted.as_ref().map(|wanted| (pointers(wanted), (key, wanted))))
            .collect();
        let (backends, slab) = (self.backends.len() + self.backend_ids.resting(), self.runs.taken());
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
            frontends: (self.frontends.len() + placed.filter(fresh).count()) as u32,
            backends: backends + more_backends,
            slab: slab + more_slab,
            services: self.names.len() + names.len() as u32 + self.name_ids.resting(),
            ranges: self.range_count + ranges,
        }
    }

    /// Backends and slab words that these frontends' lists need beside what is there.
    fn exactly<'a>(&self, lists: impl Iterator<Item = (&'a FrontendKey, &'a DesiredFrontend)>) -> (u32, u32) {
        let (mut fresh, mut slab) = (HashSet::<&Backend>::new(), 0);
        for (key, wanted) in lists {
            let all = || wanted.backends.iter().chain(wanted.draining.iter());
            let known: Option<Vec<u32>> = all().map(|backend| self.backends.find(backend)).collect();
            let old = self.frontends.get(key).and_then(|old| self.lists.get(old.base));
            let same = known.zip(old).is_some_and(|(mut ids, old)| {
                let (taking, draining) = ids.split_at_mut(wanted.backends.len());
                taking.sort_unstable();
                draining.sort_unstable();
                *ids == *old.ids
            });
            if !same {
                slab += words(wanted);
                fresh.extend(all().filter(|backend| self.backends.find(*backend).is_none()));
            }
        }
        (fresh.len() as u32, slab)
    }

    /// The maps have other sizes now, and hold what they held.
    pub(crate) fn resize(&mut self, capacity: Capacity) {
        self.runs.grow(self.capacity.slab, capacity.slab);
        self.capacity = capacity;
        self.untried.0 = self.unplaced.len();
    }

    /// Plans the changes and leaves the tables as they will be. `now` is any steady clock.
    pub fn plan(&mut self, changes: &Changes, now: Duration) -> Plan {
        let woken = [self.backend_ids.wake(now), self.name_ids.wake(now), self.runs.wake(now)];
        changes.keys().for_each(|key| drop(self.unplaced.remove(key)));
        // Where nothing became free there is no room for what waits either.
        if woken.contains(&true) || changes.values().any(Option::is_none) {
            self.untried.0 = self.unplaced.len();
        }
        let waiting = self.waiting();
        let mut step = Step {
            tables: self,
            until: now + QUARANTINE,
            names: Vec::new(),
            backends: Vec::new(),
            lists: Vec::new(),
            ranges: Vec::new(),
            placed: Vec::new(),
            removed: Vec::new(),
            problems: Vec::new(),
            planned: HashMap::new(),
        };
        let mut released = Vec::new();
        // What goes frees its entry before the new ones are counted.
        for key in changes.iter().filter(|(_, wanted)| wanted.is_none()).map(|(key, _)| key) {
            if let Some(old) = step.tables.frontends.remove(key) {
                released.push(old);
                step.removed.push(Write::RemoveFrontend(*key));
            }
        }
        for (key, wanted) in changes.iter().filter_map(|(key, wanted)| Some((key, wanted.as_ref()?))) {
            match step.place(key, wanted) {
                Ok(old) => released.extend(old),
                Err(problem) => {
                    step.problems.push(problem.clone());
                    step.tables.unplaced.insert(*key, Unplaced { wanted: wanted.clone(), problem });
                }
            }
        }
        for (key, again) in waiting {
            match step.place(&key, &again.wanted) {
                Ok(old) => released.extend(old),
                Err(problem) => drop(step.tables.unplaced.insert(key, Unplaced { problem, ..again })),
            }
        }
        let mut after = Vec::new();
        for old in released {
            step.release(old, &mut after);
        }
        for id in std::mem::take(&mut step.tables.orphans) {
            if !step.tables.names.is_used(id) {
                step.remove_name(id, &mut after);
            }
        }
        let Step { mut names, backends, lists, ranges, placed, removed, problems, .. } = step;
        // New frontends before the removal of old ones: a moved address is never without one.
        [backends, lists, ranges, placed, removed, after].into_iter().for_each(|part| names.extend(part));
        Plan { writes: names, problems }
    }

    /// Some of what found no room, in turn: as many as a pass has time for.
    fn waiting(&mut self) -> Vec<(FrontendKey, Unplaced)> {
        let (untried, last) = self.untried;
        let untried = untried.min(self.unplaced.len());
        let from = self.unplaced.range((last.map_or(Unbounded, Excluded), Unbounded));
        let to = self.unplaced.range((Unbounded, last.map_or(Unbounded, Included)));
        let keys: Vec<FrontendKey> = from.chain(to).map(|(key, _)| *key).take(untried.min(RETRIES)).collect();
        self.untried = (untried - keys.len(), keys.last().copied().or(last));
        keys.into_iter().filter_map(|key| self.unplaced.remove_entry(&key)).collect()
    }

    /// May what found no room find some when what rests now has rested?
    pub(crate) fn may_fit_later(&self) -> bool {
        let rests = self.backend_ids.rests() || self.name_ids.rests() || self.runs.rests();
        !self.unplaced.is_empty() && (self.untried.0 > 0 || rests)
    }

    /// Sentences about what found no room so far.
    pub(crate) fn unplaced(&self) -> impl Iterator<Item = &str> {
        self.unplaced.values().map(|unplaced| unplaced.problem.as_str())
    }
}

/// Slab words of a frontend's list.
fn words(wanted: &DesiredFrontend) -> u32 {
    let taking = wanted.backends.len();
    let table = wanted.weights.as_ref().map_or(0, |_| maglev::words(maglev::slots(taking)));
    (taking + wanted.draining.len()) as u32 + table
}

/// What found no room, and a sentence about that.
#[derive(Clone, Debug)]
struct Unplaced {
    wanted: DesiredFrontend,
    problem: String,
}

struct Step<'a> {
    tables: &'a mut Tables,
    until: Duration,
    names: Vec<Write>,
    backends: Vec<Write>,
    lists: Vec<Write>,
    ranges: Vec<Write>,
    placed: Vec<Write>,
    removed: Vec<Write>,
    problems: Vec<String>,
    /// Tables computed in this step, by their backends and weights: the addresses of a service port share one.
    planned: HashMap<Weighed, Box<[u32]>>,
}

/// Backend ids and their weights.
type Weighed = (Box<[u32]>, Arc<[u16]>);

impl Step<'_> {
    /// Returns what the frontend was if that is needed no more, or a sentence about why there is no room.
    fn place(&mut self, key: &FrontendKey, wanted: &DesiredFrontend) -> Result<Option<Frontend>, String> {
        let old = self.tables.frontends.get(key).copied();
        let limit = self.tables.capacity.frontends;
        if old.is_none() && self.tables.frontends.len() >= limit as usize {
            return Err(format!("{}: the frontend map is full ({limit})", wanted.service));
        }
        let ranges = self.ranges.len();
        let (service, made) = self.name(&wanted.service)?;
        let list = self.ranges(service, wanted).and_then(|()| self.list(wanted));
        let (base, table) = list.inspect_err(|_| {
            if made {
                // A name that was made for a frontend that found no room.
                self.names.pop();
                self.ranges.truncate(ranges);
                self.forget_name(service);
                self.tables.name_ids.untake(service);
            }
        })?;
        let (count, draining) = (wanted.backends.len() as u32, wanted.draining.len() as u32);
        let same = |old: Frontend| {
            (old.service, old.base, old.count, old.draining, old.table) == (service, base, count, draining, table)
                && (old.flags, old.affinity) == (wanted.flags, wanted.affinity)
        };
        if old.is_some_and(same) {
            return Ok(None);
        }
        let tables = &mut *self.tables;
        tables.names.add_user(service);
        if count + draining > 0 {
            tables.lists.add_user(base);
        }
        tables.generation = tables.generation.wrapping_add(1);
        let (generation, flags, affinity) = (tables.generation, wanted.flags, wanted.affinity);
        let frontend = Frontend { generation, service, base, count, flags, affinity, draining, table };
        tables.frontends.insert(*key, frontend);
        self.placed.push(Write::Frontend(*key, frontend));
        Ok(old)
    }

    /// The id of a name, and whether it is a new one.
    fn name(&mut self, name: &Arc<str>) -> Result<(u32, bool), String> {
        if let Some(id) = self.tables.names.find(name) {
            return Ok((id, false));
        }
        let limit = self.tables.capacity.services;
        let no_room = || format!("{name}: no service id is free ({limit})");
        let id = self.tables.name_ids.take(limit).ok_or_else(no_room)?;
        self.tables.names.insert(id, name.clone());
        self.names.push(Write::Name(id, name.clone()));
        Ok((id, true))
    }

    /// Forgets a name, and returns its source ranges.
    fn forget_name(&mut self, id: u32) -> BTreeSet<Range> {
        self.tables.names.remove(id);
        let ranges = self.tables.ranges.remove(&id).unwrap_or_default();
        self.tables.range_count -= ranges.len() as u32;
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
    fn list(&mut self, wanted: &DesiredFrontend) -> Result<(u32, u32), String> {
        let backends = || wanted.backends.iter().chain(wanted.draining.iter());
        if backends().next().is_none() {
            return Ok((0, 0));
        }
        let mut ids = Vec::with_capacity(wanted.backends.len() + wanted.draining.len());
        let before = self.backends.len();
        for backend in backends() {
            let id = self.backend(&wanted.service, *backend).inspect_err(|_| self.unused_backends(before))?;
            ids.push(id);
        }
        let (taking, draining) = ids.split_at_mut(wanted.backends.len());
        let (table, slots) = match &wanted.weights {
            Some(weights) => (self.table(&wanted.backends, taking, weights), maglev::slots(taking.len())),
            None => (Box::default(), 0),
        };
        taking.sort_unstable();
        draining.sort_unstable();
        let ids: Box<[u32]> = ids.into();
        let without = (slots > 0).then(|| ids.clone());
        let placed = self.run(List { ids, table }).map(|base| (base, slots)).or_else(|| {
            let base = self.run(List { ids: without?, table: Box::default() })?;
            self.problems.push(format!(
                "{}: the slab has no room for a table of {slots} slots; connections that change nodes may change backends",
                wanted.service
            ));
            Some((base, 0))
        });
        placed.ok_or_else(|| {
            self.unused_backends(before);
            let (size, count) = (self.tables.capacity.slab, backends().count());
            format!("{}: the slab has no room for {count} backends ({size})", wanted.service)
        })
    }

    /// The packed table of these backends, whose ids are in the same order.
    fn table(&mut self, backends: &[Backend], ids: &[u32], weights: &Arc<[u16]>) -> Box<[u32]> {
        let made = self.planned.entry((ids.into(), weights.clone()));
        made.or_insert_with(|| maglev::packed(backends, ids, weights).into()).clone()
    }

    /// The first word of a list that is there, or is written now; `None` without room.
    fn run(&mut self, list: List) -> Option<u32> {
        if let Some(base) = self.tables.lists.find(&list) {
            return Some(base);
        }
        let base = self.tables.runs.take(list.words())?;
        for id in &list.ids {
            self.tables.backends.add_user(*id);
        }
        let list = Arc::new(list);
        self.tables.lists.insert(base, list.clone());
        self.lists.push(Write::List(base, list));
        Some(base)
    }

    /// The id of a backend.
    fn backend(&mut self, service: &str, backend: Backend) -> Result<u32, String> {
        if let Some(id) = self.tables.backends.find(&backend) {
            return Ok(id);
        }
        let limit = self.tables.capacity.backends;
        let no_room = || format!("{service}: no backend slot is free ({limit})");
        let id = self.tables.backend_ids.take(limit).ok_or_else(no_room)?;
        self.tables.backends.insert(id, backend);
        self.backends.push(Write::Backend(id, backend));
        Ok(id)
    }

    /// Takes back backends that were made for a list that found no room: all after the first `kept` of this step.
    fn unused_backends(&mut self, kept: usize) {
        for write in self.backends.drain(kept..) {
            if let Write::Backend(id, _) = write {
                self.tables.backends.remove(id);
                self.tables.backend_ids.untake(id);
            }
        }
    }

    /// Brings the source ranges of a service in line. New ones come before the flips; old ones may go at once, too, as the
    /// service says so.
    fn ranges(&mut self, service: u32, wanted: &DesiredFrontend) -> Result<(), String> {
        if wanted.flags & Frontend::RANGES == 0 {
            return Ok(());
        }
        let old = self.tables.ranges.get(&service).cloned().unwrap_or_default();
        let (added, gone) =
            (wanted.ranges.difference(&old).count() as u32, old.difference(&wanted.ranges).count() as u32);
        let limit = self.tables.capacity.ranges;
        if self.tables.range_count - gone + added > limit {
            return Err(format!("{}: the map of source ranges is full ({limit})", wanted.service));
        }
        self.tables.range_count = self.tables.range_count - gone + added;
        self.ranges.extend(wanted.ranges.difference(&old).map(|range| Write::Range(service, *range)));
        self.ranges.extend(old.difference(&wanted.ranges).map(|range| Write::RemoveRange(service, *range)));
        self.tables.ranges.insert(service, (*wanted.ranges).clone());
        Ok(())
    }

    /// A frontend's old state is needed by nobody.
    fn release(&mut self, old: Frontend, after: &mut Vec<Write>) {
        if old.count + old.draining > 0
            && let Some(list) = self.tables.lists.drop_user(old.base)
        {
            self.tables.runs.give_back(old.base, list.words(), self.until);
            for id in &list.ids {
                if self.tables.backends.drop_user(*id)
                    && let Some(backend) = self.tables.backends.remove(*id)
                {
                    self.tables.backend_ids.give_back(*id, self.until);
                    after.push(Write::RetireBackend(*id, Backend { flags: backend.flags & !Backend::USED, ..backend }));
                }
            }
        }
        if self.tables.names.drop_user(old.service) {
            self.remove_name(old.service, after);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

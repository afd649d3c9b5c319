#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sluice_ebpf_common::Address;

use super::*;
use crate::compile::{Desired, Frontends, Owner};

const CAPACITY: Capacity = Capacity { frontends: 8, backends: 16, slab: 24, services: 8, ranges: 8 };
/// Room for all that the random tables want: of their four frontends each may change its owner in one step, and both owners'
/// names have ids then.
const ROOMY: Capacity = Capacity { slab: 8_192, services: 16, ..CAPACITY };

/// The kernel's maps, fed by writes, and what a reader would see.
#[derive(Default)]
struct Kernel {
    contents: Contents,
    slab: BTreeMap<u32, u32>,
    /// Retired ones, too.
    backends: BTreeMap<u32, Backend>,
}

/// What a frontend leads to: service, backends, source ranges.
type Seen = (Arc<str>, BTreeSet<(u32, u16)>, BTreeSet<Range>);

impl Kernel {
    fn apply(&mut self, write: &Write) {
        let contents = &mut self.contents;
        match write {
            Write::Name(id, name) => drop(contents.names.insert(*id, name.clone())),
            Write::Backend(id, backend) | Write::RetireBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Write::List(base, list) => {
                self.slab.extend(list.ids.iter().chain(&list.table).zip(*base..).map(|(word, at)| (at, *word)));
            }
            Write::Range(id, range) => assert!(contents.ranges.entry(*id).or_default().insert(*range)),
            Write::Frontend(key, frontend) => drop(contents.frontends.insert(*key, *frontend)),
            Write::RemoveFrontend(key) => assert!(contents.frontends.remove(key).is_some()),
            Write::RemoveRange(id, range) => assert!(contents.ranges.entry(*id).or_default().remove(range)),
            Write::RemoveName(id) => assert!(contents.names.remove(id).is_some()),
        }
    }

    fn resolve(&self, frontend: &Frontend) -> Seen {
        let ids = (frontend.base..frontend.base + frontend.count).map(|at| self.slab[&at]);
        let place = |at: u32| self.slab[&(frontend.table_base() + at / 2)] >> (at % 2 * 16) & 0xffff;
        assert!((0..frontend.table).all(|at| place(at) < frontend.count), "a table names what the list has");
        let backends = ids.map(|id| (self.backends[&id].address.last(), self.backends[&id].port)).collect();
        let ranges = self.contents.ranges.get(&frontend.service).cloned().unwrap_or_default();
        let ranges = if frontend.flags & Frontend::RANGES != 0 { ranges } else { BTreeSet::new() };
        (self.contents.names[&frontend.service].clone(), backends, ranges)
    }

    fn table(&self) -> BTreeMap<FrontendKey, Seen> {
        self.contents.frontends.iter().map(|(key, frontend)| (*key, self.resolve(frontend))).collect()
    }

    /// What another process would read.
    fn contents(&self) -> Contents {
        let mut contents = self.contents.clone();
        for frontend in self.contents.frontends.values().filter(|frontend| frontend.count > 0) {
            let words = |from: u32, count: u32| (from..from + count).map(|at| self.slab[&at]).collect::<Vec<u32>>();
            let ids = words(frontend.base, frontend.count + frontend.draining);
            let (taking, draining) = ids.split_at(frontend.count as usize);
            assert!(taking.is_sorted() && draining.is_sorted(), "most stay in place when one comes or goes");
            let table = words(frontend.table_base(), maglev::words(frontend.table));
            contents.backends.extend(ids.iter().map(|id| (*id, self.backends[id])));
            contents.lists.insert(frontend.base, Arc::new(List { ids: ids.into(), table: table.into() }));
            contents.generation = contents.generation.max(frontend.generation);
        }
        contents.ranges.retain(|_, ranges| !ranges.is_empty());
        contents
    }
}

fn seen(wanted: &DesiredFrontend) -> Seen {
    let backends = wanted.backends.iter().map(|backend| (backend.address.last(), backend.port)).collect();
    (wanted.service.clone(), backends, (*wanted.ranges).clone())
}

fn key(port: u16) -> FrontendKey {
    FrontendKey { address: Address::v4(1), port, protocol: 6, scope: 0 }
}

fn frontend(service: &str, addresses: impl IntoIterator<Item = u32>) -> DesiredFrontend {
    let backends: BTreeSet<Backend> = addresses
        .into_iter()
        .map(|address| Backend { address: Address::v4(address), port: 80, flags: Backend::USED })
        .collect();
    let backends = backends.into_iter().collect();
    DesiredFrontend {
        service: service.into(),
        backends,
        draining: Arc::default(),
        weights: None,
        flags: 0,
        affinity: 0,
        ranges: Arc::default(),
    }
}

fn desired(table: &[(u16, &str, &[u32])]) -> Changes {
    table
        .iter()
        .map(|(port, service, addresses)| (key(*port), Some(frontend(service, addresses.iter().copied()))))
        .collect()
}

fn tables() -> Tables {
    Tables::new(Contents::default(), CAPACITY)
}

#[test]
fn backends_come_first_then_lists_then_the_flip() {
    let plan = tables().plan(&desired(&[(1, "a", &[10, 11])]), Duration::ZERO);
    let kinds: Vec<_> = plan.writes.iter().map(std::mem::discriminant).collect();
    let backend = Backend::default();
    let expected = [
        Write::Name(0, "".into()),
        Write::Backend(0, backend),
        Write::Backend(0, backend),
        Write::List(0, Arc::default()),
        Write::Frontend(key(0), Frontend::default()),
    ];
    assert_eq!(kinds, expected.iter().map(std::mem::discriminant).collect::<Vec<_>>());
}

#[test]
fn an_unchanged_table_is_not_written() {
    let mut tables = tables();
    let wanted = desired(&[(1, "a", &[10, 11]), (2, "a", &[10, 11]), (3, "b", &[])]);
    tables.plan(&wanted, Duration::ZERO);
    assert_eq!(tables.contents().lists.len(), 1, "two frontends share one list");
    assert_eq!(tables.plan(&wanted, Duration::from_secs(5)).writes, []);
}

#[test]
fn a_dead_backend_is_retired_after_the_flip_and_its_slot_rests() {
    let mut tables = tables();
    tables.plan(&desired(&[(1, "a", &[10, 11])]), Duration::ZERO);
    let is_dead = |(_, backend): &(&u32, &Backend)| backend.address.last() == 11;
    let dead = *tables.contents().backends.iter().find(is_dead).unwrap().0;
    let next = tables.plan(&desired(&[(1, "a", &[10, 12])]), Duration::from_millis(1));
    let flip = next.writes.iter().position(|write| matches!(write, Write::Frontend(..))).unwrap();
    let retire = next.writes.iter().position(|write| matches!(write, Write::RetireBackend(id, _) if *id == dead));
    assert!(retire.unwrap() > flip);
    assert!(next.writes.iter().all(|write| !matches!(write, Write::Backend(id, _) if *id == dead)));
    let later = tables.plan(&desired(&[(1, "a", &[10, 12, 13])]), Duration::from_secs(3));
    assert!(later.writes.iter().any(|write| matches!(write, Write::Backend(id, _) if *id == dead)));
}

#[test]
fn what_does_not_fit_is_said_and_placed_when_it_fits() {
    let many: Vec<u32> = (1..=20).collect();
    let mut tables = tables();
    let plan = tables.plan(&desired(&[(1, "big", &many), (2, "small", &[1])]), Duration::ZERO);
    assert!(plan.problems[0].contains("big: no backend slot is free (16)"), "{:?}", plan.problems);
    assert!(!tables.contents().frontends.contains_key(&key(1)));
    assert_eq!(tables.contents().frontends[&key(2)].count, 1);
    assert!(tables.contents().names.values().all(|name| &**name == "small"), "nothing of it is left");
    assert_eq!(tables.contents().backends.len(), 1);
    // A service that is smaller now, then one that goes to make room.
    tables.plan(&desired(&[(1, "big", &many[1..15])]), Duration::from_secs(2));
    assert_eq!(tables.contents().frontends[&key(1)].count, 14);
    let full = tables.plan(&desired(&[(3, "more", &[30, 31])]), Duration::from_secs(4));
    assert_eq!(full.problems.len(), 1);
    tables.plan(&[(key(1), None)].into(), Duration::from_secs(6));
    assert!(tables.may_fit_later());
    tables.plan(&Changes::new(), Duration::from_secs(8));
    assert_eq!(tables.contents().frontends[&key(3)].count, 2);
    assert!(!tables.may_fit_later());
}

#[test]
fn what_waits_for_room_is_tried_in_turn_and_only_when_something_became_free() {
    let mut tables = tables();
    let many: Vec<u32> = (1..=20).collect();
    let mut changes: Changes = (1..=8).map(|port| (key(port), Some(frontend("small", [1])))).collect();
    changes.extend((9..400).map(|port| (key(port), Some(frontend("big", many.iter().copied())))));
    changes.insert(key(400), Some(frontend("last", [1])));
    let full = tables.plan(&changes, Duration::ZERO);
    assert_eq!((full.problems.len(), tables.unplaced().count()), (392, 392));
    assert!(!tables.may_fit_later(), "nothing rests and nothing became free");
    // One goes: of those that wait the first ones need too much.
    let plan = tables.plan(&[(key(1), None)].into(), Duration::from_secs(2));
    assert_eq!((plan.writes.len(), plan.problems.len()), (1, 0), "what was said is not said again");
    assert!(tables.may_fit_later());
    tables.plan(&Changes::new(), Duration::from_secs(3));
    assert_eq!(tables.contents().frontends[&key(400)].count, 1);
    assert!(!tables.may_fit_later());
    // One that is not wanted any more is not waited for.
    tables.plan(&[(key(9), None)].into(), Duration::from_secs(4));
    assert_eq!(tables.unplaced().count(), 390);
}

#[test]
fn what_an_earlier_process_left_behind_is_removed() {
    let mut kernel = Kernel::default();
    let mut before = tables();
    for write in before.plan(&desired(&[(1, "a", &[10])]), Duration::ZERO).writes {
        kernel.apply(&write);
    }
    kernel.apply(&Write::Name(5, "lost".into()));
    kernel.apply(&Write::Range(5, "10.0.0.0/8".parse().unwrap()));
    let mut after = Tables::new(kernel.contents(), CAPACITY);
    for write in after.plan(&after.difference(&Wanted::default()), Duration::ZERO).writes {
        kernel.apply(&write);
    }
    assert_eq!(kernel.contents(), Contents { generation: 0, ..Contents::default() });
}

/// What one owner wants: port to `(backends, affinity, ranges)`.
type Wish = BTreeMap<u16, (BTreeSet<u32>, u32, BTreeSet<u8>)>;

fn wishes() -> impl Strategy<Value = Vec<(u8, Wish)>> {
    let one = (prop::collection::btree_set(1_u32..6, 0..4), 0_u32..2, prop::collection::btree_set(1_u8..3, 0..2));
    prop::collection::vec((0_u8..4, prop::collection::btree_map(0_u16..4, one, 0..3)), 1..14)
}

fn frontends(owner: u8, wish: &Wish) -> Frontends {
    // One set of ranges for each service port, as the compiler does it.
    let make = |(port, (backends, affinity, ranges)): (&u16, &(BTreeSet<u32>, u32, BTreeSet<u8>))| {
        let mut wanted = frontend(&format!("s{owner}:{port}"), backends.iter().copied());
        wanted.affinity = *affinity;
        wanted.weights = (*affinity == 1 && backends.len() > 1).then(Arc::default);
        let ended = Backend { address: Address::v4(100 + u32::from(*port)), port: 80, flags: Backend::USED };
        wanted.draining = if backends.contains(&1) { [ended].into() } else { Arc::default() };
        wanted.flags = if ranges.is_empty() { 0 } else { Frontend::RANGES };
        wanted.ranges = Arc::new(ranges.iter().map(|net| format!("10.{net}.0.0/16").parse().unwrap()).collect());
        (key(*port), wanted)
    };
    wish.iter().map(make).collect()
}

#[test]
fn tables_are_shared_flipped_at_once_and_missed_when_there_is_no_room() {
    let planned = |hosts: &[u32], draining: &[u32]| {
        let mut wanted = frontend("a", hosts.iter().copied());
        wanted.draining = frontend("a", draining.iter().copied()).backends;
        wanted.weights = Some(Arc::default());
        wanted
    };
    let both = |wanted: &DesiredFrontend| [(key(1), Some(wanted.clone())), (key(2), Some(wanted.clone()))].into();
    let mut tables = Tables::new(Contents::default(), ROOMY);
    let first = tables.plan(&both(&planned(&[10, 11, 12], &[])), Duration::ZERO);
    assert!(first.problems.is_empty());
    assert_eq!(tables.contents().lists.len(), 1, "the addresses of a service port share one table");
    let before = tables.contents().frontends[&key(1)];
    assert_eq!((before.count, before.draining, before.table), (3, 0, 509));
    // One ends: its slot stays in use, and it is in no place of the table.
    let next = tables.plan(&both(&planned(&[10, 11], &[12])), Duration::from_secs(2));
    let after = tables.contents().frontends[&key(1)];
    assert_eq!((after.count, after.draining, after.table), (2, 1, 251));
    assert!(
        after.base >= before.base + tables.contents().lists[&after.base].words() || after.base + 3 + 126 <= before.base
    );
    assert!(!next.writes.iter().any(|write| matches!(write, Write::RetireBackend(..) | Write::Backend(..))));
    let retired = tables.plan(&both(&planned(&[10, 11], &[])), Duration::from_secs(4)).writes;
    assert_eq!(retired.iter().filter(|write| matches!(write, Write::RetireBackend(..))).count(), 1);
    // No room for a table: any backend will do, and that is said.
    let mut small = Tables::new(Contents::default(), CAPACITY);
    let plan = small.plan(&both(&planned(&[10, 11, 12], &[])), Duration::ZERO);
    assert!(plan.problems[0].contains("no room for a table of 509 slots"), "{:?}", plan.problems);
    let frontend = small.contents().frontends[&key(1)];
    assert_eq!((frontend.count, frontend.table), (3, 0));
}

proptest! {
    /// After any run of changes, planned one by one, the kernel holds what a plan of everything at once gives, and what a
    /// process that takes over would leave as it is. At every single write each frontend leads to exactly what it led to
    /// before the change or does after it.
    #[test]
    fn change_by_change_is_the_same_as_all_at_once(steps in wishes()) {
        let mut kernel = Kernel::default();
        let mut tables = Tables::new(Contents::default(), ROOMY);
        let mut wanted = Wanted::default();
        let mut owners: BTreeMap<Owner, Frontends> = BTreeMap::new();
        for (step, (number, wish)) in steps.iter().enumerate() {
            let owner = Owner::Service(("n".into(), format!("s{number}").into()));
            let before = wanted.all();
            let mut changes = Changes::new();
            wanted.set(&owner, frontends(*number, wish), &mut changes);
            owners.insert(owner, frontends(*number, wish));
            let after = wanted.all();
            let plan = tables.plan(&changes, Duration::from_secs(step as u64 * 2));
            prop_assert!(plan.problems.is_empty(), "{:?}", plan.problems);
            for write in &plan.writes {
                kernel.apply(write);
                for (key, seen_now) in kernel.table() {
                    let allowed = |table: &Desired| table.frontends.get(&key).is_some_and(|wanted| {
                        // Ranges change one by one.
                        let expected = seen(wanted);
                        (expected.0, expected.1) == (seen_now.0.clone(), seen_now.1.clone())
                    });
                    prop_assert!(allowed(&before) || allowed(&after), "{key:?} leads to {seen_now:?}");
                }
            }
            // The first owner by name has a frontend that several want.
            let mut expected: BTreeMap<FrontendKey, Seen> = BTreeMap::new();
            for (key, wanted) in owners.values().flatten() {
                expected.entry(*key).or_insert_with(|| seen(wanted));
            }
            prop_assert_eq!(kernel.table(), expected);
            let contents = kernel.contents();
            prop_assert_eq!(&contents.frontends, &tables.contents().frontends);
            prop_assert_eq!(&contents.names, &tables.contents().names);
            prop_assert_eq!(&contents.lists, &tables.contents().lists);
            prop_assert_eq!(&contents.backends, &tables.contents().backends);
            let mut successor = Tables::new(contents, ROOMY);
            let difference = successor.difference(&wanted);
            prop_assert_eq!(successor.plan(&difference, Duration::ZERO).writes, vec![]);
        }
    }
}

#[test]
fn the_cost_of_a_change_is_its_own() {
    let capacity = Capacity { frontends: 65_536, backends: 16_384, slab: 262_144, services: 8_192, ranges: 8 };
    let service = |number: u32, changed: u32| {
        let key = FrontendKey { address: Address::v4(10_000 + number), port: 80, protocol: 6, scope: 0 };
        let wanted = frontend(&format!("n/s{number}:80"), (1..=3).map(|host| number * 3 + host + changed));
        (Owner::Service(("n".into(), format!("s{number}").into())), [(key, wanted)].into())
    };
    let mut wanted = Wanted::default();
    let mut tables = Tables::new(Contents::default(), capacity);
    let mut changes = Changes::new();
    wanted.replace((0..5_000).map(|number| service(number, 0)).collect(), &mut changes);
    let start = std::time::Instant::now();
    assert!(tables.plan(&changes, Duration::ZERO).problems.is_empty());
    let all = start.elapsed();
    let mut changes = Changes::new();
    let (owner, frontends) = service(7, 100_000);
    let start = std::time::Instant::now();
    wanted.set(&owner, frontends, &mut changes);
    let change = tables.plan(&changes, Duration::from_secs(2));
    println!("5000 services: {all:?}; one change among them: {:?}", start.elapsed());
    assert_eq!(changes.len(), 1);
    assert_eq!(change.writes.len(), 3 + 1 + 1 + 3, "three backends, a list, a flip, three retired");
}

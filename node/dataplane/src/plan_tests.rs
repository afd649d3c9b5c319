#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::compile::DesiredFrontend;

const CAPACITY: Capacity = Capacity { frontends: 8, backends: 16, slab: 24, services: 8 };

/// The kernel's maps, fed by writes, and what a reader would see.
#[derive(Default)]
struct Kernel {
    frontends: BTreeMap<FrontendKey, Frontend>,
    slab: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, Backend>,
    names: BTreeMap<u32, Arc<str>>,
}

impl Kernel {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Name(id, name) => drop(self.names.insert(*id, name.clone())),
            Write::Backend(id, backend) | Write::RetireBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Write::List(base, ids) => self.slab.extend(ids.iter().zip(*base..).map(|(id, at)| (at, *id))),
            Write::Frontend(key, frontend) => drop(self.frontends.insert(*key, *frontend)),
            Write::RemoveFrontend(key) => drop(self.frontends.remove(key)),
            Write::RemoveName(id) => drop(self.names.remove(id)),
        }
    }

    fn resolve(&self, frontend: &Frontend) -> (Arc<str>, Vec<(u32, u16)>) {
        let ids = (frontend.base..frontend.base + frontend.count).map(|at| self.slab[&at]);
        let backends = ids.map(|id| (self.backends[&id].address, self.backends[&id].port)).collect();
        (self.names[&frontend.service].clone(), backends)
    }
}

fn key(port: u16) -> FrontendKey {
    FrontendKey { address: 1, port, protocol: 6, scope: 0 }
}

fn desired(table: &[(u16, &str, &[u32])]) -> Desired {
    let frontends = table.iter().map(|(port, service, addresses)| {
        let backends: BTreeSet<Backend> =
            addresses.iter().map(|address| Backend { address: *address, port: 80, flags: Backend::USED }).collect();
        let backends = Arc::new(backends.into_iter().collect());
        (key(*port), DesiredFrontend { service: (*service).into(), backends, flags: 0 })
    });
    Desired { frontends: frontends.collect() }
}

#[test]
fn backends_come_first_then_lists_then_the_flip() {
    let mut tables = Tables::default();
    let plan = plan(&mut tables, &desired(&[(1, "a", &[10, 11])]), CAPACITY, Duration::ZERO);
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
    let mut tables = Tables::default();
    let wanted = desired(&[(1, "a", &[10, 11]), (2, "a", &[10, 11]), (3, "b", &[])]);
    plan(&mut tables, &wanted, CAPACITY, Duration::ZERO);
    assert_eq!(tables.lists.len(), 1, "two frontends share one list");
    assert_eq!(plan(&mut tables, &wanted, CAPACITY, Duration::from_secs(5)).writes, []);
}

#[test]
fn a_dead_backend_is_retired_after_the_flip_and_its_slot_rests() {
    let mut tables = Tables::default();
    plan(&mut tables, &desired(&[(1, "a", &[10, 11])]), CAPACITY, Duration::ZERO);
    let dead = *tables.backends.iter().find(|(_, backend)| backend.address == 11).unwrap().0;
    let next = plan(&mut tables, &desired(&[(1, "a", &[10, 12])]), CAPACITY, Duration::from_millis(1));
    let flip = next.writes.iter().position(|write| matches!(write, Write::Frontend(..))).unwrap();
    let retire = next.writes.iter().position(|write| matches!(write, Write::RetireBackend(id, _) if *id == dead));
    assert!(retire.unwrap() > flip);
    assert!(next.writes.iter().all(|write| !matches!(write, Write::Backend(id, _) if *id == dead)));
    let later = plan(&mut tables, &desired(&[(1, "a", &[10, 12, 13])]), CAPACITY, Duration::from_secs(3));
    assert!(later.writes.iter().any(|write| matches!(write, Write::Backend(id, _) if *id == dead)));
}

#[test]
fn what_does_not_fit_is_said_and_the_rest_is_placed() {
    let many: Vec<u32> = (1..=20).collect();
    let mut tables = Tables::default();
    let plan = plan(&mut tables, &desired(&[(1, "big", &many), (2, "small", &[1])]), CAPACITY, Duration::ZERO);
    assert!(plan.problems[0].contains("big: no backend slot is free (16)"), "{:?}", plan.problems);
    assert!(!tables.frontends.contains_key(&key(1)));
    assert_eq!(tables.frontends[&key(2)].count, 1);
}

proptest! {
    /// After any run of changes, at every single write, each frontend leads to exactly what one of the two tables says,
    /// and at the end to what the new one says.
    #[test]
    fn readers_never_see_a_mixture(
        steps in prop::collection::vec(
            prop::collection::btree_map(0_u16..4, (0_u8..3, prop::collection::btree_set(1_u32..6, 0..4)), 0..4),
            1..12,
        )
    ) {
        let mut tables = Tables::default();
        let mut kernel = Kernel::default();
        let mut before = Desired::default();
        for (step, table) in steps.iter().enumerate() {
            let lists: Vec<(u16, String, Vec<u32>)> = table
                .iter()
                .map(|(port, (service, backends))| (*port, format!("s{service}"), backends.iter().copied().collect()))
                .collect();
            let rows: Vec<(u16, &str, &[u32])> =
                lists.iter().map(|(port, name, list)| (*port, name.as_str(), list.as_slice())).collect();
            let after = desired(&rows);
            let plan = plan(&mut tables, &after, CAPACITY, Duration::from_secs(step as u64 * 2));
            prop_assert!(plan.problems.is_empty(), "{:?}", plan.problems);
            for write in &plan.writes {
                kernel.apply(write);
                for (key, frontend) in &kernel.frontends {
                    let seen = kernel.resolve(frontend);
                    let allowed = [before.frontends.get(key), after.frontends.get(key)].into_iter().flatten().any(|wanted| {
                        let backends: Vec<_> = wanted.backends.iter().map(|backend| (backend.address, backend.port)).collect();
                        wanted.service == seen.0 && backends == seen.1
                    });
                    prop_assert!(allowed, "{key:?} leads to {seen:?}");
                }
            }
            prop_assert_eq!(kernel.frontends.len(), after.frontends.len());
            prop_assert_eq!(&kernel.frontends, &tables.frontends);
            prop_assert_eq!(&kernel.names, &tables.names);
            before = after;
        }
    }
}

#[test]
fn a_large_table_is_planned_in_no_time() {
    let capacity = Capacity { frontends: 65_536, backends: 16_384, slab: 262_144, services: 8_192 };
    let table = |changed: u32| {
        let mut desired = Desired::default();
        for service in 0..5_000_u32 {
            let backends = (0..3)
                .map(|host| Backend {
                    address: service * 3 + host + 1 + if service == 7 { changed } else { 0 },
                    port: 80,
                    flags: Backend::USED,
                })
                .collect();
            let key = FrontendKey { address: 10_000 + service, port: 80, protocol: 6, scope: 0 };
            let name = format!("n/s{service}:80").into();
            desired.frontends.insert(key, DesiredFrontend { service: name, backends: Arc::new(backends), flags: 0 });
        }
        desired
    };
    let mut tables = Tables::default();
    let (first, second) = (table(0), table(100_000));
    let start = std::time::Instant::now();
    assert!(plan(&mut tables, &first, capacity, Duration::ZERO).problems.is_empty());
    let all = start.elapsed();
    let start = std::time::Instant::now();
    let change = plan(&mut tables, &second, capacity, Duration::from_secs(2));
    println!("5000 services: {all:?}; one change among them: {:?}", start.elapsed());
    assert_eq!(change.writes.len(), 3 + 1 + 1 + 3, "three backends, a list, a flip, three retired");
    assert!(all < Duration::from_secs(5), "{all:?}");
}

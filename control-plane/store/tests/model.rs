//! The embedded engine against a reference model: random operations, with restarts in between, must
//! answer the same, and so must every revision's state and events afterwards.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::next_events;
use proptest::prelude::*;
use sluice_store::{
    Compare, DynEngine, Error, EventKind, Kv, Op, OpResult, Range, Revision, Txn, Watch,
    embedded::{Embedded, Options},
};

#[derive(Clone, Debug)]
enum Step {
    Txn { compare: Option<(u8, Guess)>, success: Vec<Write>, failure: Vec<Write> },
    Read { start: u8, end: Option<u8>, back: u8, limit: i64, count_only: bool },
    Compact { back: u8 },
    Reopen,
}

#[derive(Clone, Debug)]
enum Guess {
    Revision { right: bool },
    Version(i64),
    Value(u8),
}

#[derive(Clone, Debug)]
enum Write {
    Put(u8, u8),
    Delete(u8, Option<u8>),
    Get(u8, Option<u8>),
}

fn write() -> impl Strategy<Value = Write> {
    let key = 0u8..8;
    prop_oneof![
        4 => (key.clone(), 0u8..4).prop_map(|(k, v)| Write::Put(k, v)),
        2 => (key.clone(), prop::option::of(0u8..9)).prop_map(|(k, e)| Write::Delete(k, e)),
        1 => (key, prop::option::of(0u8..9)).prop_map(|(k, e)| Write::Get(k, e)),
    ]
}

fn guess() -> impl Strategy<Value = Guess> {
    prop_oneof![
        any::<bool>().prop_map(|right| Guess::Revision { right }),
        (0i64..3).prop_map(Guess::Version),
        (0u8..4).prop_map(Guess::Value),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let writes = || prop::collection::vec(write(), 0..4);
    prop_oneof![
        8 => (prop::option::of((0u8..8, guess())), writes(), writes())
            .prop_map(|(compare, success, failure)| Step::Txn { compare, success, failure }),
        4 => (0u8..8, prop::option::of(0u8..10), 0u8..12, 0i64..4, any::<bool>())
            .prop_map(|(start, end, back, limit, count_only)| Step::Read { start, end, back, limit, count_only }),
        1 => (0u8..6).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

fn key(n: u8) -> Bytes {
    Bytes::from(format!("/k/{n}"))
}

fn end(n: Option<u8>) -> Bytes {
    match n {
        None => Bytes::new(),
        Some(9) => Bytes::from_static(b"\0"),
        Some(n) => key(n),
    }
}

fn inside(start: &Bytes, end: &Bytes, key: &Bytes) -> bool {
    match &end[..] {
        [] => key == start,
        [0] => key >= start,
        _ => key >= start && key < end,
    }
}

type Map = BTreeMap<Bytes, Kv>;
/// Kind (true: put), key, and what was there before.
type Changes = Vec<(bool, Bytes, Option<Kv>)>;

/// Every revision's whole state and its changes.
struct Model {
    revisions: Vec<(Map, Changes)>,
    compacted: Revision,
}

impl Model {
    fn newest(&self) -> Revision {
        self.revisions.len() as Revision
    }

    fn at(&self, revision: Revision) -> &(Map, Changes) {
        &self.revisions[revision as usize - 1]
    }

    fn compare(&self, compare: &Compare) -> bool {
        let now = &self.at(self.newest()).0;
        match compare {
            Compare::ModRevision { key, equals } => now.get(key).map_or(0, |kv| kv.mod_revision) == *equals,
            Compare::Version { key, equals } => now.get(key).map_or(0, |kv| kv.version) == *equals,
            Compare::Value { key, equals } => now.get(key).is_some_and(|kv| kv.value == *equals),
        }
    }

    /// What each operation finds: how many deleted, or the keys read.
    fn apply(&mut self, ops: &[Op]) -> Vec<Vec<Kv>> {
        let revision = self.newest() + 1;
        let (mut now, mut changes) = (self.at(self.newest()).0.clone(), Changes::new());
        let mut found = Vec::new();
        for op in ops {
            found.push(match op {
                Op::Put { key, value, lease } => {
                    let previous = now.get(key).cloned();
                    let kv = Kv {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
                        mod_revision: revision,
                        version: previous.as_ref().map_or(1, |p| p.version + 1),
                        lease: *lease,
                    };
                    now.insert(key.clone(), kv);
                    changes.push((true, key.clone(), previous));
                    Vec::new()
                }
                Op::Delete { key, end } => {
                    let gone: Vec<Kv> = now.values().filter(|kv| inside(key, end, &kv.key)).cloned().collect();
                    for kv in &gone {
                        now.remove(&kv.key);
                        changes.push((false, kv.key.clone(), Some(kv.clone())));
                    }
                    gone
                }
                Op::Get(range) => now.values().filter(|kv| inside(&range.key, &range.end, &kv.key)).cloned().collect(),
            });
        }
        if !changes.is_empty() {
            self.revisions.push((now, changes));
        }
        found
    }
}

fn ops(writes: &[Write]) -> Vec<Op> {
    let op = |write: &Write| match write {
        Write::Put(k, v) => Op::Put { key: key(*k), value: Bytes::from(vec![*v; *v as usize]), lease: 0 },
        Write::Delete(k, e) => Op::Delete { key: key(*k), end: end(*e) },
        Write::Get(k, e) => Op::Get(Range { key: key(*k), end: end(*e), ..Range::default() }),
    };
    writes.iter().map(op).collect()
}

fn contradicts(ops: &[Op]) -> bool {
    let puts: Vec<_> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Put { key, .. } => Some(key),
            _ => None,
        })
        .collect();
    let twice = (1..puts.len()).any(|n| puts[..n].contains(&puts[n]));
    twice
        || ops.iter().any(|op| match op {
            Op::Delete { key, end } => puts.iter().any(|put| inside(key, end, put)),
            _ => false,
        })
}

async fn check_txn(engine: &DynEngine, model: &mut Model, txn: Txn) {
    let refused = contradicts(&txn.success) || contradicts(&txn.failure);
    let holds = txn.compare.iter().all(|c| model.compare(c));
    let result = match engine.txn(txn.clone()).await {
        Ok(result) => result,
        Err(Error::Invalid(_)) if refused => return,
        Err(e) => panic!("{txn:?}: {e}"),
    };
    assert!(!refused, "{txn:?} was not refused");
    assert_eq!(result.succeeded, holds, "{txn:?}");
    let found = model.apply(if holds { &txn.success } else { &txn.failure });
    assert_eq!(result.revision, model.newest());
    assert_eq!(result.results.len(), found.len());
    for (result, found) in result.results.iter().zip(found) {
        match result {
            OpResult::Put => {}
            OpResult::Delete { deleted } => assert_eq!(*deleted, found.len() as i64),
            OpResult::Get(got) => assert_eq!(got.kvs, found),
        }
    }
}

async fn check_read(engine: &DynEngine, model: &Model, range: Range) {
    let result = engine.range(range.clone()).await;
    if range.revision > 0 && range.revision < model.compacted {
        assert!(matches!(result, Err(Error::Compacted { oldest, .. }) if oldest == model.compacted));
        return;
    }
    let at = if range.revision > 0 { range.revision } else { model.newest() };
    let all: Vec<Kv> = model.at(at).0.values().filter(|kv| inside(&range.key, &range.end, &kv.key)).cloned().collect();
    let result = result.unwrap();
    assert_eq!((result.revision, result.count), (model.newest(), all.len() as i64), "{range:?}");
    let cut = match (range.count_only, range.limit) {
        (true, _) => 0,
        (false, 0) => all.len(),
        (false, limit) => all.len().min(limit as usize),
    };
    assert_eq!(result.kvs, all[..cut], "{range:?}");
    assert_eq!(result.more, !range.count_only && cut < all.len(), "{range:?}");
}

/// Every state and event since the compaction, as told by ranges and by a watch.
async fn check_history(engine: &DynEngine, model: &Model) {
    let first = model.compacted.max(2);
    let everything = Watch { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0"), start: first };
    let mut stream = engine.watch(everything).await.unwrap();
    for revision in first..=model.newest() {
        let all =
            Range { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0"), revision, ..Range::default() };
        check_read(engine, model, all).await;
        let (told, events) = next_events(&mut stream).await.unwrap();
        assert_eq!(told, revision);
        let (now, changes) = model.at(revision);
        let events: Vec<_> = events
            .into_iter()
            .map(|e| {
                let put = matches!(e.kind, EventKind::Put);
                assert_eq!(e.kv.mod_revision, revision);
                if put {
                    assert_eq!(now.get(&e.kv.key), Some(&e.kv));
                }
                (put, e.kv.key, e.previous)
            })
            .collect();
        assert_eq!(&events, changes, "at {revision}");
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let open = || Embedded::open(dir.path(), Options::default()).unwrap();
    let mut engine: DynEngine = open();
    let mut model = Model { revisions: vec![(Map::new(), Changes::new())], compacted: 0 };
    for step in steps {
        match step {
            Step::Txn { compare, success, failure } => {
                let compare = compare.map(|(k, guess)| match guess {
                    Guess::Revision { right } => {
                        let now = model.at(model.newest()).0.get(&key(k));
                        let revision = now.map_or(0, |kv| kv.mod_revision);
                        Compare::ModRevision { key: key(k), equals: revision + i64::from(!right) }
                    }
                    Guess::Version(equals) => Compare::Version { key: key(k), equals },
                    Guess::Value(v) => Compare::Value { key: key(k), equals: Bytes::from(vec![v; v as usize]) },
                });
                let txn = Txn {
                    compare: compare.into_iter().collect(),
                    success: ops(&success),
                    failure: ops(&failure),
                    // What is lazy shows only in a crash.
                    lazy: success.len() % 2 == 1,
                };
                check_txn(&engine, &mut model, txn).await;
            }
            Step::Read { start, end: e, back, limit, count_only } => {
                let revision = (model.newest() - i64::from(back)).max(0);
                let range = Range { key: key(start), end: end(e), revision, limit, count_only };
                check_read(&engine, &model, range).await;
            }
            Step::Compact { back } => {
                let revision = model.newest() - i64::from(back);
                if revision > model.compacted {
                    engine.compact(revision).await.unwrap();
                    model.compacted = revision;
                }
            }
            Step::Reopen => {
                drop(engine);
                engine = open();
            }
        }
    }
    check_history(&engine, &model).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_behaves_as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}

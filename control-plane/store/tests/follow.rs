//! What every informer relies on: a list, then the changes since its revision, is the present. Random
//! writes, and readers that start at any moment, lag, and start over when told to.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use common::{Fixture, PATIENCE, delete, put, write};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sluice_store::{
    DynEngine, Error, Kv, Revision,
    cache::{Cache, CacheItem, CacheLimits, Decode, Kind},
};

const WRITERS: u64 = 4;
const WRITES: usize = 400;
const READERS: u64 = 12;
const PREFIXES: [&str; 4] = ["/registry/", "/registry/a/", "/registry/b/", "/registry/a/1/"];

struct Raw;

impl Decode for Raw {
    type Object = (Revision, Bytes);
    fn decode(&self, kv: &Kv) -> Option<(Revision, Bytes)> {
        Some((kv.mod_revision, kv.value.clone()))
    }
}

type State = BTreeMap<Arc<str>, (Revision, Bytes)>;

async fn write_much(engine: DynEngine, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for n in 0..WRITES {
        let mut keys: Vec<String> = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let (kind, space, name) =
                (["a", "b"][rng.random_range(0..2)], rng.random_range(0..3), rng.random_range(0..30));
            let key = format!("/registry/{kind}/{space}/{name:02}");
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let ops = keys.iter().map(|key| match rng.random_range(0..3) {
            0 => delete(key, ""),
            _ => put(key, &format!("{seed}-{n}")),
        });
        write(&engine, ops.collect()).await;
    }
}

/// Follows one prefix to the revision `last` says is the end; how often it had to start over.
async fn follow(
    cache: Arc<Cache<Raw>>,
    seed: u64,
    mut last: tokio::sync::watch::Receiver<Revision>,
    restarts: Arc<AtomicUsize>,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let prefix = PREFIXES[rng.random_range(0..PREFIXES.len())];
    let mut stopped = false;
    'list: loop {
        let list = cache.list(prefix);
        let mut state: State = list.iter().map(|(k, o)| (Arc::clone(k), (**o).clone())).collect();
        let mut revision = list.revision;
        for _ in 0..rng.random_range(0..50) {
            tokio::task::yield_now().await;
        }
        let mut watch = match cache.watch(prefix, revision) {
            Ok(watch) => watch,
            Err(Error::Compacted { .. }) => {
                restarts.fetch_add(1, Ordering::Relaxed);
                continue 'list;
            }
            Err(e) => panic!("{e}"),
        };
        loop {
            let end = *last.borrow();
            if end > 0 && watch.progress().is_some_and(|at| at >= end) {
                let now = cache.list(prefix);
                let now: State = now.iter().map(|(k, o)| (Arc::clone(k), (**o).clone())).collect();
                assert_eq!(state, now, "{prefix} as of {revision}");
                return;
            }
            let item = tokio::select! {
                item = tokio::time::timeout(PATIENCE, watch.next()) => item.expect("a change or progress"),
                Ok(()) = last.changed() => continue,
            };
            match item {
                CacheItem::Change { revision: at, key, kind, object, previous } => {
                    assert!(key.starts_with(prefix) && at >= revision, "{key} at {at} after {revision}");
                    assert_eq!(object.0, at, "every object carries the revision of its change");
                    revision = at;
                    let held = match kind {
                        Kind::Deleted => state.remove(&key),
                        _ => state.insert(key, (*object).clone()),
                    };
                    assert_eq!(held.as_ref(), previous.as_deref());
                    assert_eq!(kind == Kind::Added, held.is_none());
                }
                CacheItem::Progress(at) => assert!(at >= revision),
                CacheItem::Lagged => {
                    restarts.fetch_add(1, Ordering::Relaxed);
                    continue 'list;
                }
            }
            if !std::mem::replace(&mut stopped, true) || rng.random_range(0..400) == 0 {
                // A reader that stops for so long that its queue overflows, unless writing ends first.
                let _ = cache.wait_for(revision + 250, std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn list_and_watch_is_the_present(f: Fixture) {
    let limits = CacheLimits {
        ring_events: 40,
        watcher_queue: 30,
        progress_interval: std::time::Duration::from_millis(20),
        ..CacheLimits::default()
    };
    let cache = Cache::start(f.engine.clone(), "/registry/", Raw, limits).await.unwrap();
    let (end, last) = tokio::sync::watch::channel(0);
    let restarts = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|n| tokio::spawn(follow(Arc::clone(&cache), 1000 + n, last.clone(), Arc::clone(&restarts))))
        .collect();
    let writers: Vec<_> = (0..WRITERS).map(|n| tokio::spawn(write_much(f.engine.clone(), n))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let ops = vec![put("/registry/a/1/end", "1"), put("/registry/b/1/end", "1")];
    let newest = write(&f.engine, ops).await.revision;
    cache.wait_for(newest, PATIENCE).await.unwrap();
    end.send_replace(newest);
    for reader in readers {
        tokio::time::timeout(PATIENCE, reader).await.unwrap().unwrap();
    }
    assert_eq!(cache.watchers(), 0);
    assert!(restarts.load(Ordering::Relaxed) > 0, "nobody ever lagged: the test shows less than it should");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_embedded_engine() {
    list_and_watch_is_the_present(common::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_etcd() {
    list_and_watch_is_the_present(common::etcd().await).await;
}

//! The embedded engine's writes (each durable) and the watch cache's reads, at the size of a cluster of
//! 10,000 pods. `cargo bench -p sluice-store`.
#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_store::{
    Compare, DynEngine, Kv, Op, Txn,
    cache::{Cache, CacheItem, CacheLimits, Decode},
    embedded::{Embedded, Options},
};
use tokio::runtime::Runtime;

const PODS: usize = 10_000;
const VALUE: usize = 3000;

/// Keeps the bytes, as the API server does.
struct Raw;

impl Decode for Raw {
    type Object = Bytes;
    fn decode(&self, kv: &Kv) -> Option<Bytes> {
        Some(kv.value.clone())
    }
}

fn pod(n: usize) -> Bytes {
    Bytes::from(format!("/registry/pods/namespace-{:02}/pod-{n:05}", n % 50))
}

fn put(key: Bytes) -> Txn {
    let value = Bytes::from(vec![b'x'; VALUE]);
    Txn { success: vec![Op::Put { key, value, lease: 0 }], ..Txn::default() }
}

fn open(dir: &tempfile::TempDir) -> DynEngine {
    Embedded::open(dir.path(), Options::default()).unwrap()
}

async fn fill(engine: &DynEngine) {
    for chunk in (0..PODS).collect::<Vec<_>>().chunks(100) {
        let ops = chunk.iter().flat_map(|n| put(pod(*n)).success);
        engine.txn(Txn { success: ops.collect(), ..Txn::default() }).await.unwrap();
    }
}

/// `iterations` writes by `writers` tasks; the time for all.
async fn write_many(engine: &DynEngine, writers: usize, iterations: u64) -> Duration {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let engine = Arc::clone(engine);
            tokio::spawn(async move {
                let share = (iterations as usize + writers - 1 - writer) / writers;
                for n in 0..share {
                    engine.txn(put(pod((writer * 131 + n * 7) % PODS))).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed()
}

fn writes(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let engine = runtime.block_on(async { open(&dir) });
    runtime.block_on(fill(&engine));
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for writers in [1, 8, 64] {
        group.bench_with_input(BenchmarkId::new("writers", writers), &writers, |b, writers| {
            b.iter_custom(|n| runtime.block_on(write_many(&engine, *writers, n)));
        });
    }
    group.finish();
    c.bench_function("compare that fails", |b| {
        let compare = vec![Compare::ModRevision { key: pod(1), equals: 1 }];
        let txn = Txn { compare, ..put(pod(1)) };
        b.iter(|| runtime.block_on(engine.txn(txn.clone())).unwrap());
    });
    // A copy of the open file is what a crash leaves.
    let mut group = c.benchmark_group("after a crash");
    group.sample_size(10).bench_function("open", |b| {
        let crash = || {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(dir.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
            copy
        };
        b.iter_batched(crash, |copy| (open(&copy), copy), BatchSize::PerIteration);
    });
    group.finish();
    runtime.block_on(async { engine.compact(engine.revision().await.unwrap()).await.unwrap() });
    drop(engine);
    c.bench_function("open", |b| b.iter(|| open(&dir)));
}

fn reads(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let engine = runtime.block_on(async { open(&dir) });
    runtime.block_on(fill(&engine));
    let start =
        || runtime.block_on(Cache::start(Arc::clone(&engine), "/registry/", Raw, CacheLimits::default())).unwrap();
    let mut group = c.benchmark_group("cache");
    group.sample_size(20);
    group.bench_function("load 10000", |b| b.iter(start));
    let cache = start();
    group.bench_function("snapshot", |b| b.iter(|| cache.list("/registry/pods/")));
    group.bench_function("list 10000", |b| {
        b.iter(|| cache.list("/registry/pods/").iter().map(|(_, o)| o.len()).sum::<usize>())
    });
    group.bench_function("list 200 of a namespace", |b| {
        b.iter(|| cache.list("/registry/pods/namespace-07/").iter().map(|(_, o)| o.len()).sum::<usize>());
    });
    group.bench_function("get", |b| b.iter(|| cache.get("/registry/pods/namespace-07/pod-00007").unwrap()));
    group.bench_function("fresh", |b| b.iter(|| runtime.block_on(cache.fresh()).unwrap()));
    for watchers in [1, 100] {
        // From the write's acknowledgement back to the last watcher's change, fsync included.
        group.bench_with_input(BenchmarkId::new("write to watchers", watchers), &watchers, |b, watchers| {
            let mut all: Vec<_> = (0..*watchers).map(|_| cache.watch("/registry/pods/", 0).unwrap()).collect();
            b.iter(|| {
                runtime.block_on(async {
                    let written = engine.txn(put(pod(7))).await.unwrap().revision;
                    for watch in &mut all {
                        while !matches!(watch.next().await, CacheItem::Change { revision, .. } if revision == written) {
                        }
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, writes, reads);
criterion_main!(benches);

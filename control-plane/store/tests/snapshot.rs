//! A store at one revision, written out while it changes, and read into another one: from each engine to each.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use common::{Fixture, embedded, etcd, list, put, range, write};
use sluice_store::{
    DynEngine, Error, Op, Txn,
    embedded::{Embedded, Options},
    limits, snapshot,
};

/// More than a page.
const KEYS: i64 = limits::LOAD_PAGE + 100;

async fn filled() -> (DynEngine, Fixture) {
    let fixture = embedded().await;
    fill(&fixture.engine).await;
    (Arc::clone(&fixture.engine), fixture)
}

async fn fill(engine: &DynEngine) {
    for first in (0..KEYS).step_by(100) {
        let puts = (first..first + 100).map(|n| put(&format!("/registry/a/{n:05}"), &format!("v{n}"))).collect();
        write(engine, puts).await;
    }
    let not = [put("/elsewhere", "not the cluster's"), put("/registry/masterleases/192.0.2.7", "who serves it now")];
    write(engine, not.into()).await;
}

async fn everything(engine: &DynEngine) -> Vec<String> {
    list(engine, range("/registry/", "/registry0")).await.unwrap()
}

async fn moved(from: &DynEngine, to: &DynEngine) {
    let mut bytes = Vec::new();
    let written = snapshot::write(from, &mut bytes).await.unwrap();
    assert_eq!(written.keys, KEYS as u64);
    assert_eq!(snapshot::check(&mut &bytes[..]).await.unwrap(), written);
    assert!(snapshot::is_empty(to).await.unwrap());
    assert_eq!(snapshot::read(to, &mut &bytes[..]).await.unwrap(), written);
    let mut kept = everything(from).await;
    kept.retain(|line| !line.contains("masterleases"));
    assert_eq!(everything(to).await, kept, "who serves the cluster now is not taken along");
    assert!(!snapshot::is_empty(to).await.unwrap());
    assert!(to.range(range("/elsewhere", "")).await.unwrap().kvs.is_empty(), "others' keys are not taken along");
    // Time goes on: every object is newer than anything that was seen before.
    let oldest = to.range(range("/registry/", "/registry0")).await.unwrap();
    let oldest = oldest.kvs.iter().map(|kv| kv.mod_revision).min().unwrap();
    assert!(oldest > written.revision, "{oldest} is not after {}", written.revision);
    snapshot::clear(to).await.unwrap();
    assert!(snapshot::is_empty(to).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_each_engine_to_each() {
    let (one, _kept) = filled().await;
    let two = etcd().await;
    moved(&one, &two.engine).await;
    let three = etcd().await;
    fill(&three.engine).await;
    let four = embedded().await;
    moved(&three.engine, &four.engine).await;
    let dir = tempfile::tempdir().unwrap();
    let five: DynEngine =
        Embedded::open(dir.path(), Options { first_revision: 1_000_000, ..Options::default() }).unwrap();
    assert_eq!(five.revision().await.unwrap(), 1_000_000);
    moved(&one, &five).await;
    drop(five);
    let again: DynEngine = Embedded::open(dir.path(), Options::default()).unwrap();
    assert!(again.revision().await.unwrap() > 1_000_000);
}

async fn of_one_revision(fixture: Fixture) {
    let engine = Arc::clone(&fixture.engine);
    fill(&engine).await;
    // Two keys, far apart, that always change together.
    let both = |n: i64| vec![put("/registry/a/", &n.to_string()), put("/registry/z", &n.to_string())];
    write(&engine, both(0)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        async move {
            let mut n = 1;
            while !stop.load(Ordering::Relaxed) {
                write(&engine, both(n)).await;
                n += 1;
            }
        }
    });
    for _ in 0..3 {
        let mut bytes = Vec::new();
        snapshot::write(&engine, &mut bytes).await.unwrap();
        let other = embedded().await;
        snapshot::read(&other.engine, &mut &bytes[..]).await.unwrap();
        let pair = [range("/registry/a/", ""), range("/registry/z", "")];
        let [a, z] = pair.map(|range| other.engine.range(range));
        assert_eq!(a.await.unwrap().kvs[0].value, z.await.unwrap().kvs[0].value);
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_of_one_revision_while_the_store_changes() {
    of_one_revision(embedded().await).await;
    of_one_revision(etcd().await).await;
}

#[tokio::test]
async fn keys_that_end_by_themselves_still_do() {
    let (from, to) = (embedded().await, embedded().await);
    let lease = from.engine.lease_grant(3600).await.unwrap();
    let event = Op::Put { key: Bytes::from_static(b"/registry/events/a"), value: Bytes::from_static(b"e"), lease };
    from.engine.txn(Txn { success: vec![event], ..Txn::default() }).await.unwrap();
    let mut bytes = Vec::new();
    snapshot::write(&from.engine, &mut bytes).await.unwrap();
    snapshot::read(&to.engine, &mut &bytes[..]).await.unwrap();
    let kv = to.engine.range(range("/registry/events/a", "")).await.unwrap().kvs.remove(0);
    assert_ne!(kv.lease, 0);
    to.engine.lease_revoke(kv.lease).await.unwrap();
    assert!(snapshot::is_empty(&to.engine).await.unwrap());
}

#[tokio::test]
async fn a_part_of_one_is_noticed() {
    let fixture = embedded().await;
    write(&fixture.engine, vec![put("/registry/a", "1")]).await;
    let mut bytes = Vec::new();
    snapshot::write(&fixture.engine, &mut bytes).await.unwrap();
    for length in [0, 7, 8, 9, 20, bytes.len() - 1] {
        let error = snapshot::check(&mut &bytes[..length]).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt(_)), "{length}: {error}");
    }
    bytes[8] = 9;
    assert!(matches!(snapshot::check(&mut &bytes[..]).await, Err(Error::Corrupt(_))));
}

//! Lazy writes: acknowledged and told of at once, durable a little later, and never half forgotten:
//! a crash may lose the writes but not their revisions.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use common::{list, next_events, put, range};
use sluice_store::{
    DynEngine, Revision, Txn, Watch,
    embedded::{Embedded, Options},
};

const FILE: &str = "store.redb";

fn open(dir: &Path) -> DynEngine {
    Embedded::open(dir, Options::default()).unwrap()
}

async fn lazily(engine: &DynEngine, value: &str) -> Revision {
    let txn = Txn { success: vec![put("/lease", value)], lazy: true, ..Txn::default() };
    engine.txn(txn).await.unwrap().revision
}

async fn eagerly(engine: &DynEngine, value: &str) -> Revision {
    let txn = Txn { success: vec![put("/other", value)], ..Txn::default() };
    engine.txn(txn).await.unwrap().revision
}

/// What would be found if the machine lost its power now.
fn after_a_crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.join(FILE), copy.path().join(FILE)).unwrap();
    copy
}

async fn content(engine: &DynEngine) -> Vec<String> {
    list(engine, range("/", "0")).await.unwrap()
}

#[tokio::test]
async fn a_crash_loses_the_write_but_not_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    eagerly(&engine, "1").await;
    // The first lazy write sets revisions apart, which is durable.
    lazily(&engine, "1").await;
    let mut told = engine.watch(Watch { key: Bytes::from("/"), end: Bytes::from("0"), start: 0 }).await.unwrap();
    let mut last = 0;
    for n in 2..5 {
        last = lazily(&engine, &n.to_string()).await;
        assert_eq!(next_events(&mut told).await.unwrap().0, last, "watchers hear of it at once");
    }
    assert_eq!(content(&engine).await, ["/lease=4", "/other=1"]);

    let crashed = after_a_crash(dir.path());
    let again = open(crashed.path());
    assert_eq!(content(&again).await, ["/lease=1", "/other=1"]);
    assert!(again.revision().await.unwrap() >= last, "no revision that was seen comes again");
    // One that saw the lost writes goes on from there and misses nothing.
    let mut told = again.watch(Watch { key: Bytes::from("/"), end: Bytes::from("0"), start: last + 1 }).await.unwrap();
    let next = eagerly(&again, "2").await;
    assert!(next > last);
    assert_eq!(next_events(&mut told).await.unwrap().0, next);
}

#[tokio::test]
async fn the_next_other_write_makes_it_durable() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for n in 1..4 {
        lazily(&engine, &n.to_string()).await;
    }
    eagerly(&engine, "1").await;
    assert_eq!(content(&open(after_a_crash(dir.path()).path())).await, ["/lease=3", "/other=1"]);
}

#[tokio::test]
async fn closing_makes_it_durable_and_skips_no_revision() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    lazily(&engine, "1").await;
    let last = lazily(&engine, "2").await;
    drop(engine);
    let engine = open(dir.path());
    assert_eq!((engine.revision().await.unwrap(), content(&engine).await), (last, vec!["/lease=2".to_owned()]));
}

#[tokio::test]
async fn it_becomes_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { lazy_delay: Duration::from_millis(20), ..Options::default() };
    let engine: DynEngine = Embedded::open(dir.path(), options).unwrap();
    lazily(&engine, "1").await;
    lazily(&engine, "2").await;
    let durable = async {
        while content(&open(after_a_crash(dir.path()).path())).await != ["/lease=2"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), durable).await.unwrap();
}

#[tokio::test]
async fn more_than_the_revisions_set_apart_are_no_matter() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut last = 0;
    for n in 0..sluice_store::limits::LAZY_REVISIONS + 5 {
        last = lazily(&engine, &n.to_string()).await;
    }
    let again = open(after_a_crash(dir.path()).path());
    assert!(again.revision().await.unwrap() >= last);
}

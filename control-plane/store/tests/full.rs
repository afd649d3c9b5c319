//! What can be wrong with the disk: no space left (writes are refused with the reason, reads go on, and
//! room made is found again), a file that is in use, damaged, or readable by others.
#![allow(clippy::unwrap_used)]

mod common;

use std::{path::Path, process::Command};

use common::{delete, list, put, range, write};
use sluice_store::{
    DynEngine, Error, Txn,
    embedded::{Embedded, Options},
};

const DIR: &str = "SLUICE_STORE_FULL_DIR";

async fn try_put(engine: &DynEngine, key: &str, value: &str) -> Result<(), Error> {
    let txn = Txn { success: vec![put(key, value)], ..Txn::default() };
    engine.txn(txn).await.map(|_| ())
}

#[tokio::test]
async fn without_room_writes_are_refused_and_deletes_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let open = |options| -> DynEngine { Embedded::open(dir.path(), options).unwrap() };
    let engine = open(Options::default());
    write(&engine, vec![put("/a", "1"), put("/b", "1")]).await;
    drop(engine);
    let cases = [
        (Options { min_free_bytes: u64::MAX, ..Options::default() }, "bytes free"),
        (Options { max_file_bytes: 1, ..Options::default() }, "its limit is 1"),
    ];
    for (n, (options, reason)) in cases.into_iter().enumerate() {
        let engine = open(options);
        let error = try_put(&engine, "/c", "1").await.unwrap_err();
        assert!(matches!(error, Error::NoSpace(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(matches!(engine.lease_grant(10).await, Err(Error::NoSpace(_))));
        let key = ["/a", "/b"][n];
        assert_eq!(list(&engine, range(key, "")).await.unwrap().len(), 1);
        write(&engine, vec![delete(key, "")]).await;
        assert!(list(&engine, range(key, "")).await.unwrap().is_empty());
        engine.compact(engine.revision().await.unwrap()).await.unwrap();
    }
    let engine = open(Options::default());
    try_put(&engine, "/c", "1").await.unwrap();
}

/// The kernel refuses a write half-way through a commit: the file is opened again, reads go on, and
/// everything acknowledged is still there.
#[tokio::test]
async fn a_write_that_the_kernel_refuses_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8000; exec \"$0\" --exact child --ignored"])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    let acknowledged = std::fs::read_to_string(dir.path().join("acknowledged")).unwrap();
    let engine: DynEngine = Embedded::open(dir.path(), Options::default()).unwrap();
    let got = engine.range(range("/full/", "/full0")).await.unwrap();
    assert!(got.count >= acknowledged.parse().unwrap());
    try_put(&engine, "/after", "1").await.unwrap();
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/store");
    let open = || Embedded::open(&path, Options::default());
    let engine: DynEngine = open().unwrap();
    write(&engine, vec![put("/a", "1")]).await;
    let mode = |p: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(p).unwrap().permissions()) & 0o777;
    let file = path.join("store.redb");
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600), "it holds secrets");

    let error = open().err().unwrap();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(error.to_string().contains("store.redb is open in another process"), "{error}");
    drop(engine);
    drop(open().unwrap());

    std::fs::write(&file, "no store at all, but text".repeat(1000)).unwrap();
    let error = open().err().unwrap();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let error = open().err().unwrap();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

/// The child: fills the file up to its limit.
#[tokio::test]
#[ignore = "started by a_write_that_the_kernel_refuses_harms_nothing"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let engine: DynEngine = Embedded::open(dir, Options::default()).unwrap();
    let value = "x".repeat(100_000);
    let mut acknowledged = 0;
    let error = loop {
        match try_put(&engine, &format!("/full/{acknowledged:04}"), &value).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the limit is never reached");
    };
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    for _ in 0..3 {
        let got = engine.range(range("/full/", "/full0")).await.unwrap();
        assert!(got.count >= acknowledged, "reads go on");
        assert!(matches!(try_put(&engine, "/full/huge", &value.repeat(40)).await, Err(Error::NoSpace(_))));
    }
    write(&engine, vec![delete("/full/0000", ""), put("/full/small", "1")]).await;
    std::fs::write(dir.join("acknowledged"), acknowledged.to_string()).unwrap();
}

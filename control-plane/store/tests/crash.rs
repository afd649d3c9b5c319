//! SIGKILL in the middle of a write load: nothing acknowledged is lost, nothing is half done.
//!
//! The parent runs this test binary again as the child that writes; the child prints a line for each
//! acknowledged write, and is killed after a random number of lines.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::{BTreeMap, HashSet},
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use common::{delete, list, next_events, put, range, show, write};
use rand::Rng;
use sluice_store::{
    DynEngine, EventKind, Watch,
    embedded::{Embedded, Options},
};

const DIR: &str = "SLUICE_STORE_CRASH_DIR";
const ROUND: &str = "SLUICE_STORE_CRASH_ROUND";
const ROUNDS: u32 = 8;
const WRITERS: u32 = 8;

#[test]
fn killed_under_load_it_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = HashSet::new();
    for round in 0..ROUNDS {
        let kill_after = rand::rng().random_range(1..400);
        let lines = run_child(dir.path(), round, kill_after);
        assert!(lines.len() >= kill_after, "round {round} wrote too little");
        acknowledged.extend(lines);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(verify(dir.path(), &acknowledged));
    }
}

/// Starts the child, kills it once it acknowledged `kill_after` writes; all it acknowledged.
fn run_child(dir: &Path, round: u32, kill_after: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(key) = line.strip_prefix("acknowledged ") else {
            continue;
        };
        lines.push(key.to_owned());
        if lines.len() == kill_after {
            child.kill().unwrap();
            // What it wrote to the pipe before it died counts too: the loop reads on to the end.
        }
    }
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the child ended by itself");
    lines
}

async fn verify(dir: &Path, acknowledged: &HashSet<String>) {
    let engine: DynEngine = Embedded::open(dir, Options::default()).unwrap();
    let newest = engine.revision().await.unwrap();
    let mut present = HashSet::new();
    for kv in engine.range(range("/a/", "/a0")).await.unwrap().kvs {
        let key = String::from_utf8(kv.key[3..].to_vec()).unwrap();
        let twin = engine.range(range(&format!("/b/{key}"), "")).await.unwrap();
        let twin = twin.kvs.first().unwrap_or_else(|| panic!("{key} is half there"));
        assert_eq!(
            (twin.mod_revision, &twin.value),
            (kv.mod_revision, &kv.value),
            "both halves of {key} are of one transaction"
        );
        present.insert(key);
    }
    let halves = engine.range(range("/b/", "/b0")).await.unwrap().count;
    assert_eq!(halves, present.len() as i64, "no second half alone");
    let mut newest_of = BTreeMap::new();
    for key in &present {
        let (writer, n) = key.rsplit_once('-').unwrap();
        let newest = newest_of.entry(writer).or_insert(0);
        *newest = n.parse::<u32>().unwrap().max(*newest);
    }
    let expected: Vec<_> = newest_of.iter().map(|(writer, n)| format!("/last/{writer}-{n}=")).collect();
    let last = list(&engine, range("/last/", "/last0")).await.unwrap();
    assert_eq!(last, expected, "each transaction also replaces its writer's mark");
    let lost: Vec<_> = acknowledged.difference(&present).collect();
    assert!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());

    // The log tells the same story as the state.
    let compacted = engine.status().await.unwrap().compacted.max(2);
    let everything = Watch { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0"), start: compacted };
    let before = engine.range(sluice_store::Range { revision: compacted, ..range("\0", "\0") }).await.unwrap();
    let mut state: BTreeMap<_, _> = before.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let mut stream = engine.watch(everything).await.unwrap();
    for revision in compacted..=newest {
        let (told, events) = next_events(&mut stream).await.unwrap();
        assert_eq!(told, revision);
        for event in events {
            match event.kind {
                EventKind::Put => state.insert(event.kv.key.clone(), event.kv),
                EventKind::Delete => state.remove(&event.kv.key),
            };
        }
    }
    let now = engine.range(range("\0", "\0")).await.unwrap().kvs;
    assert_eq!(state.values().map(show).collect::<Vec<_>>(), now.iter().map(show).collect::<Vec<_>>());
}

/// The child: writes until it is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by killed_under_load_it_keeps_what_it_acknowledged"]
async fn child() {
    let (Some(dir), Ok(round)) = (std::env::var_os(DIR), std::env::var(ROUND)) else {
        return;
    };
    let engine: DynEngine = Embedded::open(Path::new(&dir), Options::default()).unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (engine, round) = (engine.clone(), round.clone());
            tokio::spawn(async move {
                for n in 0..100_000usize {
                    let key = format!("{round}-{writer}-{n}");
                    let value = format!("{key} {}", "x".repeat(n % 5000));
                    let last = |n: usize| format!("/last/{round}-{writer}-{n}");
                    let mut ops =
                        vec![put(&format!("/a/{key}"), &value), put(&format!("/b/{key}"), &value), put(&last(n), "")];
                    ops.extend(n.checked_sub(1).map(|before| delete(&last(before), "")));
                    let result = write(&engine, ops).await;
                    if writer == 0 && n % 50 == 49 {
                        // Another's write may have been faster to compact.
                        let _ = engine.compact(result.revision - 20).await;
                    }
                    let mut out = std::io::stdout().lock();
                    out.write_all(format!("acknowledged {key}\n").as_bytes()).unwrap();
                    out.flush().unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

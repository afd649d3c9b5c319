//! Stories of the watch cache, over the embedded engine and over etcd.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use common::{Fixture, PATIENCE, delete, next_events, put, range, write};
use futures::StreamExt;
use sluice_store::{
    DynEngine, Engine, Error, Kv, Range, RangeResult, Revision, Status, Txn, TxnResult, Watch, WatchStream,
    cache::{Cache, CacheItem, CacheLimits, CacheWatch, Decode, Filter, Kind},
};
use tokio::sync::Notify;

/// Objects are their text and revision; a value of `-` is no object.
struct Text;

impl Decode for Text {
    type Object = String;
    fn decode(&self, kv: &Kv) -> Option<String> {
        let text = String::from_utf8_lossy(&kv.value);
        (text != "-" && !text.is_empty()).then(|| format!("{text}@{}", kv.mod_revision))
    }
    fn tag(object: &String) -> &str {
        object.split(['.', '@']).next().unwrap_or_default()
    }
}

async fn start(engine: &DynEngine) -> Arc<Cache<Text>> {
    start_with(engine, CacheLimits::default()).await
}

async fn start_with(engine: &DynEngine, limits: CacheLimits) -> Arc<Cache<Text>> {
    Cache::start(engine.clone(), "/registry/", Text, limits).await.unwrap()
}

fn texts(cache: &Cache<Text>, prefix: &str) -> Vec<String> {
    let snapshot = cache.list(prefix);
    assert_eq!(snapshot.len(), snapshot.iter().count());
    let items = snapshot.iter();
    items.map(|(k, o)| format!("{k}={o}")).collect()
}

async fn next(watch: &mut CacheWatch<String>) -> String {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    match item.expect("an item in time") {
        CacheItem::Change { revision, key, kind, object, previous } => {
            let kind = match kind {
                Kind::Added => "added",
                Kind::Modified => "modified",
                Kind::Deleted => "deleted",
            };
            let previous = previous.map_or("-".to_owned(), |p| p.to_string());
            format!("{revision} {kind} {key}={object} was {previous}")
        }
        CacheItem::Progress(revision) => format!("progress {revision}"),
        CacheItem::Lagged => "lagged".to_owned(),
    }
}

async fn follows_the_store(f: Fixture) {
    let e = &f.engine;
    write(e, vec![put("/registry/pods/a/1", "x"), put("/registry/pods/a/2", "x")]).await; // 2
    write(e, vec![put("/registry/podsecurity/a/1", "x"), put("/elsewhere", "x")]).await; // 3
    let cache = start(e).await;
    assert_eq!(cache.revision(), 3);
    assert_eq!(texts(&cache, "/registry/pods/"), ["/registry/pods/a/1=x@2", "/registry/pods/a/2=x@2"]);
    let before = cache.list("/registry/");
    let mut pods = cache.watch("/registry/pods/", 0).unwrap();
    let mut one = cache.watch("/registry/pods/b/", 0).unwrap();
    let mut wide = cache.watch("/registry/", 0).unwrap();
    assert_eq!(cache.watchers(), 3);
    write(
        e,
        vec![
            put("/registry/pods/a/1", "y"),
            put("/registry/pods/b/1", "y"),
            delete("/registry/pods/a/2", ""),
            put("/registry/nodes/n", "y"),
        ],
    )
    .await; // 4
    write(e, vec![put("/registry/pods/b/1", "-")]).await; // 5
    cache.wait_for(5, PATIENCE).await.unwrap();

    for expected in [
        "4 modified /registry/pods/a/1=y@4 was x@2",
        "4 added /registry/pods/b/1=y@4 was -",
        "4 deleted /registry/pods/a/2=x@4 was x@2",
        "5 deleted /registry/pods/b/1=y@4 was y@4",
    ] {
        assert_eq!(next(&mut pods).await, expected);
    }
    assert_eq!(next(&mut one).await, "4 added /registry/pods/b/1=y@4 was -");
    for _ in 0..3 {
        next(&mut wide).await;
    }
    assert_eq!(next(&mut wide).await, "4 added /registry/nodes/n=y@4 was -");

    assert_eq!(texts(&cache, "/registry/pods/"), ["/registry/pods/a/1=y@4"]);
    assert_eq!(cache.get("/registry/pods/a/1").unwrap().as_str(), "y@4");
    assert!(cache.get("/registry/pods/a/2").is_none());
    assert_eq!(
        texts(&cache, "/registry/"),
        ["/registry/nodes/n=y@4", "/registry/pods/a/1=y@4", "/registry/podsecurity/a/1=x@3"]
    );
    // A snapshot is of its time.
    assert_eq!((before.revision, before.len()), (3, 3));
    assert_eq!(before.get("/registry/pods/a/2").unwrap().as_str(), "x@2");
    let rest = before.iter_from("/registry/pods/a/2");
    assert_eq!(rest.count(), 2);
    drop((pods, one, wide));
    assert_eq!(cache.watchers(), 0);
}

/// Where the keys of a prefix that ends in a slash end.
fn end(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

/// What the cache says of an older state is what the engine says of it.
async fn older_states_are_as_the_engine_has_them(f: Fixture) {
    let e = &f.engine;
    write(e, vec![put("/registry/pods/a/1", "x"), put("/registry/pods/a/2", "x")]).await; // 2
    let cache = start(e).await;
    write(e, vec![put("/registry/pods/a/1", "y"), delete("/registry/pods/a/2", ""), put("/registry/pods/a/3", "y")])
        .await;
    write(e, vec![put("/registry/pods/a/2", "z"), put("/registry/pods/b/1", "z"), put("/registry/nodes/n", "z")]).await;
    write(e, vec![delete("/registry/pods/a/1", ""), put("/registry/pods/a/3", "-")]).await;
    write(e, vec![put("/registry/pods/a/1", "again")]).await; // 6
    cache.wait_for(6, PATIENCE).await.unwrap();
    for revision in 2..=6 {
        for prefix in ["/registry/pods/", "/registry/pods/a/", "/registry/pods/b/"] {
            let there = e.range(Range { revision, ..range(prefix, &end(prefix)) }).await.unwrap();
            let expected: Vec<String> = there
                .kvs
                .iter()
                .filter_map(|kv| Some(format!("{}={}", String::from_utf8_lossy(&kv.key), Text.decode(kv)?)))
                .collect();
            let state = cache.list_at(prefix, revision).unwrap();
            let found: Vec<String> = state.iter().map(|(key, object)| format!("{key}={object}")).collect();
            assert_eq!((state.revision, &found), (revision, &expected), "{prefix} at {revision}");
            let from = format!("{prefix}a/2");
            assert_eq!(state.len_from(&from), state.iter_from(&from).count());
            assert_eq!(state.len(), expected.len());
        }
    }
    assert!(cache.list_at("/registry/pods/", 1).is_none(), "older than the cache");
    assert!(cache.list_at("/registry/pods/", 7).is_none(), "not there yet");
    assert!(cache.list_at("/registry/none/", 6).is_none(), "of a resource without objects");
}

/// Whoever was told that a write is done finds it in the next fresh read.
async fn fresh_reads_see_every_acknowledged_write(f: Fixture) {
    let cache = start(&f.engine).await;
    for n in 0..200 {
        let value = format!("v{n}");
        let written = write(&f.engine, vec![put("/registry/x/1", &value)]).await.revision;
        let revision = cache.fresh().await.unwrap();
        assert!(revision >= written);
        let got = cache.get("/registry/x/1").unwrap();
        assert_eq!(*got, format!("{value}@{written}"));
    }
}

/// Keys outside the prefix make revisions that the cache's watch never shows.
async fn fresh_reads_survive_foreign_revisions(f: Fixture) {
    let limits = CacheLimits { fresh_patience: Duration::from_millis(20), ..CacheLimits::default() };
    let cache = start_with(&f.engine, limits).await;
    for n in 0..3 {
        let foreign = write(&f.engine, vec![put("/other", &n.to_string())]).await.revision;
        assert!(cache.fresh().await.unwrap() >= foreign);
    }
    assert!(cache.list("/registry/").is_empty(), "the barrier is no object");
}

async fn transactions_are_never_seen_in_part(f: Fixture) {
    let cache = start(&f.engine).await;
    let engine = f.engine.clone();
    let writer = tokio::spawn(async move {
        for n in 0..150 {
            let value = n.to_string();
            let ops = (0..4).map(|k| put(&format!("/registry/r{k}/x"), &value));
            write(&engine, ops.collect()).await;
        }
    });
    let mut lists = 0;
    while !writer.is_finished() {
        let snapshot = cache.list("/registry/");
        let texts: Vec<_> = snapshot.iter().map(|(_, o)| Arc::clone(o)).collect();
        assert!(texts.windows(2).all(|w| w[0] == w[1]), "{texts:?}");
        assert!(texts.len() == 4 || texts.is_empty());
        lists += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    assert!(lists > 10, "only {lists} lists while writing");
}

macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                super::$story(super::common::embedded().await).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                super::$story(super::common::etcd().await).await;
            })*
        }
    };
}

stories!(
    follows_the_store,
    older_states_are_as_the_engine_has_them,
    fresh_reads_see_every_acknowledged_write,
    fresh_reads_survive_foreign_revisions,
    transactions_are_never_seen_in_part,
);

#[tokio::test]
async fn the_embedded_engine_needs_no_barrier() {
    let f = common::embedded().await;
    let cache = start(&f.engine).await;
    let foreign = write(&f.engine, vec![put("/other", "1")]).await.revision;
    assert_eq!(cache.fresh().await.unwrap(), foreign);
    assert_eq!(f.engine.revision().await.unwrap(), foreign);
}

#[tokio::test]
async fn watches_start_in_the_past_as_far_as_the_ring_reaches() {
    let f = common::embedded().await;
    write(&f.engine, vec![put("/registry/quiet/1", "x")]).await; // 2
    let limits = CacheLimits { ring_events: 4, ..CacheLimits::default() };
    let cache = start_with(&f.engine, limits).await;
    write(&f.engine, vec![put("/registry/quiet/1", "y")]).await; // 3
    for n in 0..3 {
        write(&f.engine, vec![put("/registry/busy/1", &n.to_string())]).await; // 4..6
    }
    cache.wait_for(6, PATIENCE).await.unwrap();
    let mut all = cache.watch("/registry/", 2).unwrap();
    assert_eq!(next(&mut all).await, "3 modified /registry/quiet/1=y@3 was x@2");
    assert_eq!(next(&mut all).await, "4 added /registry/busy/1=0@4 was -");
    let mut busy = cache.watch("/registry/busy/", 4).unwrap();
    assert_eq!(next(&mut busy).await, "5 modified /registry/busy/1=1@5 was 0@4");

    for n in 3..6 {
        write(&f.engine, vec![put("/registry/busy/1", &n.to_string())]).await; // 7..9
    }
    cache.wait_for(9, PATIENCE).await.unwrap();
    let error = |prefix, from| match cache.watch(prefix, from) {
        Err(Error::Compacted { requested, oldest }) => Some((requested, oldest)),
        Err(e) => panic!("{e}"),
        Ok(_) => None,
    };
    for (prefix, from, expected) in [
        ("/registry/busy/", 9, None),
        ("/registry/busy/", 5, None),
        ("/registry/busy/", 4, Some((4, 5))),
        // What pushed its change out was not its own.
        ("/registry/quiet/", 3, None),
        ("/registry/quiet/", 2, Some((2, 3))),
        // Nothing ever happened there since the cache was loaded.
        ("/registry/none/", 2, None),
        ("/registry/none/", 1, Some((1, 2))),
        ("/registry/", 5, None),
        ("/registry/", 3, Some((3, 5))),
    ] {
        assert_eq!(error(prefix, from), expected, "{prefix} from {from}");
    }
}

#[tokio::test]
async fn an_older_state_that_is_forgotten_is_not_made_up() {
    let f = common::embedded().await;
    let cache = start_with(&f.engine, CacheLimits { ring_events: 3, ..CacheLimits::default() }).await;
    for n in 0..8 {
        write(&f.engine, vec![put("/registry/pods/a", &n.to_string())]).await; // 2 to 9
    }
    cache.wait_for(9, PATIENCE).await.unwrap();
    let at = |revision| {
        let state = cache.list_at("/registry/pods/", revision)?;
        state.get("/registry/pods/a").map(|object| object.to_string())
    };
    assert_eq!(
        [5, 6, 7, 8, 9].map(at),
        [None, Some("4@6"), Some("5@7"), Some("6@8"), Some("7@9")].map(|o| o.map(str::to_owned))
    );
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_lags_and_others_do_not() {
    let f = common::embedded().await;
    let limits = CacheLimits { watcher_queue: 3, max_watchers: 2, ..CacheLimits::default() };
    let cache = start_with(&f.engine, limits).await;
    let mut slow = cache.watch("/registry/x/", 0).unwrap();
    let mut elsewhere = cache.watch("/registry/y/", 0).unwrap();
    assert!(matches!(cache.watch("/registry/z/", 0), Err(Error::Unavailable(_))));
    for n in 0..5 {
        write(&f.engine, vec![put("/registry/x/1", &n.to_string())]).await;
    }
    cache.wait_for(6, PATIENCE).await.unwrap();
    assert_eq!(cache.watchers(), 1, "it was let go");
    assert_eq!(slow.progress(), None);
    for _ in 0..3 {
        assert!(next(&mut slow).await.contains("/registry/x/1"));
    }
    assert_eq!(next(&mut slow).await, "lagged");
    assert_eq!(next(&mut slow).await, "lagged");
    drop(slow);
    assert_eq!(elsewhere.progress(), Some(6));
    write(&f.engine, vec![put("/registry/y/1", "1")]).await;
    assert!(next(&mut elsewhere).await.starts_with("7 added"));
    assert_eq!(cache.watchers(), 1);
}

#[tokio::test]
async fn a_filter_keeps_away_what_a_watcher_does_not_want() {
    let f = common::embedded().await;
    let limits = CacheLimits { watcher_queue: 2, ..CacheLimits::default() };
    let cache = start_with(&f.engine, limits).await;
    for text in ["red", "blue"] {
        write(&f.engine, vec![put("/registry/x/1", text)]).await; // 2, 3
    }
    cache.wait_for(3, PATIENCE).await.unwrap();
    let red = || -> Filter<String> {
        Box::new(|now, before| now.starts_with("red") || before.is_some_and(|b| b.starts_with("red")))
    };
    let mut late = cache.watch_where("/registry/x/", 1, red()).unwrap();
    let mut watch = cache.watch_where("/registry/", 0, red()).unwrap();
    for n in 0..50 {
        write(&f.engine, vec![put("/registry/x/2", &format!("blue{n}"))]).await; // 4..53
    }
    write(&f.engine, vec![put("/registry/x/1", "red")]).await; // 54
    cache.wait_for(54, PATIENCE).await.unwrap();
    assert_eq!(next(&mut late).await, "2 added /registry/x/1=red@2 was -");
    assert_eq!(next(&mut late).await, "3 modified /registry/x/1=blue@3 was red@2");
    for watch in [&mut late, &mut watch] {
        assert_eq!(next(watch).await, "54 modified /registry/x/1=red@54 was blue@3");
        assert_eq!(watch.progress(), Some(54));
    }
}

/// Which watcher's filter was asked is what the tags are about.
#[tokio::test]
async fn a_change_asks_only_the_watchers_of_its_tag() {
    let f = common::embedded().await;
    let cache = start(&f.engine).await;
    write(&f.engine, vec![put("/registry/x/1", "a.early")]).await; // 2
    cache.wait_for(2, PATIENCE).await.unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let watch = |tag: &str, from: i64| {
        let asked = Arc::clone(&asked);
        let filter: Filter<String> = Box::new(move |_, _| {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            true
        });
        cache.watch_tagged("/registry/x/", from, tag, filter).unwrap()
    };
    let others: Vec<_> = (0..50).map(|n| watch(&format!("n{n}"), 1)).collect();
    let (mut a, mut b) = (watch("a", 1), watch("b", 1));
    assert_eq!(next(&mut a).await, "2 added /registry/x/1=a.early@2 was -");
    for text in ["a.one", "b.two", "b.three"] {
        write(&f.engine, vec![put("/registry/x/1", text)]).await; // 3, 4, 5
    }
    assert_eq!(next(&mut a).await, "3 modified /registry/x/1=a.one@3 was a.early@2");
    assert_eq!(next(&mut a).await, "4 modified /registry/x/1=b.two@4 was a.one@3");
    assert_eq!(next(&mut b).await, "4 modified /registry/x/1=b.two@4 was a.one@3");
    assert_eq!(next(&mut b).await, "5 modified /registry/x/1=b.three@5 was b.two@4");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 5);
    assert_eq!(cache.watchers(), 52);
    drop((others, a));
    assert_eq!(cache.watchers(), 1);
    write(&f.engine, vec![put("/registry/x/1", "b.four")]).await; // 6
    assert_eq!(next(&mut b).await, "6 modified /registry/x/1=b.four@6 was b.three@5");
}

#[tokio::test]
async fn quiet_watchers_hear_of_progress() {
    let f = common::embedded().await;
    let limits = CacheLimits { progress_interval: Duration::from_millis(30), ..CacheLimits::default() };
    let cache = start_with(&f.engine, limits).await;
    let mut watch = cache.watch("/registry/x/", 0).unwrap();
    write(&f.engine, vec![put("/registry/y/1", "1")]).await; // 2
    cache.wait_for(2, PATIENCE).await.unwrap();
    assert_eq!(next(&mut watch).await, "progress 2");
    write(&f.engine, vec![put("/registry/x/1", "1")]).await; // 3
    assert_eq!(next(&mut watch).await, "3 added /registry/x/1=1@3 was -");
    let silence = tokio::time::timeout(Duration::from_millis(120), watch.next()).await;
    assert!(silence.is_err(), "nothing new, nothing said");
}

#[tokio::test]
async fn waiting_for_the_future_ends() {
    let f = common::embedded().await;
    let cache = start(&f.engine).await;
    let error = cache.wait_for(99, Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, Error::Future { requested: 99, newest: 1 }), "{error}");
}

/// An engine whose watches can be cut and held back.
struct Cuttable {
    engine: DynEngine,
    held: AtomicBool,
    changed: Notify,
    cut: Arc<Notify>,
    /// Makes the engine take its time to tell its revision.
    slow: AtomicBool,
    asked: AtomicU64,
}

fn cuttable(f: &Fixture) -> Arc<Cuttable> {
    Arc::new(Cuttable {
        engine: f.engine.clone(),
        held: AtomicBool::new(false),
        changed: Notify::new(),
        cut: Arc::new(Notify::new()),
        slow: AtomicBool::new(false),
        asked: AtomicU64::new(0),
    })
}

#[async_trait]
impl Engine for Cuttable {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        self.engine.range(range).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        self.engine.txn(txn).await
    }
    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        while self.held.load(Ordering::SeqCst) {
            self.changed.notified().await;
        }
        let stream = self.engine.watch(watch).await?;
        let cut = Arc::clone(&self.cut);
        Ok(Box::pin(stream.take_until(async move { cut.notified().await })))
    }
    async fn revision(&self) -> Result<Revision, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.engine.revision().await
    }
    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.engine.compact(revision).await
    }
    async fn lease_grant(&self, ttl: i64) -> Result<i64, Error> {
        self.engine.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: i64) -> Result<(), Error> {
        self.engine.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        self.engine.lease_revoke(lease).await
    }
    async fn status(&self) -> Result<Status, Error> {
        self.engine.status().await
    }
}

#[tokio::test]
async fn a_cut_watch_is_resumed_and_a_lost_history_reloaded() {
    let f = common::embedded().await;
    let cuttable = cuttable(&f);
    let engine: DynEngine = cuttable.clone();
    write(&engine, vec![put("/registry/x/1", "1"), put("/registry/x/2", "1")]).await; // 2
    let cache = start(&engine).await;
    let mut watch = cache.watch("/registry/x/", 0).unwrap();

    // Cut: nothing is lost, watchers notice nothing.
    cuttable.held.store(true, Ordering::SeqCst);
    cuttable.cut.notify_one();
    write(&engine, vec![put("/registry/x/1", "2")]).await; // 3
    cuttable.held.store(false, Ordering::SeqCst);
    cuttable.changed.notify_one();
    assert_eq!(next(&mut watch).await, "3 modified /registry/x/1=2@3 was 1@2");

    // Cut for so long that the history is gone: everything is read again, watchers start over.
    cuttable.held.store(true, Ordering::SeqCst);
    cuttable.cut.notify_one();
    write(&engine, vec![put("/registry/x/1", "3")]).await; // 4
    write(&engine, vec![delete("/registry/x/2", "")]).await; // 5
    engine.compact(5).await.unwrap();
    write(&engine, vec![put("/registry/x/3", "1")]).await; // 6
    cuttable.held.store(false, Ordering::SeqCst);
    cuttable.changed.notify_one();
    cache.fresh().await.unwrap();
    assert_eq!(texts(&cache, "/registry/x/"), ["/registry/x/1=3@4", "/registry/x/3=1@6"]);
    assert_eq!(next(&mut watch).await, "lagged");
    assert!(matches!(cache.watch("/registry/x/", 4), Err(Error::Compacted { .. })));
    let mut anew = cache.watch("/registry/x/", 6).unwrap();
    drop(watch);
    write(&engine, vec![put("/registry/x/1", "4")]).await; // 7
    assert_eq!(next(&mut anew).await, "7 modified /registry/x/1=4@7 was 3@4");
}

/// Readers that wait together ask the engine together, and each still sees what was written before.
#[tokio::test(flavor = "multi_thread")]
async fn many_fresh_reads_share_the_question() {
    let f = common::embedded().await;
    let cuttable = cuttable(&f);
    let engine: DynEngine = cuttable.clone();
    let cache = start(&engine).await;
    cuttable.slow.store(true, Ordering::SeqCst);
    let readers: Vec<_> = (0..200)
        .map(|n| {
            let (cache, engine) = (Arc::clone(&cache), engine.clone());
            tokio::spawn(async move {
                let key = format!("/registry/x/{n}");
                let written = write(&engine, vec![put(&key, "1")]).await.revision;
                assert!(cache.fresh().await.unwrap() >= written);
                assert!(cache.get(&key).is_some());
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let asked = cuttable.asked.load(Ordering::SeqCst);
    assert!((1..100).contains(&asked), "200 readers asked {asked} times");
}

/// The engine's watch and the cache over it outlive a restart of etcd.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_etcd_loses_nothing() {
    let mut f = common::etcd().await;
    let cache = start(&f.engine).await;
    let all = Watch { key: "/registry/".into(), end: "/registry0".into(), start: 0 };
    let mut stream = f.engine.watch(all).await.unwrap();
    write(&f.engine, vec![put("/registry/x/1", "1")]).await; // 2
    assert_eq!(next_events(&mut stream).await.unwrap().0, 2);
    let server = f.etcd.as_mut().unwrap();
    server.stop();
    let down = f.engine.range(range("/registry/x/1", "")).await.unwrap_err();
    assert!(matches!(down, Error::Unavailable(_)), "{down}");
    server.restart();
    // A second client comes back earlier than the watch may: it must not matter.
    let other: DynEngine = server.connect().await;
    write(&other, vec![put("/registry/x/1", "2")]).await; // 3
    write(&other, vec![put("/registry/x/2", "1")]).await; // 4
    assert_eq!(next_events(&mut stream).await.unwrap().0, 3);
    assert_eq!(next_events(&mut stream).await.unwrap().0, 4);
    cache.wait_for(4, PATIENCE).await.unwrap();
    assert_eq!(texts(&cache, "/registry/x/"), ["/registry/x/1=2@3", "/registry/x/2=1@4"]);
}

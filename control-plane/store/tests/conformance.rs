//! One suite of stories for every engine: etcd's semantics as the API server relies on them.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Fixture, TlsFiles, delete, list, next_events, put, range, show, write};
use sluice_store::{Compare, DynEngine, Error, EventKind, Op, OpResult, Range, Txn, Watch, etcd::Tls};

/// Runs each story on each engine.
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
    writes_count_revisions_and_versions,
    compares_choose_the_branch,
    a_transaction_is_one_revision,
    refused_transactions_leave_nothing,
    ranges_page_and_count,
    large_ranges_come_whole,
    the_past_can_be_read_until_compacted,
    watches_deliver_whole_revisions,
    watches_replay_and_follow,
    watches_of_the_compacted_past_are_refused,
    leases_expire_and_take_their_keys,
    revoking_a_lease_deletes_its_keys,
    concurrent_compare_and_swap_loses_nothing,
    status_tells_where_it_stands,
);

async fn writes_count_revisions_and_versions(f: Fixture) {
    let e = &f.engine;
    assert_eq!(e.revision().await.unwrap(), 1, "an empty store is at 1");
    let first = write(e, vec![put("/a", "1")]).await.revision;
    let second = write(e, vec![put("/a", "2")]).await.revision;
    assert_eq!((first, second), (2, 3));
    let kv = e.range(range("/a", "")).await.unwrap().kvs.remove(0);
    assert_eq!(show(&kv), "/a=2");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (2, 3, 2, 0));
    // Deleting nothing is no revision, deleting something is.
    assert_eq!(write(e, vec![delete("/b", "")]).await.revision, 3);
    assert_eq!(write(e, vec![delete("/a", "")]).await.revision, 4);
    assert_eq!(e.range(range("/a", "")).await.unwrap().count, 0);
    // A new life starts counting anew.
    write(e, vec![put("/a", "3")]).await;
    let kv = e.range(range("/a", "")).await.unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    assert_eq!(e.revision().await.unwrap(), 5);
}

async fn compares_choose_the_branch(f: Fixture) {
    let e = &f.engine;
    write(e, vec![put("/a", "x")]).await;
    let key = || Bytes::from_static(b"/a");
    let none = || Bytes::from_static(b"/none");
    let x = || Bytes::from_static(b"x");
    for (compare, holds) in [
        (Compare::ModRevision { key: key(), equals: 2 }, true),
        (Compare::ModRevision { key: key(), equals: 1 }, false),
        (Compare::ModRevision { key: none(), equals: 0 }, true),
        (Compare::Version { key: key(), equals: 1 }, true),
        (Compare::Version { key: key(), equals: 0 }, false),
        (Compare::Version { key: none(), equals: 0 }, true),
        (Compare::Value { key: key(), equals: x() }, true),
        (Compare::Value { key: key(), equals: none() }, false),
        (Compare::Value { key: none(), equals: Bytes::new() }, false),
    ] {
        let asked = format!("{compare:?}");
        let txn = Txn { compare: vec![compare], success: vec![], failure: vec![Op::Get(range("/a", ""))], lazy: false };
        let result = e.txn(txn).await.unwrap();
        assert_eq!(result.succeeded, holds, "{asked}");
        assert_eq!(result.revision, 2, "reading is no revision: {asked}");
        match (&result.results[..], holds) {
            ([], true) => {}
            ([OpResult::Get(got)], false) => assert_eq!(show(&got.kvs[0]), "/a=x"),
            other => panic!("{asked}: {other:?}"),
        }
    }
}

async fn a_transaction_is_one_revision(f: Fixture) {
    let e = &f.engine;
    write(e, vec![put("/a/1", "old"), put("/a/2", "old")]).await;
    let result = write(e, vec![put("/b", "new"), delete("/a/", "/a0"), Op::Get(range("/", "\0"))]).await;
    assert_eq!(result.revision, 3);
    let [OpResult::Put, OpResult::Delete { deleted: 2 }, OpResult::Get(seen)] = &result.results[..] else {
        panic!("{:?}", result.results);
    };
    assert_eq!(seen.kvs.iter().map(show).collect::<Vec<_>>(), ["/b=new"], "a transaction reads its own writes");
    assert_eq!(seen.kvs[0].mod_revision, 3);
    assert_eq!(list(e, range("/", "\0")).await.unwrap(), ["/b=new"]);
}

async fn refused_transactions_leave_nothing(f: Fixture) {
    let e = &f.engine;
    let leased = |lease| Op::Put { key: Bytes::from_static(b"/leased"), value: Bytes::new(), lease };
    let many = (0..200).map(|n| put(&format!("/{n}"), "")).collect();
    type Check = fn(&Error) -> bool;
    let cases: Vec<(&str, Vec<Op>, Check)> = vec![
        ("put twice", vec![put("/a", "1"), put("/a", "2")], |e| matches!(e, Error::Invalid(_))),
        ("put and delete", vec![put("/a", "1"), delete("/", "\0")], |e| matches!(e, Error::Invalid(_))),
        ("no key", vec![put("", "1")], |e| matches!(e, Error::Invalid(_))),
        ("no lease", vec![put("/a", "1"), leased(77)], |e| matches!(e, Error::LeaseNotFound(_))),
        ("too many", many, |e| matches!(e, Error::TooLarge(_))),
        ("future", vec![put("/a", "1"), Op::Get(Range { revision: 99, ..range("/a", "") })], |e| {
            matches!(e, Error::Future { .. })
        }),
    ];
    for (name, success, expected) in cases {
        let txn = Txn { success, ..Txn::default() };
        let error = e.txn(txn).await.unwrap_err();
        assert!(expected(&error), "{name}: {error}");
        assert_eq!(e.revision().await.unwrap(), 1, "{name}");
        assert!(list(e, range("/", "\0")).await.unwrap().is_empty());
    }
}

async fn ranges_page_and_count(f: Fixture) {
    let e = &f.engine;
    for n in 0..5 {
        write(e, vec![put(&format!("/p/{n}"), "v"), put("/q", "v")]).await;
    }
    write(e, vec![delete("/p/2", "")]).await;
    let result = e.range(Range { limit: 2, ..range("/p/", "/p0") }).await.unwrap();
    let keys: Vec<_> = result.kvs.iter().map(show).collect();
    assert_eq!(keys, ["/p/0=v", "/p/1=v"]);
    assert_eq!((result.more, result.count, result.revision), (true, 4, 7));
    let rest = e.range(Range { limit: 2, revision: result.revision, ..range("/p/1\0", "/p0") }).await.unwrap();
    let keys: Vec<_> = rest.kvs.iter().map(show).collect();
    assert_eq!(keys, ["/p/3=v", "/p/4=v"]);
    assert!(!rest.more, "a limit met exactly leaves nothing more");
    let count = e.range(Range { count_only: true, ..range("/", "\0") }).await.unwrap();
    assert_eq!((count.count, count.kvs.len()), (5, 0));
    for (key, end, expected) in [("/p/4", "\0", 2), ("/q", "", 1), ("/q", "/q", 0), ("/z", "/a", 0), ("/none", "", 0)] {
        let got = e.range(range(key, end)).await.unwrap();
        assert_eq!(got.count, expected, "[{key}, {end})");
    }
}

/// More keys than one page, and more bytes than one message should hold.
async fn large_ranges_come_whole(f: Fixture) {
    let e = &f.engine;
    let value = "x".repeat(10_000);
    for chunk in 0..12 {
        let ops = (0..100).map(|n| put(&format!("/big/{:04}", chunk * 100 + n), &value));
        write(e, ops.collect()).await;
    }
    let all = e.range(range("/big/", "/big0")).await.unwrap();
    assert_eq!((all.kvs.len(), all.count, all.more), (1200, 1200, false));
    assert!(all.kvs.windows(2).all(|w| w[0].key < w[1].key));
    let cut = e.range(Range { limit: 1100, ..range("/big/", "/big0") }).await.unwrap();
    assert_eq!((cut.kvs.len(), cut.count, cut.more), (1100, 1200, true));
}

async fn the_past_can_be_read_until_compacted(f: Fixture) {
    let e = &f.engine;
    write(e, vec![put("/a", "1"), put("/b", "1")]).await; // 2
    write(e, vec![put("/a", "2")]).await; // 3
    write(e, vec![delete("/b", "")]).await; // 4
    write(e, vec![put("/c", "1")]).await; // 5
    let at = |revision| Range { revision, ..range("/", "\0") };
    let history = async |revisions: &[(i64, &[&str])]| {
        for (revision, expected) in revisions {
            let got = list(e, at(*revision)).await.unwrap();
            assert_eq!(got, *expected, "at {revision}");
        }
    };
    let (r3, r4, r5): (&[&str], &[&str], &[&str]) = (&["/a=2", "/b=1"], &["/a=2"], &["/a=2", "/c=1"]);
    history(&[(1, &[]), (2, &["/a=1", "/b=1"]), (3, r3), (4, r4), (5, r5)]).await;
    let future = e.range(at(6)).await.unwrap_err();
    assert!(matches!(future, Error::Future { requested: 6, newest: 5 }), "{future}");
    e.compact(3).await.unwrap();
    history(&[(3, r3), (4, r4), (5, r5), (0, r5)]).await;
    for revision in [1, 2] {
        let past = e.range(at(revision)).await.unwrap_err();
        let Error::Compacted { requested, oldest } = past else {
            panic!("{past}");
        };
        assert_eq!((requested, oldest), (revision, 3));
    }
    assert!(matches!(e.compact(3).await.unwrap_err(), Error::Compacted { .. }));
    assert!(matches!(e.compact(9).await.unwrap_err(), Error::Future { .. }));
    e.compact(5).await.unwrap();
    history(&[(5, r5), (0, r5)]).await;
    write(e, vec![put("/b", "new")]).await;
    let kv = e.range(range("/b", "")).await.unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.version), (6, 1));
}

fn watch(key: &str, end: &str, start: i64) -> Watch {
    Watch { key: Bytes::copy_from_slice(key.as_bytes()), end: Bytes::copy_from_slice(end.as_bytes()), start }
}

fn show_event(event: &sluice_store::Event) -> String {
    let kind = match event.kind {
        EventKind::Put => "put",
        EventKind::Delete => "delete",
    };
    let before = event.previous.as_ref().map_or("-".to_owned(), show);
    format!("{kind} {} was {before}", show(&event.kv))
}

async fn expect(stream: &mut sluice_store::WatchStream, expected: &[(i64, &[&str])]) {
    for (revision, shown) in expected {
        let (got, events) = next_events(stream).await.unwrap();
        let events: Vec<_> = events.iter().map(show_event).collect();
        assert_eq!((got, &events[..]), (*revision, &shown.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]));
    }
}

async fn watches_deliver_whole_revisions(f: Fixture) {
    let e = &f.engine;
    let mut all = e.watch(watch("/w/", "/w0", 0)).await.unwrap();
    let mut one = e.watch(watch("/w/b", "", 0)).await.unwrap();
    write(e, vec![put("/w/a", "1"), put("/w/b", "1"), put("/x", "1")]).await;
    write(e, vec![put("/x", "2")]).await;
    write(e, vec![put("/w/a", "2"), delete("/w/b", "")]).await;
    let events = [
        (2, &["put /w/a=1 was -", "put /w/b=1 was -"][..]),
        (4, &["put /w/a=2 was /w/a=1", "delete /w/b= was /w/b=1"]),
    ];
    expect(&mut all, &events).await;
    let events = [(2, &["put /w/b=1 was -"][..]), (4, &["delete /w/b= was /w/b=1"])];
    expect(&mut one, &events).await;
}

/// A watch from the past sees exactly what one from the start saw, and goes on.
async fn watches_replay_and_follow(f: Fixture) {
    let e = &f.engine;
    for n in 0..700 {
        let value = format!("{n}");
        let op = if n % 7 == 6 { delete("/r/0", "/r2") } else { put(&format!("/r/{}", n % 5), &value) };
        write(e, vec![op]).await;
    }
    let newest = e.revision().await.unwrap();
    for start in [2, 3, 650, newest, newest + 1] {
        let mut stream = e.watch(watch("/r/", "/r0", start)).await.unwrap();
        let mut revision = start - 1;
        while revision < newest {
            let (next, events) = next_events(&mut stream).await.unwrap();
            assert_eq!(next, revision + 1, "no gap and no repetition");
            for event in events {
                let at = Range { revision: next - 1, ..range(std::str::from_utf8(&event.kv.key).unwrap(), "") };
                let before = if next == 2 { Vec::new() } else { e.range(at).await.unwrap().kvs };
                assert_eq!(event.previous.as_ref(), before.first(), "at {next}");
            }
            revision = next;
        }
    }
    let mut stream = e.watch(watch("/r/", "/r0", newest + 1)).await.unwrap();
    write(e, vec![put("/r/live", "1")]).await;
    expect(&mut stream, &[(newest + 1, &["put /r/live=1 was -"])]).await;
}

async fn watches_of_the_compacted_past_are_refused(f: Fixture) {
    let e = &f.engine;
    for n in 0..5 {
        write(e, vec![put("/a", &n.to_string())]).await;
    }
    e.compact(5).await.unwrap();
    let refused = match e.watch(watch("/a", "", 3)).await {
        Ok(mut stream) => next_events(&mut stream).await.map(|_| ()),
        Err(e) => Err(e),
    };
    let Err(Error::Compacted { requested, oldest }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((requested, oldest), (3, 5));
    let mut stream = e.watch(watch("/a", "", 5)).await.unwrap();
    let (revision, events) = next_events(&mut stream).await.unwrap();
    assert_eq!((revision, show(&events[0].kv)), (5, "/a=3".to_owned()));
}

fn leased(key: &str, lease: i64) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::from_static(b"v"), lease }
}

async fn leases_expire_and_take_their_keys(f: Fixture) {
    let e = &f.engine;
    let (short, long) = (e.lease_grant(1).await.unwrap(), e.lease_grant(3600).await.unwrap());
    assert_eq!(e.revision().await.unwrap(), 1, "a lease is no revision");
    write(e, vec![leased("/l/1", short), leased("/l/2", short)]).await;
    write(e, vec![leased("/l/3", long), leased("/l/4", short)]).await;
    // Written again without a lease, or with another: no longer taken by the first.
    write(e, vec![put("/l/1", "kept")]).await;
    write(e, vec![leased("/l/4", long)]).await;
    let mut stream = e.watch(watch("/l/", "/l0", 6)).await.unwrap();
    let (revision, events) = next_events(&mut stream).await.unwrap();
    let events: Vec<_> = events.iter().map(show_event).collect();
    assert_eq!((revision, events), (6, vec!["delete /l/2= was /l/2=v".to_owned()]));
    assert!(matches!(
        e.lease_keep_alive(short).await.unwrap_err(),
        Error::LeaseNotFound(id) if id == short
    ));
    e.lease_keep_alive(long).await.unwrap();
    assert_eq!(list(e, range("/l/", "/l0")).await.unwrap(), ["/l/1=kept", "/l/3=v", "/l/4=v"]);
}

async fn revoking_a_lease_deletes_its_keys(f: Fixture) {
    let e = &f.engine;
    let lease = e.lease_grant(60).await.unwrap();
    write(e, vec![leased("/l/1", lease), leased("/l/2", lease)]).await;
    let kv = e.range(range("/l/1", "")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.lease, lease);
    let mut stream = e.watch(watch("/l/", "/l0", 0)).await.unwrap();
    e.lease_revoke(lease).await.unwrap();
    let (revision, events) = next_events(&mut stream).await.unwrap();
    assert_eq!((revision, events.len()), (3, 2), "all keys in one revision");
    assert!(matches!(e.lease_revoke(lease).await.unwrap_err(), Error::LeaseNotFound(_)));
    let error = e.txn(Txn { success: vec![leased("/l/1", lease)], ..Txn::default() }).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound(_)), "{error}");
}

/// Many writers increment one counter by compare-and-swap: every success counts once.
async fn concurrent_compare_and_swap_loses_nothing(f: Fixture) {
    async fn increment(engine: &DynEngine) {
        loop {
            let got = engine.range(range("/counter", "")).await.unwrap();
            let (value, revision) = match got.kvs.first() {
                Some(kv) => (std::str::from_utf8(&kv.value).unwrap().parse().unwrap(), kv.mod_revision),
                None => (0u64, 0),
            };
            let txn = Txn {
                compare: vec![Compare::ModRevision { key: Bytes::from_static(b"/counter"), equals: revision }],
                success: vec![put("/counter", &(value + 1).to_string())],
                ..Txn::default()
            };
            if engine.txn(txn).await.unwrap().succeeded {
                return;
            }
        }
    }
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let engine = f.engine.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    increment(&engine).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let got = f.engine.range(range("/counter", "")).await.unwrap();
    assert_eq!(show(&got.kvs[0]), "/counter=80");
    assert_eq!((got.kvs[0].version, got.revision), (80, 81));
}

async fn status_tells_where_it_stands(f: Fixture) {
    write(&f.engine, vec![put("/a", "1")]).await;
    write(&f.engine, vec![put("/a", "2")]).await;
    f.engine.compact(2).await.unwrap();
    let status = f.engine.status().await.unwrap();
    assert_eq!((status.revision, status.compacted), (3, 2));
    assert!(status.size_bytes > 0 && !status.version.is_empty());
    assert_eq!(status.engine == "etcd", f.etcd.is_some());
}

/// etcd that asks for client certificates: ours is taken, none or a stranger's is refused.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_over_mutual_tls() {
    let (files, stranger) = (tls_files(), tls_files());
    let tls = |ca: &TlsFiles, identity: Option<&TlsFiles>| {
        let pem = |text: &String| text.clone().into_bytes();
        Tls { ca: pem(&ca.ca), identity: identity.map(|i| (pem(&i.certificate), pem(&i.key))), server_name: None }
    };
    let (good, anonymous) = (tls(&files, Some(&files)), tls(&files, None));
    let (unknown_client, unknown_server) = (tls(&files, Some(&stranger)), tls(&stranger, Some(&files)));
    let server = common::EtcdServer::start_with(Some(files));
    let engine: DynEngine = server.connect_with(Some(good)).await;
    let mut stream = engine.watch(watch("/a", "", 0)).await.unwrap();
    write(&engine, vec![put("/a", "1")]).await;
    expect(&mut stream, &[(2, &["put /a=1 was -"])]).await;
    let refused = async |tls| sluice_store::etcd::Etcd::connect(&[server.endpoint()], Some(tls)).await.err().unwrap();
    let (a, b, c) = tokio::join!(refused(anonymous), refused(unknown_client), refused(unknown_server));
    for error in [&a, &b, &c] {
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert!(error.to_string().contains(&server.endpoint()), "{error}");
    }
    assert!(c.to_string().contains("certificate"), "{c}");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named_with_the_reason() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let error = sluice_store::etcd::Etcd::connect(std::slice::from_ref(&endpoint), None).await.err().unwrap();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(error.to_string().contains(&endpoint) && error.to_string().contains("refused"), "{error}");
    for (endpoints, word) in [(vec![], "endpoints"), (vec!["http://a b".to_owned()], "endpoints")] {
        let error = sluice_store::etcd::Etcd::connect(&endpoints, None).await.err().unwrap();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains(word), "{error}");
    }
}

fn tls_files() -> TlsFiles {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut both = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    both.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = both.signed_by(&key, &issuer).unwrap().pem();
    TlsFiles { ca: ca_pem, certificate, key: key.serialize_pem() }
}

/// Members of a cluster, begun with each of them in turn, as several servers do.
async fn begun_anywhere(endpoints: &[String]) -> Vec<DynEngine> {
    let mut engines: Vec<DynEngine> = Vec::new();
    for _ in 0..8 {
        engines.push(sluice_store::etcd::Etcd::connect(endpoints, None).await.unwrap());
    }
    engines
}

/// One of two members is not there: nothing fails, since nothing was sent to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_away_is_passed_over() {
    let fixture = common::etcd().await;
    let there = fixture.etcd.as_ref().unwrap().endpoint();
    // Nobody listens there.
    let away = "http://127.0.0.1:1".to_owned();
    for engine in begun_anywhere(&[away, there]).await {
        for n in 0..50 {
            write(&engine, vec![put("/a", &n.to_string())]).await;
        }
    }
}

/// One of two members takes connections and says nothing: reads go on with the other one, and so does whatever comes after a
/// while; what was sent to it may have been done, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_says_nothing_is_passed_over() {
    let fixture = common::etcd().await;
    let there = fixture.etcd.as_ref().unwrap().endpoint();
    let relay = common::Relay::to(&there).await;
    let endpoints = [relay.endpoint(), there];
    let engines = begun_anywhere(&endpoints).await;
    let watching = engines.iter().map(|engine| engine.watch(watch("/a", "", 0)));
    let streams = futures::future::try_join_all(watching).await.unwrap();
    relay.be_silent();
    let stories = engines.iter().zip(streams).map(async |(engine, mut stream)| {
        let sent = async {
            match engine.txn(Txn { success: vec![put("/b", "1")], ..Txn::default() }).await {
                Ok(_) | Err(Error::Unavailable(_)) => {}
                Err(other) => panic!("{other}"),
            }
        };
        let later = async {
            engine.range(range("/a", "")).await.unwrap();
            write(engine, vec![put("/a", "1")]).await;
            next_events(&mut stream).await.unwrap();
        };
        futures::join!(sent, later);
        let another: DynEngine = sluice_store::etcd::Etcd::connect(&endpoints, None).await.unwrap();
        another.range(range("/a", "")).await.unwrap();
    });
    futures::future::join_all(stories).await;
}

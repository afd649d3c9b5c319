//! No flow is lost while the data plane is restarted, upgraded, rolled back, resized or killed: connections by packet (from
//! another namespace through a node port) and by socket (through a cluster address), long ones and short ones, connected and
//! unconnected datagrams, all of them counted.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/load.rs"]
mod load;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Namespace, Place, isolated, service, tcp_server, udp_server};
use load::{NEW, OLD, Way, under_load};
use sluice_dataplane::migrate::{BUILD, Build};
use sluice_dataplane::model::{Protocol, Snapshot};
use sluice_dataplane::plan::Capacity;
use sluice_dataplane::{Config, Dataplane, Sizes, Traffic, Uplinks};

const CLUSTER: &str = "10.96.0.10:80";
const CLUSTER_UDP: &str = "10.96.0.11:53";
const NODE: &str = "10.1.0.1:30080";
const NODE_UDP: &str = "10.1.0.1:30053";
const DAEMON: &str = "SLUICE_TEST_DAEMON";

fn config(place: &Place) -> Config {
    Config { uplinks: Uplinks::Every { except: vec![] }, ..place.config() }
}

/// Two services with four backends each, and as many others as are asked for.
fn table(others: u16) -> Snapshot {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    let mut add = |name: std::sync::Arc<str>, protocol, cluster: &str, node_port, endpoints: &[&str]| {
        let one = service(protocol, cluster, node_port, endpoints);
        snapshot.services.insert(("shop".into(), name.clone()), one.services.into_values().next().unwrap());
        for (index, mut slice) in one.slices.into_values().enumerate() {
            slice.service.clone_from(&name);
            snapshot.slices.insert(("shop".into(), format!("{name}-{index}").into()), slice);
        }
    };
    let backends = ["10.1.0.1:8001", "10.1.0.1:8002", "10.1.0.1:8003", "10.1.0.1:8004"];
    add("web".into(), Protocol::Tcp, CLUSTER, 30080, &backends);
    add("dns".into(), Protocol::Udp, CLUSTER_UDP, 30053, &backends);
    for other in 0..others {
        let endpoint = format!("10.2.{}.{}:80", other >> 8, other & 255);
        add(
            format!("other-{other}").into(),
            Protocol::Tcp,
            &format!("10.97.{}.{}:80", other >> 8, other & 255),
            0,
            &[&endpoint],
        );
    }
    snapshot
}

/// Servers on the node and clients outside of it.
fn world(place: &Place) -> Namespace {
    let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
    for port in 8001..=8004 {
        tcp_server(&format!("10.1.0.1:{port}"));
        udp_server(&format!("10.1.0.1:{port}"));
    }
    outside
}

/// From outside and from the node.
fn ways(outside: &Namespace) -> [Way<'_>; 2] {
    [
        Way { name: "by packet", inside: Some(outside), tcp: NODE, udp: NODE_UDP },
        Way { name: "by socket", inside: None, tcp: CLUSTER, udp: CLUSTER_UDP },
    ]
}

/// Only the node's own sockets are translated when they connect, not those outside.
fn packets_from_outside(dataplane: &Dataplane) {
    dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
}

/// Looks after the maps meanwhile, as the daemon does: they fill at the clients' pace, not at the story's.
fn tended(dataplane: &Dataplane, story: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                dataplane.tend().unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(story));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn load(place: &Place, build: Build) -> Dataplane {
    Dataplane::load_build(config(place), Traffic::best(), build).unwrap()
}

#[test]
fn connections_outlive_restarts_and_upgrades_to_another_schema() {
    isolated("connections_outlive_restarts_and_upgrades_to_another_schema", |place| {
        let outside = world(place);
        let first = load(place, OLD);
        first.apply(&table(3)).unwrap();
        packets_from_outside(&first);
        let known = first.services().unwrap();
        under_load(&ways(&outside), |step| {
            drop(first);
            step("nobody runs");
            for round in 0..3 {
                let dataplane = load(place, OLD);
                step("restarted, nothing known yet");
                dataplane.apply(&table(3)).unwrap();
                drop(dataplane);
                // Everything but the revision is the same: every map is shared.
                let dataplane = load(place, Build { schema: 200 + round, ..OLD });
                step("another schema with the same maps");
                dataplane.apply(&table(3)).unwrap();
            }
        });
        let last = load(place, OLD);
        let names =
            |rows: &[sluice_dataplane::ServiceRow]| rows.iter().map(|row| row.service.clone()).collect::<Vec<_>>();
        let now = last.services().unwrap();
        assert_eq!(names(&now), names(&known));
        let web = now.iter().find(|row| row.service == "shop/web:main").unwrap();
        assert!(web.connections > 100, "counters went on: {}", web.connections);
    });
}

/// Long connections and datagrams of flows that exist; new flows may have to be asked for again while the record changes.
#[test]
fn flows_go_along_to_another_record_and_back() {
    isolated("flows_go_along_to_another_record_and_back", |place| {
        let outside = world(place);
        let first = load(place, OLD);
        first.apply(&table(0)).unwrap();
        packets_from_outside(&first);
        under_load(&ways(&outside), |step| {
            drop(first);
            for _ in 0..3 {
                let newer = load(place, NEW);
                step("upgraded");
                newer.apply(&table(0)).unwrap();
                drop(newer);
                let older = load(place, OLD);
                step("rolled back");
                older.apply(&table(0)).unwrap();
            }
        });
        let pins = |schema: u32| place.pins.join(format!("v{schema}"));
        assert!(pins(100).exists() && pins(101).exists(), "kept for another change of mind");
        load(place, OLD).confirm().unwrap();
        assert!(pins(100).exists() && !pins(101).exists());
    });
}

const TINY: Sizes =
    Sizes { table: Capacity { frontends: 16, backends: 16, slab: 32, services: 8, ranges: 8 }, flows: 16_384 };

/// One datagram from a port of its own, which makes a flow that stays for a while.
fn datagram(address: &str, port: u16) {
    UdpSocket::bind((address, port)).unwrap().send_to(b"x", NODE_UDP).unwrap();
}

#[test]
fn maps_grow_while_connections_run_and_say_when_they_may_not() {
    isolated("maps_grow_while_connections_run_and_say_when_they_may_not", |place| {
        let outside = world(place);
        let most = Sizes {
            table: Capacity { frontends: 256, backends: 256, slab: 512, services: 128, ranges: 8 },
            flows: 131_072,
        };
        // The clients of the story do not fill the flow map while it grows, however long that takes here.
        let start = Sizes { flows: 65_536, ..TINY };
        let dataplane = load(place, Build { start, most, ..BUILD });
        dataplane.apply(&table(0)).unwrap();
        packets_from_outside(&dataplane);
        let limit = |name: &str| {
            dataplane.status().unwrap().maps.iter().find(|map| map.name == name).map(|map| map.limit).unwrap()
        };
        let before = limit("flows");
        tended(&dataplane, || {
            under_load(&ways(&outside), |step| {
                for others in [5, 20, 60] {
                    assert_eq!(dataplane.apply(&table(others)).unwrap(), Vec::<String>::new());
                    step("grown");
                    dataplane.tend().unwrap();
                }
                let problems = dataplane.apply(&table(200)).unwrap();
                assert!(problems[0].contains("shop/other-") && problems[0].contains("(128)"), "{problems:?}");
                assert!(problems.last().unwrap().starts_with("and "), "{problems:?}");
                dataplane.tend().unwrap();
                let refused = dataplane.refused();
                assert!(refused.borrow()[0].starts_with("shop/other-"), "{refused:?}");
                step("full");
                assert_eq!(dataplane.services().unwrap().len(), 127, "those that fit are served");
                assert_eq!(dataplane.apply(&table(60)).unwrap(), Vec::<String>::new());
                assert!(refused.borrow().is_empty(), "{refused:?}");
                let mut ports = 1024..32_000;
                while limit("flows") == before {
                    let some: Vec<u16> = ports.by_ref().take(1000).collect();
                    assert!(!some.is_empty(), "the flow map did not grow");
                    outside.within(|| some.iter().for_each(|port| datagram("10.1.0.2", *port)));
                    dataplane.tend().unwrap();
                    step("flows come");
                }
            })
        });
        assert_eq!((limit("frontends"), limit("names")), (256, 128));
        // A later process goes on with what it finds.
        drop(dataplane);
        let next = load(place, Build { start, most, ..BUILD });
        next.apply(&table(60)).unwrap();
        assert_eq!(next.services().unwrap().len(), 62);
    });
}

/// The kernel's numbers of the programs that are attached, by name and place.
fn programs(dataplane: &Dataplane) -> BTreeMap<(String, String), u32> {
    let rows = dataplane.status().unwrap().programs;
    rows.into_iter().map(|row| ((row.name, row.attached), row.id)).collect()
}

#[test]
fn programs_are_loaded_once_for_the_same_maps() {
    isolated("programs_are_loaded_once_for_the_same_maps", |place| {
        let _outside = world(place);
        let build = Build { start: TINY, ..BUILD };
        let first = load(place, build);
        let known = programs(&first);
        assert!(known.len() >= 12, "{known:?}");
        drop(first);
        let next = load(place, build);
        assert_eq!(programs(&next), known);
        let are_new = |now: &BTreeMap<_, u32>, before: &BTreeMap<_, u32>| {
            now.keys().eq(before.keys()) && now.iter().all(|(place, number)| before[place] != *number)
        };
        next.apply(&table(60)).unwrap();
        let grown = programs(&next);
        assert!(are_new(&grown, &known), "{known:?} {grown:?}");
        drop(next);
        assert_eq!(programs(&load(place, build)), grown);
        let other = programs(&load(place, OLD));
        assert!(are_new(&other, &grown), "{grown:?} {other:?}");
        let kept = std::fs::read_dir(place.config().pin_dir.join("programs")).unwrap();
        assert_eq!(kept.count(), 1, "those of before are forgotten");
    });
}

/// The daemon that is killed: it loads, grows the maps and shrinks the table, again and again.
fn daemon(place: &Place, flows: u32) -> ! {
    println!("begins");
    let dataplane = load(place, Build { start: Sizes { flows, ..TINY }, ..BUILD });
    for others in (0..).map(|round| round % 3 * 40) {
        dataplane.apply(&table(others)).unwrap();
        dataplane.tend().unwrap();
        println!("{others}");
    }
    std::process::exit(0)
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed_anywhere() {
    let name = "nothing_is_lost_when_the_daemon_is_killed_anywhere";
    if let Ok(text) = std::env::var(DAEMON) {
        let mut words = text.split(':');
        let flows = words.next().unwrap().parse().unwrap();
        let mut next = || PathBuf::from(words.next().unwrap());
        daemon(&Place { name: name.into(), pins: next(), cgroup: next(), elsewhere: next() }, flows);
    }
    isolated("nothing_is_lost_when_the_daemon_is_killed_anywhere", |place| {
        let outside = world(place);
        let many = Sizes { flows: 131_072, ..TINY };
        let first = load(place, Build { start: many, ..BUILD });
        first.apply(&table(0)).unwrap();
        packets_from_outside(&first);
        let told = [&place.pins, &place.cgroup, &place.elsewhere].map(|path| path.to_str().unwrap()).join(":");
        under_load(&ways(&outside), |step| {
            drop(first);
            // Every one of them replaces the flow map, and some the maps of the table.
            for round in 1..=12_u64 {
                let told = format!("{}:{told}", 131_072 + 4096 * round);
                let mut command = Command::new(std::env::current_exe().unwrap());
                let name = "nothing_is_lost_when_the_daemon_is_killed_anywhere";
                command.args(["--exact", name, "--nocapture"]).env(DAEMON, &told).stdout(Stdio::piped());
                let mut child = command.spawn().unwrap();
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                lines.by_ref().map(Result::unwrap).find(|line| line.ends_with("begins")).unwrap();
                // Anywhere in what takes it about two seconds.
                let kill = Instant::now() + Duration::from_millis(150 * round);
                while Instant::now() < kill {
                    std::thread::yield_now();
                }
                child.kill().unwrap();
                child.wait().unwrap();
                step("killed");
            }
        });
        load(place, Build { start: TINY, ..BUILD }).apply(&table(40)).unwrap();
    });
}

//! Services and endpoints change as fast as they can while packets are sent through the programs: each of them has to go to a
//! backend that its service had at some moment between the packet's begin and its end.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use common::{destination, isolated, opening};
use sluice_dataplane::migrate::{BUILD, Build};
use sluice_dataplane::model::{Protocol, Snapshot};
use sluice_dataplane::plan::Capacity;
use sluice_dataplane::{Config, Dataplane, Hook, Outcome, Sizes, Traffic, Uplinks};

const SERVICES: u32 = 96;
const PACKETS: u32 = 12_000;
const HOSTS: u32 = 12;

/// What a service was, in order; `None` while it does not exist. The last one is written before the kernel hears of it.
type History = Vec<Option<BTreeSet<u32>>>;

struct Service {
    history: History,
    /// Index of the one that the kernel surely has.
    settled: usize,
}

/// A seed makes the same changes again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % u64::from(limit)) as u32
    }
}

fn address(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 98, 0, number as u8 + 1), 80)
}

/// Another one for each packet.
fn client(packet: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(0x0af5_0001 + (packet >> 6)), 1024 + (packet & 63) as u16)
}

/// No two services have a backend in common.
fn backend(number: u32, host: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, number as u8, host as u8 + 1), 8080)
}

fn only(number: u32, hosts: Option<&BTreeSet<u32>>) -> Snapshot {
    let backends: Vec<String> = hosts.into_iter().flatten().map(|host| backend(number, *host).to_string()).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let name: std::sync::Arc<str> = format!("s{number}").into();
    let one = common::service(Protocol::Tcp, &address(number).to_string(), 0, &backends);
    let mut service = one.services.into_values().next().unwrap();
    if hosts.is_none() {
        service.ports.clear();
    }
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    for (index, mut slice) in one.slices.into_values().enumerate() {
        slice.service.clone_from(&name);
        snapshot.slices.insert(("shop".into(), format!("{name}-{index}").into()), slice);
    }
    snapshot.services.insert(("shop".into(), name), service);
    snapshot
}

/// One in eight times it does not exist, and sometimes nobody answers.
fn change(random: &mut Random) -> Option<BTreeSet<u32>> {
    (random.below(8) > 0).then(|| (0..random.below(HOSTS)).map(|_| random.below(HOSTS)).collect())
}

#[test]
fn no_packet_goes_astray_while_everything_changes() {
    isolated("no_packet_goes_astray_while_everything_changes", |place| {
        let config = Config {
            cgroup: Some(place.elsewhere.clone()),
            pod_range: Some("10.245.0.0/24".parse().unwrap()),
            uplinks: Uplinks::Named(vec![]),
            ..place.config()
        };
        // So small that the maps grow on the way.
        let table = Capacity { frontends: 16, backends: 32, slab: 64, services: 16, ranges: 8 };
        let build = Build { start: Sizes { table, ..BUILD.start }, ..BUILD };
        let dataplane = Dataplane::load_build(config, Traffic::best(), build).unwrap();
        let services: Vec<Mutex<Service>> =
            (0..SERVICES).map(|_| Mutex::new(Service { history: vec![None], settled: 0 })).collect();
        let (done, changes) = (AtomicBool::new(false), AtomicU32::new(0));
        let start = Instant::now();
        let changer = || {
            let mut random = Random(0x5eed);
            while !done.load(Ordering::Relaxed) {
                let number = random.below(SERVICES);
                let next = change(&mut random);
                let service = &services[number as usize];
                service.lock().unwrap().history.push(next.clone());
                assert_eq!(dataplane.apply_some(&only(number, next.as_ref())).unwrap(), Vec::<String>::new());
                let mut service = service.lock().unwrap();
                service.settled = service.history.len() - 1;
                changes.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut seen = [0_u32; 3];
        let mut prober = || {
            let mut random = Random(0xfeed);
            for packet in 0..PACKETS {
                // Changes keep pace with packets.
                while changes.load(Ordering::Relaxed) < packet / 4 {
                    std::thread::yield_now();
                }
                let number = random.below(SERVICES);
                let frame = opening(client(packet), address(number));
                let first = services[number as usize].lock().unwrap().settled;
                let result = dataplane.probe(Hook::PodIn, &frame, 1).unwrap();
                let service = services[number as usize].lock().unwrap();
                let possible = &service.history[first..];
                let target = destination(&result.frame);
                let (kind, right) = match result.outcome {
                    Outcome::Passed if target == address(number) => (0, possible.contains(&None)),
                    Outcome::Passed | Outcome::Sent => {
                        let has = |host: &u32| backend(number, *host) == target;
                        (1, possible.iter().flatten().any(|hosts| hosts.iter().any(has)))
                    }
                    Outcome::Dropped | Outcome::Redirected => (2, possible.iter().flatten().any(BTreeSet::is_empty)),
                };
                assert!(right, "{:?}: {target}, though the service was {possible:?}", result.outcome);
                seen[kind] += 1;
            }
        };
        std::thread::scope(|scope| {
            let changing = scope.spawn(changer);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut prober));
            done.store(true, Ordering::Relaxed);
            changing.join().unwrap();
            assert!(result.is_ok());
        });
        let changes = changes.into_inner();
        println!("{changes} changes in {:?}; not a service, translated, refused: {seen:?}", start.elapsed());
        assert!(changes >= PACKETS / 4 - 1 && seen.iter().all(|count| *count > 100), "{changes} {seen:?}");
        let sizes = dataplane.status().unwrap().maps;
        assert!(sizes.iter().any(|map| map.name == "backends" && map.limit > 32), "the maps grew meanwhile");
    });
}

//! Many services: loaded into maps that grow for them, taken over by the next process, and changed one after the other while
//! packets are sent to all of them, each of which has to go to a backend that its service had at some moment between the
//! packet's begin and its end. The sizes that are promised say little in a debug build, so they are measured by
//! `cargo xtask bench lb --only scale`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::isolated;
use sluice_dataplane::model::{Endpoint, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};
use sluice_dataplane::{Config, Dataplane, Hook, Outcome};

/// Some of them in more than one slice, and more endpoints than the maps begin with.
const SERVICES: u32 = 1_500;
const EACH: u32 = 10;
const CHANGES: u32 = 1_500;
const PACKETS: u32 = 20_000;

fn cluster(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(0x0a60_0000 + number), 80)
}

/// A backend's address says whose it is and since which change.
fn backend(number: u32, version: u32, host: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(1 << 28 | number << 11 | (version & 127) << 4 | host), 8080)
}

fn add(snapshot: &mut Snapshot, number: u32, version: u32) {
    let name: ObjectName = ("shop".into(), format!("service-{number}").into());
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    let cluster = vec![(*cluster(number).ip()).into()];
    snapshot.services.insert(name.clone(), Service { cluster, ports: vec![port], ..Service::default() });
    let endpoint = |host: u32| Endpoint {
        address: Some((*backend(number, version, host).ip()).into()),
        ready: true,
        serving: true,
        node: Some("there".into()),
        ..Endpoint::default()
    };
    let hosts: Vec<u32> = (0..EACH).collect();
    for (at, hosts) in hosts.chunks(if number.is_multiple_of(3) { 4 } else { 100 }).enumerate() {
        let ports = vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }];
        let endpoints = hosts.iter().map(|host| endpoint(*host)).collect();
        let slice = Slice { service: name.1.clone(), ports, endpoints };
        snapshot.slices.insert((name.0.clone(), format!("{}-{at}", name.1).into()), slice);
    }
}

fn snapshot(services: impl Iterator<Item = (u32, u32)>) -> Snapshot {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    services.for_each(|(number, version)| add(&mut snapshot, number, version));
    snapshot
}

/// Where a connection to a service goes that a pod opens from this port.
fn asked(dataplane: &Dataplane, number: u32, packet: u32) -> SocketAddrV4 {
    let client = SocketAddrV4::new(Ipv4Addr::from_bits(0x0af5_0001 + (packet >> 14)), 1024 + (packet & 0x3fff) as u16);
    let frame = common::opening(client, cluster(number));
    let result = dataplane.probe(Hook::PodIn, &frame, 1).unwrap();
    assert!(matches!(result.outcome, Outcome::Passed | Outcome::Sent), "{number}: {:?}", result.outcome);
    common::destination(&result.frame)
}

/// Which change the backend of a service is of.
fn version(number: u32, target: SocketAddrV4) -> u32 {
    let version = target.ip().to_bits() >> 4 & 127;
    assert!((0..EACH).any(|host| backend(number, version, host) == target), "{number} went to {target}");
    version
}

#[test]
fn many_services_change_and_no_packet_goes_astray() {
    isolated("many_services_change_and_no_packet_goes_astray", |place| {
        let config = Config { pod_range: Some("10.245.0.0/24".parse().unwrap()), ..place.config() };
        let all = snapshot((0..SERVICES).map(|number| (number, 0)));
        let dataplane = Dataplane::load(config.clone()).unwrap();
        assert_eq!(dataplane.apply(&all).unwrap(), Vec::<String>::new());
        drop(dataplane);
        let dataplane = Dataplane::load(config).unwrap();
        assert_eq!(dataplane.apply(&all).unwrap(), Vec::<String>::new());
        for number in 0..SERVICES {
            assert_eq!(version(number, asked(&dataplane, number, number)), 0);
        }
        let numbers = || -> Vec<AtomicU32> { (0..SERVICES).map(|_| AtomicU32::new(0)).collect() };
        // The change that the kernel may have heard of, and the one that it surely has.
        let (begun, settled) = (numbers(), numbers());
        let done = AtomicBool::new(false);
        let changer = || {
            for change in 0..CHANGES {
                let number = change * 7_919 % SERVICES;
                let version = begun[number as usize].fetch_add(1, Ordering::SeqCst) + 1;
                let one = snapshot([(number, version)].into_iter());
                assert_eq!(dataplane.apply_some(&one).unwrap(), Vec::<String>::new());
                settled[number as usize].store(version, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        };
        let prober = || {
            let mut packets = 0;
            while !done.load(Ordering::SeqCst) && packets < PACKETS {
                packets += 1;
                // The service that is changed now or a little later, and any other.
                let step = if packets.is_multiple_of(2) { 7_919 } else { 31 };
                let number = packets * step % SERVICES;
                let at = number as usize;
                let first = settled[at].load(Ordering::SeqCst);
                let version = version(number, asked(&dataplane, number, SERVICES + packets));
                let last = begun[at].load(Ordering::SeqCst);
                assert!((first..=last).any(|possible| possible & 127 == version), "{number}: {version} {first} {last}");
            }
            packets
        };
        std::thread::scope(|scope| {
            let probing = scope.spawn(prober);
            changer();
            let packets = probing.join().unwrap();
            assert!(packets > 100, "{packets}");
        });
        for number in 0..SERVICES {
            let expected = settled[number as usize].load(Ordering::SeqCst);
            assert_eq!(version(number, asked(&dataplane, number, SERVICES + PACKETS + 1 + number)), expected);
        }
        let sizes = dataplane.status().unwrap().maps;
        assert!(sizes.iter().any(|map| map.name == "backends" && map.used == (SERVICES * EACH) as usize), "{sizes:?}");
    });
}

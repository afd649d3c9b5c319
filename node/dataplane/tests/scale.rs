//! A very large cluster: how long the table takes to be made, to be taken over and to change, and what it weighs. Ignored by
//! default, as it says little in a debug build: `cargo test --release -p sluice-dataplane --test scale -- --ignored
//! --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use common::isolated;
use sluice_dataplane::Dataplane;
use sluice_dataplane::model::{Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};

fn add(snapshot: &mut Snapshot, number: u32, each: u32, shift: u32) {
    let name = ("shop".to_owned(), format!("service-{number}"));
    let port = ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    let cluster: IpAddr = Ipv4Addr::from_bits(0x0a60_0000 + number).into();
    let service = Service { cluster: vec![cluster], ports: vec![port], ..Service::default() };
    snapshot.services.insert(name.clone(), service);
    let endpoint = |host: u32| Endpoint {
        address: Some(Ipv4Addr::from_bits(0x1000_0000 + number * each + host + shift).into()),
        ready: true,
        serving: true,
        node: Some("there".into()),
        ..Endpoint::default()
    };
    let ports = vec![SlicePort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }];
    let slice = Slice { service: name.1.clone(), ports, endpoints: (0..each).map(endpoint).collect() };
    snapshot.slices.insert((name.0, format!("{}-1", name.1)), slice);
}

/// Kilobytes of this process that are its own.
fn own() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn measure(place: &common::Place, services: u32, each: u32) -> [Duration; 3] {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    (0..services).for_each(|number| add(&mut snapshot, number, each, 0));
    let before = own();
    let dataplane = Dataplane::load(place.config()).unwrap();
    let start = Instant::now();
    assert_eq!(dataplane.apply(&snapshot).unwrap(), Vec::<String>::new());
    let first = start.elapsed();
    println!("{services} services with {each} endpoints each: {first:?} into new maps, {} kB", own() - before);
    for row in dataplane.status().unwrap().maps {
        println!("  {}: {} of {}", row.name, row.used, row.limit);
    }
    drop(dataplane);
    let start = Instant::now();
    let dataplane = Dataplane::load(place.config()).unwrap();
    assert_eq!(dataplane.apply(&snapshot).unwrap(), Vec::<String>::new());
    let again = start.elapsed();
    println!("  taken over from the kernel: {again:?}");
    let changes = 2_000;
    let start = Instant::now();
    for change in 0..changes {
        let number = change * 7919 % services;
        let mut one = Snapshot { node: "here".into(), ..Snapshot::default() };
        add(&mut one, number, each, 0x1000_0000 + change);
        assert_eq!(dataplane.apply_some(&one).unwrap(), Vec::<String>::new());
    }
    let each_change = start.elapsed() / changes;
    println!("  a change of one service: {each_change:?}");
    [first, again, each_change]
}

#[test]
#[ignore = "takes long in a debug build"]
fn ten_thousand_services() {
    isolated("ten_thousand_services", |place| {
        let [_, again, change] = measure(place, 10_000, 2);
        assert!(again < Duration::from_secs(1), "{again:?}");
        assert!(change < Duration::from_millis(5), "{change:?}");
    });
}

#[test]
#[ignore = "takes long in a debug build"]
fn a_hundred_thousand_services_with_a_million_endpoints() {
    isolated("a_hundred_thousand_services_with_a_million_endpoints", |place| {
        let [first, _, change] = measure(place, 100_000, 10);
        assert!(first < Duration::from_secs(5), "{first:?}");
        assert!(change < Duration::from_millis(1), "{change:?}");
    });
}

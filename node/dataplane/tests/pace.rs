//! Limits of what pods send, by departure times, with real sockets. Where the kernel has no `fq`, nothing is limited and it is said
//! why. Bytes are counted by the receiver's clock: no more than the rate lets through, however slow the machine is.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::pods::{attach, index, neighbour, pod, shown};
use common::{Namespace, PATIENCE, Place, isolated, run};
use sluice_dataplane::{Config, Dataplane, Redirect, Uplinks, Xdp};

const LINKS: [&str; 2] = ["slc5", "slc6"];
const ADDRESSES: [[&str; 2]; 2] = [["10.244.0.5", "fd44::5"], ["10.244.0.6", "fd44::6"]];
/// Bytes per second.
const RATE: u64 = 2_000_000;
/// What a pod may have sent above its rate: one packet of many segments, and what was on its way.
const BURST: u64 = 160_000;

struct World {
    plane: Dataplane,
    pods: [Namespace; 2],
    outside: Namespace,
}

fn world(place: &Place, redirect: Redirect) -> World {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let outside = place.neighbour("outside", "up0", Some("192.0.2.1/24"), "192.0.2.9/24", None);
    let pods = [pod(place, LINKS[0], &ADDRESSES[0]), pod(place, LINKS[1], &ADDRESSES[1])];
    let plane = load(place, redirect);
    for ((link, pod), addresses) in LINKS.into_iter().zip(&pods).zip(&ADDRESSES) {
        attach(&plane, link, Some(neighbour(pod, addresses)));
    }
    World { plane, pods, outside }
}

fn load(place: &Place, redirect: Redirect) -> Dataplane {
    Dataplane::load(Config {
        pod_range: Some("10.244.0.0/24".parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: vec!["192.0.2.1".parse::<IpAddr>().unwrap()],
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        xdp: Xdp::Off,
        redirect,
        ..place.config()
    })
    .unwrap()
}

fn tc(text: &str) {
    run("tc", &text.split(' ').collect::<Vec<_>>());
}

fn root(link: &str) -> String {
    shown("tc", &["qdisc", "show", "dev", link, "root"])
}

fn has_fair_queue() -> bool {
    let arguments = ["qdisc", "replace", "dev", "lo", "root", "fq"];
    let there = std::process::Command::new("tc").args(arguments).output().unwrap().status.success();
    if there {
        tc("qdisc del dev lo root");
    }
    there
}

/// Bytes and the time between the first and the last of them, by whom they came to.
fn stream([from, to]: [&Namespace; 2], address: &str, bytes: usize) -> (u64, Duration) {
    let listener = to.within(|| TcpListener::bind(address).unwrap());
    let counter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut all, mut begun) = (vec![0; 1 << 16], 0, None);
        loop {
            let length = stream.read(&mut buffer).unwrap();
            let begun = *begun.get_or_insert_with(Instant::now);
            if length == 0 {
                return (all, begun.elapsed());
            }
            all += length as u64;
        }
    });
    from.within(|| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    counter.join().unwrap()
}

fn keeps((bytes, time): (u64, Duration)) {
    let most = (RATE as f64 * time.as_secs_f64()) as u64 + BURST;
    assert!(bytes <= most, "{bytes} bytes in {time:?}, and {most} at most");
}

#[test]
fn what_a_pod_sends_past_the_stack_keeps_its_limit() {
    isolated("what_a_pod_sends_past_the_stack_keeps_its_limit", |place| limited(place, Redirect::On));
}

#[test]
fn what_a_pod_sends_through_the_stack_keeps_its_limit() {
    isolated("what_a_pod_sends_through_the_stack_keeps_its_limit", |place| limited(place, Redirect::Off));
}

fn limited(place: &Place, redirect: Redirect) {
    let world = world(place, redirect);
    let paced = world.plane.pace_pod(index(LINKS[0]), RATE).unwrap();
    if !has_fair_queue() {
        assert!(paced.unwrap().contains("sch_fq"));
        assert_eq!(world.plane.status().unwrap().paced, 0);
        return;
    }
    assert_eq!(paced, None);
    assert!(root("up0").contains("fq"), "{}", root("up0"));
    let outside = [&world.pods[0], &world.outside];
    keeps(stream(outside, "192.0.2.9:9000", 4_000_000));
    // What it does not need for itself does not hold up the others.
    let (_, quick) = stream([&world.pods[1], &world.outside], "192.0.2.9:9001", 100_000);
    let (_, near) = stream([&world.pods[0], &world.pods[1]], "10.244.0.6:9000", 100_000);
    assert!(quick < PATIENCE && near < PATIENCE);
    // Far more at once than may wait.
    let receiver = world.outside.within(|| UdpSocket::bind("192.0.2.9:9002").unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    // A socket's packets that wait are counted against it, so one alone would wait, too.
    let flood: Vec<_> = world.pods[0].within(|| (0..80).map(|_| UdpSocket::bind("10.244.0.5:0").unwrap()).collect());
    flood.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let sender = std::thread::spawn(move || {
        for socket in flood.iter().cycle().take(8_000) {
            let _ = socket.send_to(&[1; 1_400], "192.0.2.9:9002");
        }
    });
    let (mut buffer, mut bytes, mut begun) = ([0; 2_000], 0, None);
    let mut last = Duration::ZERO;
    while let Ok(length) = receiver.recv(&mut buffer) {
        last = begun.get_or_insert_with(Instant::now).elapsed();
        bytes += length as u64;
    }
    sender.join().unwrap();
    keeps((bytes, last));
    assert!(bytes > 1_000_000, "most of what may wait arrives: {bytes}");
    let status = world.plane.status().unwrap();
    assert_eq!((status.paced, status.problems.len()), (1, 0), "{:?}", status.problems);
    let late = status.refused.iter().find(|(reason, _)| reason.contains("egress limit"));
    assert!(late.is_some_and(|(_, count)| *count > 100), "{:?}", status.refused);
    // A process that starts takes it over; one that is told to clean up gives the queue back.
    drop(world.plane);
    let plane = load(place, redirect);
    assert_eq!(plane.status().unwrap().paced, 1);
    keeps(stream(outside, "192.0.2.9:9003", 2_000_000));
    plane.detach_pod(index(LINKS[0])).unwrap();
    assert_eq!(plane.status().unwrap().paced, 0);
    drop(plane);
    Dataplane::remove_all(&place.pins).unwrap();
    assert!(!root("up0").contains("fq"), "{}", root("up0"));
}

#[test]
fn an_administrators_queue_stays() {
    isolated("an_administrators_queue_stays", |place| {
        let world = world(place, Redirect::On);
        tc("qdisc replace dev up0 root tbf rate 400mbit burst 1mb latency 50ms");
        let reason = world.plane.pace_pod(index(LINKS[0]), RATE).unwrap().unwrap();
        assert_eq!(reason, "the link up0 has a queue of its own (tbf), which stays");
        assert_eq!(world.plane.status().unwrap().paced, 0);
        assert!(root("up0").contains("tbf"));
        if !has_fair_queue() {
            return;
        }
        tc("qdisc del dev up0 root");
        assert_eq!(world.plane.pace_pod(index(LINKS[0]), RATE).unwrap(), None);
        tc("qdisc replace dev up0 root tbf rate 400mbit burst 1mb latency 50ms");
        let problems = world.plane.status().unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("its queue (tbf) does not hold")), "{problems:?}");
    });
}

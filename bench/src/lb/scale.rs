//! A very large cluster: how long its table takes to be made and written, to be taken over and to change, what it weighs, and
//! whether a packet goes astray meanwhile. By the compiler, the planner and the kernel's maps, without an API.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use sluice_dataplane::{
    Dataplane, Hook,
    model::{Endpoint, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot},
};

use super::place::Place;
use crate::{
    lab::say,
    limits::{SCALE_CHANGES, SCALE_EACH, SCALE_PACKETS, SCALE_SERVICES},
    proc,
    report::{Bound, Goal, Measured},
};

const LOAD: &str = "load of 100,000 services of 10 endpoints";
const AGAIN: &str = "taken over by the next process";
const CHANGE: &str = "a change of one service among them";
const RATE: &str = "changes of a service in a second";
const ASTRAY: &str = "misrouted packets meanwhile";
const MEMORY: &str = "memory of the table and what it is made of (PSS)";

pub(super) fn run(place: &Place) -> Result<Measured> {
    place.cleaned(|| measure(place))
}

fn measure(place: &Place) -> Result<Measured> {
    say(&format!("scale: {SCALE_SERVICES} services"));
    let before = pss()?;
    let mut measured = Measured::default();
    let all = snapshot((0..SCALE_SERVICES).map(|number| (number, 0)));
    let dataplane = place.load()?;
    let loaded = apply(&dataplane, &all)?;
    measured.row(LOAD, "ms", &[loaded]);
    measured.goals.push(Goal::new(LOAD, Bound::Below(5_000.0), "ms", Some(loaded)));
    measured.row(MEMORY, "MB", &[pss()? - before]);
    drop(dataplane);
    let begun = Instant::now();
    let dataplane = place.load()?;
    apply(&dataplane, &all)?;
    measured.row(AGAIN, "ms", &[begun.elapsed().as_secs_f64() * 1e3]);
    drop(all);
    say("scale: changes");
    let changes = Changes::new();
    let begun = Instant::now();
    let (times, packets) = std::thread::scope(|scope| {
        let probing = scope.spawn(|| changes.probe(&dataplane));
        let times = changes.make(&dataplane);
        changes.done.store(true, Ordering::SeqCst);
        (times, probing.join())
    });
    let rate = f64::from(SCALE_CHANGES) / begun.elapsed().as_secs_f64();
    measured.row(CHANGE, "ms", &times?);
    measured.row(RATE, "1/s", &[rate]);
    measured.goals.push(Goal::new(RATE, Bound::AtLeast(1_000.0), "1/s", Some(rate)));
    let (packets, astray) = packets.map_err(|_| anyhow::anyhow!("the prober ended"))??;
    measured.row(ASTRAY, "", &[f64::from(astray)]);
    measured.goals.push(Goal::new(ASTRAY, Bound::AtMost(0.0), "", Some(f64::from(astray))));
    measured.note(format!(
        "scale: {packets} connections opened while {SCALE_CHANGES} services changed one after the other"
    ));
    Ok(measured)
}

fn apply(dataplane: &Dataplane, snapshot: &Snapshot) -> Result<f64> {
    let begun = Instant::now();
    let problems = dataplane.apply(snapshot)?;
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Of this process, in MB.
#[expect(clippy::cast_precision_loss)]
fn pss() -> Result<f64> {
    Ok(proc::memory(std::process::id())?.pss as f64 / 1e6)
}

/// How often each service was changed: the change that the kernel may have heard of, and the one that it surely has.
struct Changes {
    begun: Vec<AtomicU32>,
    settled: Vec<AtomicU32>,
    done: AtomicBool,
}

impl Changes {
    fn new() -> Changes {
        let numbers = || (0..SCALE_SERVICES).map(|_| AtomicU32::new(0)).collect();
        Changes { begun: numbers(), settled: numbers(), done: AtomicBool::new(false) }
    }

    /// Milliseconds of each change.
    fn make(&self, dataplane: &Dataplane) -> Result<Vec<f64>> {
        let change = |change: u32| {
            let number = change * 7_919 % SCALE_SERVICES;
            let version = self.begun[number as usize].fetch_add(1, Ordering::SeqCst) + 1;
            let one = snapshot([(number, version)].into_iter());
            let begun = Instant::now();
            let problems = dataplane.apply_some(&one)?;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            ensure!(problems.is_empty(), "{problems:?}");
            self.settled[number as usize].store(version, Ordering::SeqCst);
            Ok(took)
        };
        (0..SCALE_CHANGES).map(change).collect()
    }

    /// Connections opened, and how many of them went to a backend that their service did not have between begin and end.
    fn probe(&self, dataplane: &Dataplane) -> Result<(u32, u32)> {
        let (mut packets, mut astray) = (0, 0);
        while !self.done.load(Ordering::SeqCst) && packets < SCALE_PACKETS {
            packets += 1;
            // The service that is changed about now, and any other.
            let step = if packets % 2 == 0 { 7_919 } else { 31 };
            let number = packets.wrapping_mul(step) % SCALE_SERVICES;
            let first = self.settled[number as usize].load(Ordering::SeqCst);
            let target = asked(dataplane, number, packets)?;
            let last = self.begun[number as usize].load(Ordering::SeqCst);
            let possible = |version: u32| (0..SCALE_EACH).any(|host| backend(number, version, host) == target);
            astray += u32::from(!(first..=last).any(possible));
        }
        Ok((packets, astray))
    }
}

fn cluster(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0000 + number)
}

/// A backend's address says whose it is and since which change.
fn backend(number: u32, version: u32, host: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(1 << 28 | number << 11 | (version & 127) << 4 | host)
}

/// Where the program on a pod's link sends a connection to a service that the pod opens.
fn asked(dataplane: &Dataplane, number: u32, packet: u32) -> Result<Ipv4Addr> {
    let mut frame = vec![0; 54];
    frame[12..16].copy_from_slice(&[0x08, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&40_u16.to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[26..30].copy_from_slice(&(0x0af4_0001 + (packet >> 14)).to_be_bytes());
    frame[30..34].copy_from_slice(&cluster(number).octets());
    frame[34..36].copy_from_slice(&(1024 + (packet & 0x3fff) as u16).to_be_bytes());
    frame[36..38].copy_from_slice(&80_u16.to_be_bytes());
    (frame[46], frame[47]) = (0x50, 2);
    let frame = dataplane.probe(Hook::PodIn, &frame, 1)?.frame;
    let octets: [u8; 4] = frame.get(30..34).context("a packet came back short")?.try_into()?;
    Ok(octets.into())
}

fn snapshot(services: impl Iterator<Item = (u32, u32)>) -> Snapshot {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    for (number, version) in services {
        let name: ObjectName = ("bench".into(), format!("service-{number}").into());
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
        let cluster: Vec<IpAddr> = vec![cluster(number).into()];
        let endpoint = |host: u32| Endpoint {
            address: Some(backend(number, version, host).into()),
            ready: true,
            serving: true,
            node: Some("there".into()),
            ..Endpoint::default()
        };
        let ports = vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }];
        let endpoints = (0..SCALE_EACH).map(endpoint).collect();
        let slice = Slice { service: name.1.clone(), ports, endpoints };
        snapshot.slices.insert((name.0.clone(), format!("{}-1", name.1).into()), slice);
        snapshot.services.insert(name, Service { cluster, ports: vec![port], ..Service::default() });
    }
    snapshot
}

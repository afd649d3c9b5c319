//! Nanoseconds per packet in each program, by `BPF_PROG_TEST_RUN` on one CPU.
//!
//! The kernel repeats a program on its own output, so wrapper programs restore the packet, choose its flow and tail-call the
//! program. The wrapper's cost, measured with an empty program in its place in the same round, is taken off, and so is what
//! it spends on the head of a packet that grew. Rounds of all cases alternate; a round's value is its least disturbed run, and
//! goals compare the least disturbed runs of all rounds.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, bail};
use aya::programs::ProgramFd;
use sluice_dataplane::{
    Dataplane,
    model::{Endpoint, Forwarding, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot},
};
use sluice_ebpf_common::{bench::Round, protocol};

use super::cases::{CASES, Case, EXHAUSTED, EXHAUSTED_TIMES, Flows, Kind, Makes, NEW, PROMISES};
use super::floor::{Bench, Floors};
use super::frame::{ACK, SYN, ends};
use super::place::{Place, on_one_cpu};
use crate::{
    lab::say,
    limits,
    report::{Bound, Goal, Measured},
};

pub(super) const NEAR_PORT: u16 = 30_001;
pub(super) const FAR_PORT: u16 = 30_002;
pub(super) const ONE_PORT: u16 = 30_003;
/// A load balancer's address.
pub(super) const DIRECT: [u8; 4] = [198, 51, 100, 7];

const DROPPED_TC: u32 = 2;
const DROPPED_XDP: u32 = 1;

pub(super) fn run(place: &Place) -> Result<Measured> {
    let dataplane = place.load_grown(limits::PACKET_FLOWS)?;
    place.cleaned(|| on_one_cpu(|| measure(place, &dataplane)))
}

fn measure(place: &Place, dataplane: &Dataplane) -> Result<Measured> {
    dataplane.apply(&services())?;
    let link = nix::net::if_::if_nametoindex(super::place::UPLINK).context("find the uplink")?;
    let mut bench = Bench::load(link)?;
    let floors = [bench.floors(Kind::Tc)?, bench.floors(Kind::Xdp)?];
    let mut times = Times::default();
    let mut missing = Vec::new();
    for round in 1..=limits::PACKET_ROUNDS {
        say(&format!("packets, round {round} of {}", limits::PACKET_ROUNDS));
        for (kind, floors) in [Kind::Tc, Kind::Xdp].into_iter().zip(&floors) {
            self::floors(&mut bench, kind, floors, &mut times)?;
        }
        for case in CASES {
            place.interrupts.check()?;
            let Some(program) = dataplane.program(case.program) else {
                missing.push(case.program);
                continue;
            };
            let floors = &floors[usize::from(case.kind == Kind::Xdp)];
            let cost =
                one(&mut bench, dataplane, case, &program, floors).with_context(|| format!("measure {}", case.name))?;
            times.add(case.name, cost);
        }
    }
    dataplane.forget_flows()?;
    missing.dedup();
    Ok(report(&times, &missing))
}

/// Nanoseconds per packet in a round's least disturbed runs.
#[derive(Clone, Copy)]
struct Cost {
    /// With the program behind the wrapper.
    whole: f64,
    /// With an empty one.
    wrapper: f64,
    /// With one that only makes the head grow, where the program does.
    grown: Option<f64>,
}

impl Cost {
    /// The program's own.
    fn net(self) -> f64 {
        // What grows is restored by the wrapper: one of the two steps that the growing floor takes.
        let restored = self.grown.map_or(0.0, |grown| (grown - self.wrapper) / 2.0);
        self.whole - self.wrapper - restored
    }

    /// The least disturbed runs of both: the least of many differences would be the one whose wrapper was disturbed most.
    fn least(self, other: Cost) -> Cost {
        Cost {
            whole: self.whole.min(other.whole),
            wrapper: self.wrapper.min(other.wrapper),
            grown: self.grown.zip(other.grown).map(|(one, other)| one.min(other)),
        }
    }
}

/// The costs of every round, by name.
#[derive(Default)]
struct Times(BTreeMap<String, Vec<Cost>>);

impl Times {
    fn add(&mut self, name: &str, cost: Cost) {
        self.0.entry(name.to_owned()).or_default().push(cost);
    }

    /// Net nanoseconds of every round.
    fn net(&self, name: &str) -> Vec<f64> {
        self.0.get(name).into_iter().flatten().map(|cost| cost.net()).collect()
    }

    /// Net nanoseconds, by the least disturbed runs of all rounds.
    fn least(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.iter().copied().reduce(Cost::least).map(Cost::net)
    }
}

fn floor_name(kind: Kind, what: &str) -> String {
    let kind = if kind == Kind::Tc { "TC" } else { "XDP" };
    format!("floor, {kind}: {what}")
}

const HASH: &str = "hash lookup, 16-byte key";
const WRAPPER: &str = "the wrapper itself";
const GROWTH: &str = "head grows and is restored";

/// The floors of a kind, in one flow as in the cases that they are compared with.
fn floors(bench: &mut Bench, kind: Kind, floors: &Floors, times: &mut Times) -> Result<()> {
    let case = CASES.iter().find(|case| case.kind == kind).context("every kind has a case")?;
    let round = case.frame.round(ACK, 0);
    let frame = case.frame.bytes(ACK);
    bench.set(&round)?;
    let named =
        [(WRAPPER, None), (GROWTH, Some(&floors.grow)), (HASH, Some(&floors.hash)), ("LRU lookup", Some(&floors.lru))];
    let mut least = [f64::INFINITY; 4];
    for _ in 0..limits::PACKET_RUNS {
        for (least, (_, program)) in least.iter_mut().zip(named) {
            let program = program.unwrap_or(&floors.empty);
            *least = least.min(bench.run(kind, program, &frame, limits::PACKETS)?.time);
        }
    }
    for (whole, (what, program)) in least.into_iter().zip(named) {
        let wrapper = if program.is_some() { least[0] } else { 0.0 };
        times.add(&floor_name(kind, what), Cost { whole, wrapper, grown: None });
    }
    Ok(())
}

/// One case in one round.
fn one(bench: &mut Bench, dataplane: &Dataplane, case: &Case, program: &ProgramFd, floors: &Floors) -> Result<Cost> {
    dataplane.forget_flows()?;
    let frame = case.frame.bytes(case.flags());
    let round = prepare(bench, case, program, &frame)?;
    bench.set(&round)?;
    check(bench, case, program, &frame)?;
    let (runs, packets) = match case.flows {
        Flows::New => (limits::PACKET_NEW_RUNS, limits::PACKETS_NEW),
        _ => (limits::PACKET_RUNS, limits::PACKETS),
    };
    let (mut whole, mut wrapper, mut grown) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let mut next = 1;
    for _ in 0..runs {
        if case.flows == Flows::New {
            dataplane.forget_flows()?;
        }
        bench.set(&Round { next, ..round })?;
        wrapper = wrapper.min(bench.run(case.kind, &floors.empty, &frame, packets)?.time);
        if matches!(case.makes, Makes::Inside(..)) {
            bench.set(&Round { next, ..round })?;
            grown = grown.min(bench.run(case.kind, &floors.grow, &frame, packets)?.time);
        }
        bench.set(&Round { next, ..round })?;
        whole = whole.min(bench.run(case.kind, program, &frame, packets)?.time);
        next = next.wrapping_add(packets);
    }
    Ok(Cost { whole, wrapper, grown: grown.is_finite().then_some(grown) })
}

/// Puts the tables into the state that the case is about, and says what the wrapper restores from then on.
fn prepare(bench: &mut Bench, case: &Case, program: &ProgramFd, frame: &[u8]) -> Result<Round> {
    let known = |mask: u32| case.frame.round(SYN, mask);
    let mut warm = |round: &Round, flags: u8, packets: u32| -> Result<()> {
        bench.set(&Round { template: case.frame.round(flags, 0).template, ..*round })?;
        bench.run(case.kind, program, frame, packets).map(drop)
    };
    match case.flows {
        Flows::Known(count) => {
            let round = known(count - 1);
            warm(&round, SYN, count)?;
            // Once to be known, once more for what is only kept of packets that are no beginning.
            warm(&round, ACK, 2 * count)?;
            Ok(Round { template: case.frame.round(ACK, 0).template, ..round })
        }
        Flows::New => Ok(known(u32::MAX)),
        Flows::Flood => Ok(Round { random: 1, ..known(u32::MAX) }),
        Flows::After(count) => {
            let round = known(u32::MAX);
            warm(&round, SYN, count)?;
            Ok(Round { next: count, ..round })
        }
    }
}

/// Refuses to measure anything else than what the case says.
fn check(bench: &mut Bench, case: &Case, program: &ProgramFd, frame: &[u8]) -> Result<()> {
    let run = bench.run(case.kind, program, frame, 1)?;
    let dropped = run.verdict == if case.kind == Kind::Tc { DROPPED_TC } else { DROPPED_XDP };
    let (source, destination) = ends(&run.frame).context("the frame is too short")?;
    let (_, asked) = ends(frame).context("the frame is too short")?;
    let right = match case.makes {
        Makes::Nothing => !dropped && destination == asked,
        Makes::Destination(net) => !dropped && destination.starts_with(&net),
        Makes::Source(address) => !dropped && source == address,
        Makes::Both(address, net) => !dropped && source == address && destination.starts_with(&net),
        Makes::Inside(address, net) => {
            let inside = run.frame.len() == frame.len() + 20 && run.frame.get(23) == Some(&protocol::IPV4);
            !dropped && inside && source == address && destination.starts_with(&net)
        }
        Makes::Drop => dropped,
    };
    if !right {
        bail!(
            "the program should make {:?} of the packet; it said {} and made {source:?} > {destination:?}",
            case.makes,
            run.verdict
        );
    }
    Ok(())
}

fn report(times: &Times, missing: &[&str]) -> Measured {
    let mut measured = Measured::default();
    let floors = [Kind::Tc, Kind::Xdp]
        .into_iter()
        .flat_map(|kind| [WRAPPER, GROWTH, HASH, "LRU lookup"].map(|what| floor_name(kind, what)));
    for name in floors.chain(CASES.iter().map(|case| case.name.to_owned())) {
        measured.row(&name, "ns", &times.net(&name));
    }
    let floor = times.least(&floor_name(Kind::Xdp, HASH));
    let ratio = |value: Option<f64>, of: Option<f64>| Some(value? / of?);
    for promise in PROMISES {
        let value = ratio(times.least(promise.case), floor);
        measured.goals.push(Goal::new(promise.name, Bound::AtMost(promise.lookups), "lookups", value));
    }
    let value = ratio(times.least(EXHAUSTED), times.least(NEW));
    measured.goals.push(Goal::new("no port is left", Bound::AtMost(EXHAUSTED_TIMES), "new flows", value));
    for program in missing {
        measured.note(format!("the data plane has no program {program}"));
    }
    measured
}

/// Many services that nobody asks for, and those of the cases.
fn services() -> Snapshot {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    let far = |count: u8| (1..=count).map(|host| ([10, 245, 0, host], "there")).collect();
    add(&mut snapshot, "near", [10, 96, 0, 1], NEAR_PORT, vec![([10, 244, 0, 5], "here")]);
    add(&mut snapshot, "far", [10, 96, 0, 2], FAR_PORT, far(64));
    add(&mut snapshot, "one", [10, 96, 0, 3], ONE_PORT, far(1));
    add(&mut snapshot, "direct", [10, 96, 0, 4], 0, far(64));
    if let Some(service) = snapshot.services.get_mut(&("bench".into(), "direct".into())) {
        service.external = vec![IpAddr::from(DIRECT)];
        service.forwarding = Some(Forwarding::Dsr);
    }
    for number in 0..limits::PACKET_SERVICES {
        let [_, _, high, low] = number.to_be_bytes();
        let backends = [1, 2].map(|net| ([10, 245, net + high, low], "there")).to_vec();
        add(&mut snapshot, &format!("other-{number}"), [10, 97, high, low], 0, backends);
    }
    snapshot
}

fn add(snapshot: &mut Snapshot, name: &str, cluster: [u8; 4], node_port: u16, backends: Vec<([u8; 4], &str)>) {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port };
    let service = Service { cluster: vec![IpAddr::from(cluster)], ports: vec![port], ..Service::default() };
    let endpoint = |(address, node): ([u8; 4], &str)| Endpoint {
        address: Some(IpAddr::from(address)),
        ready: true,
        serving: true,
        node: Some(node.into()),
        ..Endpoint::default()
    };
    let slice = Slice {
        service: name.into(),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: backends.into_iter().map(endpoint).collect(),
    };
    snapshot.services.insert(("bench".into(), name.into()), service);
    snapshot.slices.insert(("bench".into(), name.into()), slice);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_wrapper_does_not_make_a_program_cheap() {
        let mut times = Times::default();
        for (whole, wrapper, grown) in [(130.0, 50.0, 70.0), (105.0, 42.0, 62.0), (120.0, 60.0, 81.0)] {
            times.add("one", Cost { whole, wrapper, grown: Some(grown) });
        }
        assert_eq!(times.net("one"), [70.0, 53.0, 49.5]);
        assert_eq!((times.least("one"), times.least("other")), (Some(53.0), None));
    }
}

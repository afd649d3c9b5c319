//! Network policies of a node full of isolated pods, from their change until the kernel has them: a thousand policies, each for
//! one of a thousand pods of this node, all changed at once and one of them alone.

use std::{io::Write as _, time::Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, lpm_trie::LpmTrie};
use sluice_dataplane::{
    Dataplane, PodInfo, ServicePath,
    model::{ObjectName, Protocol},
    policy::model::{Labels, Namespaces, Peer, Pod, Policy, Port, Requirement, Rule, Selector, Snapshot, Which},
};
use sluice_e2e::run as sh;
use sluice_ebpf_common::{RuleKey, SCHEMA, maps};

use super::place::Place;
use crate::{
    lab::say,
    limits,
    report::{Bound, Goal, Measured},
};

const ALL: &str = "all policies changed at once until the kernel has them";
const ONE: &str = "one policy of them changed";
/// What the policies allow at first.
const PORT: u16 = 80;

pub(super) fn run(place: &Place) -> Result<Measured> {
    place.cleaned(|| measure(place))
}

fn measure(place: &Place) -> Result<Measured> {
    let count = limits::POLICIES;
    say(&format!("policies: {count} pods"));
    let dataplane = place.load()?;
    pods(&dataplane, count)?;
    let mut measured = Measured::default();
    let apply = |ports: &dyn Fn(u32) -> u16| -> Result<f64> {
        place.interrupts.check()?;
        let wanted = snapshot(count, ports);
        let begun = Instant::now();
        dataplane.apply_policies(wanted)?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        let known = rules(place)?;
        ensure!(known == count as usize, "the kernel has {known} rules, not {count}");
        Ok(took)
    };
    measured.row("all policies for the first time", "ms", &[apply(&|_| PORT)?]);
    let (mut all, mut one) = (Vec::new(), Vec::new());
    for round in 1..=limits::POLICY_ROUNDS {
        all.push(apply(&|_| PORT + round)?);
        one.push(apply(&|at| PORT + round + u16::from(at == 7) * 1000)?);
    }
    measured.row(ALL, "ms", &all);
    measured.row(ONE, "ms", &one);
    measured.goals.push(Goal::new(ALL, Bound::Below(1000.0), "ms", measured.p50(ALL)));
    measured.note(format!(
        "{count} policies, each about one of {count} pods of this node, which another one may reach at one port; the time \
         includes comparing the whole list"
    ));
    sh(&format!("ip link delete group {GROUP}"))?;
    Ok(measured)
}

/// The links' group.
const GROUP: u32 = 77;

/// Links of pods: nobody is behind them.
fn pods(dataplane: &Dataplane, count: u32) -> Result<()> {
    let mut commands = tempfile::NamedTempFile::new()?;
    for at in 0..count {
        writeln!(commands, "link add p{at} group {GROUP} type veth peer name q{at} group {GROUP}")?;
    }
    sh(&format!("ip -batch {}", commands.path().display()))?;
    for at in 0..count {
        let index = nix::net::if_::if_nametoindex(format!("p{at}").as_str()).context("a pod's link")?;
        let (namespace, name) = name(at);
        let pod = PodInfo {
            namespace: namespace.to_string(),
            name: name.to_string(),
            services: ServicePath::Packets,
            neighbour: None,
        };
        dataplane.attach_pod(index, &pod)?;
    }
    Ok(())
}

fn name(at: u32) -> ObjectName {
    ("shop".into(), format!("pod-{at}").into())
}

/// Rules that the kernel has.
fn rules(place: &Place) -> Result<usize> {
    let pin = place.config()?.pin_dir.join(format!("v{SCHEMA}")).join(maps::RULES);
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let map: LpmTrie<MapData, RuleKey, u32> = map.try_into()?;
    Ok(map.keys().filter(Result::is_ok).count())
}

/// Each pod is reached by the next one, at its policy's port.
fn snapshot(count: u32, port: &dyn Fn(u32) -> u16) -> Snapshot {
    let app = |at: u32| format!("app-{}", at % count);
    let chosen = |at: u32| Selector(vec![Requirement::In("app".into(), [app(at).into()].into())]);
    let mut all = Snapshot { namespaces: [("shop".into(), Labels::default())].into(), ..Snapshot::default() };
    for at in 0..count {
        let address = std::net::Ipv4Addr::from(0x0af4_0000 + at);
        let labels = [("app", app(at))].into_iter().collect();
        all.pods.insert(name(at), Pod { labels, addresses: [address.into()].into(), ..Pod::default() });
        let port = port(at);
        let rule = Rule {
            peers: vec![Peer::Pods(Namespaces::Own, chosen(at + 1))],
            ports: vec![Port { protocol: Protocol::Tcp, which: Which::Numbers(port, port) }],
        };
        all.policies.insert(name(at), Policy { pods: chosen(at), ingress: Some(vec![rule]), egress: None });
    }
    all
}

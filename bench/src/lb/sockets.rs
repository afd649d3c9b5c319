//! Connections over sockets: from a pod to a Service and to another pod directly, on a node of its own for each way to do
//! it: Sluice, and kube-proxy's rules in iptables mode (in both of its implementations) and in nftables mode. All nodes are
//! there at the same time and take turns, so that each meets the same machine. Every service leads to the same two
//! endpoints; a client goes through all services in turn. Client, server and the kernel's work between them share one CPU, so
//! that a rate says what a connection costs, not where the scheduler put its ends.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use sluice_dataplane::{
    Dataplane, Neighbour, PodInfo,
    model::{Endpoint, ObjectName, Protocol, ServicePort, Slice, SlicePort, Snapshot},
};
use sluice_e2e::run as sh;

use super::call::{Client, Order, Outcome, Use, enter, serve};
use super::place::{Place, on_one_cpu};
use super::rules::{Service, iptables, nftables};
use crate::{
    lab::say,
    limits,
    report::{Bound, Goal, Measured},
    stats::{percentile, sorted},
};

pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
pub(super) const PORT: u16 = 80;
const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 2, 10), Ipv4Addr::new(10, 244, 2, 11)];
const ENDPOINT_PORT: u16 = 8080;
const DIRECT: &str = "directly";
const SLUICE: &str = "Sluice";
const USES: [(Use, &str, &str); 3] =
    [(Use::Short, "short connections", "/s"), (Use::Kept, "kept connection", "/s"), (Use::Bulk, "throughput", "MB/s")];

/// kube-proxy's modes: name, program that takes its rules in, and the rules.
type Rules = fn(&[Service]) -> String;
const PROXIES: [(&str, &[&str], Rules); 3] = [
    ("iptables (nft)", &["iptables-nft-restore"], iptables),
    ("iptables (legacy)", &["iptables-legacy-restore"], iptables),
    ("nftables", &["nft", "-f", "-"], nftables),
];

pub(super) fn run(place: &Place) -> Result<Measured> {
    on_one_cpu(|| all(place))
}

fn all(place: &Place) -> Result<Measured> {
    on_a_node(place, "sluice", |own, dataplane| measure(place, own, dataplane))
}

/// Measures on a node of its own with its data plane, which sees its sockets alone.
pub(super) fn on_a_node(
    place: &Place,
    name: &str,
    measure: impl FnOnce(&Node, &Dataplane) -> Result<Measured>,
) -> Result<Measured> {
    let own = Node::make(name)?;
    let config = sluice_dataplane::Config {
        node_addresses: vec![Ipv4Addr::new(10, 244, 1, 1).into()],
        uplinks: sluice_dataplane::Uplinks::Named(vec![]),
        xdp: sluice_dataplane::Xdp::Auto,
        forwarding: sluice_dataplane::model::Forwarding::Snat,
        ..place.config()?
    };
    place.cleaned(|| {
        let dataplane = own.within(|| Dataplane::load(config).context("load the data plane"))?;
        measure(&own, &dataplane)
    })
}

fn measure(place: &Place, own: &Node, dataplane: &Dataplane) -> Result<Measured> {
    add_pods(own, dataplane)?;
    let mut measured = Measured::default();
    let mut others = Vec::new();
    for (name, command, rules) in PROXIES {
        let node = Node::make(command[0])?;
        let client = Client::start(&node.client(), None)?;
        others.push((name, command, rules, node, client));
    }
    let mut client = Client::start(&own.client(), Some(place.cgroup()))?;
    let mut shares = Vec::new();
    for count in limits::CALL_SERVICES {
        let services = services(count);
        say(&format!("sockets, {count} services: writing tables"));
        dataplane.apply(&snapshot(&services))?;
        let mut ways: Vec<(&str, &mut Client)> = Vec::new();
        for (name, command, rules, node, client) in &mut others {
            place.interrupts.check()?;
            match node.restore(command, &rules(&services)) {
                Ok(seconds) => {
                    measured.row(&format!("rules in effect, {count} services, {name}"), "s", &[seconds]);
                    ways.push((name, client));
                }
                Err(error) => measured.note(format!("{name} with {count} services is not measured: {error:#}")),
            }
        }
        shares.push(rounds(place, count, &mut client, &mut ways, &mut measured)?);
    }
    goals(&shares, &mut measured);
    Ok(measured)
}

/// Makes both pods of a node known.
pub(super) fn add_pods(node: &Node, dataplane: &Dataplane) -> Result<()> {
    node.within(|| {
        for (link, net, hosts) in PODS {
            let index = nix::net::if_::if_nametoindex(link)?;
            let addresses = hosts.map(|host| Ipv4Addr::new(10, 244, net, host).into()).to_vec();
            let pod = PodInfo {
                namespace: "bench".into(),
                name: link.into(),
                services: Default::default(),
                neighbour: Some(Neighbour { addresses, mac: mac(net) }),
            };
            let netns = if link == CLIENT_LINK { node.client() } else { node.server() };
            dataplane.add_pod(index, &netns, &pod)?;
        }
        Ok(())
    })
}

/// What came of one number of services: Sluice's rates as shares of others', median over the rounds.
struct Shares {
    short_of_direct: Option<f64>,
    kept_of_direct: Option<f64>,
    /// Of the faster one of both kinds of iptables.
    short_of_iptables: Option<f64>,
}

fn rounds(
    place: &Place,
    count: u32,
    own: &mut Client,
    ways: &mut [(&str, &mut Client)],
    measured: &mut Measured,
) -> Result<Shares> {
    let mut of = [Vec::new(), Vec::new()];
    let mut of_iptables = Vec::new();
    for (uses, title, unit) in USES {
        let names: Vec<String> =
            [DIRECT, SLUICE].into_iter().chain(ways.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
        let mut rates = vec![Vec::new(); names.len()];
        let mut first = vec![Vec::new(); names.len()];
        for round in 0..=limits::CALL_ROUNDS {
            place.interrupts.check()?;
            for step in 0..names.len() {
                // Each round begins with another way.
                let at = (step + round) % names.len();
                let direct = at == 0;
                let order = Order {
                    first: if direct { ENDPOINTS[0] } else { FIRST },
                    count: if direct { 2 } else { count },
                    port: if direct { ENDPOINT_PORT } else { PORT },
                    uses,
                    time: limits::CALL_SLICE,
                };
                let client = if at < 2 { &mut *own } else { &mut *ways[at - 2].1 };
                let outcome = client.call(&order)?;
                if outcome.failed > 0 {
                    bail!("{title}, {count} services, {}: {} of {} failed", names[at], outcome.failed, outcome.done);
                }
                // The first round warms up.
                if round > 0 {
                    rates[at].push(rate(&outcome, uses));
                    first[at].extend(outcome.first_byte);
                }
            }
        }
        for (at, name) in names.iter().enumerate() {
            measured.row(&format!("{title}, {count} services, {name}"), unit, &rates[at]);
            measured.row(&format!("first byte, {title}, {count} services, {name}"), "us", &first[at]);
        }
        let share = |of: usize| median(rates[1].iter().zip(&rates[of]).map(|(own, other)| own / other));
        match uses {
            Use::Short => {
                of[0].extend(share(0));
                let iptables = names.iter().enumerate().filter(|(_, name)| name.starts_with("iptables"));
                of_iptables.extend(iptables.filter_map(|(at, _)| share(at)));
            }
            Use::Kept => of[1].extend(share(0)),
            Use::Bulk => {}
        }
    }
    Ok(Shares {
        short_of_direct: of[0].first().copied(),
        kept_of_direct: of[1].first().copied(),
        short_of_iptables: of_iptables.into_iter().reduce(f64::min),
    })
}

pub(super) fn rate(outcome: &Outcome, uses: Use) -> f64 {
    #[expect(clippy::cast_precision_loss)]
    let rate = outcome.done as f64 / outcome.seconds;
    if uses == Use::Bulk { rate / 1e6 } else { rate }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    percentile(&sorted(&values.collect::<Vec<_>>()), 50.0)
}

fn goals(shares: &[Shares], measured: &mut Measured) {
    let [few, .., most] = shares else { return };
    let names = limits::CALL_SERVICES;
    let flat = |get: fn(&Shares) -> Option<f64>| Some(get(most)? / get(few)?);
    let goals = [
        ("kept connection, Service beside pod directly", 0.98, few.kept_of_direct),
        ("short connections, Service beside pod directly", 0.95, few.short_of_direct),
        ("short connections, beside kube-proxy's iptables rules", 1.15, few.short_of_iptables),
        ("short connections, 10,000 services beside 10", 0.9, flat(|shares| shares.short_of_direct)),
    ];
    for (name, least, value) in goals {
        measured.goals.push(Goal::new(name, Bound::AtLeast(least), "", value));
    }
    measured.note(format!("shares are medians over rounds, at {} services unless said otherwise", names[0]));
}

pub(super) fn services(count: u32) -> Vec<Service> {
    (0..count)
        .map(|at| Service {
            name: format!("bench/service-{at}"),
            address: Ipv4Addr::from(u32::from(FIRST) + at),
            port: PORT,
            endpoints: ENDPOINTS.map(|address| (address, ENDPOINT_PORT)).to_vec(),
        })
        .collect()
}

/// The same services for Sluice.
pub(super) fn snapshot(services: &[Service]) -> Snapshot {
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    for service in services {
        let name: ObjectName = ("bench".into(), service.name.replace('/', "-").into());
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: service.port, node_port: 0 };
        let endpoint = |(address, _): &(Ipv4Addr, u16)| Endpoint {
            address: Some(IpAddr::V4(*address)),
            ready: true,
            serving: true,
            node: Some("here".into()),
            ..Endpoint::default()
        };
        let slice = Slice {
            service: name.1.clone(),
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: ENDPOINT_PORT }],
            endpoints: service.endpoints.iter().map(endpoint).collect(),
        };
        let service = sluice_dataplane::model::Service {
            cluster: vec![IpAddr::V4(service.address)],
            ports: vec![port],
            ..Default::default()
        };
        snapshot.services.insert(name.clone(), service);
        snapshot.slices.insert(name, slice);
    }
    snapshot
}

const CLIENT_LINK: &str = "cl0";
const SERVER_LINK: &str = "sv0";
/// Both pods: link, third byte of its network, last bytes of its addresses.
const PODS: [(&str, u8, [u8; 2]); 2] = [(CLIENT_LINK, 1, [2, 3]), (SERVER_LINK, 2, [10, 11])];

/// Ethernet address of the pod in that network.
fn mac(net: u8) -> [u8; 6] {
    [2, 0, 0, 0, net, 1]
}

/// A node with two pods, each a network namespace that goes with the bench.
pub(super) struct Node {
    name: String,
}

impl Node {
    pub(super) fn make(name: &str) -> Result<Node> {
        let node = Node { name: name.to_owned() };
        sh(&format!("ip netns add {name}"))?;
        sh(&format!("ip -n {name} link set lo up"))?;
        for (link, net, hosts) in PODS {
            let pod = format!("{name}-{link}");
            sh(&format!("ip netns add {pod}"))?;
            let mac = mac(net).map(|byte| format!("{byte:02x}")).join(":");
            sh(&format!("ip -n {name} link add {link} type veth peer name eth0 address {mac} netns {pod}"))?;
            sh(&format!("ip -n {name} address add 10.244.{net}.1/24 dev {link}"))?;
            sh(&format!("ip -n {name} link set {link} up"))?;
            sh(&format!("ip -n {pod} link set lo up"))?;
            for host in hosts {
                sh(&format!("ip -n {pod} address add 10.244.{net}.{host}/24 dev eth0"))?;
            }
            sh(&format!("ip -n {pod} link set eth0 up"))?;
            sh(&format!("ip -n {pod} route add default via 10.244.{net}.1"))?;
        }
        node.within(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets on the node"))?;
        serve(&node.server(), ENDPOINT_PORT)?;
        Ok(node)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(super) fn client(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{CLIENT_LINK}", self.name))
    }

    fn server(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{SERVER_LINK}", self.name))
    }

    /// Runs something on a thread in the node's network namespace.
    pub(super) fn within<R: Send>(&self, act: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.path())?;
                act()
            });
            inside.join().map_err(|_| anyhow::anyhow!("what ran in the node's namespace failed"))?
        })
    }

    /// Replaces the node's rules: seconds until they were in effect.
    fn restore(&self, command: &[&str], rules: &str) -> Result<f64> {
        if command[0] == "nft" {
            // The file adds to what is there; the other programs replace it.
            let _ = sh(&format!("nsenter --net={} nft delete table ip kube-proxy", self.path().display()));
        }
        let begun = std::time::Instant::now();
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["timeout", &limits::RULES_SECONDS.to_string()])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        let mut input = child.stdin.take().context("the program reads")?;
        // It may stop reading at a rule that it refuses, and says so.
        let _ = input.write_all(rules.as_bytes());
        drop(input);
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!("{} ended with {}: {}", command[0], done.status, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(begun.elapsed().as_secs_f64())
    }
}

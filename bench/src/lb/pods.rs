//! Traffic between pods of two nodes: over a veth pair that plays the wire, by the data plane and, beside it, between nodes
//! that have the kernel's routing alone. A third pair has the data plane with every packet passing through the stack. All
//! pairs are there at the same time and take turns, with client, server and kernel on one CPU, as in [`super::sockets`].

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail};
use sluice_dataplane::{Config, Dataplane, Neighbour, PodInfo, Redirect, Uplinks, Xdp, model::Forwarding};
use sluice_e2e::run as sh;

use super::call::{Client, Order, Use, enter, serve};
use super::place::{Place, on_one_cpu};
use super::sockets::{median, rate};
use crate::{
    lab::say,
    limits,
    report::{Bound, Goal, Measured},
};

const PLAIN: &str = "kernel routing alone";
const SLUICE: &str = "Sluice";
const STACK: &str = "Sluice with --pod-redirect off";
const PORT: u16 = 8080;
const POD_LINK: &str = "pod0";
const WIRE: &str = "wire0";
const USES: [(Use, &str, &str, f64); 3] = [
    (Use::Short, "short connections", "/s", 0.99),
    (Use::Kept, "kept connection", "/s", 0.99),
    (Use::Bulk, "throughput", "MB/s", 0.99),
];

pub(super) fn run(place: &Place) -> Result<Measured> {
    on_one_cpu(|| all(place))
}

fn all(place: &Place) -> Result<Measured> {
    let pairs = ["plain", "straight", "stack"].map(Pair::make);
    let [plain, straight, stack] = pairs;
    let (plain, straight, stack) = (plain?, straight?, stack?);
    let mut planes = Vec::new();
    for (pair, redirect) in [(&straight, Redirect::On), (&stack, Redirect::Off)] {
        for node in &pair.nodes {
            planes.push(node.load(place, redirect)?);
        }
    }
    let pins: Vec<PathBuf> = [&straight, &stack].iter().flat_map(|pair| pair.nodes.iter().map(Node::pins)).collect();
    let measured = measure(place, &[(PLAIN, &plain), (SLUICE, &straight), (STACK, &stack)]);
    drop(planes);
    let removed: Vec<_> = pins.iter().map(|pins| Dataplane::remove_all(pins)).collect();
    let measured = measured?;
    removed.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(measured)
}

fn measure(place: &Place, pairs: &[(&str, &Pair)]) -> Result<Measured> {
    say("pods of two nodes");
    let mut measured = Measured::default();
    let mut clients = Vec::new();
    for (_, pair) in pairs {
        let [client, server] = &pair.nodes;
        serve(&server.pod(), PORT)?;
        clients.push(Client::start(&client.pod(), None)?);
    }
    let first = Node::pod_address(2);
    for (uses, title, unit, least) in USES {
        let order = Order { first, count: 1, port: PORT, uses, time: limits::CALL_SLICE };
        let mut rates = vec![Vec::new(); pairs.len()];
        for round in 0..=limits::POD_ROUNDS {
            place.interrupts.check()?;
            for step in 0..pairs.len() {
                // Each round begins with another pair.
                let at = (step + round) % pairs.len();
                let outcome = clients[at].call(&order)?;
                if outcome.failed > 0 {
                    bail!("{title} between nodes, {}: {} of {} failed", pairs[at].0, outcome.failed, outcome.done);
                }
                // The first round warms up.
                if round > 0 {
                    rates[at].push(rate(&outcome, uses));
                }
            }
        }
        for ((name, _), rates) in pairs.iter().zip(&rates) {
            measured.row(&format!("{title} between nodes, {name}"), unit, rates);
        }
        let share = |of: usize| median(rates[of].iter().zip(&rates[0]).map(|(own, plain)| own / plain));
        let goal = format!("{title} between nodes, beside {PLAIN}");
        measured.goals.push(Goal::new(&goal, Bound::AtLeast(least), "", share(1)));
        if let Some(share) = share(2) {
            measured.row(&format!("{title} between nodes, {STACK}, beside {PLAIN}"), "", &[share]);
        }
    }
    Ok(measured)
}

/// Two nodes with a wire between them and a pod each.
struct Pair {
    nodes: [Node; 2],
}

impl Pair {
    fn make(name: &str) -> Result<Pair> {
        let nodes = [1, 2].map(|number| Node { name: format!("{name}-{number}"), number });
        let [first, second] = &nodes;
        for node in &nodes {
            node.make()?;
        }
        sh(&format!("ip -n {} link add {WIRE} type veth peer name {WIRE} netns {}", first.name, second.name))?;
        for (node, other) in [(first, second), (second, first)] {
            let ip = |arguments: String| sh(&format!("ip -n {} {arguments}", node.name));
            ip(format!("address add {}/24 dev {WIRE}", node.address()))?;
            ip(format!("link set {WIRE} up"))?;
            ip(format!("route add 10.244.{}.0/24 via {}", other.number, other.address()))?;
        }
        Ok(Pair { nodes })
    }
}

/// Network namespaces of a node and its pod, which go with the bench.
struct Node {
    name: String,
    number: u8,
}

impl Node {
    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 0, self.number)
    }

    fn pod_address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, number, 2)
    }

    fn pod(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-pod", self.name))
    }

    fn pins(&self) -> PathBuf {
        format!("/sys/fs/bpf/bench-{}", self.name).into()
    }

    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.number, 1]
    }

    fn make(&self) -> Result<()> {
        let (name, number) = (&self.name, self.number);
        let pod = format!("{name}-pod");
        let mac = self.mac().map(|byte| format!("{byte:02x}")).join(":");
        for command in [
            format!("ip netns add {name}"),
            format!("ip netns add {pod}"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {pod} link set lo up"),
            format!("ip -n {name} link add {POD_LINK} type veth peer name eth0 address {mac} netns {pod}"),
            format!("ip -n {name} address add 10.244.{number}.1/24 dev {POD_LINK}"),
            format!("ip -n {name} link set {POD_LINK} up"),
            format!("ip -n {pod} address add {}/24 dev eth0", Node::pod_address(number)),
            format!("ip -n {pod} link set eth0 up"),
            format!("ip -n {pod} route add default via 10.244.{number}.1"),
        ] {
            sh(&command)?;
        }
        self.within(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets on the node"))
    }

    /// The data plane of this node, with its pod.
    fn load(&self, place: &Place, redirect: Redirect) -> Result<Dataplane> {
        let range = |text: String| text.parse().map_err(anyhow::Error::msg);
        let config = Config {
            node_addresses: vec![self.address().into()],
            pin_dir: self.pins(),
            pod_range: Some(range(format!("10.244.{}.0/24", self.number))?),
            cluster_range: Some(range("10.244.0.0/16".into())?),
            uplinks: Uplinks::Named(vec![WIRE.into()]),
            xdp: Xdp::Auto,
            forwarding: Forwarding::Snat,
            redirect,
            ..place.config()?
        };
        self.within(|| {
            let dataplane = Dataplane::load(config).context("load the data plane")?;
            let neighbour = Neighbour { addresses: vec![Node::pod_address(self.number).into()], mac: self.mac() };
            let pod = PodInfo {
                namespace: "bench".into(),
                name: self.name.clone(),
                services: Default::default(),
                neighbour: Some(neighbour),
            };
            dataplane.add_pod(nix::net::if_::if_nametoindex(POD_LINK)?, &self.pod(), &pod)?;
            Ok(dataplane)
        })
    }

    /// Runs something on a thread in the node's network namespace.
    fn within<R: Send>(&self, act: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&Path::new("/run/netns").join(&self.name))?;
                act()
            });
            inside.join().map_err(|_| anyhow::anyhow!("what ran in the node's namespace failed"))?
        })
    }
}

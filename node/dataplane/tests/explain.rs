//! What is explained is what happens: the same flows are explained and then made with real sockets, over two nodes; and asking
//! leaves no trace.
#![allow(clippy::unwrap_used)]

#[path = "common/clusters.rs"]
mod clusters;
mod common;
#[path = "common/two_nodes.rs"]
mod two_nodes;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use clusters::{Cluster, IMPATIENCE, NODE, OUTSIDE, ROWS, cluster, objects, policy};
use common::{PATIENCE, Place, isolated, words};
use serde_json::json;
use sluice_dataplane::explain::{Choice, Decision, Explainer, Explanation, Fate, Known, Question, Sender, Step};
use sluice_dataplane::model::{Forwarding, Protocol, Slice, Snapshot};
use sluice_dataplane::{End, Xdp, drops, flows, policy::snapshot, services};

/// A service: name, its cluster addresses' last number, node port, backends by pod, and what is special about it.
const SERVICES: [(&str, u16, u16, &[usize]); 5] = [
    ("both", 10, 30080, &[0, 1, 2, 3]),
    ("near", 11, 30081, &[1]),
    ("far", 12, 30082, &[2]),
    ("none", 13, 30083, &[]),
    ("sticky", 14, 30084, &[0, 1, 2, 3]),
];

/// Numbers by chance, the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn table(node: &str) -> Snapshot {
    let mut all = Snapshot { node: node.into(), ..Snapshot::default() };
    for (name, number, node_port, pods) in SERVICES {
        for (family, protocol) in [(0, Protocol::Tcp), (1, Protocol::Tcp), (0, Protocol::Udp), (1, Protocol::Udp)] {
            let cluster = [format!("10.96.0.{number}:80"), format!("[fd96::{number}]:80")][family].clone();
            let end = |pod: &usize| {
                let here = (ROWS[*pod].node == 0) == (node == "here");
                let address: IpAddr = ROWS[*pod].addresses[family].parse().unwrap();
                format!("{}{}", if here { "" } else { "~" }, SocketAddr::new(address, 80))
            };
            let backends: Vec<String> = pods.iter().map(end).collect();
            let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
            let one = common::service(protocol, &cluster, node_port, &backends);
            let full: std::sync::Arc<str> = format!("{name}-{}-{family}", protocol.name().to_lowercase()).into();
            let mut service = one.services.into_values().next().unwrap();
            service.affinity = if name == "sticky" { 600 } else { 0 };
            all.services.insert(("shop".into(), full.clone()), service);
            for ((space, slice), value) in one.slices {
                let slice = format!("{full}-{slice}").into();
                all.slices.insert((space, slice), Slice { service: full.clone(), ..value });
            }
        }
    }
    all
}

/// What came of a real flow.
#[derive(Debug, PartialEq, Eq)]
enum Real {
    /// Who answered, and whom they saw.
    Answered(SocketAddr, SocketAddr),
    Refused,
    Unreachable,
    Silent,
}

/// A flow that goes on until it is dropped.
#[allow(dead_code)]
enum Open {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Nothing,
}

fn plain(end: SocketAddr) -> SocketAddr {
    SocketAddr::new(end.ip().to_canonical(), end.port())
}

fn failed(error: &std::io::Error) -> Real {
    match error.kind() {
        ErrorKind::ConnectionRefused => Real::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Real::Unreachable,
        _ => Real::Silent,
    }
}

fn make(to: SocketAddr, protocol: Protocol, patience: Duration) -> (Real, Open, u16) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let attempt = || -> std::io::Result<(Real, Open, u16)> {
        if protocol == Protocol::Udp {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(patience))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 128];
            let length = socket.recv(&mut buffer)?;
            let (server, client) = words(&buffer[..length]);
            let port = socket.local_addr()?.port();
            // The server listens on every address.
            return Ok((
                Real::Answered(SocketAddr::new(to.ip(), server.port()), plain(client)),
                Open::Udp(socket),
                port,
            ));
        }
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut text = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
            text.push(byte[0]);
        }
        let (server, client) = words(&text);
        let port = stream.local_addr()?.port();
        Ok((Real::Answered(plain(server), plain(client)), Open::Tcp(stream), port))
    };
    attempt().unwrap_or_else(|error| (failed(&error), Open::Nothing, 0))
}

fn end(end: End) -> SocketAddr {
    SocketAddr::new(end.address, end.port)
}

/// The ends that come to somebody, if any do.
fn arrives(fate: &Fate) -> Option<(SocketAddr, SocketAddr)> {
    match fate {
        Fate::Delivered { to, seen_as, .. } | Fate::Leaves { to, seen_as, .. } => Some((end(*to), end(*seen_as))),
        _ => None,
    }
}

fn backend(explanation: &Explanation) -> Option<(End, Choice)> {
    explanation.steps.iter().flat_map(|step| &step.decisions).find_map(|decision| match decision {
        Decision::Backend { address, choice, .. } => Some((*address, *choice)),
        _ => None,
    })
}

/// Asks, and is told without any doubt.
fn ask(explainer: &mut Explainer, from: &str, to: SocketAddr, protocol: Protocol, port: Option<u16>) -> Explanation {
    let question = Question {
        sender: if from == "node" { Sender::Node } else { Sender::At(from.parse().unwrap()) },
        destination: End { address: to.ip(), port: to.port() },
        protocol,
        source_port: port,
        cluster: None,
    };
    let explanation = explainer.explain(&question).unwrap();
    let known = |warning: &String| {
        from == "node" && warning.contains("cgroups") || warning.contains("policy_out drops the answer")
    };
    assert!(explanation.warnings.iter().all(known), "{explanation:#?}");
    assert!(explanation.steps.iter().all(|step| step.known != Known::RunDiffers), "{explanation:#?}");
    explanation
}

/// Does that become of a flow which was explained so?
fn fits(told: &Explanation, real: &Real, protocol: Protocol) -> bool {
    let is_answered = told.answer.as_ref().is_none_or(|answer| answer.fits);
    match (&told.fate, real) {
        (Fate::Delivered { .. } | Fate::Leaves { .. }, Real::Answered(..)) => is_answered,
        (Fate::Delivered { .. } | Fate::Leaves { .. }, Real::Silent) => !is_answered,
        (Fate::Refused { .. }, Real::Refused) | (Fate::Dropped { .. }, Real::Silent) => true,
        // The kernel limits how many errors it sends.
        (Fate::Refused { .. }, Real::Silent) => protocol == Protocol::Udp,
        (Fate::Unreachable { .. }, Real::Unreachable | Real::Silent) => true,
        _ => false,
    }
}

/// One flow: explained, made, and explained again while it is open.
fn compare(cluster: &Cluster, explainer: &mut Explainer, from: &str, to: SocketAddr, protocol: Protocol) -> String {
    let address = match from {
        "node" => "node",
        "outside" => OUTSIDE[usize::from(to.is_ipv6())],
        pod => ROWS.iter().find(|row| row.link == pod).unwrap().addresses[usize::from(to.is_ipv6())],
    };
    let told = ask(explainer, address, to, protocol, None);
    let what = format!("{from} to {to} over {}: {told:#?}", protocol.name());
    // What chance decides may be dropped, whatever is explained.
    let is_answered = told.answer.as_ref().is_none_or(|answer| answer.fits);
    let is_lost = !is_answered && !matches!(told.fate, Fate::Refused { .. }) || backend(&told).is_some();
    let patience = if is_lost { IMPATIENCE } else { PATIENCE };
    let act = |patience| {
        let act = || make(to, protocol, patience);
        match from {
            "node" => act(),
            "outside" => cluster.outside.within(act),
            pod => cluster.pods[ROWS.iter().position(|row| row.link == pod).unwrap()].within(act),
        }
    };
    let (mut real, mut open, mut port) = act(patience);
    // Chance may have led to another backend: one of those that are explained then leads there.
    let (mut told, mut tries) = (told, 0);
    let by_chance = |told: &Explanation| backend(told).is_some_and(|(_, choice)| choice != Choice::Affinity);
    while !fits(&told, &real, protocol) && by_chance(&told) && tries < 12 {
        told = ask(explainer, address, to, protocol, Some(41_000 + tries));
        tries += 1;
    }
    if !fits(&told, &real, protocol) {
        // The machine may have been busy.
        (real, open, port) = act(PATIENCE);
    }
    assert!(fits(&told, &real, protocol), "{real:?}, but {what}");
    if let Real::Answered(server, client) = &real {
        if protocol == Protocol::Tcp && !by_chance(&told) {
            assert_eq!(arrives(&told.fate).unwrap().0, *server, "{what}");
        }
        let again = ask(explainer, address, to, protocol, Some(port));
        let (to_whom, seen_as) = arrives(&again.fate).unwrap_or_else(|| panic!("{what}\n{again:#?}"));
        if from != "node" {
            assert_eq!(seen_as, *client, "{what}\n{again:#?}");
        }
        if backend(&told).is_some() {
            assert!(again.existing, "{what}\n{again:#?}");
            assert_eq!(backend(&again).map(|(_, choice)| choice), Some(Choice::Connection), "{again:#?}");
        }
        if protocol == Protocol::Tcp {
            assert_eq!(to_whom, *server, "{what}\n{again:#?}");
        }
    }
    drop(open);
    match &told.fate {
        Fate::Refused { reason, .. } | Fate::Dropped { reason, .. } => (*reason).into(),
        Fate::Unreachable { .. } => "unreachable".into(),
        Fate::Delivered { .. } | Fate::Leaves { .. } if told.answer.as_ref().is_some_and(|answer| !answer.fits) => {
            "one way".into()
        }
        Fate::Delivered { .. } => "delivered".into(),
        Fate::Leaves { .. } => "leaves".into(),
    }
}

fn policies() -> Vec<Vec<serde_json::Value>> {
    let one = |rest| vec![policy("p", rest)];
    vec![
        vec![],
        one(json!({"policyTypes": ["Ingress"]})),
        one(json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]})),
        one(json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]})),
        one(json!({"policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "10.244.9.0/24"}}, {"ipBlock": {"cidr": "fd44:0:0:9::/64"}}]}
        ]})),
        one(json!({"policyTypes": ["Ingress", "Egress"], "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}], "ports": [{"port": "web"}]}
        ]})),
    ]
}

#[test]
fn what_is_explained_is_what_happens() {
    isolated("what_is_explained_is_what_happens", |place| {
        let cluster = cluster(place);
        for (plane, node) in cluster.planes.iter().zip(["here", "there"]) {
            assert_eq!(plane.apply(&table(node)).unwrap(), Vec::<String>::new());
        }
        let mut explainer = Explainer::open(&place.pins).unwrap();
        let mut chance = Chance(42);
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (round, policies) in policies().into_iter().enumerate() {
            cluster.apply(&policies);
            // The machine outside knows pods by their own addresses, or only nodes.
            let own: &[&str] = if round % 2 == 0 { &[] } else { &["192.0.2.0/24", "fd02::/64"] };
            let own: Vec<_> = own.iter().map(|range| range.parse().unwrap()).collect();
            cluster.planes[0].set_unmasqueraded(&own).unwrap();
            for _ in 0..24 {
                let family = chance.below(2);
                let from = *chance.of(&["slca", "slca", "slcb", "outside", "outside", "node"]);
                let protocol = *chance.of(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
                let (_, number, node_port, _) = *chance.of(&SERVICES);
                let to = match chance.below(if from == "outside" { 2 } else { 4 }) {
                    0 => format!("{} {}", ROWS[chance.below(4)].addresses[family], 80 + chance.below(2)),
                    1 => format!("{} {node_port}", NODE[family]),
                    2 => format!("{} 80", [format!("10.96.0.{number}"), format!("fd96::{number}")][family]),
                    _ => format!("{} 80", OUTSIDE[family]),
                };
                let (address, port) = to.split_once(' ').unwrap();
                let to = SocketAddr::new(address.parse().unwrap(), port.parse().unwrap());
                *seen.entry(compare(&cluster, &mut explainer, from, to, protocol)).or_default() += 1;
            }
        }
        println!("{seen:?}");
        for fate in ["delivered", "leaves", "NoEndpoint", "PolicyIngress", "PolicyEgress"] {
            assert!(seen.get(fate).is_some_and(|number| *number > 2), "{fate}: {seen:?}");
        }
    });
}

/// The test's own sockets are the node's, and are translated when they connect.
#[test]
fn what_sockets_get_is_explained() {
    isolated("what_sockets_get_is_explained", |place| {
        let servers: Vec<SocketAddr> = ["10.1.0.1:8001", "10.1.0.1:8002"]
            .into_iter()
            .map(|address| {
                if address.ends_with('1') {
                    common::run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
                }
                common::tcp_server(address)
            })
            .collect();
        let dataplane = sluice_dataplane::Dataplane::load(place.config()).unwrap();
        let ends: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
        let mut all = common::service(Protocol::Tcp, "10.96.0.10:80", 30080, &ends);
        let none = common::service(Protocol::Tcp, "10.96.0.11:80", 30081, &[]);
        all.services.insert(("shop".into(), "none".into()), none.services.into_values().next().unwrap());
        assert_eq!(dataplane.apply(&all).unwrap(), Vec::<String>::new());
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        let mut explainer = Explainer::open(&place.pins).unwrap();
        let mut told = |to: &str, protocol| ask(&mut explainer, "node", to.parse().unwrap(), protocol, None);
        for to in ["10.96.0.10:80", "10.1.0.1:30080", "127.0.0.1:30080"] {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..32 {
                let told = told(to, Protocol::Tcp);
                assert_eq!((told.steps[0].at, told.steps[0].known), ("connect", Known::Computed), "{told:#?}");
                assert!(matches!(told.fate, Fate::Delivered { pod: None, .. }), "{told:#?}");
                seen.insert(arrives(&told.fate).unwrap().0);
            }
            let (real, _open, _) = make(to.parse().unwrap(), Protocol::Tcp, PATIENCE);
            let Real::Answered(server, _) = real else { panic!("{real:?}") };
            assert!(seen.contains(&server) && seen.into_iter().eq(servers.iter().copied()), "{to}");
        }
        for to in ["10.96.0.11:80", "10.1.0.1:30081"] {
            let told = told(to, Protocol::Tcp);
            assert!(
                matches!(told.fate, Fate::Refused { reason: "NoEndpoint", .. }) && told.steps.len() == 1,
                "{told:#?}"
            );
            assert_eq!(make(to.parse().unwrap(), Protocol::Tcp, PATIENCE).0, Real::Refused);
        }
        // Of another protocol, and of nobody.
        let told = told("10.1.0.1:8003", Protocol::Tcp);
        assert!(matches!(told.fate, Fate::Refused { reason: "NO_SOCKET", .. }), "{told:#?}");
        assert_eq!(make("10.1.0.1:8003".parse().unwrap(), Protocol::Tcp, PATIENCE).0, Real::Refused);
    });
}

/// As the pod network makes its tunnel to nodes on other links.
#[test]
fn a_tunnel_is_named_with_its_other_end() {
    isolated("a_tunnel_is_named_with_its_other_end", |place| {
        let _cluster = cluster(place);
        let ip = |text: &str| common::run("ip", &text.split(' ').collect::<Vec<_>>());
        ip("link add sluice.vxlan type vxlan id 7 local 10.1.0.1 dstport 4789 nolearning");
        ip("link set sluice.vxlan up");
        for (network, gateway) in [("10.244.7.0/24", "10.244.7.1"), ("fd44:0:0:7::/64", "fd44:0:0:7::1")] {
            ip(&format!("route add {network} via {gateway} dev sluice.vxlan onlink"));
            ip(&format!("neigh add {gateway} lladdr 06:00:00:00:00:07 dev sluice.vxlan nud permanent"));
        }
        common::run("bridge", &["fdb", "append", "06:00:00:00:00:07", "dev", "sluice.vxlan", "dst", "10.1.0.7"]);
        let mut explainer = Explainer::open(&place.pins).unwrap();
        for (from, to) in [("10.244.0.5", "10.244.7.9:80"), ("fd44::5", "[fd44:0:0:7::9]:80")] {
            let told = ask(&mut explainer, from, to.parse().unwrap(), Protocol::Tcp, None);
            let end = told.steps.iter().flat_map(|step| &step.decisions).find_map(|decision| match decision {
                Decision::Tunnel { node, .. } => *node,
                _ => None,
            });
            assert_eq!(end, Some("10.1.0.7".parse().unwrap()), "{told:#?}");
            assert!(matches!(&told.fate, Fate::Leaves { link, .. } if link == "sluice.vxlan"), "{told:#?}");
            assert!(told.answer.is_some_and(|answer| answer.fits));
        }
    });
}

/// The backend's node answers clients itself: what the balancer sends there is a packet in a packet.
fn carried_on(world: &two_nodes::World, place: &Place) -> Vec<Explanation> {
    world.serve(Forwarding::Dsr);
    let mut explainer = Explainer::open(&place.pins).unwrap();
    let told = two_nodes::SERVICES.into_iter().enumerate().map(|(at, (service, pod))| {
        let client = ["10.1.0.2", "fd01::2"][at];
        let told = ask(&mut explainer, client, service.parse().unwrap(), Protocol::Tcp, None);
        let carried = told.steps.iter().flat_map(|step| &step.decisions).find_map(|decision| match decision {
            Decision::Carried { destination, .. } => Some(*destination),
            _ => None,
        });
        let pod: SocketAddr = pod.parse().unwrap();
        assert_eq!(carried, Some(pod.ip()), "{told:#?}");
        let Fate::Leaves { seen_as, ref link, inside_to, .. } = told.fate else { panic!("{told:#?}") };
        assert_eq!((inside_to, &told.answer), (Some(pod.ip()), &None), "{told:#?}");
        assert_eq!((seen_as.address.to_string().as_str(), link.as_str()), (client, "up1"), "{told:#?}");
        let real = world.client.within(|| make(service.parse().unwrap(), Protocol::Tcp, PATIENCE).0);
        let as_told = |real: &Real| matches!(real, Real::Answered(server, from) if *server == pod && from.ip() == seen_as.address);
        assert!(as_told(&real), "{real:?}");
        told
    });
    told.collect()
}

#[test]
fn direct_server_return_is_explained() {
    isolated("direct_server_return_is_explained", |place| {
        carried_on(&two_nodes::world(place, Xdp::Off), place);
    });
}

/// Where the packet came by, with the links.
fn places(steps: &[Step]) -> Vec<(&str, &str)> {
    steps.iter().map(|step| (step.at, step.link.as_deref().unwrap_or_default())).collect()
}

/// A backend elsewhere, by a program before all others on the links: explained, made, and explained again while it is open.
fn sent_on(world: &two_nodes::World, place: &Place, program: &str) {
    let by_driver = program == "uplink_xdp";
    world.serve(Forwarding::Snat);
    let mut explainer = Explainer::open(&place.pins).unwrap();
    for (at, (service, pod)) in two_nodes::SERVICES.into_iter().enumerate() {
        let (client, node) = (["10.1.0.2", "fd01::2"][at], ["10.2.0.1", "fd02::1"][at]);
        let (service, pod): (SocketAddr, SocketAddr) = (service.parse().unwrap(), pod.parse().unwrap());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // To find the neighbours is the stack's work.
            drop(world.client.within(|| make(service, protocol, PATIENCE)));
            world.balancer.forget_flows().unwrap();
            let told = ask(&mut explainer, client, service, protocol, None);
            let way = |from, to| {
                let out = [("uplink_out", to)];
                [(program, from)].into_iter().chain(out.into_iter().filter(|_| !by_driver)).collect::<Vec<_>>()
            };
            assert_eq!(places(&told.steps), way("up0", "up1"), "{told:#?}");
            let answer = told.answer.as_ref().unwrap();
            assert_eq!(places(&answer.steps), way("up1", "up0"), "{told:#?}");
            assert!(answer.fits, "{told:#?}");
            let Fate::Leaves { to, seen_as, ref link, inside_to: None, .. } = told.fate else { panic!("{told:#?}") };
            assert_eq!((end(to), seen_as.address, link.as_str()), (pod, node.parse().unwrap(), "up1"), "{told:#?}");
            assert_eq!(backend(&told).map(|(address, _)| end(address)), Some(pod), "{told:#?}");
            let before = common::forwarded();
            let (real, open, port) = world.client.within(|| make(service, protocol, PATIENCE));
            let Real::Answered(server, seen_as) = real else { panic!("{real:?}") };
            // Of a datagram's answer only the port is known.
            assert_eq!(server.port(), pod.port());
            assert!(protocol == Protocol::Udp || server == pod, "{server}");
            assert_eq!(seen_as.ip(), node.parse::<IpAddr>().unwrap());
            assert_eq!(common::forwarded(), before, "the stack forwarded what was explained to pass it");
            let again = ask(&mut explainer, client, service, protocol, Some(port));
            assert!(again.existing, "{again:#?}");
            assert_eq!(arrives(&again.fate), Some((pod, seen_as)), "{again:#?}");
            assert_eq!(backend(&again).map(|(_, choice)| choice), Some(Choice::Connection), "{again:#?}");
            assert_eq!(places(&again.steps), way("up0", "up1"), "{again:#?}");
            drop(open);
        }
        // What is no Service's is left to the others.
        let told = ask(&mut explainer, client, SocketAddr::new(node.parse().unwrap(), 9999), Protocol::Tcp, None);
        assert_eq!(places(&told.steps), [(program, "up0"), ("uplink_in", "up0"), ("route", "")], "{told:#?}");
        assert!(told.steps[0].decisions.contains(&Decision::Stack), "{told:#?}");
    }
}

#[test]
fn what_the_driver_sends_on_is_explained() {
    isolated("what_the_driver_sends_on_is_explained", |place| {
        let world = two_nodes::world(place, Xdp::Always);
        for end in [&world.client, &world.backend_node] {
            end.within(|| common::act_as_card("eth0"));
        }
        assert!(world.balancer.status().unwrap().uplinks.iter().all(|row| row.xdp == "native"));
        sent_on(&world, place, "uplink_xdp");
        for told in carried_on(&world, place) {
            assert_eq!(places(&told.steps), [("uplink_xdp", "up0")], "{told:#?}");
        }
    });
}

#[test]
fn what_a_links_own_program_sends_on_is_explained() {
    isolated("what_a_links_own_program_sends_on_is_explained", |place| {
        let world = two_nodes::world(place, Xdp::Off);
        sent_on(&world, place, "uplink_onward");
    });
}

/// Every byte of the tables that programs write.
fn tables(pins: &Path) -> Vec<(String, Vec<u8>)> {
    use aya::maps::{HashMap, Map, MapData, PerCpuArray};
    let open = |name: &str| MapData::from_pin(pins.join("v6").join(name)).unwrap();
    let mut all = Vec::new();
    macro_rules! hash {
        ($name:literal, $map:ident, $key:literal, $value:literal) => {
            let map: HashMap<MapData, [u8; $key], [u8; $value]> = Map::$map(open($name)).try_into().unwrap();
            let mut entries: Vec<_> =
                map.iter().map(|entry| entry.unwrap()).map(|(k, v)| [&k[..], &v[..]].concat()).collect();
            entries.sort();
            all.push(($name.to_owned(), entries.concat()));
        };
    }
    hash!("flows", HashMap, 40, 96);
    hash!("affinities", LruHashMap, 24, 32);
    hash!("allowed", LruHashMap, 44, 12);
    hash!("fragments", LruHashMap, 40, 8);
    for (name, entries) in [("ports", 1_024 * 80), ("known", 16_384), ("places", 1_024)] {
        let map: aya::maps::Array<MapData, u64> = Map::Array(open(name)).try_into().unwrap();
        let words = (0..entries).flat_map(|at| map.get(&at, 0).unwrap().to_ne_bytes()).collect();
        all.push((name.to_owned(), words));
    }
    let reasons: PerCpuArray<MapData, u64> = Map::PerCpuArray(open("reasons")).try_into().unwrap();
    let counts = (0..19).flat_map(|at| reasons.get(&at, 0).unwrap().iter().sum::<u64>().to_ne_bytes()).collect();
    all.push(("reasons".to_owned(), counts));
    all
}

#[test]
fn asking_leaves_no_trace() {
    isolated("asking_leaves_no_trace", |place: &Place| {
        let cluster = cluster(place);
        assert_eq!(cluster.planes[0].apply(&table("here")).unwrap(), Vec::<String>::new());
        cluster
            .apply(&[policy("p", json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}))]);
        // A connection of each kind that is there.
        let (_, keep, _) = cluster.outside.within(|| make("10.1.0.1:30082".parse().unwrap(), Protocol::Tcp, PATIENCE));
        let (_, kept, port) =
            cluster.pods[1].within(|| make("10.96.0.14:80".parse().unwrap(), Protocol::Udp, PATIENCE));
        let links = |place: &Place| std::fs::read_dir(place.pins.join("v6")).unwrap().count();
        let before = (tables(&place.pins), format!("{:?}", services(&place.pins).unwrap()), links(place));
        let dropped = drops(&place.pins).unwrap().rows;
        let open = flows(&place.pins).unwrap().len();
        let mut explainer = Explainer::open(&place.pins).unwrap();
        let asked = [
            ("10.244.0.5", "10.96.0.10:80", None),
            ("10.244.0.6", "10.96.0.14:80", Some(port)),
            ("10.244.0.6", "10.244.0.5:80", None),
            ("192.0.2.9", "10.1.0.1:30082", None),
            ("192.0.2.9", "10.1.0.1:30083", None),
            ("fd02::9", "[fd01::1]:30082", None),
            ("node", "10.244.0.5:80", None),
        ];
        for (from, to, port) in asked {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                ask(&mut explainer, from, to.parse().unwrap(), protocol, port);
            }
        }
        let after = (tables(&place.pins), format!("{:?}", services(&place.pins).unwrap()), links(place));
        for ((name, before), (_, after)) in before.0.iter().zip(&after.0) {
            assert!(before == after, "{name} changed");
        }
        assert_eq!((before.1, before.2), (after.1, after.2));
        let own = |rows: Vec<sluice_dataplane::DropRow>| {
            rows.into_iter().filter(|row| row.by == sluice_dataplane::By::Sluice).collect::<Vec<_>>()
        };
        assert_eq!(own(dropped), own(drops(&place.pins).unwrap().rows));
        assert_eq!(open, flows(&place.pins).unwrap().len());
        drop((keep, kept));
    });
}

#[test]
fn policies_and_pods_are_called_by_their_names() {
    isolated("policies_and_pods_are_called_by_their_names", |place| {
        let cluster = cluster(place);
        let all = [policy("p", json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}))];
        cluster.apply(&all);
        let known = snapshot(&[objects(), all.to_vec()].concat()).unwrap();
        let mut explainer = Explainer::open(&place.pins).unwrap();
        let mut asked = |from: &str| {
            let question = Question {
                sender: Sender::At(from.parse().unwrap()),
                destination: End { address: "10.244.0.5".parse().unwrap(), port: 80 },
                protocol: Protocol::Tcp,
                source_port: None,
                cluster: Some(known.clone()),
            };
            let told = explainer.explain(&question).unwrap();
            let policy = told.steps.iter().flat_map(|step| &step.decisions).find_map(|decision| match decision {
                Decision::Policy { direction: "ingress", holding, allowing, allowed, .. } => {
                    Some((holding.clone(), allowing.clone(), *allowed))
                }
                _ => None,
            });
            (policy.unwrap(), told.fate)
        };
        let ((holding, allowing, allowed), fate) = asked("10.244.9.5");
        assert_eq!((holding, allowed), (vec!["x/p".to_owned()], true));
        assert_eq!(allowing, ["x/p, ingress rule 1 (from pods of every label; every port)"]);
        assert!(matches!(fate, Fate::Delivered { pod: Some(pod), .. } if pod == "x/slca"));
        let ((holding, allowing, allowed), fate) = asked("10.244.9.6");
        assert_eq!((holding, allowing, allowed), (vec!["x/p".to_owned()], vec![], false));
        assert!(matches!(fate, Fate::Dropped { reason: "PolicyIngress", .. }));
    });
}

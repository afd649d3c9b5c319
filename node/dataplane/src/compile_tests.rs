#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::model::{Endpoint, HostPort, Prefer, SlicePort};
use crate::range::unwire;
use crate::wanted::{Changes, Wanted};

fn endpoint(last: u8, state: &str, node: &str) -> Endpoint {
    Endpoint {
        address: Some(Ipv4Addr::new(10, 244, 0, last).into()),
        ready: state == "ready",
        serving: state == "ready" || state == "draining",
        terminating: state == "draining",
        node: Some(node.into()),
        ..Endpoint::default()
    }
}

fn snapshot(service: Service, endpoints: Vec<Endpoint>) -> Snapshot {
    let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
    let slice = Slice { service: "web".into(), ports, endpoints };
    Snapshot {
        services: [(("shop".into(), "web".into()), service)].into(),
        slices: [(("shop".into(), "web-x".into()), slice)].into(),
        node: "a".into(),
        zone: Some("z".into()),
        ..Snapshot::default()
    }
}

fn web() -> Service {
    Service {
        cluster: vec![Ipv4Addr::new(10, 96, 0, 20).into()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 30080 }],
        ..Service::default()
    }
}

fn compile(snapshot: &Snapshot) -> Desired {
    let mut wanted = Wanted::default();
    wanted.replace(snapshot.compile(), &mut Changes::new());
    wanted.all()
}

/// One line per frontend: `scope address:port -> backends`, a star for local backends.
fn table(desired: &Desired) -> Vec<String> {
    let line = |(key, frontend): (&FrontendKey, &DesiredFrontend)| {
        let scope = if key.scope == Scope::Internal as u8 { "in" } else { "out" };
        let backends: Vec<_> = frontend
            .backends
            .iter()
            .map(|backend| {
                let star = if backend.flags & Backend::LOCAL != 0 { "*" } else { "" };
                format!("{}:{}{star}", backend.address.last().to_ne_bytes()[3], u16::from_be(backend.port))
            })
            .collect();
        format!("{scope} {}:{} {}", unwire(key.address), u16::from_be(key.port), backends.join(","))
    };
    let mut lines: Vec<_> = desired.frontends.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn every_address_of_a_service_leads_to_its_ready_endpoints() {
    let endpoints = vec![endpoint(1, "ready", "a"), endpoint(2, "ready", "b"), endpoint(3, "no", "a")];
    let mut service = web();
    service.external = vec![Ipv4Addr::new(192, 0, 2, 1).into()];
    assert_eq!(
        table(&compile(&snapshot(service, endpoints))),
        [
            "in 0.0.0.0:30080 1:8080*,2:8080",
            "in 10.96.0.20:80 1:8080*,2:8080",
            "in 192.0.2.1:80 1:8080*,2:8080",
            "out 0.0.0.0:30080 1:8080*,2:8080",
            "out 192.0.2.1:80 1:8080*,2:8080",
        ]
    );
}

#[test]
fn endpoints_by_state_and_policy() {
    let local = |service: &mut Service| service.external_local = true;
    let inner = |service: &mut Service| service.internal_local = true;
    let near = |service: &mut Service| service.prefer = Prefer::Node;
    let none = |_: &mut Service| {};
    type Case = (fn(&mut Service), &'static [(u8, &'static str, &'static str)], [&'static str; 3]);
    let cases: [Case; 10] = [
        (none, &[(1, "ready", "a"), (2, "draining", "a")], ["1:8080*", "1:8080*", "1:8080*"]),
        (none, &[(1, "no", "a"), (2, "draining", "b")], ["2:8080", "2:8080", "2:8080"]),
        (none, &[(1, "no", "a")], ["", "", ""]),
        (none, &[], ["", "", ""]),
        (local, &[(1, "ready", "a"), (2, "ready", "b")], ["1:8080*,2:8080", "1:8080*,2:8080", "1:8080*"]),
        (local, &[(1, "draining", "a"), (2, "ready", "b")], ["2:8080", "2:8080", "1:8080*"]),
        (inner, &[(2, "ready", "b")], ["2:8080", "", "2:8080"]),
        (near, &[(1, "ready", "a"), (2, "ready", "b")], ["1:8080*", "1:8080*", "1:8080*"]),
        (near, &[(1, "draining", "a"), (2, "ready", "b")], ["2:8080", "2:8080", "2:8080"]),
        (near, &[(1, "draining", "a")], ["1:8080*", "1:8080*", "1:8080*"]),
    ];
    for (change, endpoints, [node_in, cluster, node_out]) in cases {
        let mut service = web();
        change(&mut service);
        let list = endpoints.iter().map(|(last, state, node)| endpoint(*last, state, node)).collect();
        let expected = [
            format!("in 0.0.0.0:30080 {node_in}"),
            format!("in 10.96.0.20:80 {cluster}"),
            format!("out 0.0.0.0:30080 {node_out}"),
        ];
        assert_eq!(table(&compile(&snapshot(service, list))), expected, "{endpoints:?}");
    }
}

#[test]
fn protocols_on_one_port_stay_apart() {
    let mut service = web();
    service.ports = vec![
        ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 0 },
        ServicePort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 53, node_port: 0 },
        ServicePort { name: "dns-sctp".into(), protocol: Protocol::Sctp, port: 53, node_port: 0 },
    ];
    let mut snapshot = snapshot(service, vec![endpoint(1, "ready", "a")]);
    let slice = snapshot.slices.values_mut().next().unwrap();
    slice.ports = vec![
        SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 },
        SlicePort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 5354 },
        SlicePort { name: "dns-sctp".into(), protocol: Protocol::Sctp, port: 5355 },
    ];
    let desired = compile(&snapshot);
    let ports: Vec<_> = desired
        .frontends
        .iter()
        .map(|(key, frontend)| (key.protocol, u16::from_be(frontend.backends[0].port), &*frontend.service))
        .collect();
    assert_eq!(
        ports,
        [(6, 5354, "shop/web:dns-tcp"), (17, 5353, "shop/web:dns/udp"), (132, 5355, "shop/web:dns-sctp/sctp"),]
    );
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let mut snapshot = snapshot(web(), vec![endpoint(1, "ready", "a")]);
    let twin = snapshot.slices.values().next().unwrap().clone();
    snapshot.slices.insert(("shop".into(), "web-y".into()), twin);
    assert!(compile(&snapshot).frontends.values().all(|frontend| frontend.backends.len() == 1));
}

#[test]
fn topology() {
    let hinted = |last: u8, nodes: &[&str], zones: &[&str]| Endpoint {
        for_nodes: nodes.iter().map(|node| (*node).into()).collect(),
        for_zones: zones.iter().map(|zone| (*zone).into()).collect(),
        ..endpoint(last, "ready", "b")
    };
    let zoned =
        |last: u8, node: &str, zone: &str| Endpoint { zone: Some(zone.into()), ..endpoint(last, "ready", node) };
    let cases = [
        (Prefer::Nothing, vec![hinted(1, &[], &["z"]), hinted(2, &[], &["y"])], "1"),
        (Prefer::Nothing, vec![hinted(1, &["a"], &["y"]), hinted(2, &["b"], &["z"])], "1"),
        (Prefer::Nothing, vec![hinted(1, &["b"], &["y"]), hinted(2, &["b"], &["z"])], "2"),
        (Prefer::Zone, vec![hinted(1, &[], &["x"]), hinted(2, &[], &["y"])], "1,2"),
        // One without hints: nobody's count.
        (Prefer::Zone, vec![hinted(1, &[], &["z"]), zoned(2, "a", "z")], "1,2"),
        // No hints at all.
        (Prefer::Zone, vec![zoned(1, "b", "z"), zoned(2, "b", "y")], "1"),
        (Prefer::Zone, vec![zoned(1, "b", "x"), zoned(2, "b", "y")], "1,2"),
        (Prefer::Node, vec![zoned(1, "b", "z"), zoned(2, "a", "y")], "2"),
        (Prefer::Node, vec![zoned(1, "b", "z"), zoned(2, "c", "y")], "1"),
        (Prefer::Nothing, vec![zoned(1, "b", "z"), zoned(2, "a", "y")], "1,2"),
    ];
    for (prefer, endpoints, expected) in cases {
        let service = Service { prefer, ..web() };
        let lines = table(&compile(&snapshot(service, endpoints.clone())));
        let hosts = lines[1].rsplit(' ').next().unwrap().replace(":8080", "").replace('*', "");
        assert_eq!(hosts, expected, "{prefer:?} {endpoints:?}");
    }
}

/// Last bytes of the addresses of the frontend at the node port: those that take connections, those that end, weights.
type Answers = (Vec<u8>, Vec<u8>, Option<Vec<u16>>);

fn at_node_port(service: Service, endpoints: Vec<Endpoint>, scope: Scope) -> Answers {
    let desired = compile(&snapshot(service, endpoints));
    let port = |key: &FrontendKey| key.port == 30080_u16.to_be() && key.scope == scope as u8;
    let frontend = desired.frontends.iter().find(|(key, _)| port(key)).unwrap().1;
    let last = |list: &[Backend]| list.iter().map(|backend| backend.address.last().to_ne_bytes()[3]).collect();
    (last(&frontend.backends), last(&frontend.draining), frontend.weights.as_ref().map(|weights| weights.to_vec()))
}

#[test]
fn who_takes_new_connections_and_who_keeps_the_old() {
    let weighed = |last: u8, weight: u16| Endpoint { weight: Some(weight), ..endpoint(last, "ready", "a") };
    let ready = |last: u8| endpoint(last, "ready", "a");
    let equal = Some(vec![]);
    let cases: Vec<(Vec<Endpoint>, Answers)> = vec![
        (vec![ready(1), ready(2)], (vec![1, 2], vec![], equal.clone())),
        (vec![ready(1)], (vec![1], vec![], None)),
        (vec![ready(1), ready(2), endpoint(3, "draining", "b")], (vec![1, 2], vec![3], equal.clone())),
        (vec![endpoint(3, "draining", "b")], (vec![3], vec![], None)),
        (vec![weighed(1, 3), ready(2)], (vec![1, 2], vec![], Some(vec![3, 1]))),
        (vec![weighed(1, 3), weighed(2, 3)], (vec![1, 2], vec![], equal.clone())),
        (vec![weighed(1, 0), ready(2), ready(3)], (vec![2, 3], vec![1], equal.clone())),
        (vec![weighed(1, 0), weighed(2, 0)], (vec![1, 2], vec![], equal)),
    ];
    for (endpoints, expected) in cases {
        let inside = (expected.0.clone(), expected.1.clone(), None);
        assert_eq!(at_node_port(web(), endpoints.clone(), Scope::External), expected, "{endpoints:?}");
        assert_eq!(at_node_port(web(), endpoints, Scope::Internal), inside, "inside any will do");
    }
    let local = Service { external_local: true, ..web() };
    let there = vec![ready(1), endpoint(2, "draining", "a"), endpoint(3, "draining", "b"), endpoint(4, "ready", "b")];
    assert_eq!(at_node_port(local, there, Scope::External), (vec![1], vec![2], None));
}

#[test]
fn both_families_have_their_own_endpoints() {
    let mut service = web();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    service.cluster.push(address("fd96::20"));
    let mut snapshot = snapshot(service, vec![endpoint(1, "ready", "a")]);
    let mut six = snapshot.slices.values().next().unwrap().clone();
    six.endpoints[0].address = Some(address("fd44::7"));
    snapshot.slices.insert(("shop".into(), "web-6".into()), six);
    let rows: BTreeSet<String> = compile(&snapshot)
        .frontends
        .iter()
        .map(|(key, frontend)| format!("{} {}", unwire(key.address), unwire(frontend.backends[0].address)))
        .collect();
    let expected = ["0.0.0.0 10.244.0.1", "10.96.0.20 10.244.0.1", ":: fd44::7", "fd96::20 fd44::7"];
    assert_eq!(rows, expected.map(String::from).into());
}

#[test]
fn source_ranges_are_for_the_load_balancer_alone() {
    let mut service = web();
    service.balancers = vec![Ipv4Addr::new(192, 0, 2, 9).into()];
    service.external = vec![Ipv4Addr::new(192, 0, 2, 1).into()];
    service.ranges = vec!["198.51.100.0/24".parse().unwrap()];
    service.affinity = 60;
    for (key, frontend) in compile(&snapshot(service, vec![endpoint(1, "ready", "a")])).frontends {
        let balancer = unwire(key.address) == Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(frontend.flags & Frontend::RANGES != 0, balancer);
        assert_eq!(!frontend.ranges.is_empty(), balancer);
        assert_eq!(frontend.affinity, 60);
    }
}

#[test]
fn host_ports() {
    let port = |address: Option<&str>, host_port, protocol| HostPort {
        protocol,
        address: address.map(|text| text.parse().unwrap()),
        host_port,
        port: 80,
    };
    let pod = Pod {
        addresses: vec![Ipv4Addr::new(10, 244, 0, 9).into(), "fd44::9".parse().unwrap()],
        ports: vec![
            port(None, 8080, Protocol::Tcp),
            port(Some("10.1.0.1"), 8081, Protocol::Udp),
            port(Some("127.0.0.1"), 8081, Protocol::Udp),
            port(Some("10.1.0.1"), 3868, Protocol::Sctp),
        ],
    };
    let rows: BTreeSet<String> = compile_pod(&("shop".into(), "a".into()), &pod)
        .iter()
        .filter(|(key, _)| key.scope == Scope::Internal as u8)
        .map(|(key, frontend)| {
            let to = unwire(frontend.backends[0].address);
            format!("{} {} {} {to}", frontend.service, unwire(key.address), u16::from_be(key.port))
        })
        .collect();
    let expected = [
        "shop/a:host-3868/sctp 10.1.0.1 3868 10.244.0.9",
        "shop/a:host-8080 :: 8080 fd44::9",
        "shop/a:host-8080 0.0.0.0 8080 10.244.0.9",
        "shop/a:host-8081/udp 10.1.0.1 8081 10.244.0.9",
        "shop/a:host-8081/udp 127.0.0.1 8081 10.244.0.9",
    ];
    assert_eq!(rows, expected.map(String::from).into());
}

#[test]
fn who_answers_clients_directly() {
    use Forwarding::{Dsr, Snat};
    // What the node says, what the service says, the external policy, whether external frontends lead there.
    let cases = [
        (Snat, None, false, false),
        (Dsr, None, false, true),
        (Snat, Some(Dsr), false, true),
        (Dsr, Some(Snat), false, false),
        (Dsr, Some(Dsr), true, false),
    ];
    for (node, own, external_local, expected) in cases {
        let service = Service {
            external: vec![Ipv4Addr::new(192, 0, 2, 7).into()],
            balancers: vec![Ipv4Addr::new(192, 0, 2, 8).into()],
            forwarding: own,
            external_local,
            ..web()
        };
        let mut snapshot = snapshot(service, vec![endpoint(1, "ready", "a"), endpoint(2, "ready", "b")]);
        snapshot.forwarding = node;
        let desired = compile(&snapshot);
        assert_eq!(desired.frontends.iter().count(), 7);
        for (key, frontend) in desired.frontends.iter() {
            let direct = frontend.flags & Frontend::DIRECT != 0;
            let external = key.scope == Scope::External as u8;
            assert_eq!(direct, expected && external, "{node:?} {own:?} {external_local} {key:?}");
        }
    }
}

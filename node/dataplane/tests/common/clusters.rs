//! Two nodes with two pods each, and a machine outside: what reaches what is asked with real sockets.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_dataplane::policy::snapshot;
use sluice_dataplane::{Config, Dataplane, PodInfo, ServicePath, Uplinks, Xdp};

use crate::common::pods::{self, name, neighbour, pod};
use crate::common::{Namespace, PATIENCE, Place, run, tcp_server, udp_server};

/// What does not arrive within this time is taken for denied; on a link of this machine it takes microseconds.
pub const IMPATIENCE: Duration = Duration::from_millis(150);

/// A pod: its link, namespace, labels, node, addresses.
pub struct Row {
    pub link: &'static str,
    pub namespace: &'static str,
    pub node: usize,
    pub addresses: [&'static str; 2],
}

pub const ROWS: [Row; 4] = [
    Row { link: "slca", namespace: "x", node: 0, addresses: ["10.244.0.5", "fd44::5"] },
    Row { link: "slcb", namespace: "y", node: 0, addresses: ["10.244.0.6", "fd44::6"] },
    Row { link: "slcc", namespace: "x", node: 1, addresses: ["10.244.9.5", "fd44:0:0:9::5"] },
    Row { link: "slcd", namespace: "y", node: 1, addresses: ["10.244.9.6", "fd44:0:0:9::6"] },
];

/// Places that ask: the pods by their last letters, the node of the first two, and a machine outside.
pub const PLACES: [&str; 6] = ["a", "b", "c", "d", "node", "outside"];
pub const NODE: [&str; 2] = ["10.1.0.1", "fd01::1"];
pub const OUTSIDE: [&str; 2] = ["192.0.2.9", "fd02::9"];
pub const PORTS: [u16; 2] = [80, 81];

pub struct Cluster {
    pub planes: [Dataplane; 2],
    pub pods: Vec<Namespace>,
    pub there: Namespace,
    pub outside: Namespace,
}

fn ip(text: &str) {
    run("ip", &text.split(' ').collect::<Vec<_>>());
}

fn forward() {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{name}"), "1").unwrap();
    }
}

pub fn load(place: &Place, at: usize) -> Dataplane {
    let own = [NODE, ["10.1.0.2", "fd01::2"]];
    let config = Config {
        node: ["here", "there"][at].into(),
        pin_dir: if at == 0 { place.pins.clone() } else { place.pins.with_file_name(format!("{}-there", place.name)) },
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some(["10.244.0.0/24", "10.244.9.0/24"][at].parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: own[at].map(|address| address.parse::<IpAddr>().unwrap()).to_vec(),
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        xdp: Xdp::Off,
        ..place.config()
    };
    let plane = Dataplane::load(config).unwrap();
    plane.set_pod_ranges(["fd44::/64", "fd44:0:0:9::/64"][at].parse().unwrap(), "fd44::/48".parse().unwrap()).unwrap();
    plane.set_nodes(own[1 - at].map(|node| node.parse::<IpAddr>().unwrap())).unwrap();
    // The machine outside knows pods by their own addresses.
    plane.set_unmasqueraded(&["192.0.2.0/24", "fd02::/64"].map(|range| range.parse().unwrap())).unwrap();
    plane
}

/// Everything listens on [`PORTS`], over TCP and UDP, in both families.
pub fn cluster(place: &Place) -> Cluster {
    forward();
    let there = place.neighbour("there", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
    let outside = place.neighbour("outside", "up1", Some("192.0.2.1/24"), "192.0.2.9/24", None);
    there.within(forward);
    let (of_there, of_outside) = (name(&there), name(&outside));
    ip("address add fd01::1/64 dev up0 nodad");
    ip("address add fd02::1/64 dev up1 nodad");
    ip(&format!("-n {of_there} address add fd01::2/64 dev eth0 nodad"));
    ip(&format!("-n {of_outside} address add fd02::9/64 dev eth0 nodad"));
    for (node, network, via) in [
        (None, "10.244.9.0/24", "10.1.0.2"),
        (None, "fd44:0:0:9::/64", "fd01::2"),
        (Some(of_there), "10.244.0.0/24", "10.1.0.1"),
        (Some(of_there), "fd44::/64", "fd01::1"),
        (Some(of_there), "192.0.2.0/24", "10.1.0.1"),
        (Some(of_there), "fd02::/64", "fd01::1"),
        (Some(of_outside), "10.0.0.0/8", "192.0.2.1"),
        (Some(of_outside), "fd00::/8", "fd02::1"),
    ] {
        let node = node.map_or_else(String::new, |node| format!("-n {node} "));
        ip(&format!("{node}route add {network} via {via}"));
    }
    let pods: Vec<Namespace> = ROWS
        .iter()
        .map(|row| {
            let make = || pod(place, row.link, &row.addresses);
            if row.node == 0 { make() } else { there.within(make) }
        })
        .collect();
    let planes = [load(place, 0), there.within(|| load(place, 1))];
    let cluster = Cluster { planes, pods, there, outside };
    cluster.attach(0);
    cluster.attach(1);
    for pod in &cluster.pods {
        pod.within(serve);
    }
    cluster.outside.within(serve);
    cluster
}

fn serve() {
    for port in PORTS {
        // Both families come to it.
        tcp_server(&format!("[::]:{port}"));
        udp_server(&format!("[::]:{port}"));
    }
}

impl Cluster {
    pub fn attach(&self, node: usize) {
        for (at, row) in ROWS.iter().enumerate().filter(|(_, row)| row.node == node) {
            let attach = || {
                let pod = PodInfo {
                    namespace: row.namespace.into(),
                    name: row.link.into(),
                    services: ServicePath::Packets,
                    neighbour: Some(neighbour(&self.pods[at], &row.addresses)),
                };
                self.planes[node].attach_pod(pods::index(row.link), &pod).unwrap();
            };
            if node == 0 { attach() } else { self.there.within(attach) }
        }
    }

    /// Tells both nodes these policies.
    pub fn apply(&self, policies: &[Value]) {
        let snapshot = snapshot(&[objects(), policies.to_vec()].concat()).unwrap();
        for plane in &self.planes {
            plane.apply_policies(snapshot.clone()).unwrap();
        }
    }

    fn within<R: Send>(&self, place: &str, act: impl FnOnce() -> R + Send) -> R {
        match place {
            "node" => act(),
            "outside" => self.outside.within(act),
            pod => self.pods[PLACES.iter().position(|known| *known == pod).unwrap()].within(act),
        }
    }

    fn try_tcp(&self, from: &str, to: SocketAddr, patience: Duration) -> bool {
        self.within(from, || TcpStream::connect_timeout(&to, patience).is_ok())
    }

    fn try_udp(&self, from: &str, to: SocketAddr, patience: Duration) -> bool {
        self.within(from, || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.connect(to).unwrap();
            let _ = socket.send(b"?");
            socket.recv(&mut [0; 128]).is_ok()
        })
    }

    /// Exactly these reach a place, as `port/protocol`, in both families.
    pub fn check(&self, what: &str, from: &str, to: &str, expected: &[&str]) {
        let addresses = match to {
            "outside" => OUTSIDE,
            "node" => NODE,
            pod => ROWS[PLACES.iter().position(|known| *known == pod).unwrap()].addresses,
        };
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        for address in addresses {
            for port in PORTS {
                let to = SocketAddr::new(address.parse().unwrap(), port);
                for protocol in ["tcp", "udp"] {
                    let name = format!("{port}/{protocol}");
                    let wanted = expected.contains(name.as_str());
                    let patience = if wanted { PATIENCE } else { IMPATIENCE };
                    let got = match protocol {
                        "tcp" => self.try_tcp(from, to, patience),
                        _ => self.try_udp(from, to, patience),
                    };
                    assert_eq!(got, wanted, "{what}: {from} to {to} over {protocol}");
                }
            }
        }
    }
}

/// The cluster's pods and namespaces as the API has them.
pub fn objects() -> Vec<Value> {
    let namespaces = ["x", "y"].map(|name| {
        let labels = json!({"kubernetes.io/metadata.name": name, "team": name});
        json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    let pods = ROWS.iter().map(|row| {
        let ips: Vec<Value> = row.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        // The port called web is another one in each namespace.
        let web = if row.namespace == "x" { 81 } else { 80 };
        json!({
            "kind": "Pod",
            "metadata": {"name": row.link, "namespace": row.namespace, "labels": {"pod": &row.link[3..]}},
            "spec": {"containers": [{"ports": [
                {"name": "web", "containerPort": web}, {"name": "ask", "containerPort": web, "protocol": "UDP"}
            ]}]},
            "status": {"podIPs": ips}
        })
    });
    namespaces.into_iter().chain(pods).collect()
}

/// A policy of namespace x for the first pod.
pub fn policy(name: &str, rest: Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}});
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    json!({"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "x"}, "spec": spec})
}

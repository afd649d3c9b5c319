//! Two nodes: the test's own namespace is the load balancer; a second node has the pod; the client is linked to both, so that
//! it can tell which way an answer came.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use sluice_dataplane::migrate::{BUILD, Build};
use sluice_dataplane::model::{Forwarding, Protocol, ServicePort, SlicePort, Snapshot};
use sluice_dataplane::{Config, Dataplane, PodInfo, ServicePath, Traffic, Uplinks, Xdp};

use super::common::{Namespace, Place, run, service, tcp_server, udp_server};

pub const SERVICES: [(&str, &str); 2] =
    [("198.51.100.7:80", "10.244.9.5:8080"), ("[fd07::7]:80", "[fd44:0:0:9::5]:8080")];
pub const NODE_PORTS: [&str; 2] = ["10.1.0.1:30080", "[fd01::1]:30080"];

/// What the pod listens on: the Services' port and others.
pub const PORTS: std::ops::Range<u16> = 8080..8096;

pub struct World {
    pub balancer: Dataplane,
    pub backend: Dataplane,
    pub client: Namespace,
    pub backend_node: Namespace,
}

pub fn config(place: &Place, node: &str) -> Config {
    let here = node == "here";
    let addresses: [IpAddr; 2] =
        if here { ["10.1.0.1", "fd01::1"] } else { ["10.2.0.2", "fd02::2"] }.map(|address| address.parse().unwrap());
    Config {
        node: node.into(),
        pin_dir: if here { place.pins.clone() } else { place.pins.with_file_name(format!("{}-there", place.name)) },
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some(if here { "10.244.0.0/24" } else { "10.244.9.0/24" }.parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: addresses.to_vec(),
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        ..place.config()
    }
}

pub fn ip(text: &str) {
    run("ip", &text.split(' ').collect::<Vec<_>>());
}

pub fn route_between_links() {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        // Answers take another way than what they answer.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    }
}

pub fn world(place: &Place, xdp: Xdp) -> World {
    world_with(place, xdp, || {})
}

/// `prepare` runs before the programs are attached.
pub fn world_with(place: &Place, xdp: Xdp, prepare: impl FnOnce()) -> World {
    route_between_links();
    let client = place.neighbour("client", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
    let backend_node = place.neighbour("there", "up1", Some("10.2.0.1/24"), "10.2.0.2/24", None);
    let name = |end: &str| format!("{}-{end}", place.name);
    for end in [&client, &backend_node] {
        end.within(route_between_links);
    }
    for (link, address) in [("up0", "fd01::1/64"), ("up1", "fd02::1/64")] {
        ip(&format!("address add {address} dev {link} nodad"));
    }
    let (of_client, of_node) = (name("client"), name("there"));
    ip(&format!("-n {of_client} address add fd01::2/64 dev eth0 nodad"));
    ip(&format!("-n {of_node} address add fd02::2/64 dev eth0 nodad"));
    // The short way back.
    ip(&format!("-n {of_node} link add down0 type veth peer name eth1 netns {of_client}"));
    for (namespace, link, number) in [(&of_node, "down0", 1), (&of_client, "eth1", 2)] {
        ip(&format!("-n {namespace} address add 10.3.0.{number}/24 dev {link}"));
        ip(&format!("-n {namespace} address add fd03::{number}/64 dev {link} nodad"));
        ip(&format!("-n {namespace} link set {link} up"));
        let path = if namespace == &of_node { &backend_node } else { &client };
        path.within(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "0").unwrap());
    }
    for (address, via) in [("10.1.0.2", "10.3.0.2"), ("fd01::2", "fd03::2")] {
        ip(&format!("-n {of_node} route add {address} via {via}"));
    }
    for (network, via) in [("198.51.100.0/24", "10.1.0.1"), ("fd07::/64", "fd01::1")] {
        ip(&format!("-n {of_client} route add {network} via {via}"));
    }
    for (network, via) in [("10.244.9.0/24", "10.2.0.2"), ("fd44:0:0:9::/64", "fd02::2")] {
        ip(&format!("route add {network} via {via}"));
    }
    pod(place, &backend_node);
    prepare();
    let balancer = load(place, "here", xdp, BUILD);
    let backend = backend_node.within(|| load(place, "there", Xdp::Auto, BUILD));
    backend_node.within(|| {
        let index = nix::net::if_::if_nametoindex("slc5").unwrap();
        let pod =
            PodInfo { namespace: "shop".into(), name: "slc5".into(), services: ServicePath::Sockets, neighbour: None };
        backend.attach_pod(index, &pod).unwrap();
    });
    // The load balancer has another address on the link between both.
    let nodes = ["10.1.0.1", "fd01::1", "10.2.0.1", "fd02::1"].map(|node| node.parse::<IpAddr>().unwrap());
    backend.set_nodes(nodes).unwrap();
    World { balancer, backend, client, backend_node }
}

/// One of the nodes, by some build.
pub fn load(place: &Place, node: &str, xdp: Xdp, build: Build) -> Dataplane {
    let dataplane = Dataplane::load_build(Config { xdp, ..config(place, node) }, Traffic::best(), build).unwrap();
    let own = if node == "here" { "fd44::/64" } else { "fd44:0:0:9::/64" };
    dataplane.set_pod_ranges(own.parse().unwrap(), "fd44::/48".parse().unwrap()).unwrap();
    dataplane
}

/// A pod of the other node, with servers for both families.
pub fn pod(place: &Place, node: &Namespace) {
    let gateway = "169.254.1.1";
    let pod = node.within(|| {
        let pod = place.neighbour("pod", "slc5", Some("169.254.1.1/32"), "10.244.9.5/32", Some(gateway));
        ip("route add 10.244.9.5 dev slc5");
        ip("address add fd00::1/128 dev slc5 nodad");
        ip("route add fd44:0:0:9::5 dev slc5");
        pod
    });
    let name = format!("{}-pod", place.name);
    ip(&format!("-n {name} address add fd44:0:0:9::5/128 dev eth0 nodad"));
    ip(&format!("-n {name} route add fd00::1 dev eth0"));
    ip(&format!("-n {name} route add default via fd00::1"));
    pod.within(|| {
        for port in PORTS {
            for (_, address) in SERVICES {
                let mut address: SocketAddr = address.parse().unwrap();
                address.set_port(port);
                tcp_server(&address.to_string());
                udp_server(&address.to_string());
            }
        }
    });
}

/// A Service over TCP and UDP on both families, as a node sees it.
pub fn table(node: &str, forwarding: Forwarding) -> Snapshot {
    let mut snapshot = Snapshot { node: node.into(), ..Snapshot::default() };
    for (at, (external, pod)) in SERVICES.into_iter().enumerate() {
        let cluster = ["10.96.0.10:80", "[fd96::10]:80"][at];
        let one = service(Protocol::Tcp, cluster, 30080, &[&format!("~{pod}")]);
        let mut service = one.services.into_values().next().unwrap();
        let address = external.parse::<SocketAddr>().unwrap().ip();
        (service.external, service.forwarding) = (vec![address], Some(forwarding));
        let udp = ServicePort { protocol: Protocol::Udp, name: "udp".into(), ..service.ports[0].clone() };
        service.ports.push(udp);
        let mut slice = one.slices.into_values().next().unwrap();
        slice.ports.push(SlicePort { name: "udp".into(), protocol: Protocol::Udp, port: 8080 });
        slice.service = format!("web-{at}").into();
        snapshot.services.insert(("shop".into(), slice.service.clone()), service);
        snapshot.slices.insert(("shop".into(), slice.service.clone()), slice);
    }
    snapshot
}

impl World {
    pub fn serve(&self, forwarding: Forwarding) {
        for (dataplane, node) in [(&self.balancer, "here"), (&self.backend, "there")] {
            assert_eq!(dataplane.apply(&table(node, forwarding)).unwrap(), Vec::<String>::new());
        }
    }

    /// Packets that the client received from the load balancer and from the backend's node.
    pub fn received(&self) -> [u64; 2] {
        self.client.within(|| {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            ["eth0:", "eth1:"].map(|link| {
                let line = text.lines().find(|line| line.trim_start().starts_with(link)).unwrap();
                line.split_whitespace().nth(2).unwrap().parse().unwrap()
            })
        })
    }
}

//! Packets between a node's pods and the outside with real sockets: pods of two nodes, by direct routes and through a tunnel, and
//! machines that are no nodes. They go past both nodes' stacks, or through them where those have something to do.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use common::pods::{self, attach, datagram, forwarded, name, neighbour, pod, queued};
use common::{Client, Namespace, PATIENCE, Place, connect, isolated, run, service, tcp_server, udp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, Redirect, Uplinks, Xdp};

/// The pods' links, each on its node, and addresses.
const LINKS: [&str; 2] = ["slc5", "slc9"];
const ADDRESSES: [[&str; 2]; 2] = [["10.244.0.5", "fd44::5"], ["10.244.9.5", "fd44:0:0:9::5"]];
const OWN: [&str; 2] = ["10.244.0.5:0", "[fd44::5]:0"];
const SERVERS: [&str; 2] = ["10.244.9.5:8080", "[fd44:0:0:9::5]:8080"];
/// A machine that is no node.
const OUTSIDE: [&str; 2] = ["192.0.2.9:8080", "[fd02::9]:8080"];
const NODE: [&str; 2] = ["10.1.0.1", "fd01::1"];
const TUNNEL: &str = "sluice.vxlan";
/// What the tunnel takes of a packet.
const OVERHEAD: usize = 50;

/// How the nodes reach each other's pods.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Tunnel,
}

struct World {
    /// This namespace's, and the other node's.
    planes: [Dataplane; 2],
    pods: [Namespace; 2],
    there: Namespace,
    outside: Namespace,
}

fn config(place: &Place, at: usize) -> Config {
    let own = [["10.1.0.1", "fd01::1"], ["10.1.0.2", "fd01::2"]][at];
    Config {
        node: ["here", "there"][at].into(),
        pin_dir: if at == 0 { place.pins.clone() } else { place.pins.with_file_name(format!("{}-there", place.name)) },
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some(["10.244.0.0/24", "10.244.9.0/24"][at].parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: own.map(|address| address.parse::<IpAddr>().unwrap()).to_vec(),
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        xdp: Xdp::Off,
        ..place.config()
    }
}

fn ip(text: &str) {
    run("ip", &text.split(' ').collect::<Vec<_>>());
}

fn forward() {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{name}"), "1").unwrap();
    }
}

fn world(place: &Place, way: Way) -> World {
    forward();
    let there = place.neighbour("there", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
    let outside = place.neighbour("outside", "up1", Some("192.0.2.1/24"), "192.0.2.9/24", None);
    there.within(forward);
    let (of_there, of_outside) = (name(&there), name(&outside));
    for (node, link, address) in [
        ("", "up0", "fd01::1/64"),
        (of_there, "eth0", "fd01::2/64"),
        ("", "up1", "fd02::1/64"),
        (of_outside, "eth0", "fd02::9/64"),
    ] {
        let node = if node.is_empty() { String::new() } else { format!("-n {node} ") };
        ip(&format!("{node}address add {address} dev {link} nodad"));
    }
    for (network, via) in [("10.0.0.0/8", "192.0.2.1"), ("fd00::/8", "fd02::1")] {
        ip(&format!("-n {of_outside} route add {network} via {via}"));
    }
    let pods = [pod(place, LINKS[0], &ADDRESSES[0]), there.within(|| pod(place, LINKS[1], &ADDRESSES[1]))];
    let ends =
        [("", 1, 2, "up0", "10.244.9.0/24 fd44:0:0:9::/64"), (of_there, 2, 1, "eth0", "10.244.0.0/24 fd44::/64")];
    for (node, own, other, link, networks) in ends {
        let ip = |text: String| ip(&if node.is_empty() { text } else { format!("-n {node} {text}") });
        if way == Way::Tunnel {
            let ends = format!("local 10.1.0.{own} remote 10.1.0.{other} dev {link} dstport 8472");
            ip(format!("link add {TUNNEL} address 02:00:00:00:00:0{own} type vxlan id 7 {ends}"));
            ip(format!("link set {TUNNEL} up"));
        }
        for network in networks.split(' ') {
            if way == Way::Tunnel {
                let (gateway, _) = network.split_once('/').unwrap();
                ip(format!("neigh add {gateway} lladdr 02:00:00:00:00:0{other} dev {TUNNEL}"));
                ip(format!("route add {network} via {gateway} dev {TUNNEL} onlink"));
            } else {
                let gateway = if network.contains(':') { "fd01::" } else { "10.1.0." };
                ip(format!("route add {network} via {gateway}{other}"));
            }
        }
    }
    let planes = [load(place, 0, Redirect::On), there.within(|| load(place, 1, Redirect::On))];
    let world = World { planes, pods, there, outside };
    world.attach(0);
    world.there.within(|| world.attach(1));
    world
}

fn load(place: &Place, at: usize, redirect: Redirect) -> Dataplane {
    let plane = Dataplane::load(Config { redirect, ..config(place, at) }).unwrap();
    let pods = ["fd44::/64", "fd44:0:0:9::/64"][at];
    plane.set_pod_ranges(pods.parse().unwrap(), "fd44::/48".parse().unwrap()).unwrap();
    let other = [["10.1.0.2", "fd01::2"], ["10.1.0.1", "fd01::1"]][at];
    plane.set_nodes(other.map(|node| node.parse::<IpAddr>().unwrap())).unwrap();
    plane
}

impl World {
    /// To be called in that pod's node.
    fn attach(&self, at: usize) {
        attach(&self.planes[at], LINKS[at], Some(neighbour(&self.pods[at], &ADDRESSES[at])));
    }

    /// Packets that each node's stack forwarded meanwhile.
    fn forwarded(&self, act: impl FnOnce()) -> [u64; 2] {
        let count = || [forwarded(), self.there.within(forwarded)];
        let before = count();
        act();
        let after = count();
        [after[0] - before[0], after[1] - before[1]]
    }

    fn reach(&self, address: &str) -> Client {
        pods::reach(&self.pods[0], address)
    }

    fn transfer(&self, address: &str, megabytes: usize) {
        pods::transfer([&self.pods[0], &self.pods[1]], address, megabytes);
    }

    fn serve(&self) {
        self.pods[1].within(|| SERVERS.map(|address| (tcp_server(address), udp_server(address))));
    }

    fn socket(&self, own: &str, to: &str) -> UdpSocket {
        let socket = self.pods[0].within(|| UdpSocket::bind(own).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket
    }
}

const NONE: [u64; 2] = [0, 0];

#[test]
fn pods_of_two_nodes_reach_each_other_past_both_stacks() {
    isolated("pods_of_two_nodes_reach_each_other_past_both_stacks", |place| {
        let world = world(place, Way::Direct);
        world.serve();
        assert_eq!(
            world.forwarded(|| {
                for (at, address) in SERVERS.into_iter().enumerate() {
                    (0..20).for_each(|_| drop(world.reach(address)));
                    assert_eq!(datagram(&world.pods[0], OWN[at], address).0, address);
                }
                world.transfer("10.244.9.5:9000", 8);
                world.transfer("[fd44:0:0:9::5]:9000", 8);
            }),
            NONE
        );
        // Both stacks see fragments, and what says that nobody listens.
        world.pods[1].within(|| udp_server("10.244.9.5:9001"));
        let socket = world.socket(OWN[0], "10.244.9.5:9001");
        let [here, there] = world.forwarded(|| {
            socket.send(&[7; 4000]).unwrap();
            assert!(socket.recv(&mut [0; 128]).unwrap() > 0);
        });
        assert!(here >= 3 && there >= 3, "{here} {there}");
        socket.connect("10.244.9.5:9009").unwrap();
        socket.send(b"x").unwrap();
        assert_eq!(socket.recv(&mut [0; 128]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// Sets an option of a socket.
fn option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the call gets a word of the length that it is told.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn every_node_takes_a_hop_and_the_last_one_is_told() {
    isolated("every_node_takes_a_hop_and_the_last_one_is_told", |place| {
        let world = world(place, Way::Direct);
        world.serve();
        for (own, server, level, hops, errors) in [
            (OWN[0], SERVERS[0], libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR),
            (OWN[1], SERVERS[1], libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR),
        ] {
            let socket = world.socket(own, server);
            option(&socket, level, errors, 1);
            for (number, arrives) in [(1, false), (2, false), (3, true)] {
                option(&socket, level, hops, number);
                socket.send(b"x").unwrap();
                match socket.recv(&mut [0; 128]) {
                    Ok(_) => assert!(arrives, "{server}: {number}"),
                    Err(error) => {
                        assert!(!arrives && error.kind() == ErrorKind::HostUnreachable, "{server}: {number}: {error}");
                    }
                }
            }
        }
    });
}

#[test]
fn the_same_through_a_tunnel_that_carries_less() {
    isolated("the_same_through_a_tunnel_that_carries_less", |place| {
        let world = world(place, Way::Tunnel);
        world.serve();
        assert_eq!(
            world.forwarded(|| {
                for (at, address) in SERVERS.into_iter().enumerate() {
                    drop(world.reach(address));
                    assert_eq!(datagram(&world.pods[0], OWN[at], address).0, address);
                }
            }),
            NONE
        );
        // The longest datagram fits; of one more byte the sender is told.
        let socket = world.socket(OWN[0], SERVERS[0]);
        option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
        let longest = 1500 - OVERHEAD - 28;
        assert_eq!(
            world.forwarded(|| {
                socket.send(&vec![7; longest]).unwrap();
                assert!(socket.recv(&mut [0; 128]).unwrap() > 0);
            }),
            NONE
        );
        socket.send(&vec![7; longest + 1]).unwrap();
        assert_eq!(socket.recv(&mut [0; 128]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        let socket = world.socket(OWN[1], SERVERS[1]);
        let start = Instant::now();
        // The next ones come in fragments.
        while socket.send(&[1; 1440]).is_err() || socket.recv(&mut [0; 128]).is_err() {
            assert!(start.elapsed() < PATIENCE * 2);
        }
        // TCP learns the length, and then all goes past the stacks.
        for address in ["10.244.9.5:9000", "[fd44:0:0:9::5]:9000"] {
            world.transfer(address, 2);
            assert_eq!(world.forwarded(|| world.transfer(address, 8)), NONE, "{address}");
        }
    });
}

#[test]
fn what_leaves_and_enters_the_cluster_goes_past_the_stack() {
    isolated("what_leaves_and_enters_the_cluster_goes_past_the_stack", |place| {
        let world = world(place, Way::Direct);
        world.outside.within(|| OUTSIDE.map(|address| (tcp_server(address), udp_server(address))));
        world.pods[0].within(|| tcp_server("10.244.0.5:8080"));
        world.planes[0].apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.244.0.5:8080"])).unwrap();
        assert_eq!(
            world.forwarded(|| {
                for (at, address) in OUTSIDE.into_iter().enumerate() {
                    // With the node's address.
                    let mut client = world.pods[0].within(|| connect(address).unwrap());
                    let seen = client.seen_as.ip();
                    assert!(seen != client.stream.local_addr().unwrap().ip() && client.alive(), "{address}: {seen}");
                    assert!(
                        ["192.0.2.1", "fd02::1", NODE[at]].map(|own| own.parse().unwrap()).contains(&seen),
                        "{seen}"
                    );
                }
                world.outside.within(|| {
                    // By a node port.
                    let mut client = connect("10.1.0.1:30080").unwrap();
                    assert_eq!(client.seen_as, client.stream.local_addr().unwrap());
                    assert!(client.alive());
                });
            }),
            NONE
        );
    });
}

#[test]
fn a_service_elsewhere_is_reached_past_both_stacks() {
    isolated("a_service_elsewhere_is_reached_past_both_stacks", |place| {
        let world = world(place, Way::Direct);
        world.serve();
        let cluster = "10.96.0.10:80";
        for kind in [Protocol::Tcp, Protocol::Udp] {
            world.planes[0].apply(&service(kind, cluster, 0, &["~10.244.9.5:8080"])).unwrap();
            assert_eq!(
                world.forwarded(|| match kind {
                    Protocol::Tcp => {
                        let client = world.reach(cluster);
                        assert_eq!(client.server.to_string(), SERVERS[0]);
                        assert_eq!(client.stream.peer_addr().unwrap().to_string(), cluster);
                    }
                    _ => {
                        let said = datagram(&world.pods[0], OWN[0], cluster);
                        assert_eq!(said, (SERVERS[0].to_owned(), cluster.to_owned()));
                    }
                }),
                NONE
            );
        }
    });
}

#[test]
fn a_limited_pods_packets_wait_in_its_queue_and_the_others_do_not() {
    isolated("a_limited_pods_packets_wait_in_its_queue_and_the_others_do_not", |place| {
        let world = world(place, Way::Direct);
        let limit = "qdisc replace dev slc9 root tbf rate 400mbit burst 1mb latency 50ms";
        let before = world.there.within(|| {
            run("tc", &limit.split(' ').collect::<Vec<_>>());
            attach(&world.planes[1], LINKS[1], None);
            queued(LINKS[1])
        });
        let [here, there] = world.forwarded(|| world.transfer("10.244.9.5:9000", 4));
        assert!(here == 0 && there > 0, "{here} {there}");
        assert!(world.there.within(|| queued(LINKS[1])) - before > 4 << 20, "all of it passed the queue");
    });
}

#[test]
fn nodes_take_their_stacks_when_told_and_when_the_route_goes() {
    isolated("nodes_take_their_stacks_when_told_and_when_the_route_goes", |place| {
        let mut world = world(place, Way::Direct);
        world.serve();
        let mut open = world.reach(SERVERS[0]);
        drop(world.planes);
        // While no process runs.
        let again = |open: &mut Client| (0..20).for_each(|_| assert!(open.alive()));
        let before = forwarded();
        again(&mut open);
        assert_eq!(forwarded(), before);
        world.planes = [load(place, 0, Redirect::Off), world.there.within(|| load(place, 1, Redirect::On))];
        let [here, there] = world.forwarded(|| again(&mut open));
        assert!(here >= 40 && there == 0, "{here} {there}");
        let [off, on] = world.planes;
        drop(off);
        world.planes = [load(place, 0, Redirect::On), on];
        world.attach(0);
        assert_eq!(world.forwarded(|| again(&mut open)), NONE);
        // A way is kept for a second at most.
        ip("route replace unreachable 10.244.9.0/24");
        let start = Instant::now();
        let error = loop {
            match world.pods[0].within(|| connect(SERVERS[0])) {
                Err(error) => break error,
                Ok(_) => assert!(start.elapsed() < PATIENCE),
            }
        };
        assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error}");
    });
}

//! Packets between pods of one node with real sockets: they go straight from pod to pod, or through the node's stack where it
//! has something to do. What the stack forwarded is what it counts itself.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::net::UdpSocket;

use common::pods::{self, attach, datagram, index, name, neighbour, pod, queued, through_the_stack};
use common::{Client, Namespace, PATIENCE, Place, connect, isolated, run, service, tcp_server, udp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, Neighbour, Redirect, Uplinks};

const CLUSTER: &str = "10.96.0.10:80";
const ADDRESSES: [[&str; 2]; 2] = [["10.244.0.5", "fd44::5"], ["10.244.0.6", "fd44::6"]];
const LINKS: [&str; 2] = ["slc5", "slc6"];
const SERVER: &str = "10.244.0.6:8080";
const SERVER_V6: &str = "[fd44::6]:8080";

struct World {
    dataplane: Dataplane,
    pods: [Namespace; 2],
}

fn config(place: &Place) -> Config {
    Config {
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some("10.244.0.0/24".parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        uplinks: Uplinks::Named(vec![]),
        ..place.config()
    }
}

/// Two pods with an address of each family, as the pod network makes them.
fn world(place: &Place) -> World {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    for range in ["10.244.0.0/16", "10.96.0.0/16"] {
        run("ip", &["route", "add", "unreachable", range]);
    }
    let pods = [0, 1].map(|at| pod(place, LINKS[at], &ADDRESSES[at]));
    let dataplane = Dataplane::load(config(place)).unwrap();
    for at in [0, 1] {
        attach(&dataplane, LINKS[at], Some(neighbour(&pods[at], &ADDRESSES[at])));
    }
    World { dataplane, pods }
}

fn reach(world: &World, address: &str) -> Client {
    pods::reach(&world.pods[0], address)
}

fn transfer(world: &World, address: &str, megabytes: usize) {
    pods::transfer([&world.pods[0], &world.pods[1]], address, megabytes);
}

#[test]
fn pods_of_a_node_reach_each_other_past_its_stack() {
    isolated("pods_of_a_node_reach_each_other_past_its_stack", |place| {
        let world = world(place);
        for address in [SERVER, SERVER_V6] {
            world.pods[1].within(|| (tcp_server(address), udp_server(address)));
        }
        // Neighbours are known, so that nothing else needs the stack.
        let straight = !through_the_stack(|| {
            for address in [SERVER, SERVER_V6] {
                (0..20).for_each(|_| drop(reach(&world, address)));
            }
            transfer(&world, "10.244.0.6:9000", 8);
            transfer(&world, "[fd44::6]:9000", 8);
            assert_eq!(datagram(&world.pods[0], "10.244.0.5:0", SERVER).0, SERVER);
            assert_eq!(datagram(&world.pods[0], "[fd44::5]:0", SERVER_V6).0, SERVER_V6);
        });
        assert!(straight);
        // A datagram in fragments, and what is neither TCP nor UDP, pass through the stack.
        world.pods[1].within(|| udp_server("10.244.0.6:9001"));
        let socket = world.pods[0].within(|| UdpSocket::bind("10.244.0.5:0").unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(through_the_stack(|| {
            socket.send_to(&[7; 4000], "10.244.0.6:9001").unwrap();
            assert!(socket.recv(&mut [0; 128]).unwrap() > 0);
        }));
        // The other pod's answer that nobody listens there finds its way, too.
        socket.connect("10.244.0.6:9009").unwrap();
        socket.send(b"x").unwrap();
        assert_eq!(socket.recv(&mut [0; 128]).err().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_services_packets_between_pods_go_past_the_stack_both_ways() {
    isolated("a_services_packets_between_pods_go_past_the_stack_both_ways", |place| {
        let world = world(place);
        world.pods[1].within(|| (tcp_server(SERVER), udp_server(SERVER)));
        world.dataplane.apply(&service(Protocol::Tcp, CLUSTER, 30080, &[SERVER])).unwrap();
        assert!(!through_the_stack(|| {
            let client = reach(&world, CLUSTER);
            assert_eq!(
                (client.server.to_string(), client.stream.peer_addr().unwrap().to_string()),
                (SERVER.to_owned(), CLUSTER.to_owned())
            );
        }));
        let row = world.dataplane.services().unwrap().remove(0);
        assert!(row.connections == 1 && row.packets > 8 && row.bytes > row.packets * 60, "{row:?}");
        world.dataplane.apply(&service(Protocol::Udp, CLUSTER, 0, &[SERVER])).unwrap();
        assert!(!through_the_stack(|| {
            assert_eq!(datagram(&world.pods[0], "10.244.0.5:0", CLUSTER), (SERVER.to_owned(), CLUSTER.to_owned()));
        }));
        // A pod that reaches itself sees the node.
        world.dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &[SERVER])).unwrap();
        world.pods[1].within(|| {
            let mut client = connect(CLUSTER).unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.1.0.1");
            assert!(client.alive());
        });
    });
}

#[test]
fn what_comes_to_a_limited_pod_waits_in_its_queue() {
    isolated("what_comes_to_a_limited_pod_waits_in_its_queue", |place| {
        let world = world(place);
        run(
            "tc",
            &["qdisc", "replace", "dev", "slc6", "root", "tbf", "rate", "400mbit", "burst", "1mb", "latency", "50ms"],
        );
        attach(&world.dataplane, "slc6", None);
        let before = queued("slc6");
        assert!(through_the_stack(|| transfer(&world, "10.244.0.6:9000", 4)));
        assert!(queued("slc6") - before > 4 << 20, "all of it passed the queue");
        // What it sends takes the same way: the stack sees both directions or none.
        world.pods[0].within(|| tcp_server("10.244.0.5:8080"));
        assert!(through_the_stack(|| {
            world.pods[1].within(|| assert!(connect("10.244.0.5:8080").unwrap().alive()));
        }));
    });
}

#[test]
fn a_link_with_shorter_packets_says_so_through_the_stack() {
    isolated("a_link_with_shorter_packets_says_so_through_the_stack", |place| {
        let world = world(place);
        for arguments in [
            vec!["link", "set", "slc6", "mtu", "1300"],
            vec!["-n", name(&world.pods[1]), "link", "set", "eth0", "mtu", "1300"],
        ] {
            run("ip", &arguments);
        }
        attach(&world.dataplane, "slc6", Some(neighbour(&world.pods[1], &ADDRESSES[1])));
        world.pods[1].within(|| udp_server(SERVER));
        let socket = world.pods[0].within(|| UdpSocket::bind("10.244.0.5:0").unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(SERVER).unwrap();
        socket.send(&[1; 1400]).unwrap();
        // The node's stack told the sender, whose next datagrams come in fragments.
        let start = std::time::Instant::now();
        while socket.send(&[1; 1400]).is_err() || socket.recv(&mut [0; 128]).is_err() {
            assert!(start.elapsed() < PATIENCE * 2);
        }
        // TCP agrees on a length that fits.
        assert!(!through_the_stack(|| transfer(&world, "10.244.0.6:9000", 2)));
        assert!(!through_the_stack(|| transfer(&world, "[fd44::6]:9000", 2)));
    });
}

#[test]
fn a_pod_in_the_place_of_another_gets_its_packets() {
    isolated("a_pod_in_the_place_of_another_gets_its_packets", |place| {
        let world = world(place);
        let serve = |pod: &Namespace, says: &'static [u8]| {
            let socket = pod.within(|| UdpSocket::bind(SERVER).unwrap());
            std::thread::spawn(move || {
                while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(says, peer);
                }
            });
        };
        serve(&world.pods[1], b"old");
        let (heard, news) = std::sync::mpsc::channel();
        let from = world.pods[0].within(|| UdpSocket::bind("10.244.0.5:0").unwrap());
        let asker = std::thread::spawn(move || {
            from.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
            loop {
                let mut buffer = [0; 8];
                // Between two pods there is none, and the stack may say so.
                let _ = from.send_to(b"who", SERVER);
                if let Ok((length, _)) = from.recv_from(&mut buffer)
                    && heard.send(buffer[..length].to_vec()).is_err()
                {
                    return;
                }
            }
        });
        assert_eq!(news.recv_timeout(PATIENCE).unwrap(), b"old");
        world.dataplane.forget_addresses(ADDRESSES[1].map(|text| text.parse().unwrap())).unwrap();
        let old = index("slc6");
        run("ip", &["link", "set", "slc6", "down"]);
        // With the route gone the stack refuses at once.
        let error = world.pods[0].within(|| connect("10.244.0.6:8081").err().unwrap().kind());
        assert!(matches!(error, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error}");
        let next = pod(place, "slc7", &ADDRESSES[1]);
        serve(&next, b"new");
        attach(&world.dataplane, "slc7", Some(neighbour(&next, &ADDRESSES[1])));
        // The old link goes after the new one came.
        world.dataplane.detach_pod(old).unwrap();
        let mut answers = std::iter::from_fn(|| news.recv_timeout(PATIENCE).ok()).skip_while(|said| said == b"old");
        assert_eq!(answers.next().unwrap(), b"new");
        assert!(!through_the_stack(|| assert!(answers.by_ref().take(20).all(|said| said == b"new"))));
        drop(answers);
        drop(news);
        asker.join().unwrap();
    });
}

#[test]
fn pods_reach_each_other_over_restarts_and_by_the_stack_when_told() {
    isolated("pods_reach_each_other_over_restarts_and_by_the_stack_when_told", |place| {
        let mut world = world(place);
        world.pods[1].within(|| tcp_server(SERVER));
        let mut open = reach(&world, SERVER);
        let straight = |open: &mut Client| !through_the_stack(|| (0..20).for_each(|_| assert!(open.alive())));
        assert!(straight(&mut open));
        drop(world.dataplane);
        assert!(straight(&mut open), "while no process runs");
        // A pod that went meanwhile is not there any more.
        run("ip", &["link", "add", "slc9", "type", "veth", "peer", "name", "gone0"]);
        let load = |redirect| Dataplane::load(Config { redirect, ..config(place) }).unwrap();
        let next = load(Redirect::On);
        attach(&next, "slc9", Some(Neighbour { addresses: vec!["10.244.0.9".parse().unwrap()], mac: [2; 6] }));
        assert_eq!(pods(&next), 5);
        drop(next);
        run("ip", &["link", "delete", "slc9"]);
        world.dataplane = load(Redirect::On);
        assert_eq!(pods(&world.dataplane), 4);
        assert!(straight(&mut open), "what an earlier process knew");
        drop(world.dataplane);
        let off = load(Redirect::Off);
        assert!(!straight(&mut open), "the same connection by the stack");
        attach(&off, LINKS[0], Some(neighbour(&world.pods[0], &ADDRESSES[0])));
        assert_eq!(pods(&off), 0);
        drop(off);
        let on = load(Redirect::On);
        for at in [0, 1] {
            attach(&on, LINKS[at], Some(neighbour(&world.pods[at], &ADDRESSES[at])));
        }
        assert!(straight(&mut open));
    });
}

/// Addresses that are reached past the stack.
fn pods(dataplane: &Dataplane) -> usize {
    dataplane.status().unwrap().maps.iter().find(|map| map.name == "pods").unwrap().used
}

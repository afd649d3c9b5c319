//! Direct server return with real sockets over two nodes.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;
#[path = "common/two_nodes.rs"]
mod two_nodes;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use common::{Client, Namespace, PATIENCE, Place, act_as_card, connect, isolated, words};
use sluice_dataplane::model::Forwarding;
use sluice_dataplane::{Dataplane, Xdp};
use two_nodes::{NODE_PORTS, SERVICES, World, config, ip, route_between_links, table, world, world_with};

const CLIENT: [&str; 2] = ["10.1.0.2", "fd01::2"];

/// Megabytes both ways at the same time, every byte looked at.
fn carries_much(client: &Client) {
    const LENGTH: usize = 8 << 20;
    let byte = |at: usize| (at ^ at >> 9) as u8;
    let mut sender = client.stream.try_clone().unwrap();
    let mut receiver = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..LENGTH).map(byte).collect();
        sender.write_all(&bytes).unwrap();
    });
    // An emulated machine loses packets in its short rings, and TCP's timers back off.
    receiver.set_read_timeout(Some(PATIENCE * 20)).unwrap();
    let mut bytes = vec![0; LENGTH];
    receiver.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(at, value)| *value == byte(at)));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    sending.join().unwrap();
}

fn datagrams(own: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind((own.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn asks(socket: &UdpSocket, length: usize) -> (SocketAddr, SocketAddr) {
    let mut buffer = [0; 128];
    assert_eq!(socket.send(&vec![7; length]).unwrap(), length);
    let length = socket.recv(&mut buffer).unwrap();
    words(&buffer[..length])
}

fn everything_arrives(world: &World) {
    for at in 0..2 {
        let ((external, pod), node_port) = (SERVICES[at], NODE_PORTS[at]);
        for asked in [external, node_port] {
            let [before, _] = world.received();
            world.client.within(|| {
                let mut client = connect(asked).unwrap();
                assert_eq!(client.server, pod.parse().unwrap());
                assert_eq!(client.seen_as, client.stream.local_addr().unwrap(), "the client's address is kept");
                assert!(client.alive());
                carries_much(&client);
                assert!(client.alive());
                let socket = datagrams(CLIENT[at], asked);
                assert_eq!(asks(&socket, 1), (pod.parse().unwrap(), socket.local_addr().unwrap()));
            });
            let [after, _] = world.received();
            // Neighbour discovery, and what a packet's sender is told about its length.
            assert!(after - before < 100, "{asked}: {} packets came back through the load balancer", after - before);
        }
    }
    assert!(world.received()[1] > 1000, "the answers came straight from the backend's node");
}

#[test]
fn answers_go_straight_to_the_client() {
    isolated("answers_go_straight_to_the_client", |place| {
        let world = world(place, Xdp::Off);
        world.serve(Forwarding::Dsr);
        everything_arrives(&world);
        let refused = [&world.balancer, &world.backend].map(|dataplane| dataplane.status().unwrap().refused);
        assert_eq!(refused[1].len(), 0, "{refused:?}");
        // Both nodes count: the load balancer for what came, the backend's node for both directions.
        let rows = world.backend.services().unwrap();
        let counted: u64 = rows.iter().map(|row| row.connections).sum();
        assert_eq!(counted, 8, "{rows:?}");
        assert!(rows.iter().any(|row| row.backends.iter().any(|backend| backend.packets > 1000)), "{rows:?}");
        let rows = world.balancer.services().unwrap();
        assert_eq!(rows.iter().map(|row| row.connections).sum::<u64>(), 8, "{rows:?}");
        assert_eq!(world.balancer.tend().unwrap(), 8, "one entry for each");
    });
}

/// As from a card that neither cuts packets nor finishes checksums: every packet of full length is too long.
#[test]
fn full_packets_are_cut_by_their_sender_once_it_is_told() {
    isolated("full_packets_are_cut_by_their_sender_once_it_is_told", |place| {
        let world = world(place, Xdp::Off);
        world.serve(Forwarding::Dsr);
        world.client.within(|| act_as_card("eth0"));
        everything_arrives(&world);
        let refused = world.balancer.status().unwrap().refused;
        assert!(refused.keys().any(|reason| reason.contains("too long")), "{refused:?}");
    });
}

#[test]
fn the_driver_does_it_too() {
    isolated("the_driver_does_it_too", |place| {
        let world = world(place, Xdp::Always);
        world.serve(Forwarding::Dsr);
        for end in [&world.client, &world.backend_node] {
            end.within(|| act_as_card("eth0"));
        }
        assert!(world.balancer.status().unwrap().uplinks.iter().all(|row| row.xdp == "native"));
        everything_arrives(&world);
    });
}

#[test]
fn a_datagram_that_is_too_long_is_answered_with_the_length_that_fits() {
    isolated("a_datagram_that_is_too_long_is_answered_with_the_length_that_fits", |place| {
        let world = world(place, Xdp::Off);
        world.serve(Forwarding::Dsr);
        for (at, (level, discover, mtu, room, headers)) in [
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU, 1480, 28),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU, 1460, 48),
        ]
        .into_iter()
        .enumerate()
        {
            world.client.within(|| {
                let socket = datagrams(CLIENT[at], SERVICES[at].0);
                option(&socket, level, discover, Some(libc::IP_PMTUDISC_DO));
                assert_eq!(socket.send(&vec![7; 1500 - headers]).unwrap(), 1500 - headers);
                let error = socket.recv(&mut [0; 128]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
                assert_eq!(option(&socket, level, mtu, None), room);
                asks(&socket, room as usize - headers);
                // Without the demand that it stays whole it comes in fragments.
                option(&socket, level, discover, Some(libc::IP_PMTUDISC_WANT));
                asks(&socket, 4000);
            });
        }
    });
}

/// A router between both nodes has a link that the nodes know nothing of.
#[test]
fn a_shorter_link_between_the_nodes_is_learned() {
    isolated("a_shorter_link_between_the_nodes_is_learned", |place| {
        let mut router = None;
        let world = world_with(place, Xdp::Off, || router = Some(route_by_a_router(place)));
        world.serve(Forwarding::Dsr);
        for (at, (level, mtu, room)) in
            [(libc::IPPROTO_IP, libc::IP_MTU, 1380), (libc::IPPROTO_IPV6, libc::IPV6_MTU, 1360)].into_iter().enumerate()
        {
            world.client.within(|| {
                let client = connect(SERVICES[at].0).unwrap();
                carries_much(&client);
                let socket = datagrams(CLIENT[at], SERVICES[at].0);
                assert_eq!(option(&socket, level, mtu, None), room);
            });
        }
    });
}

/// The way to the pods' node leads by a third one, and its second link carries 1,400 bytes alone.
fn route_by_a_router(place: &Place) -> Namespace {
    let router = place.neighbour("router", "up2", Some("10.4.0.1/24"), "10.4.0.2/24", None);
    router.within(route_between_links);
    let [of_router, of_node] = ["router", "there"].map(|end| format!("{}-{end}", place.name));
    ip(&format!("-n {of_router} link add mid0 mtu 1400 type veth peer name mid1 mtu 1400 netns {of_node}"));
    ip("address add fd04::1/64 dev up2 nodad");
    ip(&format!("-n {of_router} address add fd04::2/64 dev eth0 nodad"));
    for (namespace, link, number) in [(&of_router, "mid0", 1), (&of_node, "mid1", 2)] {
        ip(&format!("-n {namespace} address add 10.5.0.{number}/24 dev {link}"));
        ip(&format!("-n {namespace} address add fd05::{number}/64 dev {link} nodad"));
        ip(&format!("-n {namespace} link set {link} up"));
    }
    for (network, by, onward, back, home) in [
        ("10.244.9.0/24", "10.4.0.2", "10.5.0.2", "10.1.0.0/24", "10.4.0.1"),
        ("fd44:0:0:9::/64", "fd04::2", "fd05::2", "fd01::/64", "fd04::1"),
    ] {
        ip(&format!("route replace {network} via {by}"));
        ip(&format!("-n {of_router} route add {network} via {onward}"));
        ip(&format!("-n {of_router} route add {back} via {home}"));
    }
    router
}

/// Sets an option of a socket, or reads it.
fn option(socket: &UdpSocket, level: i32, name: i32, value: Option<i32>) -> i32 {
    let mut word = value.unwrap_or(0);
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: both calls get a word of the length that they are told.
    let result = unsafe {
        match value {
            Some(_) => libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const word).cast(), length),
            None => libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut word).cast(), &raw mut length),
        }
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    word
}

#[test]
fn the_same_through_a_tunnel() {
    isolated("the_same_through_a_tunnel", |place| {
        let there = format!("-n {}-there ", place.name);
        let world = world_with(place, Xdp::Off, || {
            for (namespace, own, remote, dev) in [("", 1, 2, "up1"), (there.as_str(), 2, 1, "eth0")] {
                let ends = format!("local 10.2.0.{own} remote 10.2.0.{remote} dev {dev} dstport 8472");
                let address = format!("address 02:00:00:00:00:0{own}");
                ip(&format!("{namespace}link add sluice.vxlan {address} type vxlan id 7 {ends}"));
                ip(&format!("{namespace}link set sluice.vxlan up"));
            }
            ip("neigh add 10.244.9.0 lladdr 02:00:00:00:00:02 dev sluice.vxlan");
            ip("route replace 10.244.9.0/24 via 10.244.9.0 dev sluice.vxlan onlink");
        });
        world.backend_node.within(|| std::fs::write("/proc/sys/net/ipv4/conf/sluice.vxlan/rp_filter", "0").unwrap());
        world.serve(Forwarding::Dsr);
        let (external, pod) = SERVICES[0];
        world.client.within(|| {
            let client = connect(external).unwrap();
            assert_eq!((client.server, client.seen_as), (pod.parse().unwrap(), client.stream.local_addr().unwrap()));
            let socket = datagrams(CLIENT[0], external);
            option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, Some(libc::IP_PMTUDISC_DO));
            asks(&socket, 1);
            socket.send(&[7; 1472]).unwrap();
            assert_eq!(socket.recv(&mut [0; 128]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
            // Less 50 for the tunnel and 20 for the header inside of it.
            assert_eq!(option(&socket, libc::IPPROTO_IP, libc::IP_MTU, None), 1430);
            carries_much(&client);
        });
    });
}

#[test]
fn connections_outlive_changes_of_the_mode_and_of_the_process() {
    isolated("connections_outlive_changes_of_the_mode_and_of_the_process", |place| {
        let mut world = world(place, Xdp::Off);
        world.serve(Forwarding::Snat);
        let mut open = Vec::new();
        for (round, mode) in [Forwarding::Dsr, Forwarding::Snat, Forwarding::Dsr].into_iter().enumerate() {
            // The nodes learn of it one after the other.
            world.balancer.apply(&table("here", mode)).unwrap();
            let mut client = world.client.within(|| connect(SERVICES[0].0).unwrap());
            assert_eq!(client.seen_as.ip() == Ipv4Addr::new(10, 1, 0, 2), mode == Forwarding::Dsr, "{round}");
            world.backend.apply(&table("there", mode)).unwrap();
            assert!(client.alive());
            open.push(client);
            assert!(open.iter_mut().all(Client::alive), "{round}");
        }
        drop(world.balancer);
        assert!(open.iter_mut().all(Client::alive), "while no process runs");
        world.balancer = Dataplane::load(config(place, "here")).unwrap();
        assert!(open.iter_mut().all(Client::alive));
        drop(world.backend);
        world.backend = world.backend_node.within(|| Dataplane::load(config(place, "there")).unwrap());
        assert!(open.iter_mut().all(Client::alive));
        // The pod takes no new connections any more, and keeps those it has.
        let mut draining = table("here", Forwarding::Dsr);
        for endpoint in draining.slices.values_mut().flat_map(|slice| &mut slice.endpoints) {
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, false, true);
        }
        world.balancer.apply(&draining).unwrap();
        assert!(open.iter_mut().all(Client::alive), "the load balancer remembers where they go");
        world.client.within(|| assert!(connect(SERVICES[0].0).is_err()));
    });
}

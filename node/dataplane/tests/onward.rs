//! Services with backends on other nodes, where no driver runs the XDP program: the links' own program does its work. A
//! connection has the same two entries, and the stack sees no packet that it is not needed for.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/two_nodes.rs"]
mod two_nodes;

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};

use common::{Client, PATIENCE, Place, connect, forwarded, isolated, words};
use sluice_dataplane::model::Forwarding;
use sluice_dataplane::{Config, Dataplane, Redirect, Xdp};
use two_nodes::{NODE_PORTS, SERVICES, World, config, table, world};

const PROGRAM: &str = "uplink_onward";

/// Both nodes and the client know each other: to find a neighbour is the stack's work.
fn acquainted(place: &Place) -> World {
    let world = world(place, Xdp::Off);
    world.serve(Forwarding::Snat);
    for (service, _) in SERVICES {
        assert!(world.client.within(|| connect(service).unwrap()).alive());
    }
    world.balancer.forget_flows().unwrap();
    world
}

/// Entries of the flow map.
fn entries(dataplane: &Dataplane) -> usize {
    dataplane.status().unwrap().maps.iter().find(|map| map.name == "flows").unwrap().used
}

/// The links that have the program.
fn has(dataplane: &Dataplane) -> Vec<String> {
    let programs = dataplane.status().unwrap().programs;
    programs.into_iter().filter(|row| row.name == PROGRAM).map(|row| row.attached).collect()
}

/// Sends much at once, so that the kernel cuts it into packets late, and reads it back.
fn echo_much(client: &mut Client) {
    let piece: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    let mut back = vec![0; piece.len()];
    let mut reader = client.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..4).for_each(|_| client.stream.write_all(&piece).unwrap()));
        for _ in 0..4 {
            reader.read_exact(&mut back).unwrap();
            assert!(back == piece);
        }
    });
}

/// Who answered a datagram of this length.
fn ask(socket: &UdpSocket, length: usize) -> SocketAddr {
    let mut buffer = [0; 128];
    socket.send(&vec![7; length]).unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    words(&buffer[..length]).0
}

#[test]
fn connections_to_backends_elsewhere_have_two_entries_and_pass_no_stack() {
    isolated("connections_to_backends_elsewhere_have_two_entries_and_pass_no_stack", |place| {
        let world = acquainted(place);
        assert_eq!(has(&world.balancer), ["up0", "up1"]);
        let mut open = Vec::new();
        for (at, service) in SERVICES.map(|(service, _)| service).into_iter().chain(NODE_PORTS).enumerate() {
            let before = forwarded();
            let mut client = world.client.within(|| connect(service).unwrap());
            assert_eq!(entries(&world.balancer), 2 * (at + 1), "{service}");
            echo_much(&mut client);
            assert!(forwarded() - before < 20, "{service}: {} packets by the stack", forwarded() - before);
            open.push(client);
        }
        let tcp = entries(&world.balancer);
        // The next process goes on with them; without the program the stack needs entries of its own for those that it sees.
        drop(world.balancer);
        let balancer =
            Dataplane::load(Config { redirect: Redirect::Off, xdp: Xdp::Off, ..config(place, "here") }).unwrap();
        assert_eq!(balancer.apply(&table("here", Forwarding::Snat)).unwrap(), Vec::<String>::new());
        assert_eq!(has(&balancer), Vec::<String>::new());
        assert!(open.iter_mut().all(Client::alive));
        assert_eq!(entries(&balancer), 2 * tcp);
        let more = world.client.within(|| connect(SERVICES[0].0).unwrap());
        assert_eq!(entries(&balancer), 2 * tcp + 4);
        drop(more);
    });
}

/// Fragments are the stack's: it goes on with what the program began, and the other way round.
#[test]
fn a_connection_may_change_between_the_program_and_the_stack() {
    isolated("a_connection_may_change_between_the_program_and_the_stack", |place| {
        let world = acquainted(place);
        for (at, (service, pod)) in SERVICES.into_iter().enumerate() {
            let pod: SocketAddr = pod.parse().unwrap();
            let socket = world.client.within(|| {
                let socket = UdpSocket::bind(["0.0.0.0:0", "[::]:0"][at]).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(service).unwrap();
                socket
            });
            let counts = [10, 10, 4000, 10, 4000].map(|length| {
                assert_eq!(ask(&socket, length), pod, "{length}");
                entries(&world.balancer) - 4 * at
            });
            assert_eq!(counts, [2, 2, 4, 4, 4], "{service}");
        }
    });
}

//! SCTP from the node's own sockets to services, and back.

use std::format;
use std::string::String;

use sluice_ebpf_common::{Reason, Scope, protocol};

use super::frame::{Frame, ONWARD, SYN};
use super::world::World;
use crate::{Verdict, egress_pod, from_node, ingress};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const LOOPBACK: u32 = 1;
const HOME: u32 = 7;
const ADDRESS: &str = "10.1.0.1:5000";
const POD: &str = "10.244.0.5:3868";

fn world(link: u32) -> World {
    let mut world = World::new();
    (world.home, world.link) = (HOME, link);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.10:80", &[POD]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.11:80", &["10.1.0.1:3868"]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.12:80", &[]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.13:80", &["~10.244.8.8:3868"]);
    world.serve(protocol::SCTP, Scope::Internal, "[fd96::10]:80", &["~[fd44::5]:3868"]);
    world.serve(protocol::SCTP, Scope::Internal, "*:30080", &[POD]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:81", &[POD]);
    world
}

fn onward() -> Verdict {
    Verdict::Onward(ONWARD.0)
}

/// What the node sends, and what comes of it.
fn sent(world: &World, from: &str, to: &str) -> (Verdict, String) {
    let mut frame = Frame::sctp(from, to, INIT, b"");
    let verdict = from_node(&mut frame, world);
    assert!(frame.valid(), "{from} > {to}");
    (verdict, frame.ends())
}

/// An answer that comes in from a pod or from outside, and then by the home link.
fn answered(world: &World, from: &str, to: &str) -> String {
    let [from_pod, from_outside] = [Scope::Internal, Scope::External].map(|scope| {
        let mut frame = Frame::sctp(from, to, INIT_ACK, b"cookie");
        assert_eq!(ingress(&mut frame, world, scope), Verdict::Home, "{from} > {to}");
        assert_eq!(egress_pod(&mut frame, world), Verdict::Pass);
        assert!(frame.valid(), "{from} > {to}");
        frame.ends()
    });
    assert_eq!(from_pod, from_outside);
    from_pod
}

#[test]
fn an_association_of_the_node_goes_there_and_back() {
    // Link, client, service, backend.
    let cases = [
        (HOME, ADDRESS, "10.96.0.10:80", POD),
        (HOME, "[fd01::1]:5000", "[fd96::10]:80", "[fd44::5]:3868"),
        (LOOPBACK, ADDRESS, "10.1.0.1:30080", POD),
    ];
    for (link, client, service, backend) in cases {
        let world = world(link);
        assert_eq!(sent(&world, client, service), (onward(), format!("{client} > {backend}")));
        assert_eq!(answered(&world, backend, client), format!("{service} > {client}"));
        // The same connection goes on though its service is gone.
        let (mut gone, port) = (world.clone(), world.link == LOOPBACK);
        gone.frontends.clear();
        let mut frame = Frame::sctp(client, service, 0, b"payload");
        assert_eq!((from_node(&mut frame, &gone), port || frame.ends().ends_with(backend)), (onward(), true));
    }
}

#[test]
fn a_node_port_by_loopback_leaves_with_an_address_that_pods_answer() {
    let world = world(LOOPBACK);
    let (verdict, ends) = sent(&world, "127.0.0.1:5000", "127.0.0.1:30080");
    let (source, backend) = ends.split_once(" > ").unwrap();
    assert_eq!((verdict, backend), (onward(), POD));
    assert!(source.starts_with("10.1.0.1:6"), "{source}");
    assert_eq!(answered(&world, POD, source), "127.0.0.1:30080 > 127.0.0.1:5000");
}

#[test]
fn a_backend_of_the_node_itself_is_reached_and_answers() {
    let world = world(HOME);
    assert_eq!(sent(&world, ADDRESS, "10.96.0.11:80"), (Verdict::Home, format!("{ADDRESS} > 10.1.0.1:3868")));
    // The server's answer goes by the loopback link.
    let mut loopback = world.clone();
    loopback.link = LOOPBACK;
    assert_eq!(sent(&loopback, "10.1.0.1:3868", ADDRESS), (Verdict::Pass, format!("10.96.0.11:80 > {ADDRESS}")));
}

#[test]
fn what_is_for_no_service_goes_on_by_loopback_alone() {
    let refused = Verdict::Refuse(Reason::NoEndpoint);
    for (link, verdict) in [(LOOPBACK, Verdict::Pass), (HOME, refused)] {
        let world = world(link);
        let frames = [
            Frame::sctp(ADDRESS, "10.96.0.10:81", INIT, b""),
            Frame::sctp("10.1.0.1:3868", "10.1.0.1:5000", INIT, b""),
            Frame::tcp(ADDRESS, "10.96.0.10:81", SYN, b""),
            Frame::udp(ADDRESS, "10.96.0.10:80", b""),
        ];
        for mut frame in frames {
            let before = frame.clone();
            assert_eq!((from_node(&mut frame, &world), &frame), (verdict, &before));
        }
        let mut error = Frame::error("10.1.0.1", "10.96.0.10", &Frame::udp("10.96.0.10:80", "10.1.0.1:5", b""));
        let expected = if link == HOME { Verdict::Drop(Reason::NoEndpoint) } else { Verdict::Pass };
        assert_eq!(from_node(&mut error, &world), expected, "nothing answers an error");
    }
}

#[test]
fn nobody_is_there_and_no_way_is_said() {
    let world = world(HOME);
    assert_eq!(sent(&world, ADDRESS, "10.96.0.12:80").0, Verdict::Refuse(Reason::NoEndpoint));
    assert_eq!(sent(&world, ADDRESS, "10.96.0.13:80").0, Verdict::Drop(Reason::NoWay));
    let mut long = Frame::sctp(ADDRESS, "10.96.0.10:80", 0, &[7; 1600]);
    assert_eq!(from_node(&mut long, &world), Verdict::TooBig(ONWARD.1));
}

#[test]
fn errors_about_it_come_home() {
    let world = world(HOME);
    let mut frame = Frame::sctp(ADDRESS, "10.96.0.10:80", INIT, b"");
    let original = frame.clone();
    assert_eq!(from_node(&mut frame, &world), onward());
    for scope in [Scope::Internal, Scope::External] {
        let mut error = Frame::error("10.244.0.5", "10.1.0.1", &frame);
        assert_eq!(ingress(&mut error, &world, scope), Verdict::Home);
        assert_eq!((egress_pod(&mut error, &world), error.valid()), (Verdict::Pass, true));
        assert_eq!(error.ends(), "10.96.0.10:0 > 10.1.0.1:0");
        assert_eq!(error.bytes[42..66], original.bytes[14..38]);
    }
}

#[test]
fn others_answers_and_connections_stay_on_their_way() {
    let mut world = world(HOME);
    // A client of the node that talks to the pod itself, and a pod's connection to a service.
    let mut plain = Frame::sctp(POD, "10.1.0.1:5001", INIT_ACK, b"");
    assert_eq!(ingress(&mut plain, &world, Scope::Internal), Verdict::Pass);
    let mut asks = Frame::sctp("10.244.0.9:7", "10.96.0.10:80", INIT, b"");
    assert_eq!(ingress(&mut asks, &world, Scope::Internal), Verdict::Pass);
    let mut answers = Frame::sctp(POD, "10.244.0.9:7", INIT_ACK, b"");
    assert_eq!(ingress(&mut answers, &world, Scope::Internal), Verdict::Pass);
    // Without a home link nothing is looked for.
    assert_eq!(sent(&world, ADDRESS, "10.96.0.10:80").0, onward());
    world.home = 0;
    let mut answer = Frame::sctp(POD, ADDRESS, INIT_ACK, b"");
    assert_eq!(ingress(&mut answer, &world, Scope::Internal), Verdict::Pass);
}

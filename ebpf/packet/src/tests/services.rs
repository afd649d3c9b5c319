//! Packets for service addresses, and their answers.

use std::string::ToString;

use sluice_ebpf_common::{Reason, Scope, protocol};

use super::world::{ACK, FIN, Frame, SYN, World};
use crate::{MARK_NEEDS_SOURCE, Verdict, egress_pod, egress_uplink, ingress};

const CLIENT: &str = "192.0.2.9:5000";

fn shop() -> World {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::External, "*:30080", &["10.244.0.5:80", "10.244.0.6:80"]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:80", "10.244.0.6:80"]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.10:53", &["10.244.0.7:5353"]);
    world.serve(protocol::TCP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    world.serve(protocol::TCP, Scope::External, "*:30070", &[]);
    world
}

#[test]
fn destinations() {
    let tcp = |from: &str, to: &str| Frame::tcp(from, to, SYN, b"");
    // Packet, scope, where it goes.
    let cases = [
        (tcp(CLIENT, "10.1.0.1:30080"), Scope::External, "192.0.2.9:5000 > 10.244.0.5:80"),
        (tcp("10.244.0.9:1", "10.96.0.10:80"), Scope::Internal, "10.244.0.9:1 > 10.244.0.5:80"),
        (Frame::udp("10.244.0.9:1", "10.96.0.10:53", b"?"), Scope::Internal, "10.244.0.9:1 > 10.244.0.7:5353"),
        // Not services: another address, another port, another protocol, another scope.
        (tcp(CLIENT, "10.1.0.2:30080"), Scope::External, "192.0.2.9:5000 > 10.1.0.2:30080"),
        (tcp(CLIENT, "10.1.0.1:30081"), Scope::External, "192.0.2.9:5000 > 10.1.0.1:30081"),
        (Frame::udp(CLIENT, "10.1.0.1:30080", b"?"), Scope::External, "192.0.2.9:5000 > 10.1.0.1:30080"),
        (tcp(CLIENT, "10.96.0.10:80"), Scope::External, "192.0.2.9:5000 > 10.96.0.10:80"),
        // Nobody there: the kernel answers.
        (tcp(CLIENT, "10.1.0.1:30070"), Scope::External, "192.0.2.9:5000 > 10.1.0.1:30070"),
        (Frame::echo("10.244.0.9", "10.96.0.10", 8, 7), Scope::Internal, "10.244.0.9:7 > 10.96.0.10:7"),
    ];
    for (mut frame, scope, expected) in cases {
        let world = shop();
        assert_eq!(ingress(&mut frame, &world, scope), Verdict::Pass);
        assert_eq!(frame.ends(), expected);
        assert!(frame.valid(), "{expected}");
        assert_eq!(frame.mark, 0);
    }
}

#[test]
fn a_connection_stays_with_its_backend_and_its_answers_come_from_the_service() {
    let world = shop();
    for round in 0..5_u8 {
        let flags = if round == 0 { SYN } else { ACK };
        let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30080", flags, &[round; 9]);
        ingress(&mut frame, &world, Scope::External);
        assert_eq!(frame.ends(), "192.0.2.9:5000 > 10.244.0.5:80");
        let mut answer = Frame::tcp("10.244.0.5:80", CLIENT, ACK, &[round; 7]);
        assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
        assert_eq!(answer.ends(), "10.1.0.1:30080 > 192.0.2.9:5000");
        assert!(frame.valid() && answer.valid());
    }
    let counters = world.services.borrow()[&1];
    assert_eq!((counters.connections, counters.packets), (1, 10));
}

#[test]
fn a_pods_answers_reach_another_pod_from_the_service() {
    let world = shop();
    ingress(&mut Frame::udp("10.244.0.9:1", "10.96.0.10:53", b"?"), &world, Scope::Internal);
    let mut answer = Frame::udp("10.244.0.7:5353", "10.244.0.9:1", b"!");
    assert_eq!(egress_pod(&mut answer, &world), Verdict::Pass);
    assert_eq!(answer.ends(), "10.96.0.10:53 > 10.244.0.9:1");
    assert!(answer.valid());
}

#[test]
fn a_remote_backend_sees_the_node_and_answers_find_the_client() {
    let world = shop();
    let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30090", SYN, b"");
    ingress(&mut frame, &world, Scope::External);
    assert_eq!(frame.mark, MARK_NEEDS_SOURCE);
    egress_uplink(&mut frame, &world);
    assert_eq!(frame.mark, 0);
    let (source, destination) = frame.ends().split_once(" > ").map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
    assert!(source.starts_with("10.1.0.1:6"), "{source}");
    assert_eq!(destination, "10.244.9.9:80");
    let mut answer = Frame::tcp("10.244.9.9:80", &source, SYN | ACK, b"");
    ingress(&mut answer, &world, Scope::External);
    assert_eq!(answer.ends(), "10.244.9.9:80 > 192.0.2.9:5000");
    egress_uplink(&mut answer, &world);
    assert_eq!(answer.ends(), "10.1.0.1:30090 > 192.0.2.9:5000");
    assert!(frame.valid() && answer.valid());
}

#[test]
fn an_error_about_an_answer_reaches_the_backend() {
    let world = shop();
    ingress(&mut Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""), &world, Scope::External);
    let original = Frame::tcp("10.244.0.5:80", CLIENT, ACK, b"too long");
    let mut answer = original.clone();
    egress_uplink(&mut answer, &world);
    let mut error = Frame::error("192.0.2.1", "10.1.0.1", &answer);
    assert_eq!(ingress(&mut error, &world, Scope::External), Verdict::Pass);
    assert!(error.valid() && error.ends().contains("> 10.244.0.5"), "{}", error.ends());
    assert_eq!(error.bytes[42..66], original.bytes[14..38]);
}

#[test]
fn who_is_picked_again() {
    let udp = |world: &World| {
        let mut frame = Frame::udp("10.244.0.9:1", "10.96.0.10:53", b"?");
        ingress(&mut frame, world, Scope::Internal);
        frame.ends()
    };
    let tcp = |world: &World, flags: u8| {
        let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30080", flags, b"");
        ingress(&mut frame, world, Scope::External);
        frame.ends().split_once(" > ").unwrap().1.to_string()
    };
    let mut world = shop();
    world.random = [0, u32::MAX].into();
    assert_eq!(tcp(&world, SYN), "10.244.0.5:80");
    assert_eq!(tcp(&world, SYN), "10.244.0.5:80", "sent again");
    world.retire(1);
    assert_eq!(tcp(&world, ACK), "10.244.0.5:80", "an open connection is not cut");
    assert_eq!(tcp(&world, SYN), "10.244.0.6:80", "a new one from the same port does not go to a dead backend");
    assert_eq!(tcp(&world, ACK | FIN), "10.244.0.6:80");
    assert_eq!(tcp(&world, SYN), "10.244.0.5:80", "after a close the port starts over");
    assert_eq!(udp(&world), "10.244.0.9:1 > 10.244.0.7:5353");
    assert_eq!(tcp(&world, ACK), "10.244.0.5:80");
    let node_port = world.frontends.clone();
    world.frontends.retain(|key, _| key.address != 0);
    assert_eq!(tcp(&world, ACK), "10.244.0.5:80", "the service is gone, an open connection is not");
    assert_eq!(tcp(&world, SYN | ACK), "10.244.0.5:80");
    world.frontends = node_port;
    let flows = world.flows.borrow().len();
    world.retire(5);
    udp(&world);
    assert_eq!(world.flows.borrow().len(), flows, "the old pair is gone");
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = shop();
    let mut frame = Frame::udp("10.244.0.7:1", "10.96.0.10:53", b"?");
    assert_eq!(ingress(&mut frame, &world, Scope::Internal), Verdict::Pass);
    assert_eq!(egress_pod(&mut frame, &world), Verdict::Pass);
    let ends = frame.ends();
    let (source, destination) = ends.split_once(" > ").unwrap();
    assert!(source.starts_with("10.1.0.1:6") && destination == "10.244.0.7:5353", "{ends}");
    assert_eq!(frame.mark, 0);
    let mut answer = Frame::udp("10.244.0.7:5353", source, b"!");
    assert_eq!(ingress(&mut answer, &world, Scope::Internal), Verdict::Pass);
    assert_eq!(egress_pod(&mut answer, &world), Verdict::Pass);
    assert_eq!(answer.ends(), "10.96.0.10:53 > 10.244.0.7:1");
    assert!(frame.valid() && answer.valid());
}

#[test]
fn a_full_flow_map_refuses_new_connections_and_keeps_the_old() {
    let mut world = shop();
    ingress(&mut Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""), &world, Scope::External);
    world.flow_limit = 3;
    let mut frame = Frame::tcp("192.0.2.9:5001", "10.1.0.1:30080", SYN, b"");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Drop(Reason::FlowsFull));
    assert_eq!(world.flows.borrow().len(), 2, "no half flow is left");
    let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30080", ACK, b"");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
}

//! Packets for service addresses, and their answers.

use std::string::ToString;

use sluice_ebpf_common::{Address, FlowKey, FlowKind, Frontend, Reason, Scope, Settings, protocol};

use super::frame::{ACK, FIN, Frame, SYN, wire};
use super::world::World;
use crate::{InsertError, MARK_NEEDS_SOURCE, Maps, Verdict, egress_pod, egress_uplink, flow, ingress, refuse};

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
    world.frontends.retain(|key, _| key.address != Address::ANY_V4);
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

/// While the flow record changes, one entry of a connection may be in the new map before the other one.
#[test]
fn half_a_connection_that_is_not_here_yet_is_left_alone() {
    let mut world = shop();
    ingress(&mut Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""), &world, Scope::External);
    world.flows.borrow_mut().retain(|key, _| key.kind != FlowKind::Service as u8);
    world.holds = true;
    let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30080", ACK, b"");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Drop(Reason::FlowsFull));
    let mut answer = Frame::tcp("10.244.0.5:80", CLIENT, ACK, b"");
    assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
    assert_eq!(answer.ends(), "10.1.0.1:30080 > 192.0.2.9:5000");
}

/// Two processors with packets of one new connection: the slower one leaves alone what the faster one recorded.
#[test]
fn who_is_slower_with_the_same_choice_takes_nothing_back() {
    let world = shop();
    ingress(&mut Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""), &world, Scope::External);
    let entries = world.flows.borrow().clone();
    let (key, entry) = entries.iter().find(|(key, _)| key.kind == FlowKind::Service as u8).unwrap();
    assert_eq!(flow::complete(&world, key, entry), Err(InsertError::Exists));
    assert_eq!(*world.flows.borrow(), entries);
    let mut other = *entry;
    (other.address, other.other) = (wire("10.244.0.6"), FlowKey { source: wire("10.244.0.6"), ..entry.other });
    world.insert_flow(&other.other, &other).unwrap();
    assert_eq!(flow::complete(&world, key, &other), Err(InsertError::Exists));
    assert_eq!(*world.flows.borrow(), entries, "its own half is gone");
}

#[test]
fn nobody_answers_with_an_error_about_the_packet() {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.13:80", &[]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.13:53", &[]);
    world.serve(protocol::TCP, Scope::Internal, "[fd96::13]:80", &[]);
    let mut options = Frame::tcp("10.244.0.9:7", "10.96.0.13:80", SYN, b"");
    options.bytes.splice(34..34, [1, 1, 1, 0]);
    (options.bytes[14], options.bytes[17]) = (0x46, 44);
    options.fix_ip_header();
    let cases = [
        (Frame::tcp("10.244.0.9:7", "10.96.0.13:80", SYN, &[1; 40]), 20),
        (Frame::udp("10.244.0.9:7", "10.96.0.13:53", &[1; 40]), 8),
        (options, 20),
        (Frame::tcp("[fd44::9]:7", "[fd96::13]:80", SYN, b"odd"), 20),
    ];
    for (original, quoted) in cases {
        let mut frame = original.clone();
        assert_eq!(ingress(&mut frame, &world, Scope::Internal), Verdict::Refuse(Reason::NoEndpoint));
        assert_eq!(frame, original, "not touched yet");
        assert_eq!(refuse(&mut frame, &world, 0), Verdict::Answer);
        assert!(frame.valid(), "{original:?}");
        let (from, to) = (original.ends(), frame.ends());
        let address =
            |ends: &str, side: usize| ends.split(" > ").nth(side).unwrap().rsplit_once(':').unwrap().0.to_string();
        assert_eq!((address(&to, 0), address(&to, 1)), (address(&from, 1), address(&from, 0)));
        assert_eq!((&frame.bytes[0..6], &frame.bytes[6..12]), (&original.bytes[6..12], &original.bytes[0..6]));
        let quote = &frame.bytes[frame.transport() + 8..];
        assert_eq!(quote, &original.bytes[14..original.transport() + quoted]);
    }
}

#[test]
fn who_is_let_in_and_who_stays() {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::External, "192.0.2.80:80", &["10.244.0.5:80", "10.244.0.6:80", "10.244.0.7:80"]);
    world.change("192.0.2.80:80", |frontend| {
        frontend.flags = Frontend::RANGES;
        frontend.affinity = 60;
    });
    let mask = Address { words: [u32::MAX, u32::MAX, u32::MAX, wire("255.255.255.0").last()] };
    world.ranges = [(wire("198.51.100.0"), mask)].into();
    let ask = |world: &World, from: &str| {
        let mut frame = Frame::tcp(from, "192.0.2.80:80", SYN, b"");
        let verdict = ingress(&mut frame, world, Scope::External);
        (verdict, frame.ends().split_once(" > ").unwrap().1.to_string())
    };
    assert_eq!(ask(&world, "203.0.113.1:5").0, Verdict::Drop(Reason::SourceRange));
    let first = ask(&world, "198.51.100.1:5");
    for port in 6..12 {
        assert_eq!(ask(&world, &std::format!("198.51.100.1:{port}")), first, "the client stays");
    }
    world.now += 61;
    let others: std::collections::BTreeSet<_> =
        (2..9).map(|host| ask(&world, &std::format!("198.51.100.{host}:5")).1).collect();
    assert!(others.len() > 1, "other clients go elsewhere");
    // Policy Local and nobody here: silence, as the client may be sent to another node.
    world.change("192.0.2.80:80", |frontend| {
        frontend.count = 0;
        frontend.flags = Frontend::LOCAL_ONLY | Frontend::ELSEWHERE;
    });
    assert_eq!(ask(&world, "198.51.100.77:5").0, Verdict::Drop(Reason::NotHere));
}

#[test]
fn ipv6_goes_the_same_ways() {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::External, "[*]:30080", &["~[fd44:0:0:2::5]:8080"]);
    let client = "[fd02::9]:5000";
    let mut frame = Frame::tcp(client, "[fd01::1]:30080", SYN, b"six");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
    assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
    assert!(frame.valid());
    let ends = frame.ends();
    let (source, destination) = ends.split_once(" > ").unwrap();
    assert!(source.starts_with("[fd01::1]:6") && destination == "[fd44:0:0:2::5]:8080", "{ends}");
    let mut answer = Frame::tcp(destination, source, SYN | ACK, b"odd");
    assert_eq!(ingress(&mut answer, &world, Scope::External), Verdict::Pass);
    assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
    assert_eq!(answer.ends(), std::format!("[fd01::1]:30080 > {client}"));
    assert!(answer.valid());
    // A pod's own way out and an error about it.
    let mut ping = Frame::echo("fd44:0:0:1::5", "fd02::9", 8, 77);
    let original = ping.clone();
    egress_uplink(&mut ping, &world);
    assert!(ping.valid() && ping.ends().starts_with("[fd01::1]:"), "{}", ping.ends());
    let mut error = Frame::error("fd02::1", "fd01::1", &ping);
    ingress(&mut error, &world, Scope::External);
    assert!(error.valid() && error.ends().contains("> [fd44:0:0:1::5]"), "{}", error.ends());
    assert_eq!(&error.bytes[62..102], &original.bytes[14..54]);
}

/// `nodePortAddresses`: on the others a node port is a port like any other, and host ports answer all the same.
#[test]
fn node_ports_answer_on_chosen_addresses() {
    let mut world = shop();
    world.without_node_ports = [wire("10.1.0.1")].to_vec();
    world.serve(protocol::TCP, Scope::External, "*:8080", &["10.244.0.7:80"]);
    world.serve(protocol::TCP, Scope::External, "[*]:30080", &["[fd44::5]:80"]);
    world.settings.flags |= Settings::HOST_PORTS;
    for (client, to, expected) in [
        (CLIENT, "10.1.0.1:30080", "10.1.0.1:30080"),
        (CLIENT, "10.1.0.1:8080", "10.244.0.7:80"),
        ("[fd02::9]:5000", "[fd01::1]:30080", "[fd44::5]:80"),
    ] {
        let mut frame = Frame::tcp(client, to, SYN, b"");
        assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
        assert_eq!(frame.ends(), std::format!("{client} > {expected}"));
    }
}

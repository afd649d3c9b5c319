//! Pods' traffic to the outside.

use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};

use sluice_ebpf_common::{FlowKind, Reason, Scope, ports, protocol};

use super::frame::{ACK, Frame, SYN, mask, wire};
use super::world::World;
use crate::{MARK_NEEDS_SOURCE, Verdict, egress_uplink, ingress};

const OUTSIDE: &str = "192.0.2.9:443";

#[test]
fn who_leaves_with_the_nodes_address() {
    let cases = [
        ("10.244.0.5:1000", OUTSIDE, true),
        ("10.244.0.5:1000", "10.1.0.7:443", true),
        ("10.244.0.5:1000", "10.244.7.7:80", false),
        // Another node, whose connection to a pod this may answer.
        ("10.244.0.5:8080", "10.1.0.3:61000", false),
        ("10.1.0.1:1000", OUTSIDE, false),
        ("10.244.7.7:1000", OUTSIDE, false),
    ];
    for (source, destination, masqueraded) in cases {
        let world = World::new();
        let mut frame = Frame::tcp(source, destination, SYN, b"");
        assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
        assert_eq!(frame.ends().starts_with("10.1.0.1:6"), masqueraded, "{source} > {destination}: {}", frame.ends());
        assert!(frame.valid());
    }
}

#[test]
fn some_places_know_pods_by_their_own_addresses() {
    let mut world = World::new();
    world.unmasqueraded =
        [(wire("192.0.2.0"), mask("255.255.255.0")), (wire("2001:db8:7::"), wire("ffff:ffff:ffff::"))].into();
    for (source, destination, masqueraded) in [
        ("10.244.0.5:1000", "192.0.2.9:443", false),
        ("10.244.0.5:1000", "192.0.3.9:443", true),
        ("[fd44:0:0:1::5]:1000", "[2001:db8:7::9]:443", false),
        ("[fd44:0:0:1::5]:1000", "[2001:db8:8::9]:443", true),
    ] {
        let mut frame = Frame::tcp(source, destination, SYN, b"");
        assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
        assert_eq!(!frame.ends().starts_with(source), masqueraded, "{source} > {destination}: {}", frame.ends());
        assert!(frame.valid());
    }
    // What a node sends on to a backend there still leaves with the node's address.
    let mut frame = Frame::tcp("10.244.0.5:1000", "192.0.2.9:443", SYN, b"");
    frame.mark = MARK_NEEDS_SOURCE;
    assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
    assert!(frame.ends().starts_with("10.1.0.1:6"), "{}", frame.ends());
}

#[test]
fn answers_find_their_pod() {
    let world = World::new();
    let mut frames = [
        Frame::tcp("10.244.0.5:1000", OUTSIDE, SYN, b""),
        Frame::udp("10.244.0.5:1000", OUTSIDE, b"?"),
        Frame::echo("10.244.0.5", "192.0.2.9", 8, 77),
    ];
    for frame in &mut frames {
        egress_uplink(frame, &world);
        assert!(frame.valid());
    }
    let source = |frame: &Frame| frame.ends().split_once(" > ").unwrap().0.to_string();
    let identifier = source(&frames[2]).split_once(':').unwrap().1.parse().unwrap();
    let answers = [
        (Frame::tcp(OUTSIDE, &source(&frames[0]), ACK, b"yes"), "192.0.2.9:443 > 10.244.0.5:1000"),
        (Frame::udp(OUTSIDE, &source(&frames[1]), b"!"), "192.0.2.9:443 > 10.244.0.5:1000"),
        (Frame::echo("192.0.2.9", "10.1.0.1", 0, identifier), "192.0.2.9:77 > 10.244.0.5:77"),
    ];
    for (mut answer, expected) in answers {
        assert_eq!(ingress(&mut answer, &world, Scope::External), Verdict::Pass);
        assert_eq!(answer.ends(), expected);
        assert!(answer.valid(), "{expected}");
    }
    // A stranger on the same port is not let through to the pod.
    let stranger = source(&frames[0]);
    let mut frame = Frame::tcp("192.0.2.66:443", &stranger, ACK, b"");
    ingress(&mut frame, &world, Scope::External);
    assert!(frame.ends().ends_with(&stranger));
}

#[test]
fn an_error_about_a_masqueraded_packet_finds_its_pod() {
    for mut sent in [Frame::udp("10.244.0.5:1000", OUTSIDE, b"?"), Frame::tcp("10.244.0.5:1000", OUTSIDE, SYN, b"")] {
        let world = World::new();
        let original = sent.clone();
        egress_uplink(&mut sent, &world);
        let mut error = Frame::error("192.0.2.1", "10.1.0.1", &sent);
        assert_eq!(ingress(&mut error, &world, Scope::External), Verdict::Pass);
        assert!(error.valid());
        assert!(error.ends().contains("> 10.244.0.5"));
        let quoted = &error.bytes[42..42 + 24];
        assert_eq!(quoted, &original.bytes[14..14 + 24], "the quote is what the pod sent, checksum and ports included");
    }
}

#[test]
fn ports_end_and_are_shared_between_destinations() {
    let mut world = World::new();
    (world.settings.source_port_first, world.settings.source_port_last) = (61000, 61001);
    world.random = [0, u32::MAX].into();
    let send = |from: u16, to: &str| {
        let mut frame = Frame::udp(&std::format!("10.244.0.5:{from}"), to, b"?");
        let verdict = egress_uplink(&mut frame, &world);
        (verdict, frame.ends().split_once(" > ").unwrap().0.to_string())
    };
    let used: BTreeSet<_> = (1..=2).map(|from| send(from, OUTSIDE).1).collect();
    assert_eq!(used, ["10.1.0.1:61000".to_string(), "10.1.0.1:61001".to_string()].into());
    assert_eq!(send(3, OUTSIDE).0, Verdict::Drop(Reason::PortsExhausted));
    assert_eq!(send(3, "192.0.2.10:443").0, Verdict::Pass);
    assert_eq!(send(1, OUTSIDE).0, Verdict::Pass, "the old ones go on");
}

#[test]
fn every_port_is_found_at_the_first_look() {
    let mut world = World::new();
    // Two groups and a part of a third one.
    (world.settings.source_port_first, world.settings.source_port_last) = (61000, 61299);
    world.random = (0..97).map(|step: u32| step.wrapping_mul(0x9e37_79b1)).collect();
    world.flow_limit = 10_000;
    let mut used = BTreeSet::new();
    for from in 1..=300_u16 {
        let mut frame = Frame::udp(&std::format!("10.244.0.5:{from}"), OUTSIDE, b"?");
        assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass, "{from}");
        used.insert(frame.ends().split_once(" > ").unwrap().0.to_string());
    }
    assert_eq!(used.len(), 300);
    let looks = world.looks.get();
    assert_eq!(
        egress_uplink(&mut Frame::udp("10.244.0.5:999", OUTSIDE, b"?"), &world),
        Verdict::Drop(Reason::PortsExhausted)
    );
    assert_eq!(world.looks.get() - looks, 1, "one look says that nothing is left");
    // One is given back.
    let reply = *world.flows.borrow().keys().find(|key| key.kind == FlowKind::MasqueradeReply as u8).unwrap();
    world.flows.borrow_mut().remove(&reply);
    crate::nat::give(&world, &world.settings, &reply);
    let mut frame = Frame::udp("10.244.0.5:999", OUTSIDE, b"?");
    assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
    assert!(frame.ends().starts_with(&std::format!("10.1.0.1:{}", u16::from_be(reply.destination_port))));
}

#[test]
fn a_connection_that_finds_no_room_keeps_no_port() {
    let mut world = World::new();
    for limit in [0, 1] {
        world.flow_limit = limit;
        let mut frame = Frame::udp("10.244.0.5:1", OUTSIDE, b"?");
        assert_eq!(egress_uplink(&mut frame, &world), Verdict::Drop(Reason::FlowsFull));
        assert!(world.ports.borrow().values().all(|word| *word == 0), "room for {limit}");
        assert!(world.flows.borrow().is_empty());
    }
}

#[test]
fn what_cannot_be_masqueraded_does_not_leak() {
    let world = World::new();
    let mut fragment = Frame::udp("10.244.0.5:1000", OUTSIDE, b"?");
    fragment.bytes[21] = 8;
    assert_eq!(egress_uplink(&mut fragment, &world), Verdict::Drop(Reason::Fragment));
    let mut other = Frame::udp("10.244.0.5:1000", OUTSIDE, b"?");
    other.bytes[23] = 47;
    assert_eq!(egress_uplink(&mut other, &world), Verdict::Drop(Reason::Protocol));
}

#[test]
fn neighbouring_remote_ends_have_rows_of_their_own() {
    let neighbours: [fn(u32) -> String; 3] = [
        |number| format!("10.245.0.{number}"),
        |number| format!("10.{number}.0.9"),
        |number| format!("fd44::{number:x}"),
    ];
    for neighbour in neighbours {
        let rows: BTreeSet<u32> =
            (1..=64).map(|number| ports::row(&wire(&neighbour(number)), 80, protocol::TCP)).collect();
        // 64 balls in 1,024 places: less than 56 places would be no accident.
        assert!(rows.len() >= 56, "{} {}", neighbour(1), rows.len());
    }
}

/// While the flow record changes, the programs that make masqueraded connections and those that see their answers work on two
/// maps for some milliseconds.
#[test]
fn an_answer_whose_flow_is_not_here_yet_is_not_the_nodes() {
    let mut world = World::new();
    let mut sent = Frame::tcp("10.244.0.5:1000", OUTSIDE, SYN, b"");
    egress_uplink(&mut sent, &world);
    let source = sent.ends().split_once(" > ").unwrap().0.to_string();
    let answer = Frame::tcp(OUTSIDE, &source, ACK, b"yes");
    let came = std::mem::take(&mut *world.flows.borrow_mut());
    world.holds = true;
    assert_eq!(ingress(&mut answer.clone(), &world, Scope::External), Verdict::Drop(Reason::FlowsFull));
    let mut elsewhere = Frame::tcp(OUTSIDE, "10.244.0.6:61000", ACK, b"yes");
    assert_eq!(ingress(&mut elsewhere, &world, Scope::External), Verdict::Pass);
    *world.flows.borrow_mut() = came;
    let mut again = answer.clone();
    assert_eq!(ingress(&mut again, &world, Scope::External), Verdict::Pass);
    assert_eq!(again.ends(), "192.0.2.9:443 > 10.244.0.5:1000");
}

//! ICMP errors towards a service's client.

use std::string::ToString;

use sluice_ebpf_common::{Scope, protocol};

use super::frame::{Frame, SYN};
use super::world::World;
use crate::{Verdict, egress_pod, egress_uplink, ingress};

fn world() -> World {
    let mut world = World::new();
    world.serve(protocol::UDP, Scope::External, "*:30053", &["10.244.0.7:5353"]);
    world.serve(protocol::TCP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.10:53", &["10.244.0.7:5353"]);
    world.serve(protocol::UDP, Scope::Internal, "[fd96::10]:53", &["[fd44::7]:5353"]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.10:80", &["10.244.0.7:3868"]);
    world
}

/// What the client sent, as the error quotes it: addresses and ports.
fn quoted(error: &Frame) -> (&[u8], &[u8]) {
    let quote = &error.bytes[error.transport() + 8..];
    if quote[0] >> 4 == 4 { (&quote[12..20], &quote[20..24]) } else { (&quote[8..40], &quote[40..44]) }
}

#[test]
fn the_client_gets_errors_about_what_it_sent() {
    let udp = |from: &str, to: &str| Frame::udp(from, to, &[7; 40]);
    // What the client sent, where, who says that something is wrong with it, as whom.
    let cases = [
        (udp("192.0.2.9:5000", "10.1.0.1:30053"), Scope::External, "10.244.0.7", "10.1.0.1"),
        (udp("192.0.2.9:5000", "10.1.0.1:30053"), Scope::External, "10.244.0.1", "10.244.0.1"),
        (udp("10.244.0.9:7", "10.96.0.10:53"), Scope::Internal, "10.244.0.7", "10.96.0.10"),
        (udp("[fd44::9]:7", "[fd96::10]:53"), Scope::Internal, "fd44::7", "fd96::10"),
        (udp("[fd44::9]:7", "[fd96::10]:53"), Scope::Internal, "fd44::1", "fd44::1"),
        (Frame::sctp("10.244.0.9:7", "10.96.0.10:80", 1, b""), Scope::Internal, "10.244.0.7", "10.96.0.10"),
    ];
    for (sent, scope, who, expected) in cases {
        let world = world();
        let mut arrived = sent.clone();
        ingress(&mut arrived, &world, scope);
        let ends = sent.ends();
        let client = ends.split_once(" > ").unwrap().0.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
        let mut error = Frame::error(who, client, &arrived);
        assert_eq!(ingress(&mut error, &world, Scope::Internal), Verdict::Pass);
        let verdict = if scope == Scope::External { egress_uplink } else { egress_pod }(&mut error, &world);
        assert_eq!(verdict, Verdict::Pass);
        assert!(error.valid(), "{ends} {who}");
        let from = error.ends().split_once(" > ").unwrap().0.to_string();
        assert!(from.trim_start_matches('[').starts_with(expected), "{from}");
        assert_eq!(quoted(&error), quoted(&Frame::error(who, client, &sent)), "{ends} {who}");
    }
}

#[test]
fn a_remote_backends_error_finds_the_client_behind_this_nodes_address() {
    let world = world();
    let sent = Frame::tcp("192.0.2.9:5000", "10.1.0.1:30090", SYN, b"");
    let mut frame = sent.clone();
    ingress(&mut frame, &world, Scope::External);
    egress_uplink(&mut frame, &world);
    let mut error = Frame::error("10.244.9.9", "10.1.0.1", &frame);
    ingress(&mut error, &world, Scope::External);
    egress_uplink(&mut error, &world);
    assert!(error.valid() && error.ends().starts_with("10.1.0.1:") && error.ends().contains("> 192.0.2.9:"));
    assert_eq!(quoted(&error), quoted(&Frame::error("10.1.0.1", "192.0.2.9", &sent)));
}

#[test]
fn errors_about_other_packets_pass_as_they_are() {
    let world = world();
    let mut error = Frame::error("10.244.0.7", "10.244.0.9", &Frame::udp("10.244.0.9:7", "10.244.0.7:5353", b"?"));
    let before = error.clone();
    assert_eq!((egress_pod(&mut error, &world), error), (Verdict::Pass, before));
}

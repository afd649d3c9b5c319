//! SCTP through services, masquerade and refusals, with its own checksum.

use proptest::prelude::*;
use sluice_ebpf_common::{Reason, Scope, protocol};

use super::frame::{Frame, crc32c};
use super::world::World;
use crate::{Verdict, egress_pod, egress_uplink, ingress, refuse};

const CLIENT: &str = "192.0.2.9:5000";
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;
const ABORT: u8 = 6;
const SHUTDOWN_COMPLETE: u8 = 14;

fn world() -> World {
    let mut world = World::new();
    world.serve(protocol::SCTP, Scope::External, "*:30080", &["10.244.0.5:3868", "10.244.0.6:3868"]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:3868"]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:81", &["10.244.0.5:3868"]);
    world.serve(protocol::SCTP, Scope::Internal, "[fd96::10]:80", &["[fd44::5]:3868"]);
    world.serve(protocol::SCTP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    world.serve(protocol::SCTP, Scope::Internal, "10.96.0.13:80", &[]);
    world.serve(protocol::SCTP, Scope::Internal, "[fd96::13]:80", &[]);
    world
}

#[test]
fn an_association_goes_there_and_back() {
    // Client, service, scope, where it goes, backend.
    let cases = [
        (CLIENT, "10.1.0.1:30080", Scope::External, "10.244.0.5:3868"),
        ("10.244.0.9:7", "10.96.0.10:80", Scope::Internal, "10.244.0.5:3868"),
        ("[fd44::9]:7", "[fd96::10]:80", Scope::Internal, "[fd44::5]:3868"),
    ];
    for (client, service, scope, backend) in cases {
        let world = world();
        for (chunk, payload) in [(INIT, &b""[..]), (DATA, b"some payload"), (DATA, &[7; 1400])] {
            let mut frame = Frame::sctp(client, service, chunk, payload);
            assert_eq!(ingress(&mut frame, &world, scope), Verdict::Pass);
            assert_eq!(frame.ends(), std::format!("{client} > {backend}"));
            assert!(frame.valid(), "{client} > {service}");
        }
        let mut answer = Frame::sctp(backend, client, INIT_ACK, b"cookie");
        let verdict = if scope == Scope::External { egress_uplink } else { egress_pod }(&mut answer, &world);
        assert_eq!((verdict, answer.ends()), (Verdict::Pass, std::format!("{service} > {client}")));
        assert!(answer.valid());
    }
    // Another protocol's port is another service's.
    let mut frame = Frame::sctp("10.244.0.9:7", "10.96.0.10:81", INIT, b"");
    let before = frame.clone();
    assert_eq!((ingress(&mut frame, &world(), Scope::Internal), frame), (Verdict::Pass, before));
}

#[test]
fn associations_start_end_and_start_again_as_tcp_connections_do() {
    let mut world = world();
    world.random = [0, u32::MAX].into();
    let send = |world: &World, chunk: u8| {
        let mut frame = Frame::sctp(CLIENT, "10.1.0.1:30080", chunk, b"");
        ingress(&mut frame, world, Scope::External);
        frame.ends()
    };
    let (first, second) = ("192.0.2.9:5000 > 10.244.0.5:3868", "192.0.2.9:5000 > 10.244.0.6:3868");
    assert_eq!([send(&world, INIT), send(&world, INIT), send(&world, DATA)], [first; 3]);
    world.retire(1);
    assert_eq!(send(&world, DATA), first, "an open association is not cut");
    assert_eq!(send(&world, INIT), second, "a new one does not go to a dead backend");
    assert_eq!(send(&world, SHUTDOWN_COMPLETE), second);
    assert_eq!(send(&world, INIT), first, "after its end the port starts over");
}

#[test]
fn pods_reach_the_outside_and_remote_backends_see_the_node() {
    let world = world();
    let mut sent = Frame::sctp("10.244.0.5:1000", "192.0.2.9:36412", INIT, b"");
    let original = sent.clone();
    assert_eq!(egress_uplink(&mut sent, &world), Verdict::Pass);
    let ends = sent.ends();
    let source = ends.split_once(" > ").unwrap().0;
    assert!(source.starts_with("10.1.0.1:6") && sent.valid(), "{ends}");
    let mut answer = Frame::sctp("192.0.2.9:36412", source, INIT_ACK, b"");
    assert_eq!(ingress(&mut answer, &world, Scope::External), Verdict::Pass);
    assert_eq!(answer.ends(), "192.0.2.9:36412 > 10.244.0.5:1000");
    assert!(answer.valid());
    let mut error = Frame::error("192.0.2.1", "10.1.0.1", &sent);
    assert_eq!(ingress(&mut error, &world, Scope::External), Verdict::Pass);
    assert!(error.valid() && error.ends().contains("> 10.244.0.5"), "{}", error.ends());
    assert_eq!(error.bytes[42..66], original.bytes[14..38]);

    let mut frame = Frame::sctp(CLIENT, "10.1.0.1:30090", INIT, b"");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
    assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
    assert!(frame.valid() && frame.ends().starts_with("10.1.0.1:6") && frame.ends().ends_with("> 10.244.9.9:80"));
}

#[test]
fn what_a_card_has_yet_to_sum_stays_so() {
    let mut frame = Frame::sctp("10.244.0.9:7", "10.96.0.10:80", INIT, b"");
    frame.bytes[42..46].fill(0);
    assert_eq!(ingress(&mut frame, &world(), Scope::Internal), Verdict::Pass);
    assert_eq!(frame.ends(), "10.244.0.9:7 > 10.244.0.5:3868");
    assert_eq!(frame.bytes[42..46], [0; 4]);
}

#[test]
fn padding_of_the_frame_is_not_summed() {
    let mut frame = Frame::sctp("10.244.0.9:7", "10.96.0.10:80", INIT, b"");
    let length = frame.bytes.len();
    frame.bytes.extend([0xee; 10]);
    ingress(&mut frame, &world(), Scope::Internal);
    frame.bytes.truncate(length);
    assert!(frame.valid());
}

#[test]
fn a_fragment_whose_checksum_cannot_be_known_is_dropped_and_counted() {
    let world = world();
    let mut frame = Frame::sctp("10.244.0.9:7", "10.96.0.10:80", INIT, b"");
    frame.bytes[20] |= 0x20;
    frame.fix_ip_header();
    assert_eq!(ingress(&mut frame, &world, Scope::Internal), Verdict::Drop(Reason::SctpFragment));
    assert_eq!(*world.reasons.borrow(), [Reason::SctpFragment]);
}

#[test]
fn nobody_answers_with_an_abort() {
    // Client, service, chunk, what the answer reflects: the tag that an INIT asks for, or the packet's own.
    let cases = [
        ("10.244.0.9:7", "10.96.0.13:80", INIT, ([0xaa, 0xbb, 0xcc, 0xdd], 0)),
        ("10.244.0.9:7", "10.96.0.13:80", DATA, ([1, 2, 3, 4], 1)),
        ("[fd44::9]:7", "[fd96::13]:80", INIT, ([0xaa, 0xbb, 0xcc, 0xdd], 0)),
    ];
    for (client, service, chunk, (tag, reflected)) in cases {
        let world = world();
        let original = Frame::sctp(client, service, chunk, &[1; 40]);
        let mut frame = original.clone();
        assert_eq!(ingress(&mut frame, &world, Scope::Internal), Verdict::Refuse(Reason::NoEndpoint));
        assert_eq!(refuse(&mut frame, &world, 0), Verdict::Answer);
        assert!(frame.valid(), "{frame:?}");
        assert_eq!(frame.ends(), std::format!("{service} > {client}"));
        let packet = &frame.bytes[frame.transport()..];
        assert_eq!((&packet[4..8], &packet[12..]), (&tag[..], &[ABORT, reflected, 0, 4][..]));
        assert_eq!((&frame.bytes[0..6], &frame.bytes[6..12]), (&original.bytes[6..12], &original.bytes[0..6]));
    }
    let mut abort = Frame::sctp("10.244.0.9:7", "10.96.0.13:80", ABORT, b"");
    ingress(&mut abort, &world(), Scope::Internal);
    assert!(matches!(refuse(&mut abort, &world(), 0), Verdict::Drop(_)), "an ABORT is never answered");
}

#[test]
fn the_reference_sums_as_the_standard_does() {
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
}

proptest! {
    #[test]
    fn any_packet_keeps_a_right_checksum(payload in prop::collection::vec(any::<u8>(), 0..9000), port in 1_u16..) {
        let mut frame = Frame::sctp(&std::format!("10.244.0.9:{port}"), "10.96.0.10:80", DATA, &payload);
        ingress(&mut frame, &world(), Scope::Internal);
        prop_assert!(frame.ends().ends_with("10.244.0.5:3868") && frame.valid());
    }
}

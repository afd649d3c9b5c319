//! Direct server return: a load balancer's packets inside others, and what the backend's node makes of them.

use std::collections::BTreeSet;
use std::format;
use std::string::ToString;

use sluice_ebpf_common::{Flow, Frontend, Reason, Scope, limits, protocol};

use super::frame::{ACK, FIN, Frame, ONWARD, SYN, sum, wire};
use super::world::{UPLINK, World};
use crate::{Verdict, Way, carry_out, egress_uplink, ingress, uplink};

const CLIENT: &str = "192.0.2.9:5000";
const CLIENT6: &str = "[fd02::9]:5000";
const SERVICE: &str = "198.51.100.7:80";
const SERVICE6: &str = "[fd07::7]:80";

/// The load balancer is the node 10.1.0.3, and the backend's node 10.1.0.1 knows it.
fn nodes() -> (World, World) {
    let (mut balancer, mut backend) = (World::new(), World::new());
    balancer.settings.families[0].node = wire("10.1.0.3");
    balancer.settings.families[1].node = wire("fd01::3");
    for (number, service, pod) in [
        (protocol::TCP, SERVICE, "10.244.0.5:8080"),
        (protocol::UDP, "198.51.100.7:53", "10.244.0.5:5353"),
        (protocol::SCTP, "198.51.100.7:38", "10.244.0.5:38"),
        (protocol::TCP, "*:30080", "10.244.0.5:8080"),
        (protocol::TCP, SERVICE6, "[fd44:0:0:1::5]:8080"),
        (protocol::UDP, "[fd07::7]:53", "[fd44:0:0:1::5]:5353"),
    ] {
        balancer.serve(number, Scope::External, service, &[&format!("~{pod}")]);
        backend.serve(number, Scope::External, service, &[pod]);
        balancer.change(service, |frontend| frontend.flags |= Frontend::DIRECT);
    }
    (balancer, backend)
}

/// What the load balancer's programs on the link make of a packet.
fn balance(frame: &mut Frame, world: &World) -> Verdict {
    let verdict = ingress(frame, world, Scope::External);
    carry_out(frame, world, verdict)
}

fn inner(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    let outer = if frame.bytes[12] == 8 { 20 } else { 40 };
    frame.bytes.drain(14..14 + outer);
    frame
}

fn sent(world: &World, frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    assert_eq!(balance(&mut frame, world), Verdict::Onward(ONWARD.0), "{}", frame.ends());
    frame
}

fn tcp(client: &str, service: &str) -> [Frame; 3] {
    [SYN, ACK, ACK].map(|flags| Frame::tcp(client, service, flags, b"odd"))
}

fn udp(client: &str, service: &str) -> [Frame; 3] {
    [b"?"; 3].map(|payload| Frame::udp(client, service, payload))
}

#[test]
fn packets_travel_inside_others_and_answers_go_straight_back() {
    let cases = [
        (tcp(CLIENT, SERVICE), SERVICE, "10.244.0.5:8080"),
        (udp(CLIENT, "198.51.100.7:53"), "198.51.100.7:53", "10.244.0.5:5353"),
        (
            [1, 10, 0].map(|chunk| Frame::sctp(CLIENT, "198.51.100.7:38", chunk, b"")),
            "198.51.100.7:38",
            "10.244.0.5:38",
        ),
        (tcp(CLIENT6, SERVICE6), SERVICE6, "[fd44:0:0:1::5]:8080"),
        (udp(CLIENT6, "[fd07::7]:53"), "[fd07::7]:53", "[fd44:0:0:1::5]:5353"),
        // A port of the load balancer's node, on its own address.
        (tcp(CLIENT, "10.1.0.1:30080"), "10.1.0.1:30080", "10.244.0.5:8080"),
    ];
    for (packets, service, pod) in cases {
        let (balancer, backend) = nodes();
        let client = if packets[0].bytes[12] == 8 { CLIENT } else { CLIENT6 };
        for packet in packets {
            let mut frame = sent(&balancer, &packet);
            let carried = inner(&frame);
            assert_eq!((carried.ends(), carried.life()), (packet.ends(), packet.life() - 1));
            assert!(carried.valid());
            outer_is_right(&frame, pod);
            assert_eq!(ingress(&mut frame, &backend, Scope::External), Verdict::Pass);
            assert_eq!(frame.ends(), format!("{client} > {pod}"));
            assert!(frame.valid());
            let mut answer = match packet.protocol() {
                protocol::TCP => Frame::tcp(pod, client, SYN | ACK, b"odd"),
                protocol::SCTP => Frame::sctp(pod, client, 2, b"odd"),
                _ => Frame::udp(pod, client, b"odd"),
            };
            assert_eq!(egress_uplink(&mut answer, &backend), Verdict::Pass);
            assert_eq!(answer.ends(), format!("{service} > {client}"));
            assert!(answer.valid());
        }
        assert_eq!((balancer.flows.borrow().len(), backend.flows.borrow().len()), (1, 2));
        let counters = [&balancer, &backend].map(|world| world.services.borrow()[&1]);
        assert_eq!(counters.map(|counters| (counters.connections, counters.packets)), [(1, 3), (1, 6)]);
        assert_eq!(balancer.reasons.borrow().len() + backend.reasons.borrow().len(), 0);
    }
}

/// From the load balancer's address to the pod's; the pod's port where it belongs.
fn outer_is_right(frame: &Frame, pod: &str) {
    let (address, port) = pod.rsplit_once(':').unwrap();
    let (address, port) = (address.trim_matches(['[', ']']), port.parse::<u16>().unwrap());
    let ends = frame.ends();
    let (from, to) = ends.split_once(" > ").unwrap();
    let bare = |end: &str| end.rsplit_once(':').unwrap().0.trim_matches(['[', ']']).to_string();
    assert_eq!((bare(to), frame.life()), (address.to_string(), 64));
    let half = |at: usize| u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]]);
    if frame.bytes[12] == 8 {
        assert_eq!((bare(from), frame.protocol()), ("10.1.0.3".to_string(), protocol::IPV4));
        assert_eq!((half(18), half(20)), (port, 0x4000), "never cut, so the identification is free");
        assert_eq!(usize::from(half(16)), frame.bytes.len() - 14);
        assert_eq!(sum(&frame.bytes[14..34], 0), 0);
    } else {
        assert_eq!((bare(from), frame.protocol()), ("fd01::3".to_string(), protocol::IPV6));
        assert_eq!((half(16), frame.bytes[15] & 15), (port, 0));
        assert_eq!(usize::from(half(18)), frame.bytes.len() - 54);
    }
}

#[test]
fn the_driver_does_the_same() {
    let cases = [
        Frame::tcp(CLIENT, SERVICE, ACK, b""),
        Frame::udp(CLIENT, "198.51.100.7:53", b"?"),
        Frame::tcp(CLIENT6, SERVICE6, ACK, b"six"),
        Frame::udp(CLIENT6, "[fd07::7]:53", &[7; 99]),
    ];
    for mut packet in cases {
        let (balancer, _) = nodes();
        // A class of traffic and a congestion mark.
        if packet.bytes[12] == 8 {
            packet.bytes[15] = 0xb9;
            packet.fix_ip_header();
        } else {
            (packet.bytes[14], packet.bytes[15]) = (0x6b, 0x90);
        }
        let expected = sent(&nodes().0, &packet);
        for round in 0..3 {
            let mut frame = packet.clone();
            assert_eq!(uplink(&mut frame, &balancer), Way::Out(UPLINK), "{round}");
            assert_eq!(frame.bytes[..6], [6, 0, 0, 0, 0, UPLINK as u8]);
            assert_eq!(frame.bytes[12..], expected.bytes[12..]);
            assert_eq!(frame.bytes[15], packet.bytes[15], "the class is taken over");
        }
        assert_eq!((balancer.routed.get(), balancer.flows.borrow().len()), (1, 1));
        // The programs on the link go on with the same flow.
        assert_eq!(sent(&balancer, &packet).bytes[14..], expected.bytes[14..]);
        assert_eq!(balancer.flows.borrow().len(), 1);
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let (mut balancer, _) = nodes();
    for (from, to, room) in [(CLIENT, "198.51.100.7:53", 1480), (CLIENT6, "[fd07::7]:53", 1460)] {
        let headers = if from == CLIENT { 28 } else { 48 };
        let fits = Frame::udp(from, to, &std::vec![0; room - headers]);
        sent(&balancer, &fits);
        let mut long = Frame::udp(from, to, &std::vec![0; room - headers + 1]);
        assert_eq!(uplink(&mut long, &balancer), Way::Stack, "the driver leaves it to the programs on the link");
        let mut told = long.clone();
        assert_eq!(balance(&mut told, &balancer), Verdict::Answer);
        assert!(told.valid());
        let (client, service) = (from.rsplit_once(':').unwrap().0, to.rsplit_once(':').unwrap().0);
        assert!(told.ends().starts_with(service) && told.ends().contains(&format!("> {client}")), "{}", told.ends());
        let at = told.transport();
        let kind = if from == CLIENT { [3, 4] } else { [2, 0] };
        assert_eq!(told.bytes[at..at + 2], kind);
        assert_eq!(told.bytes[at + 4..at + 8], (room as u32).to_be_bytes());
        assert_eq!(told.bytes[at + 8..at + 36], long.bytes[14..42], "what it is about");
    }
    assert_eq!(balancer.reasons.borrow()[..], [Reason::TooBig, Reason::TooBig]);
    // No packet for the driver is longer than its link allows.
    balancer.mtu = 1000;
    let long = |length: usize| Frame::udp("192.0.2.9:5001", "198.51.100.7:53", &std::vec![0; length - 28]);
    assert_eq!(uplink(&mut long(980), &balancer), Way::Out(UPLINK));
    assert_eq!(uplink(&mut long(981), &balancer), Way::Stack);
}

#[test]
fn packets_are_taken_from_nodes_for_own_pods_and_known_services_alone() {
    let (mut balancer, mut backend) = nodes();
    balancer.serve(protocol::TCP, Scope::External, "198.51.100.8:80", &["~10.244.0.5:80"]);
    balancer.change("198.51.100.8:80", |frontend| frontend.flags |= Frontend::DIRECT);
    balancer.serve(protocol::TCP, Scope::External, "198.51.100.9:80", &["~10.244.7.7:80"]);
    balancer.change("198.51.100.9:80", |frontend| frontend.flags |= Frontend::DIRECT);
    backend.ranges = std::vec![(wire("192.0.2.0"), super::frame::mask("255.255.255.0"))];
    backend.change("198.51.100.7:53", |frontend| frontend.flags |= Frontend::RANGES);
    let tunnel = |packet: Frame| sent(&balancer, &packet);
    let forged = |port, packet: &Frame| Frame::carrying("192.0.2.66", "10.244.0.5", port, packet);
    let good = tunnel(Frame::tcp(CLIENT, SERVICE, SYN, b""));
    let mut options = good.clone();
    options.bytes.splice(34..34, [1, 1, 1, 0]);
    options.bytes[14] = 0x46;
    options.fix_ip_header();
    let cases = [
        (forged(8080, &Frame::tcp(CLIENT, SERVICE, SYN, b"")), Verdict::Drop(Reason::Stranger)),
        (tunnel(Frame::tcp(CLIENT, "198.51.100.8:80", SYN, b"")), Verdict::Drop(Reason::NotServed)),
        (options, Verdict::Drop(Reason::Rewrite)),
        (tunnel(Frame::udp("203.0.113.9:1", "198.51.100.7:53", b"?")), Verdict::Drop(Reason::SourceRange)),
        (tunnel(Frame::udp("192.0.2.77:1", "198.51.100.7:53", b"?")), Verdict::Pass),
    ];
    for (number, (mut frame, expected)) in cases.into_iter().enumerate() {
        let original = frame.clone();
        assert_eq!(ingress(&mut frame, &backend, Scope::External), expected, "case {number}");
        let reasons = core::mem::take(&mut *backend.reasons.borrow_mut());
        match expected {
            Verdict::Drop(reason) => assert_eq!((reasons, frame), (std::vec![reason], original), "case {number}"),
            _ => assert_eq!(reasons, []),
        }
    }
    // Tunnels that pods have themselves, and what is for pods elsewhere.
    let mut elsewhere = tunnel(Frame::tcp(CLIENT, "198.51.100.9:80", SYN, b""));
    let mut theirs = forged(80, &Frame::tcp(CLIENT, "198.51.100.8:80", SYN, b""));
    for frame in [&mut elsewhere, &mut theirs] {
        let original = frame.clone();
        assert_eq!(ingress(frame, &backend, Scope::External), Verdict::Pass);
        assert_eq!(*frame, original);
    }
    // From a pod it is no load balancer's.
    let mut good = good;
    let original = good.clone();
    assert_eq!(ingress(&mut good, &backend, Scope::Internal), Verdict::Pass);
    assert_eq!((good, backend.reasons.borrow().len()), (original, 0));
}

#[test]
fn fragments_travel_inside_others_too() {
    for (from, to, pod) in
        [(CLIENT, "198.51.100.7:53", "10.244.0.5:5353"), (CLIENT6, "[fd07::7]:53", "[fd44:0:0:1::5]:5353")]
    {
        let (balancer, backend) = nodes();
        let whole = Frame::udp(from, to, &[3; 300]);
        let parts = whole.fragments(64).map(|part| {
            let mut part = sent(&balancer, &part);
            assert_eq!(ingress(&mut part, &backend, Scope::External), Verdict::Pass);
            part
        });
        let arrived = Frame::whole(&parts);
        assert!(arrived.valid());
        assert_eq!(arrived.ends(), format!("{from} > {pod}"));
        // One that overtakes the first has no ports.
        let (_, late) = nodes();
        let mut part = sent(&balancer, &whole.fragments(64)[1]);
        assert_eq!(ingress(&mut part, &late, Scope::External), Verdict::Drop(Reason::Fragment));
    }
}

#[test]
fn a_congested_link_between_nodes_is_told_to_the_ends() {
    let (balancer, backend) = nodes();
    // Marks of the packet, of the outer one on arrival, of the packet then.
    for (own, outer, expected) in [(0b10, 0b11, 0b11), (0b01, 0b11, 0b11), (0b10, 0b10, 0b10), (0b00, 0b11, 0b00)] {
        let mut packet = Frame::tcp(CLIENT, SERVICE, ACK, b"x");
        packet.bytes[15] = 0xb8 | own;
        packet.fix_ip_header();
        let mut frame = sent(&balancer, &packet);
        assert_eq!(frame.bytes[15], 0xb8 | own);
        frame.bytes[15] = 0xb8 | outer;
        frame.fix_ip_header();
        assert_eq!(ingress(&mut frame, &backend, Scope::External), Verdict::Pass);
        assert_eq!(frame.bytes[15], 0xb8 | expected);
        assert!(frame.valid());
        let mut packet = Frame::tcp(CLIENT6, SERVICE6, ACK, b"x");
        packet.bytes[15] = own << 4;
        let mut frame = sent(&balancer, &packet);
        frame.bytes[15] = outer << 4;
        assert_eq!(ingress(&mut frame, &backend, Scope::External), Verdict::Pass);
        assert_eq!(frame.bytes[15], expected << 4);
    }
}

fn two_backends() -> World {
    let (mut balancer, _) = nodes();
    balancer.serve(protocol::TCP, Scope::External, "198.51.100.7:81", &["~10.244.1.5:80", "~10.244.2.5:80"]);
    balancer.plan("198.51.100.7:81", &[0, 1, 0, 1, 0, 1, 0]);
    balancer.change("198.51.100.7:81", |frontend| frontend.flags |= Frontend::DIRECT);
    balancer
}

/// Where a client's packet goes, by its number.
fn goes(world: &World, client: u16, flags: u8, driver: bool) -> u8 {
    let mut frame = Frame::tcp(&format!("192.0.2.9:{client}"), "198.51.100.7:81", flags, b"");
    if driver {
        assert_eq!(uplink(&mut frame, world), Way::Out(UPLINK));
    } else {
        assert_eq!(balance(&mut frame, world), Verdict::Onward(ONWARD.0));
    }
    frame.bytes[32]
}

#[test]
fn connections_keep_their_backend_when_the_table_changes_and_new_ones_follow_it() {
    for driver in [false, true] {
        let mut world = two_backends();
        let before: std::vec::Vec<u8> = (5000..5008).map(|client| goes(&world, client, SYN, driver)).collect();
        assert!(before.contains(&1) && before.contains(&2), "{before:?}");
        // The first backend takes no new connections any more.
        world.slab.extend([8]);
        let base = world.slab.len() as u32 - 1;
        world.change("198.51.100.7:81", |frontend| (frontend.base, frontend.count, frontend.table) = (base, 1, 0));
        world.generation += 1;
        let after: std::vec::Vec<u8> = (5000..5008).map(|client| goes(&world, client, ACK, driver)).collect();
        assert_eq!(before, after);
        // One that is sent again finds the connection that it began.
        let again: std::vec::Vec<u8> = (5000..5008).map(|client| goes(&world, client, SYN, driver)).collect();
        assert_eq!(before, again);
        assert!((6000..6008).all(|client| goes(&world, client, SYN, driver) == 2));
    }
}

#[test]
fn a_flood_and_a_full_table_go_by_the_table_of_backends_alone() {
    for (driver, flood) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut world = two_backends();
        let expected: std::vec::Vec<u8> =
            (5000..5020).map(|client| goes(&two_backends(), client, SYN, false)).collect();
        if flood {
            world.made(limits::NEW_FLOWS - 5);
        } else {
            world.flow_limit = 5;
        }
        for round in 0..2 {
            let flags = if round == 0 { SYN } else { ACK };
            let now: std::vec::Vec<u8> = (5000..5020).map(|client| goes(&world, client, flags, driver)).collect();
            assert_eq!(now, expected, "{driver} {flood}");
        }
        assert_eq!(world.flows.borrow().len(), 5, "{driver} {flood}");
        assert_eq!(world.services.borrow()[&1].connections, 5, "{driver} {flood}");
        assert_eq!(world.reasons.borrow()[..], [Reason::Unremembered; 15]);
        // In the next second they are remembered.
        (world.now, world.flow_limit) = (world.now + 1, 100);
        world.jiffies += 256;
        (5000..5020).for_each(|client| assert_eq!(goes(&world, client, ACK, driver), expected[client as usize - 5000]));
        assert_eq!((world.flows.borrow().len(), world.services.borrow()[&1].connections), (20, 20));
    }
}

#[test]
fn what_opens_a_connection_is_noted_for_the_next_packet_alone() {
    for driver in [false, true] {
        let mut world = two_backends();
        world.flow_limit = 8;
        let before: std::vec::Vec<u8> = (5000..5008).map(|client| goes(&world, client, SYN, driver)).collect();
        // A flood that opens connections writes nothing but such notes, and counts none of them.
        assert!((6000..9000).all(|client| matches!(goes(&world, client, SYN, driver), 1 | 2)));
        assert_eq!((world.flows.borrow().len(), world.services.borrow()[&1].connections), (0, 0));
        assert_eq!(world.reasons.borrow()[..], []);
        let after: std::vec::Vec<u8> = (5000..5008).map(|client| goes(&world, client, ACK, driver)).collect();
        assert_eq!((before, world.flows.borrow().len()), (after, 8), "the table leads there, too");
        // A backend that is gone is no longer gone to.
        let first = goes(&world, 5100, SYN, driver);
        world.flows.borrow_mut().clear();
        world.retire(if first == 1 { 7 } else { 8 });
        world.generation += 1;
        let base = world.slab.len() as u32;
        world.slab.extend([if first == 1 { 8 } else { 7 }]);
        world.change("198.51.100.7:81", |frontend| (frontend.base, frontend.count, frontend.table) = (base, 1, 0));
        assert_ne!(goes(&world, 5100, ACK, driver), first);
    }
}

#[test]
fn who_cannot_take_a_packet_out_gets_it_with_the_nodes_address() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 4] = [
        ("~203.0.113.5:80", |_| {}),
        ("~10.244.9.9:80", |world| world.settings.families[0].node = wire("0.0.0.0")),
        ("~10.244.9.9:80", |world| world.change("198.51.100.7:81", |frontend| frontend.flags = 0)),
        ("~10.244.9.9:80", |world| world.settings.families[0].cluster_mask = wire("::")),
    ];
    for (number, (backend, change)) in cases.into_iter().enumerate() {
        let (mut world, _) = nodes();
        world.serve(protocol::TCP, Scope::External, "198.51.100.7:81", &[backend]);
        world.change("198.51.100.7:81", |frontend| frontend.flags |= Frontend::DIRECT);
        change(&mut world);
        let mut frame = Frame::tcp(CLIENT, "198.51.100.7:81", SYN, b"");
        assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass, "case {number}");
        assert_eq!(frame.ends(), format!("{CLIENT} > {}", &backend[1..]));
        assert_eq!(frame.mark, crate::MARK_NEEDS_SOURCE);
    }
    // On this node: no packet inside another one.
    let (_, mut near) = nodes();
    near.change(SERVICE, |frontend| frontend.flags |= Frontend::DIRECT);
    let mut frame = Frame::tcp(CLIENT, SERVICE, SYN, b"");
    assert_eq!(ingress(&mut frame, &near, Scope::External), Verdict::Pass);
    assert_eq!((frame.ends(), frame.mark), (format!("{CLIENT} > 10.244.0.5:8080"), 0));
    // Another node, by its own address: its sockets answer there.
    let (mut world, _) = nodes();
    world.serve(protocol::TCP, Scope::External, "198.51.100.7:81", &["~10.1.0.3:6443"]);
    world.change("198.51.100.7:81", |frontend| frontend.flags |= Frontend::DIRECT);
    sent(&world, &Frame::tcp(CLIENT, "198.51.100.7:81", SYN, b""));
}

#[test]
fn a_lost_route_is_told() {
    let (mut world, _) = nodes();
    world.serve(protocol::TCP, Scope::External, "198.51.100.7:81", &["~10.244.8.8:80"]);
    world.change("198.51.100.7:81", |frontend| frontend.flags |= Frontend::DIRECT);
    let mut frame = Frame::tcp(CLIENT, "198.51.100.7:81", SYN, b"");
    assert_eq!(balance(&mut frame, &world), Verdict::Drop(Reason::NoWay));
    assert_eq!(world.reasons.borrow()[..], [Reason::NoWay]);
}

#[test]
fn a_connection_keeps_the_mode_that_it_began_with() {
    let (mut world, _) = nodes();
    let change = |world: &mut World, flags| world.change("198.51.100.7:53", |frontend| frontend.flags = flags);
    let frame = |port: u16| Frame::udp(&format!("192.0.2.9:{port}"), "198.51.100.7:53", b"?");
    let plain = |world: &World, port| {
        let mut frame = frame(port);
        assert_eq!(ingress(&mut frame, world, Scope::External), Verdict::Pass);
        frame.mark == crate::MARK_NEEDS_SOURCE
    };
    sent(&world, &frame(1));
    change(&mut world, 0);
    sent(&world, &frame(1));
    assert!(plain(&world, 2));
    change(&mut world, Frontend::DIRECT);
    assert!(plain(&world, 2));
    sent(&world, &frame(1));
    sent(&world, &frame(3));
}

#[test]
fn the_load_balancers_choice_holds_on_the_backends_node() {
    let (balancer, mut backend) = nodes();
    let arrive = |world: &World, flags: u8| {
        let mut frame = sent(&balancer, &Frame::tcp(CLIENT, SERVICE, flags, b""));
        let verdict = ingress(&mut frame, world, Scope::External);
        (verdict, frame.ends())
    };
    let target = |pod: &str| (Verdict::Pass, format!("{CLIENT} > {pod}"));
    // This node would have chosen another pod.
    backend.change(SERVICE, |frontend| frontend.base = 3);
    assert_eq!(arrive(&backend, SYN), target("10.244.0.5:8080"));
    assert_eq!(arrive(&backend, ACK | FIN), target("10.244.0.5:8080"));
    let closed = |world: &World| world.flows.borrow().values().any(|flow| flow.flags & Flow::FIN != 0);
    assert!(closed(&backend));
    assert_eq!(arrive(&backend, SYN), target("10.244.0.5:8080"));
    assert!(!closed(&backend), "a new connection from the same port");
    // The load balancer chose anew.
    for flow in backend.flows.borrow_mut().values_mut().filter(|flow| flow.port == 8080_u16.to_be()) {
        flow.address = wire("10.244.0.6");
    }
    assert_eq!(arrive(&backend, ACK), target("10.244.0.5:8080"));
    // The service is gone: its connections go on, and no new ones.
    backend.frontends.clear();
    assert_eq!(arrive(&backend, ACK), target("10.244.0.5:8080"));
    backend.flows.borrow_mut().clear();
    assert_eq!(arrive(&backend, ACK).0, Verdict::Drop(Reason::NotServed));
}

#[test]
fn errors_about_answers_find_the_pod_by_way_of_the_load_balancer() {
    let (balancer, _) = nodes();
    tcp(CLIENT, SERVICE).iter().for_each(|packet| drop(sent(&balancer, packet)));
    // A router on the way to the client cannot pass an answer on. It is told to the service's address.
    let mut error = Frame::error("203.0.113.1", "198.51.100.7", &Frame::tcp(SERVICE, CLIENT, ACK, b"long"));
    assert_eq!(ingress(&mut error, &balancer, Scope::External), Verdict::Pass);
    assert!(error.valid() && error.ends().contains("> 10.244.0.5"), "{}", error.ends());
    let quoted = Frame::tcp("10.244.0.5:8080", CLIENT, ACK, b"long");
    let at = error.transport() + 8;
    assert_eq!(error.bytes[at + 12..at + 24], quoted.bytes[26..38]);
}

#[test]
fn errors_about_answers_find_the_pod_by_way_of_any_load_balancer() {
    let v4 = (SERVICE, "192.0.2.9", "203.0.113.1", ["~10.244.0.5:8080", "~10.244.0.6:8080", "~10.244.0.8:8080"]);
    let pods6 = ["~[fd44:0:0:1::5]:8080", "~[fd44:0:0:1::6]:8080", "~[fd44:0:0:1::8]:8080"];
    for (service, client, router, pods) in [v4, (SERVICE6, "[fd02::9]", "fd03::1", pods6)] {
        let balancer = || {
            let (mut world, _) = nodes();
            world.serve(protocol::TCP, Scope::External, service, &pods);
            world.change(service, |frontend| frontend.flags |= Frontend::DIRECT);
            world
        };
        let told = |world: &World, client: &str| {
            let address = if service == SERVICE { "198.51.100.7" } else { "fd07::7" };
            let error = Frame::error(router, address, &Frame::tcp(service, client, ACK, b"long"));
            let mut after = error.clone();
            assert_eq!(ingress(&mut after, world, Scope::External), Verdict::Pass);
            assert!(after.valid());
            (error, after)
        };
        let mut chosen = BTreeSet::new();
        for port in 5000..5040 {
            let client = format!("{client}:{port}");
            let pod = sent(&balancer(), &Frame::tcp(&client, service, SYN, b"")).addresses().1;
            // It comes to a load balancer that never saw the connection.
            let other = balancer();
            assert_eq!(told(&other, &client).1.addresses().1, pod);
            assert!(other.flows.borrow().is_empty());
            chosen.insert(pod);
        }
        assert_eq!(chosen.len(), 3, "{chosen:?}");
        // Answers of a service without direct return would have come through here.
        let mut through = balancer();
        through.change(service, |frontend| frontend.flags &= !Frontend::DIRECT);
        let (before, after) = told(&through, &format!("{client}:5000"));
        assert_eq!(before.bytes, after.bytes);
    }
}

#[test]
fn the_kernel_is_asked_for_the_way_once_a_tick_or_when_it_changes() {
    let (mut world, _) = nodes();
    let send = |world: &World, length: usize| {
        let before = world.routed.get();
        for client in 5000..5010 {
            let mut frame = Frame::udp(&format!("192.0.2.9:{client}"), "198.51.100.7:53", &std::vec![0; length]);
            assert_eq!(uplink(&mut frame, world), Way::Out(UPLINK));
            assert_eq!(frame.bytes[..6], [6, 0, 0, 0, 0, UPLINK as u8]);
        }
        world.routed.get() - before
    };
    assert_eq!((send(&world, 9), send(&world, 9)), (1, 0));
    world.jiffies += 256;
    assert_eq!((send(&world, 9), send(&world, 9)), (1, 0), "a tick");
    world.settings.epoch += 1;
    assert_eq!((send(&world, 9), send(&world, 9)), (1, 0), "another route");
    let mut other = Frame::tcp(CLIENT, SERVICE, SYN, b"");
    assert_eq!(uplink(&mut other, &world), Way::Out(UPLINK));
    assert_eq!(send(&world, 1400), 0, "what is known of one packet holds for longer ones that fit");
    // Another backend in the same place.
    world.serve(protocol::UDP, Scope::External, "198.51.100.9:53", &["~10.244.9.9:53"]);
    let id = world.backends.len() as u32;
    let found = world.backends.remove(&id).unwrap();
    world.backends.insert(id + 4, found);
    *world.slab.last_mut().unwrap() = id + 4;
    world.change("198.51.100.9:53", |frontend| frontend.flags |= Frontend::DIRECT);
    let mut frame = Frame::udp(CLIENT, "198.51.100.9:53", b"?");
    assert_eq!(uplink(&mut frame, &world), Way::Out(super::world::INWARD));
}

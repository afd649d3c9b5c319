//! Packets from outside that do not pass through the kernel's stack, and the cache of what was decided about them.

use std::string::{String, ToString};

use sluice_ebpf_common::{Flow, Reason, Scope, protocol};

use super::frame::{ACK, FIN, Frame, SYN};
use super::world::{INWARD, UPLINK, World};
use crate::{Way, egress_uplink, ingress, uplink};

const CLIENT: &str = "192.0.2.9:5000";

fn shop() -> World {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::External, "*:30080", &["10.244.0.5:80"]);
    world.serve(protocol::UDP, Scope::External, "*:30053", &["~10.244.9.9:53"]);
    world.serve(protocol::TCP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    world.serve(protocol::TCP, Scope::External, "*:30070", &[]);
    world.serve(protocol::TCP, Scope::External, "[*]:30080", &["~[fd44:0:0:2::5]:8080"]);
    world
}

fn ends(frame: &Frame) -> (String, String) {
    frame.ends().split_once(" > ").map(|(from, to)| (from.to_string(), to.to_string())).unwrap()
}

/// Out towards the backend and back, some times over.
fn there_and_back(client: &str, service: &str, node: &str, backend: &str) {
    let world = shop();
    for round in 0..4_u8 {
        let mut frame = Frame::tcp(client, service, if round == 0 { SYN } else { ACK }, &[round; 9]);
        assert_eq!(uplink(&mut frame, &world), Way::Out(INWARD));
        let (source, destination) = ends(&frame);
        assert!(source.starts_with(node) && destination == backend && frame.valid(), "{source} {destination}");
        assert_eq!(frame.bytes[..6], [6, 0, 0, 0, 0, INWARD as u8]);
        assert_eq!(frame.life(), 63);
        let mut answer = Frame::tcp(backend, &source, if round == 0 { SYN | ACK } else { ACK }, &[round; 8]);
        assert_eq!(uplink(&mut answer, &world), Way::Out(UPLINK));
        assert_eq!(ends(&answer), (service.to_string(), client.to_string()));
        assert!(answer.valid());
    }
    assert_eq!(world.flows.borrow().len(), 2);
    assert!(world.routed.get() <= 3, "the first packet each way, and the first one that does not open a connection");
}

#[test]
fn a_backend_elsewhere_is_reached_without_the_stack() {
    there_and_back(CLIENT, "10.1.0.1:30090", "10.1.0.1:6", "10.244.9.9:80");
    there_and_back("[fd02::9]:5000", "[fd01::1]:30080", "[fd01::1]:6", "[fd44:0:0:2::5]:8080");
}

#[test]
fn the_stack_does_the_same_to_the_same_connection() {
    let world = shop();
    let mut first = Frame::udp(CLIENT, "10.1.0.1:30053", b"?");
    assert_eq!(uplink(&mut first, &world), Way::Out(INWARD));
    let mut second = Frame::udp(CLIENT, "10.1.0.1:30053", b"?");
    ingress(&mut second, &world, Scope::External);
    egress_uplink(&mut second, &world);
    assert_eq!(first.ends(), second.ends());
    let (source, _) = ends(&first);
    let mut answer = Frame::udp("10.244.9.9:53", &source, b"!");
    ingress(&mut answer, &world, Scope::External);
    egress_uplink(&mut answer, &world);
    assert_eq!(answer.ends(), "10.1.0.1:30053 > 192.0.2.9:5000");
}

#[test]
fn a_backend_here_gets_its_packets_from_the_stack() {
    let world = shop();
    for flags in [SYN, ACK, ACK, ACK | FIN] {
        let mut frame = Frame::tcp(CLIENT, "10.1.0.1:30080", flags, b"x");
        assert_eq!(uplink(&mut frame, &world), Way::Stack);
        assert_eq!(frame.ends(), "192.0.2.9:5000 > 10.244.0.5:80");
        assert_eq!(frame.life(), 64, "the stack counts the hop");
        assert!(frame.valid());
    }
    let closed = world.flows.borrow().values().any(|flow| flow.flags & Flow::FIN != 0);
    assert!(closed, "what ends a connection is noted");
}

#[test]
fn what_is_left_to_the_stack_is_not_touched() {
    let mut fragment = Frame::udp(CLIENT, "10.1.0.1:30053", b"x");
    fragment.bytes[20] = 0x20;
    let mut dying = Frame::udp(CLIENT, "10.1.0.1:30053", b"x");
    dying.bytes[22] = 1;
    let mut options = Frame::udp(CLIENT, "10.1.0.1:30053", b"x");
    options.bytes[14] = 0x46;
    let cases = [
        fragment,
        dying,
        options,
        Frame::tcp(CLIENT, "10.1.0.1:22", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.1:30070", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.9:30090", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.1:61000", SYN, b""),
        Frame::udp(CLIENT, "10.1.0.1:30053", &[0; 1500]),
        Frame::echo("192.0.2.9", "10.1.0.1", 8, 61000),
        Frame::error("192.0.2.1", "10.1.0.1", &Frame::udp("10.1.0.1:61000", CLIENT, b"x")),
    ];
    for original in cases {
        let world = shop();
        let mut frame = original.clone();
        assert_eq!(uplink(&mut frame, &world), Way::Stack, "{}", original.ends());
        assert_eq!(frame, original);
        assert_eq!(world.reasons.borrow().len(), 0, "the stack counts what it refuses");
    }
    // A large packet of a connection whose small ones are sent on.
    let world = shop();
    assert_eq!(uplink(&mut Frame::udp(CLIENT, "10.1.0.1:30053", b"?"), &world), Way::Out(INWARD));
    assert_eq!(uplink(&mut Frame::udp(CLIENT, "10.1.0.1:30053", &[0; 1500]), &world), Way::Stack);
}

#[test]
fn answers_to_pods_pass_translated() {
    let world = shop();
    let mut sent = Frame::udp("10.244.0.5:1000", "192.0.2.9:443", b"?");
    egress_uplink(&mut sent, &world);
    let (source, _) = ends(&sent);
    let mut answer = Frame::udp("192.0.2.9:443", &source, b"!");
    assert_eq!(uplink(&mut answer, &world), Way::Stack);
    assert_eq!(answer.ends(), "192.0.2.9:443 > 10.244.0.5:1000");
    assert!(answer.valid());
}

#[test]
fn a_record_ends_with_its_tick_or_with_any_generation() {
    let mut world = shop();
    let send = |world: &World| {
        let before = world.routed.get();
        assert_eq!(uplink(&mut Frame::udp(CLIENT, "10.1.0.1:30053", b"?"), world), Way::Out(INWARD));
        world.routed.get() - before
    };
    assert_eq!((send(&world), send(&world), send(&world)), (1, 0, 0));
    world.jiffies += 256;
    world.now += 1;
    assert_eq!((send(&world), send(&world)), (1, 0), "once a tick");
    assert!(world.flows.borrow().values().all(|flow| flow.packets == 0 || flow.seen == world.now), "it is alive");
    world.generation += 1;
    assert_eq!((send(&world), send(&world)), (1, 0), "the service changed");
    world.settings.epoch += 1;
    assert_eq!((send(&world), send(&world)), (1, 0), "a route changed");
    let counters = world.services.borrow()[&1];
    assert_eq!((counters.connections, counters.packets), (1, 8), "all but the one that the last record counted");
    // Its backend is gone, and nobody else is there.
    world.retire(2);
    world.frontends.clear();
    world.generation += 1;
    assert_eq!(uplink(&mut Frame::udp(CLIENT, "10.1.0.1:30053", b"?"), &world), Way::Stack);
}

#[test]
fn a_full_flow_table_is_told_by_the_stack() {
    let mut world = shop();
    world.flow_limit = 1;
    let mut frame = Frame::udp(CLIENT, "10.1.0.1:30053", b"?");
    let original = frame.clone();
    assert_eq!(uplink(&mut frame, &world), Way::Stack);
    assert_eq!(frame, original);
    assert_ne!(ingress(&mut frame, &world, Scope::External), crate::Verdict::Pass);
    assert_eq!(world.reasons.borrow()[..], [Reason::FlowsFull]);
}

#[test]
fn half_as_many_connections_as_records_find_room() {
    let mut world = shop();
    world.random = (0..64).map(|part| part << 26).collect();
    let pass = || {
        let before = world.routed.get();
        for port in 1000..1016 {
            let mut frame = Frame::udp(&std::format!("192.0.2.9:{port}"), "10.1.0.1:30053", b"?");
            assert_eq!(uplink(&mut frame, &world), Way::Out(INWARD));
        }
        world.routed.get() - before
    };
    assert_eq!((pass(), pass()), (16, 0));
}

#[test]
fn more_connections_than_records_are_all_served() {
    let mut world = shop();
    world.random = (0..64).map(|part| part << 26).collect();
    let mut sources = std::collections::BTreeSet::new();
    for _ in 0..2 {
        for port in 1000..1020 {
            let mut frame = Frame::udp(&std::format!("192.0.2.9:{port}"), "10.1.0.1:30053", b"?");
            assert_eq!(uplink(&mut frame, &world), Way::Out(INWARD));
            assert!(frame.valid());
            sources.insert(ends(&frame).0);
        }
    }
    assert_eq!(sources.len(), 20, "each has its own port, and keeps it");
}

/// Records that give way to what opens connections, new ones and ones that are asked for again, had counted something.
#[test]
fn what_displaced_records_counted_is_not_lost() {
    let mut world = shop();
    world.random = (0..64).map(|part| part << 26).collect();
    world.change("*:30053", |frontend| frontend.service = 2);
    let datagrams = |world: &World, times: u64| {
        for port in (1000..1016).flat_map(|port| (0..times).map(move |_| port)) {
            let mut frame = Frame::udp(&std::format!("192.0.2.9:{port}"), "10.1.0.1:30053", b"?");
            assert_eq!(uplink(&mut frame, world), Way::Out(INWARD));
        }
    };
    datagrams(&world, 3);
    for port in 2000..2020 {
        let client = std::format!("192.0.2.9:{port}");
        let mut frame = Frame::tcp(&client, "10.1.0.1:30090", SYN, b"");
        assert_eq!(uplink(&mut frame, &world), Way::Out(INWARD));
        let mut answer = Frame::tcp("10.244.9.9:80", &ends(&frame).0, SYN | ACK, b"");
        assert_eq!(uplink(&mut answer, &world), Way::Out(UPLINK));
        let mut again = Frame::tcp(&client, "10.1.0.1:30090", SYN, b"");
        assert_eq!(uplink(&mut again, &world), Way::Out(INWARD));
    }
    world.jiffies += 256;
    datagrams(&world, 1);
    let services = world.services.borrow();
    assert_eq!((services[&1].packets, services[&2].packets), (20 * 3, 16 * 4));
}

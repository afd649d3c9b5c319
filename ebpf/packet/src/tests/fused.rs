//! Connections that the driver's program made and the stack's programs go on with, and the other way round.

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use sluice_ebpf_common::opened::{self, Opened};
use sluice_ebpf_common::{Flow, FlowKind, Reason, Scope, Settings, protocol};

use super::frame::{ACK, FIN, Frame, SYN};
use super::world::World;
use crate::{Verdict, Way, egress_uplink, ingress, uplink};

const SERVICE: &str = "10.1.0.1:30090";
const BACKEND: &str = "10.244.9.9:80";
const CLIENT: &str = "192.0.2.9:5000";

fn shop() -> World {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    world
}

/// Through this node, by the driver or by the stack; its ends afterwards.
fn through(world: &World, mut frame: Frame, driver: bool) -> (String, String) {
    let sent = driver && matches!(uplink(&mut frame, world), Way::Out(_));
    if !sent {
        assert_eq!(ingress(&mut frame, world, Scope::External), Verdict::Pass);
        assert_eq!(egress_uplink(&mut frame, world), Verdict::Pass);
    }
    assert!(frame.valid());
    frame.ends().split_once(" > ").map(|(from, to)| (from.to_string(), to.to_string())).unwrap()
}

/// A client's packet; what it leaves with.
fn send(world: &World, client: &str, flags: u8, driver: bool) -> String {
    let (source, destination) = through(world, Frame::tcp(client, SERVICE, flags, b"?"), driver);
    assert_eq!(destination, BACKEND);
    source
}

/// The backend's answer to what left with a source; whom it reaches.
fn answer(world: &World, source: &str, flags: u8, driver: bool) -> String {
    let (source, client) = through(world, Frame::tcp(BACKEND, source, flags, b"!"), driver);
    assert_eq!(source, SERVICE);
    client
}

fn taken(world: &World) -> u32 {
    let row = |word: &u32| word.is_multiple_of(sluice_ebpf_common::ports::ROW);
    world.ports.borrow().iter().filter(|(word, _)| !row(word)).map(|(_, bits)| bits.count_ones()).sum()
}

/// Others may stand where a connection would, while one of its places is free; else it has its entries at once.
#[test]
fn what_is_opened_stands_in_any_of_its_places() {
    let places = {
        let world = shop();
        send(&world, CLIENT, SYN, true);
        let first = *world.opened.borrow().keys().next().unwrap();
        (0..opened::NEAR).map(|step| opened::next(first, step)).collect::<Vec<_>>()
    };
    for free in (0..places.len()).map(Some).chain([None]) {
        let world = shop();
        for (at, place) in places.iter().enumerate().filter(|(at, _)| Some(*at) != free) {
            world.places.borrow_mut().insert(*place);
            world
                .opened
                .borrow_mut()
                .insert(*place, Opened { state: Opened::WAITS, seen: at as u32, ..Opened::default() });
        }
        let source = send(&world, CLIENT, SYN, true);
        assert_eq!(world.places.borrow().len(), places.len());
        assert_eq!(world.flows.borrow().len(), if free.is_some() { 0 } else { 2 });
        assert_eq!(answer(&world, &source, SYN | ACK, true), CLIENT);
        assert_eq!((world.flows.borrow().len(), world.opened.borrow().len()), (2, places.len() - free.iter().len()));
    }
}

#[test]
fn two_entries_say_everything_until_the_stack_needs_four() {
    for driver in [true, false] {
        let world = shop();
        let source = send(&world, CLIENT, SYN, true);
        assert_eq!((world.flows.borrow().len(), world.opened.borrow().len()), (0, 1));
        assert_eq!(answer(&world, &source, SYN | ACK, driver), CLIENT);
        assert_eq!(world.flows.borrow().len(), if driver { 2 } else { 4 });
        assert_eq!(send(&world, CLIENT, ACK, driver), source);
        assert_eq!(world.flows.borrow().len(), if driver { 2 } else { 4 });
        assert_eq!(taken(&world), 1);
        // Back to the driver.
        assert_eq!(send(&world, CLIENT, ACK, true), source);
        assert_eq!(answer(&world, &source, ACK, true), CLIENT);
    }
}

/// What the records of the flow cache counted meanwhile is known by a connection's end.
#[test]
fn entries_count_every_packet_of_a_connection() {
    let world = shop();
    let source = send(&world, CLIENT, SYN, true);
    answer(&world, &source, SYN | ACK, true);
    for flags in [ACK; 7].into_iter().chain([FIN | ACK, ACK]) {
        send(&world, CLIENT, flags, true);
    }
    for flags in [ACK, ACK, ACK, FIN | ACK] {
        answer(&world, &source, flags, true);
    }
    let flows = world.flows.borrow();
    let counted: BTreeMap<u8, u64> = flows.iter().map(|(key, flow)| (key.kind, flow.packets)).collect();
    let expected = BTreeMap::from([(FlowKind::Service as u8, 10), (FlowKind::MasqueradeReply as u8, 5)]);
    assert_eq!(counted, expected);
    assert_eq!(world.services.borrow()[&1].packets, 15);
}

#[test]
fn what_the_stack_began_the_driver_goes_on_with() {
    let world = shop();
    let source = send(&world, CLIENT, SYN, false);
    assert_eq!(send(&world, CLIENT, ACK, true), source);
    assert_eq!(answer(&world, &source, ACK, true), CLIENT);
    assert_eq!(world.flows.borrow().len(), 4);
}

#[test]
fn an_error_on_the_way_to_the_backend_is_about_what_the_client_sent() {
    let world = shop();
    let mut sent = Frame::tcp(CLIENT, SERVICE, SYN, b"");
    let original = sent.clone();
    assert!(matches!(uplink(&mut sent, &world), Way::Out(_)));
    let mut error = Frame::error("10.1.0.7", "10.1.0.1", &sent);
    assert_eq!(uplink(&mut error, &world), Way::Stack);
    assert_eq!(ingress(&mut error, &world, Scope::External), Verdict::Pass);
    assert_eq!(egress_uplink(&mut error, &world), Verdict::Pass);
    assert!(error.valid() && error.ends().contains("> 192.0.2.9"), "{}", error.ends());
    // Addresses, ports and sequence number; the hop is counted.
    assert_eq!(&error.bytes[42 + 12..42 + 28], &original.bytes[14 + 12..14 + 28]);
}

/// While the flow record changes, the entries of before cannot give way: the connection begins when its client asks again.
#[test]
fn nothing_is_opened_over_a_connection_that_cannot_give_way() {
    let mut world = shop();
    let source = send(&world, CLIENT, SYN, true);
    answer(&world, &source, SYN | ACK, true);
    send(&world, CLIENT, ACK | FIN, true);
    let before = world.flows.borrow().clone();
    world.holds = true;
    let mut frame = Frame::tcp(CLIENT, SERVICE, SYN, b"");
    assert_eq!(uplink(&mut frame, &world), Way::Stack);
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Drop(Reason::FlowsFull));
    assert_eq!(world.flows.borrow().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!((world.opened.borrow().len(), taken(&world)), (0, 1));
    world.holds = false;
    world.jiffies += 256;
    let again = send(&world, CLIENT, SYN, true);
    assert_eq!(answer(&world, &again, SYN | ACK, true), CLIENT);
    assert_eq!((world.flows.borrow().len(), taken(&world)), (2, 1));
}

#[test]
fn a_connection_from_the_same_port_gets_a_port_of_its_own() {
    for (first, then, last) in [(true, true, true), (true, false, false), (true, false, true), (false, true, true)] {
        let mut world = shop();
        let source = send(&world, CLIENT, SYN, first);
        answer(&world, &source, SYN | ACK, then);
        send(&world, CLIENT, ACK | FIN, then);
        answer(&world, &source, ACK | FIN, then);
        // The driver's record of the old one ends with its tick when another way takes the new one.
        world.jiffies += 256;
        let again = send(&world, CLIENT, SYN, last);
        assert_eq!(answer(&world, &again, SYN | ACK, last), CLIENT, "{first} {then} {last}");
        assert_eq!(answer(&world, &again, ACK, !last), CLIENT);
        assert_eq!(send(&world, CLIENT, ACK, !last), again, "{first} {then} {last}");
    }
}

/// The port of a connection that was divided is another client's by the time that its own client comes again.
#[test]
fn what_a_divided_connection_left_behind_misleads_nobody() {
    let mut world = shop();
    (world.settings.source_port_first, world.settings.source_port_last) = (61000, 61001);
    let source = send(&world, CLIENT, SYN, true);
    answer(&world, &source, SYN | ACK, true);
    send(&world, CLIENT, ACK, false);
    // The sweep took the pair, and gave the port back.
    let pair = |kind: u8| kind == FlowKind::Service as u8 || kind == FlowKind::MasqueradeReply as u8;
    world.flows.borrow_mut().retain(|key, _| !pair(key.kind));
    world.ports.borrow_mut().clear();
    let others: vec::Vec<String> = ["192.0.2.7:1", "192.0.2.7:2"].map(|client| send(&world, client, SYN, true)).into();
    assert!(others.contains(&source));
    let mut frame = Frame::tcp(CLIENT, SERVICE, SYN, b"?");
    assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
    assert!(matches!(egress_uplink(&mut frame, &world), Verdict::Drop(_)), "no port is left");
}

/// The client's connection comes to another load balancer, which has another backend for it, here, and sends its packets inside
/// its own: it ends the one through this node.
#[test]
fn a_connection_that_another_node_takes_over_keeps_no_port() {
    let mut world = shop();
    world.serve(protocol::TCP, Scope::External, "198.51.100.7:80", &["~10.244.9.9:80"]);
    let sent = Frame::tcp(CLIENT, "198.51.100.7:80", SYN, b"");
    let mut onward = sent.clone();
    assert!(matches!(uplink(&mut onward, &world), Way::Out(_)));
    let (source, _) = onward.ends().split_once(" > ").map(|(from, to)| (from.to_string(), to.to_string())).unwrap();
    let mut accepted = Frame::tcp(BACKEND, &source, SYN | ACK, b"");
    assert!(matches!(uplink(&mut accepted, &world), Way::Out(_)));
    assert_eq!(taken(&world), 1);
    let mut carried = Frame::carrying("10.1.0.3", "10.244.0.5", 8080, &sent);
    assert_eq!(ingress(&mut carried, &world, Scope::External), Verdict::Pass);
    assert_eq!(carried.ends(), "192.0.2.9:5000 > 10.244.0.5:8080");
    assert_eq!(taken(&world), 0);
}

/// A few clients whose packets go by the driver or by the stack as it happens, in connections one after the other.
#[test]
fn by_whatever_way_packets_go_connections_hold() {
    let mut world = shop();
    world.flow_limit = 1000;
    world.random = (0..97).map(|at: u32| at.wrapping_mul(0x9e37_79b9)).collect();
    let mut state = 7_u32;
    let mut next = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % limit
    };
    let mut open: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..4000 {
        let client = format!("192.0.2.{}:{}", 1 + next(3), 5000 + next(3));
        let driver = next(2) == 0;
        // A new tick, so that the cache's records are not all there is.
        world.jiffies += u64::from(next(64));
        let Some(source) = open.get(&client).cloned() else {
            let source = send(&world, &client, SYN, driver);
            assert!(!open.values().any(|other| *other == source), "{source} is another's");
            assert_eq!(answer(&world, &source, SYN | ACK, next(2) == 0), client);
            open.insert(client, source);
            continue;
        };
        match next(8) {
            0 => {
                assert_eq!(send(&world, &client, ACK | FIN, driver), source);
                assert_eq!(answer(&world, &source, ACK | FIN, next(2) == 0), client);
                open.remove(&client);
                world.jiffies += 256;
            }
            1..4 => assert_eq!(answer(&world, &source, ACK, driver), client),
            _ => assert_eq!(send(&world, &client, ACK, driver), source),
        }
        let flows = world.flows.borrow();
        let ports = flows.keys().filter(|key| key.kind == FlowKind::MasqueradeReply as u8).count();
        assert_eq!(taken(&world) as usize, ports, "a port for each");
        assert!(flows.values().filter(|flow| flow.flags & Flow::FUSED != 0).count() > 0);
    }
}

#[test]
fn what_opens_again_goes_on_as_before_until_it_is_answered() {
    let world = shop();
    let source = send(&world, CLIENT, SYN, true);
    assert_eq!(send(&world, CLIENT, SYN, true), source);
    assert_eq!((world.flows.borrow().len(), world.opened.borrow().len(), taken(&world)), (0, 1, 1));
    let counted = |world: &World| world.services.borrow().values().map(|counters| counters.connections).sum::<u64>();
    assert_eq!(counted(&world), 1);
    assert_eq!(answer(&world, &source, SYN | ACK, true), CLIENT);
    assert_eq!(send(&world, CLIENT, SYN, true), source, "the answer was lost");
    assert_eq!(answer(&world, &source, SYN | ACK, true), CLIENT);
    assert_eq!(send(&world, CLIENT, ACK, true), source);
    assert_eq!((world.flows.borrow().len(), world.opened.borrow().len(), taken(&world)), (2, 0, 1));
    assert_eq!(counted(&world), 1);
    let flows = world.flows.borrow();
    let asked = flows.iter().find(|(key, _)| key.kind == FlowKind::Service as u8).unwrap().1;
    // The first one, and the one that was not in the record of the driver.
    assert_eq!(
        (asked.packets, asked.other.destination_port.to_be()),
        (3, source.rsplit_once(':').unwrap().1.parse().unwrap())
    );
}

/// Two processors let a client's beginning go on with two ports, or the driver with one and the stack with another. The first
/// answer decides; what the other port gets is a stranger's, which the node's kernel ends.
#[test]
fn the_first_answer_decides() {
    for (second, driver) in [(true, true), (true, false), (false, true), (false, false)] {
        let world = shop();
        let source = send(&world, CLIENT, SYN, true);
        world.begun.borrow_mut().clear();
        let other = send(&world, CLIENT, SYN, second);
        assert_ne!(source, other);
        let (first, late) = if second { (&source, &other) } else { (&other, &source) };
        assert_eq!(answer(&world, first, SYN | ACK, driver), CLIENT);
        let before = taken(&world);
        let mut frame = Frame::tcp(BACKEND, late, SYN | ACK, b"");
        if driver {
            assert_eq!(uplink(&mut frame, &world), Way::Stack);
        }
        assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
        assert_eq!(frame.ends(), format!("{BACKEND} > {late}"), "it is as it was");
        assert_eq!(taken(&world), before - 1);
        assert_eq!(send(&world, CLIENT, ACK, driver), *first);
        assert_eq!(answer(&world, first, ACK, driver), CLIENT);
    }
}

#[test]
fn an_answer_waits_for_room_in_the_flow_table() {
    for driver in [true, false] {
        let mut world = shop();
        let source = send(&world, CLIENT, SYN, true);
        world.flow_limit = 1;
        let mut frame = Frame::tcp(BACKEND, &source, SYN | ACK, b"");
        if driver {
            assert_eq!(uplink(&mut frame, &world), Way::Stack);
        }
        assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Drop(Reason::FlowsFull));
        world.flow_limit = 100;
        assert_eq!(answer(&world, &source, SYN | ACK, driver), CLIENT);
        assert_eq!(send(&world, CLIENT, ACK, driver), source);
    }
}

/// With rules for routes beside the kernel's own, every client may have a way of its own.
#[test]
fn what_opens_a_connection_takes_the_way_that_others_took() {
    let mut world = shop();
    let begin = |world: &World, clients: core::ops::Range<u16>| {
        let before = world.routed.get();
        clients.for_each(|port| drop(send(world, &format!("192.0.2.9:{port}"), SYN, true)));
        world.routed.get() - before
    };
    world.flow_limit = 100;
    world.random = (0..97).map(|at: u32| at.wrapping_mul(0x9e37_79b9)).collect();
    assert_eq!(begin(&world, 1..6), 5);
    world.settings.flags |= Settings::PLAIN_RULES;
    assert_eq!((begin(&world, 6..11), begin(&world, 11..16)), (1, 0));
    world.jiffies += 256;
    assert_eq!(begin(&world, 16..21), 1, "a tick");
    world.settings.epoch += 1;
    assert_eq!(begin(&world, 21..26), 1, "another link");
    let source = send(&world, CLIENT, SYN, true);
    answer(&world, &source, SYN | ACK, true);
    let before = world.routed.get();
    send(&world, CLIENT, ACK, true);
    assert_eq!(world.routed.get() - before, 1, "what comes after it is asked about");
}

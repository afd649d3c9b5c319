//! Network policies: packets in a row, and which of them pass.

use std::vec::Vec;

use sluice_ebpf_common::{Guard, Reason, RuleKey, protocol};

use super::frame::{ACK, FIN, Frame, SYN, mask, wire};
use super::world::World;
use crate::{Verdict, may_receive, may_send};

const POD: &str = "10.244.0.5";
/// The link that packets of others came by.
const ELSEWHERE: u32 = 9;

/// A pod whose ingress is set 1 and egress set 2, 0 for none.
fn world(ingress: u32, egress: u32) -> World {
    let mut world = World::new();
    world.guard = Some(Guard { ingress, egress, generation: 7, ..Guard::default() });
    world
}

fn rule(set: u32, who: u32, number: u8, port: u16, bits: u32) -> (RuleKey, u32) {
    (RuleKey { set, who, protocol: number, port: port.to_be_bytes(), reserved: 0 }, bits)
}

fn sends(world: &World, frame: &Frame) -> bool {
    match may_send(frame, world) {
        Verdict::Pass => true,
        verdict => {
            assert_eq!(verdict, Verdict::Drop(Reason::PolicyEgress));
            assert_eq!(world.reasons.borrow_mut().pop(), Some(Reason::PolicyEgress));
            false
        }
    }
}

fn receives(world: &World, frame: &Frame) -> bool {
    match may_receive(frame, world, ELSEWHERE) {
        Verdict::Pass => true,
        verdict => {
            assert_eq!(verdict, Verdict::Drop(Reason::PolicyIngress));
            assert_eq!(world.reasons.borrow_mut().pop(), Some(Reason::PolicyIngress));
            false
        }
    }
}

#[test]
fn rules_say_who_may_reach_which_port() {
    let mut world = world(1, 0);
    world.peers.insert(wire("10.244.9.9"), 5);
    world.blocks.push((wire("192.0.2.0"), mask("255.255.255.0"), 6));
    world.blocks.push((wire("192.0.2.128"), mask("255.255.255.128"), 8));
    world.rules = [
        rule(1, 5, protocol::TCP, 8080, RuleKey::BITS),
        rule(1, 6, protocol::UDP, 0, RuleKey::ANY_NUMBER),
        rule(1, RuleKey::ANYBODY, protocol::SCTP, 3864, RuleKey::BITS - 3),
        rule(2, RuleKey::ANYBODY, 0, 0, RuleKey::ANY_PORT),
    ]
    .to_vec();
    let cases = [
        (Frame::tcp("10.244.9.9:40000", "10.244.0.5:8080", SYN, b""), true),
        (Frame::tcp("10.244.9.9:40000", "10.244.0.5:8081", SYN, b""), false),
        (Frame::udp("10.244.9.9:40000", "10.244.0.5:8080", b""), false),
        (Frame::tcp("10.244.9.8:40000", "10.244.0.5:8080", SYN, b""), false),
        (Frame::udp("192.0.2.9:40000", "10.244.0.5:53", b""), true),
        (Frame::udp("192.0.2.129:40000", "10.244.0.5:53", b""), false),
        (Frame::tcp("192.0.2.9:40000", "10.244.0.5:53", SYN, b""), false),
        (Frame::sctp("198.51.100.1:4", "10.244.0.5:3868", 1, b""), true),
        (Frame::sctp("198.51.100.1:4", "10.244.0.5:3863", 1, b""), false),
        (Frame::sctp("198.51.100.1:4", "10.244.0.5:3872", 1, b""), false),
        (Frame::echo("10.244.9.9", POD, 8, 3), false),
    ];
    for (frame, passes) in cases {
        assert_eq!(receives(&world, &frame), passes, "{}", frame.ends());
    }
    // Another set is another pod's.
    world.guard = Some(Guard { ingress: 2, ..Guard::default() });
    assert!(receives(&world, &Frame::echo("10.244.9.9", POD, 8, 3)));
    world.guard = Some(Guard { ingress: Guard::CLOSED, ..Guard::default() });
    assert!(!receives(&world, &Frame::echo("10.244.9.9", POD, 8, 4)));
}

/// The longest prefix decides among those for one peer, and what is said of a pod before what is said of its block.
#[test]
fn rules_that_deny_decide_as_those_that_allow() {
    let mut world = world(1, 0);
    world.peers.insert(wire("10.244.9.9"), 5);
    world.peers.insert(wire("10.244.9.7"), 7);
    world.blocks.push((wire("10.244.0.0"), mask("255.255.0.0"), 6));
    world.rules = [
        rule(1, 6, 0, 0, RuleKey::ANY_PORT),
        rule(1, 5, protocol::TCP, 80, RuleKey::BITS),
        rule(1, RuleKey::ANYBODY, protocol::UDP, 53, RuleKey::BITS),
    ]
    .to_vec();
    world.denying = [
        rule(1, 5, 0, 0, RuleKey::ANY_PORT),
        rule(1, 6, protocol::TCP, 22, RuleKey::BITS),
        rule(1, RuleKey::ANYBODY, protocol::TCP, 25, RuleKey::BITS),
    ]
    .to_vec();
    let cases = [
        (Frame::tcp("10.244.9.9:40000", "10.244.0.5:80", SYN, b""), true),
        (Frame::tcp("10.244.9.9:40000", "10.244.0.5:81", SYN, b""), false),
        (Frame::udp("10.244.9.9:40000", "10.244.0.5:53", b""), true),
        (Frame::echo("10.244.9.9", POD, 8, 3), false),
        // Known, but this set says nothing of it.
        (Frame::tcp("10.244.9.7:40000", "10.244.0.5:80", SYN, b""), true),
        (Frame::tcp("10.244.9.7:40000", "10.244.0.5:22", SYN, b""), false),
        (Frame::tcp("10.244.9.8:40000", "10.244.0.5:22", SYN, b""), false),
        (Frame::tcp("10.244.9.8:40000", "10.244.0.5:25", SYN, b""), false),
        (Frame::echo("10.244.9.8", POD, 8, 3), true),
        (Frame::tcp("192.0.2.1:40000", "10.244.0.5:80", SYN, b""), false),
    ];
    for (frame, passes) in cases {
        assert_eq!(receives(&world, &frame), passes, "{}", frame.ends());
    }
}

#[test]
fn what_is_never_judged_passes() {
    let closed = world(1, 1);
    // The node's own, to it, and a pod's to itself.
    let from_node = Frame::tcp("10.1.0.1:5", "10.244.0.5:80", SYN, b"");
    assert_eq!(may_receive(&from_node, &closed, 0), Verdict::Pass);
    assert!(!receives(&closed, &from_node), "a forged one");
    assert!(sends(&closed, &Frame::tcp("10.244.0.5:80", "10.1.0.1:5", ACK, b"")));
    let own = Frame::udp("10.244.0.5:80", "10.244.0.5:5", b"");
    assert!(sends(&closed, &own));
    assert_eq!(may_receive(&own, &closed, closed.link), Verdict::Pass);
    assert!(!receives(&closed, &own), "a forged one");
    // Nobody serves what it asked for.
    let asked = Frame::udp("10.244.0.5:5000", "10.96.0.10:53", b"?");
    let refusal = Frame::error("10.96.0.10", POD, &asked);
    assert_eq!(may_receive(&refusal, &closed, closed.link), Verdict::Pass);
    assert!(!receives(&closed, &refusal), "a forged one");
    // What is not IP, and neighbour discovery.
    let mut arp = Frame::udp("10.244.9.9:1", "10.244.0.5:5", b"");
    arp.bytes[12..14].copy_from_slice(&[8, 6]);
    assert!(receives(&closed, &arp));
    let mut solicitation = Frame::echo("fd44::9", "fd44::5", 8, 1);
    assert!(!receives(&closed, &solicitation));
    solicitation.bytes[54] = 135;
    assert!(receives(&closed, &solicitation) && sends(&closed, &solicitation));
    let mut short = Frame::tcp("10.244.9.9:1", "10.244.0.5:80", SYN, b"");
    short.bytes.truncate(40);
    assert!(!receives(&closed, &short));
    // A pod without policies, and a link without a guard.
    for guard in [Some(Guard { generation: 3, ..Guard::default() }), None] {
        let mut world = World::new();
        world.guard = guard;
        assert!(receives(&world, &own) && sends(&world, &own));
        assert!(world.allowed.borrow().is_empty());
    }
}

/// Packets of a pod with both kinds of rules; the way back of what is allowed is allowed.
#[test]
fn answers_pass_and_nothing_else() {
    for (to_pod, flags) in [(true, [SYN, SYN | ACK]), (false, [SYN, SYN | ACK])] {
        let mut world = world(1, 2);
        world.rules = [rule(if to_pod { 1 } else { 2 }, 0, protocol::TCP, 80, RuleKey::BITS)].to_vec();
        let (client, server) =
            if to_pod { ("10.244.9.9:40000", "10.244.0.5:80") } else { ("10.244.0.5:40000", "10.244.9.9:80") };
        let request = |flags| Frame::tcp(client, server, flags, b"");
        let answer = |flags| Frame::tcp(server, client, flags, b"");
        let pass = |frame: &Frame, forward: bool| {
            if forward == to_pod { receives(&world, frame) } else { sends(&world, frame) }
        };
        assert!(!pass(&Frame::udp(server, client, b""), false), "nobody asked");
        assert!(pass(&request(flags[0]), true));
        assert!(pass(&answer(flags[1]), false));
        assert!(pass(&request(ACK), true) && pass(&answer(ACK | FIN), false));
        assert!(!pass(&answer(SYN), false), "a connection of its own");
        assert!(pass(&answer(ACK), false), "the other one goes on");
    }
}

#[test]
fn a_change_is_asked_for_again() {
    let mut world = world(1, 0);
    world.rules = [rule(1, 0, protocol::UDP, 53, RuleKey::BITS)].to_vec();
    let (question, answer) =
        (Frame::udp("10.244.9.9:40000", "10.244.0.5:53", b"?"), Frame::udp("10.244.0.5:53", "10.244.9.9:40000", b"!"));
    assert!(receives(&world, &question) && sends(&world, &answer));
    // Rules alone change nothing for a connection; the generation does.
    world.rules.clear();
    assert!(receives(&world, &question));
    world.guard.as_mut().unwrap().generation += 1;
    assert!(!receives(&world, &question));
    // What the pod sends is its own connection now.
    assert!(sends(&world, &answer) && receives(&world, &question));
    // An idle one is forgotten.
    world.now += 121;
    assert!(!receives(&world, &question));
}

/// In the middle of a connection that nobody remembers.
#[test]
fn the_larger_port_is_the_clients() {
    let world = world(1, 0);
    assert!(!receives(&world, &Frame::tcp("10.244.9.9:40000", "10.244.0.5:80", ACK, b"")));
    assert!(receives(&world, &Frame::tcp("10.244.9.9:80", "10.244.0.5:40000", ACK, b"")));
    assert!(receives(&world, &Frame::tcp("10.244.9.9:50000", "10.244.0.5:40000", SYN | ACK, b"")));
    assert!(!receives(&world, &Frame::tcp("10.244.9.9:80", "10.244.0.5:40001", SYN, b"")));
    // A server's data is no connection of its own.
    let closed = self::world(1, 0);
    assert!(!sends(&closed, &Frame::tcp("10.244.0.5:80", "10.244.9.9:40000", ACK, b"data")));
    assert!(!receives(&closed, &Frame::tcp("10.244.9.9:40000", "10.244.0.5:80", ACK, b"")));
}

#[test]
fn errors_belong_to_what_they_quote() {
    for (client, server, router) in
        [("10.244.9.9:40000", "10.244.0.5:53", "192.0.2.1"), ("[fd44::9]:40000", "[fd44::5]:53", "fd02::1")]
    {
        let mut world = world(1, 2);
        world.rules = [rule(1, 0, protocol::UDP, 53, RuleKey::BITS)].to_vec();
        let (question, answer) = (Frame::udp(client, server, b"?"), Frame::udp(server, client, b"!"));
        let pod = if router.contains(':') { "fd44::5" } else { POD };
        let (about_answer, about_question) = (Frame::error(router, pod, &answer), Frame::error(pod, router, &question));
        assert!(!receives(&world, &about_answer) && !sends(&world, &about_question));
        assert!(receives(&world, &question));
        assert!(receives(&world, &about_answer) && sends(&world, &about_question));
        let other = Frame::error(router, pod, &Frame::udp(server, &client.replace("40000", "40001"), b"!"));
        assert!(!receives(&world, &other));
        // A pod that only its egress is judged of gets every error.
        world.guard = Some(Guard { egress: 2, ..Guard::default() });
        assert!(receives(&world, &other));
    }
}

#[test]
fn fragments_follow_their_first_one() {
    let mut world = world(1, 0);
    world.rules = [rule(1, 0, protocol::UDP, 53, RuleKey::BITS)].to_vec();
    let fragments = |port: u16| -> Vec<Frame> {
        Frame::udp("10.244.9.9:40000", &std::format!("10.244.0.5:{port}"), &[5; 200])
            .fragments(64)
            .into_iter()
            .collect()
    };
    let [first, second] = [0, 1].map(|at| fragments(53)[at].clone());
    assert!(!receives(&world, &second), "before the first one");
    assert!(receives(&world, &first) && receives(&world, &second));
    let mut other = fragments(54);
    for frame in &mut other {
        frame.bytes[18..20].copy_from_slice(&[0x99, 0x99]);
        frame.fix_ip_header();
        assert!(!receives(&world, frame));
    }
}

#[test]
fn echo_needs_a_rule_without_ports() {
    let mut world = world(1, 2);
    let (request, reply) = (Frame::echo("10.244.9.9", POD, 8, 3), Frame::echo(POD, "10.244.9.9", 0, 3));
    assert!(!receives(&world, &request) && !sends(&world, &reply));
    world.rules = [rule(1, 0, 0, 0, RuleKey::ANY_PORT)].to_vec();
    assert!(receives(&world, &request) && sends(&world, &reply));
    assert!(!sends(&world, &Frame::echo(POD, "10.244.9.9", 8, 4)));
}

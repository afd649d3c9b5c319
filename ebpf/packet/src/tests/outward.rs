//! Packets from pods to the outside, which leave at once by the way that the kernel's routes name.

use std::vec;

use sluice_ebpf_common::{PodLink, Scope, protocol};

use super::frame::{ACK, Frame, ONWARD, SYN, wire};
use super::world::World;
use crate::{MARK_SETTLED, Verdict, egress_uplink, from_pod, settled};

/// A node with one pod.
fn world() -> World {
    let mut world = World::new();
    for address in ["10.244.0.9", "fd44::9"] {
        world.pods.insert(wire(address), PodLink::new(1, 1500, [4, 0, 0, 0, 0, 1], [6, 0, 0, 0, 0, 1]));
    }
    world
}

fn leaves(frame: &mut Frame, world: &World) -> u32 {
    match from_pod(frame, world) {
        Verdict::Leave(place) => world.exit(place).link,
        verdict => panic!("{}: {verdict:?}", frame.ends()),
    }
}

#[test]
fn a_pods_packets_leave_at_once() {
    let world = world();
    for (frame, decided) in [
        // For another node's pod everything is decided; what leaves the cluster may be masqueraded on its way.
        (Frame::tcp("10.244.0.9:7", "10.244.9.9:8080", SYN, b""), true),
        (Frame::udp("10.244.0.9:7", "10.244.9.9:53", b"odd"), true),
        (Frame::tcp("[fd44::9]:7", "[fd44:0:0:2::5]:8080", ACK, b"six"), true),
        (Frame::udp("10.244.0.9:7", "192.0.2.9:53", b"?"), false),
        (Frame::tcp("[fd44::9]:7", "[fd02::9]:80", SYN, b""), false),
        (Frame::tcp("10.244.0.9:7", "10.1.0.3:80", SYN, b""), false),
    ] {
        let mut sent = frame.clone();
        assert_eq!(leaves(&mut sent, &world), ONWARD.0);
        assert_eq!((sent.life(), sent.mark == MARK_SETTLED), (63, decided), "{}", frame.ends());
        assert!(sent.valid());
        // The Ethernet header is the kernel's to write.
        assert_eq!((sent.ends(), &sent.bytes[..14]), (frame.ends(), &frame.bytes[..14]));
        assert_eq!((settled(&mut sent), sent.mark), (decided, 0));
        assert!(!settled(&mut sent));
    }
}

#[test]
fn what_the_stack_has_to_see_is_left_to_it() {
    let frame = || Frame::tcp("10.244.0.9:7", "10.244.9.9:8080", ACK, b"");
    let (mut dying, mut marked) = (frame(), frame());
    dying.bytes[22] = 1;
    dying.fix_ip_header();
    marked.mark = 7;
    let [first, second] = Frame::udp("10.244.0.9:70", "10.244.9.9:53", &[5; 200]).fragments(64);
    let longest = |more: usize| Frame::udp("10.244.0.9:7", "10.244.9.9:53", &vec![0; ONWARD.1 as usize - 28 + more]);
    let longest6 = |more| Frame::udp("[fd44::9]:7", "[fd44:0:0:2::5]:53", &vec![0; ONWARD.1 as usize - 48 + more]);
    for mut fits in [longest(0), longest6(0)] {
        leaves(&mut fits, &world());
    }
    for frame in [
        dying,
        marked,
        first,
        second,
        longest(1),
        longest6(1),
        Frame::sctp("10.244.0.9:7", "10.244.9.9:53", 1, b""),
        Frame::echo("10.244.0.9", "10.244.9.9", 8, 7),
        // For the node itself, for a pod of its own that is limited, for nobody.
        Frame::tcp("10.244.0.9:7", "10.1.0.1:6443", SYN, b""),
        Frame::tcp("10.244.0.9:7", "10.244.0.77:80", SYN, b""),
        Frame::tcp("10.244.0.9:7", "10.244.8.8:80", SYN, b""),
        Frame::tcp("10.244.0.9:7", "169.254.169.254:80", SYN, b""),
        Frame::udp("10.244.0.9:7", "224.0.0.251:5353", b""),
        Frame::udp("10.244.0.9:7", "255.255.255.255:67", b""),
        Frame::udp("10.244.0.9:7", "127.0.0.1:67", b""),
        Frame::udp("[fd44::9]:7", "[ff02::fb]:5353", b""),
        Frame::udp("[fd44::9]:7", "[fe80::1]:53", b""),
        // Addresses that are not the pod's own.
        Frame::tcp("10.244.0.5:7", "10.244.9.9:80", SYN, b""),
        Frame::tcp("192.0.2.1:7", "10.244.9.9:80", SYN, b""),
    ] {
        let mut left = frame.clone();
        assert_eq!(from_pod(&mut left, &world()), Verdict::Pass, "{}", frame.ends());
        assert_eq!(left, frame);
    }
    let mut other_link = world();
    other_link.link = 2;
    assert_eq!(from_pod(&mut frame(), &other_link), Verdict::Pass);
    let mut limited = world();
    limited.pods.clear();
    assert_eq!(from_pod(&mut frame(), &limited), Verdict::Pass);
}

#[test]
fn a_service_elsewhere_is_reached_at_once() {
    let mut world = world();
    for (kind, address, backend, sent, expected) in [
        (
            protocol::TCP,
            "10.96.0.12:80",
            "~10.244.9.9:8080",
            Frame::tcp("10.244.0.9:7", "10.96.0.12:80", SYN, b""),
            "10.244.0.9:7 > 10.244.9.9:8080",
        ),
        (
            protocol::UDP,
            "[fd96::12]:53",
            "~[fd44:0:0:2::5]:5353",
            Frame::udp("[fd44::9]:7", "[fd96::12]:53", b"?"),
            "[fd44::9]:7 > [fd44:0:0:2::5]:5353",
        ),
    ] {
        world.serve(kind, Scope::Internal, address, &[backend]);
        let mut sent = sent;
        assert_eq!(leaves(&mut sent, &world), ONWARD.0);
        assert_eq!((sent.ends().as_str(), sent.life(), sent.mark), (expected, 63, 0));
        assert!(sent.valid());
    }
    // An address of another node's pod that is a service's, too.
    world.serve(protocol::TCP, Scope::Internal, "10.244.9.1:80", &["~10.244.9.9:8080"]);
    let mut sent = Frame::tcp("10.244.0.9:8", "10.244.9.1:80", SYN, b"");
    leaves(&mut sent, &world);
    assert_eq!(sent.ends(), "10.244.0.9:8 > 10.244.9.9:8080");
}

/// A backend's answer to another node's pod gets the service's address on the wire.
#[test]
fn an_answer_is_not_settled_before_the_wire() {
    let world = world();
    let mut asked = Frame::tcp("10.244.9.9:7", "10.1.0.1:30080", SYN, b"");
    let mut serving = world;
    serving.serve(protocol::TCP, Scope::External, "*:30080", &["10.244.0.9:8080"]);
    assert_eq!(crate::ingress(&mut asked, &serving, Scope::External), Verdict::Pass);
    let mut answer = Frame::tcp("10.244.0.9:8080", "10.244.9.9:7", SYN | ACK, b"");
    leaves(&mut answer, &serving);
    assert!(!settled(&mut answer));
    assert_eq!(egress_uplink(&mut answer, &serving), Verdict::Pass);
    assert_eq!(answer.ends(), "10.1.0.1:30080 > 10.244.9.9:7");
}

#[test]
fn a_way_is_kept_until_the_clock_ticks_or_links_change() {
    let mut world = world();
    let frame = || Frame::tcp("10.244.0.9:7", "10.244.9.9:8080", ACK, b"");
    let keep = |world: &World| {
        let Verdict::Leave(place) = from_pod(&mut frame(), world) else { panic!() };
        world.keep_exit(place, 77);
    };
    keep(&world);
    assert_eq!(leaves(&mut frame(), &world), 77);
    // Not for another connection, nor another class of traffic, nor what is longer.
    assert_eq!(leaves(&mut Frame::tcp("10.244.0.9:8", "10.244.9.9:8080", ACK, b""), &world), ONWARD.0);
    keep(&world);
    let mut urgent = frame();
    urgent.bytes[15] = 0xb8;
    urgent.fix_ip_header();
    assert_eq!(leaves(&mut urgent, &world), ONWARD.0);
    for change in [
        |world: &mut World| world.jiffies += 1 << world.settings.tick_shift,
        |world: &mut World| world.settings.epoch += 1,
    ] {
        keep(&world);
        assert_eq!(leaves(&mut frame(), &world), 77);
        change(&mut world);
        assert_eq!(leaves(&mut frame(), &world), ONWARD.0);
    }
}

//! Packets between pods of one node, which go straight from one to the other, and those from outside, which go straight in.

use std::vec;

use sluice_ebpf_common::{PodLink, Scope, protocol};

use super::frame::{ACK, Frame, SYN, wire};
use super::world::World;
use crate::{MARK_NEEDS_SOURCE, MARK_SETTLED, Verdict, carry_out, egress_uplink, from_outside, from_pod};

const MTU: u32 = 1500;

/// Two pods, of which the first one sends, and a service of the second one.
fn world() -> World {
    let mut world = World::new();
    for (number, address) in [(1, "10.244.0.9"), (1, "fd44::9"), (2, "10.244.0.5"), (2, "fd44::5")] {
        let ends = [[4, 0, 0, 0, 0, number], [6, 0, 0, 0, 0, number]];
        world.pods.insert(wire(address), PodLink::new(number.into(), MTU, ends[0], ends[1]));
    }
    for (kind, address) in [(protocol::TCP, "10.96.0.10:80"), (protocol::UDP, "10.96.0.10:80")] {
        world.serve(kind, Scope::Internal, address, &["10.244.0.5:8080"]);
    }
    world.serve(protocol::TCP, Scope::Internal, "[fd96::10]:80", &["[fd44::5]:8080"]);
    world
}

/// What the stack would have made of it: a hop less, and the link's Ethernet addresses.
fn routed(frame: &Frame) -> Frame {
    let mut routed = frame.clone();
    routed.bytes[..12].copy_from_slice(&[4, 0, 0, 0, 0, 2, 6, 0, 0, 0, 0, 2]);
    if frame.v4() {
        routed.bytes[22] -= 1;
        routed.fix_ip_header();
    } else {
        routed.bytes[21] -= 1;
    }
    routed
}

#[test]
fn a_pods_packets_go_straight_into_its_neighbour() {
    for frame in [
        Frame::tcp("10.244.0.9:7", "10.244.0.5:8080", SYN, b""),
        Frame::tcp("10.244.0.9:7", "10.244.0.5:8080", ACK, b"odd"),
        Frame::udp("10.244.0.9:7", "10.244.0.5:53", b"?"),
        Frame::tcp("[fd44::9]:7", "[fd44::5]:8080", SYN, b""),
        Frame::udp("[fd44::9]:7", "[fd44::5]:53", b"six"),
    ] {
        for hops in [2, 64, 255] {
            let mut frame = frame.clone();
            let at = if frame.v4() { 22 } else { 21 };
            frame.bytes[at] = hops;
            if frame.v4() {
                frame.fix_ip_header();
            }
            let expected = routed(&frame);
            assert_eq!(from_pod(&mut frame, &world()), Verdict::Into(2));
            assert_eq!(frame.bytes, expected.bytes);
            assert!(frame.valid());
        }
    }
}

/// Every sum that an IPv4 header may have.
#[test]
fn the_header_stays_valid_for_every_checksum() {
    let world = world();
    for identification in 0..=u16::MAX {
        let mut frame = Frame::udp("10.244.0.9:7", "10.244.0.5:53", b"");
        frame.bytes[18..20].copy_from_slice(&identification.to_be_bytes());
        frame.fix_ip_header();
        assert_eq!(from_pod(&mut frame, &world), Verdict::Into(2));
        assert!(frame.valid(), "{identification}");
    }
}

#[test]
fn what_the_stack_has_to_see_is_left_to_it() {
    let frame = || Frame::tcp("10.244.0.9:7", "10.244.0.5:8080", ACK, b"");
    let mut dying = frame();
    dying.bytes[22] = 1;
    dying.fix_ip_header();
    let mut options = Frame::tcp("10.244.0.9:7", "10.244.0.5:8080", ACK, &[0; 8]);
    options.bytes[14] = 0x46;
    let [first, second] = Frame::udp("10.244.0.9:70", "10.244.0.5:53", &[5; 200]).fragments(64);
    let [first6, second6] = Frame::udp("[fd44::9]:70", "[fd44::5]:53", &[5; 200]).fragments(64);
    let length = MTU as usize - 28;
    let mut longest = Frame::udp("10.244.0.9:7", "10.244.0.5:53", &vec![0; length]);
    assert_eq!(from_pod(&mut longest, &world()), Verdict::Into(2));
    let mut marked = frame();
    marked.mark = MARK_NEEDS_SOURCE;
    for frame in [
        dying,
        options,
        first,
        second,
        first6,
        second6,
        marked,
        Frame::udp("10.244.0.9:7", "10.244.0.5:53", &vec![0; length + 1]),
        Frame::sctp("10.244.0.9:7", "10.244.0.5:53", 1, b""),
        Frame::echo("10.244.0.9", "10.244.0.5", 8, 7),
        Frame::error("10.244.0.9", "10.244.0.5", &Frame::udp("10.244.0.5:1", "10.244.0.9:2", b"x")),
        // Nobody, the sender itself, another one's address.
        Frame::tcp("10.244.0.9:7", "10.244.0.7:8080", SYN, b""),
        Frame::tcp("10.244.0.9:7", "10.244.0.9:8080", SYN, b""),
        Frame::tcp("10.244.0.5:7", "10.244.0.9:8080", SYN, b""),
        Frame::tcp("10.244.0.7:7", "10.244.0.5:8080", SYN, b""),
    ] {
        let mut left = frame.clone();
        assert_eq!(from_pod(&mut left, &world()), Verdict::Pass, "{}", frame.ends());
        assert_eq!(left, frame);
    }
    // A pod whose traffic is limited is not among them: no packet to it or from it takes the short way.
    for gone in ["10.244.0.5", "10.244.0.9"] {
        let mut world = world();
        world.pods.remove(&wire(gone));
        assert_eq!(from_pod(&mut frame(), &world), Verdict::Pass);
    }
}

#[test]
fn a_services_packets_go_straight_there_and_back() {
    let mut world = world();
    for (mut sent, mut answer) in [
        (
            Frame::tcp("10.244.0.9:7", "10.96.0.10:80", SYN, b""),
            Frame::tcp("10.244.0.5:8080", "10.244.0.9:7", SYN | ACK, b""),
        ),
        (Frame::udp("10.244.0.9:7", "10.96.0.10:80", b"odd"), Frame::udp("10.244.0.5:8080", "10.244.0.9:7", b"answer")),
        (
            Frame::tcp("[fd44::9]:7", "[fd96::10]:80", SYN, b"six"),
            Frame::tcp("[fd44::5]:8080", "[fd44::9]:7", SYN | ACK, b"odd"),
        ),
    ] {
        let (asked, answered) = (sent.ends(), answer.ends());
        world.link = 1;
        assert_eq!(from_pod(&mut sent, &world), Verdict::Into(2));
        assert!(sent.valid() && sent.ends() != asked, "{}", sent.ends());
        world.link = 2;
        assert_eq!(from_pod(&mut answer, &world), Verdict::Into(1));
        let (client, service) = asked.split_once(" > ").unwrap();
        assert_eq!(answer.ends(), std::format!("{service} > {client}"));
        assert!(answer.valid() && answered != answer.ends());
    }
    // Both directions were counted.
    assert_eq!(world.services.borrow()[&1].packets, 6);
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_takes_the_way_of_the_stack() {
    let mut world = world();
    world.link = 2;
    let mut frame = Frame::tcp("10.244.0.5:7", "10.96.0.10:80", SYN, b"");
    assert_eq!(from_pod(&mut frame, &world), Verdict::Pass);
    assert_eq!((frame.ends().as_str(), frame.mark), ("10.244.0.5:7 > 10.244.0.5:8080", MARK_NEEDS_SOURCE));
}

#[test]
fn what_comes_from_outside_goes_straight_into_its_pod() {
    for frame in [
        // From another node's pod, from the world.
        Frame::tcp("10.244.9.9:7", "10.244.0.5:8080", SYN, b""),
        Frame::udp("192.0.2.9:7", "10.244.0.5:53", b"odd"),
        Frame::tcp("[fd44:0:0:2::5]:7", "[fd44::5]:8080", ACK, b"six"),
        Frame::udp("[fd02::9]:7", "[fd44::5]:53", b"?"),
    ] {
        let expected = routed(&frame);
        let mut frame = frame;
        assert_eq!(from_outside(&mut frame, &world()), Verdict::Into(2), "{}", expected.ends());
        assert_eq!(frame.bytes, expected.bytes);
        assert!(frame.valid());
    }
}

#[test]
fn what_comes_from_outside_and_is_the_stacks() {
    let frame = || Frame::tcp("192.0.2.9:7", "10.244.0.5:8080", ACK, b"");
    let (mut dying, mut marked, mut for_others) = (frame(), frame(), frame());
    dying.bytes[22] = 1;
    dying.fix_ip_header();
    marked.mark = 7;
    for_others.bytes[0] |= 1;
    let [first, second] = Frame::udp("192.0.2.9:70", "10.244.0.5:53", &[5; 200]).fragments(64);
    let from = |source: &str| Frame::udp(source, "10.244.0.5:53", b"x");
    let from6 = |source: &str| Frame::udp(source, "[fd44::5]:53", b"x");
    for frame in [
        dying,
        marked,
        for_others,
        first,
        second,
        Frame::udp("192.0.2.9:7", "10.244.0.5:53", &vec![0; MTU as usize - 27]),
        Frame::sctp("192.0.2.9:7", "10.244.0.5:53", 1, b""),
        Frame::echo("192.0.2.9", "10.244.0.5", 8, 7),
        // Sources that nobody outside has.
        from("10.244.0.9:7"),
        from("10.244.0.77:7"),
        from("10.1.0.1:7"),
        from("127.0.0.1:7"),
        from("0.0.0.0:7"),
        from("169.254.169.254:7"),
        from("224.0.0.1:7"),
        from("255.255.255.255:7"),
        from6("[fd44:0:0:1::77]:7"),
        from6("[fd01::1]:7"),
        from6("[::1]:7"),
        from6("[::]:7"),
        from6("[ff02::1]:7"),
        from6("[fe80::1]:7"),
        // Nobody's pod.
        Frame::udp("192.0.2.9:7", "10.244.0.7:53", b"x"),
    ] {
        let mut left = frame.clone();
        assert_eq!(from_outside(&mut left, &world()), Verdict::Pass, "{}", frame.ends());
        assert_eq!(left, frame);
    }
    let mut limited = world();
    limited.pods.remove(&wire("10.244.0.5"));
    assert_eq!(from_outside(&mut frame(), &limited), Verdict::Pass);
}

#[test]
fn what_is_translated_on_the_way_in_goes_straight_into_its_pod() {
    let mut world = world();
    world.serve(protocol::TCP, Scope::External, "*:30080", &["10.244.0.5:8080"]);
    let mut asked = Frame::tcp("192.0.2.9:7", "10.1.0.1:30080", SYN, b"");
    assert_eq!(from_outside(&mut asked, &world), Verdict::Into(2));
    assert_eq!((asked.ends().as_str(), asked.life()), ("192.0.2.9:7 > 10.244.0.5:8080", 63));
    assert!(asked.valid());
    // The answer leaves at once, and has the service's address on the wire.
    world.link = 2;
    let mut answer = Frame::tcp("10.244.0.5:8080", "192.0.2.9:7", SYN | ACK, b"odd");
    assert!(matches!(from_pod(&mut answer, &world), Verdict::Leave(_)));
    assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
    assert_eq!((answer.ends().as_str(), answer.life()), ("10.1.0.1:30080 > 192.0.2.9:7", 63));
    assert!(answer.valid());
    // What another node put into a packet of its own.
    let inner = Frame::tcp("192.0.2.9:8", "10.1.0.3:30080", SYN, b"");
    let mut carried = Frame::carrying("10.1.0.3", "10.244.0.5", 8080, &inner);
    assert_eq!(from_outside(&mut carried, &world), Verdict::Into(2));
    assert_eq!(carried.ends(), "192.0.2.9:8 > 10.244.0.5:8080");
    assert!(carried.valid());
    // A pod's answer by a service elsewhere comes from the service.
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.12:53", &["~10.244.9.9:53"]);
    let mut asked = Frame::udp("10.244.0.5:9", "10.96.0.12:53", b"?");
    assert!(matches!(from_pod(&mut asked, &world), Verdict::Leave(_)));
    assert_eq!((asked.ends().as_str(), asked.mark), ("10.244.0.5:9 > 10.244.9.9:53", 0));
    let mut answer = Frame::udp("10.244.9.9:53", "10.244.0.5:9", b"odd");
    assert_eq!(from_outside(&mut answer, &world), Verdict::Into(2));
    assert_eq!(answer.ends(), "10.96.0.12:53 > 10.244.0.5:9");
    assert!(answer.valid());
    // One to a masqueraded connection finds its pod.
    let mut asked = Frame::udp("10.244.0.5:9", "192.0.2.9:53", b"?");
    assert!(matches!(from_pod(&mut asked, &world), Verdict::Leave(_)));
    assert_eq!(egress_uplink(&mut asked, &world), Verdict::Pass);
    let ends = asked.ends();
    let (source, _) = ends.split_once(" > ").unwrap();
    assert!(source.starts_with("10.1.0.1:6"), "{source}");
    let mut answer = Frame::udp("192.0.2.9:53", source, b"!");
    assert_eq!(from_outside(&mut answer, &world), Verdict::Into(2));
    assert_eq!(answer.ends(), "192.0.2.9:53 > 10.244.0.5:9");
    // A service whose backend is elsewhere is none of a pod's.
    world.serve(protocol::TCP, Scope::External, "*:30090", &["~10.244.9.9:80"]);
    let mut through = Frame::tcp("192.0.2.9:7", "10.1.0.1:30090", SYN, b"");
    assert_eq!(from_outside(&mut through, &world), Verdict::Pass);
    assert_eq!(through.mark, MARK_NEEDS_SOURCE);
    // Nobody there: told as ever.
    world.serve(protocol::TCP, Scope::External, "198.51.100.1:80", &[]);
    let mut refused = Frame::tcp("192.0.2.9:7", "198.51.100.1:80", SYN, b"");
    let verdict = from_outside(&mut refused, &world);
    assert_eq!(carry_out(&mut refused, &world, verdict), Verdict::Answer);
}

#[test]
fn what_was_found_out_about_a_connections_ends_is_kept_until_pods_change() {
    let mut world = world();
    let all = |world: &World| {
        [
            from_pod(&mut Frame::tcp("10.244.0.9:7", "10.244.0.5:8080", ACK, b""), world),
            from_outside(&mut Frame::tcp("192.0.2.9:7", "10.244.0.5:8080", ACK, b""), world),
            from_pod(&mut Frame::tcp("10.244.0.9:7", "10.244.9.9:8080", ACK, b""), world),
        ]
    };
    let found = all(&world);
    assert!(matches!(found, [Verdict::Into(2), Verdict::Into(2), Verdict::Leave(_)]), "{found:?}");
    // Nobody looks: the one who changes them says so.
    let pods = core::mem::take(&mut world.pods);
    assert_eq!(all(&world), found);
    // On another link it is another one's.
    world.link = 3;
    assert_eq!(all(&world), [Verdict::Pass; 3]);
    world.link = 1;
    world.settings.epoch += 1;
    assert_eq!(all(&world), [Verdict::Pass; 3]);
    world.pods = pods;
    assert_eq!(all(&world), found);
    // Another packet of the connection may be too long.
    let mut long = Frame::tcp("192.0.2.9:7", "10.244.0.5:8080", ACK, &vec![0; MTU as usize - 39]);
    assert_eq!(from_outside(&mut long, &world), Verdict::Pass);
}

#[test]
fn an_answer_is_known_though_packets_with_the_same_ends_were_none() {
    let mut world = world();
    world.serve(protocol::TCP, Scope::External, "*:30080", &["10.244.0.5:8080"]);
    world.link = 2;
    let sent = |world: &World| {
        let mut answer = Frame::tcp("10.244.0.5:8080", "10.244.9.9:7", ACK, b"");
        assert!(matches!(from_pod(&mut answer, world), Verdict::Leave(_)));
        answer
    };
    assert_eq!([sent(&world).mark, sent(&world).mark], [MARK_SETTLED; 2]);
    // The client asks the service from the port from which it asked the pod.
    let mut asked = Frame::tcp("10.244.9.9:7", "10.1.0.1:30080", SYN, b"");
    assert_eq!(from_outside(&mut asked, &world), Verdict::Into(2));
    let mut answer = sent(&world);
    assert_eq!(answer.mark, 0);
    assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
    assert_eq!(answer.ends(), "10.1.0.1:30080 > 10.244.9.9:7");
}

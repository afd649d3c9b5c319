//! Datagrams in fragments: translated as whole ones are.

use std::string::ToString;

use sluice_ebpf_common::{Reason, Scope, protocol};

use super::frame::Frame;
use super::world::World;
use crate::{MARK_NEEDS_SOURCE, Verdict, egress_pod, egress_uplink, ingress};

const OUTSIDE: &str = "192.0.2.9:443";

fn world() -> World {
    let mut world = World::new();
    world.serve(protocol::UDP, Scope::External, "*:30053", &["10.244.0.7:5353"]);
    world.serve(protocol::UDP, Scope::External, "*:30054", &["~10.244.9.9:5353"]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.10:53", &["10.244.0.7:5353"]);
    world.serve(protocol::UDP, Scope::Internal, "[fd96::10]:53", &["[fd44::7]:5353"]);
    world
}

#[test]
fn services_there_and_back() {
    let cases = [
        ("192.0.2.9:5000", "10.1.0.1:30053", Scope::External, "10.244.0.7:5353"),
        ("10.244.0.9:7", "10.96.0.10:53", Scope::Internal, "10.244.0.7:5353"),
        ("[fd44::9]:7", "[fd96::10]:53", Scope::Internal, "[fd44::7]:5353"),
    ];
    for (client, service, scope, backend) in cases {
        let world = world();
        let mut fragments = Frame::udp(client, service, &[7; 100]).fragments(64);
        for fragment in &mut fragments {
            assert_eq!(ingress(fragment, &world, scope), Verdict::Pass);
        }
        let whole = Frame::whole(&fragments);
        assert_eq!(whole.ends(), std::format!("{client} > {backend}"));
        assert!(whole.valid());
        let mut fragments = Frame::udp(backend, client, &[9; 90]).fragments(48);
        for fragment in &mut fragments {
            if scope == Scope::External {
                egress_uplink(fragment, &world)
            } else {
                egress_pod(fragment, &world)
            };
        }
        let whole = Frame::whole(&fragments);
        assert_eq!(whole.ends(), std::format!("{service} > {client}"));
        assert!(whole.valid());
        assert_eq!(*world.reasons.borrow(), []);
    }
}

#[test]
fn pods_to_the_outside_and_back() {
    for sent in [Frame::udp("10.244.0.5:1000", OUTSIDE, &[7; 100]), Frame::echo("10.244.0.5", "192.0.2.9", 8, 77)] {
        let world = world();
        let mut fragments = sent.fragments(8);
        for fragment in &mut fragments {
            assert_eq!(egress_uplink(fragment, &world), Verdict::Pass);
        }
        let whole = Frame::whole(&fragments);
        let ends = whole.ends();
        let source = ends.split_once(" > ").unwrap().0.to_string();
        assert!(source.starts_with("10.1.0.1:6") && whole.valid(), "{ends}");
        let identifier = source.rsplit_once(':').unwrap().1.parse().unwrap();
        let answer = match sent.protocol() {
            protocol::UDP => Frame::udp(OUTSIDE, &source, &[8; 64]),
            _ => Frame::echo("192.0.2.9", "10.1.0.1", 0, identifier),
        };
        let mut fragments = answer.fragments(8);
        for fragment in &mut fragments {
            assert_eq!(ingress(fragment, &world, Scope::External), Verdict::Pass);
        }
        let whole = Frame::whole(&fragments);
        assert!(whole.valid() && whole.ends().contains("> 10.244.0.5:"), "{}", whole.ends());
    }
}

#[test]
fn a_remote_backend_sees_the_node_in_every_fragment() {
    let world = world();
    let mut fragments = Frame::udp("192.0.2.9:5000", "10.1.0.1:30054", &[7; 100]).fragments(64);
    for fragment in &mut fragments {
        ingress(fragment, &world, Scope::External);
        assert_eq!(fragment.mark, MARK_NEEDS_SOURCE);
        assert_eq!(egress_uplink(fragment, &world), Verdict::Pass);
    }
    let whole = Frame::whole(&fragments);
    assert!(whole.valid() && whole.ends().starts_with("10.1.0.1:6") && whole.ends().ends_with("> 10.244.9.9:5353"));
}

#[test]
fn one_that_comes_too_early_is_counted_and_never_leaks() {
    let world = world();
    let [_, mut later] = Frame::udp("10.244.0.5:1000", OUTSIDE, &[7; 100]).fragments(64);
    assert_eq!(egress_uplink(&mut later, &world), Verdict::Drop(Reason::Fragment));
    let [_, mut later] = Frame::udp("10.244.0.9:7", "10.244.0.5:8", &[7; 100]).fragments(64);
    let before = later.clone();
    assert_eq!((ingress(&mut later, &world, Scope::Internal), later), (Verdict::Pass, before));
    assert_eq!(*world.reasons.borrow(), [Reason::Fragment; 2]);
}

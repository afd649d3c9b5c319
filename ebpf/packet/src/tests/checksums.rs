//! Properties over random packets.

use std::vec::Vec;

use proptest::prelude::*;
use sluice_ebpf_common::{Scope, protocol};

use super::frame::{ACK, Frame, SYN};
use super::world::{SHORTEST, World};
use crate::{Verdict, egress_pod, egress_uplink, ingress};

fn world() -> World {
    let mut world = World::new();
    for number in [protocol::TCP, protocol::UDP] {
        world.serve(number, Scope::External, "*:30080", &["10.244.0.5:80", "~10.244.9.9:80"]);
        world.serve(number, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:80", "10.244.0.6:81"]);
    }
    world
}

proptest! {
    /// There and back, a packet keeps valid checksums and the client sees the address it asked.
    #[test]
    fn a_round_trip_is_invisible_to_the_client(
        host in 1_u8..255, port in 1_u16..60000, payload in prop::collection::vec(any::<u8>(), 0..64),
        tcp in any::<bool>(), zero in any::<bool>(), random in any::<u32>(),
    ) {
        let mut world = world();
        world.random = [random, random.rotate_left(7), random ^ 0x5a5a_5a5a].into();
        let client = std::format!("192.0.2.{host}:{port}");
        let make = |from: &str, to: &str, flags: u8| {
            let mut frame = if tcp { Frame::tcp(from, to, flags, &payload) } else { Frame::udp(from, to, &payload) };
            if !tcp && zero {
                frame.bytes[40..42].fill(0);
            }
            frame
        };
        let mut frame = make(&client, "10.1.0.1:30080", SYN);
        prop_assert_eq!(ingress(&mut frame, &world, Scope::External), Verdict::Pass);
        if frame.mark != 0 {
            prop_assert_eq!(egress_uplink(&mut frame, &world), Verdict::Pass);
        }
        prop_assert!(frame.valid());
        let ends = frame.ends();
        let (from, to) = ends.split_once(" > ").unwrap();
        let mut answer = make(to, from, SYN | ACK);
        prop_assert_eq!(ingress(&mut answer, &world, Scope::External), Verdict::Pass);
        prop_assert_eq!(egress_uplink(&mut answer, &world), Verdict::Pass);
        prop_assert!(answer.valid());
        prop_assert_eq!(answer.ends(), std::format!("10.1.0.1:30080 > {client}"));
        prop_assert_eq!(!tcp && zero, !tcp && answer.bytes[40..42] == [0, 0]);
    }

    /// No bytes make the code fail, and packets that are not for us are not touched.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120), ip in any::<bool>()) {
        let mut bytes: Vec<u8> = bytes;
        if ip && bytes.len() >= SHORTEST {
            bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
            bytes[23] = [1, 6, 17][bytes[23] as usize % 3];
        }
        let world = world();
        let original = Frame { bytes, mark: 0 };
        for scope in [Scope::Internal, Scope::External] {
            let mut frame = original.clone();
            ingress(&mut frame, &world, scope);
            egress_pod(&mut frame, &world);
            egress_uplink(&mut frame, &world);
            if world.flows.borrow().is_empty() {
                prop_assert_eq!(&frame, &original);
            }
        }
    }
}

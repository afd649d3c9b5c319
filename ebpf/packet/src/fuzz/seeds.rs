//! The seeds that the fuzzer starts from: each holds, and they are what the tests' packets are.

use std::string::String;
use std::vec::Vec;
use std::{format, fs};

use proptest::prelude::*;

use super::{changes, packets};
use crate::tests::frame::{ACK, Frame, SYN};

fn folder(target: &str) -> String {
    format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))
}

/// A packet of each kind that means something to a node.
fn frames() -> Vec<(&'static str, Frame)> {
    let (client, client6, pod) = ("192.0.2.9:5000", "[fd02::9]:5000", "10.244.0.5:1000");
    let node_port = Frame::tcp(client, "10.1.0.1:30080", SYN, b"");
    let carried = Frame::tcp(client, "198.51.100.7:80", SYN, b"");
    let [first, later] = Frame::udp(client, "10.1.0.1:30090", &[7; 48]).fragments(16);
    let [first6, _] = Frame::udp(client6, "[fd01::1]:30080", &[7; 48]).fragments(16);
    std::vec![
        ("node-port", node_port.clone()),
        ("node-port-elsewhere", Frame::udp(client, "10.1.0.1:30090", b"?")),
        ("balanced", Frame::tcp(client, "198.51.100.6:80", SYN, b"")),
        ("direct", carried.clone()),
        ("direct6", Frame::udp(client6, "[fd07::7]:80", b"?")),
        ("ranges", Frame::tcp(client, "198.51.100.8:80", ACK, b"on")),
        ("affinity", Frame::udp(client, "198.51.100.9:80", b"?")),
        ("node-port6", Frame::tcp(client6, "[fd01::1]:30080", SYN, b"")),
        ("sctp", Frame::sctp(client, "10.1.0.1:30080", 1, b"")),
        ("cluster-address", Frame::tcp(pod, "10.96.0.10:80", SYN, b"")),
        ("itself", Frame::udp(pod, "10.96.0.11:80", b"?")),
        ("nobody", Frame::tcp(pod, "10.96.0.12:80", SYN, b"")),
        ("cluster-address6", Frame::udp("[fd44:0:0:1::5]:1000", "[fd96::10]:80", b"?")),
        ("outside", Frame::udp(pod, "192.0.2.9:443", b"?")),
        ("ping", Frame::echo("10.244.0.5", "192.0.2.9", 8, 77)),
        ("neighbour", Frame::tcp(pod, "10.244.0.6:81", SYN, b"")),
        ("error", Frame::error("10.1.0.7", "10.1.0.1", &node_port)),
        ("carried", Frame::carrying("10.1.0.3", "10.244.0.6", 81, &carried)),
        ("fragment", first),
        ("later-fragment", later),
        ("fragment6", first6),
    ]
}

#[test]
fn seeds_are_the_tests_packets() {
    let written = std::env::var_os("SLUICE_WRITE_SEEDS").is_some();
    for (at, (name, frame)) in frames().into_iter().enumerate() {
        // Sealed; every second one amid others, some between known pods.
        let control = 1 | (at as u8 % 2) << 2 | (at as u8 % 3 / 2) << 3;
        let bytes: Vec<u8> = std::iter::once(control).chain(frame.bytes).collect();
        let path = format!("{}/{name}", folder("packets"));
        if written {
            fs::create_dir_all(folder("packets")).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|seed| seed == bytes), "{name}: write it with SLUICE_WRITE_SEEDS=1");
    }
}

#[test]
fn every_seed_holds() {
    hold("packets", packets);
    hold("changes", changes);
}

fn hold(target: &str, run: fn(&[u8])) {
    let seeds: Vec<_> = fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for path in seeds {
        std::println!("{}", path.display());
        run(&fs::read(&path).unwrap());
    }
}

proptest! {
    #[test]
    fn any_story_holds(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        changes(&bytes);
    }
}

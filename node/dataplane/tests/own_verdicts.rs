//! The node's own SCTP through the library on the host and through the programs in the kernel: both have to do the same to every
//! byte.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../ebpf/packet/src/tests/frame.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod frame;
#[path = "common/twin.rs"]
#[allow(dead_code)]
mod twin;
#[path = "../../../ebpf/packet/src/tests/world.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod world;

use common::{isolated, run};
use frame::{Frame, SYN};
use sluice_dataplane::{Hook, Outcome};
use sluice_packet::{
    Begun, Bytes, Covered, Desk, ETHERNET, Exit, Fast, Header, Hop, InsertError, Judging, Maps, PATHS, Packet, Path,
    Paths, Policies, Rate, Raw, Route, Routed, Scratch, Trail, Tunnel,
};
use twin::{agree, both, host};

#[test]
fn host_and_kernel_agree_about_the_nodes_own_associations() {
    isolated("host_and_kernel_agree_about_the_nodes_own_associations", |place| {
        let (dataplane, mut world) = both(place);
        for network in ["10.244.0.0/24", "fd44::/64"] {
            run("ip", &["route", "add", network, "dev", "up0"]);
        }
        // Packets of tests are on the loopback link: it is not the home link, and then it is.
        let (loopback, home) = (1, nix::net::if_::if_nametoindex("slc0").unwrap());
        let ask = |source: &str, service: &str| (Hook::OwnOut, Frame::sctp(source, service, 1, b"odd"));
        let answer = |hook: Hook, backend: &str, to: &str| (hook, Frame::sctp(backend, to, 2, b"cookie"));
        let stranger = Frame::tcp("10.1.0.1:7", "10.96.0.10:80", SYN, b"");
        let [pod, pod6] = ["10.244.0.7:36412", "[fd44::7]:36412"];
        for (link, home) in [(loopback, home), (loopback, loopback)] {
            dataplane.set_home(home).unwrap();
            world.home = home;
            world.link = link;
            let asked = [
                ask("10.1.0.1:7", "10.1.0.1:30063"),
                ask("[fd01::1]:7", "[fd01::1]:30064"),
                ask("10.1.0.1:8", "10.96.0.14:3868"),
                ask("[fd01::1]:8", "[fd96::14]:3868"),
                ask("10.1.0.1:9", "10.96.0.15:3868"),
                ask("[fd01::1]:9", "[fd96::15]:3868"),
                ask("10.1.0.1:9", "10.1.0.1:3868"),
                (Hook::OwnOut, stranger.clone()),
                (Hook::OwnOut, Frame::echo("10.1.0.1", "10.96.0.14", 8, 1)),
                (Hook::OwnOut, Frame::error("10.1.0.1", "10.96.0.14", &stranger)),
            ];
            agree(&dataplane, &world, asked);
            let mut about = Frame::sctp("10.1.0.1:8", "10.96.0.14:3868", 0, b"odd");
            assert_eq!(host(&world, Hook::OwnOut, &mut about), Outcome::Redirected);
            for hook in [Hook::PodIn, Hook::UplinkIn] {
                let answered = [
                    answer(hook, pod, "10.1.0.1:7"),
                    answer(hook, pod6, "[fd01::1]:7"),
                    answer(hook, pod, "10.1.0.1:8"),
                    answer(hook, pod, "10.1.0.1:10"),
                    (hook, Frame::error("10.244.0.7", "10.1.0.1", &about)),
                    (Hook::OwnIn, Frame::sctp(pod, "10.1.0.1:7", 2, b"cookie")),
                    (Hook::OwnIn, Frame::sctp(pod6, "[fd01::1]:8", 2, b"cookie")),
                    (Hook::OwnIn, Frame::error("10.244.0.7", "10.1.0.1", &about)),
                ];
                agree(&dataplane, &world, answered);
            }
            // By a port that chance chooses.
            let passes = |hook: Hook, outcome: Outcome, frame: &Frame| {
                let probe = dataplane.probe(hook, &frame.bytes, 1).unwrap();
                assert_eq!(probe.outcome, outcome, "{}", frame.ends());
                let after = Frame { bytes: probe.frame, mark: 0 };
                assert!(after.valid(), "{}", after.ends());
                after
            };
            let asks = Frame::sctp("127.0.0.1:7", "127.0.0.1:30063", 1, b"odd");
            let asked = passes(Hook::OwnOut, Outcome::Redirected, &asks).ends();
            let (source, backend) = asked.split_once(" > ").unwrap();
            assert!(source.starts_with("10.1.0.1:6") && backend == pod, "{asked}");
            let answered = passes(Hook::UplinkIn, Outcome::Sent, &Frame::sctp(pod, source, 2, b"cookie"));
            assert_eq!(answered.ends(), "10.244.0.7:36412 > 127.0.0.1:7");
            let home = passes(Hook::OwnIn, Outcome::Passed, &answered);
            assert_eq!(home.ends(), "127.0.0.1:30063 > 127.0.0.1:7");
        }
    });
}

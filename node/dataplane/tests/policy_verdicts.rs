//! Policies' packets through the library on the host and through the programs in the kernel (`BPF_PROG_TEST_RUN`): both have to
//! say the same.
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

use std::sync::Arc;

use common::isolated;
use frame::{ACK, Frame, SYN};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::policy::model::{self as policy, Peer, Requirement, Selector, Which};
use sluice_dataplane::{Hook, Outcome, PodInfo};
use sluice_ebpf_common::{Guard, RuleKey, protocol};
use sluice_packet::{
    Begun, Bytes, Covered, Desk, ETHERNET, Exit, Fast, Header, Hop, InsertError, Judging, Maps, PATHS, Packet, Path,
    Paths, Policies, Rate, Raw, Route, Routed, Scratch, Trail, Tunnel,
};
use twin::{both, host};

/// The loopback link plays the pod's.
#[test]
fn host_and_kernel_agree_about_policies() {
    isolated("host_and_kernel_agree_about_policies", |place| {
        let (dataplane, mut world) = both(place);
        let name = |name: &str| (Arc::from("n"), Arc::from(name));
        let pod = |app: &str, addresses: [&str; 2]| policy::Pod {
            labels: [("app", app)].into_iter().collect(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Default::default()
        };
        let app = |app: &str| Selector(vec![Requirement::In("app".into(), [app.into()].into())]);
        let port = |protocol, which| vec![policy::Port { protocol, which }];
        let from_web = policy::Rule {
            peers: vec![Peer::Pods(policy::Namespaces::Own, app("web"))],
            ports: port(Protocol::Tcp, Which::Numbers(8080, 8083)),
        };
        let to_blocks = policy::Rule {
            peers: vec![Peer::Block("192.0.2.0/24".parse().unwrap(), vec!["192.0.2.128/25".parse().unwrap()])],
            ports: port(Protocol::Udp, Which::All),
        };
        let held = policy::Policy { pods: app("db"), ingress: Some(vec![from_web]), egress: Some(vec![to_blocks]) };
        let snapshot = policy::Snapshot {
            namespaces: [(Arc::from("n"), Default::default())].into(),
            pods: [
                (name("lo"), pod("db", ["10.244.0.5", "fd44::5"])),
                (name("web"), pod("web", ["10.244.9.9", "fd44:0:0:2::5"])),
            ]
            .into(),
            policies: [(name("p"), held)].into(),
            ..Default::default()
        };
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        let info = PodInfo { namespace: "n".into(), name: "lo".into(), services: Default::default(), neighbour: None };
        dataplane.attach_pod(index, &info).unwrap();
        dataplane.apply_policies(snapshot).unwrap();
        world.link = index;
        world.guard = Some(Guard { ingress: 1, egress: 2, generation: 1, ..Guard::default() });
        for address in ["10.244.9.9", "fd44:0:0:2::5"] {
            world.peers.insert(frame::wire(address), 3);
        }
        world.blocks.push((frame::wire("192.0.2.0"), frame::mask("255.255.255.0"), 4));
        world.blocks.push((frame::wire("192.0.2.128"), frame::mask("255.255.255.128"), 5));
        let rule = |set, who, protocol, port: u16, bits| {
            (RuleKey { set, who, protocol, port: port.to_be_bytes(), reserved: 0 }, bits)
        };
        world.rules.push(rule(1, 3, protocol::TCP, 8080, RuleKey::BITS - 2));
        world.rules.push(rule(2, 4, protocol::UDP, 0, RuleKey::ANY_NUMBER));
        let asked = Frame::udp("10.244.0.5:7", "192.0.2.9:53", b"?");
        let [first, second] = Frame::udp("10.244.0.5:8", "192.0.2.9:53", &[5; 200]).fragments(64);
        let mut not_ip = Frame::udp("10.244.9.1:7", "10.244.0.5:53", b"x");
        not_ip.bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        let mut solicitation = Frame::echo("fd44::9", "fd44::5", 8, 1);
        solicitation.bytes[54] = 135;
        let (passes, goes) = (Outcome::Passed, Outcome::Dropped);
        let packets = [
            (Hook::PolicyOut, Frame::tcp("10.244.9.9:40000", "10.244.0.5:8081", SYN, b""), passes),
            (Hook::PolicyIn, Frame::tcp("10.244.0.5:8081", "10.244.9.9:40000", SYN | ACK, b""), passes),
            (Hook::PolicyIn, Frame::tcp("10.244.0.5:8081", "10.244.9.9:40000", SYN, b""), goes),
            (Hook::PolicyOut, Frame::tcp("10.244.9.9:40000", "10.244.0.5:8084", SYN, b""), goes),
            (Hook::PolicyOut, Frame::tcp("10.244.9.8:40000", "10.244.0.5:8081", SYN, b""), goes),
            (Hook::PolicyOut, Frame::tcp("[fd44:0:0:2::5]:40000", "[fd44::5]:8083", SYN, b""), passes),
            (Hook::PolicyOut, Frame::tcp("[fd44:0:0:2::6]:40000", "[fd44::5]:8083", SYN, b""), goes),
            (Hook::PolicyOut, Frame::sctp("10.244.9.9:4", "10.244.0.5:8081", 1, b""), goes),
            (Hook::PolicyOut, Frame::error("192.0.2.1", "10.244.0.5", &asked), goes),
            (Hook::PolicyIn, asked.clone(), passes),
            (Hook::PolicyOut, Frame::error("192.0.2.1", "10.244.0.5", &asked), passes),
            (Hook::PolicyOut, Frame::udp("192.0.2.9:53", "10.244.0.5:7", b"!"), passes),
            (Hook::PolicyIn, Frame::udp("10.244.0.5:7", "192.0.2.129:53", b"?"), goes),
            (Hook::PolicyIn, first, passes),
            (Hook::PolicyIn, second, passes),
            (Hook::PolicyIn, Frame::tcp("10.244.0.5:7", "10.1.0.1:80", SYN, b""), passes),
            (Hook::PolicyIn, Frame::tcp("10.244.0.5:7", "10.244.0.5:80", SYN, b""), passes),
            // As if it came from elsewhere.
            (Hook::PolicyOut, Frame::tcp("10.244.0.5:7", "10.244.0.5:80", SYN, b""), goes),
            (Hook::PolicyOut, Frame::echo("10.244.9.9", "10.244.0.5", 8, 1), goes),
            (Hook::PolicyOut, not_ip, passes),
            (Hook::PolicyOut, solicitation, passes),
        ];
        for (number, (hook, frame, expected)) in packets.into_iter().enumerate() {
            let outcome = host(&world, hook, &mut frame.clone());
            let kernel = dataplane.probe(hook, &frame.bytes, 1).unwrap();
            assert_eq!((kernel.outcome, outcome), (expected, expected), "packet {number}: {}", frame.ends());
            assert_eq!(kernel.frame, frame.bytes, "packet {number}: {}", frame.ends());
        }
    });
}

//! The same packets through the library on the host and through the programs in the kernel (`BPF_PROG_TEST_RUN`): both
//! have to do the same to every byte.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../ebpf/packet/src/tests/frame.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod frame;
#[path = "common/twin.rs"]
mod twin;
#[path = "../../../ebpf/packet/src/tests/world.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod world;

use common::{Place, isolated, run};
use frame::{ACK, FIN, Frame, SYN};
use sluice_dataplane::model::{Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};
use sluice_dataplane::{Config, Dataplane, Hook, Neighbour, Outcome, PodInfo, Xdp};
use sluice_ebpf_common::{PodLink, protocol};
use sluice_packet::{
    Begun, Bytes, Covered, Desk, ETHERNET, Exit, Fast, Header, Hop, InsertError, Judging, Maps, PATHS, Packet, Path,
    Paths, Policies, Rate, Raw, Route, Routed, Scratch, Trail, Tunnel,
};
use twin::{agree, both, host};
use world::World;

const CLIENT: &str = "192.0.2.9:5000";

#[test]
fn host_and_kernel_agree() {
    isolated("host_and_kernel_agree", |place| {
        let (dataplane, world) = both(place);
        let mut no_checksum = Frame::udp("10.244.0.9:7", "10.96.0.11:53", b"odd");
        no_checksum.bytes[40..42].fill(0);
        let mut options = Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, &[0; 8]);
        options.bytes[14] = 0x46;
        let mut with_options = Frame::tcp("10.244.0.9:7", "10.96.0.13:80", SYN, b"");
        with_options.bytes.splice(34..34, [1, 1, 1, 0]);
        with_options.bytes[14] = 0x46;
        with_options.bytes[16..18].copy_from_slice(&44_u16.to_be_bytes());
        with_options.fix_ip_header();
        // A hop-by-hop header, then one of a first fragment.
        let mut extended = Frame::udp("[fd44::9]:8", "[fd96::11]:53", b"?");
        extended.bytes.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9]);
        (extended.bytes[19], extended.bytes[20]) = (extended.bytes[19] + 16, 0);
        let mut truncated = Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b"");
        truncated.bytes.truncate(40);
        let mut fragment = Frame::udp("10.244.0.9:7", "10.96.0.11:53", b"x");
        fragment.bytes[20] = 0x20;
        let mut later_fragment = fragment.clone();
        later_fragment.bytes[21] = 8;
        let mut sctp_fragment = Frame::sctp("10.244.0.9:8", "10.96.0.14:3868", 1, b"");
        sctp_fragment.bytes[20] = 0x20;
        sctp_fragment.fix_ip_header();
        let mut not_ip = Frame::udp("10.244.0.9:7", "10.96.0.11:53", b"x");
        not_ip.bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        let request = Frame::udp("10.244.0.9:7", "10.244.0.6:5353", b"?");
        let about_request = Frame::error("10.244.0.6", "10.244.0.9", &request);
        let request = Frame::udp("[fd44::9]:7", "[fd44::6]:5353", b"?");
        let about_request6 = Frame::error("fd44::6", "fd44::9", &request);
        let [first, second] = Frame::udp("10.244.0.9:70", "10.96.0.11:53", &[5; 200]).fragments(64);
        let [first6, second6] = Frame::udp("[fd44::9]:70", "[fd96::11]:53", &[5; 200]).fragments(64);
        let error = Frame::error("192.0.2.1", "10.1.0.1", &Frame::udp("10.1.0.1:61000", CLIENT, b"x"));
        // In order: flows of earlier packets matter to later ones.
        let packets = [
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", ACK, b"some payload")),
            (Hook::UplinkOut, Frame::tcp("10.244.0.5:8080", CLIENT, ACK, b"odd")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", ACK | FIN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30081", SYN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.9:30080", SYN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30070", SYN, b"")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30090", SYN, b"")),
            (Hook::UplinkIn, Frame::udp(CLIENT, "10.1.0.1:30053", b"?")),
            (Hook::UplinkIn, options),
            (Hook::UplinkIn, truncated),
            (Hook::UplinkIn, error),
            (Hook::UplinkIn, Frame::echo("192.0.2.9", "10.1.0.1", 8, 61000)),
            (Hook::PodIn, Frame::tcp("10.244.0.9:7", "10.96.0.10:80", SYN, b"")),
            (Hook::PodOut, Frame::tcp("10.244.0.5:8080", "10.244.0.9:7", SYN | ACK, b"")),
            (Hook::PodOut, Frame::tcp("10.244.0.5:8080", "10.244.0.9:8", ACK, b"")),
            (Hook::PodIn, Frame::udp("10.244.0.9:7", "10.96.0.11:53", b"?")),
            (Hook::PodOut, Frame::udp("10.244.0.6:5353", "10.244.0.9:7", b"!")),
            (Hook::PodIn, Frame::udp("10.244.0.6:7", "10.96.0.11:53", b"myself")),
            (Hook::PodIn, no_checksum),
            (Hook::PodIn, fragment),
            (Hook::PodIn, later_fragment),
            (Hook::PodIn, not_ip),
            (Hook::PodIn, Frame::echo("10.244.0.9", "10.96.0.10", 8, 1)),
            (Hook::UplinkOut, Frame::tcp("10.244.0.5:1000", "10.244.7.7:80", SYN, b"")),
            (Hook::UplinkOut, Frame::tcp("10.1.0.1:1000", CLIENT, SYN, b"")),
            // Nobody answers there: the answer is an error.
            (Hook::PodIn, Frame::tcp("10.244.0.9:7", "10.96.0.13:80", SYN, b"")),
            (Hook::PodIn, with_options),
            (Hook::PodIn, Frame::tcp("[fd44::9]:7", "[fd96::13]:80", SYN, &[7; 100])),
            // IPv6, there and back.
            (Hook::PodIn, Frame::tcp("[fd44::9]:7", "[fd96::10]:80", SYN, b"six")),
            (Hook::PodOut, Frame::tcp("[fd44::5]:8080", "[fd44::9]:7", SYN | ACK, b"odd")),
            (Hook::PodIn, Frame::udp("[fd44::9]:7", "[fd96::11]:53", b"?")),
            (Hook::PodIn, extended),
            (Hook::PodIn, Frame::echo("fd44::9", "fd96::10", 8, 1)),
            (Hook::PodOut, Frame::udp("[fd44::6]:5353", "[fd44::9]:7", b"!")),
            (Hook::UplinkIn, Frame::error("fd02::1", "fd96::11", &Frame::udp("[fd96::11]:53", "[fd44::9]:7", b"!"))),
            (Hook::UplinkIn, Frame::tcp("[fd02::9]:5000", "[fd01::1]:30060", SYN, b"")),
            // SCTP, there and back, and refused.
            (Hook::PodIn, Frame::sctp("10.244.0.9:7", "10.96.0.14:3868", 1, b"")),
            (Hook::PodIn, Frame::sctp("10.244.0.9:7", "10.96.0.14:3868", 0, &[9; 1400])),
            (Hook::PodOut, Frame::sctp("10.244.0.7:36412", "10.244.0.9:7", 2, b"cookie")),
            (Hook::UplinkIn, Frame::sctp(CLIENT, "10.1.0.1:30063", 1, b"")),
            (Hook::UplinkOut, Frame::sctp("10.244.0.7:36412", CLIENT, 2, b"odd")),
            (Hook::PodIn, Frame::sctp("[fd44::9]:7", "[fd96::14]:3868", 1, b"")),
            (Hook::PodOut, Frame::sctp("[fd44::7]:36412", "[fd44::9]:7", 2, b"")),
            (Hook::PodIn, Frame::sctp("10.244.0.9:7", "10.96.0.15:3868", 1, &[1; 60])),
            (Hook::PodIn, Frame::sctp("10.244.0.9:7", "10.96.0.15:3868", 0, &[1; 60])),
            (Hook::PodIn, Frame::sctp("10.244.0.9:7", "10.96.0.15:3868", 6, b"")),
            (Hook::PodIn, Frame::sctp("[fd44::9]:7", "[fd96::15]:3868", 1, b"")),
            (Hook::PodIn, sctp_fragment),
            (Hook::PodIn, second.clone()),
            (Hook::PodIn, first),
            (Hook::PodIn, second),
            (Hook::PodIn, first6),
            (Hook::PodOut, about_request),
            (Hook::PodOut, about_request6),
            (Hook::PodIn, second6),
        ];
        agree(&dataplane, &world, packets);
    });
}

/// Packets of tests come in by the loopback link, which plays the sender's.
#[test]
fn host_and_kernel_agree_about_neighbours() {
    isolated("host_and_kernel_agree_about_neighbours", |place| {
        let (dataplane, mut world) = both(place);
        run("ip", &["link", "set", "slc0", "address", "06:00:00:00:00:02"]);
        for (link, number, addresses) in [("lo", 1, ["10.244.0.9", "fd44::9"]), ("slc0", 2, ["10.244.0.5", "fd44::5"])]
        {
            let index = nix::net::if_::if_nametoindex(link).unwrap();
            let (mac, own) = ([4, 0, 0, 0, 0, number], if number == 2 { [6, 0, 0, 0, 0, 2] } else { [0; 6] });
            for address in addresses {
                world.pods.insert(frame::wire(address), PodLink::new(index, 1500, mac, own));
            }
            let neighbour = Neighbour { addresses: addresses.map(|text| text.parse().unwrap()).to_vec(), mac };
            let pod = PodInfo {
                namespace: "n".into(),
                name: link.into(),
                services: Default::default(),
                neighbour: Some(neighbour),
            };
            dataplane.attach_pod(index, &pod).unwrap();
        }
        let mut dying = Frame::udp("10.244.0.9:7", "10.244.0.5:53", b"x");
        dying.bytes[22] = 1;
        dying.fix_ip_header();
        let [first, second] = Frame::udp("10.244.0.9:70", "10.244.0.5:53", &[5; 200]).fragments(64);
        let packets = [
            (Frame::tcp("10.244.0.9:7", "10.244.0.5:9000", SYN, b""), Outcome::Sent),
            (Frame::tcp("[fd44::9]:7", "[fd44::5]:9000", SYN, b"six"), Outcome::Sent),
            (Frame::udp("10.244.0.9:7", "10.244.0.5:53", b"odd"), Outcome::Sent),
            (Frame::sctp("[fd44::9]:7", "[fd44::5]:53", 1, b""), Outcome::Passed),
            // By a service, the second one of a connection, too.
            (Frame::tcp("10.244.0.9:7", "10.96.0.10:80", SYN, b""), Outcome::Sent),
            (Frame::tcp("10.244.0.9:7", "10.96.0.10:80", ACK, b"odd"), Outcome::Sent),
            (Frame::tcp("[fd44::9]:7", "[fd96::10]:80", SYN, b"six"), Outcome::Sent),
            (Frame::udp("10.244.0.9:7", "10.96.0.11:53", b"?"), Outcome::Passed),
            (Frame::udp("10.244.0.9:7", "10.244.0.5:53", &[0; 1473]), Outcome::Passed),
            (Frame::tcp("10.244.0.5:7", "10.244.0.9:9000", SYN, b""), Outcome::Passed),
            (Frame::echo("10.244.0.9", "10.244.0.5", 8, 1), Outcome::Passed),
            (Frame::tcp("10.244.0.9:7", "10.96.0.13:80", SYN, b""), Outcome::Redirected),
            (dying, Outcome::Passed),
            (first, Outcome::Passed),
            (second, Outcome::Passed),
        ];
        for (number, (frame, expected)) in packets.into_iter().enumerate() {
            let kernel = dataplane.probe(Hook::PodIn, &frame.bytes, 1).unwrap();
            let mut ours = frame.clone();
            let outcome = host(&world, Hook::PodIn, &mut ours);
            assert_eq!((kernel.outcome, outcome), (expected, expected), "packet {number}: {}", frame.ends());
            assert_eq!(kernel.frame, ours.bytes, "packet {number}: {}", frame.ends());
        }
    });
}

/// The loopback link plays the pod's for what goes out, and the uplink for what comes in.
#[test]
fn host_and_kernel_agree_about_the_outside() {
    isolated("host_and_kernel_agree_about_the_outside", |place| {
        let (dataplane, mut world) = both(place);
        run("ip", &["link", "set", "slc0", "address", "06:00:00:00:00:02"]);
        for (link, number, addresses) in
            [("lo", 1, ["10.244.0.9", "fd44:0:0:1::9"]), ("slc0", 2, ["10.244.0.5", "fd44:0:0:1::5"])]
        {
            let index = nix::net::if_::if_nametoindex(link).unwrap();
            let (mac, own) = ([4, 0, 0, 0, 0, number], if number == 2 { [6, 0, 0, 0, 0, 2] } else { [0; 6] });
            for address in addresses {
                world.pods.insert(frame::wire(address), PodLink::new(index, 1500, mac, own));
            }
            let addresses = addresses.map(|text| text.parse().unwrap()).to_vec();
            let pod = PodInfo {
                namespace: "n".into(),
                name: link.into(),
                services: Default::default(),
                neighbour: Some(Neighbour { addresses, mac }),
            };
            dataplane.attach_pod(index, &pod).unwrap();
        }
        world.link = nix::net::if_::if_nametoindex("lo").unwrap();
        let last_hop = |mut frame: Frame| {
            frame.bytes[22] = 1;
            frame.fix_ip_header();
            frame
        };
        let group = |mut frame: Frame| {
            frame.bytes[0] = 1;
            frame
        };
        let (pod, pod6) = ("10.244.0.9:7", "[fd44:0:0:1::9]:7");
        let (far, far6) = ("10.244.9.9:9000", "[fd44:0:0:2::5]:9000");
        let (near, near6) = ("10.244.0.5:8080", "[fd44:0:0:1::5]:8080");
        let packets = [
            (Hook::PodIn, Frame::tcp(pod, far, SYN, b""), Outcome::Sent),
            (Hook::PodIn, Frame::udp(pod6, far6, b"six"), Outcome::Sent),
            (Hook::PodIn, Frame::udp(pod, CLIENT, b"odd"), Outcome::Sent),
            (Hook::PodIn, Frame::tcp(pod6, "[fd02::9]:80", ACK, b""), Outcome::Sent),
            // By a service elsewhere.
            (Hook::PodIn, Frame::tcp(pod, "10.96.0.12:80", SYN, b""), Outcome::Sent),
            (Hook::PodIn, Frame::tcp(pod6, "[fd96::12]:80", SYN, b""), Outcome::Sent),
            (Hook::PodIn, Frame::udp(pod, far, &[0; 1472]), Outcome::Sent),
            (Hook::PodIn, Frame::udp(pod, far, &[0; 1473]), Outcome::Passed),
            (Hook::PodIn, Frame::udp(pod6, far6, &[0; 1453]), Outcome::Passed),
            (Hook::PodIn, last_hop(Frame::udp(pod, far, b"x")), Outcome::Passed),
            (Hook::PodIn, Frame::tcp(pod, "10.244.8.8:80", SYN, b""), Outcome::Passed),
            (Hook::PodIn, Frame::tcp(pod, "10.1.0.1:80", SYN, b""), Outcome::Passed),
            (Hook::PodIn, Frame::tcp("10.244.0.8:7", far, SYN, b""), Outcome::Passed),
            (Hook::PodIn, Frame::echo("10.244.0.9", "10.244.9.9", 8, 1), Outcome::Passed),
            (Hook::UplinkIn, Frame::tcp(CLIENT, near, SYN, b""), Outcome::Sent),
            (Hook::UplinkIn, Frame::udp(far6, near6, b"odd"), Outcome::Sent),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""), Outcome::Sent),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.1.0.1:30080", ACK, b"odd"), Outcome::Sent),
            (Hook::UplinkIn, group(Frame::tcp(CLIENT, near, SYN, b"")), Outcome::Passed),
            (Hook::UplinkIn, last_hop(Frame::tcp(CLIENT, near, SYN, b"")), Outcome::Passed),
            (Hook::UplinkIn, Frame::tcp("10.1.0.1:7", near, SYN, b""), Outcome::Passed),
            (Hook::UplinkIn, Frame::tcp("10.244.0.77:7", near, SYN, b""), Outcome::Passed),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "10.244.0.77:8080", SYN, b""), Outcome::Passed),
        ];
        for (number, (hook, mut frame, expected)) in packets.into_iter().enumerate() {
            if hook == Hook::UplinkIn && frame.bytes[0] != 1 {
                // The loopback link's own address.
                frame.bytes[..6].fill(0);
            }
            let kernel = dataplane.probe(hook, &frame.bytes, 1).unwrap();
            let mut ours = frame.clone();
            let outcome = host(&world, hook, &mut ours);
            assert_eq!((kernel.outcome, outcome), (expected, expected), "packet {number}: {}", frame.ends());
            assert_eq!(kernel.frame, ours.bytes, "packet {number}: {}", frame.ends());
        }
    });
}

#[test]
fn masquerade_in_the_kernel_and_back() {
    isolated("masquerade_in_the_kernel_and_back", |place| {
        let (dataplane, _) = both(place);
        let frame = |bytes: Vec<u8>| Frame { bytes, mark: 0 };
        for sent in [
            Frame::tcp("10.244.0.5:1000", CLIENT, SYN, b""),
            Frame::udp("10.244.0.5:1000", CLIENT, b"odd"),
            Frame::echo("10.244.0.5", "192.0.2.9", 8, 77),
            Frame::sctp("10.244.0.5:1000", CLIENT, 1, b"odd"),
        ] {
            let out = frame(dataplane.probe(Hook::UplinkOut, &sent.bytes, 1).unwrap().frame);
            let ends = out.ends();
            assert!(ends.starts_with("10.1.0.1:6") && out.valid(), "{ends}");
            let again = dataplane.probe(Hook::UplinkOut, &sent.bytes, 1).unwrap();
            assert_eq!(frame(again.frame).ends(), ends, "the port stays");
            let source = ends.split_once(" > ").unwrap().0;
            let (answer, expected) = match sent.bytes[23] {
                protocol::TCP => (Frame::tcp(CLIENT, source, ACK, b"odd"), "192.0.2.9:5000 > 10.244.0.5:1000"),
                protocol::UDP => (Frame::udp(CLIENT, source, b"x"), "192.0.2.9:5000 > 10.244.0.5:1000"),
                protocol::SCTP => (Frame::sctp(CLIENT, source, 2, b"x"), "192.0.2.9:5000 > 10.244.0.5:1000"),
                _ => {
                    let identifier = source.split_once(':').unwrap().1.parse().unwrap();
                    (Frame::echo("192.0.2.9", "10.1.0.1", 0, identifier), "192.0.2.9:77 > 10.244.0.5:77")
                }
            };
            let back = frame(dataplane.probe(Hook::UplinkIn, &answer.bytes, 1).unwrap().frame);
            assert_eq!(back.ends(), expected);
            assert!(back.valid());
            if sent.bytes[23] != protocol::ICMP {
                let error = Frame::error("192.0.2.1", "10.1.0.1", &out);
                let back = frame(dataplane.probe(Hook::UplinkIn, &error.bytes, 1).unwrap().frame);
                assert!(back.valid() && back.ends().contains("> 10.244.0.5"), "{}", back.ends());
                assert_eq!(back.bytes[42..66], sent.bytes[14..38]);
            }
        }
    });
}

/// Makes the host's next masquerade port what the kernel chose.
fn choose(world: &mut World, frame: &[u8]) {
    let at = if frame[12] == 8 { 34 } else { 54 };
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    if let Some(number) = u32::from(port).checked_sub(world.settings.source_port_first.into()) {
        let ports = u32::from(world.settings.source_port_last - world.settings.source_port_first) + 1;
        let groups = u64::from(ports.div_ceil(128));
        let group = (u64::from(number / 128) << 32).div_ceil(groups) as u32;
        world.random = vec![((group >> 16) + 1) << 16 | ((number % 64) << 8) | (number / 64 % 2)];
    }
}

#[test]
fn host_and_driver_agree() {
    isolated("host_and_driver_agree", |place| agree_onward(place, Hook::Wire));
}

#[test]
fn host_and_the_program_in_the_drivers_place_agree() {
    isolated("host_and_the_program_in_the_drivers_place_agree", |place| {
        // On a link what is for others is none of the node's.
        run("ip", &["link", "set", "lo", "address", "02:00:00:00:00:01"]);
        agree_onward(place, Hook::Onward);
    });
}

/// Both translations of a connection at once.
fn agree_onward(place: &Place, hook: Hook) {
    let (dataplane, mut world) = both(place);
    let tagged = |mut frame: Frame, tag: &[u8]| {
        frame.bytes.splice(12..12, tag.iter().copied());
        frame
    };
    let mut no_checksum = Frame::udp(CLIENT, "10.1.0.1:30054", b"odd");
    no_checksum.bytes[40..42].fill(0);
    let mut dying = Frame::tcp(CLIENT, "10.1.0.1:30090", ACK, b"");
    dying.bytes[22] = 1;
    let mut fragment = Frame::udp(CLIENT, "10.1.0.1:30054", b"x");
    fragment.bytes[20] = 0x20;
    let mut truncated = Frame::tcp(CLIENT, "10.1.0.1:30090", SYN, b"");
    truncated.bytes.truncate(40);
    let packets = [
        // Here: translated, and left to the stack.
        Frame::tcp(CLIENT, "10.1.0.1:30080", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.1:30080", ACK, b"some payload"),
        Frame::tcp(CLIENT, "10.1.0.1:30080", ACK | FIN, b""),
        Frame::tcp("[fd02::9]:5000", "[fd01::1]:30060", SYN, b"six"),
        // Elsewhere: sent on.
        Frame::tcp(CLIENT, "10.1.0.1:30090", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.1:30090", ACK, b"odd"),
        Frame::tcp("[fd02::9]:5000", "[fd01::1]:30063", SYN, b"six"),
        Frame::tcp("[fd02::9]:5000", "[fd01::1]:30063", ACK, b"odd"),
        Frame::udp(CLIENT, "10.1.0.1:30054", b"?"),
        no_checksum,
        // Left alone.
        Frame::udp(CLIENT, "10.1.0.1:30054", &[0; 1500]),
        dying,
        fragment,
        truncated,
        Frame::tcp(CLIENT, "10.1.0.1:30070", SYN, b""),
        Frame::tcp(CLIENT, "10.1.0.1:22", SYN, b""),
        Frame::echo("192.0.2.9", "10.1.0.1", 8, 61000),
        Frame { bytes: vec![0; 60], mark: 0 },
        // No such VLAN is known, and nothing is left of the look inside.
        tagged(Frame::tcp(CLIENT, "10.1.0.1:30090", ACK, b"x"), &[0x81, 0, 0, 5]),
        tagged(Frame::tcp(CLIENT, "10.1.0.1:22", ACK, b"x"), &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]),
        Frame::tcp(CLIENT, "10.1.0.1:30090", ACK, b"x"),
    ];
    for (number, frame) in packets.into_iter().enumerate() {
        let kernel = dataplane.probe(hook, &frame.bytes, 1).unwrap();
        choose(&mut world, &kernel.frame);
        let mut ours = frame.clone();
        let outcome = host(&world, hook, &mut ours);
        assert_eq!(kernel.outcome, outcome, "packet {number}");
        assert_eq!(kernel.frame, ours.bytes, "packet {number}");
        if outcome != Outcome::Sent {
            continue;
        }
        // And the answer.
        let ends = ours.ends();
        let (source, destination) = ends.split_once(" > ").unwrap();
        let answer = match ours.protocol() {
            protocol::TCP => Frame::tcp(destination, source, ACK, b"odd"),
            _ => Frame::udp(destination, source, b"odd"),
        };
        let back = dataplane.probe(hook, &answer.bytes, 1).unwrap();
        let mut ours = answer.clone();
        assert_eq!((back.outcome, host(&world, hook, &mut ours)), (Outcome::Sent, Outcome::Sent));
        assert_eq!(back.frame, ours.bytes, "the answer to packet {number}");
        assert!(ours.valid() && !ours.ends().contains("10.244"), "{}", ours.ends());
    }
    let status = dataplane.status().unwrap();
    let uplinks: Vec<_> = status.uplinks.iter().map(|row| (row.link.as_str(), row.xdp)).collect();
    assert_eq!(uplinks, [("up0", "native")]);
}

#[test]
fn direct_server_return_in_the_kernel() {
    isolated("direct_server_return_in_the_kernel", |place| {
        let (dataplane, world) = both(place);
        const CLIENT6: &str = "[fd02::9]:5000";
        let near = Frame::tcp(CLIENT, "198.51.100.9:80", SYN, b"");
        let near6 = Frame::tcp(CLIENT6, "[fd07::9]:80", SYN, b"six");
        let [first, second] = Frame::udp(CLIENT, "198.51.100.10:53", &[5; 200]).fragments(64);
        let carried = |inner: &Frame, port| Frame::carrying("10.1.0.3", "10.244.0.5", port, inner);
        let carried6 = |inner: &Frame| Frame::carrying("fd01::3", "fd44:0:0:1::5", 8080, inner);
        let mut congested = carried(&near, 8080);
        (congested.bytes[15], congested.bytes[35]) = (3, 2);
        congested.fix_ip_header();
        congested.bytes[44..46].fill(0);
        let header = frame::sum(&congested.bytes[34..54], 0);
        congested.bytes[44..46].copy_from_slice(&header.to_be_bytes());
        let packets = [
            // To a backend elsewhere, by the link's program and by the driver's.
            (Hook::UplinkIn, Frame::tcp(CLIENT, "198.51.100.7:80", SYN, b"odd")),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "198.51.100.7:80", ACK, b"")),
            (Hook::UplinkIn, Frame::udp(CLIENT, "198.51.100.8:53", b"?")),
            (Hook::UplinkIn, Frame::tcp(CLIENT6, "[fd07::7]:80", SYN, b"six")),
            (Hook::UplinkIn, Frame::udp(CLIENT, "198.51.100.8:53", &[0; 1452])),
            (Hook::UplinkIn, Frame::udp(CLIENT, "198.51.100.8:53", &[0; 1453])),
            (Hook::UplinkIn, Frame::tcp(CLIENT, "198.51.100.7:80", ACK, &[9; 1460])),
            (Hook::UplinkIn, Frame::tcp(CLIENT6, "[fd07::7]:80", ACK, &[9; 1401])),
            (Hook::Wire, Frame::tcp("192.0.2.9:5001", "198.51.100.7:80", SYN, b"odd")),
            (Hook::Wire, Frame::tcp("192.0.2.9:5001", "198.51.100.7:80", ACK, b"")),
            (Hook::Wire, Frame::tcp("192.0.2.9:5001", "198.51.100.7:80", ACK | FIN, b"x")),
            (Hook::Wire, Frame::udp("192.0.2.9:5001", "198.51.100.8:53", b"?")),
            (Hook::Wire, Frame::tcp("[fd02::9]:5001", "[fd07::7]:80", SYN, b"six")),
            (Hook::Wire, Frame::tcp("[fd02::9]:5001", "[fd07::7]:80", ACK, &[6; 77])),
            (Hook::Wire, Frame::udp("192.0.2.9:5001", "198.51.100.8:53", &[0; 1453])),
            // From a load balancer to a backend here, and back.
            (Hook::UplinkIn, carried(&near, 8080)),
            (Hook::UplinkOut, Frame::tcp("10.244.0.5:8080", CLIENT, SYN | ACK, b"odd")),
            (Hook::UplinkIn, carried(&Frame::tcp(CLIENT, "198.51.100.9:80", ACK, b"odd"), 8080)),
            (Hook::UplinkIn, congested),
            (Hook::UplinkIn, carried6(&near6)),
            (Hook::UplinkOut, Frame::tcp("[fd44:0:0:1::5]:8080", CLIENT6, SYN | ACK, b"odd")),
            (Hook::UplinkIn, carried(&second, 53)),
            (Hook::UplinkIn, carried(&first, 53)),
            (Hook::UplinkIn, carried(&second, 53)),
            (Hook::Wire, carried(&near, 8080)),
            // Not from a node, not for a service, not for a pod of this node.
            (Hook::UplinkIn, Frame::carrying("192.0.2.66", "10.244.0.5", 8080, &near)),
            (Hook::UplinkIn, carried(&Frame::tcp(CLIENT, "198.51.100.99:80", SYN, b""), 8080)),
            (Hook::UplinkIn, Frame::carrying("10.1.0.3", "10.244.7.5", 8080, &near)),
            (Hook::PodIn, carried(&near, 8080)),
        ];
        agree(&dataplane, &world, packets);
        let refused = dataplane.status().unwrap().refused;
        assert_eq!(refused.values().sum::<u64>(), world.reasons.borrow().len() as u64, "{refused:?}");
    });
}

/// The driver's program does the work of both others on an uplink, for both families. Verifiers before 6.6 see less often that
/// they have been somewhere before.
fn ceiling(program: &str) -> u32 {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    match program {
        _ if version < (6, 6) => 180_000,
        "uplink_xdp" => 70_000,
        _ => 135_000,
    }
}

/// Prints what a packet costs. Ratios matter, not the numbers: the machine is shared.
#[test]
fn the_verifier_stays_far_from_its_limit() {
    isolated("the_verifier_stays_far_from_its_limit", |place| {
        let (dataplane, _) = both(place);
        // Two services that lead to each other: every run of a repeated probe translates.
        let names = ["a", "b"];
        let addresses = [[10, 97, 0, 1], [10, 97, 0, 2]].map(std::net::Ipv4Addr::from);
        let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
        for at in 0..2 {
            let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
            let service = Service { cluster: vec![addresses[at].into()], ports: vec![port], ..Service::default() };
            snapshot.services.insert(("n".into(), names[at].into()), service);
            let endpoint = sluice_dataplane::model::Endpoint {
                address: Some(addresses[1 - at].into()),
                ready: true,
                ..Default::default()
            };
            let ports = vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }];
            let slice = Slice { service: names[at].into(), ports, endpoints: vec![endpoint] };
            snapshot.slices.insert(("n".into(), names[at].into()), slice);
        }
        dataplane.apply(&snapshot).unwrap();
        let best = |hook: Hook, frame: &Frame| {
            (0..9).map(|_| dataplane.probe(hook, &frame.bytes, 100_000).unwrap().time).min().unwrap()
        };
        println!(
            "established service packet: {:?}",
            best(Hook::PodIn, &Frame::tcp("10.244.0.9:7", "10.97.0.1:80", ACK, b""))
        );
        println!("packet not for a service: {:?}", best(Hook::UplinkIn, &Frame::tcp(CLIENT, "10.1.0.1:22", ACK, b"")));
        println!("egress, not translated: {:?}", best(Hook::UplinkOut, &Frame::tcp("10.1.0.1:22", CLIENT, ACK, b"")));
        let far = Frame::tcp(CLIENT, "10.1.0.1:30090", ACK, b"");
        dataplane.probe(Hook::Wire, &far.bytes, 1).unwrap();
        println!("driver, not for a service: {:?}", best(Hook::Wire, &Frame::tcp(CLIENT, "10.1.0.1:22", ACK, b"")));
        println!("driver, not IP: {:?}", best(Hook::Wire, &Frame { bytes: vec![0; 60], mark: 0 }));
        println!("not IP: {:?}", best(Hook::UplinkIn, &Frame { bytes: vec![0; 60], mark: 0 }));
        let index = nix::net::if_::if_nametoindex("slc0").unwrap();
        let pod = PodInfo { namespace: "n".into(), name: "p".into(), services: Default::default(), neighbour: None };
        dataplane.attach_pod(index, &pod).unwrap();
        dataplane.set_home(index).unwrap();
        let mut programs = dataplane.status().unwrap().programs;
        drop(dataplane);
        // Instead of the driver's.
        let other = Dataplane::load(Config { xdp: Xdp::Off, ..twin::config(place) }).unwrap();
        programs.extend(other.status().unwrap().programs.into_iter().filter(|row| row.name == "uplink_onward"));
        for row in &programs {
            println!("{}: {} instructions verified", row.name, row.verified_instructions);
        }
        for row in &programs {
            assert!((1..ceiling(&row.name)).contains(&row.verified_instructions), "{row:?}");
        }
    });
}

/// What only opens a connection stands beside the flow table; its Service may have nothing in it.
#[test]
fn a_connection_that_is_being_opened_is_shown_with_its_service() {
    isolated("a_connection_that_is_being_opened_is_shown_with_its_service", |place| {
        let (dataplane, _) = both(place);
        let frame = Frame::tcp("192.0.2.9:5001", "10.1.0.1:30090", SYN, b"");
        assert_eq!(dataplane.probe(Hook::Wire, &frame.bytes, 1).unwrap().outcome, Outcome::Sent);
        let rows = sluice_dataplane::flows(&place.pins).unwrap();
        let shown: Vec<_> = rows.iter().map(|row| (row.state, row.service.as_deref())).collect();
        assert_eq!(shown, [("opening", Some("n/far:main"))]);
    });
}

/// Nodes of two versions work side by side during an upgrade: a connection that moves between them keeps its backend.
#[test]
fn external_choices_are_the_same_in_every_version() {
    isolated("external_choices_are_the_same_in_every_version", |place| {
        let (dataplane, _) = both(place);
        let backends = ["10.244.0.5:80", "10.244.0.6:80", "10.244.0.7:80"];
        dataplane.apply(&common::service(Protocol::Tcp, "10.96.0.10:80", 30080, &backends)).unwrap();
        let goes = |host: u8| {
            let frame = Frame::tcp(&format!("198.51.100.{host}:5000"), "10.1.0.1:30080", SYN, b"");
            let bytes = dataplane.probe(Hook::UplinkIn, &frame.bytes, 1).unwrap().frame;
            bytes[33]
        };
        let chosen: Vec<u8> = (1..=24).map(goes).collect();
        assert_eq!(chosen, [7, 7, 5, 6, 6, 5, 6, 5, 6, 5, 5, 7, 7, 5, 6, 5, 6, 5, 6, 7, 5, 5, 5, 7]);
    });
}

//! One node twice: its programs in the kernel, and the library over a host world. Part of the test programs that have both.

use sluice_dataplane::model::{Forwarding, Protocol, Slice, Snapshot};
use sluice_dataplane::{Config, Dataplane, Hook, Outcome, Uplinks, Xdp};
use sluice_ebpf_common::{Frontend, HOME_MAC, Scope};
use sluice_packet::{
    Verdict, Way, carry_out, egress_pod, egress_uplink, from_node, from_outside, from_pod, may_receive, may_send,
    onward, uplink,
};

use crate::common::{self, Place, run};
use crate::frame::Frame;
use crate::world::{self, World};

/// The node's data plane, with its program in the driver.
pub(crate) fn config(place: &Place) -> Config {
    Config {
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        xdp: Xdp::Always,
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some("10.244.0.0/24".parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: ["10.1.0.1", "fd01::1"].map(|address| address.parse().unwrap()).to_vec(),
        ..place.config()
    }
}

/// The same services in the kernel and in a host world: one backend each, so that no choice is random.
pub(crate) fn both(place: &Place) -> (Dataplane, World) {
    run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
    run("ip", &["address", "add", "fd01::1/128", "dev", "lo", "nodad"]);
    run("ip", &["link", "add", "up0", "address", "04:00:00:00:00:00", "type", "veth", "peer", "name", "slc0"]);
    for link in ["up0", "slc0"] {
        run("ip", &["link", "set", link, "up", "addrgenmode", "none"]);
    }
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
    }
    run("ip", &["address", "add", "fd01::1/128", "dev", "up0", "nodad"]);
    // Neighbours as the host world has them.
    for (network, via, link) in [
        ("192.0.2.0/24", "10.3.0.2", world::UPLINK),
        ("10.244.9.0/24", "10.3.0.3", world::INWARD),
        ("fd02::/64", "fd03::2", world::UPLINK),
        ("fd44:0:0:2::/64", "fd03::3", world::INWARD),
    ] {
        run("ip", &["neigh", "add", via, "lladdr", &format!("06:00:00:00:00:{link:02x}"), "dev", "up0"]);
        run("ip", &["route", "add", network, "via", via, "dev", "up0", "onlink"]);
    }
    let start = std::time::Instant::now();
    let dataplane = Dataplane::load(config(place)).unwrap();
    println!("loaded and attached in {:?}", start.elapsed());
    dataplane.set_pod_ranges("fd44:0:0:1::/64".parse().unwrap(), "fd44::/48".parse().unwrap()).unwrap();
    dataplane.set_nodes(["10.1.0.3", "fd01::3"].map(|node| node.parse::<std::net::IpAddr>().unwrap())).unwrap();
    let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
    let mut world = World::new();
    let services = [
        ("web", Protocol::Tcp, "10.96.0.10:80", 30080, Some("10.244.0.5:8080")),
        ("dns", Protocol::Udp, "10.96.0.11:53", 30053, Some("10.244.0.6:5353")),
        ("far", Protocol::Tcp, "10.96.0.12:80", 30090, Some("~10.244.9.9:80")),
        ("none", Protocol::Tcp, "10.96.0.13:80", 30070, None),
        ("web6", Protocol::Tcp, "[fd96::10]:80", 30060, Some("[fd44::5]:8080")),
        ("dns6", Protocol::Udp, "[fd96::11]:53", 30061, Some("[fd44::6]:5353")),
        ("far6", Protocol::Tcp, "[fd96::12]:80", 30063, Some("~[fd44:0:0:2::5]:8080")),
        ("fardns", Protocol::Udp, "10.96.0.14:53", 30054, Some("~10.244.9.9:53")),
        ("none6", Protocol::Tcp, "[fd96::13]:80", 30062, None),
        ("sctp", Protocol::Sctp, "10.96.0.14:3868", 30063, Some("10.244.0.7:36412")),
        ("sctp6", Protocol::Sctp, "[fd96::14]:3868", 30064, Some("[fd44::7]:36412")),
        ("sctp-none", Protocol::Sctp, "10.96.0.15:3868", 0, None),
        ("sctp6-none", Protocol::Sctp, "[fd96::15]:3868", 0, None),
    ];
    for (name, kind, cluster, node_port, backend) in services {
        let backends: Vec<&str> = backend.into_iter().collect();
        for scope in [Scope::Internal, Scope::External] {
            let any = if cluster.starts_with('[') { "[*]" } else { "*" };
            world.serve(kind.number(), scope, &format!("{any}:{node_port}"), &backends);
        }
        world.serve(kind.number(), Scope::Internal, cluster, &backends);
        let one = common::service(kind, cluster, node_port, &backends);
        let service = one.services.into_values().next().unwrap();
        snapshot.services.insert(("n".into(), name.into()), service);
        for slice in one.slices.into_values() {
            snapshot.slices.insert(("n".into(), name.into()), Slice { service: name.into(), ..slice });
        }
    }
    for (name, kind, cluster, external, backend) in DIRECT {
        world.serve(kind.number(), Scope::External, external, &[backend]);
        world.change(external, |frontend| frontend.flags |= Frontend::DIRECT);
        let one = common::service(kind, cluster, 0, &[backend]);
        let mut service = one.services.into_values().next().unwrap();
        service.external = vec![external.parse::<std::net::SocketAddr>().unwrap().ip()];
        service.forwarding = Some(Forwarding::Dsr);
        snapshot.services.insert(("n".into(), name.into()), service);
        for slice in one.slices.into_values() {
            snapshot.slices.insert(("n".into(), name.into()), Slice { service: name.into(), ..slice });
        }
    }
    assert_eq!(dataplane.apply(&snapshot).unwrap(), Vec::<String>::new());
    (dataplane, world)
}

/// Services whose backends elsewhere answer by themselves, and such with a backend here.
const DIRECT: [(&str, Protocol, &str, &str, &str); 6] = [
    ("direct", Protocol::Tcp, "10.96.0.20:80", "198.51.100.7:80", "~10.244.9.9:8080"),
    ("direct-dns", Protocol::Udp, "10.96.0.21:53", "198.51.100.8:53", "~10.244.9.9:53"),
    ("direct6", Protocol::Tcp, "[fd96::20]:80", "[fd07::7]:80", "~[fd44:0:0:2::5]:8080"),
    ("near", Protocol::Tcp, "10.96.0.22:80", "198.51.100.9:80", "10.244.0.5:8080"),
    ("near-dns", Protocol::Udp, "10.96.0.23:53", "198.51.100.10:53", "10.244.0.5:53"),
    ("near6", Protocol::Tcp, "[fd96::22]:80", "[fd07::9]:80", "[fd44:0:0:1::5]:8080"),
];

pub(crate) fn host(world: &World, hook: Hook, frame: &mut Frame) -> Outcome {
    let verdict = match hook {
        Hook::Wire | Hook::Onward => {
            let way = if hook == Hook::Wire { uplink(frame, world) } else { onward(frame, world, || true) };
            return match way {
                Way::Stack => Outcome::Passed,
                Way::Out(_) => Outcome::Sent,
                Way::Drop => Outcome::Dropped,
            };
        }
        Hook::UplinkIn => from_outside(frame, world),
        Hook::UplinkOut => egress_uplink(frame, world),
        Hook::PodIn => from_pod(frame, world),
        Hook::PodOut | Hook::OwnIn => egress_pod(frame, world),
        Hook::OwnOut => from_node(frame, world),
        Hook::PolicyIn => may_send(frame, world),
        Hook::PolicyOut => may_receive(frame, world, world.link + 1),
    };
    let verdict = carry_out(frame, world, verdict);
    if verdict == Verdict::Home || (hook, verdict) == (Hook::OwnOut, Verdict::Answer) {
        frame.bytes[..6].copy_from_slice(&HOME_MAC);
    }
    match verdict {
        Verdict::Pass => Outcome::Passed,
        Verdict::Answer | Verdict::Onward(_) => Outcome::Redirected,
        Verdict::Home if hook == Hook::OwnOut => Outcome::Redirected,
        Verdict::Into(_) | Verdict::Leave(_) | Verdict::Home => Outcome::Sent,
        Verdict::Drop(_) | Verdict::Refuse(_) | Verdict::TooBig(_) | Verdict::Encapsulate => Outcome::Dropped,
    }
}

/// The kernel makes of the packets, one after the other, what the host makes of them.
pub(crate) fn agree(dataplane: &Dataplane, world: &World, packets: impl IntoIterator<Item = (Hook, Frame)>) {
    for (number, (hook, frame)) in packets.into_iter().enumerate() {
        let kernel = dataplane.probe(hook, &frame.bytes, 1).unwrap();
        let mut ours = frame.clone();
        let outcome = host(world, hook, &mut ours);
        assert_eq!(kernel.outcome, outcome, "packet {number}: {hook:?} {}", frame.ends());
        assert_eq!(kernel.frame, ours.bytes, "packet {number}: {hook:?} {}", frame.ends());
    }
}

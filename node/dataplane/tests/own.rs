//! The node's own SCTP sockets and services: by packet, over the home link that the node's network makes.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../ebpf/packet/src/tests/frame.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod frame;
#[path = "common/sctp.rs"]
mod sctp;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

use common::{Namespace, PATIENCE, Place, isolated, pods, run, service};
use frame::Frame;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use sluice_dataplane::End;
use sluice_dataplane::explain::{Explainer, Explanation, Fate, Known, Question, Sender};
use sluice_dataplane::model::{Protocol, Snapshot};
use sluice_dataplane::{ByPacket, Config, Dataplane, HOME_MAC, Uplinks};
use sluice_network::Network;
use sluice_packet::{Bytes, Covered, ETHERNET, Exit, Hop, Packet, Raw, Routed, Tunnel};
use tokio::runtime::Runtime;

const PODS: [&str; 2] = ["10.244.0.5", "fd44::5"];
const OUTSIDE: &str = "10.1.0.2";
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// A node with a pod, a machine outside, and the network that the home link belongs to.
struct Node {
    runtime: Runtime,
    network: Network,
    dataplane: Dataplane,
    pod: Namespace,
    outside: Namespace,
}

impl Node {
    fn new(place: &Place) -> Node {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        for network in ["10.244.0.0/24", "10.96.0.0/16"] {
            run("ip", &["-n", pods::name(&outside), "route", "add", network, "via", "10.1.0.1"]);
        }
        let runtime = Runtime::new().unwrap();
        let config = sluice_network::Config {
            cluster_cidrs: ["10.244.0.0/16", "fd44::/48"].map(|range| range.parse().unwrap()).to_vec(),
            service_cidrs: ["10.96.0.0/16", "fd96::/112"].map(|range| range.parse().unwrap()).to_vec(),
            pod_cidrs: ["10.244.0.0/24", "fd44::/64"].map(|range| range.parse().unwrap()).to_vec(),
            node_ips: Vec::new(),
            mtu: None,
            netns_dir: std::env::temp_dir().join(&place.name),
        };
        let network = runtime.block_on(async {
            let network = Network::new(config).await.unwrap();
            network.setup_node().await.unwrap();
            network
        });
        let pod = pods::pod(place, "slc5", &PODS);
        let dataplane = load(place);
        pods::attach(&dataplane, "slc5", None);
        Node { runtime, network, dataplane, pod, outside }
    }

    /// Does what the data plane says of services that are reached by packet.
    fn lead(&self) {
        let told = self.dataplane.by_packet().borrow().clone();
        let ByPacket::Services(addresses) = told else { panic!("{told:?}") };
        self.runtime.block_on(async {
            let home = self.network.ensure_home(HOME_MAC).await.unwrap();
            self.dataplane.set_home(home).unwrap();
            self.network.lead_home(&addresses).await.unwrap();
        });
    }

    fn serve(&self, snapshot: &Snapshot) {
        assert_eq!(self.dataplane.apply(snapshot).unwrap(), Vec::<String>::new());
        self.lead();
    }
}

fn load(place: &Place) -> Dataplane {
    let config = Config {
        uplinks: Uplinks::Every { except: vec!["slc".into(), "sluice".into()] },
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some("10.244.0.0/24".parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        ..place.config()
    };
    let dataplane = Dataplane::load(config).unwrap();
    dataplane.set_pod_ranges("fd44::/64".parse().unwrap(), "fd44::/48".parse().unwrap()).unwrap();
    dataplane
}

fn web(cluster: &str, endpoints: &[&str]) -> Snapshot {
    service(Protocol::Sctp, cluster, 30063, endpoints)
}

#[test]
#[ignore = "needs SCTP sockets: runs under cargo xtask kernel"]
fn associations_of_the_node_reach_services() {
    isolated("associations_of_the_node_reach_services", |place| {
        let node = Node::new(place);
        let strict = |value: &str| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", value).unwrap();
        node.pod.within(|| PODS.map(|pod| sctp::server(&end(pod))));
        node.outside.within(|| sctp::server(&end(OUTSIDE)));
        sctp::server("10.1.0.1:36412");
        let asks = |own: &str, to: &str| {
            let (said, peer) = sctp::ask(own, to).unwrap_or_else(|error| panic!("{own} > {to}: {error}"));
            assert_eq!(peer, to);
            said
        };

        // By the service's address, also where sources are checked strictly: a pod, a machine elsewhere.
        strict("1");
        node.serve(&web("10.96.0.14:3868", &[&end(PODS[0])]));
        assert_eq!(asks("10.244.0.1:5000", "10.96.0.14:3868"), "10.244.0.5:36412 10.244.0.1:5000");
        assert_eq!(asks("10.1.0.1:5001", "10.96.0.14:3868"), "10.244.0.5:36412 10.1.0.1:5001");
        node.serve(&web("10.96.0.14:3868", &[&end(OUTSIDE)]));
        assert_eq!(asks("10.1.0.1:5002", "10.96.0.14:3868"), "10.1.0.2:36412 10.1.0.1:5002");
        strict("0");

        // By a port of the node, and by loopback, where the pod has to see an address that it can answer.
        node.serve(&web("10.96.0.14:3868", &[&end(PODS[0])]));
        assert_eq!(asks("10.1.0.1:5003", "10.1.0.1:30063"), "10.244.0.5:36412 10.1.0.1:5003");
        let said = asks("127.0.0.1:5004", "127.0.0.1:30063");
        assert!(said.starts_with("10.244.0.5:36412 10.244.0.1:6"), "{said}");
        let row = node.dataplane.services().unwrap().remove(0);
        assert_eq!(row.connections, 5, "{row:?}");

        // A server of the node's own.
        node.serve(&web("10.96.0.14:3868", &["10.1.0.1:36412"]));
        assert_eq!(asks("10.244.0.1:5005", "10.96.0.14:3868"), "10.1.0.1:36412 10.244.0.1:5005");
        assert_eq!(asks("10.1.0.1:5006", "10.1.0.1:30063"), "10.1.0.1:36412 10.1.0.1:5006");

        // Nobody: an ABORT, at once.
        node.serve(&web("10.96.0.14:3868", &[]));
        let refused = sctp::ask("10.244.0.1:5007", "10.96.0.14:3868").unwrap_err().kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);

        // What is open lives through a restart of the daemon, and through the end of its service.
        node.serve(&web("[fd96::14]:3868", &[&end(PODS[1])]));
        let mut open = sctp::Association::begin("[fd44::1]:5000", "[fd96::14]:3868").unwrap();
        assert_eq!(open.ask().unwrap(), "[fd44::5]:36412 [fd44::1]:5000");
        let Node { runtime, network, dataplane, pod, outside } = node;
        drop(dataplane);
        let node = Node { runtime, network, dataplane: load(place), pod, outside };
        assert_eq!(*node.dataplane.by_packet().borrow(), ByPacket::Unknown);
        assert_eq!(open.ask().unwrap(), "[fd44::5]:36412 [fd44::1]:5000");
        node.serve(&web("[fd96::15]:3868", &[&end(PODS[1])]));
        assert_eq!(open.ask().unwrap(), "[fd44::5]:36412 [fd44::1]:5000");
        asks("[fd44::1]:5001", "[fd96::15]:3868");
    });
}

/// A pod's end, a machine's.
fn end(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:36412") } else { format!("{address}:36412") }
}

/// Where the kernel knows no SCTP, its packets can be made by hand.
fn raw() -> OwnedFd {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0)).unwrap();
    socket
}

/// What the node's tables and programs say of an association that it begins.
fn explained(place: &Place, to: &str) -> Explanation {
    let to: std::net::SocketAddr = to.parse().unwrap();
    let destination = End { address: to.ip(), port: to.port() };
    let protocol = Protocol::Sctp;
    let question = Question { sender: Sender::Node, destination, protocol, source_port: None, cluster: None };
    let told = Explainer::open(&place.pins).unwrap().explain(&question).unwrap();
    assert_eq!(told.warnings, [""; 0], "{told:#?}");
    let steps = told.steps.iter().chain(told.answer.iter().flat_map(|answer| &answer.steps));
    assert!(steps.into_iter().all(|step| step.known != Known::RunDiffers), "{told:#?}");
    told
}

/// Where it ends.
fn reached(fate: &Fate) -> Option<String> {
    match fate {
        Fate::Delivered { to, .. } | Fate::Leaves { to, .. } => Some(format!("{}:{}", to.address, to.port)),
        _ => None,
    }
}

/// Sends a chunk; its checksum knows no addresses.
fn send(socket: &OwnedFd, from: u16, to: &str, kind: u8) {
    let frame = Frame::sctp(&format!("192.0.2.1:{from}"), to, kind, b"odd!");
    let (address, _) = to.rsplit_once(':').unwrap();
    let to: std::net::SocketAddrV4 = format!("{address}:0").parse().unwrap();
    sendto(socket.as_raw_fd(), &frame.bytes[34..], &SockaddrIn::from(to), MsgFlags::empty()).unwrap();
}

/// The ends of the next packet, whose checksum has to be right.
fn next(socket: &OwnedFd) -> String {
    let mut bytes = vec![0; 14];
    bytes[12..14].copy_from_slice(&[8, 0]);
    let mut packet = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
    bytes.extend(&packet[..length]);
    let frame = Frame { bytes, mark: 0 };
    assert!(frame.valid(), "{}", frame.ends());
    frame.ends()
}

#[test]
fn packets_of_the_node_find_services_and_answers_find_the_node() {
    isolated("packets_of_the_node_find_services_and_answers_find_the_node", |place| {
        let node = Node::new(place);
        assert_eq!(*node.dataplane.by_packet().borrow(), ByPacket::Unknown);
        node.dataplane.apply(&service(Protocol::Tcp, "10.96.0.14:3868", 30063, &[&end(PODS[0])])).unwrap();
        assert_eq!(*node.dataplane.by_packet().borrow(), ByPacket::Nothing);
        let (own, pod, outside) = (raw(), node.pod.within(raw), node.outside.within(raw));
        // Service, its backend, who is there, who asks, and who that is to the server: a machine elsewhere knows no pod range.
        let cases = [
            ("10.96.0.14:3868", &pod, PODS[0], "10.244.0.1", "10.244.0.1:5"),
            ("10.96.0.14:3868", &outside, OUTSIDE, "10.244.0.1", "10.1.0.1:6"),
            ("10.1.0.1:30063", &pod, PODS[0], "10.1.0.1", "10.1.0.1:5"),
            ("10.1.0.1:30063", &outside, OUTSIDE, "10.1.0.1", "10.1.0.1:5"),
        ];
        for (number, (asked, server, backend, client, seen)) in cases.into_iter().enumerate() {
            node.serve(&web("10.96.0.14:3868", &[&end(backend)]));
            let port = 5000 + number as u16;
            send(&own, port, asked, INIT);
            let came = next(server);
            let (source, to) = came.split_once(" > ").unwrap();
            assert!(source.starts_with(seen) && to == end(backend), "{came}");
            send(server, 36412, source, INIT_ACK);
            assert_eq!(next(&own), format!("{asked} > {client}:{port}"));
            let told = explained(place, asked);
            assert_eq!((reached(&told.fate), told.answer.map(|answer| answer.fits)), (Some(end(backend)), Some(true)));
        }
        node.serve(&web("10.96.0.14:3868", &[&end(PODS[0])]));
        let told = explained(place, "127.0.0.1:30063");
        let answer = told.answer.as_ref().unwrap();
        assert!(reached(&told.fate) == Some(end(PODS[0])) && answer.fits, "{told:#?}");
        assert!(answer.steps.iter().any(|step| step.at == "own_in" && step.known == Known::Run), "{told:#?}");
        let unserved = "10.96.0.14:3868";
        node.serve(&web(unserved, &[]));
        let told = explained(place, unserved);
        assert!(matches!(told.fate, Fate::Refused { reason: "NoEndpoint", .. }), "{told:#?}");
        send(&own, 5010, unserved, INIT);
        assert_eq!(next(&own), "10.96.0.14:3868 > 10.244.0.1:5010", "an ABORT");
        // Another protocol's packets have nobody there, and are told so.
        let datagrams = UdpSocket::bind("10.244.0.1:0").unwrap();
        datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
        datagrams.connect("10.96.0.14:53").unwrap();
        datagrams.send(b"?").unwrap();
        let told = datagrams.recv(&mut [0]).unwrap_err();
        assert_eq!(told.kind(), std::io::ErrorKind::ConnectionRefused);

        // Services that go leave no home link when the daemon starts again without them.
        node.dataplane.apply(&Snapshot::default()).unwrap();
        assert_eq!(*node.dataplane.by_packet().borrow(), ByPacket::Nothing);
        node.dataplane.leave_home().unwrap();
        node.runtime.block_on(node.network.remove_home()).unwrap();
        let links: BTreeSet<_> =
            nix::net::if_::if_nameindex().unwrap().iter().map(|link| link.name().to_owned()).collect();
        assert!(!links.iter().any(|link| link.to_string_lossy().starts_with("sluice")), "{links:?}");
        let programs = node.dataplane.status().unwrap().programs;
        assert!(!programs.iter().any(|row| row.name.starts_with("own")), "{programs:?}");
        let service = SockaddrIn::new(10, 96, 0, 14, 0);
        let unreachable = sendto(own.as_raw_fd(), &[0; 16], &service, MsgFlags::empty());
        assert_eq!(unreachable, Err(nix::Error::EHOSTUNREACH));
    });
}

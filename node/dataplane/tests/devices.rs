//! Links that the kernel at hand may not know: bonds, VLANs, other queueing. They run on the second kernel
//! (`cargo xtask kernel`), which has them all.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/sctp.rs"]
mod sctp;

use std::net::UdpSocket;

use common::{Namespace, PATIENCE, Place, act_as_card, connect, forwarded, isolated, pods, run, service, tcp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, PodInfo, Uplinks, Xdp};

const NODE_PORT: &str = "10.1.0.1:30080";

/// A client on the other end of two links that are bonded here, on a VLAN above the bond.
fn bonded(place: &Place, via: &str) -> common::Namespace {
    let outside = place.neighbour("outside", "slave0", None, "10.9.0.2/24", None);
    let namespace = outside.path.file_name().unwrap().to_str().unwrap().to_owned();
    let inside = |arguments: &[&str]| run("ip", &[&["-n", &namespace], arguments].concat());
    inside(&["link", "set", "eth0", "down"]);
    run("ip", &["link", "set", "slave0", "down"]);
    for arguments in [
        vec!["link", "add", "bond0", "type", "bond", "mode", "active-backup", "miimon", "10"],
        vec!["link", "set", "slave0", "master", "bond0"],
        vec!["link", "set", "bond0", "up"],
        vec!["link", "add", "link", "bond0", "name", "bond0.7", "type", "vlan", "id", "7"],
        vec!["link", "set", "bond0.7", "up"],
    ] {
        run("ip", &arguments);
    }
    inside(&["link", "set", "eth0", "up"]);
    inside(&["link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7"]);
    inside(&["link", "set", "eth0.7", "up"]);
    let (here, there) = if via == "bond0" { ("bond0", "eth0") } else { ("bond0.7", "eth0.7") };
    run("ip", &["address", "add", "10.1.0.1/24", "dev", here]);
    inside(&["address", "add", "10.1.0.2/24", "dev", there]);
    outside
}

fn node(place: &Place) -> Config {
    Config {
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        cgroup: Some(place.elsewhere.clone()),
        ..place.config()
    }
}

fn node_port_answers(place: &Place, via: &str) {
    let outside = bonded(place, via);
    let dataplane = Dataplane::load(node(place)).unwrap();
    let server = tcp_server("10.1.0.1:8080");
    dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8080"])).unwrap();
    let mut client = outside.within(|| connect(NODE_PORT).unwrap());
    assert_eq!(client.server, server);
    assert_eq!(client.stream.peer_addr().unwrap().to_string(), NODE_PORT);
    assert!(client.alive());
}

/// The same, with the work done in the driver of the links below: a backend elsewhere is reached without the stack.
fn driver_sends_on(place: &Place, outside: &common::Namespace, here: &str, expected: &[(&str, &str)]) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let dataplane = Dataplane::load(Config { xdp: Xdp::Always, ..node(place) }).unwrap();
    let rows: Vec<_> = dataplane.status().unwrap().uplinks.into_iter().map(|row| (row.link, row.xdp)).collect();
    for (link, way) in expected {
        assert!(rows.contains(&((*link).to_owned(), *way)), "{link} by {way}: {rows:?}");
    }
    // Another machine behind the same wire.
    let name = outside.path.file_name().unwrap().to_str().unwrap();
    run("ip", &["-n", name, "address", "add", "10.1.0.3/24", "dev", here]);
    outside.within(|| tcp_server("10.1.0.3:8080"));
    dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["~10.1.0.3:8080"])).unwrap();
    let reach = || {
        outside.within(|| {
            let mut client = connect(NODE_PORT).unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.1.0.1");
            (0..20).for_each(|_| assert!(client.alive()));
        });
    };
    // Neighbours are known afterwards.
    reach();
    let before = forwarded();
    reach();
    assert_eq!(forwarded(), before, "nothing passed through the stack");
    let row = dataplane.services().unwrap().remove(0);
    assert!(row.connections == 2 && row.packets > 80, "{row:?}");
}

/// Packets go straight into a pod from the link that they are for, and from the pod straight out by it.
fn a_pod_is_reached_straight(
    place: &Place,
    via: &str,
    prepare: impl FnOnce(&str),
) -> (Namespace, Namespace, Dataplane) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let outside = bonded(place, via);
    prepare(pods::name(&outside));
    let addresses = ["10.244.0.5", "fd44::5"];
    let pod = pods::pod(place, "slc5", &addresses);
    let range = Some("10.244.0.0/24".parse().unwrap());
    let dataplane = Dataplane::load(Config { pod_range: range, cluster_range: range, ..node(place) }).unwrap();
    pods::attach(&dataplane, "slc5", Some(pods::neighbour(&pod, &addresses)));
    pod.within(|| tcp_server("10.244.0.5:8080"));
    dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.244.0.5:8080"])).unwrap();
    let before = forwarded();
    outside.within(|| {
        let mut client = connect(NODE_PORT).unwrap();
        assert_eq!(client.seen_as, client.stream.local_addr().unwrap());
        (0..20).for_each(|_| assert!(client.alive()));
    });
    assert_eq!(forwarded(), before, "nothing passed through the stack");
    (outside, pod, dataplane)
}

#[test]
#[ignore = "needs bonds and VLANs: runs under cargo xtask kernel"]
fn a_pod_is_reached_straight_from_a_vlan_on_a_bond() {
    isolated("a_pod_is_reached_straight_from_a_vlan_on_a_bond", |place| {
        a_pod_is_reached_straight(place, "bond0.7", |_| {});
    });
}

/// What comes by the slave that waits is not for anybody, as the bond has it.
#[test]
#[ignore = "needs bonds: runs under cargo xtask kernel"]
fn a_pod_is_reached_straight_from_a_bond_and_not_from_its_slaves() {
    isolated("a_pod_is_reached_straight_from_a_bond_and_not_from_its_slaves", |place| {
        let (outside, pod, _dataplane) = a_pod_is_reached_straight(place, "bond0", |namespace| {
            run("ip", &["link", "add", "slave1", "type", "veth", "peer", "name", "eth1", "netns", namespace]);
            run("ip", &["link", "set", "slave1", "master", "bond0"]);
        });
        let namespace = pods::name(&outside).to_owned();
        let shown = pods::shown("ip", &["-o", "link", "show", "bond0"]);
        let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        for arguments in [
            &["link", "set", "eth1", "up"][..],
            &["route", "add", "10.244.0.5/32", "dev", "eth1"],
            &["neighbour", "add", "10.244.0.5", "lladdr", mac, "dev", "eth1"],
        ] {
            run("ip", &[&["-n", &namespace], arguments].concat());
        }
        let receiver = pod.within(|| UdpSocket::bind("10.244.0.5:9000").unwrap());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let sender = outside.within(|| UdpSocket::bind("10.1.0.2:0").unwrap());
        sender.send_to(b"by the wrong one", "10.244.0.5:9000").unwrap();
        run("ip", &["-n", &namespace, "route", "replace", "10.244.0.5/32", "via", "10.1.0.1"]);
        sender.send_to(b"right", "10.244.0.5:9000").unwrap();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"right");
    });
}

#[test]
#[ignore = "needs bonds: runs under cargo xtask kernel"]
fn the_driver_of_a_bonds_slave_sends_a_services_packets_on() {
    isolated("the_driver_of_a_bonds_slave_sends_a_services_packets_on", |place| {
        let outside = bonded(place, "bond0");
        outside.within(|| act_as_card("eth0"));
        driver_sends_on(place, &outside, "eth0", &[("bond0", "native"), ("slave0", "native")]);
    });
}

#[test]
fn the_driver_sends_a_services_packets_back_by_the_same_link() {
    isolated("the_driver_sends_a_services_packets_back_by_the_same_link", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        outside.within(|| {
            act_as_card("eth0");
            common::wake_for_frames("eth0");
        });
        driver_sends_on(place, &outside, "eth0", &[("up0", "native")]);
    });
}

#[test]
#[ignore = "needs VLANs: runs under cargo xtask kernel"]
fn the_driver_below_a_vlan_sends_a_services_packets_on() {
    isolated("the_driver_below_a_vlan_sends_a_services_packets_on", |place| {
        let outside = place.neighbour("outside", "up0", None, "10.9.0.2/24", None);
        let namespace = outside.path.file_name().unwrap().to_str().unwrap().to_owned();
        outside.within(|| {
            act_as_card("eth0");
            common::wake_for_frames("eth0");
            common::tag_in_frames("eth0");
        });
        run("ip", &["link", "add", "link", "up0", "name", "up0.7", "type", "vlan", "id", "7"]);
        run("ip", &["link", "set", "up0.7", "up"]);
        run("ip", &["address", "add", "10.1.0.1/24", "dev", "up0.7"]);
        for arguments in [
            &["link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7"][..],
            &["link", "set", "eth0.7", "up"],
            &["address", "add", "10.1.0.2/24", "dev", "eth0.7"],
        ] {
            run("ip", &[&["-n", &namespace], arguments].concat());
        }
        driver_sends_on(place, &outside, "eth0.7", &[("up0", "native"), ("up0.7", "tc")]);
    });
}

#[test]
#[ignore = "needs bonds and VLANs: runs under cargo xtask kernel"]
fn a_service_is_reached_through_a_bond() {
    isolated("a_service_is_reached_through_a_bond", |place| node_port_answers(place, "bond0"));
}

#[test]
#[ignore = "needs bonds and VLANs: runs under cargo xtask kernel"]
fn a_service_is_reached_through_a_vlan_on_a_bond() {
    isolated("a_service_is_reached_through_a_vlan_on_a_bond", |place| node_port_answers(place, "bond0.7"));
}

#[test]
#[ignore = "needs the fq queueing discipline: runs under cargo xtask kernel"]
fn a_service_is_reached_through_a_fair_queue() {
    isolated("a_service_is_reached_through_a_fair_queue", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        run("tc", &["qdisc", "replace", "dev", "up0", "root", "fq"]);
        let dataplane = Dataplane::load(node(place)).unwrap();
        let server = tcp_server("10.1.0.1:8080");
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8080"])).unwrap();
        let mut client = outside.within(|| connect(NODE_PORT).unwrap());
        assert_eq!(client.server, server);
        assert!(client.alive());
    });
}

#[test]
#[ignore = "needs SCTP sockets: runs under cargo xtask kernel"]
fn associations_reach_a_service_from_outside_and_from_a_pod() {
    isolated("associations_reach_a_service_from_outside_and_from_a_pod", |place| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let pods = ["10.244.0.5", "10.244.0.6"].map(|address| {
            let link = format!("slc{}", &address[9..]);
            let there = format!("{address}/32");
            let pod = place.neighbour(&link, &link, Some("169.254.1.1/32"), &there, Some("169.254.1.1"));
            run("ip", &["route", "add", address, "dev", &link]);
            pod
        });
        let range = Some("10.244.0.0/24".parse().unwrap());
        let config = Config { pod_range: range, cluster_range: range, ..node(place) };
        let dataplane = Dataplane::load(config).unwrap();
        for link in ["slc5", "slc6"] {
            let pod =
                PodInfo { namespace: "n".into(), name: link.into(), services: Default::default(), neighbour: None };
            dataplane.attach_pod(nix::net::if_::if_nametoindex(link).unwrap(), &pod).unwrap();
        }
        pods[0].within(|| sctp::server("10.244.0.5:36412"));
        outside.within(|| sctp::server("10.1.0.2:36412"));
        let served = |endpoints: &[&str]| {
            dataplane.apply(&service(Protocol::Sctp, "10.96.0.14:3868", 30063, endpoints)).unwrap()
        };
        assert_eq!(served(&["10.244.0.5:36412"]), Vec::<String>::new());
        let (said, peer) = outside.within(|| sctp::ask("10.1.0.2:5000", "10.1.0.1:30063").unwrap());
        assert_eq!((said.as_str(), peer.as_str()), ("10.244.0.5:36412 10.1.0.2:5000", "10.1.0.1:30063"));
        let (said, peer) = pods[1].within(|| sctp::ask("10.244.0.6:5000", "10.96.0.14:3868").unwrap());
        assert_eq!((said.as_str(), peer.as_str()), ("10.244.0.5:36412 10.244.0.6:5000", "10.96.0.14:3868"));
        // A pod that reaches itself, and the outside.
        let (said, _) = pods[0].within(|| sctp::ask("10.244.0.5:5000", "10.96.0.14:3868").unwrap());
        assert!(said.starts_with("10.244.0.5:36412 10.1.0.1:"), "{said}");
        let (said, _) = pods[0].within(|| sctp::ask("10.244.0.5:5001", "10.1.0.2:36412").unwrap());
        assert!(said.starts_with("10.1.0.2:36412 10.1.0.1:"), "{said}");
        // Nobody answers: an ABORT, at once.
        served(&[]);
        let refused = pods[1].within(|| sctp::ask("10.244.0.6:5001", "10.96.0.14:3868").err().unwrap().kind());
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
        let row = dataplane.services().unwrap().remove(0);
        assert_eq!((row.connections, row.refused), (3, 1), "{row:?}");
    });
}

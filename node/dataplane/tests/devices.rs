//! Links that the kernel at hand may not know: bonds, VLANs, other queueing. They run on the second kernel
//! (`cargo xtask kernel`), which has them all.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Place, connect, isolated, run, service, tcp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, Uplinks};

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

//! Packet translation with real sockets in real namespaces: the test's own namespace is the node, others are a pod, the
//! world outside and another node. No socket is translated here: the socket programs sit on a cgroup that nobody is in.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use common::{
    Namespace, PATIENCE, Place, act_as_card, connect, forwarded, isolated, run, service, tcp_server, udp_server, words,
};
use sluice_dataplane::model::{HostPort, Pod, Protocol, Snapshot};
use sluice_dataplane::{Config, Dataplane, PodInfo, Redirect, ServicePath, Traffic, Uplinks, Xdp};

const CLUSTER: &str = "10.96.0.10:80";
const NODE: &str = "10.1.0.1:30080";
const POD: &str = "10.244.0.5:8080";
const OTHER_POD: &str = "10.244.0.6:8080";
const REMOTE: &str = "~10.2.0.2:8080";

struct World {
    dataplane: Dataplane,
    outside: Namespace,
    other_node: Namespace,
    pods: [Namespace; 2],
}

fn config(place: &Place) -> Config {
    Config {
        cgroup: Some(place.elsewhere.clone()),
        pod_range: Some("10.244.0.0/24".parse().unwrap()),
        cluster_range: Some("10.244.0.0/16".parse().unwrap()),
        node_addresses: vec![Ipv4Addr::new(10, 1, 0, 1).into()],
        uplinks: Uplinks::Every { except: vec!["slc".into()] },
        ..place.config()
    }
}

fn world(place: &Place, traffic: Traffic) -> World {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
    let other_node = place.neighbour("other", "up1", Some("10.2.0.1/24"), "10.2.0.2/24", None);
    let gateway = "169.254.1.1";
    let pods = ["10.244.0.5", "10.244.0.6"].map(|address| {
        let link = format!("slc{}", &address[9..]);
        let pod =
            place.neighbour(&link, &link, Some(&format!("{gateway}/32")), &format!("{address}/32"), Some(gateway));
        run("ip", &["route", "add", address, "dev", &link]);
        pod
    });
    // As the pod network does it: what nobody serves never leaves the machine.
    run("ip", &["route", "add", "unreachable", "10.96.0.0/16"]);
    let dataplane = Dataplane::load_with(config(place), traffic).unwrap();
    attach_pods(&dataplane);
    World { dataplane, outside, other_node, pods }
}

fn attach_pods(dataplane: &Dataplane) {
    for link in ["slc5", "slc6"] {
        let index = nix::net::if_::if_nametoindex(link).unwrap();
        dataplane.attach_pod(index, &pod(link, ServicePath::Sockets)).unwrap();
    }
}

/// A pod all of whose packets pass through the stack.
fn pod(name: &str, services: ServicePath) -> PodInfo {
    PodInfo { namespace: "shop".into(), name: name.into(), services, neighbour: None }
}

fn tcp(endpoints: &[&str]) -> Snapshot {
    service(Protocol::Tcp, CLUSTER, 30080, endpoints)
}

fn node_port_to_a_local_pod(world: &World) {
    world.pods[0].within(|| tcp_server(POD));
    world.pods[1].within(|| tcp_server(OTHER_POD));
    world.dataplane.apply(&tcp(&[POD, OTHER_POD])).unwrap();
    world.outside.within(|| {
        let mut seen = BTreeSet::new();
        for _ in 0..32 {
            let mut client = connect(NODE).unwrap();
            assert_eq!(client.seen_as, client.stream.local_addr().unwrap(), "the client's address is kept");
            assert!(client.alive());
            seen.insert(client.server.to_string());
        }
        assert_eq!(seen, [POD.to_owned(), OTHER_POD.to_owned()].into());
    });
}

#[test]
fn a_node_port_leads_outsiders_to_local_pods() {
    isolated("a_node_port_leads_outsiders_to_local_pods", |place| {
        let world = world(place, Traffic::best());
        node_port_to_a_local_pod(&world);
        let rows = world.dataplane.services().unwrap();
        assert_eq!(rows[0].service, "shop/web:main");
        assert_eq!(rows[0].connections, 32);
        assert!(rows[0].packets > 32 * 8 && rows[0].bytes > rows[0].packets * 60, "{rows:?}");
        assert_eq!(rows[0].backends.iter().map(|backend| backend.connections).sum::<u64>(), 32);
    });
}

#[test]
fn the_same_without_tcx() {
    isolated("the_same_without_tcx", |place| {
        let world = world(place, Traffic::Clsact);
        node_port_to_a_local_pod(&world);
        let mut open = world.outside.within(|| connect(NODE).unwrap());
        // The next process replaces the filters where they are.
        drop(world.dataplane);
        let next = Dataplane::load_with(config(place), Traffic::Clsact).unwrap();
        attach_pods(&next);
        assert!(open.alive());
        world.outside.within(|| connect(NODE).unwrap());
    });
}

#[test]
fn datagrams_to_a_node_port_come_back_from_it() {
    isolated("datagrams_to_a_node_port_come_back_from_it", |place| {
        let world = world(place, Traffic::best());
        world.pods[0].within(|| udp_server(POD));
        world.dataplane.apply(&service(Protocol::Udp, CLUSTER, 30080, &[POD])).unwrap();
        world.outside.within(|| {
            let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(NODE).unwrap();
            socket.send(b"x").unwrap();
            let mut buffer = [0; 128];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(words(&buffer[..length]).1, socket.local_addr().unwrap());
        });
    });
}

#[test]
fn a_node_port_leads_to_pods_of_another_node_with_this_nodes_address() {
    isolated("a_node_port_leads_to_pods_of_another_node_with_this_nodes_address", |place| {
        let world = world(place, Traffic::best());
        world.other_node.within(|| tcp_server("10.2.0.2:8080"));
        world.dataplane.apply(&tcp(&[REMOTE])).unwrap();
        world.outside.within(|| {
            let mut client = connect(NODE).unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.2.0.1", "the address of the link towards the backend");
            assert!(client.seen_as.port() >= 61000);
            assert!(client.alive());
        });
    });
}

#[test]
fn the_driver_sends_a_services_packets_on() {
    isolated("the_driver_sends_a_services_packets_on", |place| {
        let mut world = world(place, Traffic::best());
        for end in [&world.outside, &world.other_node] {
            end.within(|| act_as_card("eth0"));
        }
        let modes = |dataplane: &Dataplane| {
            let rows = dataplane.status().unwrap().uplinks;
            rows.into_iter().map(|row| (row.link, row.xdp, row.reason.is_some())).collect::<Vec<_>>()
        };
        let all = |xdp, why| ["up0", "up1"].map(|link| (link.to_owned(), xdp, why)).to_vec();
        assert_eq!(modes(&world.dataplane), all("tc", true), "a veth link has no wire");
        world.dataplane = Dataplane::load(Config { xdp: Xdp::Always, ..config(place) }).unwrap();
        assert_eq!(modes(&world.dataplane), all("native", false));
        world.other_node.within(|| (tcp_server("10.2.0.2:8080"), udp_server("10.2.0.2:8080")));
        world.dataplane.apply(&tcp(&[REMOTE])).unwrap();
        world.outside.within(|| {
            let mut client = connect(NODE).unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.2.0.1");
            assert!(client.alive());
        });
        // Its neighbours are known now.
        let before = forwarded();
        let mut open = world.outside.within(|| {
            let mut client = connect(NODE).unwrap();
            (0..50).for_each(|_| assert!(client.alive()));
            client
        });
        assert_eq!(forwarded(), before, "nothing passed through the stack");
        let row = world.dataplane.services().unwrap().remove(0);
        assert_eq!(row.connections, 2);
        assert!(row.packets > 100 && row.bytes > row.packets * 60, "{row:?}");
        assert_eq!((row.packets, row.bytes), (row.backends[0].packets, row.backends[0].bytes));
        // The next process puts its program in the place of this one's, and another way of coming in.
        drop(world.dataplane);
        assert!(open.alive(), "while no process runs");
        let next = Dataplane::load(Config { xdp: Xdp::Always, ..config(place) }).unwrap();
        assert!(open.alive());
        assert_eq!(forwarded(), before);
        drop(next);
        let next = Dataplane::load(Config { xdp: Xdp::Off, ..config(place) }).unwrap();
        assert_eq!(modes(&next), all("tc", true));
        assert!(open.alive(), "the same connection by the links' own program");
        assert_eq!(forwarded(), before);
        drop(next);
        let next = Dataplane::load(Config { xdp: Xdp::Off, redirect: Redirect::Off, ..config(place) }).unwrap();
        assert!(open.alive(), "the same connection by the stack");
        assert!(forwarded() > before);
        next.apply(&tcp(&[])).unwrap();
        assert!(open.alive());
        world.outside.within(|| assert_eq!(connect(NODE).err().unwrap().kind(), ErrorKind::ConnectionRefused));
    });
}

#[test]
fn the_driver_leaves_local_pods_to_the_stack() {
    isolated("the_driver_leaves_local_pods_to_the_stack", |place| {
        let mut world = world(place, Traffic::best());
        for end in [&world.outside, &world.other_node] {
            end.within(|| act_as_card("eth0"));
        }
        world.dataplane = Dataplane::load(Config { xdp: Xdp::Always, ..config(place) }).unwrap();
        node_port_to_a_local_pod(&world);
        let mut outward = world.pods[0].within(|| {
            world.outside.within(|| tcp_server("10.1.0.2:9000"));
            connect("10.1.0.2:9000").unwrap()
        });
        assert_eq!(outward.seen_as.ip().to_string(), "10.1.0.1");
        assert!(outward.alive());
    });
}

#[test]
fn the_same_through_a_tunnel() {
    isolated("the_same_through_a_tunnel", |place| {
        let world = world(place, Traffic::best());
        let other = format!("{}-other", place.name);
        let tunnel = |local: &str, remote: &str, dev: &str| {
            let kind =
                format!("link add sluice.vxlan type vxlan id 7 local {local} remote {remote} dev {dev} dstport 8472");
            kind.split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        let here = tunnel("10.2.0.1", "10.2.0.2", "up1");
        run("ip", &here.iter().map(String::as_str).collect::<Vec<_>>());
        let there = tunnel("10.2.0.2", "10.2.0.1", "eth0");
        run("ip", &["-n", &other].into_iter().chain(there.iter().map(String::as_str)).collect::<Vec<_>>());
        run("ip", &["-n", &other, "address", "add", "10.244.9.9/24", "dev", "sluice.vxlan"]);
        run("ip", &["-n", &other, "link", "set", "sluice.vxlan", "up"]);
        run("ip", &["-n", &other, "route", "add", "10.1.0.1", "via", "10.2.0.1"]);
        run("ip", &["link", "set", "sluice.vxlan", "up"]);
        run("ip", &["route", "add", "10.244.9.0/24", "dev", "sluice.vxlan"]);
        // The tunnel is not a pod's link, although its name begins like one of ours.
        let except = Uplinks::Every { except: vec!["slc".into(), "sluice".into()] };
        let dataplane = Dataplane::load(Config { uplinks: except, ..config(place) }).unwrap();
        world.other_node.within(|| tcp_server("10.244.9.9:8080"));
        dataplane.apply(&tcp(&["~10.244.9.9:8080"])).unwrap();
        world.outside.within(|| {
            let mut client = connect(NODE).unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.1.0.1");
            assert!(client.alive());
        });
        // By packet from a pod the pod keeps its address, so the other node needs its route back.
        run("ip", &["-n", &other, "route", "add", "10.244.0.0/24", "dev", "sluice.vxlan", "via", "10.1.0.1", "onlink"]);
        world.pods[0].within(|| assert_eq!(connect(CLUSTER).unwrap().seen_as.ip().to_string(), "10.244.0.5"));
    });
}

#[test]
fn a_node_port_leads_to_a_socket_of_the_node_itself() {
    isolated("a_node_port_leads_to_a_socket_of_the_node_itself", |place| {
        let world = world(place, Traffic::best());
        tcp_server("10.1.0.1:6443");
        world.dataplane.apply(&tcp(&["10.1.0.1:6443"])).unwrap();
        world.outside.within(|| assert!(connect(NODE).unwrap().alive()));
        world.pods[0].within(|| assert!(connect(CLUSTER).unwrap().alive()));
    });
}

#[test]
fn pods_leave_with_the_nodes_address() {
    isolated("pods_leave_with_the_nodes_address", |place| {
        let world = world(place, Traffic::best());
        world.outside.within(|| {
            tcp_server("10.1.0.2:9000");
            udp_server("10.1.0.2:9000");
        });
        world.other_node.within(|| tcp_server("10.2.0.2:9000"));
        world.pods[0].within(|| {
            let mut client = connect("10.1.0.2:9000").unwrap();
            assert_eq!(client.seen_as.ip().to_string(), "10.1.0.1");
            assert!(client.seen_as.port() >= 61000);
            assert!(client.alive());
            assert_eq!(connect("10.2.0.2:9000").unwrap().seen_as.ip().to_string(), "10.2.0.1");
            let socket = UdpSocket::bind("10.244.0.5:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"x", "10.1.0.2:9000").unwrap();
            let mut buffer = [0; 128];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from.to_string(), "10.1.0.2:9000");
            assert_eq!(words(&buffer[..length]).1.ip().to_string(), "10.1.0.1");
            // An ICMP error finds its way back to the socket that caused it.
            socket.connect("10.1.0.2:9009").unwrap();
            socket.send(b"x").unwrap();
            assert_eq!(socket.recv(&mut buffer).err().unwrap().kind(), ErrorKind::ConnectionRefused);
        });
        // Pods see each other under their own addresses.
        world.pods[1].within(|| tcp_server(OTHER_POD));
        world.pods[0].within(|| assert_eq!(connect(OTHER_POD).unwrap().seen_as.ip().to_string(), "10.244.0.5"));
    });
}

#[test]
fn some_places_see_pods_own_addresses() {
    isolated("some_places_see_pods_own_addresses", |place| {
        let world = world(place, Traffic::best());
        world.outside.within(|| tcp_server("10.1.0.2:9000"));
        world.outside.within(|| run("ip", &["route", "add", "10.244.0.0/24", "via", "10.1.0.1"]));
        world.other_node.within(|| tcp_server("10.2.0.2:9000"));
        let seen_as = |to: &str| world.pods[0].within(|| connect(to).unwrap().seen_as.ip().to_string());
        for (excluded, outside) in
            [(&[][..], "10.1.0.1"), (&["10.1.0.0/16", "fd00::/8"], "10.244.0.5"), (&[], "10.1.0.1")]
        {
            let ranges: Vec<_> = excluded.iter().map(|range| range.parse().unwrap()).collect();
            world.dataplane.set_unmasqueraded(&ranges).unwrap();
            assert_eq!(seen_as("10.1.0.2:9000"), outside, "{excluded:?}");
            assert_eq!(seen_as("10.2.0.2:9000"), "10.2.0.1");
        }
    });
}

#[test]
fn pods_reach_services_by_packet() {
    isolated("pods_reach_services_by_packet", |place| {
        let world = world(place, Traffic::best());
        world.pods[1].within(|| tcp_server(OTHER_POD));
        world.other_node.within(|| tcp_server("10.2.0.2:8080"));
        world.dataplane.apply(&tcp(&[OTHER_POD])).unwrap();
        world.pods[0].within(|| {
            let mut client = connect(CLUSTER).unwrap();
            assert_eq!(client.seen_as, client.stream.local_addr().unwrap());
            assert!(client.alive());
            assert!(connect(NODE).unwrap().alive());
        });
        // A pod that is its own service's only backend.
        world.pods[1].within(|| assert!(connect(CLUSTER).unwrap().alive()));
        world.dataplane.apply(&tcp(&[REMOTE])).unwrap();
        world.pods[0].within(|| assert_eq!(connect(CLUSTER).unwrap().seen_as.ip().to_string(), "10.2.0.1"));
        // Nobody there: an answer at once, not silence.
        world.dataplane.apply(&tcp(&[])).unwrap();
        world.pods[0].within(|| assert_eq!(connect(CLUSTER).err().unwrap().kind(), ErrorKind::ConnectionRefused));
        world.outside.within(|| assert_eq!(connect(NODE).err().unwrap().kind(), ErrorKind::ConnectionRefused));
        assert!(!world.dataplane.status().unwrap().refused.is_empty());
    });
}

#[test]
fn a_dead_endpoint_gets_no_new_packets_and_old_connections_live() {
    isolated("a_dead_endpoint_gets_no_new_packets_and_old_connections_live", |place| {
        let world = world(place, Traffic::best());
        world.pods[0].within(|| (tcp_server(POD), udp_server(POD)));
        world.pods[1].within(|| (tcp_server(OTHER_POD), udp_server(OTHER_POD)));
        world.dataplane.apply(&tcp(&[POD])).unwrap();
        let mut open = world.outside.within(|| connect(NODE).unwrap());
        world.dataplane.apply(&tcp(&["!10.244.0.5:8080", OTHER_POD])).unwrap();
        world.outside.within(|| {
            for _ in 0..16 {
                assert_eq!(connect(NODE).unwrap().server.to_string(), OTHER_POD);
            }
        });
        assert!(open.alive());
        world.dataplane.apply(&Snapshot::default()).unwrap();
        assert!(open.alive(), "even without the service");
        // Datagrams follow at once, even from the same socket.
        world.dataplane.apply(&service(Protocol::Udp, CLUSTER, 30080, &[POD])).unwrap();
        world.outside.within(|| {
            let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(NODE).unwrap();
            for expected in [POD, OTHER_POD] {
                world.dataplane.apply(&service(Protocol::Udp, CLUSTER, 30080, &[expected])).unwrap();
                socket.send(b"x").unwrap();
                let mut buffer = [0; 128];
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(words(&buffer[..length]).0.to_string(), expected);
            }
        });
    });
}

#[test]
fn connections_live_through_a_restart() {
    isolated("connections_live_through_a_restart", |place| {
        let world = world(place, Traffic::best());
        world.pods[0].within(|| tcp_server(POD));
        world.outside.within(|| tcp_server("10.1.0.2:9000"));
        world.dataplane.apply(&tcp(&[POD])).unwrap();
        let mut inward = world.outside.within(|| connect(NODE).unwrap());
        let mut outward = world.pods[0].within(|| connect("10.1.0.2:9000").unwrap());
        drop(world.dataplane);
        assert!(inward.alive() && outward.alive(), "while no process runs");
        world.outside.within(|| assert!(connect(NODE).unwrap().alive()));
        // It does not know the node's pods yet.
        let next = Dataplane::load(Config { pod_range: None, cluster_range: None, ..config(place) }).unwrap();
        assert!(inward.alive() && outward.alive(), "after the next one took over");
        world.outside.within(|| assert!(connect(NODE).unwrap().alive()));
        let status = next.status().unwrap();
        assert_eq!(status.problems, Vec::<String>::new());
        let attached: BTreeSet<_> =
            status.programs.iter().map(|row| format!("{}@{}", row.name, row.attached)).collect();
        for expected in ["uplink_in@up0", "uplink_out@up1", "pod_in@slc5", "pod_out@slc6"] {
            assert!(attached.contains(expected), "{attached:?}");
        }
        assert!(status.flows >= 3, "{}", status.flows);
    });
}

#[test]
fn strangers_sockets_are_left_alone_and_their_packets_are_served() {
    isolated("strangers_sockets_are_left_alone_and_their_packets_are_served", |place| {
        let mut world = world(place, Traffic::best());
        // Now the programs see the sockets of this process, wherever its threads are.
        world.dataplane = Dataplane::load(Config { cgroup: Some(place.cgroup.clone()), ..config(place) }).unwrap();
        let index = nix::net::if_::if_nametoindex("slc5").unwrap();
        world.dataplane.know_namespace(index, &world.pods[0].path).unwrap();
        world.pods[1].within(|| tcp_server(OTHER_POD));
        world.dataplane.apply(&tcp(&[OTHER_POD])).unwrap();
        let row = || world.dataplane.services().unwrap().remove(0);
        world.pods[0].within(|| assert!(connect(CLUSTER).unwrap().alive()));
        assert_eq!((row().connections, row().packets), (1, 0), "a known pod: by socket");
        connect("127.0.0.1:30080").unwrap();
        assert_eq!((row().connections, row().packets), (2, 0), "the node: by socket");
        // No route to pods here, so a translated socket would get nowhere.
        world.outside.within(|| assert!(connect(NODE).unwrap().alive()));
        assert_eq!(row().connections, 3);
        assert!(row().packets > 0, "a stranger: by packet");
        world.dataplane.detach_pod(index).unwrap();
        let unknown = world.pods[0].within(|| connect(CLUSTER).err().unwrap().kind());
        assert_eq!(unknown, ErrorKind::HostUnreachable, "neither socket nor link is translated any more");
    });
}

#[test]
fn a_pod_may_choose_the_packet_path() {
    isolated("a_pod_may_choose_the_packet_path", |place| {
        let mut world = world(place, Traffic::best());
        world.dataplane = Dataplane::load(Config { cgroup: Some(place.cgroup.clone()), ..config(place) }).unwrap();
        let add = |services: ServicePath| {
            let index = nix::net::if_::if_nametoindex("slc5").unwrap();
            world.dataplane.add_pod(index, &world.pods[0].path, &pod("vm", services)).unwrap();
        };
        world.pods[1].within(|| tcp_server(OTHER_POD));
        world.dataplane.apply(&tcp(&[OTHER_POD])).unwrap();
        let packets = || world.dataplane.services().unwrap().remove(0).packets;
        // The first pod of a node, before any other is known; then it changes its mind, both ways.
        for services in [ServicePath::Packets, ServicePath::Sockets, ServicePath::Packets] {
            add(services);
            let before = packets();
            world.pods[0].within(|| assert!(connect(CLUSTER).unwrap().alive()));
            assert_eq!(packets() > before, services == ServicePath::Packets, "{services:?}");
        }
    });
}

#[test]
fn pods_links_have_filters_that_come_and_go() {
    isolated("pods_links_have_filters_that_come_and_go", |place| {
        let world = world(place, Traffic::best());
        let index = nix::net::if_::if_nametoindex("slc5").unwrap();
        let pod = pod("a", ServicePath::Sockets);
        let filters = |side: &str| {
            let shown =
                std::process::Command::new("tc").args(["filter", "show", "dev", "slc5", side]).output().unwrap();
            String::from_utf8(shown.stdout).unwrap()
        };
        for _ in 0..2 {
            world.dataplane.add_pod(index, &world.pods[0].path, &pod).unwrap();
            // Not links, whose attachment waits for a grace period under the lock of all links.
            assert!(filters("ingress").contains("pod_in") && filters("egress").contains("pod_out"));
            world.dataplane.detach_pod(index).unwrap();
            assert_eq!(filters("ingress") + &filters("egress"), "");
            world.dataplane.detach_pod(index).unwrap();
        }
        world.dataplane.add_pod(index, &world.pods[0].path, &pod).unwrap();
        Dataplane::remove_all(&place.pins).unwrap();
        assert_eq!(filters("ingress") + &filters("egress"), "");
    });
}

#[test]
fn node_ports_answer_on_links_that_come_later() {
    isolated("node_ports_answer_on_links_that_come_later", |place| {
        let world = world(place, Traffic::best());
        world.pods[0].within(|| tcp_server(POD));
        world.dataplane.apply(&tcp(&[POD])).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shutdown, dataplane) = (tokio_util::sync::CancellationToken::new(), world.dataplane.clone());
        let stop = shutdown.clone();
        let follower = runtime.spawn(async move { dataplane.follow_links(&stop).await });
        let late = place.neighbour("late", "up9", Some("10.9.0.1/24"), "10.9.0.2/24", None);
        let attached = || world.dataplane.status().unwrap().programs.iter().filter(|row| row.attached == "up9").count();
        let start = Instant::now();
        late.within(|| while connect("10.9.0.1:30080").is_err() && start.elapsed() < PATIENCE {});
        assert_eq!(attached(), 3);
        late.within(|| assert!(connect("10.9.0.1:30080").unwrap().alive()));
        // A pod's link that goes takes its programs along, and nothing of them stays.
        run("ip", &["link", "delete", "slc6"]);
        let start = Instant::now();
        let pods =
            || world.dataplane.status().unwrap().programs.iter().filter(|row| row.name.starts_with("pod")).count();
        while pods() > 2 && start.elapsed() < PATIENCE {}
        assert_eq!(pods(), 2);
        shutdown.cancel();
        runtime.block_on(follower).unwrap().unwrap();
    });
}

#[test]
fn a_client_keeps_its_backend_by_packet() {
    isolated("a_client_keeps_its_backend_by_packet", |place| {
        let world = world(place, Traffic::best());
        for (pod, address) in world.pods.iter().zip([POD, OTHER_POD]) {
            pod.within(|| tcp_server(address));
        }
        let affine = |endpoints: &[&str]| {
            let mut snapshot = tcp(endpoints);
            snapshot.services.values_mut().for_each(|service| service.affinity = 100);
            snapshot
        };
        let ask = || world.outside.within(|| connect(NODE).unwrap().server.to_string());
        world.dataplane.apply(&affine(&[POD, OTHER_POD])).unwrap();
        let first = ask();
        for _ in 0..24 {
            assert_eq!(ask(), first);
        }
        let other = if first == POD { OTHER_POD } else { POD };
        world.dataplane.apply(&affine(&[other])).unwrap();
        assert_eq!(ask(), other);
        // It is the new one that is kept now.
        world.dataplane.apply(&affine(&[POD, OTHER_POD])).unwrap();
        for _ in 0..24 {
            assert_eq!(ask(), other);
        }
    });
}

#[test]
fn host_ports_lead_to_their_pod_and_go_with_it() {
    isolated("host_ports_lead_to_their_pod_and_go_with_it", |place| {
        let world = world(place, Traffic::best());
        world.pods[0].within(|| {
            tcp_server(POD);
            udp_server(POD)
        });
        let ports = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| HostPort { protocol, address: None, host_port: 8088, port: 8080 })
            .to_vec();
        let pod = Pod { addresses: vec![POD.parse::<SocketAddr>().unwrap().ip()], ports };
        let snapshot = Snapshot {
            pods: [(("shop".into(), "web".into()), pod)].into(),
            node: "here".into(),
            ..Snapshot::default()
        };
        assert_eq!(world.dataplane.apply(&snapshot).unwrap(), Vec::<String>::new());
        world.outside.within(|| {
            let mut client = connect("10.1.0.1:8088").unwrap();
            assert_eq!(client.server.to_string(), POD);
            assert_eq!(client.seen_as, client.stream.local_addr().unwrap());
            assert!(client.alive());
            let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect("10.1.0.1:8088").unwrap();
            socket.send(b"x").unwrap();
            let mut buffer = [0; 128];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(words(&buffer[..length]), (POD.parse().unwrap(), socket.local_addr().unwrap()));
        });
        world.dataplane.apply(&Snapshot { node: "here".into(), ..Snapshot::default() }).unwrap();
        world.outside.within(|| {
            assert_eq!(connect("10.1.0.1:8088").err().unwrap().kind(), ErrorKind::ConnectionRefused);
        });
    });
}

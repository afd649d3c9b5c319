//! Connected datagram sockets whose backend goes, with real sockets of the node and of a pod.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Instant;

use common::{Namespace, PATIENCE, Place, isolated, pods, run, service, udp_server, words};
use sluice_dataplane::model::{ObjectName, Protocol, Snapshot};
use sluice_dataplane::{Config, Dataplane, PodInfo, ServicePath};

const CLUSTER: &str = "10.96.0.10:53";
const NODE_PORT: &str = "127.0.0.1:30053";
const OLD: &str = "127.0.0.2:5301";
const NEW: &str = "127.0.0.3:5302";

fn udp(endpoints: &[&str]) -> Snapshot {
    service(Protocol::Udp, CLUSTER, 30053, endpoints)
}

fn connected(to: &str) -> UdpSocket {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// Who answers.
fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"x")?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Ok(words(&buffer[..length]).0.to_string())
}

/// Told once to who waits, or asks; and nothing can be sent without connecting anew.
fn was_ended(socket: &UdpSocket) {
    assert_eq!(socket.recv(&mut [0; 8]).err().unwrap().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(socket.send(b"x").err().unwrap().raw_os_error(), Some(nix::libc::EDESTADDRREQ));
}

#[test]
fn sockets_learn_at_once_that_their_backend_is_gone() {
    isolated("sockets_learn_at_once_that_their_backend_is_gone", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        assert_eq!(dataplane.status().unwrap().problems, Vec::<String>::new());
        udp_server(OLD);
        udp_server(NEW);
        dataplane.apply(&udp(&[OLD])).unwrap();
        let services = [CLUSTER, NODE_PORT, "[::ffff:10.96.0.10]:53"];
        let sockets = services.map(connected);
        let direct = connected(OLD);
        for socket in sockets.iter().chain([&direct]) {
            assert_eq!(ask(socket).unwrap(), OLD);
        }
        assert_eq!(dataplane.tend_datagrams().unwrap(), 0);
        // It ends and still serves: what it has it keeps.
        let mut ending = udp(&[OLD, NEW]);
        for slice in ending.slices.values_mut() {
            let endpoint = &mut slice.endpoints[0];
            if endpoint.address == Some("127.0.0.2".parse().unwrap()) {
                (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, true, true);
            }
        }
        dataplane.apply(&ending).unwrap();
        assert_eq!(dataplane.tend_datagrams().unwrap(), 0);
        // It is alive, and no longer ready.
        dataplane.apply(&udp(&["!127.0.0.2:5301", NEW])).unwrap();
        assert_eq!(dataplane.tend_datagrams().unwrap(), services.len());
        for (socket, service) in sockets.iter().zip(services) {
            was_ended(socket);
            socket.connect(service).unwrap();
            assert_eq!(ask(socket).unwrap(), NEW);
        }
        // Nobody's business but its own.
        assert_eq!(ask(&direct).unwrap(), OLD);
        assert_eq!(dataplane.tend_datagrams().unwrap(), 0);
        // The service goes, and its backend stays.
        dataplane.apply(&Snapshot::default()).unwrap();
        assert_eq!(dataplane.tend_datagrams().unwrap(), services.len());
        sockets.iter().for_each(was_ended);
    });
}

#[test]
fn a_socket_that_waits_is_woken() {
    isolated("a_socket_that_waits_is_woken", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        udp_server(OLD);
        dataplane.apply(&udp(&[OLD])).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shutdown, follower) = (tokio_util::sync::CancellationToken::new(), dataplane.clone());
        let stop = shutdown.clone();
        let following = runtime.spawn(async move { follower.follow_datagrams(&stop).await });
        for _ in 0..3 {
            dataplane.apply(&udp(&[OLD])).unwrap();
            let socket = connected(CLUSTER);
            assert_eq!(ask(&socket).unwrap(), OLD);
            let start = Instant::now();
            let waits = std::thread::spawn(move || socket.recv(&mut [0; 8]).err().unwrap().kind());
            dataplane.apply(&udp(&[])).unwrap();
            assert_eq!(waits.join().unwrap(), ErrorKind::ConnectionAborted);
            assert!(start.elapsed() < PATIENCE);
        }
        shutdown.cancel();
        runtime.block_on(following).unwrap().unwrap();
    });
}

/// A pod whose server is the node, which both have an address of each family for.
fn pod(place: &Place, dataplane: &Dataplane) -> Namespace {
    let pod = place.neighbour("pod", "slc5", Some("10.1.0.1/24"), "10.1.0.5/24", None);
    let name = pod.path.file_name().unwrap().to_str().unwrap().to_owned();
    run("ip", &["address", "add", "fd01::1/64", "dev", "slc5", "nodad"]);
    run("ip", &["-n", &name, "address", "add", "fd01::5/64", "dev", "eth0", "nodad"]);
    run("ip", &["-n", &name, "route", "add", "default", "via", "10.1.0.1"]);
    let index = nix::net::if_::if_nametoindex("slc5").unwrap();
    let info =
        PodInfo { namespace: "shop".into(), name: "web".into(), services: ServicePath::Sockets, neighbour: None };
    dataplane.add_pod(index, &pod.path, &info).unwrap();
    pod
}

#[test]
fn pods_sockets_of_both_families_are_found_also_by_the_next_process() {
    isolated("pods_sockets_of_both_families_are_found_also_by_the_next_process", |place| {
        let first = Dataplane::load(place.config()).unwrap();
        let pod = pod(place, &first);
        let both = |endpoints: [&str; 2]| {
            let mut snapshot = service(Protocol::Udp, "10.96.0.10:53", 0, &endpoints[..1]);
            let six = service(Protocol::Udp, "[fd96::10]:53", 0, &endpoints[1..]);
            let name: ObjectName = ("shop".into(), "six".into());
            snapshot.services.insert(name.clone(), six.services.into_values().next().unwrap());
            for mut slice in six.slices.into_values() {
                slice.service.clone_from(&name.1);
                snapshot.slices.insert(name.clone(), slice);
            }
            snapshot
        };
        let (old, new) = (["10.1.0.1:5301", "[fd01::1]:5301"], ["10.1.0.1:5302", "[fd01::1]:5302"]);
        for address in old.iter().chain(&new) {
            udp_server(address);
        }
        first.apply(&both(old)).unwrap();
        let services = ["10.96.0.10:53", "[fd96::10]:53"];
        let sockets = pod.within(|| services.map(connected));
        for (socket, server) in sockets.iter().zip(old) {
            assert_eq!(ask(socket).unwrap(), server);
        }
        drop(first);
        // While no process runs nobody tells them.
        let next = Dataplane::load(place.config()).unwrap();
        let index = nix::net::if_::if_nametoindex("slc5").unwrap();
        let info =
            PodInfo { namespace: "shop".into(), name: "web".into(), services: ServicePath::Sockets, neighbour: None };
        next.add_pod(index, &pod.path, &info).unwrap();
        // Services are not known yet: none of them is gone for that.
        assert_eq!(next.tend_datagrams().unwrap(), 0);
        next.apply(&both(new)).unwrap();
        assert_eq!(next.tend_datagrams().unwrap(), 2);
        for ((socket, service), server) in sockets.iter().zip(services).zip(new) {
            was_ended(socket);
            pod.within(|| socket.connect(service).unwrap());
            assert_eq!(ask(socket).unwrap(), server);
        }
        assert_eq!(next.tend_datagrams().unwrap(), 0);
    });
}

/// Two services with the same backend, of which one goes: the socket of the other one stays.
#[test]
fn what_another_service_still_leads_to_stays() {
    isolated("what_another_service_still_leads_to_stays", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        udp_server(OLD);
        let mut both = udp(&[OLD]);
        let other = service(Protocol::Udp, "10.96.0.11:53", 0, &[OLD]);
        let name: ObjectName = ("shop".into(), "other".into());
        both.services.insert(name.clone(), other.services.into_values().next().unwrap());
        for mut slice in other.slices.into_values() {
            slice.service.clone_from(&name.1);
            both.slices.insert(name.clone(), slice);
        }
        dataplane.apply(&both).unwrap();
        let sockets = [CLUSTER, "10.96.0.11:53"].map(connected);
        // One that knows both, and is connected to the one that stays.
        let third = connected("10.96.0.11:53");
        third.connect(CLUSTER).unwrap();
        both.services.remove(&name);
        dataplane.apply(&both).unwrap();
        assert_eq!(dataplane.tend_datagrams().unwrap(), 1);
        was_ended(&sockets[1]);
        for socket in [&sockets[0], &third] {
            assert_eq!(ask(socket).unwrap(), OLD);
        }
    });
}

/// The node's routes to pods have an address of their own as source, which no pod asks a program with the node's network by.
#[test]
fn the_node_answers_pods_from_the_address_that_they_asked() {
    isolated("the_node_answers_pods_from_the_address_that_they_asked", |place| {
        let pod = pods::pod(place, "slc5", &["10.244.0.5", "fd44::5"]);
        for (node, gateway, ip) in [("10.1.0.1/32", "10.244.0.1", "10.244.0.5"), ("fd01::1/128", "fd44::1", "fd44::5")]
        {
            for address in [node, gateway] {
                run("ip", &["address", "add", address, "dev", "lo"]);
            }
            run("ip", &["route", "replace", ip, "dev", "slc5", "src", gateway]);
        }
        let node_addresses = ["10.1.0.1", "fd01::1"].map(|text| text.parse().unwrap()).to_vec();
        let dataplane = Dataplane::load(Config { node_addresses, ..place.config() }).unwrap();
        for (pods, cluster) in [("10.244.0.0/24", "10.244.0.0/16"), ("fd44::/64", "fd44::/48")] {
            dataplane.set_pod_ranges(pods.parse().unwrap(), cluster.parse().unwrap()).unwrap();
        }
        // On every address, and on one: that one it keeps.
        for (heard, asked) in [
            ("[::]:5301", "10.1.0.1:5301"),
            ("[::]:5302", "[fd01::1]:5302"),
            ("0.0.0.0:5303", "10.1.0.1:5303"),
            ("10.244.0.1:5304", "10.244.0.1:5304"),
            ("[fd44::1]:5305", "[fd44::1]:5305"),
        ] {
            let server = UdpSocket::bind(heard).unwrap();
            let client = pod.within(|| connected(asked));
            client.send(b"x").unwrap();
            let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"y", from).unwrap();
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1, "{asked}");
        }
    });
}

//! Socket translation with real sockets: a test's process sits in a cgroup and a network namespace of its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use common::{Place, connect, isolated, service, tcp_server, udp_server, words};
use sluice_dataplane::model::{Protocol, Snapshot};
use sluice_dataplane::{Config, Dataplane, NodePortAddresses};

const CLUSTER: &str = "10.96.0.10:80";

#[test]
fn connect_reaches_every_backend_and_the_peer_is_the_service() {
    isolated("connect_reaches_every_backend_and_the_peer_is_the_service", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let servers = [tcp_server("127.0.0.2:8001"), tcp_server("127.0.0.3:8002")];
        let snapshot = service(Protocol::Tcp, CLUSTER, 30080, &["127.0.0.2:8001", "127.0.0.3:8002"]);
        assert_eq!(dataplane.apply(&snapshot).unwrap(), Vec::<String>::new());
        let mut seen = BTreeSet::new();
        for _ in 0..64 {
            let client = connect(CLUSTER).unwrap();
            assert_eq!(client.stream.peer_addr().unwrap().to_string(), CLUSTER);
            seen.insert(client.server);
        }
        assert_eq!(seen, servers.into());
        // An IPv6 socket that uses the IPv4 address sees it in IPv6 form.
        let client = connect("[::ffff:10.96.0.10]:80").unwrap();
        assert_eq!(client.stream.peer_addr().unwrap().to_string(), "[::ffff:10.96.0.10]:80");
        // Anything else is left alone.
        let client = connect("127.0.0.2:8001").unwrap();
        assert_eq!(client.stream.peer_addr().unwrap().to_string(), "127.0.0.2:8001");
    });
}

#[test]
fn node_ports_answer_on_local_addresses_only() {
    isolated("node_ports_answer_on_local_addresses_only", |place| {
        common::run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
        let dataplane = Dataplane::load(place.config()).unwrap();
        tcp_server("127.0.0.2:8001");
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 30080, &["127.0.0.2:8001"])).unwrap();
        for address in ["10.1.0.1:30080", "127.0.0.1:30080"] {
            let client = connect(address).unwrap();
            assert_eq!(client.stream.peer_addr().unwrap().to_string(), address);
            assert_eq!(client.server.to_string(), "127.0.0.2:8001");
        }
        common::run("ip", &["address", "add", "10.1.0.9/32", "dev", "lo"]);
        assert_eq!(connect("10.1.0.9:30080").err().unwrap().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(connect("127.0.0.1:30081").err().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn node_ports_answer_on_chosen_addresses() {
    isolated("node_ports_answer_on_chosen_addresses", |place| {
        for address in ["10.1.0.1/32", "10.9.0.1/32", "fd01::1/128"] {
            common::run("ip", &["address", "add", address, "dev", "lo"]);
        }
        tcp_server("127.0.0.2:8001");
        let all = ["10.1.0.1:30080", "10.9.0.1:30080", "127.0.0.1:30080"];
        let within = |range: &str| NodePortAddresses::Within(vec![range.parse().unwrap()]);
        for (addresses, expected) in [
            (within("10.9.0.0/16"), vec!["10.9.0.1:30080"]),
            (within("127.0.0.0/8"), vec!["127.0.0.1:30080"]),
            (NodePortAddresses::Primary, vec!["10.1.0.1:30080"]),
            (within("fd01::/64"), all.to_vec()),
            (NodePortAddresses::All, all.to_vec()),
        ] {
            let dataplane =
                Dataplane::load(Config { node_port_addresses: addresses.clone(), ..place.config() }).unwrap();
            dataplane.apply(&service(Protocol::Tcp, CLUSTER, 30080, &["127.0.0.2:8001"])).unwrap();
            let answers: Vec<&str> = all.into_iter().filter(|address| connect(address).is_ok()).collect();
            assert_eq!(answers, expected, "{addresses:?}");
            // Programs of the node may have the port where no Service answers on it.
            let free: Vec<&str> = all.into_iter().filter(|address| TcpListener::bind(address).is_ok()).collect();
            assert!(free.iter().all(|address| !expected.contains(address)) && free.len() + expected.len() == 3);
            assert!(TcpListener::bind("0.0.0.0:30080").is_err(), "{addresses:?}");
        }
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    isolated("a_service_without_endpoints_refuses_at_once", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["!127.0.0.2:8001"])).unwrap();
        assert_eq!(connect(CLUSTER).err().unwrap().kind(), ErrorKind::ConnectionRefused);
        dataplane.apply(&service(Protocol::Udp, CLUSTER, 0, &[])).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(socket.send_to(b"x", CLUSTER).err().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_dead_endpoint_gets_no_new_connection_and_keeps_its_old_ones() {
    isolated("a_dead_endpoint_gets_no_new_connection_and_keeps_its_old_ones", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let old = tcp_server("127.0.0.2:8001");
        let new = tcp_server("127.0.0.3:8002");
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["127.0.0.2:8001"])).unwrap();
        let mut before = connect(CLUSTER).unwrap();
        assert_eq!(before.server, old);
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["!127.0.0.2:8001", "127.0.0.3:8002"])).unwrap();
        for _ in 0..32 {
            assert_eq!(connect(CLUSTER).unwrap().server, new);
        }
        assert!(before.alive());
        dataplane.apply(&Snapshot::default()).unwrap();
        assert!(before.alive());
    });
}

fn ask(socket: &UdpSocket, service: &str) -> (SocketAddr, SocketAddr) {
    let mut buffer = [0; 128];
    socket.send_to(b"x", service).unwrap();
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (words(&buffer[..length]).0, from)
}

#[test]
fn datagrams_come_back_from_the_service() {
    isolated("datagrams_come_back_from_the_service", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let servers = BTreeSet::from([udp_server("127.0.0.2:5301"), udp_server("127.0.0.3:5302")]);
        dataplane.apply(&service(Protocol::Udp, CLUSTER, 0, &["127.0.0.2:5301", "127.0.0.3:5302"])).unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..48 {
            // Not connected: one socket keeps its backend, and each answer comes from the service.
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
            let (server, from) = ask(&socket, CLUSTER);
            assert_eq!(from.to_string(), CLUSTER);
            assert_eq!(ask(&socket, CLUSTER), (server, from));
            seen.insert(server);
        }
        assert_eq!(seen, servers);
        // Connected.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
        socket.connect(CLUSTER).unwrap();
        assert_eq!(socket.peer_addr().unwrap().to_string(), CLUSTER);
        socket.send(b"x").unwrap();
        let mut buffer = [0; 128];
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from.to_string(), CLUSTER);
    });
}

#[test]
fn a_socket_follows_its_service_to_other_backends() {
    isolated("a_socket_follows_its_service_to_other_backends", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let (old, new) = (udp_server("127.0.0.2:5301"), udp_server("127.0.0.3:5302"));
        dataplane.apply(&service(Protocol::Udp, CLUSTER, 0, &["127.0.0.2:5301"])).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
        assert_eq!(ask(&socket, CLUSTER).0, old);
        dataplane.apply(&service(Protocol::Udp, CLUSTER, 0, &["127.0.0.3:5302"])).unwrap();
        assert_eq!(ask(&socket, CLUSTER).0, new);
    });
}

#[test]
fn services_work_while_no_daemon_runs_and_after_the_next_one_took_over() {
    isolated("services_work_while_no_daemon_runs_and_after_the_next_one_took_over", |place: &Place| {
        let first = Dataplane::load(place.config()).unwrap();
        let server = tcp_server("127.0.0.2:8001");
        let snapshot = service(Protocol::Tcp, CLUSTER, 0, &["127.0.0.2:8001"]);
        first.apply(&snapshot).unwrap();
        let mut open = connect(CLUSTER).unwrap();
        drop(first);
        assert_eq!(connect(CLUSTER).unwrap().server, server);
        let second = Dataplane::load(place.config()).unwrap();
        assert_eq!(connect(CLUSTER).unwrap().server, server, "before the API was read");
        second.apply(&snapshot).unwrap();
        assert_eq!(connect(CLUSTER).unwrap().server, server);
        assert_eq!(open.stream.peer_addr().unwrap().to_string(), CLUSTER);
        assert!(open.alive());
        Dataplane::remove_all(&place.pins).unwrap();
        assert!(connect(CLUSTER).is_err(), "nothing translates after remove_all");
    });
}

#[test]
fn no_connection_goes_astray_while_everything_changes() {
    isolated("no_connection_goes_astray_while_everything_changes", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let servers = |net: u8| [1, 2, 3].map(|host| format!("127.0.{net}.{host}:8080"));
        for net in [1, 2] {
            for address in servers(net) {
                tcp_server(&address);
            }
        }
        // Every subset but the empty one, in an order that changes both services at different times.
        let table = |step: usize| {
            let mut snapshot = Snapshot { node: "here".into(), ..Snapshot::default() };
            for (net, period) in [(1_u8, 1), (2, 3)] {
                let mask = step / period % 7 + 1;
                let all = servers(net);
                let some: Vec<&str> = (0..3).filter(|bit| mask >> bit & 1 == 1).map(|bit| all[bit].as_str()).collect();
                let one = service(Protocol::Tcp, &format!("10.96.0.{net}:80"), 0, &some);
                let name = ("shop".into(), format!("web{net}").into());
                snapshot.services.insert(name.clone(), one.services.into_values().next().unwrap());
                for (index, mut slice) in one.slices.into_values().enumerate() {
                    slice.service.clone_from(&name.1);
                    snapshot.slices.insert(("shop".into(), format!("web{net}-{index}").into()), slice);
                }
            }
            snapshot
        };
        dataplane.apply(&table(0)).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let changes = std::thread::scope(|scope| {
            let callers: Vec<_> = [1_u8, 2]
                .into_iter()
                .map(|net| {
                    scope.spawn(move || {
                        for _ in 0..600 {
                            let server = connect(&format!("10.96.0.{net}:80")).unwrap().server;
                            assert!(servers(net).contains(&server.to_string()), "service {net} led to {server}");
                        }
                    })
                })
                .collect();
            let changer = scope.spawn(|| {
                let mut step = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    step += 1;
                    assert_eq!(dataplane.apply(&table(step)).unwrap(), Vec::<String>::new());
                }
                step
            });
            let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok));
            changer.join().unwrap()
        });
        println!("{changes} changes under 1200 connections");
        assert!(changes > 100);
    });
}

#[test]
fn a_namespace_keeps_its_backend_until_it_is_gone() {
    isolated("a_namespace_keeps_its_backend_until_it_is_gone", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let addresses = ["127.0.0.2:8001", "127.0.0.3:8002", "127.0.0.4:8003"];
        let _ = addresses.map(tcp_server);
        let affine = |endpoints: &[&str]| {
            let mut snapshot = service(Protocol::Tcp, CLUSTER, 0, endpoints);
            snapshot.services.values_mut().for_each(|service| service.affinity = 100);
            snapshot
        };
        dataplane.apply(&affine(&addresses)).unwrap();
        let first = connect(CLUSTER).unwrap().server.to_string();
        for _ in 0..32 {
            assert_eq!(connect(CLUSTER).unwrap().server.to_string(), first);
        }
        let left: Vec<&str> = addresses.into_iter().filter(|address| *address != first).collect();
        dataplane.apply(&affine(&left)).unwrap();
        let second = connect(CLUSTER).unwrap().server.to_string();
        assert!(left.contains(&second.as_str()), "{second}");
        // The list is longer again, and what is kept stands elsewhere in it.
        dataplane.apply(&affine(&addresses)).unwrap();
        for _ in 0..32 {
            assert_eq!(connect(CLUSTER).unwrap().server.to_string(), second);
        }
    });
}

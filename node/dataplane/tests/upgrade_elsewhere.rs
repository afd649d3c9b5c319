//! No connection to a backend on another node is lost while the load balancer and the backend's node are restarted, upgraded
//! and rolled back: by direct server return, and by the driver's program, which translates both ends at once. Masqueraded
//! connections that begin while the flow record itself changes come about all the same.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "common/two_nodes.rs"]
mod two_nodes;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Place, act_as_card, connect, forwarded, isolated, tcp_server};
use load::{NEW, OLD, OWN, Way, rest, under_load};
use sluice_dataplane::migrate::Build;
use sluice_dataplane::model::{Forwarding, Snapshot};
use sluice_dataplane::{Config, Dataplane, Traffic, Uplinks, Xdp};
use two_nodes::{PORTS, SERVICES, world};

/// The Services with every port of the pod as a backend: towards each of them all ports of the load balancer can be used, and
/// short connections need very many.
fn table(node: &str, mode: Forwarding) -> Snapshot {
    let mut snapshot = two_nodes::table(node, mode);
    for ((namespace, name), slice) in snapshot.slices.clone() {
        for number in PORTS.skip(1) {
            let mut slice = slice.clone();
            slice.ports.iter_mut().for_each(|port| port.port = number);
            snapshot.slices.insert((namespace.clone(), format!("{name}-{number}").into()), slice);
        }
    }
    snapshot
}

/// Both nodes by one build after the other, under load in both families.
fn nodes_change(place: &Place, xdp: Xdp, mode: Forwarding, builds: &[(&str, Build)]) {
    let world = world(place, xdp);
    if xdp == Xdp::Always {
        for end in [&world.client, &world.backend_node] {
            end.within(|| act_as_card("eth0"));
        }
        assert!(world.balancer.status().unwrap().uplinks.iter().all(|row| row.xdp == "native"));
    }
    for (dataplane, node) in [(&world.balancer, "here"), (&world.backend, "there")] {
        assert_eq!(dataplane.apply(&table(node, mode)).unwrap(), Vec::<String>::new());
    }
    let two_nodes::World { balancer, backend, client, backend_node } = world;
    // Few ports, so that clients use each of them again and again while nodes change.
    client.within(|| {
        for (name, value) in [("ip_local_port_range", "40000 41999"), ("tcp_tw_reuse", "1")] {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
        }
    });
    let way = |name, to| Way { name, inside: Some(&client), tcp: to, udp: to };
    let ways = [way("by IPv4", SERVICES[0].0), way("by IPv6", SERVICES[1].0)];
    let before = forwarded();
    under_load(&ways, |step| {
        let (mut balancer, mut backend) = (Some(balancer), Some(backend));
        for (what, build) in builds {
            drop(balancer.take());
            let loaded = two_nodes::load(place, "here", xdp, *build);
            step(&format!("{what}: the load balancer knows nothing yet"));
            assert_eq!(loaded.apply(&table("here", mode)).unwrap(), Vec::<String>::new());
            balancer = Some(loaded);
            step(what);
            drop(backend.take());
            let loaded = backend_node.within(|| two_nodes::load(place, "there", Xdp::Auto, *build));
            step(&format!("{what}: the backend's node knows nothing yet"));
            assert_eq!(loaded.apply(&table("there", mode)).unwrap(), Vec::<String>::new());
            backend = Some(loaded);
            step(what);
        }
    });
    let by_stack = forwarded() - before;
    println!("{by_stack} packets by the load balancer's stack");
    let by_stack_alone = mode == Forwarding::Dsr && xdp == Xdp::Off;
    assert!(by_stack_alone || by_stack < 1000, "the programs have them: {by_stack}");
}

const BUILDS: [(&str, Build); 6] = [
    ("restarted", OWN),
    ("another schema with the same maps", OLD),
    ("rolled back", OWN),
    ("another flow record", NEW),
    ("the record rolled back", OWN),
    ("restarted again", OWN),
];

#[test]
fn direct_returns_outlive_restarts_upgrades_and_rollbacks() {
    isolated("direct_returns_outlive_restarts_upgrades_and_rollbacks", |place| {
        nodes_change(place, Xdp::Off, Forwarding::Dsr, &BUILDS);
    });
}

#[test]
fn direct_returns_in_the_driver_outlive_them_too() {
    isolated("direct_returns_in_the_driver_outlive_them_too", |place| {
        nodes_change(place, Xdp::Always, Forwarding::Dsr, &BUILDS);
    });
}

/// Where no driver runs that program, the links' own does the same.
#[test]
fn the_links_connections_outlive_them_too() {
    isolated("the_links_connections_outlive_them_too", |place| {
        nodes_change(place, Xdp::Off, Forwarding::Snat, &BUILDS);
    });
}

#[test]
fn the_drivers_connections_outlive_them_too() {
    isolated("the_drivers_connections_outlive_them_too", |place| {
        nodes_change(place, Xdp::Always, Forwarding::Snat, &BUILDS);
    });
}

/// Short connections of a pod to the outside, one after the other, while the flow record changes again and again: those whose
/// first packet comes in the milliseconds in which nothing can be recorded take TCP's time to send it again, and all succeed.
#[test]
fn masqueraded_connections_that_begin_while_the_record_changes_succeed() {
    isolated("masqueraded_connections_that_begin_while_the_record_changes_succeed", |place| {
        two_nodes::route_between_links();
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let pod = place.neighbour("pod", "slc5", Some("169.254.1.1/32"), "10.244.0.5/32", Some("169.254.1.1"));
        two_nodes::ip("route add 10.244.0.5 dev slc5");
        // Towards each of them all ports of the node can be used.
        let servers: Vec<String> = (8000..8064).map(|port| format!("10.1.0.2:{port}")).collect();
        outside.within(|| servers.iter().for_each(|server| _ = tcp_server(server)));
        let load = |build| {
            let config = Config {
                pod_range: Some("10.244.0.0/24".parse().unwrap()),
                cluster_range: Some("10.244.0.0/16".parse().unwrap()),
                uplinks: Uplinks::Every { except: vec!["slc".into()] },
                ..place.config()
            };
            Dataplane::load_build(config, Traffic::best(), build).unwrap()
        };
        drop(load(OLD));
        let (done, made, late) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let client = || {
            for server in servers.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let begun = Instant::now();
                let mut client = connect(server).unwrap();
                assert!(client.alive());
                assert_eq!(client.seen_as.ip().to_string(), "10.1.0.1", "masqueraded");
                made.fetch_add(1, Ordering::Relaxed);
                // A SYN is sent again after a second.
                late.fetch_add(u64::from(begun.elapsed() > Duration::from_millis(900)), Ordering::Relaxed);
                rest();
            }
        };
        let refused = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.within(client))).collect();
            let mut refused = 0;
            // There and back twice, and until a connection was late.
            for round in 0..60 {
                if round >= 4 && refused > 0 && late.load(Ordering::Relaxed) > 0
                    || clients.iter().any(|client| client.is_finished())
                {
                    break;
                }
                let dataplane = load(if round % 2 == 0 { NEW } else { OLD });
                let before = made.load(Ordering::Relaxed);
                while made.load(Ordering::Relaxed) < before + 20 && !clients.iter().any(|client| client.is_finished()) {
                    std::thread::yield_now();
                }
                refused = dataplane.status().unwrap().refused.values().sum();
                dataplane.tend().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            clients.into_iter().for_each(|client| client.join().unwrap());
            refused
        });
        let (made, late) = (made.into_inner(), late.into_inner());
        println!("{made} connections, {refused} first packets refused, {late} connections late");
        assert!(refused > 0 && late > 0, "none of {made} connections met the change");
    });
}

//! Services with backends on other nodes, where no driver runs the XDP program: the links' own program does its work. A
//! connection has the same two entries, and the stack sees no packet that it is not needed for.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/two_nodes.rs"]
mod two_nodes;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::time::Instant;

use aya::programs::loaded_programs;
use common::{Client, PATIENCE, Place, connect, forwarded, isolated, run, words};
use sluice_dataplane::model::Forwarding;
use sluice_dataplane::{Config, Dataplane, Redirect, Uplinks, Xdp};
use two_nodes::{NODE_PORTS, SERVICES, World, config, table, world};

const PROGRAM: &str = "uplink_onward";
const DRIVER: &str = "uplink_xdp";

/// Both nodes and the client know each other: to find a neighbour is the stack's work.
fn acquainted(place: &Place) -> World {
    let world = world(place, Xdp::Off);
    world.serve(Forwarding::Snat);
    for (service, _) in SERVICES {
        let mut client = world.client.within(|| connect(service).unwrap());
        assert!(client.alive());
        // Until its last packet has come by: it would make entries again.
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    world.balancer.forget_flows().unwrap();
    world
}

/// Entries of the flow map.
fn entries(dataplane: &Dataplane) -> usize {
    dataplane.status().unwrap().maps.iter().find(|map| map.name == "flows").unwrap().used
}

/// The links that have the program.
fn has(dataplane: &Dataplane) -> Vec<String> {
    let programs = dataplane.status().unwrap().programs;
    programs.into_iter().filter(|row| row.name == PROGRAM).map(|row| row.attached).collect()
}

/// Which of the two programs this process has loaded.
fn loaded() -> Vec<&'static str> {
    let entries = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    let number = |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    let own: BTreeSet<u32> = texts.filter_map(number).collect();
    let programs: Vec<_> = loaded_programs().filter_map(Result::ok).filter(|info| own.contains(&info.id())).collect();
    let is_loaded = |name: &&str| programs.iter().any(|info| info.name_as_str() == Some(*name));
    [DRIVER, PROGRAM].into_iter().filter(is_loaded).collect()
}

/// The links with one of the two programs, and which.
fn attached(dataplane: &Dataplane) -> Vec<String> {
    let rows = dataplane.status().unwrap().programs.into_iter();
    let rows = rows.filter(|row| [DRIVER, PROGRAM].contains(&row.name.as_str()));
    let mut rows: Vec<String> = rows.map(|row| format!("{} {}", row.attached, row.name)).collect();
    rows.sort();
    rows
}

/// Sends much at once, so that the kernel cuts it into packets late, and reads it back.
fn echo_much(client: &mut Client) {
    let piece: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    let mut back = vec![0; piece.len()];
    let mut reader = client.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..4).for_each(|_| client.stream.write_all(&piece).unwrap()));
        for _ in 0..4 {
            reader.read_exact(&mut back).unwrap();
            assert!(back == piece);
        }
    });
}

/// Who answered a datagram of this length.
fn ask(socket: &UdpSocket, length: usize) -> SocketAddr {
    let mut buffer = [0; 128];
    socket.send(&vec![7; length]).unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    words(&buffer[..length]).0
}

#[test]
fn connections_to_backends_elsewhere_have_two_entries_and_pass_no_stack() {
    isolated("connections_to_backends_elsewhere_have_two_entries_and_pass_no_stack", |place| {
        let world = acquainted(place);
        assert_eq!(has(&world.balancer), ["up0", "up1"]);
        let mut open = Vec::new();
        for (at, service) in SERVICES.map(|(service, _)| service).into_iter().chain(NODE_PORTS).enumerate() {
            let before = forwarded();
            let mut client = world.client.within(|| connect(service).unwrap());
            assert_eq!(entries(&world.balancer), 2 * (at + 1), "{service}");
            echo_much(&mut client);
            assert!(forwarded() - before < 20, "{service}: {} packets by the stack", forwarded() - before);
            open.push(client);
        }
        let tcp = entries(&world.balancer);
        // The next process goes on with them; without the program the stack needs entries of its own for those that it sees.
        drop(world.balancer);
        let balancer =
            Dataplane::load(Config { redirect: Redirect::Off, xdp: Xdp::Off, ..config(place, "here") }).unwrap();
        assert_eq!(balancer.apply(&table("here", Forwarding::Snat)).unwrap(), Vec::<String>::new());
        assert_eq!(has(&balancer), Vec::<String>::new());
        assert!(open.iter_mut().all(Client::alive));
        assert_eq!(entries(&balancer), 2 * tcp);
        let more = world.client.within(|| connect(SERVICES[0].0).unwrap());
        assert_eq!(entries(&balancer), 2 * tcp + 4);
        drop(more);
    });
}

/// Fragments are the stack's: it goes on with what the program began, and the other way round.
#[test]
fn a_connection_may_change_between_the_program_and_the_stack() {
    isolated("a_connection_may_change_between_the_program_and_the_stack", |place| {
        let world = acquainted(place);
        for (at, (service, pod)) in SERVICES.into_iter().enumerate() {
            let pod: SocketAddr = pod.parse().unwrap();
            let socket = world.client.within(|| {
                let socket = UdpSocket::bind(["0.0.0.0:0", "[::]:0"][at]).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(service).unwrap();
                socket
            });
            let counts = [10, 10, 4000, 10, 4000].map(|length| {
                assert_eq!(ask(&socket, length), pod, "{length}");
                entries(&world.balancer) - 4 * at
            });
            assert_eq!(counts, [2, 2, 4, 4, 4], "{service}");
        }
    });
}

/// Each of the two takes the verifier a fifth of a second. What is attached is loaded to be replaced, even where it goes then.
#[test]
fn a_node_loads_what_its_links_need() {
    isolated("a_node_loads_what_its_links_need", |place| {
        let _outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let load = |xdp, redirect, links: &[&str]| {
            let uplinks = Uplinks::Named(links.iter().map(|link| (*link).to_owned()).collect());
            Dataplane::load(Config { xdp, redirect, uplinks, ..config(place, "here") }).unwrap()
        };
        let (off, on) = (Redirect::Off, Redirect::On);
        let (by_link, by_driver) = ("up0 uplink_onward", "up0 uplink_xdp");
        // One process after the other: what it is told, what it has loaded, what is attached.
        let cases: [(_, _, &[&str], &[&str], &[&str]); 12] = [
            (Xdp::Off, off, &["up0"], &[], &[]),
            (Xdp::Off, on, &["up0"], &[PROGRAM], &[by_link]),
            (Xdp::Off, on, &["up0"], &[PROGRAM], &[by_link]),
            (Xdp::Always, on, &["up0"], &[DRIVER, PROGRAM], &[by_driver]),
            (Xdp::Always, on, &["up0"], &[DRIVER], &[by_driver]),
            // Its driver is asked, and has none.
            (Xdp::Always, on, &["up0", "lo"], &[DRIVER, PROGRAM], &["lo uplink_onward", by_driver]),
            (Xdp::Always, on, &["up0", "lo"], &[DRIVER, PROGRAM], &["lo uplink_onward", by_driver]),
            (Xdp::Always, off, &["up0", "lo"], &[DRIVER, PROGRAM], &[by_driver]),
            (Xdp::Off, on, &["up0", "lo"], &[DRIVER, PROGRAM], &["lo uplink_onward", by_link]),
            (Xdp::Auto, on, &["up0", "lo"], &[PROGRAM], &["lo uplink_onward", by_link]),
            (Xdp::Auto, off, &["up0", "lo"], &[PROGRAM], &[]),
            (Xdp::Auto, off, &["up0", "lo"], &[], &[]),
        ];
        for (at, (xdp, redirect, links, expected, has)) in cases.into_iter().enumerate() {
            let dataplane = load(xdp, redirect, links);
            assert_eq!(loaded(), expected, "{at}");
            assert_eq!(attached(&dataplane), has, "{at}");
        }
        let dataplane = load(Xdp::Auto, off, &["lo"]);
        let row = dataplane.status().unwrap().uplinks.into_iter().find(|row| row.link == "lo").unwrap();
        assert_eq!((row.xdp, row.reason.as_deref()), ("tc", Some("the driver has no native XDP")));
    });
}

#[test]
fn a_link_that_comes_later_has_its_program_loaded() {
    isolated("a_link_that_comes_later_has_its_program_loaded", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let load = || Dataplane::load(Config { xdp: Xdp::Always, ..config(place, "here") }).unwrap();
        let dataplane = load();
        assert_eq!(loaded(), [DRIVER]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shutdown, follower) = (tokio_util::sync::CancellationToken::new(), dataplane.clone());
        let stop = shutdown.clone();
        let follower = runtime.spawn(async move { follower.follow_links(&stop).await });
        run("ip", &["link", "add", "late", "type", "vxlan", "id", "7", "dstport", "4789"]);
        let both = ["late uplink_onward", "up0 uplink_xdp"];
        let start = Instant::now();
        while attached(&dataplane) != both && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        assert_eq!(attached(&dataplane), both);
        assert_eq!(loaded(), [DRIVER, PROGRAM]);
        shutdown.cancel();
        runtime.block_on(follower).unwrap().unwrap();
        drop(dataplane);
        let dataplane = load();
        assert_eq!(attached(&dataplane), both);
        assert_eq!(loaded(), [DRIVER, PROGRAM]);
        drop(outside);
    });
}

//! What the probes measure is what the test's own clients and servers saw.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use common::{Namespace, PATIENCE, Place, connect, isolated, pods, run, service, tcp_server};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Dataplane, PodInfo, ServicePath};
use sluice_metrics::Text;

const CLUSTER: &str = "10.96.0.10:80";
const WEB: &str = r#"{namespace="shop",service="web",port="main"}"#;
/// The node's own sockets.
const NODE: &str = r#"{namespace="",pod=""}"#;

/// Verified instructions of one program at most.
const CEILING: u32 = 20_000;

type Series = BTreeMap<String, f64>;

fn read(dataplane: &Dataplane) -> Series {
    let mut text = Text::default();
    dataplane.write_metrics(&mut text).unwrap();
    let text = text.finish();
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn of(series: &Series, name: &str, labels: &str) -> f64 {
    series.get(&format!("{name}{labels}")).copied().unwrap_or(0.0)
}

/// Steps of connections that were not counted, as the kernel does not run a program that it has just interrupted.
fn missed(series: &Series) -> f64 {
    of(series, "sluice_probe_missed_runs_total", "{probe=\"tcp_state\"}")
}

/// Is it as many, but for what was missed?
fn counted(series: &Series, name: &str, labels: &str, expected: f64) -> bool {
    let counted = of(series, name, labels);
    counted <= expected && counted + missed(series) >= expected
}

/// Connections are closed by the kernel after the test has let go of them.
fn until(dataplane: &Dataplane, reached: impl Fn(&Series) -> bool) -> Series {
    let begun = Instant::now();
    loop {
        let series = read(dataplane);
        if reached(&series) {
            return series;
        }
        assert!(begun.elapsed() < PATIENCE * 2, "{series:#?}");
        std::thread::yield_now();
    }
}

fn probed(place: &common::Place) -> Dataplane {
    let dataplane = Dataplane::load(place.config()).unwrap();
    assert_eq!(dataplane.probe_sockets().unwrap(), Vec::<String>::new());
    dataplane
}

#[test]
fn every_connection_is_counted_once_with_a_time_that_its_client_saw() {
    isolated("every_connection_is_counted_once_with_a_time_that_its_client_saw", |place| {
        const CONNECTIONS: usize = 40;
        let dataplane = probed(place);
        tcp_server("127.0.0.2:8001");
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 30080, &["127.0.0.2:8001"])).unwrap();
        // To the cluster's address, to a node port, and from an IPv6 socket.
        let mut seen = Duration::ZERO;
        for address in [CLUSTER, "127.0.0.1:30080", "[::ffff:10.96.0.10]:80"].iter().cycle().take(CONNECTIONS) {
            let begun = Instant::now();
            let stream = TcpStream::connect(address).unwrap();
            seen += begun.elapsed();
            drop(stream);
        }
        // Not to a Service.
        drop(connect("127.0.0.2:8001").unwrap());
        let count = CONNECTIONS as f64;
        let name = "sluice_service_tcp_closed_connections_total";
        let series = until(&dataplane, |series| counted(series, name, WEB, count));
        assert!(counted(&series, "sluice_service_tcp_connect_duration_seconds_count", WEB, count), "{series:#?}");
        assert_eq!(of(&series, "sluice_service_connections_total", &WEB.replace('}', ",protocol=\"TCP\"}")), count);
        let sum = of(&series, "sluice_service_tcp_connect_duration_seconds_sum", WEB);
        assert!(sum > 0.0 && sum <= seen.as_secs_f64(), "{sum} of {seen:?}");
        // Each of them at both ends, and the one that was for no Service.
        let both = until(&dataplane, |series| {
            counted(series, "sluice_pod_tcp_closed_connections_total", NODE, 2.0 * (count + 1.0))
        });
        for name in ["sluice_pod_tcp_connect_duration_seconds_count", "sluice_pod_tcp_accepted_connections_total"] {
            assert!(counted(&both, name, NODE, count + 1.0), "{name}: {both:#?}");
        }
        // None, but for a machine so slow that the kernel sends something twice.
        assert!(of(&both, "sluice_pod_tcp_retransmitted_segments_total", NODE) <= sent_again());
        assert_eq!(of(&both, "sluice_probe_unplaced_figures_total", ""), 0.0);
        assert_eq!(of(&both, "sluice_probe_attached", "{probe=\"tcp_state\"}"), 1.0);
        println!("{count} connections in {seen:?}, {sum} s of it from the first SYN to the answer");
    });
}

#[test]
fn the_programs_are_small() {
    isolated("the_programs_are_small", |place| {
        let _dataplane = probed(place);
        let own = |name: &str| ["tcp_state", "tcp_retransmit", "tcp_reset_recei", "tcp_reset_sent"].contains(&name);
        let programs: Vec<_> = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter_map(|program| Some((program.name_as_str()?.to_owned(), program)))
            .filter(|(name, _)| own(name))
            .collect();
        assert!(programs.len() >= 4);
        for (name, program) in programs {
            let (bytes, verified) = (program.size_translated(), program.verified_instruction_count());
            println!("{name}: {bytes:?} bytes, {verified:?} instructions verified");
            assert!(verified.is_none_or(|count| count < CEILING), "{name}: {verified:?}");
        }
    });
}

/// SYNs that the kernel dropped in this namespace as nobody took connections.
fn dropped_syns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(|line| line.split(' '));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(values).find(|(name, _)| *name == "ListenDrops").unwrap().1.parse().unwrap()
}

/// A listener that lets one connection wait and drops what asks for another one.
#[allow(unsafe_code)]
fn narrow(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    listener
}

/// Waits until somebody's connection is there to be taken.
fn somebody_waits(listener: &TcpListener) {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()), Ok(1));
}

#[test]
fn a_lost_syn_is_a_retransmit_and_makes_connecting_long() {
    isolated("a_lost_syn_is_a_retransmit_and_makes_connecting_long", |place| {
        let dataplane = probed(place);
        let listener = narrow("127.0.0.2:8001");
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["127.0.0.2:8001"])).unwrap();
        let first = TcpStream::connect(CLUSTER).unwrap();
        // Its client may be done while its last packet is still on the way, and then the next SYN is let in.
        somebody_waits(&listener);
        let before = dropped_syns();
        let (second, took) = std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let begun = Instant::now();
                (TcpStream::connect(CLUSTER).unwrap(), begun.elapsed())
            });
            let begun = Instant::now();
            while dropped_syns() == before {
                assert!(begun.elapsed() < PATIENCE, "no SYN was dropped");
                std::thread::yield_now();
            }
            // There is room for the next SYN.
            listener.accept().unwrap();
            second.join().unwrap()
        });
        let series = read(&dataplane);
        let sent_again = of(&series, "sluice_service_tcp_retransmitted_syns_total", WEB);
        assert!(sent_again >= 1.0, "{series:#?}");
        assert_eq!(of(&series, "sluice_service_tcp_retransmitted_segments_total", WEB), sent_again);
        assert_eq!(of(&series, "sluice_pod_tcp_retransmitted_syns_total", NODE), sent_again);
        let name = "sluice_service_tcp_connect_duration_seconds";
        let sum = of(&series, &format!("{name}_sum"), WEB);
        assert!(sum > 0.9 && sum <= took.as_secs_f64() + 0.1, "{sum} s, {took:?}");
        // One was quick and one took about a second or more.
        let up_to =
            |bound: &str| of(&series, &format!("{name}_bucket"), &WEB.replace('}', &format!(",le=\"{bound}\"}}")));
        assert_eq!((up_to("0.524288"), up_to("+Inf")), (1.0, 2.0));
        drop((first, second));
    });
}

#[test]
fn resets_are_counted_at_the_end_that_sends_and_the_one_that_gets_them() {
    isolated("resets_are_counted_at_the_end_that_sends_and_the_one_that_gets_them", |place| {
        const EACH: usize = 6;
        let dataplane = probed(place);
        let closed = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &[&closed.to_string()])).unwrap();
        for _ in 0..EACH {
            assert!(TcpStream::connect(CLUSTER).is_err());
        }
        let each = EACH as f64;
        let series = read(&dataplane);
        assert!(counted(&series, "sluice_service_tcp_failed_connections_total", WEB, each), "{series:#?}");
        assert_eq!(of(&series, "sluice_service_tcp_received_resets_total", WEB), each);
        assert_eq!(of(&series, "sluice_service_tcp_connect_duration_seconds_count", WEB), 0.0);
        // A server that goes without reading what was sent.
        let listener = TcpListener::bind(closed).unwrap();
        for _ in 0..EACH {
            let mut client = TcpStream::connect(CLUSTER).unwrap();
            client.write_all(b"unread").unwrap();
            let server = listener.accept().unwrap().0;
            let mut byte = [0];
            server.peek(&mut byte).unwrap();
            drop(server);
            assert!(client.read(&mut byte).is_err());
        }
        let series = read(&dataplane);
        assert_eq!(of(&series, "sluice_service_tcp_received_resets_total", WEB), 2.0 * each);
        assert_eq!(of(&series, "sluice_service_tcp_sent_resets_total", WEB), 0.0);
        // Resets for a port without a listener are no socket's.
        assert_eq!(of(&series, "sluice_pod_tcp_sent_resets_total", NODE), each);
        assert_eq!(of(&series, "sluice_pod_tcp_received_resets_total", NODE), 2.0 * each);
    });
}

/// Two pods, known to the data plane by these names, whose Services are translated there.
fn client_and_server(place: &Place, dataplane: &Dataplane, services: ServicePath) -> [Namespace; 2] {
    [("pod0", "client", "10.244.0.5"), ("pod1", "server", "10.244.0.6")].map(|(link, name, address)| {
        let pod = pods::pod(place, link, &[address, &format!("fd44::{}", &address[9..])]);
        let info = PodInfo { namespace: "shop".into(), name: name.into(), services, neighbour: None };
        dataplane.add_pod(pods::index(link), &pod.path, &info).unwrap();
        pod
    })
}

#[test]
fn a_pods_connections_are_counted_for_the_pod() {
    isolated("a_pods_connections_are_counted_for_the_pod", |place| {
        const ASKED: usize = 9;
        const SENT: usize = 100_000;
        const PODS: [&str; 2] = [r#"{namespace="shop",pod="client"}"#, r#"{namespace="shop",pod="server"}"#];
        let dataplane = probed(place);
        run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
        let [client, server] = client_and_server(place, &dataplane, ServicePath::Sockets);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let listener = server.within(|| TcpListener::bind("10.244.0.6:8001").unwrap());
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["10.244.0.6:8001"])).unwrap();
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming().take(ASKED) {
                let mut stream = stream.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(b"done").unwrap();
                assert_eq!(all.len(), SENT);
            }
        });
        let begun = Instant::now();
        client.within(|| {
            for _ in 0..ASKED {
                let mut stream = TcpStream::connect(CLUSTER).unwrap();
                stream.write_all(&vec![7; SENT]).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "done");
            }
        });
        serving.join().unwrap();
        let took = begun.elapsed().as_secs_f64();
        let [client, server] = PODS;
        let asked = ASKED as f64;
        let name = "sluice_pod_tcp_closed_connections_total";
        let series = until(&dataplane, |series| PODS.iter().all(|labels| counted(series, name, labels, asked)));
        for (name, labels, expected) in [
            ("sluice_pod_tcp_closed_connections_total", client, asked),
            ("sluice_pod_tcp_closed_connections_total", server, asked),
            ("sluice_pod_tcp_connect_duration_seconds_count", client, asked),
            ("sluice_pod_tcp_connect_duration_seconds_count", server, 0.0),
            ("sluice_pod_tcp_accepted_connections_total", server, asked),
            ("sluice_pod_tcp_accepted_connections_total", client, 0.0),
            ("sluice_service_tcp_connect_duration_seconds_count", WEB, asked),
            ("sluice_pod_tcp_round_trip_time_seconds_count", client, asked),
            ("sluice_service_tcp_round_trip_time_seconds_count", WEB, asked),
            ("sluice_pod_tcp_closed_connections_total", NODE, 0.0),
        ] {
            assert!(counted(&series, name, labels, expected), "{name} {labels} in {series:#?}");
        }
        // What opens and ends a connection counts as a byte each.
        for (name, labels, each) in [
            ("sluice_pod_tcp_sent_bytes_total", client, SENT),
            ("sluice_pod_tcp_sent_bytes_total", server, 4),
            ("sluice_pod_tcp_received_bytes_total", server, SENT),
            ("sluice_pod_tcp_received_bytes_total", client, 4),
            ("sluice_service_tcp_sent_bytes_total", WEB, SENT),
            ("sluice_service_tcp_received_bytes_total", WEB, 4),
        ] {
            let more = of(&series, name, labels) - asked * each as f64;
            let least = -(missed(&series) * each as f64);
            assert!((least..=2.0 * asked).contains(&more), "{name} {labels}: {more} more than was sent");
        }
        let round_trips = of(&series, "sluice_pod_tcp_round_trip_time_seconds_sum", client);
        assert!(round_trips > 0.0 && round_trips < took, "{round_trips} of {took} s");
        // It goes, and its figures with it.
        dataplane.detach_pod(pods::index("pod1")).unwrap();
        let left = read(&dataplane);
        assert!(left.keys().all(|name| !name.contains(r#"pod="server""#)), "{left:#?}");
        assert!(counted(&left, name, client, asked), "{left:#?}");
    });
}

/// Segments that this network namespace sent again, as the kernel counts them.
fn sent_again() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut rows = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Its sockets know nothing of Services.
#[test]
fn a_pod_whose_packets_are_translated_is_measured_for_itself() {
    isolated("a_pod_whose_packets_are_translated_is_measured_for_itself", |place| {
        const ASKED: usize = 7;
        let dataplane = probed(place);
        run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
        let [client, server] = client_and_server(place, &dataplane, ServicePath::Packets);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        server.within(|| tcp_server("10.244.0.6:8001"));
        dataplane.apply(&service(Protocol::Tcp, CLUSTER, 0, &["10.244.0.6:8001"])).unwrap();
        client.within(|| (0..ASKED).for_each(|_| drop(connect(CLUSTER).unwrap())));
        let [client, server] = [r#"{namespace="shop",pod="client"}"#, r#"{namespace="shop",pod="server"}"#];
        let asked = ASKED as f64;
        let name = "sluice_pod_tcp_closed_connections_total";
        let series = until(&dataplane, |series| [client, server].iter().all(|pod| counted(series, name, pod, asked)));
        for (name, labels, expected) in [
            ("sluice_pod_tcp_connect_duration_seconds_count", client, asked),
            ("sluice_pod_tcp_accepted_connections_total", server, asked),
            ("sluice_service_tcp_connect_duration_seconds_count", WEB, 0.0),
        ] {
            assert!(counted(&series, name, labels, expected), "{name} {labels} in {series:#?}");
        }
        // Its figures go with it.
        dataplane.detach_pod(pods::index("pod0")).unwrap();
        assert!(read(&dataplane).keys().all(|name| !name.contains(r#"pod="client""#)));
    });
}

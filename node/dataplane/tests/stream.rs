//! What followers are told is what the test's own clients did.
#![allow(clippy::unwrap_used)]

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use clusters::{cluster, policy};
use common::{PATIENCE, connect, isolated, pods, run, service, tcp_server, udp_server};
use serde_json::json;
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{
    Config, Dataplane, Filter, FlowEvent, Hook, Outcome, PodInfo, Seen, ServicePath, Step, Uplinks, Verdict, Xdp, drops,
};
use sluice_metrics::Text;
use tokio_util::sync::CancellationToken;

/// Longer than it is between some looks at the flow table.
const LOOKS: Duration = Duration::from_secs(4);

/// Follows on a thread of its own, from the return on.
fn follow(dataplane: &Dataplane, filter: Filter) -> Receiver<Arc<FlowEvent>> {
    let (events, told) = channel();
    let (begun, begins) = channel();
    let (teller, follower) = (dataplane.clone(), dataplane.follow(filter).unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let shutdown = CancellationToken::new();
            let mut follower = follower;
            tokio::select! {
                ended = teller.tell_flows(&shutdown) => panic!("{ended:?}"),
                () = async {
                    follower.begun().await;
                    begun.send(()).unwrap();
                    while events.send(follower.next().await).is_ok() {}
                } => {}
            }
        });
    });
    begins.recv_timeout(PATIENCE).unwrap();
    told
}

/// Events until enough of them came, and what comes within a moment after that.
fn until(told: &Receiver<Arc<FlowEvent>>, enough: impl Fn(&[Arc<FlowEvent>]) -> bool) -> Vec<Arc<FlowEvent>> {
    let mut all = Vec::new();
    loop {
        let patience = if enough(&all) { PATIENCE / 10 } else { PATIENCE };
        match told.recv_timeout(patience) {
            Ok(event) => all.push(event),
            Err(RecvTimeoutError::Timeout) if enough(&all) => return all,
            Err(_) => panic!("{} events: {all:#?}", all.len()),
        }
    }
}

fn count(events: &[Arc<FlowEvent>], step: Step) -> usize {
    events.iter().filter(|event| event.event == step).count()
}

/// Who opened, by step: how often each was told.
fn by_source(events: &[Arc<FlowEvent>], step: Step) -> BTreeMap<SocketAddr, usize> {
    let mut all = BTreeMap::new();
    for event in events.iter().filter(|event| event.event == step) {
        let end = event.source.as_ref().unwrap().end;
        *all.entry(SocketAddr::new(end.address, end.port)).or_default() += 1;
    }
    all
}

fn once(sources: &[SocketAddr]) -> BTreeMap<SocketAddr, usize> {
    sources.iter().map(|source| (*source, 1)).collect()
}

#[test]
fn every_connection_of_a_socket_is_told_once_when_it_begins_and_once_when_it_ends() {
    isolated("every_connection_of_a_socket_is_told_once_when_it_begins_and_once_when_it_ends", |place| {
        const CONNECTIONS: usize = 30;
        let dataplane = Dataplane::load(place.config()).unwrap();
        assert_eq!(dataplane.probe_sockets().unwrap(), Vec::<String>::new());
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        let server = tcp_server("127.0.0.2:8001");
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["127.0.0.2:8001"])).unwrap();
        // What is there before is not told when it begins.
        let before = connect("10.96.0.10:80").unwrap();
        let told = follow(&dataplane, Filter::default());
        let mut sources = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut client = connect("10.96.0.10:80").unwrap();
            assert!(client.alive());
            sources.push(client.stream.local_addr().unwrap());
        }
        let events = until(&told, |events| count(events, Step::Last) >= CONNECTIONS);
        assert_eq!(by_source(&events, Step::First), once(&sources));
        assert_eq!(by_source(&events, Step::Last), once(&sources));
        assert_eq!(events.len(), 2 * CONNECTIONS, "{events:#?}");
        for event in &events {
            let backend = event.backend.as_ref().unwrap().end;
            assert_eq!(event.service.as_deref(), Some("shop/web:main"));
            assert_eq!((event.seen_by, event.verdict), (Some(Seen::Client), Some(Verdict::Forwarded)));
            assert_eq!(SocketAddr::new(backend.address, backend.port), server);
            assert_eq!(event.destination.as_ref().unwrap().end.port, 80);
            match event.event {
                Step::First => assert!(event.figures.connect_microseconds.is_some()),
                // "ping"; a line with both addresses, and "ping".
                _ => assert!(event.figures.bytes >= Some(4) && event.figures.answer_bytes > Some(20), "{event:?}"),
            }
        }
        let own = before.stream.local_addr().unwrap();
        drop(before);
        let events = until(&told, |events| !events.is_empty());
        assert_eq!((by_source(&events, Step::Last), events.len()), (once(&[own]), 1));
        // A port that nobody has; a Service that nobody answers for.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        TcpStream::connect(nobody).unwrap_err();
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &[])).unwrap();
        connect("10.96.0.10:80").map(drop).unwrap_err();
        let events = until(&told, |events| events.len() >= 3);
        let said = |event: &FlowEvent| (event.event, event.service.clone(), event.reason.clone());
        assert_eq!(said(&events[0]), (Step::Drop, None, Some("NO_SOCKET".to_owned())));
        assert_eq!(said(&events[1]), (Step::Failed, None, None));
        let refused = (Step::Refused, Some("shop/web:main".to_owned()), Some("NoEndpoint".to_owned()));
        assert_eq!(said(&events[2]), refused);
        assert_eq!(events.len(), 3, "{events:#?}");
    });
}

#[test]
fn what_is_translated_packet_by_packet_is_told_by_the_flow_table() {
    isolated("what_is_translated_packet_by_packet_is_told_by_the_flow_table", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let config = Config { uplinks: Uplinks::Every { except: vec![] }, ..place.config() };
        let dataplane = Dataplane::load(config).unwrap();
        dataplane.probe_sockets().unwrap();
        tcp_server("10.1.0.1:8001");
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8001"])).unwrap();
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        let mut filter = Filter::default();
        filter.set("port", "30080").unwrap();
        let told = follow(&dataplane, filter);
        let clients: Vec<_> = (0..5).map(|_| outside.within(|| connect("10.1.0.1:30080").unwrap())).collect();
        // Not asked for.
        drop(outside.within(|| connect("10.1.0.1:8001").unwrap()));
        let sources: Vec<SocketAddr> = clients.iter().map(|client| client.stream.local_addr().unwrap()).collect();
        drop(clients);
        let events = until(&told, |events| count(events, Step::Last) >= 5);
        assert_eq!(by_source(&events, Step::First), once(&sources));
        assert_eq!(by_source(&events, Step::Last), once(&sources));
        assert_eq!(events.len(), 10, "the node's socket has nothing to add: {events:#?}");
        for event in &events {
            assert_eq!((event.service.as_deref(), event.seen_by), (Some("shop/web:main"), Some(Seen::Packets)));
        }
        let last = events.iter().find(|event| event.event == Step::Last).unwrap();
        assert!(last.figures.packets >= Some(4) && last.figures.answer_bytes > Some(200), "{last:?}");
    });
}

/// Its sockets are measured, but the flow table tells.
#[test]
fn a_pod_whose_packets_are_translated_is_told_of_once() {
    isolated("a_pod_whose_packets_are_translated_is_told_of_once", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        dataplane.probe_sockets().unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        run("ip", &["address", "add", "10.1.0.1/32", "dev", "lo"]);
        let [client, server] = [("pod0", "10.244.0.5"), ("pod1", "10.244.0.6")].map(|(link, address)| {
            let pod = pods::pod(place, link, &[address, &format!("fd44::{}", &address[9..])]);
            let (namespace, name) = ("shop".into(), link.into());
            let info = PodInfo { namespace, name, services: ServicePath::Packets, neighbour: None };
            dataplane.add_pod(pods::index(link), &pod.path, &info).unwrap();
            pod
        });
        server.within(|| tcp_server("10.244.0.6:8001"));
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &["10.244.0.6:8001"])).unwrap();
        let told = follow(&dataplane, Filter::default());
        client.within(|| (0..5).for_each(|_| drop(connect("10.96.0.10:80").unwrap())));
        let events = until(&told, |events| count(events, Step::Last) >= 5);
        let ours: Vec<_> = events.iter().filter(|event| event.seen_by != Some(Seen::Kernel)).collect();
        assert!(ours.iter().all(|event| event.seen_by == Some(Seen::Packets)), "{ours:#?}");
        assert_eq!(ours.len(), 10, "{ours:#?}");
    });
}

#[test]
fn policies_tell_what_they_allow_and_what_they_drop() {
    isolated("policies_tell_what_they_allow_and_what_they_drop", |place| {
        let cluster = cluster(place);
        cluster.apply(&[policy("p", json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]}))]);
        let told = follow(&cluster.planes[0], Filter::default());
        cluster.check("by port", "c", "a", &["80/tcp"]);
        let enough = |events: &[Arc<FlowEvent>]| count(events, Step::Allowed) >= 2 && count(events, Step::Drop) >= 6;
        let events = until(&told, enough);
        for event in events.iter().filter(|event| matches!(event.event, Step::Allowed | Step::Drop)) {
            let pods = [&event.source, &event.destination].map(|party| party.as_ref().unwrap().pod.clone());
            assert_eq!(pods, [Some("x/slcc".to_owned()), Some("x/slca".to_owned())], "{event:?}");
            let port = event.destination.as_ref().unwrap().end.port;
            let what = (port, event.protocol.as_deref().unwrap());
            match event.event {
                Step::Allowed => assert_eq!(what, (80, "TCP")),
                _ => {
                    assert!([(81, "TCP"), (80, "UDP"), (81, "UDP")].contains(&what), "{event:?}");
                    assert_eq!(event.reason.as_deref(), Some("PolicyIngress"));
                }
            }
        }
    });
}

#[test]
fn what_the_driver_drops_is_counted_and_told() {
    isolated("what_the_driver_drops_is_counted_and_told", |place| {
        let _outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let uplinks = Uplinks::Named(vec!["up0".into()]);
        let config = Config { uplinks, xdp: Xdp::Always, ..place.config() };
        let pins = config.pin_dir.clone();
        let dataplane = Dataplane::load(config).unwrap();
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.244.0.5:8080"])).unwrap();
        let told = follow(&dataplane, Filter::default());
        // A TCP packet that ends before its checksum: there is a Service to translate it for, and no way to.
        let mut frame = [0; 48];
        frame[12..18].copy_from_slice(&[0x08, 0, 0x45, 0, 0, 40]);
        (frame[22], frame[23]) = (64, 6);
        frame[26..38].copy_from_slice(&[192, 0, 2, 9, 10, 1, 0, 1, 0, 7, 0x75, 0x80]);
        (frame[46], frame[47]) = (0x50, 0x10);
        assert_eq!(dataplane.probe(Hook::Wire, &frame, 1).unwrap().outcome, Outcome::Dropped);
        // The kernel drops something of its own meanwhile.
        let counted = drops(&pins).unwrap().rows;
        let counted = counted.iter().find(|row| row.reason == "Rewrite").map(|row| row.packets);
        assert_eq!(counted, Some(1));
        let ours = |event: &FlowEvent| event.event == Step::Drop && event.reason.as_deref() == Some("Rewrite");
        let events = until(&told, |events| events.iter().any(|event| ours(event)));
        let event = events.iter().find(|event| ours(event)).unwrap();
        assert_eq!(event.verdict, Some(Verdict::Dropped));
        assert_eq!(event.source.as_ref().unwrap().end.address, std::net::Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(event.figures.bytes, Some(48));
    });
}

#[test]
fn what_happens_is_told_though_nothing_happens_after_it() {
    isolated("what_happens_is_told_though_nothing_happens_after_it", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        dataplane.apply(&service(Protocol::Udp, "10.96.0.10:53", 0, &[])).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let told = follow(&dataplane, Filter::default());
        // Until looks at the flow table came in between as well.
        let begun = std::time::Instant::now();
        while begun.elapsed() < LOOKS {
            socket.send_to(b"x", "10.96.0.10:53").unwrap_err();
            assert_eq!(told.recv_timeout(PATIENCE).unwrap().event, Step::Refused);
        }
    });
}

#[test]
fn what_a_flood_does_not_tell_is_counted() {
    isolated("what_a_flood_does_not_tell_is_counted", |place| {
        const DATAGRAMS: u64 = 10_000;
        let dataplane = Dataplane::load(place.config()).unwrap();
        dataplane.apply(&service(Protocol::Udp, "10.96.0.10:53", 0, &[])).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let send = || socket.send_to(b"x", "10.96.0.10:53").unwrap_err();
        // Nobody follows: nothing is told, or lost.
        send();
        let figures = |name: &str| {
            let mut text = Text::default();
            dataplane.write_metrics(&mut text).unwrap();
            let text = text.finish();
            let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
            lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
        };
        assert_eq!(figures("sluice_flow_events_total") + figures("sluice_flow_events_lost_total"), 0);
        let told = follow(&dataplane, Filter::default());
        assert_eq!(figures("sluice_flow_followers"), 1);
        (0..DATAGRAMS).for_each(|_| drop(send()));
        let sum = |events: &[Arc<FlowEvent>]| {
            let refused = count(events, Step::Refused) as u64;
            (refused, refused + events.iter().filter_map(|event| event.lost).sum::<u64>())
        };
        let events = until(&told, |events| sum(events).1 >= DATAGRAMS);
        let (refused, all) = sum(&events);
        assert_eq!(all, DATAGRAMS);
        assert!((1_000..DATAGRAMS).contains(&refused), "{refused}");
        assert_eq!(figures("sluice_flow_events_total") + figures("sluice_flow_events_lost_total"), DATAGRAMS);
        // Nobody follows any more.
        drop(told);
        send();
        let begun = std::time::Instant::now();
        while figures("sluice_flow_followers") > 0 {
            send();
            assert!(begun.elapsed() < PATIENCE);
        }
    });
}

#[test]
fn a_sockets_datagrams_are_told_when_they_get_a_backend() {
    isolated("a_sockets_datagrams_are_told_when_they_get_a_backend", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let servers = ["127.0.0.2:5301", "127.0.0.3:5302"].map(udp_server);
        let serve = |server: SocketAddr| {
            dataplane.apply(&service(Protocol::Udp, "10.96.0.10:53", 0, &[&server.to_string()])).unwrap();
        };
        serve(servers[0]);
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        let told = follow(&dataplane, Filter::default());
        let ask = |socket: &UdpSocket| {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // With `sendmsg` or `send`.
            let sent =
                if socket.peer_addr().is_ok() { socket.send(b"?") } else { socket.send_to(b"?", "10.96.0.10:53") };
            assert_eq!(sent.unwrap(), 1);
            socket.recv(&mut [0; 128]).unwrap();
        };
        let backends = || {
            let events = until(&told, |events| !events.is_empty());
            for event in &events {
                assert_eq!(
                    (event.event, event.seen_by, event.protocol.as_deref()),
                    (Step::First, Some(Seen::Client), Some("UDP"))
                );
                assert_eq!(event.service.as_deref(), Some("shop/web:main/udp"));
                assert_eq!(event.destination.as_ref().unwrap().end.port, 53);
            }
            let ends = events.iter().map(|event| event.backend.as_ref().unwrap().end);
            ends.map(|end| SocketAddr::new(end.address, end.port)).collect::<Vec<_>>()
        };
        let [free, connected] = [(); 2].map(|()| UdpSocket::bind("0.0.0.0:0").unwrap());
        for _ in 0..5 {
            ask(&free);
        }
        assert_eq!(backends(), [servers[0]]);
        connected.connect("10.96.0.10:53").unwrap();
        for _ in 0..5 {
            ask(&connected);
        }
        assert_eq!(backends(), [servers[0]]);
        serve(servers[1]);
        for _ in 0..5 {
            ask(&free);
        }
        assert_eq!(backends(), [servers[1]]);
    });
}

/// Of one reason: how many were told, and how many in all.
fn drops_of(events: &[Arc<FlowEvent>], reason: &str) -> (u64, u64) {
    let told = events.iter().filter(|event| event.reason.as_deref() == Some(reason)).count() as u64;
    (told, told + events.iter().filter_map(|event| event.lost).sum::<u64>())
}

#[test]
fn what_the_kernel_drops_is_told_or_counted() {
    isolated("what_the_kernel_drops_is_told_or_counted", |place| {
        const DATAGRAMS: u64 = 10_000;
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let dataplane = Dataplane::load(place.config()).unwrap();
        let told = follow(&dataplane, Filter::default());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(address).unwrap();
            let closed = UdpSocket::bind(address).unwrap().local_addr().unwrap();
            // What strangers lose is nobody's here.
            outside.within(|| UdpSocket::bind(address).unwrap().send_to(b"x", closed).unwrap());
            // The flood before may have left no token for it yet.
            let event = loop {
                socket.send_to(b"secret", closed).unwrap();
                let events = until(&told, |events| !events.is_empty());
                let [event] = &events[..] else { panic!("{events:#?}") };
                if event.event != Step::Lost {
                    break event.clone();
                }
                assert_eq!(event.lost, Some(1));
            };
            assert_eq!(
                (event.event, event.verdict, event.seen_by),
                (Step::Drop, Some(Verdict::Dropped), Some(Seen::Kernel))
            );
            assert_eq!((event.reason.as_deref(), event.protocol.as_deref()), (Some("NO_SOCKET"), Some("UDP")));
            assert_eq!(event.text.as_deref(), Some("no socket is open on the port"));
            let ends = [&event.source, &event.destination].map(|party| {
                let end = party.as_ref().unwrap().end;
                SocketAddr::new(end.address, end.port)
            });
            assert_eq!(ends, [socket.local_addr().unwrap(), closed]);
            let headers = if closed.is_ipv4() { 28 } else { 48 };
            assert_eq!(event.figures.bytes, Some(headers + 6));
            for _ in 0..DATAGRAMS {
                socket.send_to(b"x", closed).unwrap();
            }
            let events = until(&told, |events| drops_of(events, "NO_SOCKET").1 >= DATAGRAMS);
            let (some, all) = drops_of(&events, "NO_SOCKET");
            assert_eq!(all, DATAGRAMS);
            assert!((1_000..DATAGRAMS).contains(&some), "{some}");
        }
        // A socket whose program does not read: another reason has tokens of its own.
        let slow = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..DATAGRAMS {
            sender.send_to(&[0; 1_000], slow.local_addr().unwrap()).unwrap();
        }
        slow.set_nonblocking(true).unwrap();
        let kept = std::iter::from_fn(|| slow.recv(&mut [0; 1_000]).ok()).count() as u64;
        let events = until(&told, |events| drops_of(events, "SOCKET_RCVBUFF").1 >= DATAGRAMS - kept);
        assert_eq!(drops_of(&events, "SOCKET_RCVBUFF").1, DATAGRAMS - kept);
        // Its unread datagrams go with it, and are none.
        drop(slow);
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        TcpStream::connect(closed).unwrap_err();
        let events = until(&told, |events| !events.is_empty());
        let reasons: Vec<_> = events.iter().map(|event| (event.event, event.reason.as_deref())).collect();
        assert_eq!(reasons, [(Step::Drop, Some("NO_SOCKET"))], "{events:#?}");
    });
}

#[test]
fn what_is_lost_in_a_pod_is_told_of_the_pod() {
    isolated("what_is_lost_in_a_pod_is_told_of_the_pod", |place| {
        let cluster = cluster(place);
        cluster.apply(&[]);
        let plane = &cluster.planes[0];
        plane.know_namespace(pods::index("slca"), &cluster.pods[0].path).unwrap();
        let mut filter = Filter::default();
        filter.set("pod", "x/slca").unwrap();
        let told = follow(plane, filter);
        let lost = |from: usize, to: &str| {
            cluster.pods[from].within(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
            let events = until(&told, |events| !events.is_empty());
            let [event] = &events[..] else { panic!("{events:#?}") };
            assert_eq!((event.reason.as_deref(), event.seen_by), (Some("NO_SOCKET"), Some(Seen::Kernel)));
            [&event.source, &event.destination].map(|party| party.as_ref().unwrap().pod.clone().unwrap())
        };
        assert_eq!(lost(2, "10.244.0.5:9999"), ["x/slcc", "x/slca"]);
        // Within the pod itself.
        assert_eq!(lost(0, "127.0.0.1:9999"), ["x/slca", "x/slca"]);
        // What policies drop is told by the programs alone, whatever the kernel calls it.
        cluster.apply(&[policy("p", json!({"policyTypes": ["Ingress"]}))]);
        cluster.pods[2].within(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "10.244.0.5:80").unwrap());
        let events = until(&told, |events| !events.is_empty());
        let reasons: Vec<_> = events.iter().map(|event| event.reason.as_deref()).collect();
        assert_eq!(reasons, [Some("PolicyIngress")], "{events:#?}");
    });
}

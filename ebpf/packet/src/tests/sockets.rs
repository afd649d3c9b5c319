//! Socket addresses.

use sluice_ebpf_common::{Address, Frontend, Reason, Scope, Settings, SocketState, Translation, protocol};

use super::frame::{end, wire};
use super::world::World;
use crate::{SocketVerdict, answers_from, asked_for, connect, may_listen, original, remember, send};

fn world() -> World {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:8080"]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.11:53", &["10.244.0.6:5353", "10.244.0.7:5353"]);
    world.serve(protocol::TCP, Scope::Internal, "*:30080", &["10.244.0.5:8080"]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.12:80", &[]);
    world.serve(protocol::TCP, Scope::Internal, "[fd96::10]:80", &["[fd44:0:0:1::5]:8080"]);
    world.serve(protocol::TCP, Scope::Internal, "[*]:30080", &["[fd44:0:0:1::5]:8080"]);
    world
}

#[test]
fn what_connect_does() {
    let to = Some("10.244.0.5:8080");
    let to6 = Some("[fd44:0:0:1::5]:8080");
    let cases = [
        ("10.96.0.10:80", protocol::TCP, to, false),
        ("10.1.0.1:30080", protocol::TCP, to, false),
        ("127.0.0.1:30080", protocol::TCP, to, false),
        ("10.96.0.12:80", protocol::TCP, None, true),
        ("10.96.0.10:80", protocol::UDP, None, false),
        ("10.96.0.10:81", protocol::TCP, None, false),
        ("10.1.0.9:30080", protocol::TCP, None, false),
        ("192.0.2.1:80", protocol::TCP, None, false),
        ("[::ffff:10.96.0.10]:80", protocol::TCP, to, false),
        ("[fd96::10]:80", protocol::TCP, to6, false),
        ("[fd01::1]:30080", protocol::TCP, to6, false),
        ("[::1]:30080", protocol::TCP, to6, false),
        ("[fd01::2]:30080", protocol::TCP, None, false),
        ("[fd96::10]:81", protocol::TCP, None, false),
    ];
    for (asked, number, backend, refused) in cases {
        let (address, port) = end(asked);
        let world = world();
        let got = match connect(&world, &address, port, number) {
            SocketVerdict::Untouched => (None, false),
            SocketVerdict::Refused(_) => (None, true),
            SocketVerdict::Translated(translation, service) => {
                assert_eq!(
                    service,
                    world
                        .frontends
                        .values()
                        .find(|frontend| frontend.generation == translation.generation)
                        .unwrap()
                        .service
                );
                assert_eq!((translation.service_address, translation.service_port), (address, port));
                (Some((translation.backend_address, translation.backend_port)), false)
            }
            SocketVerdict::Kept(_) => unreachable!("it connects anew"),
        };
        assert_eq!(got, (backend.map(end), refused), "{asked}");
        assert_eq!(refused, world.reasons.borrow().contains(&Reason::NoEndpoint));
    }
}

#[test]
fn a_stranger_is_left_alone() {
    let mut world = world();
    world.settings.known_only = 1;
    for asked in ["10.96.0.10:80", "10.96.0.12:80"] {
        let (address, port) = end(asked);
        assert_eq!(connect(&world, &address, port, protocol::TCP), SocketVerdict::Untouched);
    }
    assert!(world.reasons.borrow().is_empty());
}

#[test]
fn a_sending_socket_keeps_its_backend_until_the_service_changes() {
    let mut world = world();
    let (address, port) = end("10.96.0.11:53");
    let mut state = SocketState::default();
    let ask = |world: &World, state: &SocketState| match send(world, &address, port, protocol::UDP, Some(state)) {
        SocketVerdict::Translated(translation, _) => translation,
        other => panic!("{other:?}"),
    };
    let first = ask(&world, &state);
    remember(&mut state, first, 1);
    for _ in 0..4 {
        assert_eq!(send(&world, &address, port, protocol::UDP, Some(&state)), SocketVerdict::Kept(first));
    }
    for frontend in world.frontends.values_mut() {
        frontend.generation += 100;
    }
    assert_ne!(ask(&world, &state).generation, first.generation);
    assert_eq!(world.services.borrow()[&1].connections, 2, "a socket counts once per pick");
}

#[test]
fn a_socket_remembers_its_last_services() {
    let mut state = SocketState::default();
    let entry = |number: u16| Translation {
        service_address: wire("10.96.0.1"),
        service_port: number,
        backend_address: wire("10.244.0.2"),
        backend_port: number,
        generation: 1,
    };
    for number in 1..=5 {
        remember(&mut state, entry(number), 100 + u32::from(number));
        remember(&mut state, entry(number), 100 + u32::from(number));
    }
    let known = [1, 2, 3, 4, 5].map(|number| original(&state, &wire("10.244.0.2"), number).is_some());
    assert_eq!(known, [false, true, true, true, true]);
    assert_eq!(original(&state, &wire("10.244.0.2"), 5), Some((wire("10.96.0.1"), 5)));
    assert_eq!(original(&state, &Address::default(), 0), None);
    // Only the last one is what a connection is for, also when it was asked for before.
    let peer = wire("10.244.0.2");
    assert_eq!(asked_for(&state, &peer, 5), Some((105, &entry(5))));
    assert_eq!(asked_for(&state, &peer, 4), None);
    remember(&mut state, entry(3), 103);
    assert_eq!(asked_for(&state, &peer, 3), Some((103, &entry(3))));
    assert_eq!(asked_for(&state, &peer, 5), None);
    remember(&mut state, entry(6), 106);
    assert_eq!([2, 3, 6].map(|number| original(&state, &peer, number).is_some()), [false, true, true]);
    // A build before remembered no id.
    state.mark(state.next(), 0, 0);
    assert_eq!([5, 6].map(|number| asked_for(&state, &peer, number)), [None, None]);
}

fn backend(verdict: SocketVerdict) -> Option<(Address, u16)> {
    match verdict {
        SocketVerdict::Translated(translation, _) => Some((translation.backend_address, translation.backend_port)),
        _ => None,
    }
}

#[test]
fn a_namespace_keeps_its_backend_for_a_while() {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:80", "10.244.0.6:80", "10.244.0.7:80"]);
    world.change("10.96.0.10:80", |frontend| frontend.affinity = 60);
    let (address, port) = end("10.96.0.10:80");
    world.random = [0, u32::MAX, 1 << 31].into();
    let ask = |world: &World| backend(connect(world, &address, port, protocol::TCP));
    let first = ask(&world);
    assert_eq!(first, Some(end("10.244.0.5:80")));
    for _ in 0..4 {
        world.now += 60;
        assert_eq!(ask(&world), first, "each connection starts the time anew");
    }
    world.namespace = 8;
    assert_ne!(ask(&world), first, "another client");
    world.namespace = 7;
    world.now += 61;
    let later = ask(&world);
    assert_ne!(later, first, "the time is over");
    // Out of this service, though some other may still use it.
    let ids: alloc::vec::Vec<u32> = world.slab.clone();
    world.slab =
        ids.iter().copied().filter(|id| Some(*id) != later.map(|(address, _)| id_of(&world, &address))).collect();
    world.change("10.96.0.10:80", |frontend| frontend.count = 2);
    assert_ne!(ask(&world), later);
    // A slot that is somebody else's now.
    let kept = ask(&world);
    assert_eq!(ask(&world), kept);
    for known in world.backends.values_mut().filter(|known| Some((known.address, known.port)) == kept) {
        known.port = end("0.0.0.0:99").1;
    }
    let next = ask(&world);
    assert_eq!(ask(&world), next, "{next:?}");
    world.change("10.96.0.10:80", |frontend| frontend.affinity = 0);
    let seen: std::collections::BTreeSet<_> = (0..8).map(|_| ask(&world)).collect();
    assert!(seen.len() > 1, "switched off");
}

fn id_of(world: &World, address: &Address) -> u32 {
    world.backends.iter().find(|(_, backend)| backend.address == *address).map_or(0, |(id, _)| *id)
}

#[test]
fn source_ranges_are_for_the_node_here_and_for_pods_by_packet() {
    let (address, port) = end("10.96.0.10:80");
    let full = Address { words: [u32::MAX; 4] };
    // Ranges, the socket's namespace, what connect says.
    let cases =
        [(wire("10.1.0.1"), 7, "translated"), (wire("10.1.0.2"), 7, "refused"), (wire("10.1.0.1"), 8, "untouched")];
    for (range, namespace, expected) in cases {
        let mut world = world();
        world.settings.host_cookie = 7;
        world.namespace = namespace;
        world.ranges = [(range, full)].into();
        world.change("10.96.0.10:80", |frontend| frontend.flags = Frontend::RANGES);
        let got = match connect(&world, &address, port, protocol::TCP) {
            SocketVerdict::Untouched => "untouched",
            SocketVerdict::Refused(_) => "refused",
            SocketVerdict::Translated(..) => "translated",
            SocketVerdict::Kept(_) => "kept",
        };
        assert_eq!(got, expected);
    }
}

#[test]
fn nobody_listens_on_a_node_port() {
    // Address to listen on, protocol, the socket's namespace, allowed?
    let cases = [
        ("0.0.0.0:30080", protocol::TCP, 7, false),
        ("127.0.0.1:30080", protocol::TCP, 7, false),
        ("[::]:30080", protocol::TCP, 7, false),
        ("0.0.0.0:30081", protocol::TCP, 7, true),
        ("0.0.0.0:30080", protocol::UDP, 7, true),
        ("0.0.0.0:30080", protocol::TCP, 8, true),
        ("0.0.0.0:80", protocol::TCP, 7, true),
    ];
    for (listen, number, namespace, allowed) in cases {
        let mut world = world();
        world.settings.host_cookie = 7;
        world.namespace = namespace;
        let (address, port) = end(listen);
        assert_eq!(may_listen(&world, &address, port, number), allowed, "{listen}");
    }
}

/// `nodePortAddresses`: the other addresses are as if there were no Service; host ports answer on them all the same.
#[test]
fn node_ports_answer_on_chosen_addresses() {
    let mut world = world();
    world.settings.host_cookie = 7;
    world.namespace = 7;
    world.without_node_ports = ["127.0.0.1", "fd01::1"].map(wire).to_vec();
    world.serve(protocol::TCP, Scope::Internal, "*:8080", &["10.244.0.5:8080"]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:30081", &["10.244.0.5:8080"]);
    world.settings.flags |= Settings::HOST_PORTS;
    for (to, served, listens) in [
        ("10.1.0.1:30080", true, false),
        ("127.0.0.1:30080", false, true),
        ("[fd01::1]:30080", false, true),
        ("[::1]:30080", true, false),
        ("0.0.0.0:30080", true, false),
        ("127.0.0.1:8080", true, true),
        ("10.1.0.1:8080", true, true),
        ("10.96.0.10:30081", true, true),
    ] {
        let (address, port) = end(to);
        let verdict = connect(&world, &address, port, protocol::TCP);
        assert_eq!(verdict != SocketVerdict::Untouched, served, "{to}");
        assert_eq!(may_listen(&world, &address, port, protocol::TCP), listens, "{to}");
    }
}

#[test]
fn the_nodes_datagrams_to_pods_come_from_the_node() {
    // Where to, the socket's namespace, from where.
    let cases = [
        ("10.244.0.5", 7, Some("10.1.0.1")),
        ("10.244.9.9", 7, Some("10.1.0.1")),
        ("fd44:0:0:1::5", 7, Some("fd01::1")),
        ("192.0.2.1", 7, None),
        ("10.244.0.5", 8, None),
    ];
    for (to, namespace, from) in cases {
        let mut world = world();
        world.settings.host_cookie = 7;
        world.namespace = namespace;
        assert_eq!(answers_from(&world, &wire(to)), from.map(wire), "{to}");
        // An address that the node does not have would be refused.
        for family in &mut world.settings.families {
            family.node = wire("10.1.0.77");
        }
        assert_eq!(answers_from(&world, &wire(to)), None, "{to}");
    }
}

//! Socket addresses.

use sluice_ebpf_common::{Reason, Scope, SocketState, Translation, protocol};

use super::world::{World, end};
use crate::{SocketVerdict, connect, original, remember, send};

fn world() -> World {
    let mut world = World::new();
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:8080"]);
    world.serve(protocol::UDP, Scope::Internal, "10.96.0.11:53", &["10.244.0.6:5353", "10.244.0.7:5353"]);
    world.serve(protocol::TCP, Scope::Internal, "*:30080", &["10.244.0.5:8080"]);
    world.serve(protocol::TCP, Scope::Internal, "10.96.0.12:80", &[]);
    world
}

#[test]
fn what_connect_does() {
    let to = Some("10.244.0.5:8080");
    let cases = [
        ("10.96.0.10:80", protocol::TCP, to, false),
        ("10.1.0.1:30080", protocol::TCP, to, false),
        ("127.0.0.1:30080", protocol::TCP, to, false),
        ("10.96.0.12:80", protocol::TCP, None, true),
        ("10.96.0.10:80", protocol::UDP, None, false),
        ("10.96.0.10:81", protocol::TCP, None, false),
        ("10.1.0.9:30080", protocol::TCP, None, false),
        ("192.0.2.1:80", protocol::TCP, None, false),
    ];
    for (asked, number, backend, refused) in cases {
        let (address, port) = end(asked);
        let world = world();
        let got = match connect(&world, address, port, number) {
            SocketVerdict::Untouched => (None, false),
            SocketVerdict::Refused => (None, true),
            SocketVerdict::Translated(translation) => {
                assert_eq!((translation.service_address, translation.service_port), (address, port));
                (Some((translation.backend_address, translation.backend_port)), false)
            }
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
        assert_eq!(connect(&world, address, port, protocol::TCP), SocketVerdict::Untouched);
    }
    assert!(world.reasons.borrow().is_empty());
}

#[test]
fn a_sending_socket_keeps_its_backend_until_the_service_changes() {
    let mut world = world();
    let (address, port) = end("10.96.0.11:53");
    let mut state = SocketState::default();
    let ask = |world: &World, state: &SocketState| match send(world, address, port, protocol::UDP, Some(state)) {
        SocketVerdict::Translated(translation) => translation,
        other => panic!("{other:?}"),
    };
    let first = ask(&world, &state);
    remember(&mut state, first);
    for _ in 0..4 {
        assert_eq!(ask(&world, &state), first);
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
        service_address: 1,
        service_port: number,
        backend_address: 2,
        backend_port: number,
        generation: 1,
    };
    for number in 1..=5 {
        remember(&mut state, entry(number));
        remember(&mut state, entry(number));
    }
    let known = [1, 2, 3, 4, 5].map(|number| original(&state, 2, number).is_some());
    assert_eq!(known, [false, true, true, true, true]);
    assert_eq!(original(&state, 2, 5), Some((1, 5)));
    assert_eq!(original(&state, 0, 0), None);
}

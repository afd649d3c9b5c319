//! Random Services, slices and nodes through compiler, planner and packet library, beside a small model of which endpoints
//! upstream's proxy would choose. The model is written from upstream's rules (KEP-1669, KEP-2086, KEP-2433, KEP-3015) and
//! shares no code with the compiler.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use sluice_dataplane::compile::Desired;
use sluice_dataplane::model::{Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};
use sluice_dataplane::plan::{Capacity, Contents, Tables, Write};
use sluice_dataplane::wanted::{Changes, Wanted};
use sluice_ebpf_common::{Address, Backend, Frontend, FrontendKey, Reason, Scope, SocketState};

// What the packets' tests need at the crate's root.
use sluice_packet::{Begun, SocketVerdict, Trail, Tunnel, Verdict, connect, ingress, send};
use sluice_packet::{
    Bytes, Covered, Desk, ETHERNET, Exit, Fast, Header, Hop, InsertError, Judging, Maps, PATHS, Packet, Path, Paths,
    Policies, Rate, Raw, Route, Routed, Scratch,
};

#[path = "../../../ebpf/packet/src/tests/frame.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod frame;
#[path = "../../../ebpf/packet/src/tests/world.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod world;

use frame::{Frame, SYN};
use world::World;

const CAPACITY: Capacity = Capacity { frontends: 64, backends: 256, slab: 65_536, services: 64, ranges: 64 };
const NODES: [&str; 3] = ["here", "near", "far"];
const ZONES: [&str; 2] = ["a", "b"];
/// Clients of each question: enough to see every endpoint of a list.
const CLIENTS: u16 = 160;

/// An endpoint as the model sees it: its number is its address.
#[derive(Clone, Copy, Debug)]
struct Place {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: usize,
    hint: Option<usize>,
}

#[derive(Clone, Debug)]
struct Shop {
    places: Vec<Place>,
    internal_local: bool,
    external_local: bool,
    protocol: usize,
}

fn place() -> impl Strategy<Value = Place> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 0_usize..3, prop::option::weighted(0.8, 0_usize..2)).prop_map(
        |(ready, serving, terminating, node, hint)| Place {
            // Upstream's API: a terminating endpoint is never ready, a ready one serves.
            ready: ready && !terminating,
            serving: serving || ready && !terminating,
            terminating,
            node,
            hint,
        },
    )
}

fn shop() -> impl Strategy<Value = Shop> {
    (prop::collection::vec(place(), 0..6), any::<bool>(), any::<bool>(), 0_usize..3).prop_map(
        |(places, internal_local, external_local, protocol)| Shop { places, internal_local, external_local, protocol },
    )
}

/// Upstream's choice, as numbers of endpoints. `None` is a refusal; an empty set is silence, as there are endpoints elsewhere.
fn expected(shop: &Shop, local: bool) -> Option<BTreeSet<usize>> {
    let pick = |wanted: &dyn Fn(&Place) -> bool| -> BTreeSet<usize> {
        shop.places.iter().enumerate().filter(|(_, place)| wanted(place)).map(|(number, _)| number).collect()
    };
    let here = |place: &Place| !local || place.node == 0;
    let ready: Vec<&Place> = shop.places.iter().filter(|place| place.ready).collect();
    // All of the ready ones have hints, and one of them is for this zone: else hints do not count. Local never asks.
    let hinted =
        !local && ready.iter().all(|place| place.hint.is_some()) && ready.iter().any(|place| place.hint == Some(0));
    let fits = |place: &Place| !hinted || place.hint == Some(0);
    let first = pick(&|place| place.ready && here(place) && fits(place));
    let second = pick(&|place| place.serving && place.terminating && here(place));
    let chosen = if first.is_empty() { second } else { first };
    let anywhere = shop.places.iter().any(|place| place.ready || place.serving && place.terminating);
    (!chosen.is_empty() || local && anywhere).then_some(chosen)
}

fn snapshot(shops: &[Shop]) -> Snapshot {
    let mut snapshot = Snapshot { node: NODES[0].into(), zone: Some(ZONES[0].into()), ..Snapshot::default() };
    for (number, shop) in shops.iter().enumerate() {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][shop.protocol];
        let name: std::sync::Arc<str> = format!("s{number}").into();
        let service = Service {
            // Services of different protocols share an address and a port.
            cluster: vec![Ipv4Addr::new(10, 96, 0, 1 + number as u8 / 3).into()],
            external: vec![Ipv4Addr::new(192, 0, 2, 1 + number as u8).into()],
            ports: vec![ServicePort { name: "p".into(), protocol, port: 80, node_port: 0 }],
            internal_local: shop.internal_local,
            external_local: shop.external_local,
            ..Service::default()
        };
        snapshot.services.insert(("n".into(), name.clone()), service);
        for (at, place) in shop.places.iter().enumerate() {
            let endpoint = Endpoint {
                address: Some(Ipv4Addr::new(10, 244, number as u8, at as u8).into()),
                ready: place.ready,
                serving: place.serving,
                terminating: place.terminating,
                node: Some(NODES[place.node].into()),
                for_zones: place.hint.iter().map(|zone| ZONES[*zone].into()).collect(),
                ..Endpoint::default()
            };
            let ports = vec![SlicePort { name: "p".into(), protocol, port: 8080 }];
            let slice = Slice { service: name.clone(), ports, endpoints: vec![endpoint] };
            snapshot.slices.insert(("n".into(), format!("{name}-{at}").into()), slice);
        }
    }
    snapshot
}

/// The maps after the planner's writes.
fn load(desired: &Desired) -> World {
    let mut tables = Tables::new(Contents::default(), CAPACITY);
    let changes: Changes = desired.frontends.iter().map(|(key, wanted)| (*key, Some(wanted.clone()))).collect();
    let mut world = World::new();
    world.flow_limit = 1 << 20;
    world.random = (0..251_u32).map(|step| step.wrapping_mul(0x9e37_79b9)).collect();
    world.slab = vec![0; CAPACITY.slab as usize];
    let plan = tables.plan(&changes, Duration::ZERO);
    assert_eq!(plan.problems, Vec::<String>::new());
    for write in plan.writes {
        match write {
            Write::Backend(id, backend) => drop(world.backends.insert(id, backend)),
            Write::List(base, list) => {
                for (word, at) in list.ids.iter().chain(&list.table).zip(base as usize..) {
                    world.slab[at] = *word;
                }
            }
            Write::Frontend(key, frontend) => drop(world.frontends.insert(key, frontend)),
            _ => {}
        }
    }
    world
}

/// Endpoints that packets from many clients reach; `Err` for what is refused.
fn by_packet(world: &World, shop: &Shop, number: usize, to: &str, scope: Scope) -> Result<BTreeSet<usize>, Reason> {
    let mut seen = BTreeSet::new();
    for client in 0..CLIENTS {
        let from = match scope {
            Scope::Internal => format!("10.244.0.200:{}", 1024 + client),
            Scope::External => format!("198.51.100.{}:{}", client % 200, 1024 + client),
        };
        let mut frame = match shop.protocol {
            0 => Frame::tcp(&from, to, SYN, b"?"),
            1 => Frame::udp(&from, to, b"?"),
            _ => Frame::sctp(&from, to, 1, b"?"),
        };
        match ingress(&mut frame, world, scope) {
            Verdict::Pass => {}
            Verdict::Refuse(reason) | Verdict::Drop(reason) => return Err(reason),
            verdict => unreachable!("{verdict:?}: nothing was answered or sent on yet"),
        }
        assert!(frame.valid());
        let bytes = &frame.bytes[30..34];
        assert_eq!(bytes[..3], [10, 244, number as u8], "a packet for s{number} went to another service's endpoint");
        seen.insert(usize::from(bytes[3]));
    }
    Ok(seen)
}

/// Endpoints that sockets reach.
fn by_socket(world: &World, shop: &Shop, to: &str) -> Option<BTreeSet<usize>> {
    let (address, port) = frame::end(to);
    let number = [Protocol::Tcp, Protocol::Udp][shop.protocol].number();
    let mut seen = BTreeSet::new();
    for _ in 0..CLIENTS {
        let verdict = if number == Protocol::Udp.number() {
            send(world, &address, port, number, Some(&SocketState::default()))
        } else {
            connect(world, &address, port, number)
        };
        match verdict {
            SocketVerdict::Translated(to, _) => {
                seen.insert(usize::from(to.backend_address.last().to_ne_bytes()[3]));
            }
            SocketVerdict::Refused(_) => return None,
            SocketVerdict::Kept(_) | SocketVerdict::Untouched => unreachable!("every service has this frontend"),
        }
    }
    Some(seen)
}

fn same(got: Result<BTreeSet<usize>, Reason>, wanted: Option<BTreeSet<usize>>) -> bool {
    match (got, wanted) {
        (Ok(seen), Some(wanted)) => seen == wanted,
        (Err(Reason::NoEndpoint), None) => true,
        (Err(Reason::NotHere), Some(wanted)) => wanted.is_empty(),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_endpoints_are_upstreams(mut shops in prop::collection::vec(shop(), 1..5)) {
        // Those that share an address differ by protocol.
        for (number, shop) in shops.iter_mut().enumerate() {
            shop.protocol = (shop.protocol + number) % 3;
        }
        let third = |number: usize| number / 3;
        for number in 0..shops.len() {
            while (0..number).any(|other| {
                third(other) == third(number) && shops[other].protocol == shops[number].protocol
            }) {
                shops[number].protocol = (shops[number].protocol + 1) % 3;
            }
        }
        let mut wanted = Wanted::default();
        wanted.replace(snapshot(&shops).compile(), &mut Changes::new());
        let world = load(&wanted.all());
        for (number, shop) in shops.iter().enumerate() {
            let (cluster, external) = (format!("10.96.0.{}:80", 1 + number / 3), format!("192.0.2.{}:80", 1 + number));
            let questions = [
                (&cluster, Scope::Internal, shop.internal_local),
                // From inside the cluster external addresses lead everywhere, whatever the external policy says.
                (&external, Scope::Internal, false),
                (&external, Scope::External, shop.external_local),
            ];
            for (to, scope, local) in questions {
                let (got, model) = (by_packet(&world, shop, number, to, scope), expected(shop, local));
                prop_assert!(same(got.clone(), model.clone()), "{to} {scope:?} {shop:?}: {got:?} for {model:?}");
                if scope == Scope::Internal && shop.protocol < 2 {
                    let model = model.filter(|set| !set.is_empty());
                    prop_assert_eq!(by_socket(&world, shop, to), model, "a socket to {} {:?}", to, shop);
                }
            }
        }
        check_tables(&world);
    }
}

/// Every place of every table is in its list.
fn check_tables(world: &World) {
    for (FrontendKey { scope, .. }, frontend) in &world.frontends {
        let Frontend { count, table, .. } = *frontend;
        assert!(table == 0 || *scope == Scope::External as u8 && count > 1, "tables are for external choices alone");
        for at in 0..table {
            let place = world.slab[(frontend.table_base() + at / 2) as usize] >> (at % 2 * 16) & 0xffff;
            let backend: Backend = world.backends[&world.slab[(frontend.base + place) as usize]];
            assert!(place < count && backend.address != Address::default());
        }
    }
}

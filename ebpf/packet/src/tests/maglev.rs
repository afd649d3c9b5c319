//! Services whose backends are chosen by the packet, the same on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::vec::Vec;

use sluice_ebpf_common::{Scope, protocol};

use super::frame::{Frame, SYN};
use super::world::World;
use crate::ingress;

const BACKENDS: [&str; 4] = ["10.244.0.5:80", "10.244.0.6:80", "10.244.0.7:80", "10.244.0.8:80"];

/// A node with this table, and randomness of its own.
fn node(random: u32, places: &[u16]) -> World {
    let mut world = World::new();
    world.random = [random].into();
    world.flow_limit = 100_000;
    world.serve(protocol::TCP, Scope::External, "192.0.2.80:80", &BACKENDS);
    world.plan("192.0.2.80:80", places);
    world
}

fn goes(world: &World, client: &str) -> String {
    let mut frame = Frame::tcp(client, "192.0.2.80:80", SYN, b"");
    ingress(&mut frame, world, Scope::External);
    frame.ends().split_once(" > ").unwrap().1.to_string()
}

fn clients() -> Vec<String> {
    (0..2000).map(|number| std::format!("198.51.{}.{}:{}", number % 7, number % 251, 1024 + number)).collect()
}

#[test]
fn all_nodes_choose_alike_and_in_proportion() {
    let places = [0, 1, 2, 3, 0, 1, 2, 3, 0];
    let (one, other) = (node(0, &places), node(u32::MAX, &places));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for client in clients() {
        let target = goes(&one, &client);
        assert_eq!(goes(&other, &client), target);
        *counts.entry(target).or_default() += 1;
    }
    let shares: Vec<usize> = counts.values().map(|count| (count * 9 + 1000) / 2000).collect();
    assert_eq!(shares, [3, 2, 2, 2], "{counts:?}");
}

#[test]
fn who_ends_gets_nothing_new() {
    let mut world = node(0, &[1, 2, 3, 1, 2, 3, 1]);
    // The first of four only keeps what it has: it stands behind the others.
    world.slab[..4].copy_from_slice(&[2, 3, 4, 1]);
    world.change("192.0.2.80:80", |frontend| (frontend.count, frontend.draining) = (3, 1));
    world.slab[4..].copy_from_slice(&[1 << 16, 2, 1 << 16, 2]);
    let seen: BTreeSet<String> = clients().iter().map(|client| goes(&world, client)).collect();
    assert_eq!(seen, BACKENDS[1..].iter().map(ToString::to_string).collect());
}

#[test]
fn a_client_that_keeps_its_backend_is_hashed_without_its_port() {
    let places = [0, 1, 2, 3, 0, 1, 2];
    let (mut one, mut other) = (node(0, &places), node(1 << 31, &places));
    for world in [&mut one, &mut other] {
        world.change("192.0.2.80:80", |frontend| frontend.affinity = 60);
    }
    for host in 1..50 {
        let first = goes(&one, &std::format!("198.51.100.{host}:1"));
        let later: BTreeSet<String> =
            (2..6).map(|port| goes(&other, &std::format!("198.51.100.{host}:{port}"))).collect();
        assert_eq!(later, [first].into(), "another node, which never saw the client");
    }
}

#[test]
fn a_client_whose_time_is_over_goes_anywhere() {
    let mut world = node(0, &[0, 1, 2, 3, 0, 1, 2]);
    world.change("192.0.2.80:80", |frontend| frontend.affinity = 60);
    let mut go = |port: u32, later: u32| {
        world.now += later;
        goes(&world, &std::format!("198.51.100.7:{port}"))
    };
    let first = go(1, 0);
    assert!((2..20).all(|port| go(port, 60) == first), "kept for as long as it comes back in time");
    let later: BTreeSet<String> = (20..60).map(|port| go(port, 61)).collect();
    assert_eq!(later.len(), BACKENDS.len(), "{later:?}");
}

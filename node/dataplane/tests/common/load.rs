//! Clients of all kinds that ask all the time, and the builds of other schemas that take over meanwhile.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice_dataplane::Sizes;
use sluice_dataplane::migrate::{BUILD, Build, Element, Migration, Recipe, Span};

use super::common::{Namespace, PATIENCE, connect, words};

/// This build, with room for all connections that a story's clients make: nobody looks after the flows meanwhile.
pub const OWN: Build = Build { start: Sizes { flows: 262_144, ..Sizes::START }, ..BUILD };

pub const OLD: Build = Build { schema: 100, ..OWN };

/// A flow record of another revision: the same bytes, with a mark in a word that nobody reads.
const MARK: usize = 76;

fn marked(key: &[u8], value: &[u8]) -> Option<Element> {
    let mut value = value.to_vec();
    value.get_mut(MARK..MARK + 4)?.copy_from_slice(&7_u32.to_ne_bytes());
    Some((key.to_vec(), value))
}

pub const NEW: Build = Build {
    schema: 101,
    revision: |name| (BUILD.revision)(name) + u32::from(name == "flows"),
    migrations: &[Migration {
        map: "flows",
        from: 2,
        to: 3,
        forward: marked,
        back: Recipe {
            key: &[Span { from: 0, to: 0, length: 40 }],
            value: &[
                Span { from: 0, to: 0, length: MARK as u32 },
                Span { from: MARK as u32 + 4, to: MARK as u32 + 4, length: 96 - MARK as u32 - 4 },
            ],
        },
    }],
    ..OWN
};

fn ask(socket: &UdpSocket, service: Option<&str>) -> SocketAddr {
    let mut buffer = [0; 128];
    match service {
        Some(service) => assert_eq!(socket.send_to(b"x", service).unwrap(), 1),
        None => assert_eq!(socket.send(b"x").unwrap(), 1),
    }
    let length = socket.recv(&mut buffer).unwrap();
    words(&buffer[..length]).0
}

fn datagrams(to: &str) -> UdpSocket {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Is given the address of the service over TCP and over UDP, and calls back after every answer.
type Client = fn(&str, &str, &dyn Fn());

/// Kinds of clients; each asks until it is told to stop and fails at the first answer that is missing or wrong.
const CLIENTS: [(&str, Client); 4] = [
    ("long connections", |tcp, _, again| {
        let mut open: Vec<_> = (0..8).map(|_| connect(tcp).unwrap()).collect();
        loop {
            open.iter_mut().for_each(|client| assert!(client.alive(), "{:?}", client.server));
            again();
        }
    }),
    ("short connections", |tcp, _, again| {
        loop {
            assert!(connect(tcp).unwrap().alive());
            again();
        }
    }),
    ("connected datagrams", |_, udp, again| {
        let socket = datagrams(udp);
        socket.connect(udp).unwrap();
        let server = ask(&socket, None);
        loop {
            assert_eq!(ask(&socket, None), server);
            again();
        }
    }),
    ("unconnected datagrams", |_, udp, again| {
        let socket = datagrams(udp);
        let server = ask(&socket, Some(udp));
        loop {
            assert_eq!(ask(&socket, Some(udp)), server);
            again();
        }
    }),
];

/// A client rests for so long between two questions: what takes over meanwhile needs processors, too.
pub fn rest() {
    std::thread::sleep(Duration::from_micros(500));
}

struct Stop;

/// Where clients are, and what they ask for.
pub struct Way<'a> {
    pub name: &'static str,
    /// The test's own namespace without one.
    pub inside: Option<&'a Namespace>,
    pub tcp: &'static str,
    pub udp: &'static str,
}

/// Runs a story under the load of all kinds of clients by each of the ways. None of them may fail, and each of them has to have
/// been answered between any two steps of the story.
pub fn under_load(ways: &[Way], story: impl FnOnce(&dyn Fn(&str))) {
    let done = AtomicBool::new(false);
    let counts: Vec<AtomicU64> = (0..CLIENTS.len() * ways.len()).map(|_| AtomicU64::new(0)).collect();
    let failed = AtomicBool::new(false);
    let client = |number: usize| {
        let (name, client) = CLIENTS[number / ways.len()];
        let Way { name: way, inside, tcp, udp } = &ways[number % ways.len()];
        let again = || {
            counts[number].fetch_add(1, Ordering::Relaxed);
            if done.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new(Stop));
            }
            rest();
        };
        let run = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(tcp, udp, &again)));
        let end = if let Some(inside) = inside { inside.within(run) } else { run() };
        if !end.as_ref().is_err_and(|end| end.is::<Stop>()) {
            eprintln!("{name} {way} failed");
            failed.store(true, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..counts.len()).map(|number| scope.spawn(move || client(number))).collect();
        let step = |what: &str| {
            let before: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let start = Instant::now();
            let moved = |(count, before): (&AtomicU64, &u64)| count.load(Ordering::Relaxed) > before + 2;
            while !counts.iter().zip(&before).all(moved) && !failed.load(Ordering::Relaxed) {
                assert!(start.elapsed() < PATIENCE * 2, "{what}: {counts:?}");
                std::thread::yield_now();
            }
            println!("{what}: {counts:?}");
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            step("started");
            story(&step);
        }));
        done.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| drop(client.join()));
        assert!(result.is_ok() && !failed.load(Ordering::Relaxed));
    });
}

//! Two nodes and a client as network namespaces on one bridge: whom the client's kernel finds behind an address, over ARP
//! and neighbour discovery, while nodes come, go and lose their links.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use sluice_announce::{Announcement, Config, Node, announce};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A network namespace that goes when it is dropped.
#[derive(Clone)]
struct Namespace(Arc<File>);

impl Namespace {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(Arc::new(std::thread::spawn(make).join().unwrap()))
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    fn ip(&self, arguments: &str) -> String {
        let output = self.enter(|| Command::new("ip").args(arguments.split(' ')).output().unwrap());
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A node on the client's bridge.
struct Host {
    name: &'static str,
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    mac: String,
}

impl Host {
    fn new(name: &'static str, number: u8, client: &Namespace) -> Self {
        let namespace = Namespace::new();
        let path = format!("/proc/{}/fd/{}", std::process::id(), client.0.as_raw_fd());
        namespace.ip(&format!("link add eth0 type veth peer name port-{name} netns {path}"));
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip(&format!("addr add 2001:db8::{number}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        client.ip(&format!("link set port-{name} master br0"));
        client.ip(&format!("link set port-{name} up"));
        let mac = namespace.ip("-br link show eth0").split_whitespace().nth(2).unwrap().to_owned();
        let addresses = vec![IpAddr::from([192, 0, 2, number]), format!("2001:db8::{number}").parse().unwrap()];
        Self { name, namespace, addresses, mac }
    }

    fn candidate(&self) -> Node {
        Node { name: self.name.into(), addresses: self.addresses.clone() }
    }

    /// A daemon on this node.
    fn start(&self, wanted: watch::Receiver<Vec<Announcement>>) -> Daemon {
        let (holds, held) = watch::channel(BTreeSet::new());
        let shutdown = CancellationToken::new();
        let config = Config { node: self.name.into(), addresses: self.addresses.clone() };
        let (namespace, stop) = (self.namespace.clone(), shutdown.clone());
        let thread = std::thread::spawn(move || {
            setns(&*namespace.0, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(announce(config, wanted, holds, stop)).unwrap();
        });
        Daemon { shutdown, held, thread: Some(thread) }
    }
}

struct Daemon {
    shutdown: CancellationToken,
    /// Names of the announcements that it holds.
    held: watch::Receiver<BTreeSet<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn end(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

struct World {
    client: Namespace,
    a: Host,
    b: Host,
}

const ADDRESSES: [&str; 2] = ["192.0.2.200", "2001:db8::200"];

impl World {
    fn new() -> Self {
        let client = Namespace::new();
        client.ip("link set lo up");
        client.ip("link add br0 type bridge");
        client.ip("addr add 192.0.2.100/24 dev br0");
        client.ip("addr add 2001:db8::100/64 dev br0 nodad");
        client.ip("link set br0 up");
        let (a, b) = (Host::new("a", 11, &client), Host::new("b", 12, &client));
        Self { client, a, b }
    }

    fn wanted(&self, order: &[&Host]) -> Vec<Announcement> {
        let one = |address: &&str| Announcement {
            name: (*address).into(),
            address: address.parse().unwrap(),
            interfaces: Vec::new(),
            nodes: order.iter().map(|host| host.candidate()).collect(),
        };
        ADDRESSES.iter().map(one).collect()
    }

    /// Where the client's kernel would send a packet for the address; it asks when it does not know.
    fn finds(&self, address: &str) -> String {
        let address: IpAddr = address.parse().unwrap();
        self.client.enter(|| {
            let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            // A failed entry answers with an error, and asks again the next time.
            let _ = UdpSocket::bind(any).and_then(|socket| socket.send_to(b"?", (address, 9)));
        });
        let line = self.client.ip(&format!("neigh show to {address} dev br0"));
        let mut words = line.split_whitespace();
        words.find(|word| *word == "lladdr").and_then(|_| words.next()).unwrap_or_default().to_owned()
    }

    /// Waits until the client finds this node behind both addresses.
    fn until_found(&self, host: &Host, tries: usize) {
        for address in ADDRESSES {
            let mut found = String::new();
            for _ in 0..tries {
                found = self.finds(address);
                if found == host.mac {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(found, host.mac, "{address} is not at {}: {}", host.name, self.client.ip("neigh"));
        }
    }

    fn forget(&self) {
        self.client.ip("neigh flush all");
    }
}

const PATIENCE: usize = 400;

#[test]
fn an_address_is_found_where_it_is_announced() {
    let world = World::new();
    let (sender, wanted) = watch::channel(world.wanted(&[&world.a, &world.b]));
    let (_a, b) = (world.a.start(wanted.clone()), world.b.start(wanted));
    world.until_found(&world.a, PATIENCE);
    // The API moves it: what the client knows is mended without a question, and questions are answered by the new one.
    sender.send(world.wanted(&[&world.b])).unwrap();
    world.until_found(&world.b, PATIENCE);
    world.forget();
    world.until_found(&world.b, PATIENCE);
    assert_eq!(b.held.borrow().len(), ADDRESSES.len());
    // Nobody answers for what is not announced any more.
    sender.send(Vec::new()).unwrap();
    let gone = || {
        world.forget();
        ADDRESSES.iter().all(|address| world.finds(address).is_empty())
    };
    assert!((0..PATIENCE).any(|_| gone()), "{}", world.client.ip("neigh"));
}

#[test]
fn the_next_node_takes_over_when_one_is_cut_off_and_gives_back() {
    let world = World::new();
    let (_sender, wanted) = watch::channel(world.wanted(&[&world.a, &world.b]));
    let (_a, b) = (world.a.start(wanted.clone()), world.b.start(wanted));
    world.until_found(&world.a, PATIENCE);
    assert!(b.held.borrow().is_empty());
    world.client.ip("link set port-a down");
    world.until_found(&world.b, PATIENCE);
    // a was alone and still thinks that it has the address: it objects when it hears b.
    world.client.ip("link set port-a up");
    world.until_found(&world.a, PATIENCE);
    world.forget();
    world.until_found(&world.a, PATIENCE);
}

#[test]
fn a_daemon_that_ends_keeps_its_addresses_for_a_while_and_gets_them_back() {
    let world = World::new();
    let (_sender, wanted) = watch::channel(world.wanted(&[&world.a, &world.b]));
    let mut a = world.a.start(wanted.clone());
    let b = world.b.start(wanted.clone());
    world.until_found(&world.a, PATIENCE);
    // The kernel of a answers b's looks, a few of which are awaited. Then its daemon is missed.
    a.end();
    let heard = world.a.namespace.enter(|| {
        let before = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let received = |text: &str| -> u64 {
            let line = text.lines().find(|line| line.trim_start().starts_with("eth0:")).unwrap();
            line.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        (0..PATIENCE).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            received(&std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()) >= received(&before) + 12
        })
    });
    assert!(heard);
    assert!(b.held.borrow().is_empty(), "b took over at once from a node that lives");
    world.until_found(&world.b, PATIENCE);
    let a = world.a.start(wanted);
    world.forget();
    world.until_found(&world.a, PATIENCE);
    assert_eq!(a.held.borrow().len(), ADDRESSES.len());
}

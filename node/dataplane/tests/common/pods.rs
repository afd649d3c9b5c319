//! Pods as the pod network makes them, and what they say to each other. What a node's stack forwarded is what it counts itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use sluice_dataplane::{Dataplane, Neighbour, PodInfo, ServicePath};

use super::{Client, Namespace, PATIENCE, Place, connect, run, words};

/// A pod with an address of each family, linked to the namespace that this thread is in.
pub fn pod(place: &Place, link: &str, [v4, v6]: &[&str; 2]) -> Namespace {
    let (gateway, gateway6) = ("169.254.1.1", "fe80::1");
    let pod = place.neighbour(link, link, None, &format!("{v4}/32"), None);
    run("ip", &["address", "add", &format!("{gateway}/32"), "dev", link]);
    run("ip", &["address", "add", &format!("{gateway6}/64"), "dev", link, "nodad"]);
    let inside = |arguments: &[&str]| run("ip", &[&["-n", name(&pod)], arguments].concat());
    inside(&["address", "add", &format!("{v6}/128"), "dev", "eth0", "nodad"]);
    inside(&["route", "add", gateway, "dev", "eth0", "scope", "link"]);
    inside(&["route", "add", "default", "via", gateway, "dev", "eth0"]);
    inside(&["-6", "route", "add", "default", "via", gateway6, "dev", "eth0"]);
    for address in [v4, v6] {
        run("ip", &["route", "replace", address, "dev", link]);
    }
    pod
}

pub fn name(pod: &Namespace) -> &str {
    pod.path.file_name().unwrap().to_str().unwrap()
}

pub fn shown(program: &str, arguments: &[&str]) -> String {
    String::from_utf8(Command::new(program).args(arguments).output().unwrap().stdout).unwrap()
}

pub fn neighbour(pod: &Namespace, addresses: &[&str]) -> Neighbour {
    let text = shown("ip", &["-n", name(pod), "-o", "link", "show", "eth0"]);
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    Neighbour { addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(), mac: mac.try_into().unwrap() }
}

pub fn index(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).unwrap()
}

pub fn attach(dataplane: &Dataplane, link: &str, neighbour: Option<Neighbour>) {
    let pod = PodInfo { namespace: "shop".into(), name: link.into(), services: ServicePath::Packets, neighbour };
    dataplane.attach_pod(index(link), &pod).unwrap();
}

/// Packets of both families that the stack forwarded.
pub fn forwarded() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(|line| line.split(' '));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let v4 = names.zip(values).find(|(name, _)| *name == "ForwDatagrams").unwrap().1.parse::<u64>().unwrap();
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let v6 = text.lines().find(|line| line.starts_with("Ip6OutForwDatagrams")).unwrap();
    v4 + v6.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Did the stack forward anything meanwhile?
pub fn through_the_stack(act: impl FnOnce()) -> bool {
    let before = forwarded();
    act();
    forwarded() > before
}

pub fn reach(from: &Namespace, address: &str) -> Client {
    let mut client = from.within(|| connect(address).unwrap());
    assert_eq!(client.seen_as, client.stream.local_addr().unwrap());
    assert!(client.alive());
    client
}

/// Sends so much that the kernel gives packets of many segments to the link, and has it counted at the other end.
pub fn transfer([from, to]: [&Namespace; 2], address: &str, megabytes: usize) {
    let listener = to.within(|| TcpListener::bind(address).unwrap());
    let counter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&(all.len() as u64).to_ne_bytes()).unwrap();
        all
    });
    let sent: Vec<u8> = (0..megabytes << 20).map(|at| (at % 251) as u8).collect();
    from.within(|| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut count = [0; 8];
        stream.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), sent.len() as u64);
    });
    assert!(counter.join().unwrap() == sent);
}

pub fn datagram(pod: &Namespace, own: &str, to: &str) -> (String, String) {
    pod.within(|| {
        let socket = UdpSocket::bind(own).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"x").unwrap();
        let mut buffer = [0; 128];
        let length = socket.recv(&mut buffer).unwrap();
        let (server, client) = words(&buffer[..length]);
        assert_eq!(client, socket.local_addr().unwrap());
        (server.to_string(), socket.peer_addr().unwrap().to_string())
    })
}

/// Bytes that a link's queue has passed on.
pub fn queued(link: &str) -> u64 {
    let text = shown("tc", &["-s", "qdisc", "show", "dev", link, "root"]);
    text.split("Sent ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

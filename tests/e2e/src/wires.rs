//! The network between a lab's nodes: namespaces joined by a bridge (one shared link) or by a
//! router (every node on a link of its own). No namespace has a route to the machine's uplink.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::sh::run;

/// How the nodes are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// All on one link: pods' packets go by direct routes.
    #[default]
    Shared,
    /// Each behind a router: pods' packets need the tunnel.
    Routed,
}

/// Which addresses nodes, pods and Services have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    #[default]
    V4,
    V6,
    /// Both, IPv4 first.
    Both,
}

impl Families {
    /// The words that give a cluster ranges of these families.
    pub(crate) fn flags(self) -> Vec<String> {
        let ranges = [
            ("--pod-cidr", "10.244.0.0/16", "fd00:10:244::/48"),
            ("--service-cidr", "10.96.0.0/16", "fd00:10:96::/112"),
        ];
        let words = ranges.map(|(flag, four, six)| [flag.to_owned(), self.of(four, six).join(",")]);
        if self == Self::V4 { Vec::new() } else { words.into_iter().flatten().collect() }
    }

    /// What there is of the two.
    fn of<T>(self, four: T, six: T) -> Vec<T> {
        match self {
            Self::V4 => vec![four],
            Self::V6 => vec![six],
            Self::Both => vec![four, six],
        }
    }
}

/// How many packets may be on a wire that makes them late. The kernel's own limit of 1,000 would lose what nobody asked it to.
const UNDER_WAY: u32 = 100_000;

/// What the wires do to every packet, by the kernel's netem.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// How much later it arrives; a round trip takes twice as much longer.
    pub latency: Duration,
    /// How many of a hundred are lost.
    pub loss: f64,
}

impl Weather {
    /// Whether this kernel can make it.
    pub fn possible(self) -> Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        // Debian has it as a module; where it is built in there is nothing to load.
        let _ = run("modprobe sch_netem");
        let place = Wires::alone("sweather")?;
        let tried = run(&format!("tc -n {} {}", place.middle(), self.rule("lo")));
        tried
            .map(drop)
            .context("this kernel makes no latency and no loss (it has no netem): leave out --latency and --loss")
    }

    fn rule(self, link: &str) -> String {
        let Self { latency, loss } = self;
        format!("qdisc add dev {link} root netem limit {UNDER_WAY} delay {}us loss {loss}%", latency.as_micros())
    }
}

/// The namespaces of one lab and the wires between them; removed on drop.
pub(crate) struct Wires {
    name: String,
    namespaces: Vec<String>,
    shape: Shape,
    families: Families,
    /// Bridges of nodes that are cut off from the others.
    sides: usize,
    /// Rules of the router that do the same.
    rules: Vec<String>,
}

impl Wires {
    /// Makes `nodes` namespaces `<name>-1` ... and the one that joins them, `<name>-net`.
    pub(crate) fn make(name: &str, nodes: usize, shape: Shape, families: Families, weather: Weather) -> Result<Self> {
        let mut wires = Self::alone(name)?;
        (wires.shape, wires.families) = (shape, families);
        let middle = wires.middle();
        if shape == Shape::Shared {
            run(&format!("ip -n {middle} link add br0 type bridge"))?;
            run(&format!("ip -n {middle} link set br0 up"))?;
        } else {
            let forward = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
            run(&format!("nsenter --net=/run/netns/{middle} sysctl -qw {forward}"))?;
        }
        for number in 1..=nodes {
            wires.join(&middle, number)?;
            if weather != Weather::default() {
                run(&format!("tc -n {middle} {}", weather.rule(&format!("port{number}"))))?;
            }
        }
        Ok(wires)
    }

    /// The namespace in the middle, without any nodes.
    fn alone(name: &str) -> Result<Self> {
        let (shape, families) = (Shape::default(), Families::default());
        let mut wires =
            Self { name: name.into(), namespaces: Vec::new(), shape, families, sides: 0, rules: Vec::new() };
        wires.namespace("net")?;
        Ok(wires)
    }

    /// The namespace of node `number`, from 1.
    pub(crate) fn of(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The namespace that joins them.
    pub(crate) fn middle(&self) -> String {
        format!("{}-net", self.name)
    }

    /// Cuts these nodes off from the others; they go on to reach each other. Links stay up, as those of machines on two
    /// sides of a broken switch do.
    pub(crate) fn part(&mut self, numbers: &[usize]) -> Result<()> {
        let middle = self.middle();
        if self.shape == Shape::Shared {
            self.sides += 1;
            let side = format!("br{}", self.sides);
            run(&format!("ip -n {middle} link add {side} type bridge"))?;
            run(&format!("ip -n {middle} link set {side} up"))?;
            return numbers
                .iter()
                .try_for_each(|number| run(&format!("ip -n {middle} link set port{number} master {side}")).map(drop));
        }
        let others: Vec<usize> = (1..self.namespaces.len()).filter(|number| !numbers.contains(number)).collect();
        for (here, there) in numbers.iter().flat_map(|here| others.iter().map(move |there| (*here, *there))) {
            for (from, to) in [(here, there), (there, here)] {
                for address in Self::addresses(to, self.shape, self.families) {
                    self.rule(format!("iif port{from} to {address} blackhole"), address.contains(':'))?;
                }
            }
        }
        Ok(())
    }

    fn rule(&mut self, rule: String, six: bool) -> Result<()> {
        let ip = format!("ip -n {} {}", self.middle(), if six { "-6" } else { "-4" });
        run(&format!("{ip} rule add {rule}"))?;
        self.rules.push(format!("{ip} rule del {rule}"));
        Ok(())
    }

    /// Joins again what was cut off.
    pub(crate) fn unite(&mut self) -> Result<()> {
        self.rules.drain(..).try_for_each(|rule| run(&rule).map(drop))?;
        if self.sides == 0 {
            return Ok(());
        }
        let middle = self.middle();
        for number in 1..self.namespaces.len() {
            run(&format!("ip -n {middle} link set port{number} master br0"))?;
        }
        while self.sides > 0 {
            run(&format!("ip -n {middle} link del br{}", self.sides))?;
            self.sides -= 1;
        }
        Ok(())
    }

    /// The addresses of node `number`, the primary one first.
    pub(crate) fn addresses(number: usize, shape: Shape, families: Families) -> Vec<String> {
        match shape {
            Shape::Shared => families.of(format!("172.30.0.{}", 10 + number), format!("fd30::{}", 10 + number)),
            Shape::Routed => families.of(format!("172.30.{number}.10"), format!("fd30:0:0:{number}::10")),
        }
    }

    fn join(&mut self, middle: &str, number: usize) -> Result<()> {
        let (shape, families) = (self.shape, self.families);
        let node = self.namespace(&number.to_string())?;
        run(&format!("ip -n {node} link add eth0 type veth peer name port{number} netns {middle}"))?;
        for address in Self::addresses(number, shape, families) {
            run(&format!("ip -n {node} addr add {} dev eth0 nodad", network(&address)))?;
        }
        run(&format!("ip -n {node} link set eth0 up"))?;
        run(&format!("ip -n {middle} link set port{number} up"))?;
        let gateways = match shape {
            Shape::Shared => families.of("172.30.0.1".to_owned(), "fd30::1".to_owned()),
            Shape::Routed => families.of(format!("172.30.{number}.1"), format!("fd30:0:0:{number}::1")),
        };
        if shape == Shape::Shared {
            run(&format!("ip -n {middle} link set port{number} master br0"))?;
        }
        for gateway in gateways {
            if shape == Shape::Routed {
                run(&format!("ip -n {middle} addr add {} dev port{number} nodad", network(&gateway)))?;
            }
            run(&format!("ip -n {node} route add default via {gateway} onlink dev eth0"))?;
        }
        Ok(())
    }

    fn namespace(&mut self, suffix: &str) -> Result<String> {
        let name = format!("{}-{suffix}", self.name);
        run(&format!("ip netns add {name}"))?;
        self.namespaces.push(name.clone());
        run(&format!("ip -n {name} link set lo up"))?;
        Ok(name)
    }
}

/// An address with its network's prefix.
fn network(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 64 } else { 24 })
}

impl Drop for Wires {
    fn drop(&mut self) {
        for name in &self.namespaces {
            // What is already gone needs no removing.
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs::File, io, net::UdpSocket, sync::Mutex, thread, time::Instant};

    use nix::sched::{CloneFlags, setns};

    use super::*;

    const LATE: Weather = Weather { latency: Duration::from_millis(40), loss: 0.0 };
    const LOSSY: Weather = Weather { latency: Duration::ZERO, loss: 30.0 };
    /// Of every batch the last word is said until it is heard. A batch fits into a socket's buffer.
    const BATCHES: u32 = 10;
    const BATCH: u32 = 100;
    /// Namespaces have one name each.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Sockets of two nodes, each connected to the other.
    fn ends(name: &str, weather: Weather) -> (Wires, UdpSocket, UdpSocket) {
        let wires = Wires::make(name, 2, Shape::Shared, Families::V4, weather).unwrap();
        let end = |number, other| {
            let socket = within(&wires.of(number), move || {
                let own = Wires::addresses(number, Shape::Shared, Families::V4).remove(0);
                let socket = UdpSocket::bind((own, 9000)).unwrap();
                socket.connect((Wires::addresses(other, Shape::Shared, Families::V4).remove(0), 9000)).unwrap();
                socket
            });
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket
        };
        let (here, there) = (end(1, 2), end(2, 1));
        // Neighbours find each other's addresses, late or not at once.
        until(&here, &there, 0);
        until(&there, &here, 0);
        (wires, here, there)
    }

    fn within<T: Send + 'static>(namespace: &str, make: impl FnOnce() -> T + Send + 'static) -> T {
        let entered = File::open(format!("/run/netns/{namespace}")).unwrap();
        let thread = thread::spawn(move || {
            setns(entered, CloneFlags::CLONE_NEWNET).unwrap();
            make()
        });
        thread.join().unwrap()
    }

    /// Says a word until it is heard; how many others were heard before it.
    fn until(from: &UdpSocket, to: &UdpSocket, word: u32) -> u32 {
        let (mut heard, mut buffer) = (0, [0; 4]);
        for _ in 0..300 {
            from.send(&word.to_ne_bytes()).unwrap();
            match to.recv(&mut buffer) {
                Ok(_) if buffer == word.to_ne_bytes() => return heard,
                // What is said again may still come.
                Ok(_) => heard += u32::from(u32::from_ne_bytes(buffer) > word),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        panic!("{word} was not heard");
    }

    fn arrive() -> u32 {
        let (_wires, here, there) = ends("sweathb", LOSSY);
        let mut arrived = 0;
        for batch in 1..=BATCHES {
            for _ in 0..BATCH {
                here.send(&u32::MAX.to_ne_bytes()).unwrap();
            }
            arrived += until(&here, &there, batch);
        }
        arrived
    }

    fn measured() {
        let (_wires, here, there) = ends("sweatha", LATE);
        let begun = Instant::now();
        until(&here, &there, 1);
        until(&there, &here, 1);
        assert!(begun.elapsed() >= LATE.latency * 2, "{:?}", begun.elapsed());
        let arrived = arrive();
        println!("{arrived} of {} datagrams arrived", BATCHES * BATCH);
        // Seven standard deviations around 700.
        assert!((600..=800).contains(&arrived), "{arrived} arrived");
    }

    #[test]
    fn weather_is_made_or_refused_with_what_to_do() {
        let _alone = ONE_AT_A_TIME.lock();
        assert!(Weather::default().possible().is_ok());
        match LATE.possible() {
            Ok(()) => measured(),
            Err(refused) => assert!(format!("{refused:#}").contains("leave out --latency and --loss"), "{refused:#}"),
        }
    }

    #[test]
    #[ignore = "needs netem: `cargo xtask kernel` runs it on a kernel that has it"]
    fn weather_is_what_was_asked_for() {
        let _alone = ONE_AT_A_TIME.lock();
        LATE.possible().unwrap();
        measured();
    }
}

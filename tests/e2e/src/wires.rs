//! The network between a lab's nodes: namespaces joined by a bridge (one shared link) or by a
//! router (every node on a link of its own). No namespace has a route to the machine's uplink.

use anyhow::Result;

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

/// The namespaces of one lab and the wires between them; removed on drop.
pub(crate) struct Wires {
    name: String,
    namespaces: Vec<String>,
}

impl Wires {
    /// Makes `nodes` namespaces `<name>-1` ... and the one that joins them, `<name>-net`.
    pub(crate) fn make(name: &str, nodes: usize, shape: Shape, families: Families) -> Result<Self> {
        let mut wires = Self { name: name.into(), namespaces: Vec::new() };
        let middle = wires.namespace("net")?;
        if shape == Shape::Shared {
            run(&format!("ip -n {middle} link add br0 type bridge"))?;
            run(&format!("ip -n {middle} link set br0 up"))?;
        } else {
            let forward = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
            run(&format!("nsenter --net=/run/netns/{middle} sysctl -qw {forward}"))?;
        }
        for number in 1..=nodes {
            wires.join(&middle, number, shape, families)?;
        }
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

    /// Cuts node `number` off from all others, or joins it to them again.
    pub(crate) fn set(&self, number: usize, joined: bool) -> Result<()> {
        let state = if joined { "up" } else { "down" };
        run(&format!("ip -n {} link set port{number} {state}", self.middle())).map(drop)
    }

    /// The addresses of node `number`, the primary one first.
    pub(crate) fn addresses(number: usize, shape: Shape, families: Families) -> Vec<String> {
        match shape {
            Shape::Shared => families.of(format!("172.30.0.{}", 10 + number), format!("fd30::{}", 10 + number)),
            Shape::Routed => families.of(format!("172.30.{number}.10"), format!("fd30:0:0:{number}::10")),
        }
    }

    fn join(&mut self, middle: &str, number: usize, shape: Shape, families: Families) -> Result<()> {
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

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

/// The namespaces of one lab and the wires between them; removed on drop.
pub(crate) struct Wires {
    name: String,
    namespaces: Vec<String>,
}

impl Wires {
    /// Makes `nodes` namespaces `<name>-1` ... and the one that joins them, `<name>-net`.
    pub(crate) fn make(name: &str, nodes: usize, shape: Shape) -> Result<Self> {
        let mut wires = Self { name: name.into(), namespaces: Vec::new() };
        let middle = wires.namespace("net")?;
        if shape == Shape::Shared {
            run(&format!("ip -n {middle} link add br0 type bridge"))?;
            run(&format!("ip -n {middle} link set br0 up"))?;
        } else {
            run(&format!("nsenter --net=/run/netns/{middle} sysctl -qw net.ipv4.ip_forward=1"))?;
        }
        for number in 1..=nodes {
            wires.join(&middle, number, shape)?;
        }
        Ok(wires)
    }

    /// The namespace of node `number`, from 1.
    pub(crate) fn of(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The address of node `number`.
    pub(crate) fn address(number: usize, shape: Shape) -> String {
        match shape {
            Shape::Shared => format!("172.30.0.{}", 10 + number),
            Shape::Routed => format!("172.30.{number}.10"),
        }
    }

    fn join(&mut self, middle: &str, number: usize, shape: Shape) -> Result<()> {
        let node = self.namespace(&number.to_string())?;
        run(&format!("ip -n {node} link add eth0 type veth peer name port{number} netns {middle}"))?;
        run(&format!("ip -n {node} addr add {}/24 dev eth0", Self::address(number, shape)))?;
        run(&format!("ip -n {node} link set eth0 up"))?;
        run(&format!("ip -n {middle} link set port{number} up"))?;
        let gateway = match shape {
            Shape::Shared => {
                run(&format!("ip -n {middle} link set port{number} master br0"))?;
                "172.30.0.1".to_owned()
            }
            Shape::Routed => {
                let gateway = format!("172.30.{number}.1");
                run(&format!("ip -n {middle} addr add {gateway}/24 dev port{number}"))?;
                gateway
            }
        };
        run(&format!("ip -n {node} route add default via {gateway} onlink dev eth0")).map(drop)
    }

    fn namespace(&mut self, suffix: &str) -> Result<String> {
        let name = format!("{}-{suffix}", self.name);
        run(&format!("ip netns add {name}"))?;
        self.namespaces.push(name.clone());
        run(&format!("ip -n {name} link set lo up"))?;
        Ok(name)
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for name in &self.namespaces {
            // What is already gone needs no removing.
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

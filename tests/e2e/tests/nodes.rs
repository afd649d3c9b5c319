//! Several nodes: pods on different nodes reach each other and every Service, by direct routes and
//! by VXLAN; a node that disappears.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, Shape, output, sample_image, target};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

fn start(name: &str, shape: Shape) -> Result<Lab> {
    let lab = Lab::start(&Options { nodes: 3, shape, ..Options::one(name) })?;
    lab.import(&sample_image())?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    Ok(lab)
}

/// Every pod reaches every pod by address and all of them through the Service, by name.
fn everybody_reaches_everybody(lab: &Lab) -> Result<()> {
    let pods = lab.kubectl(
        "get pods -l app=echo -o jsonpath={range.items[*]}{.metadata.name}={.status.podIP}={.spec.nodeName}{\"\\n\"}{end}",
    )?;
    let pods: Vec<Vec<&str>> = pods.lines().map(|line| line.split('=').collect()).collect();
    let mut nodes: Vec<&str> = pods.iter().map(|pod| pod[2]).collect();
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(nodes.len() == 3, "the pods are not spread over the nodes: {pods:?}");
    for from in &pods {
        for to in &pods {
            lab.kubectl(&format!("exec {} -- /echo get http://{}:8080/", from[0], to[1]))?;
        }
        lab.kubectl(&format!("exec {} -- /echo get http://echo/ --distinct 3", from[0]))?;
    }
    let echo = target().join(format!("{}-unknown-linux-gnu/release/echo", std::env::consts::ARCH));
    for node in lab.nodes() {
        output(node.command(&echo).args(["get", "http://127.0.0.1:30080/", "--distinct", "3"]))?;
        // From another machine, by packet: node 1 asks every node's address.
        let url = format!("http://{}:30080/", node.address);
        output(lab.nodes()[0].command(&echo).args(["get", &url, "--distinct", "3"]))?;
    }
    Ok(())
}

#[test]
fn nodes_on_one_link_route_directly() -> Result<()> {
    let mut lab = start("se2", Shape::Shared)?;
    everybody_reaches_everybody(&lab)?;
    // A node that disappears is noticed, and its pods no longer get connections.
    lab.node(3).end(Signal::SIGKILL)?;
    lab.kubectl("wait --for=condition=Ready=unknown node/node3 --timeout=120s")?;
    lab.kubectl("wait --for=jsonpath={.status.availableReplicas}=2 deployment/echo --timeout=60s")?;
    lab.kubectl("exec deployment/echo -- /echo get http://echo/ --times 30 --distinct 2")?;
    lab.node(3).restart()?;
    lab.kubectl("wait --for=condition=Ready node/node3 --timeout=60s")?;
    lab.kubectl("rollout status deployment/echo --timeout=120s").map(drop)
}

#[test]
fn nodes_behind_routers_use_the_tunnel() -> Result<()> {
    let lab = start("se3", Shape::Routed)?;
    everybody_reaches_everybody(&lab)
}

//! Several nodes as network namespaces on this machine, until Ctrl-C; with `--check` the lab tests
//! every path between pods and Services, prints what holds, and ends.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use sluice_e2e::{Lab, Options as LabOptions, Shape, output};

use crate::{ebpf, image, setup, sh};

#[derive(Args)]
pub(crate) struct Options {
    /// How many nodes; the first runs the control plane as well
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Each node behind a router, so that pods' packets need the VXLAN tunnel
    #[arg(long)]
    routed: bool,
    /// Test every path, print the results and end
    #[arg(long)]
    check: bool,
}

const MAX_NODES: usize = 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask lab")?;
    if !(1..=MAX_NODES).contains(&options.nodes) {
        bail!("--nodes must be from 1 to {MAX_NODES}");
    }
    setup::ensure(setup::Purpose::Everything)?;
    sh::step("building (release)");
    ebpf::build()?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "sluice"]))?;
    let tar = image::build()?;
    // Threads started from here on leave the signals to the wait below.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    sh::step(&format!("starting {} nodes", options.nodes));
    let lab = Lab::start(&LabOptions {
        name: "slab".into(),
        nodes: options.nodes,
        shape: if options.routed { Shape::Routed } else { Shape::Shared },
        binary: crate::up::binary(),
        server_flags: Vec::new(),
    })?;
    lab.import(&tar)?;
    print!("{}", lab.kubectl("get nodes -o wide")?);
    if options.check {
        return check(&lab);
    }
    println!("\nIn another terminal:");
    println!("  export KUBECONFIG={}", lab.nodes()[0].data_dir().join("admin.kubeconfig").display());
    println!("  nsenter --net=/run/netns/slab-1 kubectl get nodes");
    println!("Ctrl-C ends the lab and removes it.");
    signals.wait()?;
    sh::step("removing the lab");
    Ok(())
}

fn check(lab: &Lab) -> Result<()> {
    let manifest = sh::root().join("xtask/samples/echo.yaml");
    lab.kubectl(&format!("apply -f {}", manifest.display()))?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    print!("{}", lab.kubectl("get pods -o wide")?);
    let pods = lab.kubectl("get pods -o jsonpath={range.items[*]}{.metadata.name}={.status.podIP}{\"\\n\"}{end}")?;
    let pods: Vec<(&str, &str)> = pods.lines().filter_map(|line| line.split_once('=')).collect();
    for (from, _) in &pods {
        for (to, address) in &pods {
            lab.kubectl(&format!("exec {from} -- /echo get http://{address}:8080/"))?;
            println!("holds: pod {from} -> pod {to}");
        }
        lab.kubectl(&format!("exec {from} -- /echo get http://echo/ --distinct {}", pods.len()))?;
        println!("holds: pod {from} -> Service echo, every backend");
    }
    for node in lab.nodes() {
        let ask = |command: &mut Command, url: &str| output(command.args(["get", url, "--distinct", "3"]));
        ask(&mut node.command(image::program()?), "http://127.0.0.1:30080/")?;
        println!("holds: {} -> its node port, every backend", node.name);
    }
    Ok(())
}

//! Several nodes as network namespaces on this machine, until Ctrl-C; with `--check` the lab tests
//! every path between pods and Services, prints what holds, and ends. While it runs, `lab kill`, `lab partition` and
//! `lab heal` in another terminal break it and mend it: the lab itself does that, asked by a socket.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use sluice_e2e::{Lab, Options as LabOptions, Shape, output};

use crate::{ebpf, image, setup, sh};

/// Where the running lab is asked.
const SOCKET: &str = "/run/slab.sock";

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// What to do to the lab that runs
    #[command(subcommand)]
    fault: Option<Fault>,
    /// How many nodes; the first runs the control plane as well
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of the nodes run the control plane; more than one need an etcd
    #[arg(long, default_value_t = 1)]
    servers: usize,
    /// How many of the nodes have a member of an etcd, the control plane's store
    #[arg(long, default_value_t = 0)]
    etcd: usize,
    /// Each node behind a router, so that pods' packets need the VXLAN tunnel
    #[arg(long)]
    routed: bool,
    /// Test every path, print the results and end
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
pub(crate) enum Fault {
    /// Cut the power of a node: everything on it ends at once
    Kill { node: String },
    /// Cut a node off from all others
    Partition { node: String },
    /// Join again what was cut off, and start again what was killed
    Heal,
}

const MAX_NODES: usize = 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask lab")?;
    if let Some(fault) = &options.fault {
        return ask(fault);
    }
    if !(1..=MAX_NODES).contains(&options.nodes) {
        bail!("--nodes must be from 1 to {MAX_NODES}");
    }
    if !(1..=options.nodes).contains(&options.servers) || options.etcd > options.nodes {
        bail!("--servers must be from 1 to the number of nodes, --etcd at most that");
    }
    if options.servers > 1 && options.etcd == 0 {
        bail!("several servers share an etcd: say how many members with --etcd (1 or 3)");
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
    let mut lab = Lab::start(&LabOptions {
        name: "slab".into(),
        nodes: options.nodes,
        shape: if options.routed { Shape::Routed } else { Shape::Shared },
        binary: crate::up::binary(),
        server_flags: Vec::new(),
        servers: options.servers,
        etcd: options.etcd,
    })?;
    lab.import(&tar)?;
    print!("{}", lab.kubectl("get nodes -o wide")?);
    if options.check {
        return check(&lab);
    }
    println!("\nIn another terminal:");
    println!("  export KUBECONFIG={}", lab.nodes()[0].data_dir().join("admin.kubeconfig").display());
    println!("  nsenter --net=/run/netns/slab-1 kubectl get nodes");
    println!("  cargo xtask lab kill node2, partition node3, heal");
    println!("Ctrl-C ends the lab and removes it.");
    serve(&mut lab, signals)?;
    sh::step("removing the lab");
    Ok(())
}

/// Does what it is asked by the socket, until a signal comes.
fn serve(lab: &mut Lab, signals: SigSet) -> Result<()> {
    // Left by a lab that was killed.
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).with_context(|| format!("cannot listen on {SOCKET}"))?;
    let (asked, asks) = mpsc::channel::<Option<UnixStream>>();
    let ending = asked.clone();
    thread::spawn(move || signals.wait().map(|_| ending.send(None)));
    thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| asked.send(Some(stream))));
    while let Ok(Some(mut stream)) = asks.recv() {
        let done = answer(lab, &stream);
        let text = done.unwrap_or_else(|error| format!("error: {error:#}\n"));
        // Whoever has gone away does not want to know.
        let _ = stream.write_all(text.as_bytes());
    }
    // The lab's own end removes everything else.
    let _ = std::fs::remove_file(SOCKET);
    Ok(())
}

fn answer(lab: &mut Lab, stream: &UnixStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["kill", node] => lab.number(node).and_then(|number| lab.kill(number))?,
        ["partition", node] => lab.number(node).and_then(|number| lab.partition(number))?,
        ["heal"] => lab.heal()?,
        _ => bail!("{line:?} is nothing that a lab does"),
    }
    Ok(format!("done: {line}"))
}

/// Asks the lab that runs, and waits until it is done.
fn ask(fault: &Fault) -> Result<()> {
    let line = match fault {
        Fault::Kill { node } => format!("kill {node}\n"),
        Fault::Partition { node } => format!("partition {node}\n"),
        Fault::Heal => "heal\n".to_owned(),
    };
    let mut stream = UnixStream::connect(SOCKET).context("no lab runs: cargo xtask lab")?;
    stream.write_all(line.as_bytes())?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    match told.strip_prefix("error: ") {
        Some(error) => bail!("{}", error.trim()),
        None => print!("{told}"),
    }
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

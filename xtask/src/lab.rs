//! Several nodes as network namespaces on this machine, until Ctrl-C; with `--check` the lab tests
//! every path between pods and Services, prints what holds, and ends. While it runs, `lab kill`, `lab partition` and
//! `lab heal` in another terminal break it and mend it: the lab itself does that, asked by a socket.

use std::{
    fs::{File, TryLockError},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use sluice_e2e::{Lab, Options as LabOptions, Shape, Stop, Weather, leftovers, output};

use crate::{ebpf, image, setup, sh};

/// Prefix of its namespaces, cgroups and pinned maps.
const NAME: &str = "slab";
/// Where the running lab is asked, and what it holds while it runs.
const SOCKET: &str = "/run/slab.sock";
const LOCK: &str = "/run/slab.lock";

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// What to do with the lab that runs
    #[command(subcommand)]
    ask: Option<Ask>,
    /// How many nodes: node1, node2 and so on; the first runs the control plane as well
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// How many of the nodes run the control plane; more than one need an etcd
    #[arg(long, value_name = "M", default_value_t = 1)]
    servers: usize,
    /// How many of the nodes have a member of an etcd, the control plane's store; 0: the server's own store
    #[arg(long, value_name = "K", default_value_t = 0)]
    etcd: usize,
    /// Each node behind a router, so that pods' packets need the VXLAN tunnel
    #[arg(long)]
    routed: bool,
    /// How many milliseconds later each packet between nodes arrives (where the kernel has netem)
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    latency: u64,
    /// How many of a hundred packets between nodes are lost (where the kernel has netem)
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// Test every path, print the results and end
    #[arg(long)]
    check: bool,
    /// The `sluice` to run, instead of building one
    #[arg(long, value_name = "PROGRAM")]
    binary: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Ask {
    /// Cut the power of a node: everything on it ends at once, a member of the etcd too
    Kill { node: String },
    /// Cut nodes off from all others; among themselves they go on to reach each other
    Partition {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Join again what was cut off, and start again what was killed
    Heal,
    /// Run a command on a node: `lab exec node1 kubectl get nodes`
    Exec {
        node: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

const MAX_NODES: usize = 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask lab")?;
    match &options.ask {
        Some(Ask::Kill { node }) => tell(&format!("kill {node}")),
        Some(Ask::Partition { nodes }) => tell(&format!("partition {}", nodes.join(" "))),
        Some(Ask::Heal) => tell("heal"),
        Some(Ask::Exec { node, command }) => exec(node, command),
        None => start(options),
    }
}

fn start(options: &Options) -> Result<()> {
    let weather = Weather { latency: Duration::from_millis(options.latency), loss: options.loss };
    sensible(options)?;
    weather.possible()?;
    setup::ensure(setup::Purpose::Everything)?;
    let binary = match &options.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => built()?,
    };
    ensure!(binary.is_file(), "there is no program {}", binary.display());
    let tar = image::build()?;
    let _lock = alone(&binary)?;
    // Threads started from here on leave the signals to the one that waits for them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let (asked, asks) = mpsc::channel();
    let (stop, ending) = (Stop::default(), asked.clone());
    thread::spawn({
        let stop = stop.clone();
        move || {
            while signals.wait().is_ok() {
                eprintln!("==> removing the lab");
                stop.set();
                // A lab that ends already asks for nothing more.
                let _ = ending.send(None);
            }
        }
    });
    sh::step(&format!("starting {} nodes", options.nodes));
    let mut lab = Lab::start(&LabOptions {
        name: NAME.into(),
        nodes: options.nodes,
        shape: if options.routed { Shape::Routed } else { Shape::Shared },
        weather,
        binary,
        server_flags: Vec::new(),
        servers: options.servers,
        etcd: options.etcd,
        stop,
    })
    .context("the lab could not be started, and what was made of it has been removed")?;
    lab.import(&tar)?;
    print!("{}", lab.kubectl("get nodes -o wide")?);
    if options.check {
        return check(&lab);
    }
    println!(
        "\nThe sample image sluice.local/echo:latest is on every node; logs are in {}/node*/sluice.log.",
        lab.dir().display()
    );
    println!("In another terminal:");
    println!("  cargo xtask lab exec node1 kubectl get pods -A     # any command, as a process of that node");
    println!("  cargo xtask lab kill node2                         # or: partition node2 node3");
    println!("  cargo xtask lab heal");
    println!("Ctrl-C ends the lab and removes it.");
    serve(&mut lab, asked, &asks)
}

/// What cannot work is said before anything is built.
fn sensible(options: &Options) -> Result<()> {
    let Options { nodes, servers, etcd, loss, .. } = *options;
    ensure!((1..=MAX_NODES).contains(&nodes), "--nodes must be from 1 to {MAX_NODES}");
    ensure!((1..=nodes).contains(&servers), "--servers must be from 1 to the number of nodes, which is {nodes}");
    ensure!(etcd <= nodes, "--etcd must be at most the number of nodes, which is {nodes}");
    ensure!(servers == 1 || etcd > 0, "several servers share an etcd: say how many members with --etcd (1 or 3)");
    ensure!((0.0..=100.0).contains(&loss), "--loss must be from 0 to 100");
    Ok(())
}

fn built() -> Result<PathBuf> {
    sh::step("building (release)");
    ebpf::build()?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "sluice"]))?;
    Ok(crate::up::binary())
}

/// The right to be the machine's one lab, once nothing is left of one before.
fn alone(binary: &std::path::Path) -> Result<File> {
    let lock = File::create(LOCK).with_context(|| format!("cannot make {LOCK}"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("a lab runs already on this machine: end it with Ctrl-C in its terminal")
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {LOCK}")),
    }
    if leftovers::remove(NAME, binary).context("cannot remove what a killed lab left behind")? {
        sh::step("removed what a killed lab had left behind");
    }
    Ok(lock)
}

/// Does what it is asked by the socket, until a signal comes.
fn serve(
    lab: &mut Lab,
    asked: mpsc::Sender<Option<UnixStream>>,
    asks: &mpsc::Receiver<Option<UnixStream>>,
) -> Result<()> {
    // Left by a lab that was killed.
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).with_context(|| format!("cannot listen on {SOCKET}"))?;
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
        ["kill", node] => {
            lab.number(node).and_then(|number| lab.kill(number))?;
            Ok(format!("{node} is without power; it runs again after: cargo xtask lab heal\n"))
        }
        ["partition", ref nodes @ ..] => {
            let numbers: Vec<usize> = nodes.iter().map(|node| lab.number(node)).collect::<Result<_>>()?;
            lab.partition(&numbers)?;
            Ok(format!("cut off from the others: {}; joined again by: cargo xtask lab heal\n", nodes.join(", ")))
        }
        ["heal"] => lab.heal().map(|()| "all nodes are joined and run\n".to_owned()),
        ["exec", node] => {
            let node = &lab.nodes()[lab.number(node)? - 1];
            let entered = node.command("");
            let words = entered.get_args().map(|word| word.to_string_lossy().into_owned());
            let mut lines: Vec<String> = std::iter::once(node.data_dir().display().to_string()).chain(words).collect();
            // The place of the command's own name.
            lines.pop();
            Ok(lines.join("\n"))
        }
        _ => bail!("{line:?} is nothing that a lab does"),
    }
}

/// Asks the lab that runs, and waits until it is done.
fn ask(line: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(SOCKET).context("no lab runs on this machine; start one with: cargo xtask lab")?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    match told.strip_prefix("error: ") {
        Some(error) => bail!("{}", error.trim()),
        None => Ok(told),
    }
}

fn tell(line: &str) -> Result<()> {
    ask(line).map(|told| print!("{told}"))
}

/// Becomes the command, on the node.
fn exec(node: &str, command: &[String]) -> Result<()> {
    let told = ask(&format!("exec {node}"))?;
    let mut lines = told.lines();
    let data = lines.next().context("the lab said nothing")?;
    let mut entered = Command::new("sh");
    entered.args(lines).args(command).env("KUBECONFIG", PathBuf::from(data).join("admin.kubeconfig"));
    Err(entered.exec()).context("cannot run sh")
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

//! The cluster that a bench runs on: one node, or several, each in a network namespace of its own, removed at the end, also
//! when a signal ends the bench.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{LazyLock, Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use sluice_e2e::{Lab, Options, Stop, output};

use crate::{limits, pods::NodePlace, proc::Cluster, report::Measured};

/// How many nodes, where a bench takes several numbers of them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Sizes {
    /// Numbers of nodes, one cluster after the other
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,3", conflicts_with = "kubeconfig")]
    pub(crate) nodes: Vec<usize>,
}

impl Sizes {
    /// Refuses what cannot be measured.
    pub(crate) fn check(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|nodes| limits::within("--nodes", *nodes, limits::LAB_NODES))
    }

    pub(crate) fn parameter(&self) -> (&'static str, String) {
        ("nodes", self.nodes.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }

    /// Measures each; figures of several nodes begin with their number.
    pub(crate) fn each(&self, measure: impl Fn(usize) -> Result<Measured>) -> Result<Measured> {
        let mut all = Measured::default();
        for nodes in &self.nodes {
            all.extend(measure(*nodes)?.of_nodes(*nodes));
        }
        Ok(all)
    }
}

/// The lab's name: prefix of its namespaces, cgroups and pinned maps.
const NAME: &str = "sbench";

/// Turns the signals that would end this process at once into a flag, so that everything is removed first.
pub(crate) struct Interrupts(Mutex<State>);

#[derive(Default)]
struct State {
    asked: bool,
    child: Option<u32>,
    stop: Stop,
}

static INTERRUPTS: LazyLock<Interrupts> = LazyLock::new(|| Interrupts(Mutex::new(State::default())));
/// The thread that waits for the signals.
static CATCHING: Once = Once::new();

impl Interrupts {
    /// Must run before any other thread is started.
    pub(crate) fn catch() -> Result<&'static Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGHUP);
        signals.thread_block()?;
        CATCHING.call_once(|| {
            thread::spawn(move || {
                while signals.wait().is_ok() {
                    INTERRUPTS.with(|state| {
                        state.asked = true;
                        state.stop.set();
                        eprintln!("ending; removing what was made first");
                        if let Some(child) = state.child {
                            end(child);
                        }
                    });
                }
            });
        });
        Ok(&INTERRUPTS)
    }

    /// Ends a lab's start when the user wants the end.
    fn stop(&self) -> Stop {
        self.with(|state| state.stop.clone())
    }

    /// An error once the user wants the end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.with(|state| state.asked) { bail!("ended by a signal") } else { Ok(()) }
    }

    /// Sleeps, but ends early with an error when the user wants the end.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while let Some(rest) = until.checked_duration_since(Instant::now()) {
            self.check()?;
            thread::sleep(rest.min(Duration::from_millis(200)));
        }
        Ok(())
    }

    /// What a child says until it ends; it is told when the user wants the end.
    pub(crate) fn output(&self, child: Child) -> Result<Output> {
        self.child(Some(child.id()));
        let output = child.wait_with_output();
        self.child(None);
        self.check()?;
        Ok(output?)
    }

    fn child(&self, pid: Option<u32>) {
        self.with(|state| {
            state.child = pid;
            if let (true, Some(pid)) = (state.asked, pid) {
                end(pid);
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn end(pid: u32) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
}

/// A running cluster; its first node has the control plane as well.
pub(crate) struct Nodes {
    lab: Lab,
    interrupts: &'static Interrupts,
}

impl Nodes {
    /// Starts so many from the release build (`SLUICE_BIN`) and returns when all are Ready.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let interrupts = Interrupts::catch()?;
        interrupts.check()?;
        let options = Options { binary: binary()?, nodes: count, stop: interrupts.stop(), ..Options::one(NAME) };
        say(&format!("starting a cluster of {}", named(count)));
        let lab = Lab::start(&options)?;
        interrupts.check()?;
        Ok(Self { lab, interrupts })
    }

    pub(crate) fn interrupts(&self) -> &'static Interrupts {
        self.interrupts
    }

    /// Ends the daemons, the control plane's last; what they ran goes on.
    pub(crate) fn end(&mut self) -> Result<()> {
        (1..=self.lab.nodes().len()).rev().try_for_each(|number| self.lab.node(number).end(Signal::SIGTERM))
    }

    /// Starts all ended daemons again at once: how long it took until all said that they are ready.
    pub(crate) fn start_again(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.lab.restart()?;
        Ok(begun.elapsed())
    }

    /// Starts the control plane where nothing has ever run, then joins all other nodes at once: how long both took.
    pub(crate) fn start_fresh(&mut self) -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        self.lab.node(1).restart()?;
        let first = begun.elapsed();
        let begun = Instant::now();
        self.lab.join()?;
        Ok((first, begun.elapsed()))
    }

    /// Removes all that the ended installations have, as if they had never run. In the node's network namespace, but not
    /// in its cgroup, which is to be removed too.
    pub(crate) fn reset(&self) -> Result<()> {
        for (number, node) in (1..).zip(self.lab.nodes()) {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{NAME}-{number}")).arg(binary()?).args(["reset", "--yes"]);
            command.arg("--data-dir").arg(node.data_dir()).arg("--run-dir").arg(node.run_dir());
            command.args(["--instance", &instance(node), "--containerd", "own"]);
            output(command.current_dir("/"))?;
        }
        Ok(())
    }

    /// Ends the ended daemons' containerds, as a reboot does.
    pub(crate) fn end_containerd(&self) -> Result<()> {
        for node in self.lab.nodes() {
            for pid in Cluster::find(0, &containerd_config(node), &containerd_socket(node)).containerd {
                end(pid);
                let until = Instant::now() + Duration::from_secs(10);
                while Path::new(&format!("/proc/{pid}")).exists() {
                    if Instant::now() > until {
                        bail!("containerd (pid {pid}) did not end");
                    }
                    self.interrupts.sleep(Duration::from_millis(10))?;
                }
            }
        }
        Ok(())
    }

    /// Imports the sample image (`SLUICE_IMAGE`) on every node.
    pub(crate) fn import(&self) -> Result<()> {
        let tar =
            std::env::var_os("SLUICE_IMAGE").map_or_else(|| sluice_e2e::target().join("image/echo.tar"), PathBuf::from);
        if !tar.exists() {
            bail!("{} is not there; `cargo xtask bench` builds it, or SLUICE_IMAGE says where it is", tar.display());
        }
        self.lab.import(&tar)
    }

    /// Applies a manifest and waits until a Deployment of it is rolled out.
    pub(crate) fn roll_out(&self, manifest: &str, deployment: &str) -> Result<()> {
        self.lab.apply(manifest)?;
        self.rolled_out(deployment)
    }

    /// Gives a Deployment so many pods and waits until all are Ready.
    pub(crate) fn scale(&self, deployment: &str, pods: usize) -> Result<()> {
        self.lab.kubectl(&format!("scale deployment/{deployment} --replicas={pods}"))?;
        self.rolled_out(deployment)
    }

    fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.lab.kubectl(&format!("rollout status deployment/{deployment} --timeout=300s")).map(drop)
    }

    /// The processes of each node as they are now.
    pub(crate) fn processes(&self) -> Result<Vec<Cluster>> {
        self.lab
            .nodes()
            .iter()
            .map(|node| Ok(Cluster::find(daemon(node)?, &containerd_config(node), &containerd_socket(node))))
            .collect()
    }

    /// Runs the hidden command that measures from inside the first node's network namespace and cgroup.
    pub(crate) fn measure(&self, bench: &str, words: &[String]) -> Result<Measured> {
        let first = &self.lab.nodes()[0];
        let mut command = first.command(std::env::current_exe()?);
        command.args(["measure", bench, "--kubeconfig"]).arg(first.data_dir().join("admin.kubeconfig")).args(words);
        for node in self.lab.nodes() {
            let place = NodePlace {
                name: node.name.clone(),
                containerd: containerd_socket(node),
                containerd_config: containerd_config(node),
                cgroup: format!("/{}/ctr", instance(node)),
                daemon: daemon(node)?,
            };
            command.args(["--place", &serde_json::to_string(&place)?]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let output = self.interrupts.output(child.context("cannot start the measuring process")?)?;
        if !output.status.success() {
            bail!("measuring failed; the end of the daemon's log:\n{}", first.log_tail());
        }
        serde_json::from_slice(&output.stdout).context("the measuring process said something unexpected")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        say("removing the cluster");
        for number in 1..=self.lab.nodes().len() {
            if self.lab.node(number).runs()
                && let Err(error) = self.lab.node(number).end(Signal::SIGTERM)
            {
                eprintln!("{error:#}");
            }
        }
        if let Err(error) = self.reset() {
            eprintln!("{error:#}");
        }
    }
}

/// So many nodes, in words.
pub(crate) fn named(nodes: usize) -> String {
    if nodes == 1 { "1 node".into() } else { format!("{nodes} nodes") }
}

fn daemon(node: &sluice_e2e::Node) -> Result<u32> {
    node.pid().with_context(|| format!("the daemon of {} does not run", node.name))
}

/// As labs name it: prefix of the node's cgroups.
fn instance(node: &sluice_e2e::Node) -> String {
    format!("{NAME}-{}", node.name)
}

/// As the daemon lays out its directories.
fn containerd_socket(node: &sluice_e2e::Node) -> PathBuf {
    node.run_dir().join("containerd/containerd.sock")
}

fn containerd_config(node: &sluice_e2e::Node) -> PathBuf {
    node.data_dir().join("containerd/config.toml")
}

/// Progress, for people.
pub(crate) fn say(what: &str) {
    eprintln!("==> {what}");
}

/// The program that is measured.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SLUICE_BIN") {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("sluice"),
    };
    if !path.exists() {
        bail!("{} is not there; `cargo xtask bench` builds it, or SLUICE_BIN says where it is", path.display());
    }
    Ok(path)
}

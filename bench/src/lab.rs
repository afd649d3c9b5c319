//! The cluster that a bench runs on: one node in network namespaces of its own, removed at the end, also when
//! a signal ends the bench.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use sluice_e2e::{Lab, Options, output};

use crate::{proc::Cluster, report::Measured};

/// The lab's name: prefix of its namespaces, cgroups and pinned maps.
const NAME: &str = "sbench";

/// Turns the signals that would end this process at once into a flag, so that everything is removed first.
pub(crate) struct Interrupts(Mutex<State>);

#[derive(Default)]
struct State {
    asked: bool,
    child: Option<u32>,
}

static INTERRUPTS: Interrupts = Interrupts(Mutex::new(State { asked: false, child: None }));

impl Interrupts {
    /// Must run before any other thread is started.
    pub(crate) fn catch() -> Result<&'static Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        thread::spawn(move || {
            while signals.wait().is_ok() {
                INTERRUPTS.with(|state| {
                    state.asked = true;
                    eprintln!("ending; removing what was made first");
                    if let Some(child) = state.child {
                        end(child);
                    }
                });
            }
        });
        Ok(&INTERRUPTS)
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

/// A running one-node cluster.
pub(crate) struct Node {
    lab: Lab,
    interrupts: &'static Interrupts,
}

impl Node {
    /// Starts it from the release build (`SLUICE_BIN`) and returns when its node is Ready.
    pub(crate) fn start() -> Result<Self> {
        let interrupts = Interrupts::catch()?;
        let options = Options { binary: binary()?, ..Options::one(NAME) };
        say("starting a one-node cluster");
        let lab = Lab::start(&options)?;
        interrupts.check()?;
        Ok(Self { lab, interrupts })
    }

    pub(crate) fn interrupts(&self) -> &'static Interrupts {
        self.interrupts
    }

    /// Ends the daemon; what it ran goes on.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.lab.node(1).end(Signal::SIGTERM)
    }

    /// Starts the ended daemon again: how long it took until it said that it is ready.
    pub(crate) fn start_again(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.lab.node(1).restart()?;
        Ok(begun.elapsed())
    }

    /// Removes all that the ended installation has, as if it had never run. In the node's network namespace, but not
    /// in its cgroup, which is to be removed too.
    pub(crate) fn reset(&self) -> Result<()> {
        let node = self.node();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{NAME}-1")).arg(binary()?).args(["reset", "--yes", "--data-dir"]);
        command.arg(node.data_dir()).arg("--run-dir").arg(node.run_dir());
        command.args(["--instance", &self.instance(), "--containerd", "own"]);
        output(command.current_dir("/")).map(drop)
    }

    /// Ends the ended daemon's containerd, as a reboot does.
    pub(crate) fn end_containerd(&self) -> Result<()> {
        for pid in Cluster::find(0, &self.containerd_config(), &self.containerd_socket()).containerd {
            end(pid);
            let until = Instant::now() + Duration::from_secs(10);
            while Path::new(&format!("/proc/{pid}")).exists() {
                if Instant::now() > until {
                    bail!("containerd (pid {pid}) did not end");
                }
                self.interrupts.sleep(Duration::from_millis(10))?;
            }
        }
        Ok(())
    }

    /// Imports the sample image (`SLUICE_IMAGE`).
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
        self.lab.kubectl(&format!("rollout status deployment/{deployment} --timeout=120s")).map(drop)
    }

    /// Its processes as they are now.
    pub(crate) fn processes(&self) -> Result<Cluster> {
        let daemon = self.node().pid().context("the daemon does not run")?;
        Ok(Cluster::find(daemon, &self.containerd_config(), &self.containerd_socket()))
    }

    /// Runs the hidden command that measures from inside the node's network namespace and cgroup.
    pub(crate) fn measure(&self, bench: &str) -> Result<Measured> {
        let node = self.node();
        let mut command = node.command(std::env::current_exe()?);
        command
            .args(["measure", bench, "--kubeconfig"])
            .arg(node.data_dir().join("admin.kubeconfig"))
            .arg("--containerd")
            .arg(self.containerd_socket())
            .arg("--containerd-config")
            .arg(self.containerd_config())
            .args(["--cgroup", &format!("/{}/ctr", self.instance())])
            .args(["--daemon", &node.pid().context("the daemon does not run")?.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let child = command.spawn().context("cannot start the measuring process")?;
        let output = self.interrupts.output(child)?;
        if !output.status.success() {
            bail!("measuring failed; the end of the daemon's log:\n{}", node.log_tail());
        }
        serde_json::from_slice(&output.stdout).context("the measuring process said something unexpected")
    }

    fn node(&self) -> &sluice_e2e::Node {
        &self.lab.nodes()[0]
    }

    /// As labs name it: prefix of the node's cgroups.
    fn instance(&self) -> String {
        format!("{NAME}-{}", self.node().name)
    }

    /// As the daemon lays out its directories.
    fn containerd_socket(&self) -> PathBuf {
        self.node().run_dir().join("containerd/containerd.sock")
    }

    fn containerd_config(&self) -> PathBuf {
        self.node().data_dir().join("containerd/config.toml")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        say("removing the cluster");
        if self.node().pid().is_some()
            && let Err(error) = self.end()
        {
            eprintln!("{error:#}");
        }
        if let Err(error) = self.reset() {
            eprintln!("{error:#}");
        }
    }
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

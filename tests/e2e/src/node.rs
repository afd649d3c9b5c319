//! One node of a lab: its daemon in a network namespace, with directories, cgroup and maps of its own.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    clock::Clock,
    notices::{self, Notices},
    sh::{output, target},
};

/// How long a daemon may take until it is ready; debug builds on a busy machine are slow.
const READY: Duration = Duration::from_secs(120);

/// How long one may take to end when its lab goes.
const END: Duration = Duration::from_secs(30);

/// Enters cgroup `$0`, then becomes the rest in the namespaces that it names.
const ENTER: &str = r#"mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec nsenter "$@""#;

/// A node of a lab; stopped and removed on drop.
pub struct Node {
    /// The node's name in the cluster.
    pub name: String,
    /// The address other nodes reach it by.
    pub address: String,
    /// All of them, the primary one first.
    pub addresses: Vec<String>,
    instance: String,
    namespace: String,
    dir: PathBuf,
    binary: PathBuf,
    arguments: Vec<String>,
    daemon: Option<Child>,
    /// What the service manager would know of it.
    notices: Option<Notices>,
    clock: Option<Clock>,
}

impl Node {
    pub(crate) fn new(
        lab: &str,
        name: &str,
        namespace: String,
        addresses: Vec<String>,
        dir: &Path,
        binary: &Path,
    ) -> Self {
        Self {
            name: name.into(),
            address: addresses.first().cloned().unwrap_or_default(),
            addresses,
            instance: format!("{lab}-{name}"),
            namespace,
            dir: dir.join(name),
            binary: binary.into(),
            arguments: Vec::new(),
            daemon: None,
            notices: None,
            clock: None,
        }
    }

    /// Starts the daemon with `arguments` (`up`, or `node --server ...`) and waits until it is ready.
    pub fn start(&mut self, arguments: &[String]) -> Result<()> {
        self.arguments = arguments.to_vec();
        fs::create_dir_all(&self.dir)?;
        let notify = self.dir.join("notify");
        let earlier = self.notices.take();
        let mut notices = Notices::at(&notify)?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.command(&self.binary);
        command
            .args(arguments)
            .args(["--node-name", &self.name, "--node-ip", &self.addresses.join(",")])
            .args(["--socket-hooks", "instance", "--dns-upstream", "none"])
            .args(self.place())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let passed = earlier.map(|earlier| earlier.pass_on(&mut command)).transpose()?;
        let mut daemon = command.spawn().context("cannot start the daemon")?;
        drop(passed);
        let ready = notices.ready(&mut daemon, READY);
        self.notices = Some(notices);
        if daemon.try_wait()?.is_none() {
            self.daemon = Some(daemon);
        }
        ready.with_context(|| format!("the daemon of {}:\n{}", self.name, self.log_tail()))
    }

    /// Starts the daemon again as it was started before.
    pub fn restart(&mut self) -> Result<()> {
        self.start(&self.arguments.clone())
    }

    /// Ends the daemon with `signal` and waits for its end; the node's pods stay.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { bail!("{} has no running daemon", self.name) };
        kill(Pid::from_raw(i32::try_from(daemon.id())?), signal)?;
        daemon.wait().map(drop).context("waiting for the daemon's end")
    }

    /// Ends everything on the node at once, as a power cut does: daemon, containerd, pods. Its files stay.
    pub fn cut_power(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            self.end(Signal::SIGKILL)?;
        }
        self.notices = None;
        let ours: Vec<Pid> = self.processes()?.into_iter().map(|(pid, _)| pid).chain(self.contained()?).collect();
        for pid in ours {
            // One that has just ended is as good as killed.
            let _ = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Sets the node's clock so many seconds ahead of the machine's. A daemon that runs has one of its own only if it started with it.
    pub fn set_clock(&mut self, ahead: i64) -> Result<()> {
        let clock = match self.clock.take() {
            Some(clock) => clock,
            None => Clock::make(&self.dir)?,
        };
        self.clock.insert(clock).set(ahead)
    }

    /// True while its daemon has not been ended.
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    /// Runs something on a thread in the node's network namespace.
    pub fn within<R: Send>(&self, act: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(File::open(Path::new("/run/netns").join(&self.namespace))?, CloneFlags::CLONE_NEWNET)?;
                act()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command in the node's network namespace and cgroup: what a process on that machine sees.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = enter(&self.instance);
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program.as_ref());
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        command
    }

    /// The sample image's static program, as a process of the node.
    pub fn echo(&self, arguments: &[&str]) -> Command {
        let echo = target().join(format!("{}-unknown-linux-gnu/release/echo", std::env::consts::ARCH));
        let mut command = self.command(echo);
        command.args(arguments);
        command
    }

    /// `sluice` with this node's directories.
    pub fn sluice(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.binary);
        command.args(arguments).args(self.place());
        command
    }

    /// `kubectl` as the administrator (only where the control plane runs).
    pub fn kubectl(&self) -> Command {
        let mut command = self.command("kubectl");
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig")).env("HOME", &self.dir);
        command
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        notices::tail(&self.log())
    }

    /// Where the daemon's log is.
    pub fn log(&self) -> PathBuf {
        self.dir.join("sluice.log")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The pid of the running daemon.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The processes of the machine whose command line names this node's directories: the daemon,
    /// its containerd, shims and loggers, each with its command line.
    pub fn processes(&self) -> Result<Vec<(Pid, String)>> {
        processes_of(&self.dir)
    }

    /// The processes in the cgroups of this node's pods.
    pub fn contained(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        let mut groups = vec![cgroup_root().join(&self.instance).join("kubepods")];
        while let Some(group) = groups.pop() {
            // A group that has just gone holds nothing.
            let Ok(entries) = fs::read_dir(&group) else { continue };
            groups.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for line in procs.lines() {
                pids.push(Pid::from_raw(line.parse()?));
            }
        }
        Ok(pids)
    }

    fn place(&self) -> Vec<std::ffi::OsString> {
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        for (flag, dir) in [("--data-dir", self.data_dir()), ("--run-dir", self.run_dir())] {
            words.extend([flag.into(), dir.into()]);
        }
        words.extend(["--instance".into(), self.instance.clone().into(), "--containerd".into(), "own".into()]);
        words
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // A daemon that is already gone is as good as ended.
            let _ = ended(daemon);
        }
        if let Err(error) = output(self.sluice(&["reset", "--yes"]).current_dir("/")) {
            eprintln!("{}: {error:#}", self.name);
        }
        // `reset` removed the node's own groups; these held the commands of the test.
        let group = cgroup_root().join(&self.instance);
        let _ = fs::remove_dir(group.join("host"));
        let _ = fs::remove_dir(group);
    }
}

/// Asks a daemon to end, and kills it when it does not.
fn ended(daemon: &mut Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
    let deadline = Instant::now() + END;
    while Instant::now() < deadline {
        if daemon.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.kill()?;
    daemon.wait().map(drop).context("waiting for the daemon's end")
}

/// The processes of the machine whose command line names this folder, each with its command line.
pub(crate) fn processes_of(dir: &Path) -> Result<Vec<(Pid, String)>> {
    let mut found = Vec::new();
    let dir = dir.to_string_lossy();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has just ended is none.
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        if line.contains(&*dir) {
            found.push((Pid::from_raw(pid), line));
        }
    }
    Ok(found)
}

/// `nsenter` from inside the cgroup of an installation, so that its sockets are those of the node.
pub(crate) fn enter(instance: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", ENTER]).arg(cgroup_root().join(instance).join("host")).arg("nsenter");
    command
}

/// The cgroup v2 tree: all of /sys/fs/cgroup, or its `unified` part in the hybrid layout.
pub(crate) fn cgroup_root() -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.is_dir() { unified.into() } else { "/sys/fs/cgroup".into() }
}

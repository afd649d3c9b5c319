//! A bare machine: a copy of the system that `cargo xtask dist --for-tests` made, in namespaces of its own (mounts,
//! processes, network), without a service manager. What runs on it sees neither this machine's files nor its processes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    node,
    notices::{self, Notices},
    sh::{output, run, target},
    wires::{Families, Shape, Weather, Wires},
};

/// Makes `$1` the root of the namespaces it runs in, with the host name `$2`, and holds them until it is killed. Processes that
/// lose their parent are nobody's children there, so that none stays when it has ended.
const BECOME: &str = r#"
set -e
hostname "$2"
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mkdir -p before
pivot_root . before
umount -l /before
echo held
trap '' CHLD
exec sleep infinity
"#;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const READY: Duration = Duration::from_secs(120);
const HELD: Duration = Duration::from_secs(10);

/// A running machine; everything of it is removed on drop.
pub struct Bare {
    holder: Child,
    /// The first process of the namespaces.
    inner: u32,
    daemon: Option<Child>,
    wires: Arc<Wires>,
    number: usize,
    instance: String,
    /// Its commands run inside its cgroup, so that their sockets are the machine's; then the daemon cannot be taken off it again.
    enters: bool,
    dir: TempDir,
}

impl Bare {
    /// `instance` is the name of the installation that the machine's settings choose.
    pub fn start(name: &str, instance: &str) -> Result<Self> {
        let wires = Wires::make(name, 1, Shape::Shared, Families::V4, Weather::default())?;
        Self::on(Arc::new(wires), name, 1, instance.to_owned(), false)
    }

    /// Machines `node1`, `node2` and so on, on one link; the installation of each is called `<name>1`, `<name>2`.
    pub fn several(name: &str, count: usize) -> Result<Vec<Self>> {
        let wires = Arc::new(Wires::make(name, count, Shape::Shared, Families::V4, Weather::default())?);
        (1..=count).map(|number| Self::on(Arc::clone(&wires), name, number, format!("{name}{number}"), true)).collect()
    }

    fn on(wires: Arc<Wires>, name: &str, number: usize, instance: String, enters: bool) -> Result<Self> {
        let system = target().join("dist-root");
        if !system.exists() {
            bail!("{} is missing: cargo xtask dist --for-tests", system.display());
        }
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let root = dir.path().join("root");
        output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&system).arg(&root))?;
        let mut holder = Command::new("nsenter");
        holder
            .arg(format!("--net=/run/netns/{}", wires.of(number)))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", BECOME, "sh"])
            .arg(&root)
            .arg(format!("node{number}"))
            .stdout(Stdio::piped())
            .process_group(0);
        let holder = holder.spawn().context("cannot start the machine")?;
        let mut bare = Self { holder, inner: 0, daemon: None, wires, number, instance, enters, dir };
        let told = bare.holder.stdout.take().context("the machine's first process tells nothing")?;
        let (tell, held) = mpsc::channel();
        thread::spawn(move || tell.send(BufReader::new(told).lines().next().is_some_and(|line| line.is_ok())));
        if held.recv_timeout(HELD) != Ok(true) {
            bail!("the machine's namespaces did not come about");
        }
        bare.inner = child(&bare.holder)?;
        Ok(bare)
    }

    /// The name of the installation that the machine's settings choose.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A file of the machine, as this one sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    /// Gives the machine a file.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        fs::copy(from, self.path(to)).with_context(|| format!("cannot copy {}", from.display())).map(drop)
    }

    /// A command on the machine.
    pub fn command(&self, words: &str) -> Command {
        let mut command = if self.enters { node::enter(&self.instance) } else { Command::new("nsenter") };
        command
            .args(["--target", &self.inner.to_string(), "--mount", "--uts", "--pid", "--net"])
            .args(words.split_whitespace())
            .env_clear()
            .envs([("PATH", PATH), ("HOME", "/root"), ("LC_ALL", "C"), ("DEBIAN_FRONTEND", "noninteractive")]);
        command
    }

    /// Runs to the end, and returns what it printed.
    pub fn run(&self, words: &str) -> Result<String> {
        output(&mut self.command(words))
    }

    /// Runs what must fail, and returns what it printed in both ways.
    pub fn fails(&self, words: &str) -> Result<String> {
        let done = self.command(words).stdin(Stdio::null()).output()?;
        if done.status.success() {
            bail!("{words} succeeded");
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr))
    }

    /// `kubectl` of this machine, in the other one's network.
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.wires.of(self.number)))
            .arg("kubectl")
            .args(arguments.split_whitespace())
            .env("KUBECONFIG", self.path("/var/lib/sluice/admin.kubeconfig"))
            .env("HOME", self.dir.path());
        output(&mut command).with_context(|| self.log_tail())
    }

    /// Starts a daemon by its plain command and waits until it is ready.
    pub fn daemon(&mut self, words: &str) -> Result<()> {
        let mut notices = Notices::at(&self.path("/run/ready"))?;
        let log = fs::File::options().create(true).append(true).open(self.path("/daemon.log"))?;
        let mut command = self.command(words);
        command.env("NOTIFY_SOCKET", "/run/ready").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut daemon = command.process_group(0).spawn()?;
        notices.ready(&mut daemon, READY).with_context(|| format!("{words}:\n{}", self.log_tail()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends the daemon with `signal` and waits for its end; the machine's pods stay.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let entered = self.daemon.as_ref().context("no daemon runs")?;
        kill(Pid::from_raw(child(entered)?.cast_signed()), signal)?;
        self.ended()
    }

    /// Waits for the end of the daemon, which somebody else has asked to end.
    pub fn ended(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { bail!("no daemon runs") };
        daemon.wait().map(drop).context("waiting for the daemon's end")
    }

    /// The processes in cgroups of the machine's pods.
    pub fn contained(&self) -> usize {
        let mut groups = vec![self.cgroup()];
        let mut found = 0;
        while let Some(group) = groups.pop() {
            // A group that has just gone holds nothing.
            let Ok(entries) = fs::read_dir(&group) else { continue };
            let ours = self.cgroup().join("host");
            groups.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && *path != ours));
            found += fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().count();
        }
        found
    }

    /// The cgroup of the machine's pods.
    pub fn cgroup(&self) -> PathBuf {
        node::cgroup_root().join(&self.instance)
    }

    fn log_tail(&self) -> String {
        notices::tail(&self.path("/daemon.log"))
    }
}

/// The process that a program which entered namespaces has started there.
fn child(of: &Child) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", of.id()))?;
    children.split_whitespace().next().context("it has started no process")?.parse().map_err(Into::into)
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Whatever a failed story left; after a whole one there is nothing.
        for program in ["/usr/bin/sluice", "/var/lib/sluice-purge/sluice"] {
            if self.inner != 0 && self.path(program).exists() {
                let _ = self.run(&format!("{program} reset --yes"));
            }
        }
        // The first process takes all others of its namespace along, and they their mounts.
        if self.inner != 0 {
            let _ = kill(Pid::from_raw(self.inner.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        // With those of pods that ended with the machine.
        let _ = run(&format!("find {} -depth -type d -delete", self.cgroup().display()));
    }
}

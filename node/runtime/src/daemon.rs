//! A private containerd for machines where none runs, and for tests.
//!
//! It gets its own root, state, socket and a minimal configuration below one directory, so that any number of them run
//! side by side. It outlives us: a later `spawn` finds it by its socket and adopts it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::{Error, Result, limits, shims, sys};

/// Where the programs may be beside `PATH`.
const PROGRAM_DIRS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running private containerd; dropping it leaves it running.
#[derive(Debug)]
pub struct Containerd {
    process: Watched,
    dir: PathBuf,
    socket: PathBuf,
}

/// A process that need not be a child of ours.
#[derive(Debug)]
struct Watched {
    pid: Pid,
    ended: AsyncFd<OwnedFd>,
}

impl Containerd {
    /// Starts containerd with root, state, configuration and log below `dir`, listening on `socket`; returns when it
    /// answers. One that answers there already is adopted. [`Error::NotInstalled`] if the programs are missing.
    pub async fn spawn(dir: &Path, socket: &Path) -> Result<Self> {
        let known = |process| Self { process, dir: dir.to_owned(), socket: socket.to_owned() };
        if let Some(pid) = owner(socket) {
            ready(socket).await?;
            return Watched::new(pid).map(known);
        }
        let path = search_path();
        for program in ["containerd", "runc"] {
            if !installed(program, &path) {
                return Err(Error::NotInstalled(program));
            }
        }
        fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
        let config = dir.join("config.toml");
        fs::write(&config, configuration(dir, socket)).map_err(Error::io(format!("writing {}", config.display())))?;
        let log = dir.join("containerd.log");
        let of_before = shims::of(socket);
        let mut child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .env("PATH", &path)
            // It would report our readiness to the service manager in its own stead.
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log_file(&log)?)
            .stderr(log_file(&log)?)
            .process_group_of_its_own()
            .spawn()
            .map_err(Error::io("starting containerd".into()))?;
        let process = Watched::new(Pid::from_raw(child.id().cast_signed()))?;
        // Its parent has to reap it, or it stays as a zombie that looks alive.
        std::thread::spawn(move || child.wait());
        tokio::select! {
            ready = ready(socket) => ready?,
            _ = process.ended() => {
                return Err(Error::Unavailable {
                    socket: socket.display().to_string(),
                    reason: format!("it ended at once, see {}: {}", log.display(), last_line(&log)),
                });
            }
        }
        shims::end_forsaken(dir, &of_before);
        Ok(known(process))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid.as_raw().cast_unsigned()
    }

    /// Waits until the process has ended.
    pub async fn exited(&mut self) -> io::Result<()> {
        self.process.ended().await
    }

    /// Starts it again whenever it ends, until the shutdown; it is left running then. The pause before a start doubles from
    /// [`limits::RESTART_FIRST`] to [`limits::RESTART_MAX`]; a life of [`limits::RESTART_RESET`] makes up for all ends
    /// before.
    pub async fn supervise(mut self, shutdown: CancellationToken) {
        let mut pause = limits::RESTART_FIRST;
        loop {
            let begun = Instant::now();
            tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.exited() => if let Err(error) = ended {
                    tracing::error!(%error, "containerd cannot be watched: it is not started again when it ends");
                    return;
                },
            }
            if begun.elapsed() >= limits::RESTART_RESET {
                pause = limits::RESTART_FIRST;
            }
            let log = self.dir.join("containerd.log");
            tracing::warn!(?pause, last_words = last_line(&log), "containerd ended; starting it again");
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(limits::RESTART_MAX);
                match Self::spawn(&self.dir, &self.socket).await {
                    Ok(next) => {
                        self = next;
                        break;
                    }
                    Err(error) => tracing::error!(%error, ?pause, "containerd does not start; trying again"),
                }
            }
        }
    }

    /// SIGTERM, then SIGKILL; shims and containers keep running.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await
    }

    /// Ends what runs below `dir`: shims with their containers, containerd, mounts. For `down` and tests; the files stay.
    pub async fn teardown(dir: &Path, socket: &Path) -> Result<()> {
        if let Some(pid) = owner(socket) {
            Watched::new(pid)?.stop().await?;
        }
        let addresses = shim_sockets(&dir.join("state"));
        for pid in shims::of(socket) {
            let Ok(shim) = Watched::new(pid) else { continue };
            for child in sys::children(pid) {
                sys::signal(child, Signal::SIGKILL);
            }
            sys::signal(pid, Signal::SIGKILL);
            shim.ended().await.map_err(Error::io("waiting for a shim to end".into()))?;
        }
        for address in addresses {
            // A shim that ended by itself has taken its own along.
            let _ = fs::remove_file(address);
        }
        for target in sys::mounts_below(dir) {
            nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH)
                .map_err(|error| Error::io(format!("unmounting {}", target.display()))(error.into()))?;
        }
        fs::remove_file(socket).or_else(gone).map_err(Error::io(socket.display().to_string()))
    }
}

impl Watched {
    fn new(pid: Pid) -> Result<Self> {
        let ended = sys::pidfd(pid).map_err(Error::io(format!("watching process {pid}")))?;
        Ok(Self { pid, ended })
    }

    async fn ended(&self) -> io::Result<()> {
        self.ended.readable().await.map(drop)
    }

    async fn stop(&self) -> Result<()> {
        sys::signal(self.pid, Signal::SIGTERM);
        if tokio::time::timeout(limits::DAEMON_STOP, self.ended()).await.is_err() {
            sys::signal(self.pid, Signal::SIGKILL);
            self.ended().await.map_err(Error::io("waiting for containerd to end".into()))?;
        }
        Ok(())
    }
}

/// Waits until containerd answers on the socket.
pub async fn ready(socket: &Path) -> Result<()> {
    let client = Client::new(socket, "default")?;
    let dir = socket.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
    // Before the first question: its socket may appear right after that.
    let changes = sys::Watch::new(dir).map_err(Error::io(format!("watching {}", dir.display())))?;
    let answer = async {
        while client.version().version(client.endless(())).await.is_err() {
            tokio::select! {
                changed = changes.changed() => changed.map_err(Error::io(format!("watching {}", dir.display())))?,
                // It has had its socket for long, and comes to answer only now.
                () = tokio::time::sleep(limits::DAEMON_ASK) => {}
            }
        }
        Ok(())
    };
    tokio::time::timeout(limits::DAEMON_START, answer).await.map_err(|_| Error::Unavailable {
        socket: socket.display().to_string(),
        reason: format!("no answer within {:?}", limits::DAEMON_START),
    })?
}

trait ProcessGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl ProcessGroup for Command {
    /// Signals from the terminal are for us alone.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// Only what pods need: no CRI plugin, no exotic snapshotters; the OOM score is left alone.
fn configuration(dir: &Path, socket: &Path) -> String {
    format!(
        r#"version = 2
root = {root:?}
state = {state:?}
oom_score = 0
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = {socket:?}

[debug]
  level = "warn"
"#,
        root = dir.join("root"),
        state = dir.join("state"),
    )
}

fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{PROGRAM_DIRS}"),
        _ => PROGRAM_DIRS.to_owned(),
    }
}

fn installed(program: &str, path: &str) -> bool {
    path.split(':').any(|dir| Path::new(dir).join(program).is_file())
}

fn log_file(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(format!("opening {}", path.display())))
}

fn last_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}

/// The process that listens on the socket, if one does.
fn owner(socket: &Path) -> Option<Pid> {
    let stream = UnixStream::connect(socket).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| Pid::from_raw(peer.pid()))
}

/// Where the shims listen: outside of our folders, named in each container's bundle.
fn shim_sockets(state: &Path) -> Vec<PathBuf> {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let namespaces = entries(state.join("io.containerd.runtime.v2.task"));
    let bundles = namespaces.flat_map(entries);
    let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok());
    addresses.filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from)).collect()
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

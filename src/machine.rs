//! What the daemon needs of the machine: root, one daemon per installation, a word to the service
//! manager, logging. Each missing thing is one sentence that says how to get it.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;

/// One cryptography provider for the whole process.
pub(crate) fn set_up_tls() {
    // It fails only if one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Logs to standard error; `RUST_LOG` chooses what.
pub(crate) fn set_up_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube=warn,hyper=warn,tower=warn"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}

/// A node makes namespaces, cgroups and eBPF programs.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root (network namespaces, cgroups, eBPF); run it as root or with sudo");
    }
    if !Path::new("/sys/fs/cgroup").join("cgroup.controllers").exists()
        && !Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists()
    {
        bail!("no cgroup v2 tree is mounted; mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified");
    }
    Ok(())
}

/// The oldest kernel that has what the data plane uses.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// The data plane needs a kernel of some age.
pub(crate) fn require_kernel() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
    check_kernel(release.trim())
}

fn check_kernel(release: &str) -> Result<()> {
    // One that names itself in no known way is given a try.
    if version(release).is_some_and(|version| version < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        bail!("this kernel ({release}) cannot run the data plane: Linux {major}.{minor} or newer is needed");
    }
    Ok(())
}

/// Major and minor number at the start of a version.
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Held while the daemon runs; the file says its pid.
pub(crate) struct PidFile(#[expect(dead_code, reason = "the lock lives as long as this")] Flock<File>);

/// Takes the installation for this process.
///
/// # Errors
/// When another daemon holds it: the message names its pid.
pub(crate) fn take_pid_file(path: &Path) -> Result<PidFile> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut locked) => {
            locked.set_len(0)?;
            writeln!(locked, "{}", std::process::id())?;
            Ok(PidFile(locked))
        }
        Err(_) => {
            let pid = fs::read_to_string(path).unwrap_or_default();
            bail!(
                "sluice runs already with this run directory (pid {}); stop it first, or choose --run-dir",
                pid.trim()
            )
        }
    }
}

/// The pid of the daemon that holds the file, if one does.
pub(crate) fn running(path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err(_) => fs::read_to_string(path).ok()?.trim().parse().ok(),
    }
}

/// Waits until no daemon holds the file.
pub(crate) fn wait_until_free(path: &Path) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    Flock::lock(file, FlockArg::LockShared).map(drop).map_err(|(_, error)| error.into())
}

/// Tells the service manager (`NOTIFY_SOCKET`, systemd's protocol), if there is one.
pub(crate) fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Writes a file with secrets: mode 0600, never seen half written.
pub(crate) fn write_secret(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(content.as_ref())?;
    file.sync_all()?;
    fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The machine's own address of a family: that of the default route's link. Connecting a UDP socket sends nothing.
pub(crate) fn own_address(v4: bool) -> Option<IpAddr> {
    // Documentation addresses that only the default route matches.
    let (own, far): (IpAddr, IpAddr) = match v4 {
        true => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 1).into()),
        false => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((own, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The cgroup v2 tree: all of /sys/fs/cgroup, or its `unified` part in the hybrid layout.
pub(crate) fn cgroup_root() -> &'static Path {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        for (release, good) in [
            ("6.1.0-13-amd64", true),
            ("6.18.44", true),
            ("7.0-rc1", true),
            ("odd", true),
            ("5.15.0-91-generic", false),
            ("6.0.9", false),
        ] {
            assert_eq!(check_kernel(release).is_ok(), good, "{release}");
        }
    }
}

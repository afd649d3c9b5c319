//! What this machine can give to containers: capabilities, cgroup version, devices, the files of unpacked images.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use oci_spec::runtime::{Capability, LinuxDevice, LinuxDeviceType, LinuxSeccomp};

use crate::users::Files;
use crate::{Error, Result, limits};

/// Capabilities in the kernel's order.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What matters of this machine for a container's specification.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// Only the v2 hierarchy is mounted.
    pub(crate) unified: bool,
    /// Capabilities we can pass on.
    pub(crate) capabilities: HashSet<Capability>,
    /// Our own score: without CAP_SYS_RESOURCE nothing lower can be set.
    pub(crate) oom_score_adj: i32,
}

impl Host {
    /// Reads them from `/proc` and `/sys`.
    pub(crate) fn detect() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        let bits = permitted.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
        let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        Self {
            unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            capabilities: capabilities(bits),
            oom_score_adj: score.trim().parse().unwrap_or_default(),
        }
    }
}

fn capabilities(bits: u64) -> HashSet<Capability> {
    let held = CAPABILITIES.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
    held.filter_map(|(_, name)| name.parse().ok()).collect()
}

/// A host device as a container gets it.
pub(crate) fn device(host: &Path, container: &Path) -> Result<LinuxDevice> {
    let about = fs::metadata(host).map_err(Error::io(format!("device {}", host.display())))?;
    let kind = if about.file_type().is_block_device() {
        LinuxDeviceType::B
    } else if about.file_type().is_char_device() {
        LinuxDeviceType::C
    } else {
        return Err(Error::InvalidSpec(format!("{} is not a device", host.display())));
    };
    let mut device = LinuxDevice::default();
    device
        .set_path(container.to_owned())
        .set_typ(kind)
        .set_major(i64::from(libc::major(about.rdev())))
        .set_minor(i64::from(libc::minor(about.rdev())))
        .set_file_mode(Some(about.mode() & 0o7777))
        .set_uid(Some(about.uid()))
        .set_gid(Some(about.gid()));
    Ok(device)
}

/// A system call filter from a file, as the OCI specification writes them.
pub(crate) fn seccomp_profile(path: &Path) -> Result<LinuxSeccomp> {
    let text = fs::read(path).map_err(Error::io(format!("seccomp profile {}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::InvalidSpec(format!("seccomp profile {}: {error}", path.display())))
}

/// All of the host's devices, for privileged containers.
pub(crate) fn devices() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let skip = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];
            match entry.file_type() {
                _ if folder == Path::new("/dev") && skip.iter().any(|name| entry.file_name() == *name) => {}
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                    found.extend(device(&path, &path));
                }
                _ => {}
            }
        }
    }
    found
}

/// The user files of an unpacked image, read from its layers without mounting it.
pub(crate) struct Layers {
    /// Directories, the uppermost first.
    folders: Vec<PathBuf>,
}

impl Layers {
    /// From the mounts of its snapshot: overlay's upper and lower directories, or the bound directory.
    pub(crate) fn new(mounts: &[containerd_client::types::Mount]) -> Self {
        let mut folders = Vec::new();
        for mount in mounts {
            if mount.r#type == "bind" {
                folders.push(PathBuf::from(&mount.source));
            }
            for option in &mount.options {
                if let Some(upper) = option.strip_prefix("upperdir=") {
                    folders.insert(0, PathBuf::from(upper));
                } else if let Some(lower) = option.strip_prefix("lowerdir=") {
                    folders.extend(lower.split(':').map(PathBuf::from));
                }
            }
        }
        Self { folders }
    }

    /// The file as the container sees it; empty if it has none.
    fn read(&self, path: &str) -> String {
        for folder in &self.folders {
            match read_below(folder, path) {
                Ok(text) => return text,
                Err(nix::Error::ENOENT) => {}
                // A whiteout (or something that is no file) hides the layers below.
                Err(_) => break,
            }
        }
        String::new()
    }
}

impl Files for Layers {
    fn passwd(&self) -> String {
        self.read("etc/passwd")
    }

    fn group(&self) -> String {
        self.read("etc/group")
    }
}

/// Reads a file of an image with the image's directory as the root: its links cannot lead out.
fn read_below(folder: &Path, path: &str) -> nix::Result<String> {
    let root = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = fs::File::from(openat2(&root, path, how)?);
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Err(nix::Error::EINVAL);
    }
    let mut text = Vec::new();
    file.take(limits::USER_FILE).read_to_end(&mut text).map_err(|_| nix::Error::EIO)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

//! The few facts of processes and mounts that only the kernel has.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// A descriptor that becomes readable when the process has ended.
pub(crate) fn pidfd(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = open_pidfd(pid)?;
    // SAFETY: an OwnedFd always tells the same descriptor and closes it only when dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// Signals a process if it is in a cgroup whose path ends so; `false`: it is not, or there is no such process any more. A
/// number that another process got meanwhile is never signalled.
pub(crate) fn signal_member(pid: Pid, cgroup: &str, signal: i32) -> io::Result<bool> {
    let fd = match open_pidfd(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        other => other?,
    };
    // Read after the descriptor was opened: if the process ended in between, the signal below finds nobody.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if !groups.lines().any(|line| line.ends_with(cgroup)) {
        return Ok(false);
    }
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; without a siginfo the call reads no memory of ours.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, info, 0) };
    match sent {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            error => Err(error),
        },
    }
}

/// Whether the kernel would drop a signal to this process: the first of its namespace gets only those that it catches.
pub(crate) fn is_deaf(pid: Pid, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let first = field("NSpid:").split_whitespace().last() == Some("1");
    let caught = u64::from_str_radix(field("SigCgt:").trim(), 16).unwrap_or(u64::MAX);
    first && (1..=64).contains(&signal) && caught & (1 << (signal - 1)) == 0
}

/// How a process has ended, as a shell tells it, from a descriptor that was opened before its end: while nobody has reaped it
/// by its `stat`, afterwards by the descriptor. `None` on kernels before 6.15, which tell the latter to the parent alone.
pub(crate) fn exit_code(pid: Pid, pidfd: &impl AsRawFd) -> Option<u32> {
    // Read before the descriptor says whether the number was still this process's.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let status = reaped(pidfd).or_else(|| {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
        // proc_pid_stat(5): the third field is the state, the last one the status to wait for.
        fields.last()?.parse().ok().filter(|_: &i32| fields.first() == Some(&"Z"))
    })?;
    let signal = (status & 0x7f).cast_unsigned();
    Some(if signal == 0 { (status >> 8 & 0xff).cast_unsigned() } else { 128 + signal })
}

/// The status of a process that has ended and was reaped.
fn reaped(pidfd: &impl AsRawFd) -> Option<i32> {
    /// `PIDFD_GET_INFO`, for a structure of 64 bytes.
    const GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    /// `PIDFD_INFO_EXIT`, wanted and given.
    const EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the structure is live and has the size that the request's number carries.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    (done == 0 && info.mask & EXIT != 0).then_some(info.status)
}

fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Every process with its command line (arguments end with a zero byte).
pub(crate) fn processes() -> impl Iterator<Item = (Pid, Vec<u8>)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
        Some((pid, command_line(pid)?))
    })
}

/// A process's command line (arguments end with a zero byte).
pub(crate) fn command_line(pid: Pid) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/cmdline")).ok()
}

/// Sends a signal to a process, which may have ended by itself.
pub(crate) fn signal(pid: Pid, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(pid, signal);
}

/// The processes whose parent this is.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

/// Mount points at or below a directory, the innermost first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escape, character);
    }
    PathBuf::from(plain)
}

/// A descriptor that our parent left open for us.
pub(crate) fn inherited(fd: i32) -> io::Result<fs::File> {
    // SAFETY: fcntl with F_GETFD touches no memory; it tells whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the logger, whose only thread asks for each number once, owns what its parent gave it.
    Ok(unsafe { fs::File::from_raw_fd(fd) })
}

/// Wakes whoever waits for a change in a directory.
pub(crate) struct Watch(AsyncFd<fs::File>);

impl Watch {
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, flags)?;
        let events = fs::File::from(OwnedFd::from(inotify));
        // SAFETY: a File always tells the same descriptor and closes it only when dropped.
        unsafe { AsyncFd::register(events) }.map(Self).map_err(Into::into)
    }

    /// Returns when something has changed since the last call.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut events = [0; 4096];
        while matches!(self.0.get_ref().read(&mut events), Ok(1..)) {}
        ready.clear_ready();
        Ok(())
    }
}

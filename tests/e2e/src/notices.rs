//! What daemons tell by systemd's protocol, and their logs.

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::Path,
    process::{Child, Command},
    sync::atomic::{AtomicI32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::{
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

/// How often it is looked whether the daemon still runs.
const LOOK: Duration = Duration::from_millis(250);
/// Lines of a log that are shown.
const TAIL: usize = 25;

/// Where the first socket that was kept stands in the next daemon: nodes that start at the same time have places of their own.
const FIRST: i32 = 700;
const PLACES: i32 = 16;
static STARTS: AtomicI32 = AtomicI32::new(0);
/// Sockets that one message brings at most.
const SOCKETS: usize = 16;

/// A socket that a daemon tells its state, named to it as `NOTIFY_SOCKET`; and the sockets that it keeps for the next one.
pub struct Notices {
    socket: UnixDatagram,
    kept: Vec<OwnedFd>,
}

impl Notices {
    /// Listens at `path`, in place of who listened there before.
    pub fn at(path: &Path) -> Result<Self> {
        // Left by the daemon before.
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self { socket, kept: Vec::new() })
    }

    /// Waits until the daemon says that it is ready. It goes on when it was not in time.
    pub fn ready(&mut self, daemon: &mut Child, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.receive().is_ok_and(|text| text.starts_with(b"READY=1")) {
                return Ok(());
            }
            if let Some(status) = daemon.try_wait()? {
                bail!("it ended with {status}");
            }
        }
        bail!("it was not ready in time")
    }

    /// One message. Sockets that come with it are kept, as `FileDescriptorStoreMax=` says; of those that are known already
    /// nothing more is kept.
    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        bytes.truncate(length);
        if bytes.starts_with(b"FDSTOREREMOVE=1") {
            self.kept.clear();
        }
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(sockets) = message else { continue };
            for socket in sockets {
                if !self.kept.iter().any(|known| same(known, &socket)) {
                    self.kept.push(socket);
                }
            }
        }
        Ok(bytes)
    }

    /// Passes the sockets that are kept to the next daemon; they must live until it runs.
    pub fn pass_on(mut self, command: &mut Command) -> Result<Vec<OwnedFd>> {
        self.socket.set_nonblocking(true)?;
        while self.receive().is_ok() {}
        let first = FIRST + STARTS.fetch_add(1, Ordering::Relaxed) % PLACES * SOCKETS as i32;
        let mut passed = Vec::new();
        for (number, socket) in (first..).zip(&self.kept) {
            let socket = fcntl_dupfd_cloexec(socket, number)?;
            ensure!(socket.as_raw_fd() == number, "the number {number} is taken");
            fcntl_setfd(&socket, FdFlags::empty())?;
            passed.push(socket);
        }
        command.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDS_FIRST_FD", first.to_string());
        Ok(passed)
    }
}

fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let inode = |socket: &OwnedFd| rustix::fs::fstat(socket).map(|stat| stat.st_ino).ok();
    inode(one) == inode(other)
}

/// The end of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

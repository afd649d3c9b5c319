//! Keeps containers' loggers alive: a logger that is killed is replaced, and its container notices nothing.
//!
//! The shim gives a logger the only read ends of the container's pipes: with it they would go, and the container's next line
//! would end the container. So we hold them too, unread, and give them to the next logger. Lines that the dead one had read
//! but not written are lost.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use crate::runtime::Inner;
use crate::{ContainerState, Result, Runtime, Status, exec, limits, sys};

/// Follows a running container's logger until the container's end.
pub(crate) fn keep(runtime: &Runtime, id: &str) {
    let (weak, id) = (Arc::downgrade(&runtime.inner), id.to_owned());
    let mut next = Held::of(&runtime.inner, &id);
    tokio::spawn(async move {
        let mut pause = limits::LOGGER_FIRST;
        while let Some(held) = next {
            let begun = Instant::now();
            if held.ended.readable().await.is_err() {
                return;
            }
            if begun.elapsed() >= limits::RESTART_RESET {
                pause = limits::LOGGER_FIRST;
            }
            loop {
                let Some(inner) = weak.upgrade() else { return };
                let runtime = Runtime { inner };
                match again(&runtime, &id, &held).await {
                    Ok(true) => {
                        next = Held::of(&runtime.inner, &id);
                        break;
                    }
                    Ok(false) => return,
                    Err(error) => tracing::warn!(container = id, %error, "nobody reads a container's output"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(limits::RECONNECT);
            }
        }
    });
}

/// A logger's pipes.
struct Held {
    ended: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
    stdout: File,
    stderr: File,
}

impl Held {
    /// `None` where there is nothing to hold: a logger without a socket, one that has just gone, or one that reads fifos,
    /// which the shim holds.
    fn of(inner: &Inner, id: &str) -> Option<Held> {
        let (_open, path) = exec::socket(&inner.config, id).ok()?;
        let peer = getsockopt(&UnixStream::connect(path).ok()?, PeerCredentials).ok()?;
        let pid = Pid::from_raw(peer.pid());
        let ended = sys::pidfd(pid).ok()?;
        // It listens still: the number was not given to another process.
        let (_open, path) = exec::socket(&inner.config, id).ok()?;
        let same = getsockopt(&UnixStream::connect(path).ok()?, PeerCredentials).ok()?;
        if same.pid() != peer.pid() {
            return None;
        }
        let hold = |fd: u32| {
            let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
            let is_pipe = std::fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"));
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_NONBLOCK);
            is_pipe.then(|| options.open(&path).ok()).flatten()
        };
        Some(Held { ended, stdout: hold(3)?, stderr: hold(4)? })
    }
}

/// Starts the next logger if the container runs; `false`: it does not.
async fn again(runtime: &Runtime, id: &str, held: &Held) -> Result<bool> {
    let state = runtime.container(id).await?;
    let Some(ContainerState { status: Status::Running { .. } | Status::Paused { .. }, log_path, .. }) = state else {
        return Ok(false);
    };
    tracing::warn!(container = id, "a container's logger is gone; starting another");
    let ours = |file: &File| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    exec::start_logger(&runtime.inner.config, id, &log_path, [ours(&held.stdout), ours(&held.stderr)]).await?;
    Ok(true)
}

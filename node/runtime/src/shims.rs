//! containerd's shims as processes: found by their command lines, and ended where nobody else does.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::{Result, Runtime, limits, sys};

/// The value that follows a flag on a command line.
fn value<'a>(line: &'a [u8], flag: &str) -> Option<&'a OsStr> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.windows(2).find(|pair| pair[0] == flag.as_bytes()).map(|pair| OsStr::from_bytes(pair[1]))
}

/// Shims started for the containerd of this socket, with their command lines.
fn lines(socket: &Path) -> impl Iterator<Item = (Pid, Vec<u8>)> {
    sys::processes().filter(move |(_, line)| {
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"containerd-shim") && value(line, "-address") == Some(socket.as_os_str())
    })
}

/// Shims started for the containerd of this socket.
pub(crate) fn of(socket: &Path) -> Vec<Pid> {
    lines(socket).map(|(pid, _)| pid).collect()
}

/// Ends the shim of one container; none is success.
pub(crate) fn end(socket: &Path, id: &str) {
    let shims = lines(socket).filter(|(_, line)| value(line, "-id") == Some(id.as_ref()));
    shims.for_each(|(pid, _)| sys::signal(pid, Signal::SIGKILL));
}

/// Ends shims that were being started when the containerd before ended: the next one finds no bundle that tells of them, and
/// they would wait for its calls for ever.
pub(crate) fn end_forsaken(dir: &Path, shims: &[Pid]) {
    let bundles = dir.join("state/io.containerd.runtime.v2.task");
    end_lost(shims, "a shim was left by containerd's end", |namespace, id| bundles.join(namespace).join(id).exists());
}

/// Ends those whose namespace and id nobody knows. One that a container lives under has a child.
fn end_lost(shims: &[Pid], why: &str, known: impl Fn(&OsStr, &OsStr) -> bool) {
    for &pid in shims {
        let Some(line) = sys::command_line(pid) else { continue };
        let (Some(namespace), Some(id)) = (value(&line, "-namespace"), value(&line, "-id")) else { continue };
        if !known(namespace, id) && sys::children(pid).is_empty() {
            tracing::warn!(%pid, container = %id.display(), "{why}; ending it");
            sys::signal(pid, Signal::SIGKILL);
        }
    }
}

impl Runtime {
    /// Looks a while after containers were removed whether their shims have gone, too: containerd has let go of one that hangs
    /// at its end, which would stay for ever.
    pub(crate) fn see_shims_off(&self) {
        if self.inner.seeing_off.swap(true, Ordering::SeqCst) {
            return;
        }
        let weak = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(limits::SHIM_END).await;
            let Some(inner) = weak.upgrade() else { return };
            // What is removed from now on is looked for later.
            inner.seeing_off.store(false, Ordering::SeqCst);
            if let Err(error) = (Runtime { inner }).end_left_shims().await {
                tracing::warn!(%error, "shims that hang may be left");
            }
        });
    }

    async fn end_left_shims(&self) -> Result<()> {
        let config = &self.inner.config;
        // Before the containers: the shim of one that comes now is not among them.
        let shims = of(&config.socket);
        let ids = self.ids().await?;
        end_lost(&shims, "a shim stays after its container", |namespace, id| {
            namespace != OsStr::new(&config.namespace) || id.to_str().is_some_and(|id| ids.contains(id))
        });
        Ok(())
    }
}

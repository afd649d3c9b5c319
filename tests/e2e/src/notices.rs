//! What daemons tell by systemd's protocol, and their logs.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often it is looked whether the daemon still runs.
const LOOK: Duration = Duration::from_millis(250);
/// Lines of a log that are shown.
const TAIL: usize = 25;

/// A socket that a daemon tells its state, named to it as `NOTIFY_SOCKET`.
pub struct Notices(UnixDatagram);

impl Notices {
    /// Listens at `path`, in place of who listened there before.
    pub fn at(path: &Path) -> Result<Self> {
        // Left by the daemon before.
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self(socket))
    }

    /// Waits until the daemon says that it is ready. It goes on when it was not in time.
    pub fn ready(&self, daemon: &mut Child, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 256];
        while Instant::now() < deadline {
            if let Ok(length) = self.0.recv(&mut buffer)
                && buffer[..length].starts_with(b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = daemon.try_wait()? {
                bail!("it ended with {status}");
            }
        }
        bail!("it was not ready in time")
    }
}

/// The end of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

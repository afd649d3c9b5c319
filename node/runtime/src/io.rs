//! The streams of an exec'd process or an attached container.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Result, TerminalSize};

/// A process's output.
pub type Output = Pin<Box<dyn AsyncRead + Send>>;
/// A process's input; shutting it down (or dropping it) gives the process end of file.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A running exec or an attached container. Dropping it ends the streams, not the process.
pub struct Process {
    /// Present when asked for.
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
}

impl Process {
    /// Sets the terminal's size.
    pub async fn resize(&self, _size: TerminalSize) -> Result<()> {
        Err(crate::Error::NotFound("process".into()))
    }

    /// Waits for the end and returns the exit code (128 + signal). May be called while streams are being read.
    pub async fn wait(&self) -> Result<i32> {
        Err(crate::Error::NotFound("process".into()))
    }

    /// Sends SIGKILL to an exec'd process; an attached container is left alone.
    pub async fn kill(&self) -> Result<()> {
        Err(crate::Error::NotFound("process".into()))
    }
}

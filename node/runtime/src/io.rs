//! The streams of an exec'd process or an attached container.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use containerd_client::services::v1::{CloseIoRequest, KillRequest, ResizePtyRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::error::or_gone;
use crate::{Error, Result, Runtime, TerminalSize};

/// A process's output.
pub type Output = Pin<Box<dyn AsyncRead + Send>>;
/// A process's input; shutting it down (or dropping it) gives the process end of file.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A running exec or an attached container. Dropping it ends the streams, not the process.
pub struct Process {
    /// Present when asked for.
    pub stdin: Option<Input>,
    /// Present when asked for; ends with the process (later if something it left behind holds it open).
    pub stdout: Option<Output>,
    /// Present when asked for, never with a terminal.
    pub stderr: Option<Output>,
    pub(crate) of: Target,
    pub(crate) exit: Exit,
}

/// What the controls act on.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Runtime,
    pub(crate) container: String,
    /// Empty for the container's first process.
    pub(crate) exec: String,
}

/// Where the exit code comes from.
pub(crate) enum Exit {
    Exec(watch::Receiver<Option<Result<i32, String>>>),
    Container,
}

impl Process {
    /// Sets the terminal's size.
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.of.resize(size).await
    }

    /// Waits for the end and returns the exit code (128 + signal). May be called while streams are being read.
    pub async fn wait(&self) -> Result<i32> {
        match &self.exit {
            Exit::Container => self.of.runtime.await_exit(&self.of.container).await.map(|exit| exit.code),
            Exit::Exec(exit) => {
                let mut exit = exit.clone();
                let ended = exit.wait_for(Option::is_some).await;
                let ended = ended.map_err(|_| Error::NotFound(self.of.exec.clone()))?.clone();
                ended.unwrap_or_else(|| Err("no exit code".into())).map_err(Error::Containerd)
            }
        }
    }

    /// Sends SIGKILL to an exec'd process; an attached container is left alone.
    pub async fn kill(&self) -> Result<()> {
        if self.of.exec.is_empty() { Ok(()) } else { self.of.kill().await }
    }

    /// The same controls for another task.
    pub fn terminal(&self) -> Terminal {
        Terminal(self.of.clone())
    }
}

/// Sets the size of a terminal while the [`Process`] itself is in use elsewhere.
#[derive(Clone)]
pub struct Terminal(Target);

impl Terminal {
    /// Sets the terminal's size.
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.0.resize(size).await
    }
}

impl Target {
    async fn resize(&self, size: TerminalSize) -> Result<()> {
        let client = &self.runtime.inner.client;
        let request = ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            width: size.columns.into(),
            height: size.rows.into(),
        };
        client.tasks().resize_pty(client.call(request)).await.map(drop).map_err(client.failed(&self.container))
    }

    async fn kill(&self) -> Result<()> {
        let client = &self.runtime.inner.client;
        let request = KillRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            signal: libc::SIGKILL.cast_unsigned(),
            all: false,
        };
        or_gone(client.tasks().kill(client.call(request)).await.map(drop).map_err(client.failed(&self.exec)))
    }

    /// Lets the shim close its end of stdin, so that ours is the last.
    async fn close_stdin(self) {
        let client = &self.runtime.inner.client;
        let request = CloseIoRequest { container_id: self.container, exec_id: self.exec, stdin: true };
        if let Err(status) = client.tasks().close_io(client.call(request)).await
            && status.code() != tonic::Code::NotFound
        {
            tracing::debug!(%status, "stdin not closed");
        }
    }
}

/// The write end of a process's stdin.
pub(crate) struct Stdin {
    pipe: Option<pipe::Sender>,
    /// Whom to tell about the end of input; nobody for a terminal, whose programs see it in the data.
    end: Option<Target>,
}

impl Stdin {
    pub(crate) fn new(pipe: pipe::Sender, end: Option<Target>) -> Self {
        Self { pipe: Some(pipe), end }
    }

    fn close(&mut self) {
        self.pipe = None;
        if let Some(target) = self.end.take()
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            handle.spawn(target.close_stdin());
        }
    }

    fn pipe(&mut self) -> io::Result<Pin<&mut pipe::Sender>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.pipe() {
            Ok(pipe) => pipe.poll_write(cx, data),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.close();
    }
}

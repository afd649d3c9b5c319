//! A client of exec or attach, whatever it speaks: what it says comes in by one queue, what it is to hear goes out by
//! another. Each way has its own task, so that a client that sends without reading stops only itself.

use bytes::Bytes;
use serde_json::Value;
use sluice_runtime::TerminalSize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::limits;

/// Which of a process's streams bytes belong to; the numbers are those of the channel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout = 1,
    Stderr = 2,
}

/// The streams that a request asks for.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    /// Standard input ends.
    EndStdin,
    Resize(TerminalSize),
    /// Nothing we know; ignored.
    Other,
}

/// What a client is to hear.
pub(super) enum Output {
    Data(Channel, Bytes),
    /// How it ended, as a Status; nothing comes after it.
    End(Value),
}

/// A client; dropping it hangs up.
pub(super) struct Peer {
    /// Ends when the client leaves.
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) outputs: mpsc::Sender<Output>,
    writer: JoinHandle<()>,
}

impl Peer {
    /// Starts both ways; the reader is ended when the writer is done.
    pub(super) fn start<R, W>(
        reader: impl FnOnce(mpsc::Sender<Input>) -> R,
        writer: impl FnOnce(mpsc::Receiver<Output>) -> W,
    ) -> Peer
    where
        R: Future<Output = ()> + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let (said, inputs) = mpsc::channel(limits::STREAM_QUEUE);
        let (outputs, heard) = mpsc::channel(limits::STREAM_QUEUE);
        let reader = tokio::spawn(reader(said));
        let writing = writer(heard);
        let writer = tokio::spawn(async move {
            writing.await;
            reader.abort();
        });
        Peer { inputs, outputs, writer }
    }

    /// Says how it ended, and waits until that is on its way.
    pub(super) async fn end(self, status: Value) {
        // A client that left does not need to be told.
        let _ = self.outputs.send(Output::End(status)).await;
        let _ = self.writer.await;
    }
}

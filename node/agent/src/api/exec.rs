//! `/exec` and `/attach`: joins a WebSocket's channels to a process's streams.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use sluice_runtime::{ExecSpec, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::channel::{self, Dialect, Input};
use super::reply::{Reply, error};
use super::upgrade::{Socket, websocket};
use super::{Shared, flag, query};
use crate::pod::worker::View;

/// Runs a command in a container.
pub(super) async fn exec(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Reply> {
    let text = request.uri().query().unwrap_or_default().to_owned();
    let argv: Vec<String> = query(&text, "command").collect();
    if argv.is_empty() {
        return error(StatusCode::BAD_REQUEST, "you must specify at least one command for the container");
    }
    let streams = Streams::asked(&text);
    if !streams.any() {
        return error(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    let id = match running(shared, namespace, pod, container) {
        Ok((id, _)) => id,
        Err((status, message)) => return error(status, &message),
    };
    let runtime = shared.node.runtime.clone();
    websocket(request, &channel::PROTOCOLS, move |socket, protocol| async move {
        let spec = ExecSpec {
            argv,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
            size: None,
        };
        let process = runtime.exec(&id, spec).await;
        join(socket, Dialect::of(protocol), streams, process, Ending::Exit).await;
    })
}

/// Joins a running container's own streams.
pub(super) async fn attach(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Reply> {
    let text = request.uri().query().unwrap_or_default().to_owned();
    let streams = Streams::asked(&text);
    if !streams.any() {
        return error(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    let (id, tty) = match running(shared, namespace, pod, container) {
        Ok(found) => found,
        Err((status, message)) => return error(status, &message),
    };
    let runtime = shared.node.runtime.clone();
    websocket(request, &channel::PROTOCOLS, move |socket, protocol| async move {
        let process = runtime.attach(&id).await;
        join(socket, Dialect::of(protocol), Streams { tty, ..streams }, process, Ending::Detach).await;
    })
}

#[derive(Clone, Copy)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn asked(text: &str) -> Streams {
        Streams {
            stdin: flag(text, &["input", "stdin"]),
            stdout: flag(text, &["output", "stdout"]),
            stderr: flag(text, &["error", "stderr"]),
            tty: flag(text, &["tty"]),
        }
    }

    fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// What the error channel says at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The exit code.
    Exit,
    /// Success, whatever the container's end was.
    Detach,
}

/// Id of the running container, and whether it has a terminal.
fn running(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<(String, bool), (StatusCode, String)> {
    let view = view(shared, namespace, pod)?;
    let found = view.containers.iter().find(|c| c.name == container);
    let id = found.and_then(|c| c.id.clone());
    let tty = view.pod.container(container).is_some_and(|c| c.tty);
    id.map(|id| (id, tty)).ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))
}

/// What is known of a pod of this node.
pub(super) fn view(shared: &Shared, namespace: &str, pod: &str) -> Result<View, (StatusCode, String)> {
    match shared.workers.by_name(namespace, pod) {
        Some(handle) => Ok(handle.view.borrow().clone()),
        None => {
            Err((StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found in namespace \"{namespace}\" on this node")))
        }
    }
}

async fn join(
    socket: Socket,
    dialect: Dialect,
    streams: Streams,
    process: sluice_runtime::Result<Process>,
    ending: Ending,
) {
    let (mut sink, mut source) = socket.split();
    let mut process = match process {
        Ok(process) => process,
        Err(e) => {
            let message = format!("error executing command in container: {e}");
            return finish(&mut sink, dialect, &channel::failure_status(&message)).await;
        }
    };
    let (out, mut messages) = mpsc::channel::<Bytes>(8);
    // Upstream: an empty message says that the streams are joined.
    let first = if streams.stdout { channel::STDOUT } else { channel::ERROR };
    let _ = out.send(channel::encode(first, &[])).await;
    let mut pumps = Vec::new();
    for (channel, stream, wanted) in [
        (channel::STDOUT, process.stdout.take(), streams.stdout),
        (channel::STDERR, process.stderr.take(), streams.stderr),
    ] {
        if let (Some(stream), true) = (stream, wanted) {
            pumps.push(tokio::spawn(pump(stream, channel, out.clone())));
        }
    }
    drop(out);
    let mut stdin = process.stdin.take().filter(|_| streams.stdin);
    let mut gone = false;
    let terminal = process.terminal();
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                // All output streams have ended.
                None => break,
                Some(message) => if sink.send(dialect.message(message)).await.is_err() {
                    gone = true;
                    break;
                },
            },
            message = source.next() => match message {
                Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => match dialect.input(&message) {
                    Input::Stdin(data) => {
                        if let Some(pipe) = &mut stdin
                            && (pipe.write_all(&data).await.is_err() || pipe.flush().await.is_err())
                        {
                            stdin = None;
                        }
                    }
                    Input::EndStdin => {
                        if let Some(mut pipe) = stdin.take() {
                            // The reader may be gone already.
                            let _ = pipe.shutdown().await;
                        }
                    }
                    Input::Resize(size) => {
                        if let Err(error) = terminal.resize(size).await {
                            tracing::debug!(%error, "terminal not resized");
                        }
                    }
                    Input::Other => {}
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    gone = true;
                    break;
                }
                Some(Ok(_)) => {}
            },
        }
    }
    drop(stdin);
    if gone {
        for pump in pumps {
            pump.abort();
        }
        if ending == Ending::Exit && streams.tty {
            // The terminal's user hung up.
            let _ = controlled(move |h| h.block_on(process.kill())).await;
        }
        return;
    }
    let status = match ending {
        Ending::Detach => channel::exit_status(0),
        Ending::Exit => match controlled(move |h| h.block_on(process.wait())).await {
            Ok(code) => channel::exit_status(code),
            Err(e) => channel::failure_status(&format!("error executing command in container: {e}")),
        },
    };
    finish(&mut sink, dialect, &status).await;
}

/// A process's controls are used on one thread.
async fn controlled<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Handle) -> sluice_runtime::Result<T> + Send + 'static,
) -> sluice_runtime::Result<T> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || work(handle)).await;
    done.unwrap_or_else(|e| Err(sluice_runtime::Error::Containerd(e.to_string())))
}

async fn pump(mut stream: sluice_runtime::Output, channel: u8, out: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if out.send(channel::encode(channel, &buffer[..n])).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn finish(sink: &mut SplitSink<Socket, Message>, dialect: Dialect, status: &serde_json::Value) {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // A client that left does not need to be told.
    if let Some(word) = dialect.last_word(status) {
        let _ = sink.send(dialect.message(channel::encode(channel::ERROR, word.as_bytes()))).await;
    }
    let _ = sink.send(Message::Close(Some(close))).await;
    let _ = sink.close().await;
}

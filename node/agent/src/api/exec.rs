//! `/exec` and `/attach`: joins a client to a process's streams.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use sluice_runtime::{ExecSpec, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::channel::{self, Dialect};
use super::peer::{Channel, Input, Output, Peer, Streams};
use super::reply::{Reply, error};
use super::session::Session;
use super::upgrade::{Connection, upgrade};
use super::{Shared, flag, query, remote};
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
    upgrade(request, &channel::PROTOCOLS, move |connection, protocol| async move {
        let Some(peer) = meet(connection, protocol, streams).await else { return };
        let spec = ExecSpec {
            argv,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
            size: None,
        };
        let process = runtime.exec(&id, spec).await;
        join(peer, streams, process, Ending::Exit).await;
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
    upgrade(request, &channel::PROTOCOLS, move |connection, protocol| async move {
        let Some(peer) = meet(connection, protocol, streams).await else { return };
        let process = runtime.attach(&id).await;
        join(peer, Streams { tty, ..streams }, process, Ending::Detach).await;
    })
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

/// The client, in whatever it speaks; none when it does not open its streams.
async fn meet(connection: Connection, protocol: &str, streams: Streams) -> Option<Peer> {
    let dialect = Dialect::of(protocol);
    match connection {
        Connection::WebSocket(socket) => Some(channel::peer(*socket, dialect, streams)),
        spdy @ Connection::Spdy(_) => remote::peer(Session::over(spdy), dialect, streams).await,
    }
}

async fn join(mut peer: Peer, streams: Streams, process: sluice_runtime::Result<Process>, ending: Ending) {
    let mut process = match process {
        Ok(process) => process,
        Err(e) => {
            let message = format!("error executing command in container: {e}");
            return peer.end(channel::failure_status(&message)).await;
        }
    };
    let mut pumps = JoinSet::new();
    for (channel, stream, wanted) in [
        (Channel::Stdout, process.stdout.take(), streams.stdout),
        (Channel::Stderr, process.stderr.take(), streams.stderr),
    ] {
        if let (Some(stream), true) = (stream, wanted) {
            pumps.spawn(pump(stream, channel, peer.outputs.clone()));
        }
    }
    let mut stdin = process.stdin.take().filter(|_| streams.stdin);
    let terminal = process.terminal();
    let left = loop {
        tokio::select! {
            ended = pumps.join_next() => if ended.is_none() {
                break false;
            },
            input = peer.inputs.recv() => match input {
                Some(Input::Stdin(data)) => if let Some(pipe) = &mut stdin
                    && (pipe.write_all(&data).await.is_err() || pipe.flush().await.is_err())
                {
                    stdin = None;
                },
                Some(Input::EndStdin) => if let Some(mut pipe) = stdin.take() {
                    // The reader may be gone already.
                    let _ = pipe.shutdown().await;
                },
                Some(Input::Resize(size)) => if let Err(error) = terminal.resize(size).await {
                    tracing::debug!(%error, "terminal not resized");
                },
                Some(Input::Other) => {}
                None => break true,
            },
        }
    };
    drop(stdin);
    if left {
        pumps.abort_all();
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
    peer.end(status).await;
}

/// A process's controls are used on one thread.
async fn controlled<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Handle) -> sluice_runtime::Result<T> + Send + 'static,
) -> sluice_runtime::Result<T> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || work(handle)).await;
    done.unwrap_or_else(|e| Err(sluice_runtime::Error::Containerd(e.to_string())))
}

async fn pump(mut stream: sluice_runtime::Output, channel: Channel, out: mpsc::Sender<Output>) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                let data = Bytes::copy_from_slice(&buffer[..n]);
                if out.send(Output::Data(channel, data)).await.is_err() {
                    return;
                }
            }
        }
    }
}

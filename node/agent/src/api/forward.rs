//! `/portForward`: the plain WebSocket protocol (`portforward.k8s.io`, two channels per port), kubectl's tunnel of SPDY
//! through a WebSocket, and SPDY itself.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::channel::encode;
use super::dial::dial;
use super::exec::view;
use super::reply::{Reply, error};
use super::session::Session;
use super::upgrade::{Connection, Protocols, Socket, upgrade};
use super::{Shared, query, tunnel};

const PROTOCOLS: Protocols = Protocols {
    websocket: &[tunnel::PROTOCOL, "v4.channel.k8s.io", "portforward.k8s.io", ""],
    spdy: &["portforward.k8s.io", ""],
};
/// Messages waiting for one connection.
const QUEUE: usize = 16;

/// Forwards ports of a pod.
pub(super) fn serve(shared: &Arc<Shared>, namespace: &str, pod: &str, request: Request<Incoming>) -> Response<Reply> {
    let view = match view(shared, namespace, pod) {
        Ok(view) => view,
        Err((status, message)) => return error(status, &message),
    };
    let netns = view.netns.clone();
    if !view.pod.spec.host_network && netns.is_none() {
        return error(StatusCode::BAD_REQUEST, &format!("pod {pod} is not running: it has no network yet"));
    }
    let text = request.uri().query().unwrap_or_default();
    let lists = query(text, "ports").chain(query(text, "port"));
    let ports: Result<Vec<u16>, _> = lists.flat_map(|l| l.split(',').map(str::parse).collect::<Vec<_>>()).collect();
    let Ok(ports) = ports else {
        return error(StatusCode::BAD_REQUEST, "a port is a number from 1 to 65535");
    };
    upgrade(request, &PROTOCOLS, move |connection, protocol| async move {
        match connection {
            Connection::WebSocket(socket) if protocol != tunnel::PROTOCOL => plain(*socket, netns, ports).await,
            spdy => tunnel::serve(Session::over(spdy), netns).await,
        }
    })
}

/// Every port has a data and an error channel, and says its number first on both.
async fn plain(socket: Socket, netns: Option<PathBuf>, ports: Vec<u16>) {
    let (mut sink, mut source) = socket.split();
    let (out, mut messages) = mpsc::channel::<Bytes>(QUEUE);
    let mut inputs: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
    for (i, port) in ports.iter().enumerate().take(usize::from(u8::MAX) / 2) {
        let data = u8::try_from(i * 2).unwrap_or(u8::MAX);
        for channel in [data, data + 1] {
            // The queue holds two messages for each of the first ports; the reader below is about to run.
            if sink.send(Message::Binary(encode(channel, &port.to_le_bytes()))).await.is_err() {
                return;
            }
        }
        let (input, received) = mpsc::channel(QUEUE);
        inputs.insert(data, input);
        tokio::spawn(one(netns.clone(), *port, data, received, out.clone()));
    }
    drop(out);
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                None => break,
                Some(message) => if sink.send(Message::Binary(message)).await.is_err() { return },
            },
            message = source.next() => match message {
                Some(Ok(Message::Binary(data))) => {
                    if let Some((channel, rest)) = data.split_first()
                        && let Some(input) = inputs.get(channel)
                        && input.send(Bytes::copy_from_slice(rest)).await.is_err()
                    {
                        inputs.remove(channel);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    // The client may have left.
    let _ = sink.close().await;
}

async fn one(
    netns: Option<PathBuf>,
    port: u16,
    channel: u8,
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Bytes>,
) {
    let stream = match dial(netns.as_deref(), port).await {
        Ok(stream) => stream,
        Err(e) => {
            let message = format!("error forwarding port {port} to pod: {e}");
            let _ = out.send(encode(channel + 1, message.as_bytes())).await;
            return;
        }
    };
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        while let Some(data) = input.recv().await {
            if writer.write_all(&data).await.is_err() {
                break;
            }
        }
    };
    let receiving = async {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(n) = reader.read(&mut buffer).await {
            if n == 0 || out.send(encode(channel, &buffer[..n])).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

//! Port-forward over SPDY, plain (older clients) or through a WebSocket (kubectl). For every connection the client opens an error stream and a data
//! stream with the same request id; the data stream is joined to a connection inside the pod's network.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::dial::dial;
use super::session::{REFUSED, Session, header};
use crate::limits;
use crate::spdy::Frame;

/// Kubectl's name of the tunnel.
pub(super) const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Messages waiting for each connection.
const QUEUE: usize = 32;

/// Serves one client until it leaves.
pub(super) async fn serve(mut session: Session, netns: Option<PathBuf>) {
    let mut tunnel = Tunnel { netns, out: session.outlet(), streams: HashMap::new(), errors: HashMap::new() };
    while let Some(frame) = session.next().await {
        tunnel.take(frame).await;
    }
}

struct Tunnel {
    netns: Option<PathBuf>,
    out: mpsc::Sender<Frame>,
    /// Data streams: what the client sends, an empty message for its end.
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    /// Error streams that wait for their data stream, by request id.
    errors: HashMap<String, u32>,
}

impl Tunnel {
    async fn say(&self, frame: Frame) {
        // A client that left does not need to be told.
        let _ = self.out.send(frame).await;
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, .. } => self.open(stream, &headers).await,
            Frame::Data { stream, fin, data } => {
                let Some(input) = self.streams.get(&stream) else { return };
                let size = u32::try_from(data.len()).unwrap_or_default();
                let mut gone = !data.is_empty() && input.send(data).await.is_err();
                if fin && !gone {
                    gone = input.send(Bytes::new()).await.is_err();
                }
                if gone || fin {
                    self.streams.remove(&stream);
                } else if size > 0 {
                    self.say(Frame::Window { stream, delta: size }).await;
                }
            }
            Frame::Reset { stream, .. } => {
                self.streams.remove(&stream);
                self.errors.retain(|_, s| *s != stream);
            }
            _ => {}
        }
    }

    async fn open(&mut self, stream: u32, headers: &[(String, String)]) {
        let id = header(headers, "requestid").unwrap_or_default().to_owned();
        let port = header(headers, "port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
        self.streams.retain(|_, input| !input.is_closed());
        let room = self.streams.len() + self.errors.len() < limits::PORT_FORWARD_STREAMS;
        match (header(headers, "streamtype"), port) {
            (Some("error"), Some(_)) if room => {
                self.errors.insert(id, stream);
                self.say(Frame::Reply { stream }).await;
            }
            (Some("data"), Some(port)) if room => {
                self.say(Frame::Reply { stream }).await;
                let (input, received) = mpsc::channel(QUEUE);
                self.streams.insert(stream, input);
                let error = self.errors.remove(&id);
                tokio::spawn(join(self.netns.clone(), port, stream, error, received, self.out.clone()));
            }
            _ => self.say(Frame::Reset { stream, status: REFUSED }).await,
        }
    }
}

/// Joins a data stream to a connection; both end together.
async fn join(
    netns: Option<PathBuf>,
    port: u16,
    stream: u32,
    error: Option<u32>,
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Frame>,
) {
    let connection = dial(netns.as_deref(), port).await;
    let failure = match connection {
        Err(e) => Some(format!("error forwarding port {port} to pod: dial tcp 127.0.0.1:{port}: {e}")),
        Ok(connection) => {
            let (mut reader, mut writer) = connection.into_split();
            let sending = async {
                while let Some(data) = input.recv().await {
                    if data.is_empty() {
                        // The client has said all it has to say; answers still come.
                        let _ = writer.shutdown().await;
                        return std::future::pending().await;
                    }
                    if writer.write_all(&data).await.is_err() {
                        return;
                    }
                }
            };
            let receiving = async {
                let mut buffer = vec![0; 32 * 1024];
                while let Ok(n) = reader.read(&mut buffer).await {
                    let data = Bytes::copy_from_slice(&buffer[..n]);
                    if n == 0 || out.send(Frame::Data { stream, fin: false, data }).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sending => {}
                () = receiving => {}
            }
            None
        }
    };
    if let Some(error) = error {
        let data = Bytes::from(failure.unwrap_or_default());
        let _ = out.send(Frame::Data { stream: error, fin: true, data }).await;
    }
    let _ = out.send(Frame::Data { stream, fin: true, data: Bytes::new() }).await;
}

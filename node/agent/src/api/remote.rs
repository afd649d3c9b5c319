//! Exec and attach over SPDY: one stream for each of error, stdin, stdout, stderr and resize, opened by the client
//! before anything is said.

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::channel::{self, Dialect};
use super::peer::{Channel, Input, Output, Peer, Streams};
use super::session::{REFUSED, Session, header};
use crate::limits;
use crate::spdy::Frame;

/// The client, once it has opened every stream that it asked for; none if it does not in time.
pub(super) async fn peer(mut session: Session, dialect: Dialect, wanted: Streams) -> Option<Peer> {
    let mut opened = Opened::default();
    let opening = async {
        while !opened.has(wanted, dialect) {
            let frame = session.next().await?;
            let Frame::Open { stream, headers, .. } = frame else {
                opened.early(frame)?;
                continue;
            };
            let name = header(&headers, "streamtype").unwrap_or_default();
            let answer = if opened.add(name, stream) {
                Frame::Reply { stream }
            } else {
                Frame::Reset { stream, status: REFUSED }
            };
            session.say(answer).await;
        }
        Some(())
    };
    tokio::time::timeout(limits::STREAMS_OPENED, opening).await.ok().flatten()?;
    let out = session.outlet();
    let ids = opened.ids;
    Some(Peer::start(move |inputs| read(session, opened, inputs), move |outputs| write(ids, dialect, outputs, out)))
}

/// Numbers of the streams, 0 for one that is not there: SPDY's first is 1.
#[derive(Clone, Copy, Default)]
struct Ids {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

#[derive(Default)]
struct Opened {
    ids: Ids,
    /// Frames that came before the last stream was opened.
    early: Vec<Frame>,
    /// The beginning of a size that has not come whole.
    size: Vec<u8>,
}

impl Opened {
    /// Remembers a stream; false for one that is unknown or there already.
    fn add(&mut self, name: &str, stream: u32) -> bool {
        let place = match name {
            "error" => &mut self.ids.error,
            "stdin" => &mut self.ids.stdin,
            "stdout" => &mut self.ids.stdout,
            "stderr" => &mut self.ids.stderr,
            "resize" => &mut self.ids.resize,
            _ => return false,
        };
        let new = *place == 0;
        if new {
            *place = stream;
        }
        new
    }

    fn has(&self, wanted: Streams, dialect: Dialect) -> bool {
        let Ids { error, stdin, stdout, stderr, resize } = self.ids;
        [
            (true, error),
            (wanted.stdin, stdin),
            (wanted.stdout, stdout),
            (wanted.stderr && !wanted.tty, stderr),
            (wanted.tty && dialect.resizes(), resize),
        ]
        .iter()
        .all(|(needed, id)| !needed || *id != 0)
    }

    /// Keeps a frame for later; none when a client says too much before it has opened its streams.
    fn early(&mut self, frame: Frame) -> Option<()> {
        self.early.push(frame);
        (self.early.len() <= limits::SPDY_QUEUE).then_some(())
    }

    /// What a frame means.
    fn inputs(&mut self, frame: Frame) -> Vec<Input> {
        match frame {
            Frame::Data { stream, fin, data } if stream == self.ids.stdin => {
                let said = (!data.is_empty()).then_some(Input::Stdin(data));
                said.into_iter().chain(fin.then_some(Input::EndStdin)).collect()
            }
            Frame::Reset { stream, .. } if stream == self.ids.stdin => vec![Input::EndStdin],
            Frame::Data { stream, data, .. } if stream == self.ids.resize => self.sizes(&data),
            _ => Vec::new(),
        }
    }

    /// Sizes are JSON objects one after the other, cut anywhere.
    fn sizes(&mut self, data: &[u8]) -> Vec<Input> {
        self.size.extend_from_slice(data);
        let mut objects = serde_json::Deserializer::from_slice(&self.size).into_iter::<Value>();
        let mut inputs = Vec::new();
        while let Some(Ok(object)) = objects.next() {
            inputs.extend(channel::size(&object).map(Input::Resize));
        }
        let used = objects.byte_offset();
        self.size.drain(..used);
        self.size.truncate(limits::TERMINAL_SIZE);
        inputs
    }
}

async fn read(mut session: Session, mut opened: Opened, inputs: mpsc::Sender<Input>) {
    let early = std::mem::take(&mut opened.early);
    let mut waiting = early.into_iter();
    loop {
        let frame = match waiting.next() {
            Some(frame) => Some(frame),
            None => session.next().await,
        };
        let Some(frame) = frame else { return };
        let window = match &frame {
            Frame::Data { stream, data, fin: false } if !data.is_empty() => Some((*stream, data.len())),
            _ => None,
        };
        for input in opened.inputs(frame) {
            if inputs.send(input).await.is_err() {
                return;
            }
        }
        if let Some((stream, read)) = window {
            session.say(Frame::Window { stream, delta: u32::try_from(read).unwrap_or_default() }).await;
        }
    }
}

async fn write(ids: Ids, dialect: Dialect, mut outputs: mpsc::Receiver<Output>, out: mpsc::Sender<Frame>) {
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Data(channel, data) => {
                let stream = match channel {
                    Channel::Stdout => ids.stdout,
                    Channel::Stderr => ids.stderr,
                };
                if stream != 0 && out.send(Frame::Data { stream, fin: false, data }).await.is_err() {
                    return;
                }
            }
            Output::End(status) => {
                let word = Bytes::from(dialect.last_word(&status).unwrap_or_default());
                let ends = [(ids.stdout, Bytes::new()), (ids.stderr, Bytes::new()), (ids.error, word)];
                for (stream, data) in ends.into_iter().filter(|(stream, _)| *stream != 0) {
                    // A client that left does not need to be told.
                    let _ = out.send(Frame::Data { stream, fin: true, data }).await;
                }
                let _ = out.send(Frame::GoAway).await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::StreamExt;
    use serde_json::json;
    use sluice_runtime::TerminalSize;
    use tokio_util::codec::{BytesCodec, Framed};

    use super::*;
    use crate::spdy::{Decoder, Encoder};

    /// A client on one end of a pipe, and the session on the other.
    struct Client {
        io: tokio::io::DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Client {
        fn new() -> (Client, Session) {
            let (client, server) = tokio::io::duplex(64 * 1024);
            let (sink, source) = Framed::new(server, BytesCodec::new()).split();
            let session = Session::new(source.map(|read| read.ok().map(bytes::BytesMut::freeze)), sink);
            (Client { io: client, encoder: Encoder::new().unwrap(), decoder: Decoder::default() }, session)
        }

        async fn say(&mut self, frame: Frame) {
            use tokio::io::AsyncWriteExt;
            let bytes = self.encoder.encode(&frame).unwrap();
            self.io.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, stream: u32, kind: &str) {
            self.say(Frame::Open { stream, fin: false, headers: vec![("streamtype".into(), kind.into())] }).await;
        }

        /// Data frames until the server leaves.
        async fn rest(mut self) -> Vec<(u32, bool, String)> {
            use tokio::io::AsyncReadExt;
            let mut bytes = Vec::new();
            self.io.read_to_end(&mut bytes).await.unwrap();
            self.decoder.push(&bytes);
            let mut seen = Vec::new();
            while let Some(frame) = self.decoder.frame().unwrap() {
                if let Frame::Data { stream, fin, data } = frame {
                    seen.push((stream, fin, String::from_utf8(data.to_vec()).unwrap()));
                }
            }
            seen
        }
    }

    const TTY: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };

    #[tokio::test]
    async fn a_terminals_streams() {
        let (mut client, session) = Client::new();
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            client.open(stream, kind).await;
        }
        // Said before the last stream is open: heard all the same.
        client.say(Frame::Data { stream: 3, fin: false, data: Bytes::from_static(b"ls\n") }).await;
        client.open(7, "resize").await;
        for piece in [&b"{\"Width\":80,\"Hei"[..], b"ght\":24}\n{\"Width\":100,\"Height\":30}\n"] {
            client.say(Frame::Data { stream: 7, fin: false, data: Bytes::copy_from_slice(piece) }).await;
        }
        client.say(Frame::Data { stream: 3, fin: true, data: Bytes::new() }).await;
        let mut peer = peer(session, Dialect::of("v4.channel.k8s.io"), TTY).await.unwrap();
        let mut inputs = Vec::new();
        for _ in 0..4 {
            inputs.push(peer.inputs.recv().await.unwrap());
        }
        assert_eq!(
            inputs,
            [
                Input::Stdin(Bytes::from_static(b"ls\n")),
                Input::Resize(TerminalSize { columns: 80, rows: 24 }),
                Input::Resize(TerminalSize { columns: 100, rows: 30 }),
                Input::EndStdin,
            ]
        );
        peer.outputs.send(Output::Data(Channel::Stdout, Bytes::from_static(b"a b"))).await.unwrap();
        peer.end(json!({"status": "Success"})).await;
        let heard = client.rest().await;
        assert_eq!(heard[0], (5, false, "a b".to_owned()));
        assert_eq!(heard[1..], [(5, true, String::new()), (1, true, r#"{"status":"Success"}"#.to_owned())]);
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_inputs() {
        let (mut client, session) = Client::new();
        let streams = Streams { stdin: false, stdout: true, stderr: false, tty: false };
        client.open(1, "error").await;
        client.open(3, "stdout").await;
        let mut peer = peer(session, Dialect::of(""), streams).await.unwrap();
        drop(client);
        assert_eq!(peer.inputs.recv().await, None);
    }

    #[tokio::test]
    async fn a_client_that_leaves_before_its_streams_are_open_is_none() {
        let (mut client, session) = Client::new();
        client.open(1, "error").await;
        client.open(3, "nonsense").await;
        drop(client);
        assert!(peer(session, Dialect::of("v4.channel.k8s.io"), TTY).await.is_none());
    }
}

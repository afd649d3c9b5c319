//! The channel protocol of exec and attach (`v5.channel.k8s.io` and its elders) over a WebSocket: the first byte of a
//! message says which stream it belongs to. Encoding and decoding are pure; [`peer`] is the client that speaks it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sluice_runtime::TerminalSize;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::peer::{Channel, Input, Output, Peer, Streams};
use super::upgrade::{Protocols, Socket};

const STDIN: u8 = 0;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Protocols of exec and attach, the best first.
pub(super) const PROTOCOLS: Protocols = Protocols {
    websocket: &["v5.channel.k8s.io", "v4.channel.k8s.io", "base64.channel.k8s.io", "channel.k8s.io", ""],
    spdy: &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""],
};

/// How a protocol writes messages, and how it says the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// Text messages: a digit, then base64.
    base64: bool,
    /// Sizes of the terminal are told (in SPDY: on a stream of their own).
    resizes: bool,
    /// The end is a Status, whatever it is; older protocols say failures only, in words.
    status: bool,
}

impl Dialect {
    /// Of a protocol.
    pub(super) fn of(protocol: &str) -> Dialect {
        let status = ["v4.channel.k8s.io", "v5.channel.k8s.io"].contains(&protocol);
        let resizes = status || protocol == "v3.channel.k8s.io";
        Dialect { base64: protocol == "base64.channel.k8s.io", resizes, status }
    }

    /// Whether a terminal's client opens a stream for its sizes.
    pub(super) fn resizes(self) -> bool {
        self.resizes
    }

    /// A message as it goes out.
    fn message(self, encoded: Bytes) -> Message {
        match encoded.split_first() {
            Some((channel, data)) if self.base64 => {
                Message::text(format!("{}{}", channel.min(&9), STANDARD.encode(data)))
            }
            _ => Message::Binary(encoded),
        }
    }

    /// What a client's message says.
    fn input(self, message: &Message) -> Input {
        match message {
            Message::Binary(data) if !self.base64 => decode(data),
            Message::Text(text) if !self.base64 => decode(&Bytes::copy_from_slice(text.as_bytes())),
            Message::Text(text) => unwrap(text.as_bytes()).map_or(Input::Other, |data| decode(&data)),
            Message::Binary(data) => unwrap(data).map_or(Input::Other, |data| decode(&data)),
            _ => Input::Other,
        }
    }

    /// What the error channel is to say at the end.
    pub(super) fn last_word(self, status: &Value) -> Option<String> {
        if self.status {
            return Some(status.to_string());
        }
        (status["status"] != "Success").then(|| status["message"].as_str().unwrap_or_default().to_owned())
    }
}

/// The client at the other end of a WebSocket.
pub(super) fn peer(socket: Socket, dialect: Dialect, wanted: Streams) -> Peer {
    let (sink, source) = socket.split();
    // Upstream: an empty message on the lowest channel says that the streams are joined.
    let first = if wanted.stdout { Channel::Stdout as u8 } else { ERROR };
    Peer::start(move |inputs| read(source, dialect, inputs), move |outputs| write(sink, dialect, first, outputs))
}

async fn read(mut source: SplitStream<Socket>, dialect: Dialect, inputs: mpsc::Sender<Input>) {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Close(_) => return,
            Message::Binary(_) | Message::Text(_) if inputs.send(dialect.input(&message)).await.is_err() => return,
            _ => {}
        }
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, dialect: Dialect, first: u8, mut outputs: mpsc::Receiver<Output>) {
    let mut next = Some(encode(first, &[]));
    while let Some(bytes) = next {
        if sink.send(dialect.message(bytes)).await.is_err() {
            return;
        }
        next = match outputs.recv().await {
            None => None,
            Some(Output::Data(channel, data)) => Some(encode(channel as u8, &data)),
            Some(Output::End(status)) => {
                // A client that left does not need to be told.
                if let Some(word) = dialect.last_word(&status) {
                    let _ = sink.send(dialect.message(encode(ERROR, word.as_bytes()))).await;
                }
                None
            }
        };
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(close))).await;
    let _ = sink.close().await;
}

/// A digit and base64 as channel and bytes.
fn unwrap(text: &[u8]) -> Option<Bytes> {
    let (channel, data) = text.split_first()?;
    let mut out = vec![channel.checked_sub(b'0')?];
    out.extend(STANDARD.decode(data).ok()?);
    Some(out.into())
}

/// Reads a client's message.
fn decode(message: &Bytes) -> Input {
    match message.first() {
        Some(&STDIN) => Input::Stdin(message.slice(1..)),
        Some(&RESIZE) => resize(&message[1..]).map_or(Input::Other, Input::Resize),
        Some(&CLOSE) if message.get(1) == Some(&STDIN) => Input::EndStdin,
        _ => Input::Other,
    }
}

/// A message of a stream.
pub(super) fn encode(channel: u8, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.put_u8(channel);
    out.put_slice(data);
    out.freeze()
}

/// The end of a command, for the error channel: success, or the exit code as upstream's Status says it.
pub(super) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// A failure to run the command at all.
pub(super) fn failure_status(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500})
}

fn resize(data: &[u8]) -> Option<TerminalSize> {
    size(&serde_json::from_slice(data).ok()?)
}

/// The size of a terminal as clients write it.
pub(super) fn size(value: &Value) -> Option<TerminalSize> {
    let get = |name: &str| value.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { columns: get("Width")?, rows: get("Height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        for (bytes, expected) in [
            (&b"\x00hello"[..], Input::Stdin(Bytes::from_static(b"hello"))),
            (b"\x00", Input::Stdin(Bytes::new())),
            (b"\xff\x00", Input::EndStdin),
            (b"\xff\x01", Input::Other),
            (b"\x04{\"Width\":80,\"Height\":24}", Input::Resize(TerminalSize { columns: 80, rows: 24 })),
            (b"\x04{}", Input::Other),
            (b"\x09x", Input::Other),
            (b"", Input::Other),
        ] {
            assert_eq!(decode(&Bytes::copy_from_slice(bytes)), expected, "{bytes:?}");
        }
        assert_eq!(&encode(1, b"x")[..], b"\x01x");
    }

    #[test]
    fn dialects() {
        let end = exit_status(0);
        for (protocol, text, success) in [
            ("v5.channel.k8s.io", false, true),
            ("v4.channel.k8s.io", false, true),
            ("v3.channel.k8s.io", false, false),
            ("channel.k8s.io", false, false),
            ("", false, false),
            ("base64.channel.k8s.io", true, false),
        ] {
            let dialect = Dialect::of(protocol);
            let out = dialect.message(encode(1, b"hi"));
            assert_eq!(out.is_text(), text, "{protocol}");
            assert_eq!(out.into_data().as_ref(), if text { &b"1aGk="[..] } else { b"\x01hi" });
            assert_eq!(dialect.last_word(&end).is_some(), success, "{protocol}");
            assert!(dialect.last_word(&failure_status("no")).is_some_and(|w| w.contains("no")));
        }
        let base64 = Dialect::of("base64.channel.k8s.io");
        assert_eq!(base64.input(&Message::text("0aGk=")), Input::Stdin(Bytes::from_static(b"hi")));
        assert_eq!(base64.input(&Message::text("0!")), Input::Other);
    }

    #[test]
    fn statuses() {
        assert_eq!(exit_status(0)["status"], "Success");
        let status = exit_status(3);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}

//! One client's SPDY frames, whatever carries their bytes: the upgraded connection itself, or the messages of a WebSocket.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::codec::{BytesCodec, Framed};

use super::upgrade::{Connection, Socket};
use crate::limits;
use crate::spdy::{Decoder, Encoder, Frame};

/// What the client says, frame by frame, and the way to answer.
pub(super) struct Session {
    decoder: Decoder,
    /// None: the client has left.
    source: BoxStream<'static, Option<Bytes>>,
    out: mpsc::Sender<Frame>,
}

impl Session {
    pub(super) fn over(connection: Connection) -> Session {
        match connection {
            Connection::Spdy(io) => Session::over_connection(io),
            Connection::WebSocket(socket) => Session::over_websocket(*socket),
        }
    }

    fn over_connection(io: TokioIo<Upgraded>) -> Session {
        let (sink, source) = Framed::new(io, BytesCodec::new()).split();
        Session::new(source.map(|read| read.ok().map(bytes::BytesMut::freeze)), sink)
    }

    fn over_websocket(socket: Socket) -> Session {
        let (sink, source) = socket.split();
        let open = source.map(|message| match message {
            Ok(Message::Close(_)) | Err(_) => None,
            Ok(Message::Binary(data)) => Some(data),
            // Pings and the like carry no frames.
            Ok(_) => Some(Bytes::new()),
        });
        Session::new(
            open,
            sink.with(|data| std::future::ready(Ok::<_, tokio_tungstenite::tungstenite::Error>(Message::Binary(data)))),
        )
    }

    /// `sink` is flushed and closed once nobody can speak any more.
    pub(super) fn new<S>(source: impl Stream<Item = Option<Bytes>> + Send + 'static, sink: S) -> Session
    where
        S: Sink<Bytes, Error: Send> + Send + 'static,
    {
        let (out, mut frames) = mpsc::channel::<Frame>(limits::SPDY_QUEUE);
        tokio::spawn(async move {
            let Ok(mut encoder) = Encoder::new() else { return };
            let mut sink = Box::pin(sink);
            while let Some(frame) = frames.recv().await {
                let Ok(bytes) = encoder.encode(&frame) else { return };
                if sink.send(bytes).await.is_err() {
                    return;
                }
            }
            // The client may have left first.
            let _ = sink.close().await;
        });
        Session { decoder: Decoder::default(), source: source.boxed(), out }
    }

    /// The next frame; none when the client has left or speaks something else.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.frame() {
                Ok(Some(Frame::GoAway)) => return None,
                // Pings of the client's side have odd numbers.
                Ok(Some(Frame::Ping { id })) if id % 2 == 1 => self.say(Frame::Ping { id }).await,
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => self.decoder.push(&self.source.next().await.flatten()?),
                Err(error) => {
                    tracing::debug!(%error, "a client's stream");
                    self.say(Frame::GoAway).await;
                    return None;
                }
            }
        }
    }

    /// Queues a frame; a client that left does not need to be told.
    pub(super) async fn say(&mut self, frame: Frame) {
        let _ = self.out.send(frame).await;
    }

    /// Another way to answer, for those who work beside the reader.
    pub(super) fn outlet(&self) -> mpsc::Sender<Frame> {
        self.out.clone()
    }
}

/// A stream's header; names are compared without case.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// SPDY's status for a stream that is refused.
pub(super) const REFUSED: u32 = 3;

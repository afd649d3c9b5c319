//! A plain answer as frames of a WebSocket, for clients that read logs so (upstream's `wsstream.Reader`).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sluice_api::status::Status;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, handshake::derive_accept_key, protocol::Role},
};

use super::forward;
use crate::context::{Body, full};

/// Makes a frame of bytes.
type Encode = fn(Bytes) -> Message;

/// How frames carry bytes, by the protocol that the client asks for; the first is for one that asks for none.
const PROTOCOLS: [(&str, Encode); 3] =
    [("", Message::Binary), ("binary.k8s.io", Message::Binary), ("base64.binary.k8s.io", base64)];

fn base64(bytes: Bytes) -> Message {
    Message::text(BASE64_STANDARD.encode(bytes))
}

/// A client that asked for a WebSocket, and gets one.
pub(super) struct Socket {
    client: OnUpgrade,
    accept: HeaderValue,
    protocol: &'static str,
    frame: Encode,
}

impl Socket {
    /// What the request asks for; `None` if that is no WebSocket.
    pub(super) fn asked(parts: &mut http::request::Parts) -> Result<Option<Self>, Status> {
        let wanted =
            parts.headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !wanted {
            return Ok(None);
        }
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
        let accept = accept.ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
        let (protocol, frame) = choose(&parts.headers)?;
        let client = forward::client(parts)?;
        Ok(Some(Self { client, accept, protocol, frame }))
    }

    /// The 101 after which the client gets this answer's body.
    pub(super) fn answer(self, plain: Response<Body>, permit: OwnedSemaphorePermit) -> Response<Body> {
        let Self { client, accept, protocol, frame } = self;
        let mut answer = Response::new(full(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if !protocol.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        tokio::spawn(async move {
            let _permit = permit;
            let upgraded = match client.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "a stream was not opened"),
            };
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
            if let Err(error) = send(socket, plain.into_body(), frame).await {
                tracing::debug!(%error, "a stream ended");
            }
        });
        answer
    }
}

type Upgraded = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Sends a body, until it or the client ends. What the client says is of no interest, but pings are answered while it is read.
async fn send(socket: Upgraded, mut body: Body, frame: Encode) -> Result<(), tungstenite::Error> {
    let (mut sink, mut client) = socket.split();
    // Upstream's first frame is empty: it tells clients that the stream stands.
    sink.send(frame(Bytes::new())).await?;
    loop {
        tokio::select! {
            part = body.frame() => {
                let Some(Ok(part)) = part else { return sink.close().await };
                if let Ok(data) = part.into_data() {
                    sink.send(frame(data)).await?;
                }
            }
            message = client.next() => {
                if message.transpose()?.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// The client's first choice among the supported ones.
fn choose(headers: &HeaderMap) -> Result<(&'static str, Encode), Status> {
    let name = header::SEC_WEBSOCKET_PROTOCOL;
    if !headers.contains_key(&name) {
        return Ok(PROTOCOLS[0]);
    }
    let asked = headers.get_all(&name).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let mut asked = asked.map(str::trim);
    asked.find_map(|asked| PROTOCOLS.iter().find(|(protocol, _)| *protocol == asked)).copied().ok_or_else(|| {
        Status::forbidden_path(
            "none of the client's protocols is supported here; these are: binary.k8s.io, base64.binary.k8s.io",
        )
    })
}

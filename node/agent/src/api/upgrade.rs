//! Turns a request into a WebSocket: picks the subprotocol, answers 101, and hands the connection over.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::reply::{Reply, error, full};
use crate::limits;

/// A WebSocket of one of our clients.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers the request; `work` gets the socket and the chosen subprotocol once the client has seen the answer.
pub(super) fn websocket<F>(
    mut request: Request<Incoming>,
    supported: &[&'static str],
    work: impl FnOnce(Socket, &'static str) -> F + Send + 'static,
) -> Response<Reply>
where
    F: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    if !is_upgrade(headers) {
        return error(StatusCode::BAD_REQUEST, "you must upgrade this request to a WebSocket");
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return error(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let accept = derive_accept_key(key.as_bytes());
    let Some(protocol) = choose(headers, supported) else {
        let offered = supported.join(", ");
        return error(
            StatusCode::FORBIDDEN,
            &format!("none of the subprotocols is supported here; these are: {offered}"),
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let mut config = WebSocketConfig::default();
                config.max_message_size = Some(limits::STREAM_MESSAGE);
                config.max_frame_size = Some(limits::STREAM_MESSAGE);
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
                work(socket, protocol).await;
            }
            Err(error) => tracing::debug!(%error, "a WebSocket was not opened"),
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if !protocol.is_empty() {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

/// True for a WebSocket handshake.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// The client's first choice among the supported ones; empty if it names none, which is the oldest (upstream's rule).
fn choose(headers: &HeaderMap, supported: &[&'static str]) -> Option<&'static str> {
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Some("");
    }
    let asked = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let asked = asked.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',').map(str::trim));
    asked.filter_map(|a| supported.iter().find(|s| **s == a)).next().copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn negotiation() {
        let supported = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        for (offer, expected) in [
            ("v5.channel.k8s.io, v4.channel.k8s.io", Some("v5.channel.k8s.io")),
            ("other,v4.channel.k8s.io", Some("v4.channel.k8s.io")),
            ("other", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offer.parse().unwrap());
            assert_eq!(choose(&headers, &supported), expected, "{offer}");
        }
        assert_eq!(choose(&HeaderMap::new(), &supported), Some(""));
    }
}

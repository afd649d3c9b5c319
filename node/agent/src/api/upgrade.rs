//! Turns a request into a stream, a WebSocket or SPDY/3.1 (clients before Kubernetes 1.31): picks the protocol spoken
//! in it, answers 101, and hands the connection over.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::reply::{Reply, error, full};
use crate::limits;

const SPDY: &str = "SPDY/3.1";
/// Where SPDY clients name their protocols, and where the server names its choice.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Where a server that accepts none of them names its own.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// A WebSocket of one of our clients.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a client turned its request into.
pub(super) enum Connection {
    WebSocket(Box<Socket>),
    Spdy(TokioIo<Upgraded>),
}

/// What is spoken over each kind of stream, the best first; the empty name is what a client that names none speaks.
pub(super) struct Protocols {
    pub(super) websocket: &'static [&'static str],
    pub(super) spdy: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    WebSocket,
    Spdy,
}

impl Kind {
    /// Of a handshake; none when the request asks for neither.
    fn of(headers: &HeaderMap) -> Option<Kind> {
        if !words(headers, &header::CONNECTION).any(|w| w.eq_ignore_ascii_case("upgrade")) {
            return None;
        }
        words(headers, &header::UPGRADE).find_map(|word| match word {
            w if w.eq_ignore_ascii_case("websocket") => Some(Kind::WebSocket),
            w if w.eq_ignore_ascii_case(SPDY) => Some(Kind::Spdy),
            _ => None,
        })
    }

    fn protocol_header(self) -> HeaderName {
        match self {
            Kind::WebSocket => header::SEC_WEBSOCKET_PROTOCOL,
            Kind::Spdy => STREAM_PROTOCOL,
        }
    }
}

/// Answers the request; `work` gets the connection and the chosen protocol once the client has seen the answer.
pub(super) fn upgrade<F>(
    mut request: Request<Incoming>,
    protocols: &Protocols,
    work: impl FnOnce(Connection, &'static str) -> F + Send + 'static,
) -> Response<Reply>
where
    F: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    let Some(kind) = Kind::of(headers) else {
        return error(StatusCode::BAD_REQUEST, "you must upgrade this request to a WebSocket or to SPDY/3.1");
    };
    let supported = match kind {
        Kind::WebSocket => protocols.websocket,
        Kind::Spdy => protocols.spdy,
    };
    let Some(protocol) = choose(headers, &kind.protocol_header(), supported) else {
        return no_common_protocol(supported);
    };
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match kind {
        Kind::WebSocket => {
            let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
            let Some(accept) = key.and_then(|key| HeaderValue::from_str(&key).ok()) else {
                return error(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
            };
            out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        Kind::Spdy => {
            out.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
        }
    }
    if !protocol.is_empty() {
        out.insert(kind.protocol_header(), HeaderValue::from_static(protocol));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => work(connection(kind, upgraded).await, protocol).await,
            Err(error) => tracing::debug!(%error, "a stream was not opened"),
        }
    });
    response
}

async fn connection(kind: Kind, upgraded: Upgraded) -> Connection {
    let io = TokioIo::new(upgraded);
    match kind {
        Kind::Spdy => Connection::Spdy(io),
        Kind::WebSocket => {
            let mut config = WebSocketConfig::default();
            config.max_message_size = Some(limits::STREAM_MESSAGE);
            config.max_frame_size = Some(limits::STREAM_MESSAGE);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            Connection::WebSocket(Box::new(socket))
        }
    }
}

fn no_common_protocol(supported: &[&'static str]) -> Response<Reply> {
    let offered: Vec<&str> = supported.iter().copied().filter(|name| !name.is_empty()).collect();
    let offered = offered.join(", ");
    let message = format!("none of the client's protocols is supported here; these are: {offered}");
    let mut response = error(StatusCode::FORBIDDEN, &message);
    if let Ok(offered) = HeaderValue::from_str(&offered) {
        response.headers_mut().insert(ACCEPTED_PROTOCOLS, offered);
    }
    response
}

/// The comma-separated words of a header.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',').map(str::trim))
}

/// The client's first choice among the supported ones; empty if it names none, which is the oldest (upstream's rule).
fn choose(headers: &HeaderMap, name: &HeaderName, supported: &[&'static str]) -> Option<&'static str> {
    if !headers.contains_key(name) {
        return Some("");
    }
    words(headers, name).find_map(|asked| supported.iter().find(|s| **s == asked)).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn negotiation() {
        let supported = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        for name in [header::SEC_WEBSOCKET_PROTOCOL, STREAM_PROTOCOL] {
            for (offer, expected) in [
                ("v5.channel.k8s.io, v4.channel.k8s.io", Some("v5.channel.k8s.io")),
                ("other,v4.channel.k8s.io", Some("v4.channel.k8s.io")),
                ("other", None),
            ] {
                let headers = headers(&[(name.clone(), offer)]);
                assert_eq!(choose(&headers, &name, &supported), expected, "{offer}");
            }
            assert_eq!(choose(&HeaderMap::new(), &name, &supported), Some(""));
        }
    }

    #[test]
    fn kinds() {
        for (connection, upgrade, expected) in [
            ("Upgrade", "websocket", Some(Kind::WebSocket)),
            ("keep-alive, upgrade", "WebSocket", Some(Kind::WebSocket)),
            ("Upgrade", "SPDY/3.1", Some(Kind::Spdy)),
            ("Upgrade", "h2c", None),
            ("keep-alive", "SPDY/3.1", None),
        ] {
            let headers = headers(&[(header::CONNECTION, connection), (header::UPGRADE, upgrade)]);
            assert_eq!(Kind::of(&headers), expected, "{connection}: {upgrade}");
        }
    }

    #[test]
    fn a_refusal_names_what_would_do() {
        let response = no_common_protocol(&["v4.channel.k8s.io", ""]);
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers()[ACCEPTED_PROTOCOLS], "v4.channel.k8s.io");
    }
}

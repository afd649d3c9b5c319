//! Passing one request on: plain with a streamed answer, or upgraded with bytes copied both ways.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use sluice_api::status::Status;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tokio_rustls::TlsConnector;

use crate::{
    context::{Body, full},
    limits,
};

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// An IP address, or a host name.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What messages call it: `node n1`, `pod web-0`.
    pub(crate) name: String,
    /// The name that its certificate must carry, when that is not the host.
    pub(crate) server_name: Option<String>,
}

/// Any byte stream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is sent: the path with its query, and the client's headers as filtered by the caller.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

/// Connects, with TLS when a configuration is given.
///
/// # Errors
/// 503 with the target's name and the reason.
pub(crate) async fn dial(target: &Target, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Stream>, Status> {
    let unreachable = |why: String| {
        Status::unavailable(format!("error dialing {} at {}:{}: {why}", target.name, target.host, target.port))
    };
    let connect = async {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = tls else {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        };
        let name = ServerName::try_from(target.server_name.clone().unwrap_or_else(|| target.host.clone()))
            .map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await?;
        Ok::<_, std::io::Error>(Box::new(stream) as Box<dyn Stream>)
    };
    match tokio::time::timeout(limits::DIAL_TIMEOUT, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("timed out".into())),
    }
}

/// Sends a request over a fresh connection and returns the answer with its body streaming.
pub(crate) async fn send(
    target: &Target,
    stream: Box<dyn Stream>,
    outgoing: Outgoing,
) -> Result<Response<hyper::body::Incoming>, Status> {
    let broken = |error: hyper::Error| {
        Status::new(502, "BadGateway", format!("the connection to {} broke: {error}", target.name))
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let uri: Uri =
        outgoing.path.parse().map_err(|e| Status::bad_request(format!("the path cannot be passed on: {e}")))?;
    let mut request = Request::new(outgoing.body);
    *request.method_mut() = outgoing.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = outgoing.headers;
    if !request.headers().contains_key(header::HOST) {
        let host =
            HeaderValue::from_str(&authority(target)).map_err(|e| Status::internal(format!("{}: {e}", target.host)))?;
        request.headers_mut().insert(header::HOST, host);
    }
    sender.send_request(request).await.map_err(broken)
}

/// Sends an upgrade request; on 101 both sides are joined in the background, and the client gets
/// the backend's 101 as it is. Another answer is passed on.
pub(crate) async fn upgrade(
    target: &Target,
    stream: Box<dyn Stream>,
    outgoing: Outgoing,
    client: OnUpgrade,
    permit: OwnedSemaphorePermit,
) -> Result<Response<Body>, Status> {
    let response = send(target, stream, outgoing).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(plain(response));
    }
    let mut answer = Response::new(full(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    let name = target.name.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let sides = tokio::try_join!(client, hyper::upgrade::on(response));
        let (client, backend) = match sides {
            Ok(sides) => sides,
            Err(error) => return tracing::debug!(%error, name, "an upgrade was not completed"),
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        let copied = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut backend,
            limits::COPY_BUFFER,
            limits::COPY_BUFFER,
        );
        if let Err(error) = copied.await {
            tracing::debug!(%error, name, "a proxied stream ended");
        }
    });
    Ok(answer)
}

/// The backend's answer without the headers of its connection.
pub(crate) fn plain(response: Response<hyper::body::Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let mut out = Response::new(body.map_err(Into::into).boxed_unsync());
    *out.status_mut() = parts.status;
    *out.headers_mut() = parts.headers;
    out
}

/// The whole of a short body, as text; longer ones are cut.
pub(crate) async fn text(body: hyper::body::Incoming) -> String {
    let limited = Limited::new(body, limits::BACKEND_ERROR_BYTES);
    match limited.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => format!("(the answer's text cannot be read: {error})"),
    }
}

/// The client's side of the connection, which is to be had once it is upgraded.
pub(crate) fn client(parts: &mut http::request::Parts) -> Result<OnUpgrade, Status> {
    parts
        .extensions
        .remove()
        .ok_or_else(|| Status::bad_request("this connection cannot be upgraded: use HTTP/1.1 over a socket"))
}

/// True if the client asks for another protocol.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case("upgrade"))
}

/// The headers of an upgrade, and nothing that tells the backend who the client is.
pub(crate) fn upgrade_headers(headers: &HeaderMap) -> HeaderMap {
    let passed = |name: &HeaderName| {
        *name == header::CONNECTION
            || *name == header::UPGRADE
            || *name == header::USER_AGENT
            || name.as_str().starts_with("sec-websocket-")
            || name.as_str().starts_with("x-stream-protocol")
    };
    let each = headers.iter().filter(|(name, _)| passed(name));
    each.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A proxied request's headers: the client's but for those of its connection and credentials.
pub(crate) fn proxied_headers(headers: &HeaderMap) -> HeaderMap {
    let upgrade = is_upgrade(headers);
    let mut out = headers.clone();
    let kept = upgrade.then(|| upgrade_headers(headers));
    strip_hop_by_hop(&mut out);
    out.remove(header::AUTHORIZATION);
    out.remove(header::HOST);
    let acting: Vec<HeaderName> = out.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for name in acting {
        out.remove(name);
    }
    for (name, value) in kept.iter().flatten() {
        out.insert(name.clone(), value.clone());
    }
    out
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

/// What a backend is called in `Host`.
pub(crate) fn authority(target: &Target) -> String {
    if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    }
}

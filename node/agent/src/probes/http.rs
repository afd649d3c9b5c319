//! The HTTP probe: one GET, 200 to 399 is success, redirects to the same host are followed. Certificates are not
//! checked, as upstream.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Outcome, join, tcp};
use crate::limits;
use crate::model::HttpGet;

/// Asks `get` of `host:port`.
pub async fn probe(get: &HttpGet, host: &str, port: u16, timeout: Duration) -> Outcome {
    let tls = get.scheme.eq_ignore_ascii_case("https");
    let first = if get.path.is_empty() { "/".to_owned() } else { get.path.clone() };
    let first = if first.starts_with('/') { first } else { format!("/{first}") };
    let url = format!("{}://{}{first}", if tls { "https" } else { "http" }, join(host, port));
    let work = follow(get, tls, host, port, first, timeout);
    match tokio::time::timeout(timeout, work).await {
        Err(_) => Outcome::Failure(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(e)) => Outcome::Failure(format!("Get \"{url}\": {e}")),
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Outcome::Success,
        Ok(Ok(status)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
    }
}

async fn follow(
    get: &HttpGet,
    tls: bool,
    host: &str,
    port: u16,
    mut path: String,
    timeout: Duration,
) -> Result<StatusCode, String> {
    for _ in 0..limits::PROBE_REDIRECTS {
        let (status, location) = once(get, tls, host, port, &path, timeout).await?;
        let Some(location) = location.filter(|_| status.is_redirection()) else { return Ok(status) };
        // A redirect to another host ends the probe, successfully (upstream warns).
        let target: http::Uri =
            absolute(&path, &location).parse().map_err(|_| format!("bad redirect to \"{location}\""))?;
        let same = target.host().is_none_or(|h| h.trim_matches(['[', ']']) == host);
        if !same {
            return Ok(status);
        }
        if target.host().is_some() && (target.port_u16().is_some_and(|p| p != port)) {
            return Ok(status);
        }
        path = target.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    }
    Err(format!("stopped after {} redirects", limits::PROBE_REDIRECTS))
}

/// Where a redirect leads, seen from the path that answered with it (RFC 3986, section 5.2).
fn absolute(path: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") || location.starts_with('/') {
        return location.to_owned();
    }
    let path = path.split('?').next().unwrap_or_default();
    let (relative, query) = location.split_at(location.find('?').unwrap_or(location.len()));
    if relative.is_empty() {
        return format!("{path}{query}");
    }
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    segments.pop();
    for segment in relative.split('/') {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    // What ends with a dot segment is a folder.
    let folder = relative.ends_with("/.") || relative.ends_with("/..") || matches!(relative, "." | "..");
    let end = if folder && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}{query}", segments.join("/"))
}

async fn once(
    get: &HttpGet,
    tls: bool,
    host: &str,
    port: u16,
    path: &str,
    timeout: Duration,
) -> Result<(StatusCode, Option<String>), String> {
    let stream = tcp::connect(host, port, timeout).await?;
    let request = request(get, &join(host, port), path)?;
    if !tls {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(CLIENT.clone());
    let stream = connector.connect(name, stream).await.map_err(|e| format!("remote error: tls: {e}"))?;
    exchange(stream, request).await
}

fn request(get: &HttpGet, authority: &str, path: &str) -> Result<Request<Empty<bytes::Bytes>>, String> {
    let mut builder = Request::get(path).header(header::CONNECTION, "close");
    let own = |name: &str| get.http_headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    if !own("host") {
        builder = builder.header(header::HOST, authority);
    }
    if !own("user-agent") {
        builder = builder.header(header::USER_AGENT, "kube-probe/1.36");
    }
    if !own("accept") {
        builder = builder.header(header::ACCEPT, "*/*");
    }
    for h in &get.http_headers {
        let name = HeaderName::try_from(&h.name).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(&h.value).map_err(|e| e.to_string())?;
        if !(h.value.is_empty() && (name == header::USER_AGENT || name == header::ACCEPT)) {
            builder = builder.header(name, value);
        }
    }
    builder.body(Empty::new()).map_err(|e| e.to_string())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<bytes::Bytes>>,
) -> Result<(StatusCode, Option<String>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| go_error(&e))?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        // The body is read up to the limit and thrown away: a server may wait for its reader.
        let _ = Limited::new(response.into_body(), limits::PROBE_BODY).collect().await;
        Ok((status, location))
    };
    let result = result.await;
    driver.abort();
    result
}

fn go_error(e: &hyper::Error) -> String {
    if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() }
}

static CLIENT: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default TLS versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Arc::new(config)
});

/// Accepts every certificate: a probe asks whether the server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::HttpHeader;

    /// Answers each request with the next of `answers`; returns the port and what was asked.
    async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                asked.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, task)
    }

    #[test]
    fn redirects_may_be_relative() {
        let check = |path: &str, location: &str, expected: &str| {
            assert_eq!(absolute(path, location), expected, "{location} at {path}");
        };
        check("/index.html", "./", "/");
        check("/a/b?x", "c?y#z", "/a/c?y");
        check("/a/b/", "../c", "/a/c");
        check("/a/b", "..", "/");
        check("/a/b/c", ".", "/a/b/");
        check("/a?x", "?y", "/a?y");
        check("/a", "../../b", "/b");
        check("/a", "/b", "/b");
        check("/a", "http://h/b", "http://h/b");
    }

    #[tokio::test]
    async fn statuses_headers_and_redirects() {
        let second = Duration::from_secs(2);
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        for (answers, expected) in [
            (vec![ok], Outcome::Success),
            (
                vec!["HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"],
                Outcome::Failure("HTTP probe failed with statuscode: 503".into()),
            ),
            (vec!["HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n", ok], Outcome::Success),
            (vec!["HTTP/1.1 302 Found\r\nlocation: http://other.test/\r\ncontent-length: 0\r\n\r\n"], Outcome::Success),
        ] {
            let (port, task) = server(answers).await;
            let get = HttpGet {
                path: "/healthz?x=1".into(),
                http_headers: vec![HttpHeader { name: "X-A".into(), value: "b".into() }],
                ..HttpGet::default()
            };
            assert_eq!(probe(&get, "127.0.0.1", port, second).await, expected);
            let asked = task.await.unwrap();
            assert!(asked[0].starts_with("GET /healthz?x=1 HTTP/1.1\r\n"), "{}", asked[0]);
            assert!(asked[0].contains("user-agent: kube-probe/1.36") && asked[0].contains("x-a: b"));
        }
    }

    #[tokio::test]
    async fn refused_and_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let get = HttpGet::default();
        let outcome = probe(&get, "127.0.0.1", port, Duration::from_millis(200)).await;
        let Outcome::Failure(message) = outcome else { panic!("{outcome:?}") };
        assert!(message.contains("context deadline exceeded"), "{message}");
        drop(listener);
        let expected =
            format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(probe(&get, "127.0.0.1", port, Duration::from_secs(1)).await, Outcome::Failure(expected));
    }
}

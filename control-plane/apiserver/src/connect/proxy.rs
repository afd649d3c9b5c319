//! `nodes/proxy`, `pods/proxy`, `services/proxy`: a reverse proxy to a node's API or to a port of a
//! pod or Service. Names are `name`, `name:port` or `scheme:name:port`, as upstream splits them.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::Value;
use sluice_api::status::Status;

use super::{
    Connect,
    forward::{self, Outgoing, Target},
    rewrite::{Page, Place, Rewritten},
};
use crate::{
    auth::{refusal, view::View},
    context::{Body, ConnectRequest, full},
};

/// What a backend allows pages of other origins is not this server's to allow.
const CROSS_ORIGIN: [header::HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

impl Connect {
    pub(super) async fn node_proxy(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let (_, name, _) = split(&request.info.name);
        let target = self.node_target(name)?;
        self.proxy(request, target, Some(&self.tls)).await
    }

    pub(super) async fn pod_proxy(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let (scheme, name, port) = split(&request.info.name);
        let tls = backend_tls(scheme)?;
        let pod = self
            .view
            .get("", "pods", &request.info.namespace, name)
            .ok_or_else(|| refusal::not_found("", "pods", name))?
            .value();
        let host = pod["status"]["podIP"].as_str().unwrap_or_default();
        let port = match port {
            "" => first_port(&pod),
            text => named_port(&pod, text),
        };
        let target = reachable(host, port, format!("pod {name}"))?;
        self.proxy(request, target, tls.as_ref()).await
    }

    pub(super) async fn service_proxy(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let (scheme, name, port) = split(&request.info.name);
        let tls = backend_tls(scheme)?;
        let namespace = &request.info.namespace;
        let service = self
            .view
            .get("", "services", namespace, name)
            .ok_or_else(|| refusal::not_found("", "services", name))?
            .value();
        let ports = list(&service["spec"]["ports"]);
        let chosen = ports
            .iter()
            .find(|p| match port {
                "" => ports.len() == 1 || p["name"].as_str().unwrap_or("").is_empty(),
                text => p["name"] == text || p["port"].as_u64() == text.parse().ok(),
            })
            .ok_or_else(|| Status::unavailable(format!("no service port {port:?} found for service {name:?}")))?;
        let port_name = chosen["name"].as_str().unwrap_or_default();
        let target = endpoint(&*self.view, namespace, name, port_name)
            .ok_or_else(|| Status::unavailable(format!("no endpoints available for service {name:?}")))
            .and_then(|(ip, port)| reachable(&ip, Some(port), format!("service {name}")))?;
        self.proxy(request, target, tls.as_ref()).await
    }

    async fn proxy(
        &self,
        mut request: ConnectRequest,
        target: Target,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Response<Body>, Status> {
        let namespaced = !request.info.namespace.is_empty();
        let path = rest(&request.parts.uri, namespaced);
        let mut headers = forward::proxied_headers(&request.parts.headers);
        let upgrade = forward::is_upgrade(&request.parts.headers);
        let reads = matches!(request.parts.method, Method::GET | Method::HEAD);
        if reads && !upgrade && after_proxy(&request.parts.uri, namespaced).is_none() {
            return with_final_slash(&request.parts.uri);
        }
        let place = Place {
            prefix: prefix(&request.parts.uri, namespaced),
            client: host(&request.parts.uri, &request.parts.headers),
            backend: forward::authority(&target),
        };
        if let Ok(uri) = HeaderValue::from_str(request.parts.uri.path()) {
            headers.insert("x-forwarded-uri", uri);
        }
        // Pages must come as they are to be read.
        headers.remove(header::ACCEPT_ENCODING);
        let client = request.parts.extensions.remove::<hyper::upgrade::OnUpgrade>().filter(|_| upgrade);
        let permit = self.permit()?;
        let stream = forward::dial(&target, tls).await?;
        let outgoing = Outgoing { method: request.parts.method, path, headers, body: request.body };
        match client {
            Some(client) => forward::upgrade(&target, stream, outgoing, client, permit).await,
            None => {
                forward::send(&target, stream, outgoing).await.map(|answer| seen_from(place, forward::plain(answer)))
            }
        }
    }
}

/// One of a Service's ready endpoints for a named port, at random.
pub(crate) fn endpoint(view: &dyn View, namespace: &str, service: &str, port_name: &str) -> Option<(String, u16)> {
    let mut found = Vec::new();
    for slice in view.list("discovery.k8s.io", "endpointslices", namespace) {
        if slice.label("kubernetes.io/service-name") != Some(service) {
            continue;
        }
        let slice = slice.value();
        let port = list(&slice["ports"])
            .iter()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
        let Some(port) = port else { continue };
        for endpoint in list(&slice["endpoints"]) {
            if endpoint["conditions"]["ready"] != false
                && let Some(ip) = endpoint["addresses"][0].as_str()
            {
                found.push((ip.to_owned(), port));
            }
        }
    }
    let at = rand::random_range(0..found.len().max(1));
    found.into_iter().nth(at)
}

/// The backend's answer as the client may follow it.
fn seen_from(place: Place, answer: Response<Body>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    CROSS_ORIGIN.iter().for_each(|name| drop(parts.headers.remove(name)));
    let text = |name: header::HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(location) = text(header::LOCATION) {
        if let Some(link) = place.link(location).and_then(|link| HeaderValue::from_str(&link).ok()) {
            parts.headers.insert(header::LOCATION, link);
        }
        return Response::from_parts(parts, body);
    }
    let kind = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if kind.trim() != "text/html" || parts.headers.contains_key(header::CONTENT_ENCODING) {
        return Response::from_parts(parts, body);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Rewritten::new(body, Page::new(place)).boxed_unsync())
}

/// Leads a reader to the path with a final slash, from which relative links work.
fn with_final_slash(uri: &Uri) -> Result<Response<Body>, Status> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let location =
        HeaderValue::from_str(&format!("{}/{query}", uri.path())).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut answer = Response::new(full(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(header::LOCATION, location);
    Ok(answer)
}

/// What the client calls this server.
fn host(uri: &Uri, headers: &HeaderMap) -> String {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default().to_owned()
}

/// The path up to and with `/proxy`.
fn prefix(uri: &Uri, namespaced: bool) -> String {
    let after = after_proxy(uri, namespaced).map_or(0, |after| after.len() + 1);
    uri.path()[..uri.path().len() - after].to_owned()
}

/// What follows `.../proxy/` in the request's path, still encoded; `None` without that slash.
fn after_proxy(uri: &Uri, namespaced: bool) -> Option<&str> {
    // /api/v1/nodes/NAME/proxy or /api/v1/namespaces/NAMESPACE/pods/NAME/proxy
    let own = if namespaced { 7 } else { 5 };
    uri.path().splitn(own + 2, '/').nth(own + 1)
}

/// What follows `.../proxy` in the request's path, still encoded, with its query.
fn rest(uri: &Uri, namespaced: bool) -> String {
    let after = after_proxy(uri, namespaced).unwrap_or_default();
    match uri.query() {
        Some(query) => format!("/{after}?{query}"),
        None => format!("/{after}"),
    }
}

/// `[scheme:]name[:port]`.
fn split(text: &str) -> (&str, &str, &str) {
    match text.split(':').collect::<Vec<_>>()[..] {
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => ("", text, ""),
    }
}

/// TLS for a backend that is asked for as `https:name:port`. Upstream does not verify these
/// certificates either: nobody says which authority a pod uses.
fn backend_tls(scheme: &str) -> Result<Option<Arc<ClientConfig>>, Status> {
    match scheme {
        "" | "http" => Ok(None),
        "https" => Ok(Some(unverified())),
        other => Err(Status::bad_request(format!("invalid proxy scheme {other:?}: use http or https"))),
    }
}

fn unverified() -> Arc<ClientConfig> {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(rustls::DEFAULT_VERSIONS)
            .expect("ring supports the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Arc::new(config)
    });
    CONFIG.clone()
}

/// Takes any certificate; the handshake's signature is still checked against it.
#[derive(Debug)]
pub(crate) struct AnyCertificate(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A backend that may be dialled: not this machine's loopback, not a link-local address
/// (upstream's `IsProxyableIP`).
fn reachable(host: &str, port: Option<u16>, name: String) -> Result<Target, Status> {
    let Ok(ip) = host.parse::<IpAddr>() else {
        return Err(Status::unavailable(format!("{name} has no address yet")));
    };
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || local {
        return Err(Status::bad_request("address not allowed"));
    }
    let port = port.ok_or_else(|| Status::bad_request(format!("{name} has no such port")))?;
    Ok(Target { host: host.to_owned(), port, name, server_name: None })
}

fn first_port(pod: &Value) -> Option<u16> {
    let ports = list(&pod["spec"]["containers"]).iter().find_map(|c| c["ports"][0]["containerPort"].as_u64());
    ports.map_or(Some(80), |p| u16::try_from(p).ok())
}

fn named_port(pod: &Value, text: &str) -> Option<u16> {
    if let Ok(port) = text.parse() {
        return Some(port);
    }
    list(&pod["spec"]["containers"])
        .iter()
        .flat_map(|c| list(&c["ports"]))
        .find(|p| p["name"] == text)
        .and_then(|p| u16::try_from(p["containerPort"].as_u64()?).ok())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_split() {
        assert_eq!(split("web"), ("", "web", ""));
        assert_eq!(split("web:80"), ("", "web", "80"));
        assert_eq!(split("http:web:"), ("http", "web", ""));
    }

    #[test]
    fn the_backend_gets_what_follows_proxy() {
        let check = |path: &str, namespaced: bool, expected: &str| {
            assert_eq!(rest(&path.parse().unwrap(), namespaced), expected, "{path}");
        };
        check("/api/v1/nodes/n1/proxy", false, "/");
        check("/api/v1/nodes/n1/proxy/", false, "/");
        check("/api/v1/nodes/n1/proxy/a%20b/c?x=1&y", false, "/a%20b/c?x=1&y");
        check("/api/v1/namespaces/services/services/proxy/proxy/proxy/", true, "/proxy/");
        check("/api/v1/namespaces/shop/pods/web:80/proxy?x", true, "/?x");
    }

    #[test]
    fn the_prefix_ends_with_proxy() {
        let check = |path: &str, namespaced: bool, expected: &str| {
            assert_eq!(prefix(&path.parse().unwrap(), namespaced), expected, "{path}");
        };
        check("/api/v1/nodes/n1/proxy", false, "/api/v1/nodes/n1/proxy");
        check("/api/v1/nodes/n1/proxy/a/proxy/?x", false, "/api/v1/nodes/n1/proxy");
        check(
            "/api/v1/namespaces/s/services/http:proxy:80/proxy/",
            true,
            "/api/v1/namespaces/s/services/http:proxy:80/proxy",
        );
    }

    #[test]
    fn schemes_are_known() {
        assert!(backend_tls("").unwrap().is_none());
        assert!(backend_tls("http").unwrap().is_none());
        assert!(backend_tls("https").unwrap().is_some());
        assert!(backend_tls("ftp").is_err());
    }

    #[test]
    fn local_addresses_are_not_dialled() {
        let check = |ip: &str, ok: bool| {
            assert_eq!(reachable(ip, Some(80), "pod x".into()).is_ok(), ok, "{ip}");
        };
        check("10.244.0.3", true);
        check("127.0.0.1", false);
        check("169.254.169.254", false);
        check("::1", false);
        check("fe80::1", false);
        check("", false);
    }
}

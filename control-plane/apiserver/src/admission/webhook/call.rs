//! One HTTPS call to a webhook, of admission or of conversion, by URL or to an endpoint of its Service.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::Value;

use super::rules::{ClientConfig as Hook, ServiceRef};
use crate::{
    auth::view::View,
    connect::{
        forward::{self, Outgoing, Target},
        proxy,
    },
    context::full,
    limits,
};

/// Sends the review and returns the answer's body.
pub(crate) async fn post(view: &dyn View, hook: &Hook, seconds: u64, review: &Value) -> Result<Vec<u8>, String> {
    match tokio::time::timeout(Duration::from_secs(seconds), send(view, hook, review, seconds)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("Post {:?}: context deadline exceeded", asked(hook, seconds))),
    }
}

/// The URL that messages name, as upstream's client would ask for it.
fn asked(config: &Hook, seconds: u64) -> String {
    let url = match (&config.url, &config.service) {
        (Some(url), _) => url.clone(),
        (None, Some(ServiceRef { namespace, name, port, path })) => {
            let path = path.as_deref().unwrap_or("/");
            format!("https://{name}.{namespace}.svc:{}/{}", port.unwrap_or(443), path.trim_start_matches('/'))
        }
        (None, None) => String::new(),
    };
    with_timeout(url, seconds)
}

/// Tells the webhook how long it has, as upstream does.
fn with_timeout(path: String, seconds: u64) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}timeout={seconds}s")
}

async fn send(view: &dyn View, config: &Hook, review: &Value, seconds: u64) -> Result<Vec<u8>, String> {
    let (target, path) = match (&config.url, &config.service) {
        (Some(url), None) => by_url(url)?,
        (None, Some(service)) => by_service(view, service)?,
        _ => return Err("exactly one of url and service must be set".into()),
    };
    let tls = trust(config.ca_bundle.as_deref().unwrap_or_default())?;
    let stream = forward::dial(&target, Some(&tls)).await.map_err(|status| status.message)?;
    let json = HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json.clone()), (header::ACCEPT, json)]);
    let path = with_timeout(path, seconds);
    let outgoing = Outgoing { method: Method::POST, path, headers, body: full(review.to_string()) };
    let response = forward::send(&target, stream, outgoing).await.map_err(|status| status.message)?;
    let code = response.status();
    let body = Limited::new(response.into_body(), limits::BODY_BYTES)
        .collect()
        .await
        .map_err(|e| format!("the answer cannot be read: {e}"))?
        .to_bytes();
    if !code.is_success() {
        return Err(format!("it answered {code}"));
    }
    Ok(body.to_vec())
}

fn by_url(url: &str) -> Result<(Target, String), String> {
    let uri: Uri = url.parse().map_err(|e| format!("{url:?} is not a URL: {e}"))?;
    let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?;
    if uri.scheme_str() != Some("https") {
        return Err(format!("{url:?} is not https"));
    }
    let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let target = Target {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(443),
        name: format!("webhook {url}"),
        server_name: None,
    };
    Ok((target, path))
}

pub(crate) fn by_service(view: &dyn View, service: &ServiceRef) -> Result<(Target, String), String> {
    let (namespace, name) = (&service.namespace, &service.name);
    let port = service.port.unwrap_or(443);
    let stored = view
        .get("", "services", namespace, name)
        .ok_or_else(|| format!("service {name:?} not found in namespace {namespace:?}"))?
        .value();
    let ports = super::super::list(&stored["spec"]["ports"]);
    let chosen = ports
        .iter()
        .find(|p| p["port"] == port)
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let (host, port) = proxy::endpoint(view, namespace, name, port_name)
        .ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
    let target = Target {
        host,
        port,
        name: format!("service {namespace}/{name}"),
        server_name: Some(format!("{name}.{namespace}.svc")),
    };
    let path = service.path.as_deref().unwrap_or("/").to_owned();
    Ok((target, if path.starts_with('/') { path } else { format!("/{path}") }))
}

fn trust(ca_bundle: &str) -> Result<Arc<ClientConfig>, String> {
    let pem = BASE64.decode(ca_bundle).map_err(|e| format!("caBundle is not base64: {e}"))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let added = cert.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(|e| format!("caBundle: {e}"))?;
    }
    if roots.is_empty() {
        return Err("caBundle holds no certificate".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

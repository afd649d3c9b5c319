//! From results to HTTP responses: objects and statuses as JSON or YAML, with warnings.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use sluice_api::status::Status;

use crate::{
    context::{Body, full},
    negotiate::Form,
    view,
};

/// A response of JSON bytes.
pub(crate) fn json(code: u16, bytes: Bytes) -> Response<Body> {
    typed(code, "application/json", full(bytes))
}

/// A response of one line or more of text.
pub(crate) fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = typed(code, "text/plain; charset=utf-8", full(text.into()));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// A response with this body and media type.
pub(crate) fn typed(code: u16, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An object's JSON in the form asked for.
pub(crate) fn object(code: u16, bytes: Bytes, form: Form) -> Response<Body> {
    if !form.yaml && !form.pretty {
        return json(code, bytes);
    }
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if form.yaml {
        let yaml = serde_saphyr::to_string(&value).unwrap_or_default();
        return typed(code, "application/yaml", full(yaml));
    }
    let mut pretty = serde_json::to_vec_pretty(&value).unwrap_or_default();
    pretty.push(b'\n');
    json(code, pretty.into())
}

/// A failure.
pub(crate) fn failure(status: &Status, form: Form) -> Response<Body> {
    let mut response = object(status.code, view::encode(&status.to_json()), form);
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 || status.code == 429 {
        let retry = HeaderValue::from(retry.max(1));
        response.headers_mut().insert(header::RETRY_AFTER, retry);
    }
    if status.code == 401 {
        let challenge = HeaderValue::from_static("Basic realm=\"kubernetes-master\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Adds upstream's `Warning` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

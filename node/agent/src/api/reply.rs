//! Bodies and small answers of the node's API.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// A response body: all at once or streamed.
pub(crate) type Reply = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Reply {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// 200 with text.
pub(crate) fn text(body: &str) -> Response<Reply> {
    with_type("text/plain; charset=utf-8", body.to_owned())
}

/// 200 with JSON.
pub(crate) fn json(value: &serde_json::Value) -> Response<Reply> {
    with_type("application/json", value.to_string())
}

/// 200 with a body of that type.
pub(crate) fn with_type(content_type: &'static str, body: String) -> Response<Reply> {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// A refusal in words, as upstream's node API answers.
pub(crate) fn error(status: StatusCode, message: &str) -> Response<Reply> {
    let mut response = text(message);
    *response.status_mut() = status;
    response
}

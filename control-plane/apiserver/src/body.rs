//! Reading request bodies: the size limit, media types, and the type that a body claims to be.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde_json::Value;
use sluice_api::{
    decode::{self, Parsed},
    status::Status,
    wire,
};

use crate::{context::Body, limits, meta};

/// What bodies of objects may be written in.
const OBJECTS: [&str; 3] = ["application/json", "application/yaml", wire::MEDIA_TYPE];

/// The forms of an object's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Yaml,
    Protobuf,
}

/// What a patch may be written in.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What a patch of a custom resource may be written in.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// The forms of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// The whole body; 413 when it is too large.
pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Status> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limits::BODY_BYTES) {
        return Err(Status::too_large(limits::BODY_BYTES));
    }
    let mut body = body;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("the body of the request could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > limits::BODY_BYTES {
            return Err(Status::too_large(limits::BODY_BYTES));
        }
        // Most bodies are one frame, which is kept as it is.
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// The media type without its parameters; JSON when nothing is said.
fn media(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .unwrap_or(OBJECTS[0])
}

/// The form of an object's body; 415 for what cannot be read.
pub(crate) fn form(headers: &HeaderMap) -> Result<Form, Status> {
    match media(headers) {
        "application/json" => Ok(Form::Json),
        "application/yaml" => Ok(Form::Yaml),
        wire::MEDIA_TYPE => Ok(Form::Protobuf),
        _ => Err(Status::unsupported_media_type(&OBJECTS)),
    }
}

/// The form of a patch; 415 for an unknown one.
pub(crate) fn patch_kind(headers: &HeaderMap) -> Result<PatchKind, Status> {
    match media(headers) {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => Err(Status::unsupported_media_type(&PATCHES)),
    }
}

/// Whether the body says that it is an apply configuration.
pub(crate) fn is_apply(headers: &HeaderMap) -> bool {
    media(headers) == "application/apply-patch+yaml"
}

/// The 415 for a strategic merge patch of a custom resource.
pub(crate) fn unsupported_patch() -> Status {
    Status::unsupported_media_type(&CUSTOM_PATCHES)
}

/// The body as a value, with what is wrong with it but can be read over (duplicate fields).
pub(crate) fn parse(bytes: &Bytes, form: Form) -> Result<Parsed, Status> {
    match form {
        Form::Json => decode::parse(bytes),
        Form::Yaml => yaml(bytes),
        Form::Protobuf => Ok(Parsed { value: wire::decode(bytes)?, duplicates: Vec::new() }),
    }
}

/// Of keys that occur twice the last one counts, and the first such key is told.
fn yaml(bytes: &[u8]) -> Result<Parsed, Status> {
    use serde_saphyr::{Error, from_slice_with_options, options, options::DuplicateKeyPolicy::LastWins};
    let refused = |why: Error| Status::bad_request(format!("couldn't get version/kind; yaml parse error: {why}"));
    let (key, location) = match from_slice_with_options::<Value>(bytes, options! { with_snippet: false }) {
        Ok(value) => return Ok(Parsed { value, duplicates: Vec::new() }),
        Err(Error::DuplicateMappingKey { key: Some(key), location }) => (key, location),
        Err(why) => return Err(refused(why)),
    };
    let options = options! { with_snippet: false, duplicate_keys: LastWins };
    let value = from_slice_with_options(bytes, options).map_err(refused)?;
    let told = format!("yaml: unmarshal errors:\n  line {}: key {key:?} already set in map", location.line());
    Ok(Parsed { value, duplicates: vec![told] })
}

/// [`parse`] for an object of this kind; what is none is refused in upstream's words.
pub(crate) fn parse_object(bytes: &Bytes, form: Form, kind: &str) -> Result<Parsed, Status> {
    let unrecognized = |why: &str| {
        let text = summary(bytes);
        Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({text})"))
    };
    let parsed = match parse(bytes, form) {
        Err(status) if status.code == 400 && form != Form::Protobuf => return Err(unrecognized(&status.message)),
        parsed => parsed?,
    };
    let found = match &parsed.value {
        Value::Object(_) => return Ok(parsed),
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    };
    let why = format!("couldn't get version/kind; json parse error: json: cannot unmarshal {found} into an object");
    Err(unrecognized(&why))
}

/// The beginning of a body, as text if it may be JSON, else in hex.
fn summary(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "<empty>".to_owned();
    }
    let start = &bytes[..bytes.len().min(limits::BODY_SUMMARY)];
    let text = match start {
        [b'{', ..] => String::from_utf8_lossy(start).into_owned(),
        _ => start.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if start.len() < bytes.len() { format!("{text} ...") } else { text }
}

/// Group, version and kind that a body has to be of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
}

/// Checks what a body says it is, and fills in what it does not say; both come first in the object.
pub(crate) fn check_type(object: &mut Value, expected: Expected<'_>) -> Result<(), Status> {
    if !object.is_object() {
        let kind = expected.kind;
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): json: cannot unmarshal value into an object"
        )));
    }
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != expected.kind {
        let version = if version.is_empty() { expected.api_version } else { version };
        let short = version.rsplit('/').next().unwrap_or(version);
        return Err(Status::bad_request(format!(
            "{kind} in version \"{short}\" cannot be handled as a {}: expected kind {}, but got {kind}",
            expected.kind, expected.kind
        )));
    }
    // What kubectl before 1.22 drains nodes with; upstream takes it as well (`AcceptsGroupVersion` of its eviction).
    let older = expected.kind == "Eviction" && version == "policy/v1beta1";
    if !version.is_empty() && version != expected.api_version && !older {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    let map = meta::map(object);
    for (place, field, value) in [(0, "apiVersion", expected.api_version), (1, "kind", expected.kind)] {
        if map.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
            map.shift_remove(field);
            map.shift_insert(place.min(map.len()), field.to_owned(), value.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn headers(content_type: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        headers
    }

    #[test]
    fn media_types() {
        assert_eq!(form(&HeaderMap::new()).unwrap(), Form::Json);
        assert_eq!(form(&headers("application/yaml; charset=utf-8")).unwrap(), Form::Yaml);
        assert_eq!(form(&headers("application/vnd.kubernetes.protobuf")).unwrap(), Form::Protobuf);
        assert_eq!(form(&headers("text/plain")).unwrap_err().code, 415);
        assert_eq!(patch_kind(&headers("application/merge-patch+json")).unwrap(), PatchKind::Merge);
        assert_eq!(patch_kind(&headers("application/json")).unwrap_err().code, 415);
    }

    #[test]
    fn what_is_no_object_is_told_as_upstream_does() {
        let check = |body: &'static str, form: Form, expected: &str| {
            let status = parse_object(&Bytes::from_static(body.as_bytes()), form, "Deployment").unwrap_err();
            let wanted =
                "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; ";
            let rest = status.message.strip_prefix(wanted).unwrap_or_else(|| panic!("{}", status.message));
            assert_eq!((status.code, rest), (400, expected));
        };
        check("", Form::Json, "json parse error: EOF while parsing a value at line 1 column 0 (<empty>)");
        check(
            r#"{"metadata": {"name": "a-long-name", }}"#,
            Form::Json,
            r#"json parse error: trailing comma at line 1 column 38 ({"metadata": {"name": "a-long- ...)"#,
        );
        check("[1]", Form::Json, "json parse error: json: cannot unmarshal array into an object (5b315d)");
        check(
            "just text",
            Form::Yaml,
            "json parse error: json: cannot unmarshal string into an object (6a7573742074657874)",
        );
    }

    #[test]
    fn keys_that_occur_twice_in_yaml_are_told() {
        let text = "kind: Deployment\nspec:\n  paused: true\n  paused: false\n";
        let parsed = parse_object(&Bytes::from_static(text.as_bytes()), Form::Yaml, "Deployment").unwrap();
        assert_eq!(parsed.value, json!({"kind": "Deployment", "spec": {"paused": false}}));
        assert_eq!(parsed.duplicates, ["yaml: unmarshal errors:\n  line 4: key \"paused\" already set in map"]);
        let broken = parse(&Bytes::from_static(b"a: [1\nb"), Form::Yaml).unwrap_err().message;
        assert!(
            broken.starts_with("couldn't get version/kind; yaml parse error: ") && !broken.contains('\n'),
            "{broken}"
        );
    }

    #[tokio::test]
    async fn large_bodies_are_refused() {
        let body = crate::context::full(vec![b'x'; limits::BODY_BYTES + 1]);
        let status = read(&HeaderMap::new(), body).await.unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (413, "Request entity too large: limit is 3145728"));
    }

    #[test]
    fn types_are_checked_and_filled_in() {
        let expected = Expected { api_version: "apps/v1", kind: "Deployment" };
        let mut object = json!({"metadata": {}});
        check_type(&mut object, expected).unwrap();
        assert_eq!(object.to_string(), r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{}}"#);
        let status = check_type(&mut json!({"kind": "Deployment", "apiVersion": "v1"}), expected).unwrap_err();
        assert_eq!(
            status.message,
            "the API version in the data (v1) does not match the expected API version (apps/v1)"
        );
        assert_eq!(check_type(&mut json!({"kind": "Pod"}), expected).unwrap_err().code, 400);
        assert_eq!(check_type(&mut json!([]), expected).unwrap_err().code, 400);
    }
}

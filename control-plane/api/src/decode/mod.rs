//! From a request's JSON to an object of a type: parsing with bounds, duplicate keys, unknown and
//! mistyped fields, and the canonical form of times, quantities and bytes.
//!
//! What upstream's strict decoding reports comes back as a list of messages; the caller ignores
//! it, sends it as warnings or makes it an error, as `fieldValidation` asks.

mod parse;
mod suggest;
mod walk;

use serde_json::Value;

pub use parse::{Parsed, parse};

use crate::{
    limits,
    schema::{self, TypeRef},
    status::{Status, quote},
    structural::Custom,
};

/// Decodes a body: [`parse`], then [`strict`]; the messages of both.
pub fn body(schema: TypeRef<'_>, bytes: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let parsed = parse(bytes)?;
    let (value, unknown) = strict(schema, parsed.value)?;
    let mut messages = parsed.duplicates;
    messages.extend(unknown);
    messages.truncate(limits::STRICT_ERRORS);
    Ok((value, messages))
}

/// Checks a value against its type. Unknown fields and nulls are dropped; times, quantities and
/// bytes get their canonical form. Returns `unknown field "spec.foo"` messages, at most
/// [`limits::STRICT_ERRORS`]. `BadRequest` for a value of the wrong type.
pub fn strict(schema: TypeRef<'_>, value: Value) -> Result<(Value, Vec<String>), Status> {
    walk::walk(schema, value).map_err(|why| cannot_handle(schema, &why))
}

/// Checks a custom resource against its schema: metadata as every object's, the rest pruned. The
/// messages are those of [`strict`].
///
/// # Errors
/// `BadRequest` for metadata of a wrong type.
pub fn custom(custom: &Custom, mut value: Value) -> Result<(Value, Vec<String>), Status> {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let mut messages = Vec::new();
    if let (Some(schema), Some(Value::Object(_))) = (schema::builtin().get(META), value.get("metadata")) {
        let (metadata, unknown) = strict(schema, value["metadata"].take())?;
        value["metadata"] = metadata;
        let below = |message: String| message.replacen("field \"", "field \"metadata.", 1);
        messages.extend(unknown.into_iter().map(below));
    }
    messages.extend(custom.prune(&mut value));
    messages.truncate(limits::STRICT_ERRORS);
    Ok((value, messages))
}

/// The `BadRequest` for messages of strict decoding when the request asks for strict validation.
pub fn strict_error(schema: TypeRef<'_>, messages: &[String]) -> Status {
    cannot_handle(schema, &format!("strict decoding error: {}", messages.join(", ")))
}

fn cannot_handle(schema: TypeRef<'_>, why: &str) -> Status {
    let mut parts = schema.name().rsplit('.');
    let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Status::bad_request(format!("{kind} in version {} cannot be handled as a {kind}: {why}", quote(version)))
}

#[cfg(test)]
mod tests;

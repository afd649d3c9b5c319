//! The three client-side patch formats: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and
//! strategic merge patch. Each takes the original and the parsed patch and returns the patched
//! object, which the caller decodes, defaults and validates like any other body.

mod order;
mod strategic;

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

pub use strategic::strategic;

use crate::{
    limits,
    status::{Details, Status},
};

/// Applies a list of RFC 6902 operations. `BadRequest` for a malformed patch, 422 when an
/// operation cannot be applied or a `test` fails, 413 beyond [`limits::JSON_PATCH_OPERATIONS`].
pub fn json(original: &Value, patch: Value) -> Result<Value, Status> {
    let patch = operations(patch).map_err(|e| Status::bad_request(format!("invalid patch: {e}")))?;
    if patch.0.len() > limits::JSON_PATCH_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {}, got {}",
            limits::JSON_PATCH_OPERATIONS,
            patch.0.len()
        );
        return Err(Status::new(413, "RequestEntityTooLarge", message));
    }
    let mut doc = original.clone();
    // Copies of copies grow exponentially: what is copied is bounded like a body.
    let mut copied = 0;
    for operation in &patch.0 {
        if let PatchOperation::Copy(copy) = operation {
            copied += doc.pointer(copy.from.as_str()).map_or(0, size);
            if copied > limits::BODY {
                return Err(Status::too_large(limits::BODY));
            }
        }
        json_patch::patch_unsafe(&mut doc, std::slice::from_ref(operation)).map_err(|_| cannot_apply())?;
    }
    Ok(doc)
}

/// The operations of a JSON patch. One that lacks its value means null, as upstream reads it: its clients leave out what is empty.
///
/// # Errors
/// When it is no list of RFC 6902's operations.
pub fn operations(mut patch: Value) -> serde_json::Result<Patch> {
    let listed = patch.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut);
    for operation in listed
        .filter(|operation| matches!(operation.get("op").and_then(Value::as_str), Some("add" | "replace" | "test")))
    {
        operation.entry("value").or_insert(Value::Null);
    }
    serde_json::from_value(patch)
}

/// Applies an RFC 7386 merge patch; both have to be objects.
pub fn merge(original: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("a merge patch has to be a JSON object"));
    }
    let mut doc = original.clone();
    json_patch::merge(&mut doc, patch);
    Ok(doc)
}

/// A value as Go's `%v` prints it, which is how upstream's messages show patches.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

/// 422 for a well-formed patch that does not fit the object; upstream does not say why.
fn cannot_apply() -> Status {
    Status::unprocessable("the server rejected our request due to an error in our request")
        .with_details(Details::default())
}

/// About the bytes that the value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 2,
        Value::Array(items) => items.iter().map(|v| size(v) + 1).sum::<usize>() + 2,
        Value::Object(fields) => fields.iter().map(|(k, v)| k.len() + 4 + size(v)).sum::<usize>() + 2,
        _ => 5,
    }
}

#[cfg(test)]
mod tests;

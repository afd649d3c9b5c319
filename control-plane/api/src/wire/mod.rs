//! Protobuf bodies: what typed Go clients (some of kubectl's commands among them) send. A body is
//! decoded into the same JSON value that its JSON form would give; answers are always JSON, which
//! those clients accept as well.
//!
//! The envelope is upstream's `runtime.Unknown` behind the magic `k8s\0`. Field numbers come from
//! `wire.tsv`, which `cargo xtask codegen` writes; the shapes of values from [`crate::schema`].

mod message;
mod reader;

use std::{collections::HashMap, sync::LazyLock};

use serde_json::{Value, json};

use crate::{
    resource,
    schema::{self, TypeRef},
    status::Status,
};
use reader::Reader;

/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// Types of bodies that are no resource of their own.
const BODIES: &[(&str, &str, &str)] = &[
    ("meta.k8s.io/v1", "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
    ("v1", "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
    ("v1", "Binding", "io.k8s.api.core.v1.Binding"),
    ("policy/v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
    ("autoscaling/v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
    ("authentication.k8s.io/v1", "TokenRequest", "io.k8s.api.authentication.v1.TokenRequest"),
];

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A JSON field.
    Field(&'static str),
    /// A message whose fields are the outer type's own in JSON.
    Inline(&'static str),
}

/// Whether bytes are such a body, by their prefix.
pub fn is_body(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Decodes a whole body: the object with its `apiVersion` and `kind`.
///
/// # Errors
/// 400 for bytes that are no such body or name a type that is not served.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    let bad = |what: &str| Status::bad_request(format!("the protobuf body cannot be decoded: {what}"));
    let raw = body.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin with the prefix of Kubernetes objects"))?;
    let (mut api_version, mut kind, mut object) = (String::new(), String::new(), &[][..]);
    for field in Reader::new(raw) {
        let (number, data) = field.map_err(|e| bad(e.0))?;
        match number {
            1 => {
                for field in Reader::new(data.bytes().map_err(|e| bad(e.0))?) {
                    let (number, data) = field.map_err(|e| bad(e.0))?;
                    let text = data.text().map_err(|e| bad(e.0))?.to_owned();
                    match number {
                        1 => api_version = text,
                        2 => kind = text,
                        _ => {}
                    }
                }
            }
            2 => object = data.bytes().map_err(|e| bad(e.0))?,
            3 if data.text().is_ok_and(|encoding| !encoding.is_empty()) => return Err(bad("its content is encoded")),
            _ => {}
        }
    }
    let ty = type_of(&api_version, &kind)
        .ok_or_else(|| bad(&format!("no kind \"{kind}\" is registered for version \"{api_version}\"")))?;
    let fields = message::object(ty, object, 0).map_err(|e| bad(e.0))?;
    let mut value = json!({ "kind": kind, "apiVersion": api_version });
    if let (Value::Object(all), Value::Object(fields)) = (&mut value, fields) {
        all.extend(fields);
    }
    Ok(value)
}

fn type_of(api_version: &str, kind: &str) -> Option<TypeRef<'static>> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let row = resource::builtin().by_kind(group, version, kind).map(|row| row.schema.as_ref());
    let body = || BODIES.iter().find(|(v, k, _)| *v == api_version && *k == kind).map(|(_, _, name)| *name);
    // Every group knows the options of a delete.
    let options = || (kind == "DeleteOptions").then_some(BODIES[0].2);
    schema::builtin().get(row.or_else(body).or_else(options)?)
}

/// The fields of a message by number.
fn places(message: &str) -> Option<&'static HashMap<u32, Place>> {
    static TABLE: LazyLock<HashMap<&'static str, HashMap<u32, Place>>> = LazyLock::new(|| {
        let lines = include_str!("wire.tsv").lines().filter_map(|line| line.split_once('\t'));
        lines.map(|(name, fields)| (name, fields.split(' ').filter_map(place).collect())).collect()
    });
    TABLE.get(message)
}

fn place(word: &'static str) -> Option<(u32, Place)> {
    let (number, name) = word.split_once(':')?;
    let place = name.strip_prefix('^').map_or(Place::Field(name), Place::Inline);
    Some((number.parse().ok()?, place))
}

#[cfg(test)]
mod tests;

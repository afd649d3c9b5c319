//! OpenAPI documents of what is served: version 3 per group and version, version 2 as one.
//!
//! Made from the resource table (`routes.rs`), the request parameters (`parameters.rs`) and the
//! types' JSON schemas with the facts of the arena (`types.rs`). Documents are large (a few MB): they
//! are written part by part and not kept here; the server keeps the compressed bytes.

mod parameters;
mod proto;
mod routes;
mod types;
mod v2;
mod v3;

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json, value::RawValue};

use crate::resource::Registry;

use routes::Route;
pub use v2::{write_v2, write_v2_protobuf};
pub use v3::write_v3;

/// `/openapi/v3`: where the documents are. Each address has a hash that changes with the rows, so
/// that clients may keep what they fetched.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let path = document_path(group, version);
            let hash = document_hash(registry, group, version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// The hash in the address of one document, also its ETag.
pub fn document_hash(registry: &Registry, group: &str, version: &str) -> String {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for facts in [include_str!("../schema/facts.tsv"), include_str!("../schema/own.tsv")] {
        facts.hash(&mut hasher);
    }
    include_str!("../schema/own.json").hash(&mut hasher);
    for row in registry.in_version(group, version) {
        format!("{row:?}").hash(&mut hasher);
    }
    format!("{:016X}", hasher.finish())
}

/// `api/v1`, `apis/apps/v1`.
fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The group and version that a document's path names.
fn parse_path(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_matches('/');
    match path.split('/').collect::<Vec<_>>()[..] {
        ["api", version] => Some(("", version)),
        ["apis", group, version] => Some((group, version)),
        _ => None,
    }
}

/// The paths of a document, each made when its turn to be written comes.
struct Paths<'a> {
    routes: &'a [Route],
    item: fn(&Route) -> Value,
}

impl Serialize for Paths<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.routes.iter().map(|route| (&route.path, (self.item)(route))))
    }
}

/// A value as text.
fn text(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a value is JSON")
}

/// The part of a document that is the same for every version of OpenAPI and every API.
fn info() -> Value {
    json!({"title": "Kubernetes", "version": "unversioned"})
}

/// How requests are authenticated.
fn security_schemes() -> Value {
    json!({
        "BearerToken": {
            "description": "Bearer Token authentication",
            "type": "apiKey",
            "name": "authorization",
            "in": "header",
        },
    })
}

#[cfg(test)]
mod tests;

//! Objects as bytes for the store.

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;
use sluice_api::status::Status;

/// The stored form: without resourceVersion, which is the store's own.
pub(super) fn encode(object: &Value) -> Result<Bytes, Status> {
    serde_json::to_vec(&Stored(object)).map(Bytes::from).map_err(Status::internal)
}

/// Writes an object out as it is stored, without a copy of it.
struct Stored<'a>(&'a Value);

/// Its metadata.
struct StoredMetadata<'a>(&'a Value);

impl Serialize for Stored<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(fields) = self.0.as_object() else { return self.0.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in fields {
            match name.as_str() {
                "metadata" => map.serialize_entry(name, &StoredMetadata(value))?,
                _ => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

impl Serialize for StoredMetadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_object() {
            Some(fields) => serializer.collect_map(fields.iter().filter(|(name, _)| *name != "resourceVersion")),
            None => self.0.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_stored_without_the_stores_own_field() {
        let check = |object: Value, expected: &str| assert_eq!(encode(&object).unwrap(), expected);
        check(
            json!({"metadata": {"name": "a", "resourceVersion": "7", "uid": "u"}, "spec": {"resourceVersion": "8"}}),
            r#"{"metadata":{"name":"a","uid":"u"},"spec":{"resourceVersion":"8"}}"#,
        );
        check(json!({"metadata": {"resourceVersion": "7"}}), r#"{"metadata":{}}"#);
        check(json!({"metadata": null, "kind": "K"}), r#"{"metadata":null,"kind":"K"}"#);
    }
}

//! One stored object: its canonical JSON bytes, with the resourceVersion spliced in once, and the
//! metadata that reads, selectors and deletion need without parsing them again.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use sluice_store::Revision;

/// An object as the cache holds it, shared by GET, LIST and WATCH.
#[derive(Debug)]
pub struct StoredObject {
    /// The whole object as JSON, resourceVersion included: what readers are sent.
    pub bytes: Bytes,
    pub name: Box<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub uid: Box<str>,
    /// The revision of the last write; `metadata.resourceVersion`.
    pub revision: Revision,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the kind's selectable fields beyond name and namespace, in the kind's order.
    pub fields: Box<[Box<str>]>,
    /// True once `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata` from its opening to its closing brace, within `bytes`.
    metadata: (u32, u32),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    uid: std::borrow::Cow<'a, str>,
    #[serde(default)]
    labels: Option<std::collections::BTreeMap<Box<str>, Box<str>>>,
    #[serde(default)]
    deletion_timestamp: Option<&'a str>,
}

impl StoredObject {
    /// Reads a value of the store, which carries no resourceVersion, and splices `revision` in.
    pub fn decode(stored: &[u8], revision: Revision) -> Result<Self, serde_json::Error> {
        let envelope: Envelope<'_> = serde_json::from_slice(stored)?;
        let raw = envelope.metadata.get();
        let metadata: Metadata<'_> = serde_json::from_str(raw)?;
        // The raw value borrows from `stored`, so its place there is a difference of addresses.
        let start = raw.as_ptr() as usize - stored.as_ptr() as usize;
        let version = format!("\"resourceVersion\":\"{revision}\"");
        let empty = raw[1..].trim_start().starts_with('}');
        let mut bytes = Vec::with_capacity(stored.len() + version.len() + 1);
        bytes.extend_from_slice(&stored[..=start]);
        bytes.extend_from_slice(version.as_bytes());
        if !empty {
            bytes.push(b',');
        }
        bytes.extend_from_slice(&stored[start + 1..]);
        let end = start + raw.len() + version.len() + usize::from(!empty);
        Ok(Self {
            name: metadata.name.into(),
            namespace: metadata.namespace.into(),
            uid: metadata.uid.into(),
            revision,
            labels: metadata.labels.unwrap_or_default().into_iter().collect(),
            fields: Box::default(),
            deleting: metadata.deletion_timestamp.is_some(),
            metadata: (start as u32, end as u32),
            bytes: bytes.into(),
        })
    }

    /// The object as a value, for the paths that change or compute something.
    pub fn value(&self) -> Value {
        // The bytes were parsed when they were decoded; only a broken allocator could fail here.
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The object's `metadata` as JSON text.
    pub fn metadata_json(&self) -> &[u8] {
        &self.bytes[self.metadata.0 as usize..self.metadata.1 as usize]
    }

    /// Reads the object into a narrow type.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_resource_version_is_spliced_into_the_metadata() {
        let check = |stored: &str, expected: &str| {
            let object = StoredObject::decode(stored.as_bytes(), 7).unwrap();
            assert_eq!(std::str::from_utf8(&object.bytes).unwrap(), expected);
            let metadata: Value = serde_json::from_slice(object.metadata_json()).unwrap();
            assert_eq!(metadata["resourceVersion"], "7");
        };
        check(
            r#"{"spec":{"metadata":{"name":"no"}},"metadata":{"name":"a"},"x":1}"#,
            r#"{"spec":{"metadata":{"name":"no"}},"metadata":{"resourceVersion":"7","name":"a"},"x":1}"#,
        );
        check(r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#);
    }

    #[test]
    fn metadata_is_extracted() {
        let object = StoredObject::decode(
            br#"{"metadata":{"name":"a","namespace":"n","uid":"u","labels":{"k":"v"},"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#,
            1,
        )
        .unwrap();
        assert_eq!((&*object.name, &*object.namespace, &*object.uid), ("a", "n", "u"));
        assert_eq!(object.label("k"), Some("v"));
        assert_eq!(object.label("z"), None);
        assert!(object.deleting);
    }
}

//! One stored object: its canonical JSON bytes, with the resourceVersion spliced in once, and the
//! metadata that reads, selectors and deletion need without parsing them again.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use sluice_store::Revision;

/// An object as the cache holds it, shared by GET, LIST and WATCH.
#[derive(Debug)]
pub struct StoredObject {
    /// The whole object as JSON, resourceVersion included: what readers are sent. A part of `frame`.
    pub bytes: Bytes,
    /// The object as its natural watch event (ADDED when the write created it, else MODIFIED).
    pub(crate) frame: Bytes,
    pub name: Box<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub uid: Box<str>,
    /// The revision of the last write; `metadata.resourceVersion`.
    pub revision: Revision,
    /// True if the last write created the object.
    pub(crate) created: bool,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the kind's selectable fields beyond name and namespace, in the kind's order.
    pub fields: Box<[Box<str>]>,
    /// Which of `fields` tells most of the kind's watchers apart; `None`: the name does.
    pub(crate) tagged_by: Option<u8>,
    /// True once `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata` from its opening to its closing brace, within `bytes`.
    metadata: (u32, u32),
    /// The text of `apiVersion`, within `bytes`; empty without one.
    api_version: (u32, u32),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow, default)]
    api_version: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    #[serde(default)]
    deletion_timestamp: Option<&'a str>,
}

const CREATED: &[u8] = b"{\"type\":\"ADDED\",\"object\":";
const CHANGED: &[u8] = b"{\"type\":\"MODIFIED\",\"object\":";
const END: &[u8] = b"}\n";

impl StoredObject {
    /// Reads a value of the store, which carries no resourceVersion, and splices `revision` in.
    /// `created` says that the value is the key's first.
    pub fn decode(stored: &[u8], revision: Revision, created: bool) -> Result<Self, serde_json::Error> {
        let envelope: Envelope<'_> = serde_json::from_slice(stored)?;
        let raw = envelope.metadata.get();
        let metadata: Metadata<'_> = serde_json::from_str(raw)?;
        // The raw value borrows from `stored`, so its place there is a difference of addresses.
        let start = raw.as_ptr() as usize - stored.as_ptr() as usize;
        let version = format!("\"resourceVersion\":\"{revision}\"");
        let empty = raw[1..].trim_start().starts_with('}');
        let head = if created { CREATED } else { CHANGED };
        let mut frame = Vec::with_capacity(head.len() + stored.len() + version.len() + 1 + END.len());
        frame.extend_from_slice(head);
        frame.extend_from_slice(&stored[..=start]);
        frame.extend_from_slice(version.as_bytes());
        if !empty {
            frame.push(b',');
        }
        frame.extend_from_slice(&stored[start + 1..]);
        let object = head.len()..frame.len();
        frame.extend_from_slice(END);
        let frame = Bytes::from(frame);
        let grown = version.len() + usize::from(!empty);
        let end = start + raw.len() + grown;
        let api_version = envelope.api_version.map_or((0, 0), |raw| {
            let at = raw.get().as_ptr() as usize - stored.as_ptr() as usize;
            let at = if at > start { at + grown } else { at };
            // Without its quotes.
            (at as u32 + 1, (at + raw.get().len()) as u32 - 1)
        });
        Ok(Self {
            bytes: frame.slice(object),
            frame,
            name: metadata.name.into(),
            namespace: metadata.namespace.into(),
            uid: metadata.uid.into(),
            revision,
            created,
            labels: metadata.labels.unwrap_or_default().into_iter().collect(),
            fields: Box::default(),
            tagged_by: None,
            deleting: metadata.deletion_timestamp.is_some(),
            metadata: (start as u32, end as u32),
            api_version,
        })
    }

    /// The object as a value, for the paths that change or compute something.
    pub fn value(&self) -> Value {
        // The bytes were parsed when they were decoded, so they are JSON.
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The object's `metadata` as JSON text.
    pub fn metadata_json(&self) -> &[u8] {
        &self.bytes[self.metadata.0 as usize..self.metadata.1 as usize]
    }

    /// The group and version that the object is stored in.
    pub(crate) fn api_version(&self) -> &[u8] {
        &self.bytes[self.api_version.0 as usize..self.api_version.1 as usize]
    }

    /// The same state as of another revision (`None` only if this object were not JSON).
    pub(crate) fn at_revision(&self, revision: Revision) -> Option<Self> {
        // The splice is the first field of the metadata.
        let at = self.metadata.0 as usize + 1;
        let old = format!("\"resourceVersion\":\"{}\"", self.revision);
        let mut rest = &self.bytes[at + old.len()..];
        if rest.first() == Some(&b',') {
            rest = &rest[1..];
        }
        let stored = [&self.bytes[..at], rest].concat();
        let mut object = Self::decode(&stored, revision, self.created).ok()?;
        object.fields.clone_from(&self.fields);
        object.tagged_by = self.tagged_by;
        Some(object)
    }

    /// The same state in another version: `stored` is its JSON without a resourceVersion.
    pub(crate) fn with_value(&self, stored: &[u8]) -> Result<Self, serde_json::Error> {
        let mut object = Self::decode(stored, self.revision, self.created)?;
        object.fields.clone_from(&self.fields);
        object.tagged_by = self.tagged_by;
        Ok(object)
    }

    /// Reads the object into a narrow type.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }

    /// By what watches of the kind are sorted: a pod's node, any other object's name.
    pub(crate) fn tag(&self) -> &str {
        let field = self.tagged_by.and_then(|at| self.fields.get(usize::from(at)));
        field.map_or(&*self.name, |text| text)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

/// A watch event around an object's bytes.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(object.len() + 40);
    frame.extend_from_slice(b"{\"type\":\"");
    frame.extend_from_slice(kind.as_bytes());
    frame.extend_from_slice(b"\",\"object\":");
    frame.extend_from_slice(object);
    frame.extend_from_slice(END);
    frame.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_resource_version_is_spliced_into_the_metadata() {
        let check = |stored: &str, expected: &str| {
            let object = StoredObject::decode(stored.as_bytes(), 7, true).unwrap();
            assert_eq!(std::str::from_utf8(&object.bytes).unwrap(), expected);
            assert_eq!(object.frame, frame("ADDED", expected.as_bytes()));
            let metadata: Value = serde_json::from_slice(object.metadata_json()).unwrap();
            assert_eq!(metadata["resourceVersion"], "7");
            let later = object.at_revision(12).unwrap();
            let text = std::str::from_utf8(&later.bytes).unwrap();
            assert_eq!(text, expected.replace("\"7\"", "\"12\""));
        };
        check(
            r#"{"spec":{"metadata":{"name":"no"}},"metadata":{"name":"a"},"x":1}"#,
            r#"{"spec":{"metadata":{"name":"no"}},"metadata":{"resourceVersion":"7","name":"a"},"x":1}"#,
        );
        check(r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#);
    }

    #[test]
    fn the_stored_version_is_found_wherever_it_stands() {
        let check = |stored: &str, expected: &str| {
            let object = StoredObject::decode(stored.as_bytes(), 7, true).unwrap();
            assert_eq!(std::str::from_utf8(object.api_version()).unwrap(), expected, "{stored}");
        };
        check(r#"{"apiVersion":"g/v1","metadata":{"name":"a"}}"#, "g/v1");
        check(r#"{"metadata":{"name":"a"},"apiVersion": "g/v1"}"#, "g/v1");
        check(r#"{"metadata":{},"apiVersion":"v1"}"#, "v1");
        check(r#"{"metadata":{}}"#, "");
    }

    #[test]
    fn metadata_is_extracted() {
        let object = StoredObject::decode(
            br#"{"metadata":{"name":"a","namespace":"n","uid":"u","labels":{"k":"v"},"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#,
            1,
            false,
        )
        .unwrap();
        assert_eq!((&*object.name, &*object.namespace, &*object.uid), ("a", "n", "u"));
        assert_eq!(object.label("k"), Some("v"));
        assert_eq!(object.label("z"), None);
        assert!(object.deleting);
        assert_eq!(object.frame, frame("MODIFIED", &object.bytes));
    }
}

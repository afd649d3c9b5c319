//! What is written along with an object, in the same transaction: all of it, or nothing.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};
use sluice_store::{Compare, Op, Range, Revision, prefix_end};

use super::{NOTES, Storage, StoredObject, encode, failed, key};
use crate::meta;

/// Further writes of one transaction, and what has to hold for it.
#[derive(Debug, Default)]
pub(crate) struct Along {
    pub(super) compare: Vec<Compare>,
    pub(super) writes: Vec<Op>,
}

impl Along {
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// When values that servers share were last written, by name.
#[derive(Debug, Default)]
pub(crate) struct Notes(HashMap<String, Revision>);

impl Storage {
    /// Adds a new object, which is all there but for its kind's defaults. Nothing is written when one of its name is
    /// there.
    pub(crate) fn also_create(&self, along: &mut Along, resource: &Resource, object: &Value) -> Result<(), Status> {
        let key = key(resource.store_prefix(), meta::namespace(object), meta::name(object));
        let value = self.at_rest.seal(&key, encode(object)?)?;
        let key = Bytes::from(key);
        along.compare.push(Compare::Version { key: key.clone(), equals: 0 });
        along.writes.push(Op::Put { key, value, lease: 0 });
        Ok(())
    }

    /// Adds the removal of an object. Nothing is written when it has changed since.
    pub(crate) fn also_remove(&self, along: &mut Along, resource: &Resource, object: &StoredObject) {
        let key = Bytes::from(key(resource.store_prefix(), &object.namespace, &object.name));
        along.compare.push(Compare::ModRevision { key: key.clone(), equals: object.revision });
        along.writes.push(Op::Delete { key, end: Bytes::new() });
    }

    /// Adds a note: a key that is no object. Nothing is written when it was written after `known` was read.
    pub(crate) fn also_note(&self, along: &mut Along, name: &str, known: &Notes) {
        let key = Bytes::from(format!("{NOTES}{name}"));
        let equals = known.0.get(name).copied().unwrap_or(0);
        along.compare.push(Compare::ModRevision { key: key.clone(), equals });
        along.writes.push(Op::Put { key, value: Bytes::from_static(b"1"), lease: 0 });
    }

    /// When the notes whose names begin so were last written. The cache is at least as new when this returns.
    pub(crate) async fn notes(&self, prefix: &str) -> Result<Notes, Status> {
        let start = format!("{NOTES}{prefix}");
        let end = prefix_end(start.as_bytes());
        let range = Range { key: Bytes::from(start), end, ..Range::default() };
        let kvs = self.engine.range(range).await.map_err(failed)?.kvs;
        if let Some(newest) = kvs.iter().map(|kv| kv.mod_revision).max() {
            self.wait_for(newest).await?;
        }
        let name = |key: &Bytes| String::from_utf8_lossy(&key[NOTES.len()..]).into_owned();
        Ok(Notes(kvs.iter().map(|kv| (name(&kv.key), kv.mod_revision)).collect()))
    }
}

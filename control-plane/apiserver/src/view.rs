//! One served resource and the row its objects are stored in: conversion between the two, selection,
//! and the forms that readers ask for. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_api::{
    convert,
    resource::{Registry, Resource},
    selector::{Fields, Labels},
    status::Status,
    table,
};

use crate::{
    columns::{self, Column, Columns},
    fields,
    negotiate::{As, IncludeObject},
    request::Query,
    storage::StoredObject,
};

/// A served row and its storage row.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) resource: Arc<Resource>,
    pub(crate) stored: Arc<Resource>,
    /// The printer columns of a custom resource.
    pub(crate) columns: Option<Arc<[Column]>>,
}

/// An object on its way to a client.
#[derive(Clone)]
pub(crate) enum Object {
    Stored(Arc<StoredObject>),
    /// In the served version.
    Made(Value),
}

/// Label and field selector of one request.
#[derive(Clone, Default)]
pub(crate) struct Selection {
    pub(crate) labels: Labels,
    pub(crate) fields: Fields,
}

impl Selection {
    /// From the query. `BadRequest` in upstream's words.
    pub(crate) fn parse(resource: &Resource, query: &Query) -> Result<Self, Status> {
        Ok(Self {
            labels: Labels::parse(query.text("labelSelector"))?,
            fields: Fields::parse(resource, query.text("fieldSelector"))?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, view: &View, object: &StoredObject) -> bool {
        (self.labels.is_empty() || self.labels.matches(|key| object.label(key)))
            && (self.fields.is_empty() || fields::matches(&self.fields, &view.stored, object))
    }
}

impl View {
    pub(crate) fn new(registry: &Registry, resource: &Arc<Resource>, custom: &Columns) -> Self {
        Self {
            resource: Arc::clone(resource),
            stored: Arc::clone(registry.storage_row(resource)),
            columns: columns::of(custom, resource),
        }
    }

    /// The store prefix of the collection.
    pub(crate) fn prefix(&self) -> &str {
        self.stored.store_prefix()
    }

    /// A stored object's value in the served version.
    pub(crate) fn value(&self, object: &StoredObject) -> Value {
        let mut value = object.value();
        if self.is_stored(object) {
            if let Some(custom) = self.resource.custom.as_ref().filter(|c| c.has_defaults()) {
                custom.defaults(&mut value);
            }
            return value;
        }
        convert::convert(&self.stored, &self.resource, value)
    }

    /// True if the object is in the served version. A custom resource's objects may still be in one that was stored before, or
    /// have been converted.
    pub(crate) fn is_stored(&self, object: &StoredObject) -> bool {
        let resource = &self.resource;
        if resource.custom.is_none() {
            return resource.is_storage_version();
        }
        object.api_version().strip_prefix(resource.group.as_bytes()).and_then(|rest| rest.strip_prefix(b"/"))
            == Some(resource.version.as_bytes())
    }

    /// True if readers of the served version are sent the stored bytes.
    pub(crate) fn shares(&self, object: &StoredObject) -> bool {
        // An object that was stored before its schema got a default shows it when it is read.
        self.is_stored(object) && self.resource.custom.as_ref().is_none_or(|c| !c.has_defaults())
    }

    /// From the served to the stored version.
    pub(crate) fn to_stored(&self, value: Value) -> Value {
        if self.resource.is_storage_version() {
            return value;
        }
        convert::convert(&self.resource, &self.stored, value)
    }

    /// A stored object's JSON in the served version: the shared bytes where no conversion is due.
    pub(crate) fn bytes(&self, object: &StoredObject) -> Bytes {
        if self.shares(object) {
            return object.bytes.clone();
        }
        encode(&self.value(object))
    }

    /// An object in the form asked for.
    pub(crate) fn render(&self, object: &Object, target: As) -> Bytes {
        match (target, object) {
            (As::Object, Object::Stored(stored)) => self.bytes(stored),
            (As::Object, Object::Made(value)) => encode(value),
            (As::Metadata, Object::Stored(stored)) => partial(stored.metadata_json()),
            (As::Metadata, Object::Made(value)) => partial(&encode(&value["metadata"])),
            (As::Table(include), object) => {
                let (value, rv) = match object {
                    Object::Stored(stored) => (self.value(stored), stored.revision.to_string()),
                    Object::Made(value) => {
                        let rv = crate::meta::text(value, "resourceVersion").to_owned();
                        (value.clone(), rv)
                    }
                };
                let rows = vec![self.row(value, include)];
                encode(&self.table(json!({ "resourceVersion": rv }), rows, true))
            }
        }
    }

    /// A table around rows; the columns are left out of all but the first table of a watch.
    pub(crate) fn table(&self, metadata: Value, rows: Vec<Value>, columns: bool) -> Value {
        let definitions = if columns { self.definitions() } else { json!([]) };
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": definitions,
            "rows": rows,
        })
    }

    fn definitions(&self) -> Value {
        match &self.columns {
            Some(custom) => custom.iter().map(Column::definition).collect(),
            None => table::definitions(table::columns(&self.resource)),
        }
    }

    /// The table row of one object (in the served version).
    pub(crate) fn row(&self, object: Value, include: IncludeObject) -> Value {
        let now = jiff::Timestamp::now();
        let cells: Vec<Value> = match &self.columns {
            Some(custom) => custom.iter().map(|column| column.cell(&object, now)).collect(),
            None => table::cells(table::columns(&self.resource), &object, now),
        };
        let carried = match include {
            IncludeObject::None => return json!({ "cells": cells }),
            IncludeObject::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            }),
            IncludeObject::Object => object,
        };
        json!({ "cells": cells, "object": carried })
    }
}

/// `PartialObjectMetadata` around metadata's JSON.
pub(crate) fn partial(metadata: &[u8]) -> Bytes {
    const HEAD: &[u8] = b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":";
    [HEAD, metadata, b"}"].concat().into()
}

/// A value's JSON.
pub(crate) fn encode(value: &Value) -> Bytes {
    // A value's maps have text keys, so writing it to memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

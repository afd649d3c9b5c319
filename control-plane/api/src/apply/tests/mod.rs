#![allow(clippy::unwrap_used)]
mod bookkeeping;
mod builtin;
mod random;
mod stories;
mod tables;

use serde_json::{Value, json};

use super::{Set, Type, Versions, Write, managers::Managers};
use crate::{resource::Resource, status::Status};

/// The types of one kind by version.
pub(super) struct Kind<'a>(pub(super) Vec<(&'a str, Type<'a>)>);

impl Versions for Kind<'_> {
    fn type_of(&self, api_version: &str) -> Option<Type<'_>> {
        self.0.iter().find(|(version, _)| *version == api_version).map(|(_, ty)| *ty)
    }

    fn convert(&self, object: &Value, _: &str, to: &str) -> Option<Value> {
        self.type_of(to)?;
        let mut object = object.clone();
        object["apiVersion"] = to.into();
        Some(object)
    }
}

/// An object that managers write to one after the other.
pub(super) struct State<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) version: &'a str,
    pub(super) reset: Set,
    pub(super) now: String,
    pub(super) subresource: &'a str,
    pub(super) object: Option<Value>,
}

impl<'a> State<'a> {
    pub(super) fn custom(schema: &'a Value) -> Self {
        Self::of(Type::CustomObject(Some(schema)), "e.com/v1")
    }

    pub(super) fn builtin(resource: &'a Resource, version: &'a str) -> Self {
        Self::of(Type::of(resource), version)
    }

    fn of(ty: Type<'a>, version: &'a str) -> Self {
        Self {
            kind: Kind(vec![(version, ty)]),
            version,
            reset: Set::default(),
            now: "2026-01-01T00:00:00Z".into(),
            subresource: "",
            object: None,
        }
    }

    fn write<'b>(&'b self, manager: &'b str) -> Write<'b> {
        Write {
            versions: &self.kind,
            api_version: self.version,
            subresource: self.subresource,
            reset: &self.reset,
            manager,
            now: &self.now,
        }
    }

    fn named(&self, fields: Value) -> Value {
        let mut object = json!({"apiVersion": self.version, "kind": "K", "metadata": {"name": "a"}});
        for (name, value) in fields.as_object().unwrap() {
            if name == "metadata" {
                object["metadata"].as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            } else {
                object[name] = value.clone();
            }
        }
        object
    }

    pub(super) fn try_apply(&mut self, manager: &str, config: Value, force: bool) -> Result<(), Status> {
        let config = self.named(config);
        let applied = self.write(manager).apply(self.object.as_ref(), &config, force)?;
        self.object = Some(applied);
        Ok(())
    }

    #[track_caller]
    pub(super) fn apply(&mut self, manager: &str, config: Value) {
        self.try_apply(manager, config, false).unwrap();
    }

    #[track_caller]
    pub(super) fn force(&mut self, manager: &str, config: Value) {
        self.try_apply(manager, config, true).unwrap();
    }

    /// The conflicts of an apply as `manager: .path`.
    #[track_caller]
    pub(super) fn conflicts(&mut self, manager: &str, config: Value) -> Vec<String> {
        let status = self.try_apply(manager, config, false).unwrap_err();
        assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
        let causes = status.details.unwrap().causes;
        assert!(causes.iter().all(|cause| cause.reason == "FieldManagerConflict"));
        causes.into_iter().map(|c| format!("{}: {}", c.message, c.field)).collect()
    }

    /// An update to these fields, metadata's list kept or replaced as given.
    pub(super) fn update(&mut self, manager: &str, fields: Value) {
        let mut new = self.named(fields);
        if new["metadata"].get("managedFields").is_none()
            && let Some(list) = self.object.as_ref().and_then(|o| o["metadata"].get("managedFields"))
        {
            new["metadata"]["managedFields"] = list.clone();
        }
        self.write(manager).update(self.object.as_ref(), &mut new);
        self.object = Some(new);
    }

    /// The object's fields beside type and metadata.
    pub(super) fn fields(&self) -> Value {
        let mut object = self.object.clone().unwrap();
        for field in ["apiVersion", "kind", "metadata"] {
            object.as_object_mut().unwrap().shift_remove(field);
        }
        object
    }

    /// `manager Operation version: .path .path`, by manager.
    pub(super) fn owners(&self) -> Vec<String> {
        let managers = Managers::of(self.object.as_ref().unwrap()).unwrap();
        let line = |(id, entry): (&super::managers::Id, &super::managers::Entry)| {
            format!("{} {} {}: {}", id.manager, id.operation.as_str(), entry.version, paths(&entry.set).join(" "))
        };
        managers.0.iter().map(line).collect()
    }
}

pub(super) fn paths(set: &Set) -> Vec<String> {
    set.paths().iter().map(|path| path.iter().map(ToString::to_string).collect()).collect()
}

/// A schema with every kind of place.
pub(super) fn schema() -> Value {
    json!({"type": "object", "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "flag": {"type": "boolean"},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "atomicMap": {"type": "object", "x-kubernetes-map-type": "atomic",
            "additionalProperties": {"type": "string"}},
        "struct": {"type": "object", "properties": {
            "a": {"type": "string"}, "b": {"type": "string"},
            "inner": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}}}}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "plain": {"type": "array", "items": {"type": "string"}},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {
                "name": {"type": "string"}, "value": {"type": "string"}, "other": {"type": "string"},
                "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {"type": "object", "properties": {
                "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                "name": {"type": "string"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "mixed": {"x-kubernetes-int-or-string": true}
    }})
}

//! The types' JSON schemas as OpenAPI 3 publishes them: with the facts as extensions.

use std::collections::BTreeMap;

use serde_json::{Value, json, value::RawValue};

use super::routes::{DELETE_OPTIONS, LIST_META, list_schema};
use crate::{
    resource::{Registry, Resource},
    schema::{self, DEFINITIONS, Facts, reference},
};

/// The schemas of `roots` and of everything they refer to, by name, as text that went through `finish`, which is told whether
/// it is a custom resource's: as values all of them would take ten times the memory.
///
/// `delete_options` are the group and version whose requests take them, beside the core group's.
pub(super) fn components(
    registry: &Registry,
    roots: impl IntoIterator<Item = String>,
    delete_options: &[(&str, &str)],
    finish: fn(Value, bool) -> Value,
) -> BTreeMap<String, Box<RawValue>> {
    let types = Types { registry, definitions: schema::definitions(), lists: lists(registry), delete_options };
    let mut out = BTreeMap::new();
    let mut wanted: Vec<String> = roots.into_iter().collect();
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let component = types.component(&name);
        references(&component, &mut wanted);
        let custom = !types.definitions.contains_key(&name) && !types.lists.contains_key(&name);
        out.insert(name, super::text(&finish(component, custom)));
    }
    out
}

struct Types<'a> {
    registry: &'a Registry,
    definitions: BTreeMap<String, Box<RawValue>>,
    /// Rows by the schema of their lists.
    lists: BTreeMap<String, &'a Resource>,
    delete_options: &'a [(&'a str, &'a str)],
}

fn lists(registry: &Registry) -> BTreeMap<String, &Resource> {
    registry.iter().map(|row| (list_schema(row), row.as_ref())).collect()
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        Value::Object(fields) => {
            out.extend(reference(value).map(str::to_owned));
            fields.values().for_each(|field| references(field, out));
        }
        _ => {}
    }
}

impl Types<'_> {
    fn component(&self, name: &str) -> Value {
        let definition: Option<Value> =
            self.definitions.get(name).and_then(|definition| serde_json::from_str(definition.get()).ok());
        if let Some(special) = special(name) {
            let mut out = special;
            if let Some(text) = definition.as_ref().and_then(|d| d.get("description")) {
                out["description"] = text.clone();
            }
            return out;
        }
        if let Some(row) = self.lists.get(name) {
            return self.list(row);
        }
        let kinds = self.kinds(name, definition.as_ref());
        let mut out = match definition {
            Some(definition) => object(name, definition),
            None => self.custom(name),
        };
        if !kinds.is_empty() {
            out["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        out
    }

    /// A custom resource: its row has the published schema.
    fn custom(&self, name: &str) -> Value {
        let row = self.registry.iter().find(|row| row.schema == name);
        let schema = row.and_then(|row| row.published.as_deref().cloned());
        let mut out = schema.unwrap_or_else(|| json!({"type": "object"}));
        if let Some(properties) = out.get_mut("properties").and_then(Value::as_object_mut) {
            let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
            properties.insert("metadata".into(), json!({"allOf": [{"$ref": format!("#{DEFINITIONS}/{meta}")}]}));
            for field in ["apiVersion", "kind"] {
                properties.entry(field).or_insert_with(|| json!({"type": "string"}));
            }
        }
        out
    }

    fn list(&self, row: &Resource) -> Value {
        let refer = |name: &str| json!({"$ref": format!("#{DEFINITIONS}/{name}")});
        json!({
            "type": "object",
            "description": format!("{} is a list of {}.", row.list_kind, row.kind),
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of the list's schema."},
                "items": {"type": "array", "description": format!("List of {}.", row.plural), "items": refer(&row.schema)},
                "kind": {"type": "string", "description": "The kind of the list."},
                "metadata": {"allOf": [refer(LIST_META)], "description": "Standard list metadata."},
            },
            "x-kubernetes-group-version-kind": [kind(&row.group, &row.version, &row.list_kind)],
        })
    }

    /// The kinds that a type is: its rows', or what its name says.
    fn kinds(&self, name: &str, definition: Option<&Value>) -> Vec<Value> {
        if name == DELETE_OPTIONS {
            let core = std::iter::once(&("", "v1"));
            let mut versions: Vec<_> = core.chain(self.delete_options).collect();
            versions.dedup();
            return versions.into_iter().map(|(group, version)| kind(group, version, "DeleteOptions")).collect();
        }
        let (package, short) = name.rsplit_once('.').unwrap_or(("", name));
        let has = |field: &str| definition.is_none_or(|d| d["properties"].get(field).is_some());
        let meta = package == "io.k8s.apimachinery.pkg.apis.meta.v1";
        if !(has("apiVersion") && has("kind") && (has("metadata") || meta)) || short == "OwnerReference" {
            return Vec::new();
        }
        if meta {
            return if short == "ManagedFieldsEntry" { Vec::new() } else { vec![kind("", "v1", short)] };
        }
        let in_package =
            |row: &&std::sync::Arc<Resource>| row.schema.rsplit_once('.').is_some_and(|(p, _)| p == package);
        let row = self.registry.iter().find(in_package);
        row.map(|row| kind(&row.group, &row.version, short)).into_iter().collect()
    }
}

/// A type of the API's own, with the facts of its fields.
fn object(name: &str, definition: Value) -> Value {
    let arena = schema::builtin().get(name);
    let mut out = definition;
    let properties = out.get_mut("properties").and_then(Value::as_object_mut);
    for (field, property) in properties.into_iter().flatten() {
        wrap_reference(property);
        if let Some(field) = arena.and_then(|t| t.field(field)) {
            extend(property, field.facts());
        }
    }
    if let Some(arena) = arena {
        extend(&mut out, arena.facts());
    }
    out
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

/// Types that are no objects, as upstream publishes them.
fn special(name: &str) -> Option<Value> {
    Some(match name.rsplit_once('.')? {
        ("io.k8s.apimachinery.pkg.api.resource", "Quantity") => {
            json!({"description": "", "oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        ("io.k8s.apimachinery.pkg.util.intstr", "IntOrString") => {
            json!({"description": "", "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", short)
            if short == "JSON" || short.starts_with("JSONSchemaPropsOr") =>
        {
            json!({"description": ""})
        }
        _ => return None,
    })
}

/// A reference beside other words is only valid inside `allOf`.
fn wrap_reference(property: &mut Value) {
    let Some(fields) = property.as_object_mut() else { return };
    if let Some(target) = fields.shift_remove("$ref") {
        fields.insert("allOf".into(), json!([{"$ref": target}]));
    }
}

fn extend(schema: &mut Value, facts: &Facts) {
    if let Some(list) = facts.list {
        schema["x-kubernetes-list-type"] = json!(list.as_str());
    }
    if !facts.keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] = json!(facts.keys);
    }
    if let Some(key) = &facts.merge_key {
        schema["x-kubernetes-patch-merge-key"] = json!(key);
    }
    if let Some(strategy) = facts.patch_strategy() {
        schema["x-kubernetes-patch-strategy"] = json!(strategy);
    }
    if facts.atomic || facts.granular {
        schema["x-kubernetes-map-type"] = json!(if facts.atomic { "atomic" } else { "granular" });
    }
    if let Some(default) = &facts.default {
        schema["default"] = default.clone();
    }
}

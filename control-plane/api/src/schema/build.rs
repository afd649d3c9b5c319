//! Fills the arena from JSON schemas.

use std::collections::HashMap;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{Facts, FieldData, Schemas, ShapeData, ShapeId, Sym, TypeData, TypeId, facts, roots};

/// Where generated schemas refer to each other.
pub(crate) const DEFINITIONS: &str = "/components/schemas";

/// The JSON schemas of the built-in types by name, with descriptions.
pub(crate) fn definitions() -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.transforms.clear();
        s.definitions_path = DEFINITIONS.into();
    });
    let mut generator = settings.into_generator();
    roots::generate(&mut generator);
    let mut definitions = generator.take_definitions(false);
    correct_required(&mut definitions);
    definitions
}

/// Types whose `name` is optional, although k8s-openapi has it as a plain string.
const OPTIONAL_NAME: [&str; 8] = [
    "ConfigMapEnvSource",
    "ConfigMapKeySelector",
    "ConfigMapProjection",
    "ConfigMapVolumeSource",
    "LocalObjectReference",
    "SecretEnvSource",
    "SecretKeySelector",
    "SecretProjection",
];

/// k8s-openapi requires what its Rust types always have; upstream's own lists differ in these.
fn correct_required(definitions: &mut Map<String, Value>) {
    for (name, schema) in definitions {
        let optional_name = name.strip_prefix("io.k8s.api.core.v1.").is_some_and(|n| OPTIONAL_NAME.contains(&n));
        let Some(fields) = schema.as_object_mut() else { continue };
        let mut required = match fields.shift_remove("required") {
            Some(Value::Array(required)) => required,
            _ => Vec::new(),
        };
        let core_event = name == "io.k8s.api.core.v1.Event";
        required.retain(|field| (field != "metadata" || core_event) && !(optional_name && field == "name"));
        if name == "io.k8s.api.events.v1.Event" {
            required.push("eventTime".into());
        }
        if !required.is_empty() {
            fields.insert("required".into(), required.into());
        }
    }
}

pub(super) fn builtin() -> Schemas {
    Builder::default().build(&definitions())
}

#[derive(Default)]
struct Builder<'a> {
    out: Schemas,
    ids: HashMap<&'a str, TypeId>,
    syms: HashMap<String, Sym>,
    shapes: HashMap<ShapeData, ShapeId>,
    /// By the text of the facts.
    facts: HashMap<&'static str, u16>,
}

impl<'a> Builder<'a> {
    fn build(mut self, definitions: &'a Map<String, Value>) -> Schemas {
        let table: HashMap<(&str, &str), &'static str> = facts::table().map(|(t, f, text)| ((t, f), text)).collect();
        self.out.facts.push(Facts::NONE);
        let mut objects: Vec<(&'a String, &'a Map<String, Value>)> =
            definitions.iter().filter_map(|(name, schema)| Some((name, properties(schema)?))).collect();
        objects.sort_by_key(|(name, _)| *name);
        for (id, (name, _)) in (0..).zip(&objects) {
            self.ids.insert(name, id);
        }
        for (name, properties) in objects {
            let first = index(self.out.fields.len());
            let required = definitions[name].get("required").and_then(Value::as_array);
            let is_required = |field: &str| required.is_some_and(|r| r.iter().any(|r| r == field));
            let mut fields: Vec<(&String, &Value)> = properties.iter().collect();
            fields.sort_by_key(|(field, _)| *field);
            for (field, schema) in &fields {
                let data = FieldData {
                    name: self.sym(field),
                    shape: self.shape(schema),
                    facts: self.facts(table.get(&(&**name, &***field)).copied()),
                    required: is_required(field),
                };
                self.out.fields.push(data);
            }
            let data = TypeData {
                name: self.sym(name),
                first,
                count: u16::try_from(fields.len()).unwrap_or(u16::MAX),
                facts: self.facts(table.get(&(&**name, ".")).copied()),
            };
            self.out.types.push(data);
        }
        self.out.text.shrink_to_fit();
        self.out.types.shrink_to_fit();
        self.out.fields.shrink_to_fit();
        self.out.shapes.shrink_to_fit();
        self.out.facts.shrink_to_fit();
        self.out
    }

    fn shape(&mut self, schema: &Value) -> ShapeId {
        let data = self.shape_data(schema);
        if let Some(id) = self.shapes.get(&data) {
            return *id;
        }
        let id = index(self.out.shapes.len());
        self.out.shapes.push(data);
        self.shapes.insert(data, id);
        id
    }

    fn shape_data(&mut self, schema: &Value) -> ShapeData {
        if let Some(name) = reference(schema) {
            return self.named(name);
        }
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("string"), Some("byte")) => ShapeData::Bytes,
            (Some("string"), _) => ShapeData::String,
            (Some("integer"), Some("int32")) => ShapeData::Int32,
            (Some("integer"), _) => ShapeData::Int64,
            (Some("number"), _) => ShapeData::Number,
            (Some("boolean"), _) => ShapeData::Bool,
            (Some("array"), _) => ShapeData::Array(self.shape(&schema["items"])),
            (Some("object"), _) if schema["additionalProperties"].is_object() => {
                ShapeData::Map(self.shape(&schema["additionalProperties"]))
            }
            _ => ShapeData::Any,
        }
    }

    fn named(&self, name: &str) -> ShapeData {
        if let Some(id) = self.ids.get(name) {
            return ShapeData::Object(*id);
        }
        match name.rsplit('.').next().unwrap_or(name) {
            "Quantity" => ShapeData::Quantity,
            "IntOrString" => ShapeData::IntOrString,
            "Time" => ShapeData::Time,
            "MicroTime" => ShapeData::MicroTime,
            "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                let inner = name.rsplit_once("Or").and_then(|(inner, _)| self.ids.get(inner));
                inner.map_or(ShapeData::Any, |id| ShapeData::ObjectOr(*id))
            }
            _ => ShapeData::Any,
        }
    }

    fn sym(&mut self, name: &str) -> Sym {
        if let Some(sym) = self.syms.get(name) {
            return *sym;
        }
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let sym = Sym { start: index(self.out.text.len()), len };
        self.out.text.push_str(&name[..usize::from(len)]);
        self.syms.insert(name.to_owned(), sym);
        sym
    }

    fn facts(&mut self, text: Option<&'static str>) -> u16 {
        let Some(text) = text else { return 0 };
        if let Some(at) = self.facts.get(text) {
            return *at;
        }
        let at = u16::try_from(self.out.facts.len()).unwrap_or(0);
        self.out.facts.push(Facts::parse(text));
        self.facts.insert(text, at);
        at
    }
}

/// The properties of an object type; `None` for types that are another JSON value.
fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// The name of the type that a schema refers to.
pub(crate) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

/// The built-in types are a few thousand fields: far from the limit.
fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

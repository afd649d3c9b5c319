//! The arena of `src/schema` as Rust constants: the names in one text, and types, fields and shapes
//! as numbers into each other.

use std::{collections::HashMap, fmt::Write as _};

use serde_json::{Map, Value};

/// The source that `src/schema/builtin.rs` includes.
pub(crate) fn write(definitions: &Map<String, Value>, facts: &str) -> String {
    let table = facts.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        Some(((columns.next()?, columns.next()?), columns.next()?))
    });
    let mut builder = Builder { table: table.collect(), facts: vec![""], ..Builder::default() };
    builder.build(definitions);
    builder.source()
}

#[derive(Default)]
struct Builder<'a> {
    /// Facts by type and field (`.`: the type itself).
    table: HashMap<(&'a str, &'a str), &'a str>,
    ids: HashMap<&'a str, usize>,
    text: String,
    syms: HashMap<&'a str, usize>,
    /// Distinct facts; the first has none.
    facts: Vec<&'a str>,
    shapes: Vec<String>,
    fields: Vec<String>,
    types: Vec<String>,
}

impl<'a> Builder<'a> {
    fn build(&mut self, definitions: &'a Map<String, Value>) {
        let mut objects: Vec<(&'a str, &'a Map<String, Value>)> =
            definitions.iter().filter_map(|(name, schema)| Some((&**name, properties(schema)?))).collect();
        objects.sort_by_key(|(name, _)| *name);
        self.ids = objects.iter().enumerate().map(|(id, (name, _))| (*name, id)).collect();
        for (name, properties) in objects {
            let first = self.fields.len();
            let required = definitions[name].get("required").and_then(Value::as_array);
            let is_required = |field: &str| required.is_some_and(|r| r.iter().any(|r| r == field));
            let mut fields: Vec<(&'a String, &'a Value)> = properties.iter().collect();
            fields.sort_by_key(|(field, _)| *field);
            for (field, schema) in &fields {
                let (start, len) = self.sym(field);
                let (shape, facts) = (self.shape(schema), self.facts(name, field));
                let required = is_required(field);
                self.fields.push(format!("field({start}, {len}, {shape}, {facts}, {required})"));
            }
            let (start, len) = self.sym(name);
            let (count, facts) = (fields.len(), self.facts(name, "."));
            self.types.push(format!("object({start}, {len}, {first}, {count}, {facts})"));
        }
    }

    fn source(&self) -> String {
        let mut out = format!("static TEXT: &str = {:?};\n", self.text);
        let mut array = |name: &str, of: &str, items: &[String]| {
            let items = items.join(",\n");
            // A `String` takes whatever is written.
            let _ = writeln!(out, "static {name}: &[{of}] = &[\n{items}\n];");
        };
        array("TYPES", "TypeData", &self.types);
        array("FIELDS", "FieldData", &self.fields);
        array("SHAPES", "ShapeData", &self.shapes);
        let facts: Vec<String> = self.facts.iter().map(|facts| format!("{facts:?}")).collect();
        array("FACTS", "&str", &facts);
        out
    }

    fn shape(&mut self, schema: &Value) -> usize {
        let data = self.shape_data(schema);
        index_of(&mut self.shapes, data)
    }

    fn shape_data(&mut self, schema: &Value) -> String {
        if let Some(name) = reference(schema) {
            return self.named(name);
        }
        let plain = match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("string"), Some("byte")) => "Bytes",
            (Some("string"), _) => "String",
            (Some("integer"), Some("int32")) => "Int32",
            (Some("integer"), _) => "Int64",
            (Some("number"), _) => "Number",
            (Some("boolean"), _) => "Bool",
            (Some("array"), _) => return format!("ShapeData::Array({})", self.shape(&schema["items"])),
            (Some("object"), _) if schema["additionalProperties"].is_object() => {
                return format!("ShapeData::Map({})", self.shape(&schema["additionalProperties"]));
            }
            _ => "Any",
        };
        format!("ShapeData::{plain}")
    }

    fn named(&self, name: &str) -> String {
        if let Some(id) = self.ids.get(name) {
            return format!("ShapeData::Object({id})");
        }
        let plain = match name.rsplit('.').next().unwrap_or(name) {
            known @ ("Quantity" | "IntOrString" | "Time" | "MicroTime") => known,
            "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                let inner = name.rsplit_once("Or").and_then(|(inner, _)| self.ids.get(inner));
                return inner.map_or("ShapeData::Any".into(), |id| format!("ShapeData::ObjectOr({id})"));
            }
            _ => "Any",
        };
        format!("ShapeData::{plain}")
    }

    /// Where a name begins in the text, and its length.
    fn sym(&mut self, name: &'a str) -> (usize, usize) {
        let start = *self.syms.entry(name).or_insert_with(|| {
            self.text.push_str(name);
            self.text.len() - name.len()
        });
        (start, name.len())
    }

    fn facts(&mut self, name: &str, field: &str) -> usize {
        let facts = self.table.get(&(name, field)).copied().unwrap_or_default();
        index_of(&mut self.facts, facts)
    }
}

/// The place of an item among distinct ones; it is added when it is new.
fn index_of<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    items.iter().position(|known| *known == item).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

/// The properties of an object type; `None` for types that are another JSON value.
fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// The name of the type that a schema refers to.
fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

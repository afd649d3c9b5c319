//! A structural schema as a tree: types, bounds, defaults, list types, rules.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Value, json};

use crate::{cel, schema::ListType};

/// What a value has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

/// A node of a structural schema.
#[derive(Debug)]
pub struct Schema {
    pub(super) kind: Kind,
    pub(super) nullable: bool,
    pub(super) default: Option<Value>,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional: Option<Box<Schema>>,
    /// `additionalProperties: true`
    pub(super) additional_any: bool,
    pub(super) items: Option<Box<Schema>>,
    pub(super) preserve: bool,
    pub(super) embedded: bool,
    pub(super) list: Option<ListType>,
    pub(super) keys: Vec<String>,
    pub(super) atomic_map: bool,
    pub(super) bounds: Bounds,
    pub(super) rules: Vec<Rule>,
}

/// Validation that structure does not come from; junctors hold such parts alone.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    pub(super) required: Vec<String>,
    pub(super) format: Option<String>,
    pub(super) pattern: Option<(String, Option<Regex>)>,
    pub(super) values: Option<Vec<Value>>,
    pub(super) minimum: Option<(f64, bool)>,
    pub(super) maximum: Option<(f64, bool)>,
    pub(super) multiple_of: Option<f64>,
    pub(super) length: (Option<u64>, Option<u64>),
    pub(super) items: (Option<u64>, Option<u64>),
    pub(super) properties: (Option<u64>, Option<u64>),
    pub(super) unique: bool,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
}

/// One entry of `x-kubernetes-validations`.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) source: String,
    /// `None` where it does not parse: the definition was stored before we checked it.
    pub(super) program: Option<cel::Program>,
    pub(super) message: String,
    pub(super) message_program: Option<cel::Program>,
    pub(super) reason: String,
    pub(super) field_path: String,
    pub(super) optional_old_self: bool,
    /// It compares with the state before.
    pub(super) transition: bool,
}

impl Schema {
    /// A schema that takes anything.
    pub fn anything() -> Self {
        let mut schema = Self::parse(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        schema.preserve = true;
        schema
    }

    /// The schema of whole objects: it knows `apiVersion`, `kind` and `metadata` whatever it says of them.
    pub fn root(value: &Value) -> Self {
        let mut root = Self::parse(value);
        for field in ["apiVersion", "kind"] {
            root.properties.entry(field.into()).or_insert_with(|| Self::parse(&json!({"type": "string"})));
        }
        let meta = root.properties.entry("metadata".into()).or_insert_with(|| Self::parse(&json!({"type": "object"})));
        for field in ["name", "generateName"] {
            meta.properties.entry(field.into()).or_insert_with(|| Self::parse(&json!({"type": "string"})));
        }
        // The decoder and the rules of metadata look after it.
        root.bounds.required.retain(|name| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
        root
    }

    /// From its JSON; what cannot be read constrains nothing.
    pub(super) fn parse(value: &Value) -> Self {
        let flag = |name: &str| value[name] == true;
        let int_or_string = flag("x-kubernetes-int-or-string");
        let kind = match value["type"].as_str() {
            _ if int_or_string => Kind::IntOrString,
            Some("object") => Kind::Object,
            Some("array") => Kind::Array,
            Some("string") => Kind::String,
            Some("integer") => Kind::Integer,
            Some("number") => Kind::Number,
            Some("boolean") => Kind::Boolean,
            _ => Kind::Any,
        };
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut schema = Self {
            kind,
            nullable: flag("nullable"),
            default: value.get("default").filter(|d| !d.is_null()).cloned(),
            properties: children(&value["properties"]),
            additional: value["additionalProperties"]
                .is_object()
                .then(|| Self::parse(&value["additionalProperties"]).into()),
            additional_any: flag("additionalProperties"),
            items: value["items"].is_object().then(|| Self::parse(&value["items"]).into()),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            list: value["x-kubernetes-list-type"].as_str().and_then(ListType::parse),
            keys: texts(&value["x-kubernetes-list-map-keys"]),
            atomic_map: value["x-kubernetes-map-type"] == "atomic",
            bounds: Bounds::parse(value, &texts),
            rules: value["x-kubernetes-validations"].as_array().into_iter().flatten().map(Rule::parse).collect(),
        };
        if schema.embedded {
            for field in ["apiVersion", "kind"] {
                schema.properties.entry(field.into()).or_insert_with(|| Self::parse(&json!({"type": "string"})));
            }
            schema.properties.entry("metadata".into()).or_insert_with(|| {
                Self::parse(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))
            });
        }
        schema
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn format(&self) -> Option<&str> {
        self.bounds.format.as_deref()
    }

    /// The schema of a property, or of the values of a map.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    /// The properties in alphabetical order.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.properties.iter().map(|(name, schema)| (name.as_str(), schema))
    }

    /// The schema of a map's values.
    pub fn additional(&self) -> Option<&Self> {
        self.additional.as_deref()
    }

    pub fn items(&self) -> Option<&Self> {
        self.items.as_deref()
    }

    pub fn is_required(&self, name: &str) -> bool {
        self.bounds.required.iter().any(|r| r == name)
    }

    pub fn default(&self) -> Option<&Value> {
        self.default.as_ref()
    }

    /// Whether there is a default here or below.
    pub(super) fn has_defaults(&self) -> bool {
        self.default.is_some()
            || self.properties.values().any(Self::has_defaults)
            || self.additional.as_deref().is_some_and(Self::has_defaults)
            || self.items.as_deref().is_some_and(Self::has_defaults)
    }

    pub fn list_type(&self) -> Option<ListType> {
        self.list
    }

    /// The keys of a list that is a map.
    pub fn list_keys(&self) -> &[String] {
        &self.keys
    }

    /// `x-kubernetes-map-type: atomic`
    pub fn is_atomic_map(&self) -> bool {
        self.atomic_map
    }

    /// `x-kubernetes-embedded-resource`
    pub fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// Whether it keeps fields that it does not name.
    pub fn is_open(&self) -> bool {
        self.preserve || self.additional_any
    }

    /// A list whose order does not count.
    pub fn is_unordered(&self) -> bool {
        matches!(self.list, Some(ListType::Set | ListType::Map))
    }

    /// `maxItems`, `maxProperties` or `maxLength`.
    pub fn most(&self) -> Option<u64> {
        match self.kind {
            Kind::Array => self.bounds.items.1,
            Kind::Object => self.bounds.properties.1,
            Kind::String => self.bounds.length.1.map(|n| n.saturating_mul(4)),
            _ => None,
        }
    }

    /// A text of one of a few forms, which cannot be long.
    pub fn is_closed_text(&self) -> bool {
        self.bounds.values.is_some() || matches!(self.format(), Some("date" | "date-time" | "duration" | "uuid"))
    }
}

pub(super) fn children(value: &Value) -> BTreeMap<String, Schema> {
    value.as_object().into_iter().flatten().map(|(name, schema)| (name.clone(), Schema::parse(schema))).collect()
}

impl Bounds {
    fn parse(value: &Value, texts: &dyn Fn(&Value) -> Vec<String>) -> Self {
        let number = |name: &str| value[name].as_f64();
        let count = |name: &str| value[name].as_u64();
        let parts = |name: &str| value[name].as_array().into_iter().flatten().map(Schema::parse).collect();
        let pattern = value["pattern"].as_str().filter(|p| !p.is_empty());
        Self {
            required: texts(&value["required"]),
            format: value["format"].as_str().map(str::to_owned),
            pattern: pattern.map(|p| (p.to_owned(), Regex::new(p).ok())),
            values: value["enum"].as_array().cloned(),
            minimum: number("minimum").map(|n| (n, value["exclusiveMinimum"] == true)),
            maximum: number("maximum").map(|n| (n, value["exclusiveMaximum"] == true)),
            multiple_of: number("multipleOf"),
            length: (count("minLength"), count("maxLength")),
            items: (count("minItems"), count("maxItems")),
            properties: (count("minProperties"), count("maxProperties")),
            unique: value["uniqueItems"] == true,
            all_of: parts("allOf"),
            any_of: parts("anyOf"),
            one_of: parts("oneOf"),
            not: value["not"].is_object().then(|| Schema::parse(&value["not"]).into()),
        }
    }
}

impl Rule {
    fn parse(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let source = text("rule");
        let program = cel::Program::parse(&source).ok();
        Self {
            transition: program.as_ref().is_some_and(|p| p.mentions("oldSelf")),
            program,
            message: text("message"),
            message_program: value["messageExpression"].as_str().and_then(|m| cel::Program::parse(m).ok()),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: value["optionalOldSelf"] == true,
            source,
        }
    }
}

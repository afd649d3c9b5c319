//! What server-side apply makes of a place in an object: a leaf, a list that is owned whole or item
//! by item, a map that is owned whole or field by field. Read from the schema arena for built-in
//! types and from the published JSON schema for custom ones; without either it is deduced from the
//! value (maps by field, lists whole).

use std::borrow::Cow;

use serde_json::Value;

use super::{
    blank::{EMPTY, absent},
    element::{Element, Scalar as Identity},
};
use crate::{
    resource::Resource,
    schema::{self, Facts, ListType, Shape},
};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a place.
#[derive(Clone, Copy, Debug)]
pub enum Type<'a> {
    /// Of a built-in type, with the facts of the field that holds it.
    Builtin(Shape<'a>, &'a Facts),
    /// Of a custom resource: a JSON schema.
    Custom(&'a Value),
    /// A whole custom object (or an embedded one), which has standard metadata.
    CustomObject(Option<&'a Value>),
    /// Nothing is known.
    Deduced,
}

/// A type that has met a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atom<'a> {
    Scalar(Scalar),
    List(List<'a>),
    Map(Fields<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Text,
    Number,
    Bool,
    Any,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct List<'a> {
    pub(super) atomic: bool,
    keys: Keys<'a>,
    pub(super) item: Type<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Keys<'a> {
    /// Items are values of a set.
    None,
    Names(&'a [Cow<'static, str>]),
    One(&'a str),
    Custom(&'a [Value]),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    pub(super) atomic: bool,
    of: Type<'a>,
}

static NO_FACTS: Facts = Facts::NONE;

impl<'a> Type<'a> {
    /// The type of a resource's objects.
    pub fn of(resource: &'a Resource) -> Self {
        match schema::builtin().get(&resource.schema) {
            Some(known) => Self::Builtin(Shape::Object(known), &NO_FACTS),
            None => Self::CustomObject(resource.published.as_deref()),
        }
    }

    /// What the type makes of this value.
    pub(super) fn atom(self, value: &Value) -> Atom<'a> {
        if let Some(scalar) = self.scalar() {
            return Atom::Scalar(scalar);
        }
        match (self.list(), self.map()) {
            (Some(list), None) => Atom::List(list),
            (None, Some(map)) => Atom::Map(map),
            // Whatever it is: null is taken for a map.
            (list, map) => match (value, list, map) {
                (Value::Array(_), Some(list), _) => Atom::List(list),
                (Value::Object(_) | Value::Null, _, Some(map)) => Atom::Map(map),
                _ => Atom::Scalar(Scalar::Any),
            },
        }
    }

    /// The scalar that it has to be; `None` where it may be something else.
    fn scalar(self) -> Option<Scalar> {
        match self {
            Self::Builtin(shape, _) => Some(match shape {
                Shape::String | Shape::Time | Shape::MicroTime | Shape::Bytes => Scalar::Text,
                Shape::Int32 | Shape::Int64 | Shape::Number => Scalar::Number,
                Shape::Bool => Scalar::Bool,
                Shape::Quantity | Shape::IntOrString => Scalar::Any,
                Shape::Any | Shape::Object(_) | Shape::ObjectOr(_) | Shape::Array(_) | Shape::Map(_) => return None,
            }),
            Self::Custom(schema) if schema["x-kubernetes-int-or-string"] == true => Some(Scalar::Any),
            Self::Custom(schema) => Some(match schema["type"].as_str()? {
                "string" => Scalar::Text,
                "integer" | "number" => Scalar::Number,
                "boolean" => Scalar::Bool,
                _ => return None,
            }),
            Self::CustomObject(_) | Self::Deduced => None,
        }
    }

    /// The list that it may be.
    pub(super) fn list(self) -> Option<List<'a>> {
        match self {
            Self::Builtin(Shape::Array(item), facts) => {
                let item = Self::Builtin(item.shape(), &NO_FACTS);
                let keys = match (facts.list, facts.merge, &facts.merge_key) {
                    (Some(ListType::Map), ..) => Keys::Names(&facts.keys),
                    (Some(ListType::Set), ..) => Keys::None,
                    // Without a list type the older markers speak.
                    (None, true, Some(key)) => Keys::One(key),
                    (None, true, None) => Keys::None,
                    _ => return Some(List { atomic: true, keys: Keys::None, item }),
                };
                Some(List { atomic: false, keys, item })
            }
            Self::Custom(schema) if schema["type"] == "array" => {
                let item = match &schema["items"] {
                    Value::Null => Self::Deduced,
                    items => Self::Custom(items).embedded(),
                };
                let keys = match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => Keys::None,
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array();
                        Keys::Custom(keys.map(Vec::as_slice).unwrap_or_default())
                    }
                    _ => return Some(List { atomic: true, keys: Keys::None, item }),
                };
                Some(List { atomic: false, keys, item })
            }
            Self::Custom(schema) if schema["type"].is_string() => None,
            Self::Builtin(Shape::Any | Shape::ObjectOr(_), _) | Self::Custom(_) | Self::Deduced => {
                Some(List { atomic: true, keys: Keys::None, item: Self::Deduced })
            }
            Self::Builtin(..) | Self::CustomObject(_) => None,
        }
    }

    /// The map that it may be.
    pub(super) fn map(self) -> Option<Fields<'a>> {
        let atomic = match self {
            Self::Builtin(Shape::Object(schema), facts) => facts.atomic || (schema.facts().atomic && !facts.granular),
            Self::Builtin(Shape::Map(_), facts) => facts.atomic,
            Self::Custom(schema) => match schema["type"].as_str() {
                Some("object") => schema["x-kubernetes-map-type"] == "atomic",
                Some(_) => return None,
                None if schema["x-kubernetes-int-or-string"] == true => return None,
                None => return Some(Fields { atomic: false, of: Self::Deduced }),
            },
            Self::CustomObject(_) => false,
            Self::Builtin(Shape::Any | Shape::ObjectOr(_), _) | Self::Deduced => {
                return Some(Fields { atomic: false, of: Self::Deduced });
            }
            Self::Builtin(..) => return None,
        };
        Some(Fields { atomic, of: self })
    }

    /// A custom type that is an object of its own is one with metadata.
    fn embedded(self) -> Self {
        match self {
            Self::Custom(schema) if schema["x-kubernetes-embedded-resource"] == true => {
                Self::CustomObject(Some(schema))
            }
            other => other,
        }
    }

    /// The value that an absent field stands for in an item's keys.
    fn default_of(self, field: &str) -> Option<&'a Value> {
        match self {
            Self::Builtin(Shape::Object(schema), _) => schema.field(field)?.facts().default.as_ref(),
            Self::Custom(schema) | Self::CustomObject(Some(schema)) => {
                schema.pointer("/properties")?.get(field)?.get("default")
            }
            _ => None,
        }
    }
}

impl<'a> Fields<'a> {
    /// The type of a field, and whether the schema declares it by name; `None` where nothing may be.
    pub(super) fn field(&self, name: &str) -> Option<(Type<'a>, bool)> {
        match self.of {
            Type::Builtin(Shape::Object(schema), _) => {
                let field = schema.field(name)?;
                Some((Type::Builtin(field.shape(), field.facts()), true))
            }
            Type::Builtin(Shape::Map(item), _) => Some((Type::Builtin(item.shape(), &NO_FACTS), false)),
            Type::Builtin(..) | Type::Deduced => Some((Type::Deduced, false)),
            Type::Custom(schema) => custom_field(schema, name),
            Type::CustomObject(schema) => match name {
                "apiVersion" | "kind" => Some((Type::Builtin(Shape::String, &NO_FACTS), true)),
                "metadata" => {
                    let known = schema::builtin().get(OBJECT_META);
                    Some((known.map_or(Type::Deduced, |known| Type::Builtin(Shape::Object(known), &NO_FACTS)), true))
                }
                _ => schema.map_or(Some((Type::Deduced, false)), |schema| custom_field(schema, name)),
            },
        }
    }

    /// As [`Fields::field`]; what the schema does not know is deduced.
    pub(super) fn child(&self, name: &str) -> (Type<'a>, bool) {
        self.field(name).unwrap_or((Type::Deduced, false))
    }

    /// What stands for a field that is not there; see [`absent`].
    pub(super) fn absent(&self, name: &str) -> Option<&'static Value> {
        match self.of {
            Type::Builtin(Shape::Object(schema), _) => absent(schema, schema.field(name)?),
            Type::CustomObject(_) if name == "metadata" => Some(&EMPTY),
            _ => None,
        }
    }

    /// Whether the schema knows no field here.
    pub(super) fn is_deduced(&self) -> bool {
        matches!(self.of, Type::Deduced)
    }
}

fn custom_field<'a>(schema: &'a Value, name: &str) -> Option<(Type<'a>, bool)> {
    let properties = schema["properties"].as_object();
    if let Some(property) = properties.and_then(|properties| properties.get(name)) {
        return Some((Type::Custom(property).embedded(), true));
    }
    match &schema["additionalProperties"] {
        more @ Value::Object(_) => Some((Type::Custom(more).embedded(), false)),
        Value::Bool(allowed) => allowed.then_some((Type::Deduced, false)),
        _ => {
            let free =
                schema["x-kubernetes-preserve-unknown-fields"] == true || properties.is_none_or(|p| p.is_empty());
            free.then_some((Type::Deduced, false))
        }
    }
}

impl List<'_> {
    /// How an item is found again, or why it cannot be.
    pub(super) fn identify(&self, item: &Value) -> Result<Element, String> {
        if matches!(self.keys, Keys::None) {
            return match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
                value => Ok(Element::Value(Identity(value.clone()))),
            };
        }
        let fields = match item {
            Value::Object(fields) => fields,
            Value::Null => return Err("associative list with keys may not have a null element".into()),
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let mut keys = Vec::new();
        for name in self.names() {
            if let Some(value) = fields.get(name).or_else(|| self.item.default_of(name)) {
                keys.push((name.into(), Identity(value.clone())));
            }
        }
        if keys.is_empty() {
            let names: Vec<String> = self.names().map(|name| format!("{name:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                names.join(" ")
            ));
        }
        Ok(Element::key(keys))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let (known, one, custom): (&[Cow<'static, str>], Option<&str>, &[Value]) = match self.keys {
            Keys::None => (&[], None, &[]),
            Keys::Names(names) => (names, None, &[]),
            Keys::One(name) => (&[], Some(name), &[]),
            Keys::Custom(names) => (&[], None, names),
        };
        known.iter().map(|name| &**name).chain(one).chain(custom.iter().filter_map(Value::as_str))
    }
}

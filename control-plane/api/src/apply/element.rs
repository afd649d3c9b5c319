//! One step of a path to a field: a field of a map, an item of a list by its keys, by its value or by
//! its place. Ordered and written as upstream's FieldsV1 has it.

use std::{cmp::Ordering, fmt};

use serde_json::{Map, Value};

/// See the module. Upstream's order is that of the variants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Field(Box<str>),
    /// The keys of an item of an associative list, sorted by name.
    Key(Box<[(Box<str>, Scalar)]>),
    /// An item of a set.
    Value(Scalar),
    Index(i64),
}

/// A value that identifies a list's item. Numbers come before texts, those before booleans, as
/// upstream sorts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar(pub Value);

impl Element {
    /// A field of a map or struct.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// From the keys' values in any order.
    pub(super) fn key(mut keys: Vec<(Box<str>, Scalar)>) -> Self {
        keys.sort_unstable();
        Self::Key(keys.into())
    }

    /// As a key of FieldsV1: `f:spec`, `k:{"name":"web"}`, `v:"a"`, `i:0`.
    pub(super) fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let keys: Map<String, Value> =
                    keys.iter().map(|(name, value)| (name.to_string(), value.0.clone())).collect();
                format!("k:{}", Value::Object(keys))
            }
            Self::Value(value) => format!("v:{}", value.0),
            Self::Index(at) => format!("i:{at}"),
        }
    }

    /// Reads a key of FieldsV1; `Ok(None)` for a kind of element that only newer versions know.
    pub(super) fn decode(text: &str) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = text.split_at_checked(2) else {
            return Err("key must be 2 characters long:".into());
        };
        if !kind.ends_with(':') {
            return Err(format!("missing colon: {text}"));
        }
        Ok(Some(match kind {
            "f:" => Self::field(rest),
            "k:" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|e| e.to_string())?;
                Self::key(keys.into_iter().map(|(name, value)| (name.into(), Scalar(value))).collect())
            }
            "v:" => Self::Value(Scalar(serde_json::from_str(rest).map_err(|e| e.to_string())?)),
            "i:" => Self::Index(rest.parse().map_err(|_| format!("invalid index {rest:?}"))?),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for Element {
    /// As a part of a path for people: `.spec`, `[name="web"]`, `[="a"]`, `[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                f.write_str("[")?;
                for (i, (name, value)) in keys.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={}", value.0)?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={}]", value.0),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |value: &Value| match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        };
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => {
                    let (x, y) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
                    x.total_cmp(&y).then_with(|| a.to_string().cmp(&b.to_string()))
                }
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            // Nothing that a schema lets through has such keys: any order that is one will do.
            (a, b) => rank(a).cmp(&rank(b)).then_with(|| a.to_string().cmp(&b.to_string())),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

//! The walk over a value along its type.

use base64::{DecodeError, Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::suggest::nearest;
use crate::{
    limits,
    quantity::Quantity,
    schema::{Shape, TypeRef},
    status::quote,
};

/// The value without unknown fields, and the messages about them; an error in upstream's words.
pub(super) fn walk(schema: TypeRef<'_>, value: Value) -> Result<(Value, Vec<String>), String> {
    let Value::Object(mut fields) = value else {
        return Err(format!("json: cannot unmarshal {} into Go value of type {}", go_kind(&value), go_struct(schema)));
    };
    let mut walk = Walk { path: Vec::new(), messages: Vec::new() };
    walk.object(&mut fields, schema)?;
    Ok((Value::Object(fields), walk.messages))
}

struct Walk<'a> {
    /// Where the walk is, for messages.
    path: Vec<Step<'a>>,
    messages: Vec<String>,
}

#[derive(Clone)]
enum Step<'a> {
    Field(TypeRef<'a>, &'a str),
    Key(String),
    Index(usize),
}

impl<'a> Walk<'a> {
    fn object(&mut self, fields: &mut Map<String, Value>, schema: TypeRef<'a>) -> Result<(), String> {
        fields.retain(|name, value| {
            let known = schema.field(name).is_some();
            if !known {
                self.unknown(name, schema);
            }
            known && !value.is_null()
        });
        for (name, value) in fields.iter_mut() {
            let Some(field) = schema.field(name) else { continue };
            self.path.push(Step::Field(schema, field.name()));
            self.value(value, field.shape())?;
            self.path.pop();
        }
        Ok(())
    }

    fn value(&mut self, value: &mut Value, shape: Shape<'a>) -> Result<(), String> {
        match (shape, &mut *value) {
            (Shape::Any, _) => {}
            (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => {}
            (Shape::Number, Value::Number(_)) => {}
            (Shape::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (Shape::Int64, Value::Number(n)) if n.is_i64() => {}
            (Shape::IntOrString, Value::String(_)) => {}
            (Shape::IntOrString, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => *value = quantity(value)?,
            (Shape::Time, Value::String(text)) => *text = time(text, 0)?,
            (Shape::MicroTime, Value::String(text)) => *text = time(text, 6)?,
            (Shape::Bytes, Value::String(text)) => bytes(text)?,
            (Shape::Object(schema) | Shape::ObjectOr(schema), Value::Object(fields)) => self.object(fields, schema)?,
            (Shape::ObjectOr(schema), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate().filter(|(_, item)| item.is_object()) {
                    self.nested(Step::Index(i), item, Shape::Object(schema))?;
                }
            }
            (Shape::ObjectOr(_), _) => {}
            (Shape::Array(item), Value::Array(items)) => {
                for (i, value) in items.iter_mut().enumerate() {
                    self.nested(Step::Index(i), value, item.shape())?;
                }
            }
            (Shape::Map(item), Value::Object(fields)) => {
                for (key, value) in fields.iter_mut() {
                    self.nested(Step::Key(key.clone()), value, item.shape())?;
                }
            }
            (shape, value) => return Err(self.mistyped(value, shape)),
        }
        Ok(())
    }

    /// An item of a list or map; null stands for the zero value there.
    fn nested(&mut self, step: Step<'a>, value: &mut Value, shape: Shape<'a>) -> Result<(), String> {
        if value.is_null() {
            *value = zero(shape);
            return Ok(());
        }
        self.path.push(step);
        self.value(value, shape)?;
        self.path.pop();
        Ok(())
    }

    fn unknown(&mut self, name: &str, schema: TypeRef<'_>) {
        if self.messages.len() >= limits::STRICT_ERRORS {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(_, name) => dotted(&mut path, name),
                Step::Key(name) => dotted(&mut path, name),
                Step::Index(i) => path.push_str(&format!("[{i}]")),
            }
        }
        dotted(&mut path, name);
        let mut message = format!("unknown field {}", quote(&path));
        if let Some(meant) = nearest(name, schema.fields().map(|f| f.name())) {
            message.push_str(&format!(", did you mean {}?", quote(meant)));
        }
        self.messages.push(message);
    }

    /// As Go's `json.UnmarshalTypeError` prints it.
    fn mistyped(&self, value: &Value, shape: Shape<'_>) -> String {
        let mut path = String::new();
        let mut inner = None;
        for step in &self.path {
            match step {
                Step::Field(schema, name) => {
                    inner = Some(*schema);
                    dotted(&mut path, name);
                }
                Step::Key(name) => dotted(&mut path, name),
                Step::Index(_) => {}
            }
        }
        let found = match (value, shape) {
            (Value::Number(n), Shape::Int32 | Shape::Int64 | Shape::IntOrString) => format!("number {n}"),
            _ => go_kind(value).to_owned(),
        };
        let inner = inner.map_or("", TypeRef::short_name);
        format!("json: cannot unmarshal {found} into Go struct field {inner}.{path} of type {}", go_type(shape))
    }
}

fn dotted(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(shape: Shape<'_>) -> String {
    match shape {
        Shape::String => "string".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Any => "runtime.RawExtension".into(),
        Shape::Object(schema) | Shape::ObjectOr(schema) => go_struct(schema),
        Shape::Array(item) => format!("[]{}", go_type(item.shape())),
        Shape::Map(item) => format!("map[string]{}", go_type(item.shape())),
    }
}

/// `v1.PodSpec`
fn go_struct(schema: TypeRef<'_>) -> String {
    let mut parts: Vec<&str> = schema.name().rsplit('.').take(2).collect();
    parts.reverse();
    parts.join(".")
}

fn zero(shape: Shape<'_>) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Array(_) => Value::Array(Vec::new()),
        Shape::Object(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::Time | Shape::MicroTime | Shape::Any | Shape::ObjectOr(_) => Value::Null,
    }
}

fn quantity(value: &Value) -> Result<Value, String> {
    let parsed = Quantity::from_value(value)
        .ok_or("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")?;
    Ok(parsed.to_string().into())
}

/// In UTC with this many digits below the second.
fn time(text: &str, digits: usize) -> Result<String, String> {
    let wrong = || {
        let text = quote(text);
        format!("parsing time {text} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text} as \"2006\"")
    };
    if !text.get(10..11).is_some_and(|t| t.eq_ignore_ascii_case("t")) {
        return Err(wrong());
    }
    let time: Timestamp = text.parse().map_err(|_| wrong())?;
    Ok(match digits {
        0 => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        _ => time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
    })
}

fn bytes(text: &mut String) -> Result<(), String> {
    text.retain(|c| !matches!(c, '\r' | '\n'));
    match STANDARD.decode(text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _)) => {
            Err(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
    }
}

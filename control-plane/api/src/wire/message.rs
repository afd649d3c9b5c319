//! From messages to JSON, driven by the shapes of the schema.
//!
//! Go's encoder writes every field that is not a pointer, zero or not. JSON leaves zero values out,
//! so empty texts and times are dropped here, and zero numbers of the few fields whose absence
//! means a default that is not zero.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Place, places,
    reader::{Data, Malformed, Reader},
};
use crate::{
    limits,
    schema::{Item, Shape, TypeRef},
};

/// Empty texts that mean something: `storageClassName: ""` asks for no class.
const MEANT_EMPTY: &[&str] = &["storageClassName"];

/// Numbers that are not pointers in Go and have a default that is not zero.
const ZERO_IS_ABSENT: &[&str] =
    &["timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "nodePort", "hostPort", "generation"];

/// The message of `ty` as a JSON object.
pub(super) fn object(ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let mut out = Map::new();
    fields(ty, ty.name(), bytes, depth, &mut out)?;
    Ok(Value::Object(out))
}

/// Adds the fields of `message` to `out`; `ty` is the type that JSON knows them by.
fn fields(
    ty: TypeRef<'_>,
    message: &str,
    bytes: &[u8],
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), Malformed> {
    if depth > limits::DEPTH {
        return Err(Malformed("it is nested too deeply"));
    }
    let Some(places) = places(message) else { return Err(Malformed("it holds a type without field numbers")) };
    for field in Reader::new(bytes) {
        let (number, data) = field?;
        match places.get(&number) {
            Some(Place::Field(name)) => {
                if let Some(field) = ty.field(name) {
                    add(out, name, field.shape(), data, depth)?;
                }
            }
            Some(Place::Inline(inner)) => fields(ty, inner, data.bytes()?, depth + 1, out)?,
            // A field of a newer or older client: JSON drops those as well.
            None => {}
        }
    }
    Ok(())
}

fn add(
    out: &mut Map<String, Value>,
    name: &str,
    shape: Shape<'_>,
    data: Data<'_>,
    depth: usize,
) -> Result<(), Malformed> {
    match shape {
        Shape::Array(item) => {
            let list = out.entry(name).or_insert_with(|| json!([]));
            let value = value(item.shape(), data, depth)?;
            if let (Value::Array(list), Some(value)) = (list, value) {
                list.push(value);
            }
        }
        Shape::Map(item) => {
            let map = out.entry(name).or_insert_with(|| json!({}));
            if let Value::Object(map) = map {
                entry(map, item, data, depth)?;
            }
        }
        shape => {
            let Some(value) = value(shape, data, depth)? else { return Ok(()) };
            let dropped = match &value {
                Value::String(text) => text.is_empty() && !MEANT_EMPTY.contains(&name),
                Value::Number(number) => number.as_i64() == Some(0) && ZERO_IS_ABSENT.contains(&name),
                _ => false,
            };
            if !dropped {
                out.insert(name.into(), value);
            }
        }
    }
    Ok(())
}

/// One entry of a map: a message of key (1) and value (2), either left out where it is empty.
fn entry(map: &mut Map<String, Value>, item: Item<'_>, data: Data<'_>, depth: usize) -> Result<(), Malformed> {
    let (mut key, mut found) = (String::new(), None);
    for field in Reader::new(data.bytes()?) {
        match field? {
            (1, data) => key = data.text()?.to_owned(),
            (2, data) => found = value(item.shape(), data, depth)?,
            _ => {}
        }
    }
    let found = match (found, item.shape()) {
        (Some(value), _) => value,
        (None, Shape::String | Shape::Bytes) => json!(""),
        (None, Shape::Array(_)) => json!([]),
        (None, _) => Value::Null,
    };
    map.insert(key, found);
    Ok(())
}

/// One value; `None` for one that JSON leaves out.
fn value(shape: Shape<'_>, data: Data<'_>, depth: usize) -> Result<Option<Value>, Malformed> {
    Ok(Some(match shape {
        Shape::String => match data {
            Data::Bytes(_) => json!(data.text()?),
            // metav1.Duration counts nanoseconds on the wire.
            _ => json!(format!("{}s", data.int()? / 1_000_000_000)),
        },
        Shape::Int32 | Shape::Int64 => json!(data.int()?),
        Shape::Number => json!(data.double()?),
        Shape::Bool => json!(data.int()? != 0),
        Shape::Bytes => json!(base64::engine::general_purpose::STANDARD.encode(data.bytes()?)),
        Shape::Quantity => json!(first_text(data.bytes()?)?),
        Shape::IntOrString => int_or_string(data.bytes()?)?,
        Shape::Time => return time(data.bytes()?, false),
        Shape::MicroTime => return time(data.bytes()?, true),
        Shape::Any => return raw(data.bytes()?),
        Shape::Object(ty) => object(ty, data.bytes()?, depth + 1)?,
        Shape::ObjectOr(ty) => object_or(ty, data.bytes()?, depth + 1)?,
        Shape::Array(item) => wrapped(item, data.bytes()?, depth + 1)?,
        Shape::Map(_) => return Err(Malformed("a map stands inside a list or another map")),
    }))
}

/// A list as one value of a map (`ExtraValue`): a message whose field 1 is repeated.
fn wrapped(item: Item<'_>, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let mut list = Vec::new();
    for field in Reader::new(bytes) {
        if let (1, data) = field? {
            list.extend(value(item.shape(), data, depth)?);
        }
    }
    Ok(Value::Array(list))
}

fn first_text(bytes: &[u8]) -> Result<&str, Malformed> {
    match Reader::new(bytes).next() {
        Some(field) => field?.1.text(),
        None => Ok(""),
    }
}

/// `{type, intVal, strVal}`; type 1 is text.
fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in Reader::new(bytes) {
        match field? {
            (1, data) => is_text = data.int()? == 1,
            (2, data) => number = data.int()?,
            (3, data) => text = data.text()?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// `{seconds, nanos}`; an empty message is no time.
fn time(bytes: &[u8], micros: bool) -> Result<Option<Value>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Reader::new(bytes) {
        match field? {
            (1, data) => seconds = data.int()?,
            (2, data) => nanos = data.int()?,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| Malformed("a time is out of range"))?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| Malformed("a time is out of range"))?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Some(json!(time.strftime(format).to_string())))
}

/// `RawExtension`, `JSON`, `FieldsV1`: a message of JSON bytes.
fn raw(bytes: &[u8]) -> Result<Option<Value>, Malformed> {
    match Reader::new(bytes).next() {
        None => Ok(None),
        Some(field) => {
            serde_json::from_slice(field?.1.bytes()?).map(Some).map_err(|_| Malformed("an embedded object is not JSON"))
        }
    }
}

/// `JSONSchemaPropsOrBool` (`{allows, schema}`) and its like (`{schema, [schemas or texts]}`).
fn object_or(ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let (mut allows, mut one, mut many) = (true, None, Vec::new());
    for field in Reader::new(bytes) {
        match field? {
            (1, Data::Varint(flag)) => allows = flag != 0,
            (1, data) => one = Some(object(ty, data.bytes()?, depth)?),
            (2, data) if one.is_none() && many.is_empty() && places(ty.name()).is_some() => {
                one = Some(object(ty, data.bytes()?, depth)?);
            }
            (2, data) => many.push(object(ty, data.bytes()?, depth)?),
            _ => {}
        }
    }
    Ok(match one {
        Some(one) if many.is_empty() => one,
        Some(one) => std::iter::once(one).chain(many).collect(),
        None => json!(allows),
    })
}

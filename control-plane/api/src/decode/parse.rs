//! JSON text to a value, with the keys that occur twice in one object (serde_json alone would
//! keep the last one silently).

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    limits,
    status::{Status, quote},
};

/// A parsed body.
#[derive(Debug)]
pub struct Parsed {
    /// Of duplicate keys the last one's value.
    pub value: Value,
    /// `duplicate field "spec.replicas"`, at most [`limits::STRICT_ERRORS`].
    pub duplicates: Vec<String>,
}

/// Parses a body of at most [`limits::BODY`] bytes and [`limits::DEPTH`] levels.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Status> {
    if bytes.len() > limits::BODY {
        return Err(Status::too_large(limits::BODY));
    }
    let mut state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { state: &mut state, depth: 0 }.deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    let value = value.map_err(|e| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}")))?;
    Ok(Parsed { value, duplicates: state.duplicates })
}

#[derive(Default)]
struct State {
    /// `spec.containers[0]`
    path: String,
    duplicates: Vec<String>,
}

struct Seed<'a> {
    state: &'a mut State,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let (length, state) = (self.state.path.len(), self.state);
        let mut items = Vec::new();
        loop {
            state.path.push_str(&format!("[{}]", items.len()));
            let item = access.next_element_seed(Seed { state, depth })?;
            state.path.truncate(length);
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let (length, state) = (self.state.path.len(), self.state);
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if length > 0 {
                state.path.push('.');
            }
            state.path.push_str(&key);
            let value = access.next_value_seed(Seed { state, depth })?;
            if fields.insert(key, value).is_some() && state.duplicates.len() < limits::STRICT_ERRORS {
                state.duplicates.push(format!("duplicate field {}", quote(&state.path)));
            }
            state.path.truncate(length);
        }
        Ok(Value::Object(fields))
    }
}

fn deeper<E: Error>(depth: usize) -> Result<usize, E> {
    if depth < limits::DEPTH {
        return Ok(depth + 1);
    }
    Err(E::custom(format!("nested more than {} levels deep", limits::DEPTH)))
}

//! Paths into objects, for tables of defaults: `spec.containers[].ports[].protocol`. A segment
//! that ends in `[]` goes through every element; one that begins with `+` is made when absent.

use serde_json::{Map, Value};

/// Calls `visit` for every object that `path` leads to.
pub(super) fn each(value: &mut Value, path: &str, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    if let Value::Object(object) = value {
        within(object, path, visit);
    }
}

/// As [`each`], from an object on.
pub(super) fn within(object: &mut Map<String, Value>, path: &str, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    if path.is_empty() {
        return visit(object);
    }
    let (segment, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, all) = segment.strip_suffix("[]").map_or((segment, false), |name| (name, true));
    let (name, make) = name.strip_prefix('+').map_or((name, false), |name| (name, true));
    if make && object.get(name).is_none_or(Value::is_null) {
        object.insert(name.into(), Value::Object(Map::new()));
    }
    match object.get_mut(name) {
        Some(Value::Array(items)) if all => items.iter_mut().for_each(|item| each(item, rest, visit)),
        Some(next) if !all => each(next, rest, visit),
        _ => {}
    }
}

/// Sets `key` where it is absent or null.
pub(super) fn fill(object: &mut Map<String, Value>, key: &str, value: impl FnOnce() -> Value) {
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.into(), value());
    }
}

/// The text at `key`, or the empty string.
pub(super) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

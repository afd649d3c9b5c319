//! Reading and writing `metadata` of an object that is a JSON value. Pure but for the clock and the
//! random numbers of [`stamp`] and [`generate_name`].

use jiff::Timestamp;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::limits;

/// A field of `metadata` that is text; `""` when it is missing.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The object's name.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The object's namespace, `""` for none.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata`, made if it is missing; an object that is no map becomes one.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    let metadata = map(object).entry("metadata").or_insert(Value::Null);
    map(metadata)
}

/// The value as a map, made one if it is none.
pub fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made a map above"),
    }
}

/// Sets a text field of `metadata`.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    of(object).insert(field.to_owned(), value.into());
}

/// Removes fields of `metadata`, keeping the order of the others.
pub fn clear(object: &mut Value, fields: &[&str]) {
    let metadata = of(object);
    for field in fields {
        metadata.shift_remove(*field);
    }
}

/// True once the object is being deleted.
pub fn deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The finalizers, in order.
pub fn finalizers(object: &Value) -> Vec<&str> {
    strings(&object["metadata"]["finalizers"])
}

/// The texts of a list; anything else in it is left out.
pub fn strings(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Sets the finalizers; none removes the field.
pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        clear(object, &["finalizers"]);
    } else {
        set(object, "finalizers", json!(finalizers));
    }
}

/// `metadata.resourceVersion` as a number: `None` when missing, `Err` with the text when it is no
/// number.
pub fn resource_version(object: &Value) -> Result<Option<i64>, String> {
    match text(object, "resourceVersion") {
        "" | "0" => Ok(None),
        other => other.parse().map(Some).map_err(|_| other.to_owned()),
    }
}

/// The current second as metadata writes it.
pub fn now() -> String {
    time(Timestamp::now())
}

/// RFC 3339 in whole seconds and UTC.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What the server alone decides of a new object: uid and creation time; what a client may not
/// bring along is removed (upstream's `rest.FillObjectMetaSystemFields` and `BeforeCreate`).
pub fn stamp(object: &mut Value) {
    clear(object, &["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "managedFields"]);
    set(object, "uid", new_uid());
    set(object, "creationTimestamp", now());
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Upstream's `SimpleNameGenerator`: the base cut to fit and five letters that spell no words.
pub fn generate_name(base: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut end = base.len().min(limits::GENERATE_NAME_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix: String = (0..5).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect();
    format!("{}{suffix}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        assert_eq!(generate_name("web-").len(), 9);
        assert_eq!(generate_name(&"x".repeat(80)).len(), 63);
        assert_ne!(generate_name("a"), generate_name("a"));
    }

    #[test]
    fn a_stamp_replaces_what_the_client_brought() {
        let mut object = json!({"metadata": {"name": "a", "uid": "mine", "selfLink": "/x", "resourceVersion": "3"}});
        stamp(&mut object);
        assert_eq!(object["metadata"]["uid"].as_str().map(str::len), Some(36));
        assert_ne!(text(&object, "uid"), "mine");
        assert!(object["metadata"].get("selfLink").is_none());
        assert_eq!(resource_version(&object), Ok(None));
        assert!(text(&object, "creationTimestamp").ends_with('Z'));
    }

    #[test]
    fn resource_versions_parse() {
        let check = |rv: &str, expected: Result<Option<i64>, String>| {
            assert_eq!(resource_version(&json!({"metadata": {"resourceVersion": rv}})), expected);
        };
        check("", Ok(None));
        check("12", Ok(Some(12)));
        check("x1", Err("x1".into()));
    }
}

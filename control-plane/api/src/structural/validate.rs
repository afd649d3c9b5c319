//! Values against a schema: types, bounds, junctors, list types. The words are kube-openapi's.

use std::collections::HashSet;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::schema::{Bounds, Kind, Schema};
use crate::{schema::ListType, status::FieldError};

type Errors = Vec<FieldError>;

/// Everything that a whole object breaks.
pub(super) fn validate(schema: &Schema, object: &Value) -> Errors {
    let mut errors = Vec::new();
    value(schema, object, "", &mut errors);
    if errors.is_empty() {
        lists(schema, object, "", &mut errors);
    }
    errors
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn value(schema: &Schema, value: &Value, path: &str, errors: &mut Errors) {
    if value.is_null() && schema.nullable {
        return;
    }
    let found = kind_of(value);
    let whole = value.as_f64().is_some_and(|n| n.fract() == 0.0);
    let (fits, wanted) = match schema.kind {
        Kind::Any => (true, ""),
        Kind::Object => (value.is_object(), "object"),
        Kind::Array => (value.is_array(), "array"),
        Kind::String => (value.is_string(), "string"),
        Kind::Integer => (value.is_number() && whole, "integer"),
        Kind::Number => (value.is_number(), "number"),
        Kind::Boolean => (value.is_boolean(), "boolean"),
        Kind::IntOrString => (value.is_string() || (value.is_number() && whole), "integer,string"),
    };
    if !fits {
        let detail = format!("{path} in body must be of type {wanted}: {found:?}");
        errors.push(FieldError::type_invalid(path, found, detail));
        return;
    }
    bounds(&schema.bounds, value, path, errors);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                // Metadata has rules of its own.
                if (path.is_empty() || schema.embedded) && name == "metadata" {
                    continue;
                }
                if let Some(inner) = schema.properties.get(name) {
                    self::value(inner, field, &join(path, name), errors);
                } else if let Some(inner) = &schema.additional {
                    self::value(inner, field, &join(path, name), errors);
                }
            }
            if schema.embedded {
                embedded(fields, path, errors);
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    self::value(inner, item, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn embedded(fields: &Map<String, Value>, path: &str, errors: &mut Errors) {
    for name in ["apiVersion", "kind"] {
        if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
            errors.push(FieldError::required(join(path, name), "must not be empty"));
        }
    }
}

fn bounds(bounds: &Bounds, value: &Value, path: &str, errors: &mut Errors) {
    let invalid = |detail: String| FieldError::invalid(path, value.clone(), format!("{path} in body {detail}"));
    if let Some(values) = &bounds.values
        && !values.iter().any(|allowed| same(allowed, value))
    {
        let texts: Vec<String> =
            values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &texts));
    }
    match value {
        Value::Object(fields) => {
            for name in bounds.required.iter().filter(|name| !fields.contains_key(*name)) {
                errors.push(FieldError::required(join(path, name), ""));
            }
            let count = fields.len() as u64;
            if bounds.properties.0.is_some_and(|least| count < least) {
                let least = bounds.properties.0.unwrap_or_default();
                errors.push(invalid(format!("should have at least {least} properties")));
            }
            if let Some(most) = bounds.properties.1.filter(|most| count > *most) {
                errors.push(FieldError::too_many(path, fields.len(), size(most)));
            }
        }
        Value::Array(items) => {
            let count = items.len() as u64;
            if let Some(least) = bounds.items.0.filter(|least| count < *least) {
                errors.push(invalid(format!("should have at least {least} items")));
            }
            if let Some(most) = bounds.items.1.filter(|most| count > *most) {
                errors.push(FieldError::too_many(path, items.len(), size(most)));
            }
            if bounds.unique && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
                errors.push(invalid("shouldn't contain duplicates".into()));
            }
        }
        Value::String(text) => {
            let count = text.chars().count() as u64;
            if let Some(least) = bounds.length.0.filter(|least| count < *least) {
                errors.push(invalid(format!("should be at least {least} chars long")));
            }
            if let Some(most) = bounds.length.1.filter(|most| count > *most) {
                errors.push(FieldError::too_long(path, size(most)));
            }
            if let Some((pattern, regex)) = &bounds.pattern
                && !regex.as_ref().is_some_and(|r| r.is_match(text))
            {
                errors.push(invalid(format!("should match '{pattern}'")));
            }
            if let Some(format) = &bounds.format
                && !has_format(format, text)
            {
                let detail = format!("{path} in body must be of type {format}: {text:?}");
                errors.push(FieldError::type_invalid(path, text.as_str(), detail));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if let Some((least, exclusive)) = bounds.minimum
                && (number < least || (exclusive && number == least))
            {
                let or = if exclusive { "" } else { " or equal to" };
                errors.push(invalid(format!("should be greater than{or} {least}")));
            }
            if let Some((most, exclusive)) = bounds.maximum
                && (number > most || (exclusive && number == most))
            {
                let or = if exclusive { "" } else { " or equal to" };
                errors.push(invalid(format!("should be less than{or} {most}")));
            }
            if let Some(step) = bounds.multiple_of
                && ((number / step).round() - number / step).abs() > 1e-9
            {
                errors.push(invalid(format!("should be a multiple of {step}")));
            }
        }
        _ => {}
    }
    junctors(bounds, value, path, errors);
}

fn junctors(bounds: &Bounds, value: &Value, path: &str, errors: &mut Errors) {
    let broken = |schema: &Schema| {
        let mut errors = Vec::new();
        self::value(schema, value, path, &mut errors);
        errors
    };
    let failed = |what: &str| FieldError::invalid(path, value.clone(), format!("{path:?} {what}"));
    let mut all = true;
    for schema in &bounds.all_of {
        let found = broken(schema);
        all &= found.is_empty();
        errors.extend(found);
    }
    if !all {
        errors.push(failed("must validate all the schemas (allOf)"));
    }
    if !bounds.any_of.is_empty() {
        let found: Vec<Errors> = bounds.any_of.iter().map(broken).collect();
        if found.iter().all(|errors| !errors.is_empty()) {
            errors.push(failed("must validate at least one schema (anyOf)"));
            errors.extend(found.into_iter().min_by_key(Vec::len).unwrap_or_default());
        }
    }
    if !bounds.one_of.is_empty() {
        match bounds.one_of.iter().filter(|schema| broken(schema).is_empty()).count() {
            1 => {}
            0 => errors.push(failed("must validate one and only one schema (oneOf). Found none valid")),
            n => {
                let what = format!("must validate one and only one schema (oneOf). Found {n} valid alternatives");
                errors.push(failed(&what));
            }
        }
    }
    if bounds.not.as_ref().is_some_and(|schema| broken(schema).is_empty()) {
        errors.push(failed("must not validate the schema (not)"));
    }
}

/// Equality of JSON in which `1` and `1.0` are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The items of sets and of lists with keys occur once.
fn lists(schema: &Schema, value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(inner) = schema.field(name) {
                    lists(inner, field, &join(path, name), errors);
                }
            }
        }
        Value::Array(items) => {
            let mut seen = HashSet::new();
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                let key = match schema.list {
                    Some(ListType::Set) => Some(item.clone()),
                    Some(ListType::Map) => {
                        let keys = schema.keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
                        Some(Value::Object(keys.collect()))
                    }
                    _ => None,
                };
                if let Some(key) = key
                    && !seen.insert(key.to_string())
                {
                    errors.push(FieldError::duplicate(&path, key));
                }
                if let Some(inner) = &schema.items {
                    lists(inner, item, &path, errors);
                }
            }
        }
        _ => {}
    }
}

/// Whether a text has the format of this name; those that are not known take any text.
pub fn has_format(format: &str, text: &str) -> bool {
    let hex = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit());
    match format {
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "date-time" | "datetime" => {
            text.get(10..11).is_some_and(|t| matches!(t, "T" | "t" | " ")) && text.parse::<jiff::Timestamp>().is_ok()
        }
        "duration" => crate::cel::is_duration(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(ip, bits)| {
            let most = if ip.contains(':') { 128 } else { 32 };
            ip.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|b| b <= most)
        }),
        "mac" => {
            let parts: Vec<&str> = text.split([':', '-']).collect();
            matches!(parts.len(), 6 | 8) && parts.iter().all(|p| p.len() == 2 && hex(p))
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            let plain = text.replace('-', "");
            plain.len() == 32 && hex(&plain) && matches!(text.len(), 32 | 36)
        }
        "email" => text.split_once('@').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !text.contains(' ')),
        "hostname" => crate::names::dns_subdomain(&text.to_lowercase()).is_empty(),
        "uri" => text.contains(':') && !text.contains(' '),
        "hexcolor" => text.strip_prefix('#').is_some_and(|t| matches!(t.len(), 3 | 6) && hex(t)),
        _ => true,
    }
}

/// Whether a default may stand where it is: the errors it would give.
pub(super) fn check_default(schema: &Schema, default: &Value, path: &str) -> Errors {
    let mut errors = Vec::new();
    value(schema, default, path, &mut errors);
    lists(schema, default, path, &mut errors);
    errors
}

/// The keys of an item of a list that is a map.
pub(super) fn item_key(keys: &[String], item: &Value) -> Value {
    keys.iter().map(|key| item.get(key).cloned().unwrap_or(json!(null))).collect()
}

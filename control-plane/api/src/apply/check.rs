//! Whether an applied configuration fits its type, in the words of upstream's `typed.Validate`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    element::Element,
    types::{Atom, Scalar, Type},
    walk::TypeError,
};
use crate::{limits, patch::go_text};

/// What is wrong with the value, at most [`limits::STRICT_ERRORS`].
pub(super) fn check(value: &Value, ty: Type<'_>) -> Vec<TypeError> {
    let mut errors = Vec::new();
    walk(value, ty, &mut Vec::new(), &mut errors);
    errors.truncate(limits::STRICT_ERRORS);
    errors
}

/// All errors as one text.
pub(super) fn text(errors: &[TypeError]) -> String {
    match errors {
        [one] => one.to_string(),
        several => {
            let lines: Vec<String> = several.iter().map(|error| format!("  {error}")).collect();
            format!("errors:\n{}", lines.join("\n"))
        }
    }
}

fn walk(value: &Value, ty: Type<'_>, path: &mut Vec<Element>, errors: &mut Vec<TypeError>) {
    if value.is_null() {
        return;
    }
    let fail = |path: &[Element], message: String| TypeError { path: text_of(path), message };
    match ty.atom(value) {
        Atom::Scalar(scalar) => errors.extend(mistyped(value, scalar).map(|message| fail(path, message))),
        Atom::List(list) => {
            let Some(items) = value.as_array() else {
                errors.push(fail(path, format!("expected list, got {}", go_value(value))));
                return;
            };
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let element = if list.atomic {
                    Element::Index(i as i64)
                } else {
                    match list.identify(item) {
                        Ok(element) => element,
                        Err(why) => {
                            errors.push(fail(path, format!("element {i}: {why}")));
                            return;
                        }
                    }
                };
                if !seen.insert(element.clone()) {
                    errors.push(fail(path, format!("duplicate entries for key {element}")));
                }
                path.push(element);
                walk(item, list.item, path, errors);
                path.pop();
            }
        }
        Atom::Map(fields) => {
            let Some(map) = value.as_object() else {
                errors.push(fail(path, format!("expected map, got {}", go_value(value))));
                return;
            };
            for (name, value) in map {
                path.push(Element::field(name));
                match fields.field(name) {
                    Some((ty, _)) => walk(value, ty, path, errors),
                    None => errors.push(fail(path, "field not declared in schema".into())),
                }
                path.pop();
            }
        }
    }
}

fn text_of(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

fn mistyped(value: &Value, scalar: Scalar) -> Option<String> {
    let plain = matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_));
    match scalar {
        Scalar::Number if !value.is_number() => {
            Some(format!("expected numeric (int or float), got {}", go_type(value)))
        }
        Scalar::Text if !value.is_string() => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)))
        }
        Scalar::Bool if !value.is_boolean() => Some(format!("expected boolean, got {}", go_value(value))),
        Scalar::Any if !plain => Some(format!("expected any scalar, got {}", go_value(value))),
        _ => None,
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go's `%v` prints upstream's wrapper of a value.
fn go_value(value: &Value) -> String {
    format!("&{{{}}}", go_text(value))
}

/// As Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("{k:?}:{}", go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

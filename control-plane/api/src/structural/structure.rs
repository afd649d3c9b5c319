//! Whether a schema is structural: what upstream's `pkg/apiserver/schema` asks of its form, its list
//! types and its defaults.

use serde_json::Value;

use super::{schema::Schema, validate};
use crate::status::FieldError;

type Errors = Vec<FieldError>;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Upstream's rules of structural schemas.
pub(super) fn structure(value: &Value, path: &str, root: bool, errors: &mut Errors) {
    let at = |field: &str| format!("{path}.{field}");
    let int_or_string = value["x-kubernetes-int-or-string"] == true;
    let preserve = value["x-kubernetes-preserve-unknown-fields"] == true;
    let embedded = value["x-kubernetes-embedded-resource"] == true;
    match value["type"].as_str().unwrap_or_default() {
        "" if !root && !int_or_string && !preserve => {
            errors.push(FieldError::required(at("type"), "must not be empty for specified object fields"));
        }
        "" => {}
        kind if !TYPES.contains(&kind) => errors.push(FieldError::not_supported(at("type"), kind, &TYPES)),
        "array" if !value["items"].is_object() => {
            errors.push(FieldError::required(at("items"), "must be specified"));
        }
        kind => {
            if int_or_string {
                errors.push(FieldError::invalid(
                    at("type"),
                    kind,
                    "must be empty if x-kubernetes-int-or-string is true",
                ));
            }
            if embedded && kind != "object" {
                let detail = "must be object if x-kubernetes-embedded-resource is true";
                errors.push(FieldError::invalid(at("type"), kind, detail));
            }
        }
    }
    if value["x-kubernetes-preserve-unknown-fields"] == false {
        let detail = "must be true or undefined";
        errors.push(FieldError::invalid(at("x-kubernetes-preserve-unknown-fields"), false, detail));
    }
    let has_properties = value["properties"].as_object().is_some_and(|p| !p.is_empty());
    if has_properties && !matches!(value["additionalProperties"], Value::Null | Value::Bool(false)) {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(at("additionalProperties"), detail));
    }
    if value["additionalProperties"] == false {
        errors.push(FieldError::forbidden(at("additionalProperties"), "must not be used"));
    }
    for (field, detail) in [
        ("$ref", "$ref is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("id", "id is not supported"),
    ] {
        if !value[field].is_null() {
            errors.push(FieldError::forbidden(at(field), detail));
        }
    }
    if value["uniqueItems"] == true {
        errors.push(FieldError::forbidden(
            at("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if let Some(pattern) = value["pattern"].as_str()
        && let Err(error) = regex::Regex::new(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(at("pattern"), pattern, detail));
    }
    list_type(value, path, errors);
    if root && !value["properties"]["metadata"].is_null() {
        metadata(&value["properties"]["metadata"], &at("properties[metadata]"), errors);
    }
    if !value["default"].is_null() {
        if root {
            errors.push(FieldError::forbidden(at("default"), "must not be set at the root"));
        } else {
            let compiled = Schema::parse(value);
            errors.extend(validate::check_default(&compiled, &value["default"], &at("default")));
            let mut pruned = value["default"].clone();
            if pruned.is_object() && !compiled.is_open() && !super::prune::prune(&compiled, &mut pruned).is_empty() {
                errors.push(FieldError::invalid(
                    at("default"),
                    value["default"].clone(),
                    "must not have unknown fields",
                ));
            }
        }
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (i, part) in value[junctor].as_array().into_iter().flatten().enumerate() {
            inside_junctor(part, &format!("{path}.{junctor}[{i}]"), int_or_string, errors);
        }
    }
    if value["not"].is_object() {
        inside_junctor(&value["not"], &at("not"), false, errors);
    }
    for (name, property) in value["properties"].as_object().into_iter().flatten() {
        structure(property, &format!("{path}.properties[{name}]"), false, errors);
    }
    if value["items"].is_object() {
        structure(&value["items"], &at("items"), false, errors);
    }
    if value["additionalProperties"].is_object() {
        structure(&value["additionalProperties"], &at("additionalProperties"), false, errors);
    }
}

/// Junctors may validate, but not say what a value is.
fn inside_junctor(value: &Value, path: &str, int_or_string: bool, errors: &mut Errors) {
    for field in ["type", "default", "description", "title", "nullable", "x-kubernetes-preserve-unknown-fields"] {
        let typed = field == "type" && int_or_string;
        if !value[field].is_null() && value[field] != false && !typed {
            let detail = "must be empty to be structural";
            errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    }
    if !value["additionalProperties"].is_null() {
        let detail = "must be undefined to be structural";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
    }
    for (name, property) in value["properties"].as_object().into_iter().flatten() {
        inside_junctor(property, &format!("{path}.properties[{name}]"), false, errors);
    }
    if value["items"].is_object() {
        inside_junctor(&value["items"], &format!("{path}.items"), false, errors);
    }
}

fn metadata(value: &Value, path: &str, errors: &mut Errors) {
    if value["type"] != "object" {
        errors.push(FieldError::invalid(format!("{path}.type"), value["type"].clone(), "must be object"));
    }
    for (name, _) in value["properties"].as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "name" | "generateName") {
            let detail =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(path, detail));
            return;
        }
    }
}

fn list_type(value: &Value, path: &str, errors: &mut Errors) {
    let at = |field: &str| format!("{path}.{field}");
    let (list, keys) = (&value["x-kubernetes-list-type"], &value["x-kubernetes-list-map-keys"]);
    match list.as_str() {
        None => {}
        Some("atomic") => {}
        Some("set") => {
            let items = &value["items"];
            let scalar = matches!(items["type"].as_str(), Some("string" | "integer" | "number" | "boolean"));
            let atomic = items["x-kubernetes-list-type"] == "atomic" || items["x-kubernetes-map-type"] == "atomic";
            if items["nullable"] == true {
                let detail = "must be false or unset, because items.nullable=true is not supported for sets";
                errors.push(FieldError::forbidden(at("items.nullable"), detail));
            }
            if !scalar && !atomic && items["x-kubernetes-int-or-string"] != true {
                let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
                errors.push(FieldError::invalid(
                    at("items.x-kubernetes-map-type"),
                    items["x-kubernetes-map-type"].clone(),
                    detail,
                ));
            }
        }
        Some("map") => {
            if value["items"]["type"] != "object" {
                let detail = "must be object if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(at("items.type"), value["items"]["type"].clone(), detail));
            }
            let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
            if keys.is_empty() {
                let detail = "must not be empty if x-kubernetes-list-type is map";
                errors.push(FieldError::required(at("x-kubernetes-list-map-keys"), detail));
            }
            let required = value["items"]["required"].as_array();
            for (i, key) in keys.iter().filter_map(Value::as_str).enumerate() {
                let property = &value["items"]["properties"][key];
                let path = format!("{path}.x-kubernetes-list-map-keys[{i}]");
                if property.is_null() {
                    errors.push(FieldError::invalid(path, key, "entries must all be names of item properties"));
                    continue;
                }
                let is_required = required.into_iter().flatten().any(|r| r == key);
                if !is_required && property["default"].is_null() {
                    let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    errors.push(FieldError::required(at(&format!("items.properties[{key}].default")), detail));
                }
            }
        }
        Some(other) => {
            let known = ["atomic", "map", "set"];
            errors.push(FieldError::not_supported(at("x-kubernetes-list-type"), other, &known));
        }
    }
    if list.is_string() && value["type"] != "array" {
        let detail = "must be array if x-kubernetes-list-type is specified";
        match value["type"].as_str() {
            Some(kind) => errors.push(FieldError::invalid(at("type"), kind, detail)),
            None => errors.push(FieldError::required(at("type"), detail)),
        }
    }
    if keys.is_array() && list != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(FieldError::invalid(at("x-kubernetes-list-type"), list.clone(), detail));
    }
}

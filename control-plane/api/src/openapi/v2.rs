//! The OpenAPI 2.0 (Swagger) document of everything that is served.

use std::{collections::BTreeMap, io};

use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    Paths, info, proto,
    routes::{Operation, Route, meaning, routes, version_route},
    security_schemes,
    types::components,
};
use crate::{resource::Registry, schema::DEFINITIONS};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    swagger: &'static str,
    info: Value,
    paths: Paths<'a>,
    definitions: BTreeMap<String, Box<RawValue>>,
    security_definitions: Value,
    security: Value,
}

/// Writes the whole document.
///
/// # Errors
/// Those of `out`.
pub fn write_v2(registry: &Registry, out: impl io::Write) -> io::Result<()> {
    let (routes, definitions) = parts(registry);
    let document = Document {
        swagger: "2.0",
        info: info(),
        paths: Paths { routes: &routes, item: path_item },
        definitions,
        security_definitions: security_schemes(),
        security: security(),
    };
    serde_json::to_writer(out, &document).map_err(io::Error::from)
}

/// Writes it as protobuf, for clients that take nothing else.
///
/// # Errors
/// Those of `out`.
pub fn write_v2_protobuf(registry: &Registry, mut out: impl io::Write) -> io::Result<()> {
    let (routes, definitions) = parts(registry);
    out.write_all(&proto::head(&json!({
        "swagger": "2.0",
        "info": info(),
        "security": security(),
        "securityDefinitions": security_schemes(),
    })))?;
    for route in &routes {
        out.write_all(&proto::path(&route.path, &path_item(route)))?;
    }
    for (name, schema) in definitions {
        out.write_all(&proto::definition(&name, &serde_json::from_str(schema.get())?))?;
    }
    Ok(())
}

fn security() -> Value {
    json!([{"BearerToken": []}])
}

/// What is served, by path, and the definitions that it needs.
fn parts(registry: &Registry) -> (Vec<Route>, BTreeMap<String, Box<RawValue>>) {
    let mut all: Vec<Route> = Vec::new();
    let mut versions = Vec::new();
    for (group, group_versions) in registry.groups() {
        for version in group_versions {
            versions.push((group, version));
            all.push(version_route(group, version));
        }
    }
    all.extend(registry.iter().flat_map(|row| routes(row)));
    all.sort_by(|a, b| a.path.cmp(&b.path));
    let operations = || all.iter().flat_map(|route| &route.operations);
    let roots = operations().flat_map(|o| [o.body.clone(), o.answer.clone()]).flatten();
    let definitions = components(registry, roots, &versions, finish);
    (all, definitions)
}

fn path_item(route: &Route) -> Value {
    let mut out = Map::new();
    for operation in &route.operations {
        out.insert(operation.method.into(), self::operation(operation));
    }
    if !route.parameters.is_empty() {
        out.insert("parameters".into(), route.parameters.iter().map(|p| p.v2()).collect());
    }
    Value::Object(out)
}

fn operation(operation: &Operation) -> Value {
    let produces: &[&str] = match (&operation.answer, operation.action) {
        (None, "get") => &["text/plain"],
        (None, _) => &["*/*"],
        (Some(_), "list") => &["application/json", "application/json;stream=watch"],
        (Some(_), _) => &["application/json"],
    };
    let mut parameters: Vec<Value> = Vec::new();
    if let Some(body) = &operation.body {
        let mut parameter = json!({"name": "body", "in": "body", "schema": schema(Some(body))});
        if operation.method != "delete" {
            parameter["required"] = json!(true);
        }
        parameters.push(parameter);
    }
    parameters.extend(operation.parameters.iter().map(|p| p.v2()));
    let mut out = json!({
        "description": operation.description,
        "consumes": operation.takes,
        "produces": produces,
        "schemes": ["https"],
        "tags": [operation.tag],
        "operationId": operation.id,
        "parameters": parameters,
    });
    for code in operation.codes {
        out["responses"][code] = match *code {
            "401" => json!({"description": "Unauthorized"}),
            code => json!({"description": meaning(code), "schema": schema(operation.answer.as_deref())}),
        };
    }
    if !operation.action.is_empty() {
        let (group, version, kind) = &operation.kind;
        out["x-kubernetes-action"] = json!(operation.action);
        out["x-kubernetes-group-version-kind"] = json!({"group": group, "kind": kind, "version": version});
    }
    out
}

fn schema(name: Option<&str>) -> Value {
    match name {
        Some(name) => json!({"$ref": format!("#/definitions/{name}")}),
        None => json!({"type": "string"}),
    }
}

fn finish(mut schema: Value, custom: bool) -> Value {
    if custom && schema[PRESERVES] == true {
        let kinds = schema[KINDS].take();
        return json!({"type": "object", KINDS: kinds});
    }
    if custom {
        untyped(&mut schema);
    }
    to_v2(schema)
}

const PRESERVES: &str = "x-kubernetes-preserve-unknown-fields";
const KINDS: &str = "x-kubernetes-group-version-kind";

/// Takes out of a custom resource's schema what clients of version 2 cannot read (upstream's `ToStructuralOpenAPIV2`): choices,
/// and the types of what may be null or hold unknown fields.
fn untyped(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for choice in ["oneOf", "anyOf", "not"] {
        fields.remove(choice);
    }
    if fields
        .get("allOf")
        .and_then(Value::as_array)
        .is_some_and(|parts| parts.iter().all(|part| part["$ref"].is_null()))
    {
        fields.remove("allOf");
    }
    let nullable = fields.remove("nullable") == Some(json!(true));
    let preserves = fields.get(PRESERVES) == Some(&json!(true));
    if nullable || preserves {
        fields.remove("items");
        fields.remove("properties");
    }
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    if nullable || preserves && kind == "object" || kind == "array" && !fields.contains_key("items") {
        fields.remove("type");
    }
    let null = |schema: &Value| schema["nullable"] == true;
    if fields.get("additionalProperties").is_some_and(null) {
        fields.remove("required");
    }
    let properties = fields.get("properties").and_then(Value::as_object);
    let optional: Vec<String> = properties
        .map(|all| all.iter().filter(|(_, schema)| null(schema)).map(|(name, _)| name.clone()).collect())
        .unwrap_or_default();
    if let Some(Value::Array(required)) = fields.get_mut("required") {
        required.retain(|name| !optional.iter().any(|optional| name == optional));
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(untyped);
    }
    for inner in ["items", "additionalProperties"] {
        fields.get_mut(inner).into_iter().for_each(untyped);
    }
}

/// A schema in the words of version 2: references stand beside other words, there is no `oneOf`.
fn to_v2(schema: Value) -> Value {
    match schema {
        Value::Array(items) => items.into_iter().map(to_v2).collect(),
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                match (&*key, value) {
                    ("$ref", Value::String(target)) => {
                        let target = target.replace(&format!("#{DEFINITIONS}/"), "#/definitions/");
                        out.insert(key, target.into());
                    }
                    ("allOf", Value::Array(parts)) => {
                        out.extend(parts.into_iter().map(to_v2).flat_map(|part| match part {
                            Value::Object(part) => part,
                            _ => Map::new(),
                        }));
                    }
                    ("oneOf", Value::Array(_)) => {
                        out.insert("type".into(), "string".into());
                    }
                    (_, value) => {
                        out.insert(key, to_v2(value));
                    }
                }
            }
            Value::Object(out)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_schemas_lose_what_version_two_cannot_say() {
        let check = |schema: Value, expected: Value| {
            assert_eq!(finish(schema.clone(), true), expected, "{schema}");
        };
        let kinds = json!([{"group": "g", "version": "v1", "kind": "K"}]);
        check(
            json!({"type": "object", PRESERVES: true, "properties": {"spec": {"type": "object"}}, KINDS: kinds}),
            json!({"type": "object", KINDS: kinds}),
        );
        check(
            json!({"type": "object", "required": ["a", "b"], "properties": {
                "a": {"type": "string", "nullable": true},
                "b": {"type": "object", PRESERVES: true, "properties": {"c": {"type": "string"}}},
                "d": {"type": "array", PRESERVES: true, "items": {"type": "string"}},
                "e": {"type": "object", "oneOf": [{"required": ["x"]}], "allOf": [{"required": ["x"]}]},
                "f": {"type": "array", "items": {"type": "object", "nullable": true, "properties": {}}},
                "g": {"type": "object", "required": ["h"], "additionalProperties": {"type": "string", "nullable": true}},
            }}),
            json!({"type": "object", "required": ["b"], "properties": {
                "a": {},
                "b": {PRESERVES: true},
                "d": {PRESERVES: true},
                "e": {"type": "object"},
                "f": {"type": "array", "items": {}},
                "g": {"type": "object", "additionalProperties": {}},
            }}),
        );
    }
}

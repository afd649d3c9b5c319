//! OpenAPI 3.0 documents, one per group and version.

use std::{collections::BTreeMap, io};

use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    Paths, info, parse_path,
    routes::{Operation, Route, routes, version_route},
    security_schemes,
    types::components,
};
use crate::{resource::Registry, schema::DEFINITIONS};

#[derive(Serialize)]
struct Document<'a> {
    openapi: &'static str,
    info: Value,
    paths: Paths<'a>,
    components: Components,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Components {
    schemas: BTreeMap<String, Box<RawValue>>,
    security_schemes: Value,
}

/// Writes the document of `api/v1` or `apis/<group>/<version>`; false if that is not served.
///
/// # Errors
/// Those of `out`.
pub fn write_v3(registry: &Registry, path: &str, out: impl io::Write) -> io::Result<bool> {
    let Some((group, version)) = parse_path(path) else { return Ok(false) };
    let rows: Vec<_> = registry.in_version(group, version).collect();
    if rows.is_empty() {
        return Ok(false);
    }
    let mut all = vec![version_route(group, version)];
    all.extend(rows.iter().flat_map(|row| routes(row)));
    all.sort_by(|a, b| a.path.cmp(&b.path));
    let operations = || all.iter().flat_map(|route| &route.operations);
    let roots = operations().flat_map(|o| [o.body.clone(), o.answer.clone()]).flatten();
    let schemas = components(registry, roots, &[(group, version)], |schema, _| schema);
    let document = Document {
        openapi: "3.0.0",
        info: info(),
        paths: Paths { routes: &all, item: path_item },
        components: Components { schemas, security_schemes: security_schemes() },
    };
    serde_json::to_writer(out, &document).map_err(io::Error::from)?;
    Ok(true)
}

fn path_item(route: &Route) -> Value {
    let mut out = Map::new();
    for operation in &route.operations {
        out.insert(operation.method.into(), self::operation(operation));
    }
    if !route.parameters.is_empty() {
        out.insert("parameters".into(), route.parameters.iter().map(|p| p.v3()).collect());
    }
    Value::Object(out)
}

fn operation(operation: &Operation) -> Value {
    let mut out = json!({
        "tags": [operation.tag],
        "description": operation.description,
        "operationId": operation.id,
    });
    if !operation.parameters.is_empty() {
        out["parameters"] = operation.parameters.iter().map(|p| p.v3()).collect();
    }
    if let Some(body) = &operation.body {
        out["requestBody"] = json!({"content": content(operation.takes, &schema(Some(body)))});
        if operation.method != "delete" {
            out["requestBody"]["required"] = json!(true);
        }
    }
    let types: &[&str] = match (&operation.answer, operation.action) {
        (None, "get") => &["text/plain"],
        (None, _) => &["*/*"],
        (Some(_), "list") => &["application/json", "application/json;stream=watch"],
        (Some(_), _) => &["application/json"],
    };
    for code in operation.codes {
        out["responses"][code] = match *code {
            "401" => json!({"description": "Unauthorized"}),
            code => json!({
                "description": super::routes::meaning(code),
                "content": content(types, &schema(operation.answer.as_deref())),
            }),
        };
    }
    if !operation.action.is_empty() {
        let (group, version, kind) = &operation.kind;
        out["x-kubernetes-action"] = json!(operation.action);
        out["x-kubernetes-group-version-kind"] = json!({"group": group, "kind": kind, "version": version});
    }
    out
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn schema(name: Option<&str>) -> Value {
    match name {
        Some(name) => json!({"$ref": format!("#{DEFINITIONS}/{name}")}),
        None => json!({"type": "string"}),
    }
}

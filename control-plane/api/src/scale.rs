//! The `scale` subresource: `autoscaling/v1` Scale objects read from and written to workloads.

use serde_json::{Value, json};

use crate::{resource::Resource, status::Status};

/// The Scale of `object`; `None` where the row has no such subresource.
pub fn get(resource: &Resource, object: &Value) -> Option<Value> {
    if !resource.subresources.scale {
        return None;
    }
    let meta = &object["metadata"];
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(key) {
            metadata.insert(key.into(), value.clone());
        }
    }
    let custom = resource.custom.as_ref().and_then(|custom| custom.scale());
    let places = custom.map_or(("/spec/replicas".into(), "/status/replicas".into()), |scale| {
        (pointer(&scale.spec_replicas), pointer(&scale.status_replicas))
    });
    let mut spec = json!({});
    if let Some(replicas) = object.pointer(&places.0).and_then(Value::as_i64) {
        spec["replicas"] = json!(replicas);
    }
    let mut status = json!({"replicas": object.pointer(&places.1).and_then(Value::as_i64).unwrap_or(0)});
    match custom {
        Some(scale) => {
            // A custom resource keeps the selector as text.
            let text = scale.selector.as_ref().and_then(|path| object.pointer(&pointer(path)));
            if let Some(text) = text.filter(|text| text.is_string()) {
                status["selector"] = text.clone();
            }
        }
        None => {
            if let Some(selector) = object.pointer("/spec/selector") {
                status["selector"] = json!(crate::table::selector_text(selector));
            }
        }
    }
    Some(json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }))
}

/// Writes the replicas of `scale` into `object`.
///
/// # Errors
/// 405 where the row has no such subresource, 422 for a negative count, 400 for a Scale of another object.
pub fn apply(resource: &Resource, object: &mut Value, scale: &Value) -> Result<(), Status> {
    if !resource.subresources.scale {
        return Err(Status::method_not_allowed());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let other = scale["metadata"]["name"].as_str().unwrap_or_default();
    if !other.is_empty() && other != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({other}) does not match the name on the URL ({name})"
        )));
    }
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let error = crate::status::FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid_kind("autoscaling", "Scale", &name, vec![error]));
    }
    match resource.custom.as_ref().and_then(|custom| custom.scale()) {
        Some(scale) => set(object, &scale.spec_replicas, replicas),
        None => object["spec"]["replicas"] = json!(replicas),
    }
    Ok(())
}

/// `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// Sets a number at a path of fields, making the objects above it.
fn set(object: &mut Value, path: &str, replicas: i64) {
    let mut at = object;
    for field in path.split('.').filter(|f| !f.is_empty()) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[field];
    }
    *at = json!(replicas);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    #[test]
    fn replicas_go_both_ways() {
        let row = resource::builtin().by_kind("apps", "v1", "Deployment").unwrap();
        let mut object =
            json!({"metadata": {"name": "a"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"x": "y"}}}});
        let mut scale = get(row, &object).unwrap();
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("x=y")));
        scale["spec"]["replicas"] = json!(5);
        apply(row, &mut object, &scale).unwrap();
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(apply(row, &mut object, &scale).unwrap_err().code, 422);
        let pods = resource::builtin().by_kind("", "v1", "Pod").unwrap();
        assert!(get(pods, &object).is_none());
    }
}

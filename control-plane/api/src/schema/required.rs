//! Required fields that an object lacks: the check of last resort for kinds that have no validation
//! of their own.

use serde_json::Value;

use super::{Shape, TypeRef};
use crate::{limits, status::FieldError};

/// `Required value` for every required text, list or object that is absent from a decoded object
/// with its defaults, at most [`limits::STRICT_ERRORS`].
///
/// Numbers and booleans are not asked for: upstream cannot tell an absent one from zero. Neither
/// are `metadata`, which has rules of its own, and `status`, which its writers fill bit by bit.
pub fn missing(schema: TypeRef<'_>, object: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    for field in schema.fields().filter(|field| !matches!(field.name(), "metadata" | "status")) {
        match object.get(field.name()) {
            None if field.required() && is_asked_for(field.shape()) => out.push(FieldError::required(field.name(), "")),
            None => {}
            Some(value) => walk(value, field.shape(), field.name(), &mut out),
        }
    }
    out.truncate(limits::STRICT_ERRORS);
    out
}

fn walk(value: &Value, shape: Shape<'_>, path: &str, out: &mut Vec<FieldError>) {
    match (shape, value) {
        (Shape::Object(schema), Value::Object(fields)) => {
            for field in schema.fields() {
                let path = format!("{path}.{}", field.name());
                match fields.get(field.name()) {
                    None if field.required() && is_asked_for(field.shape()) => out.push(FieldError::required(path, "")),
                    None => {}
                    Some(value) => walk(value, field.shape(), &path, out),
                }
            }
        }
        (Shape::Array(item), Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                walk(value, item.shape(), &format!("{path}[{i}]"), out);
            }
        }
        (Shape::Map(item), Value::Object(fields)) => {
            for (key, value) in fields {
                walk(value, item.shape(), &format!("{path}[{key}]"), out);
            }
        }
        _ => {}
    }
}

fn is_asked_for(shape: Shape<'_>) -> bool {
    use Shape::{Array, Bytes, Map, MicroTime, Object, String, Time};
    matches!(shape, String | Bytes | Time | MicroTime | Object(_) | Array(_) | Map(_))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::{resource, schema::builtin};

    fn check(api_version: &str, kind: &str, object: Value, want: &[&str]) {
        let row = resource::builtin().by_type(api_version, kind).unwrap();
        let found = missing(builtin().get(&row.schema).unwrap(), &object);
        let texts: Vec<String> = found.iter().map(FieldError::to_string).collect();
        assert_eq!(texts, want, "{kind}");
    }

    #[test]
    fn what_is_missing_is_told_with_its_path() {
        check("networking.k8s.io/v1", "IPAddress", json!({}), &["spec: Required value"]);
        let rule = json!({"http": {"paths": [{"path": "/"}]}});
        check(
            "networking.k8s.io/v1",
            "Ingress",
            json!({"spec": {"rules": [rule]}}),
            &[
                "spec.rules[0].http.paths[0].backend: Required value",
                "spec.rules[0].http.paths[0].pathType: Required value",
            ],
        );
        check("storage.k8s.io/v1", "StorageClass", json!({}), &["provisioner: Required value"]);
        let hook = json!({"name": "a", "clientConfig": {}, "admissionReviewVersions": []});
        check(
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            json!({"webhooks": [hook]}),
            &["webhooks[0].sideEffects: Required value"],
        );
    }

    #[test]
    fn numbers_metadata_and_status_are_not_asked_for() {
        check("scheduling.k8s.io/v1", "PriorityClass", json!({}), &[]);
        check("v1", "ConfigMap", json!({"metadata": {"ownerReferences": [{}]}}), &[]);
        let target = json!({"kind": "Deployment", "name": "a"});
        check(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"scaleTargetRef": target}, "status": {"conditions": [{}]}}),
            &[],
        );
    }
}

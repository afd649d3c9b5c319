//! Where the write path asks the object model: decoding against the schema, defaults, preparation,
//! validation. One place, so that rows made at run time (CRDs) take the same way. Pure.

use serde_json::Value;
use sluice_api::{
    decode,
    resource::Resource,
    schema,
    status::{FieldError, Status},
    strategy,
};

use crate::{body::Expected, meta};

/// Fills in what the client left out.
pub(crate) fn defaults(resource: &Resource, object: &mut Value) {
    strategy::defaults(resource, object);
}

/// Kinds whose updates must say which revision they replace (`AllowUnconditionalUpdate` false).
const CONDITIONAL: &[(&str, &str)] = &[
    ("coordination.k8s.io", "leases"),
    ("policy", "poddisruptionbudgets"),
    ("node.k8s.io", "runtimeclasses"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "volumeattachments"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("apiregistration.k8s.io", "apiservices"),
];

/// Kinds that an update may create (`AllowCreateOnUpdate`).
const CREATED_BY_UPDATE: &[(&str, &str)] = &[
    ("coordination.k8s.io", "leases"),
    ("", "endpoints"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "limitranges"),
    ("", "services"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
];

/// Kinds whose deletion answers with the object (`ReturnDeletedObject`).
const RETURN_DELETED: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csistoragecapacities"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// Kinds whose dependents are orphaned unless the client says otherwise.
const ORPHANED: &[(&str, &str)] = &[("", "replicationcontrollers"), ("batch", "jobs")];

fn listed(table: &[(&str, &str)], resource: &Resource) -> bool {
    table.iter().any(|(group, plural)| resource.group == *group && resource.plural == *plural)
}

/// Whether an update has to carry a resourceVersion.
pub(crate) fn must_be_conditional(resource: &Resource) -> bool {
    listed(CONDITIONAL, resource)
}

/// Whether an update of a missing object creates it.
pub(crate) fn created_by_update(resource: &Resource) -> bool {
    listed(CREATED_BY_UPDATE, resource)
}

/// Whether a deletion answers with the object instead of a Status.
pub(crate) fn returns_deleted(resource: &Resource) -> bool {
    listed(RETURN_DELETED, resource)
}

/// Whether dependents are orphaned by default.
pub(crate) fn orphans_by_default(resource: &Resource) -> bool {
    listed(ORPHANED, resource)
}

/// Whether the garbage collector has anything to do with the kind (upstream's `Unsupported`).
pub(crate) fn collected(resource: &Resource) -> bool {
    resource.plural != "events"
}

/// What the server alone decides is taken over from the old object; 422 where a client tries to
/// change what never changes (upstream's `ValidateObjectMetaUpdate`).
pub(crate) fn keep_system_fields(old: &Value, new: &mut Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["uid", "creationTimestamp"] {
        let (was, is) = (&old["metadata"][field], &new["metadata"][field]);
        if !is.is_null() && is != "" && is != was {
            errors.push(FieldError::invalid(format!("metadata.{field}"), is.clone(), "field is immutable"));
        }
    }
    let fields = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    for field in fields {
        match &old["metadata"][field] {
            Value::Null => meta::clear(new, &[field]),
            kept => meta::set(new, field, kept.clone()),
        }
    }
    meta::clear(new, &["selfLink"]);
    if meta::deleting(old) {
        let before = meta::finalizers(old);
        let added: Vec<String> = meta::finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .map(|f| Value::from(f).to_string())
            .collect();
        if !added.is_empty() {
            let list = added.join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
                ),
            ));
        }
    }
    errors
}

/// Reads a submitted value by its schema: what was dropped is described in upstream's words.
pub(crate) fn check(
    resource: &Resource,
    object: Value,
    expected: Expected<'_>,
) -> Result<(Value, Vec<String>), Status> {
    if let Some(custom) = resource.custom.as_ref().filter(|_| expected.kind == resource.kind) {
        return decode::custom(custom, object);
    }
    let name = match expected.kind {
        "Scale" => "io.k8s.api.autoscaling.v1.Scale",
        "Eviction" => "io.k8s.api.policy.v1.Eviction",
        "Binding" => "io.k8s.api.core.v1.Binding",
        "TokenRequest" => "io.k8s.api.authentication.v1.TokenRequest",
        _ => &resource.schema,
    };
    match schema::builtin().get(name) {
        Some(schema) => decode::strict(schema, object),
        None => Ok((object, Vec::new())),
    }
}

/// 422 when there are errors.
pub(crate) fn invalid(resource: &Resource, object: &Value, errors: Vec<FieldError>) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource, meta::name(object), errors))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn system_fields_stay() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "deletionTimestamp": "d", "finalizers": ["x"]}});
        let mut new = json!({"metadata": {"name": "a", "finalizers": ["x"], "selfLink": "/x"}});
        assert!(keep_system_fields(&old, &mut new).is_empty());
        assert_eq!(new["metadata"]["uid"], "u");
        assert_eq!(new["metadata"]["deletionTimestamp"], "d");
        assert!(new["metadata"].get("selfLink").is_none());

        let mut new = json!({"metadata": {"name": "a", "uid": "v", "finalizers": ["x", "y"]}});
        let errors: Vec<String> = keep_system_fields(&old, &mut new).iter().map(|e| e.to_string()).collect();
        assert_eq!(
            errors,
            [
                "metadata.uid: Invalid value: \"v\": field is immutable",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"y\"}",
            ]
        );
    }
}

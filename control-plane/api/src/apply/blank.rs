//! Fields that are never absent upstream, as Go's zero values look in JSON: structs that are held by
//! value are there and empty, required lists and maps are null. So nobody comes to own a struct for
//! having put a field into it.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::schema::{FieldRef, Shape, TypeRef};

/// Fields beside `metadata`, `spec` and `status` that hold a struct by value, by type
/// (`"default": {}` in upstream's OpenAPI).
const BY_VALUE: &[(&str, &[&str])] = &[
    ("DaemonSetSpec", &["template", "updateStrategy"]),
    ("DeploymentSpec", &["strategy", "template"]),
    ("ReplicaSetSpec", &["template"]),
    ("StatefulSetSpec", &["template", "updateStrategy"]),
    ("JobSpec", &["template"]),
    ("CronJobSpec", &["jobTemplate"]),
    ("PodTemplate", &["template"]),
    ("HorizontalPodAutoscalerSpec", &["scaleTargetRef"]),
    ("Event", &["involvedObject", "source", "deprecatedSource", "regarding"]),
    ("Binding", &["target"]),
    ("NodeStatus", &["daemonEndpoints", "nodeInfo"]),
    ("NodeDaemonEndpoints", &["kubeletEndpoint"]),
    ("PersistentVolumeClaimSpec", &["resources"]),
    ("ServiceStatus", &["loadBalancer"]),
    ("IngressStatus", &["loadBalancer"]),
    ("FlowSchemaSpec", &["priorityLevelConfiguration"]),
    ("NetworkPolicySpec", &["podSelector"]),
    ("ClusterRoleBinding", &["roleRef"]),
    ("RoleBinding", &["roleRef"]),
    ("ResourceClaimSpec", &["devices"]),
    ("ResourceSliceSpec", &["pool"]),
    ("VolumeAttachmentSpec", &["source"]),
    ("CustomResourceDefinitionSpec", &["names"]),
    ("CustomResourceDefinitionStatus", &["acceptedNames"]),
];

/// An empty struct.
pub(super) static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// What stands for a field that an object does not have; `None` where that is nothing.
pub(super) fn absent(schema: TypeRef<'_>, field: FieldRef<'_>) -> Option<&'static Value> {
    match field.shape() {
        Shape::Object(_) => {
            let name = field.name();
            let held = matches!(name, "metadata" | "spec" | "status")
                || BY_VALUE.iter().any(|(of, fields)| *of == schema.short_name() && fields.contains(&name));
            if held { Some(&EMPTY) } else { None }
        }
        Shape::Array(_) | Shape::Map(_) if field.required() => Some(&Value::Null),
        _ => None,
    }
}

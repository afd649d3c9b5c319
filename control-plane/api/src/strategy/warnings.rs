//! What is allowed but probably not meant: texts for `Warning` headers. Source: upstream's
//! `pkg/api/*/warnings.go`.

use std::collections::HashSet;

use serde_json::Value;

use crate::resource::Resource;

/// Labels of nodes that have newer names.
const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// Where the kinds with pods inside keep their pod spec.
const POD_SPECS: &[(&str, &str, &str)] = &[
    ("", "Pod", "spec"),
    ("", "ReplicationController", "spec.template.spec"),
    ("apps", "Deployment", "spec.template.spec"),
    ("apps", "ReplicaSet", "spec.template.spec"),
    ("apps", "StatefulSet", "spec.template.spec"),
    ("apps", "DaemonSet", "spec.template.spec"),
    ("batch", "Job", "spec.template.spec"),
    ("batch", "CronJob", "spec.jobTemplate.spec.template.spec"),
];

/// The warnings for an object that is about to be written.
pub fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if resource.group.is_empty() && resource.kind == "Endpoints" {
        warnings.push("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into());
    }
    let place = POD_SPECS.iter().find(|(group, kind, _)| resource.group == *group && resource.kind == *kind);
    if let Some((_, _, path)) = place {
        let spec = path.split('.').try_fold(object, |value, name| value.get(name));
        pod_spec(path, spec.unwrap_or(&Value::Null), &mut warnings);
    }
    warnings
}

fn pod_spec(path: &str, spec: &Value, warnings: &mut Vec<String>) {
    for (old, new) in OLD_LABELS {
        if spec["nodeSelector"].get(old).is_some() {
            warnings.push(format!("{path}.nodeSelector[{old}]: deprecated since v1.14; use \"{new}\" instead"));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let mut seen = HashSet::new();
            for (place, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
                let name = variable["name"].as_str().unwrap_or_default();
                if !seen.insert(name) {
                    let at = format!("{path}.{list}[{index}].env[{place}]");
                    warnings.push(format!(
                        "{at}: hides previous definition of \"{name}\", which may be dropped when using apply"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn doubtful_objects_are_warned_about() {
        let row = crate::resource::builtin().by_kind("apps", "v1", "Deployment").unwrap();
        let env = json!([{"name": "A"}, {"name": "A"}]);
        let object = json!({"spec": {"template": {"spec": {"containers": [{"env": env}], "nodeSelector": {"beta.kubernetes.io/os": "linux"}}}}});
        assert_eq!(
            warnings(row, &object),
            [
                "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            ]
        );
        assert!(warnings(row, &json!({})).is_empty());
    }
}

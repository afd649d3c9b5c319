//! The body of a Job's pod. Pure.

use serde_json::{Value, json};

use crate::object::Object;
use crate::types::{COMPLETION_INDEX, IGNORED_FAILURES, INDEX_FAILURES, JOB_TRACKING, Job};

/// A pod to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NewPod {
    /// Its index; without meaning unless the Job is indexed.
    pub(super) index: i32,
    /// How often pods of this index failed before.
    pub(super) failures: i32,
    /// How often they did without counting.
    pub(super) ignored: i32,
}

/// The body.
pub(super) fn pod_body(job: &Job, pod: &NewPod) -> Value {
    let index = pod.index;
    let mut body = crate::pods::body(&job.spec.template, job.name(), job.as_controller());
    let metadata = &mut body["metadata"];
    let mut finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(JOB_TRACKING));
    metadata["finalizers"] = json!(finalizers);
    let labels = &mut metadata["labels"];
    for (key, value) in [("controller-uid", job.uid()), ("job-name", job.name())] {
        labels[key] = json!(value);
        labels[format!("batch.kubernetes.io/{key}")] = json!(value);
    }
    if !job.indexed() {
        return body;
    }
    labels[COMPLETION_INDEX] = json!(index.to_string());
    metadata["annotations"][COMPLETION_INDEX] = json!(index.to_string());
    if job.spec.backoff_limit_per_index.is_some() {
        metadata["annotations"][INDEX_FAILURES] = json!(pod.failures.to_string());
        if pod.ignored > 0 {
            metadata["annotations"][IGNORED_FAILURES] = json!(pod.ignored.to_string());
        }
    }
    metadata["generateName"] = json!(format!("{}-{index}-", job.name()));
    body["spec"]["hostname"] = json!(format!("{}-{index}", job.name()));
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
        {"apiVersion": "v1", "fieldPath": format!("metadata.labels['{COMPLETION_INDEX}']")}}});
    for kind in ["containers", "initContainers"] {
        for container in body["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            match container.get_mut("env").and_then(Value::as_array_mut) {
                Some(env) if env.iter().any(|v| v["name"] == variable["name"]) => {}
                Some(env) => env.push(variable.clone()),
                None => container["env"] = json!([variable]),
            }
        }
    }
    body
}

//! The JSON schemas of the built-in types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::roots;

/// Where the schemas refer to each other.
const DEFINITIONS: &str = "/components/schemas";

/// By the types' names, with descriptions; `own` are those of our own group, as JSON.
pub(crate) fn definitions(own: &str) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.transforms.clear();
        s.definitions_path = DEFINITIONS.into();
    });
    let mut generator = settings.into_generator();
    roots::generate(&mut generator);
    let mut definitions = generator.take_definitions(false);
    correct_required(&mut definitions);
    let own: Map<String, Value> = serde_json::from_str(own).expect("our own schemas are JSON objects by name");
    definitions.extend(own);
    definitions
}

/// Types whose `name` is optional, although k8s-openapi has it as a plain string.
const OPTIONAL_NAME: [&str; 8] = [
    "ConfigMapEnvSource",
    "ConfigMapKeySelector",
    "ConfigMapProjection",
    "ConfigMapVolumeSource",
    "LocalObjectReference",
    "SecretEnvSource",
    "SecretKeySelector",
    "SecretProjection",
];

/// k8s-openapi requires what its Rust types always have; upstream's own lists differ in these.
fn correct_required(definitions: &mut Map<String, Value>) {
    for (name, schema) in definitions {
        let optional_name = name.strip_prefix("io.k8s.api.core.v1.").is_some_and(|n| OPTIONAL_NAME.contains(&n));
        let Some(fields) = schema.as_object_mut() else { continue };
        let mut required = match fields.shift_remove("required") {
            Some(Value::Array(required)) => required,
            _ => Vec::new(),
        };
        let core_event = name == "io.k8s.api.core.v1.Event";
        required.retain(|field| (field != "metadata" || core_event) && !(optional_name && field == "name"));
        if name == "io.k8s.api.events.v1.Event" {
            required.push("eventTime".into());
        }
        if !required.is_empty() {
            fields.insert("required".into(), required.into());
        }
    }
}

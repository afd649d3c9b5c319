//! Structural schemas: what a CustomResourceDefinition says about its objects, compiled once. The
//! passes over an object (pruning, defaulting, validation, rules) are each a module.

mod default;
mod definition;
mod prune;
mod rules;
mod schema;
mod structure;
mod validate;

use std::sync::Arc;

use serde_json::Value;

pub use definition::{definition, definition_change};
pub use schema::{Kind, Schema};
pub use validate::has_format;

use crate::status::FieldError;

/// One version of a custom resource, ready for its objects.
#[derive(Debug)]
pub struct Custom {
    schema: Schema,
    /// `spec.preserveUnknownFields` of old definitions.
    keep_unknown: bool,
    /// The scale subresource's paths.
    scale: Option<Scale>,
    selectable: Vec<String>,
    /// `spec.conversion.webhook`, where that converts between the versions.
    conversion: Option<Value>,
}

/// Where a custom resource keeps what its scale subresource shows: JSON paths like `.spec.replicas`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

impl Custom {
    /// Compiles an entry of `spec.versions`; a version without a schema takes anything.
    pub fn new(definition: &Value, version: &Value) -> Arc<Self> {
        let schema = match &version["schema"]["openAPIV3Schema"] {
            Value::Null => Schema::anything(),
            schema => Schema::root(schema),
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let scale = version["subresources"].get("scale").filter(|s| s.is_object()).map(|scale| Scale {
            spec_replicas: text(&scale["specReplicasPath"]),
            status_replicas: text(&scale["statusReplicasPath"]),
            selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
        });
        let conversion = &definition["spec"]["conversion"];
        let fields = version["selectableFields"].as_array().into_iter().flatten();
        Arc::new(Self {
            schema,
            keep_unknown: definition["spec"]["preserveUnknownFields"] == true,
            scale,
            conversion: (conversion["strategy"] == "Webhook").then(|| conversion["webhook"].clone()),
            selectable: fields.map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned()).collect(),
        })
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub fn scale(&self) -> Option<&Scale> {
        self.scale.as_ref()
    }

    /// The paths of `selectableFields`, without their first dot.
    pub fn selectable(&self) -> &[String] {
        &self.selectable
    }

    /// The webhook that converts objects between the versions, as the definition says it.
    pub fn conversion(&self) -> Option<&Value> {
        self.conversion.as_ref()
    }

    /// Drops what the schema does not know; the messages say what (`unknown field "spec.x"`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        if self.keep_unknown { Vec::new() } else { prune::prune(&self.schema, object) }
    }

    /// Whether objects stored before may lack a default: they get it when they are read.
    pub fn has_defaults(&self) -> bool {
        self.schema.has_defaults()
    }

    /// Fills in defaults; nulls that the schema does not allow give way to them.
    pub fn defaults(&self, object: &mut Value) {
        default::defaults(&self.schema, object);
    }

    /// What a new or changed object breaks; `old` is its state before a change.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = validate::validate(&self.schema, object);
        // Rules are only meaningful for values of the right types.
        if errors.is_empty() {
            errors = rules::check(&self.schema, object, old);
        }
        errors
    }

    /// What is broken below the status alone, for updates of that subresource.
    pub fn validate_status(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let of_status =
            |e: &FieldError| e.field == "status" || e.field.starts_with("status.") || e.field.starts_with("status[");
        self.validate(object, Some(old)).into_iter().filter(of_status).collect()
    }
}

#[cfg(test)]
mod tests;

//! Drops the fields that a schema does not know.

use serde_json::{Map, Value};

use super::schema::Schema;
use crate::{limits, status::quote};

/// Fields that every embedded object has.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Prunes a whole object; what was dropped, as strict decoding tells it.
pub(super) fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut walk = Walk { messages: Vec::new() };
    walk.value(schema, object, "", true);
    walk.messages
}

struct Walk {
    messages: Vec<String>,
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &mut Value, path: &str, root: bool) {
        match value {
            Value::Object(fields) => self.object(schema, fields, path, root),
            Value::Array(items) => {
                let Some(inner) = schema.items.as_deref() else { return };
                for (i, item) in items.iter_mut().enumerate() {
                    self.value(inner, item, &format!("{path}[{i}]"), false);
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, schema: &Schema, fields: &mut Map<String, Value>, path: &str, root: bool) {
        let is_meta = |name: &str| (root || schema.embedded) && META.contains(&name);
        let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let open = schema.preserve || schema.additional_any;
        let mut unknown = Vec::new();
        fields.retain(|name, _| {
            let known = is_meta(name) || schema.field(name).is_some() || open;
            if !known {
                unknown.push(at(name));
            }
            known
        });
        for path in unknown {
            if self.messages.len() < limits::STRICT_ERRORS {
                self.messages.push(format!("unknown field {}", quote(&path)));
            }
        }
        for (name, value) in fields.iter_mut() {
            // Metadata has a schema of its own, which the decoder follows.
            if is_meta(name) {
                continue;
            }
            if let Some(inner) = schema.field(name) {
                // Inside a part that keeps everything, a named part prunes again.
                self.value(inner, value, &at(name), false);
            }
        }
    }
}

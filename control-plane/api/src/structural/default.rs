//! Fills in the defaults of a schema.

use serde_json::Value;

use super::schema::Schema;

/// Every default of every object there is. A null where none is allowed counts as absent if there
/// is a default, as upstream's `PruneNonNullableNullsWithoutDefaults` and `Default` have it together.
pub(super) fn defaults(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let absent = match fields.get(name) {
                    None => true,
                    Some(Value::Null) => !property.nullable,
                    Some(_) => false,
                };
                if absent {
                    fields.insert(name.clone(), default.clone());
                }
            }
            // A null that is not allowed and has no default goes away.
            fields.retain(|name, value| {
                let inner = schema.properties.get(name);
                !(value.is_null() && inner.is_some_and(|s| !s.nullable && s.default.is_none()))
            });
            for (name, value) in fields.iter_mut() {
                if let Some(inner) = schema.field(name) {
                    if value.is_null()
                        && !inner.nullable
                        && let Some(default) = &inner.default
                    {
                        *value = default.clone();
                    }
                    defaults(inner, value);
                }
            }
        }
        Value::Array(items) => {
            let Some(inner) = &schema.items else { return };
            for item in items {
                if item.is_null()
                    && !inner.nullable
                    && let Some(default) = &inner.default
                {
                    *item = default.clone();
                }
                defaults(inner, item);
            }
        }
        _ => {}
    }
}

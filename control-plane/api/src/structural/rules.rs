//! `x-kubernetes-validations`: a schema's CEL rules on an object, and on its change.

use std::sync::Arc;

use serde_json::Value;

use super::{
    schema::{Kind, Rule, Schema},
    validate::item_key,
};
use crate::{
    cel::{Budget, EvalError, Text, Val, limits},
    schema::ListType,
    status::FieldError,
};

/// Everything that rules say about an object; `old` is its state before a change.
pub(super) fn check(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut walk = Walk { budget: Budget::new(limits::OBJECT_COST), errors: Vec::new(), stopped: false };
    walk.value(schema, object, old, "");
    walk.errors
}

struct Walk {
    budget: Budget,
    errors: Vec<FieldError>,
    stopped: bool,
}

fn has_rules(schema: &Schema) -> bool {
    !schema.rules.is_empty()
        || schema.properties.values().any(has_rules)
        || schema.additional.as_deref().is_some_and(has_rules)
        || schema.items.as_deref().is_some_and(has_rules)
}

fn kind_name(schema: &Schema) -> &'static str {
    match schema.kind {
        Kind::Any | Kind::IntOrString => "",
        Kind::Object => "object",
        Kind::Array => "array",
        Kind::String => "string",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
    }
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &str) {
        if self.stopped || !has_rules(schema) || value.is_null() {
            return;
        }
        for rule in &schema.rules {
            self.rule(schema, rule, value, old, path);
            if self.stopped {
                return;
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let Some(inner) = schema.field(name) else { continue };
                    let old = old.and_then(|old| old.get(name));
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    self.value(inner, field, old, &path);
                }
            }
            Value::Array(items) => {
                let Some(inner) = &schema.items else { return };
                let before = old.and_then(Value::as_array);
                for (i, item) in items.iter().enumerate() {
                    // Only the items of a map have a past that can be told.
                    let old = before.filter(|_| schema.list == Some(ListType::Map)).and_then(|before| {
                        let key = item_key(&schema.keys, item);
                        before.iter().find(|other| item_key(&schema.keys, other) == key)
                    });
                    self.value(inner, item, old, &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, schema: &Schema, rule: &Rule, value: &Value, old: Option<&Value>, path: &str) {
        if rule.transition && old.is_none() && !rule.optional_old_self {
            return;
        }
        let Some(program) = &rule.program else {
            let detail = format!("rule compile error: compilation failed: {}", rule.source.trim());
            self.errors.push(FieldError::invalid(path, kind_name(schema), detail));
            return;
        };
        let mut variables = vec![("self", Val::json(value, Some(schema)))];
        if rule.optional_old_self {
            let old = old.map(|old| Arc::new(Val::json(old, Some(schema))));
            variables.push(("oldSelf", Val::Optional(old)));
        } else if let Some(old) = old {
            variables.push(("oldSelf", Val::json(old, Some(schema))));
        }
        let shown = format!("failed rule: {}", rule.source.trim());
        let what = match program.eval(&variables, &self.budget) {
            Ok(Val::Bool(true)) => return,
            Ok(_) => {
                let computed = rule.message_program.as_ref().and_then(|p| p.eval(&variables, &self.budget).ok());
                match computed {
                    Some(Val::Text(text)) if usable(&text) => text.trim().to_owned(),
                    _ if !rule.message.trim().is_empty() => rule.message.trim().to_owned(),
                    _ => shown,
                }
            }
            Err(EvalError::TooExpensive) if self.budget.left() == 0 => {
                let detail = "validation failed due to running out of cost budget, no further validation rules will \
                              be run";
                self.stopped = true;
                self.errors.push(FieldError::invalid(path, kind_name(schema), detail));
                return;
            }
            Err(error @ EvalError::TooExpensive) => {
                let detail = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                    rule.source.trim()
                );
                self.stopped = true;
                self.errors.push(FieldError::invalid(path, kind_name(schema), detail));
                return;
            }
            Err(EvalError::Failed(why)) => {
                let detail = if why.starts_with("no such overload") {
                    format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {}",
                        rule.source.trim()
                    )
                } else {
                    format!("{why} evaluating rule: {}", rule.source.trim())
                };
                self.errors.push(FieldError::invalid(path, kind_name(schema), detail));
                return;
            }
        };
        let path = match rule.field_path.trim() {
            "" => path.to_owned(),
            below if path.is_empty() => below.trim_start_matches('.').to_owned(),
            below => format!("{path}{below}"),
        };
        self.errors.push(match rule.reason.as_str() {
            "FieldValueRequired" => FieldError::required(path, what),
            "FieldValueForbidden" => FieldError::forbidden(path, what),
            "FieldValueDuplicate" => FieldError { detail: what, ..FieldError::duplicate(path, kind_name(schema)) },
            _ => FieldError::invalid(path, kind_name(schema), what),
        });
    }
}

/// A computed message is one line that is not empty and not too long.
fn usable(text: &Text<'_>) -> bool {
    !text.trim().is_empty() && !text.contains('\n') && text.len() <= 5 * 1024
}

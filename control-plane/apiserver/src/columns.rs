//! The printer columns that a CustomResourceDefinition asks for: JSON paths of the simple kind that
//! definitions use (`.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`). Pure.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};
use sluice_api::{resource::Resource, table::human_duration};

/// Columns by group, version and plural.
pub(crate) type Columns = HashMap<(String, String, String), Arc<[Column]>>;

/// One column.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    All,
    /// Elements whose field has the value.
    Where(Vec<String>, Value),
}

/// The columns of one version of a definition; name and age when it asks for none.
pub(crate) fn columns(version: &Value) -> Arc<[Column]> {
    let name = json!({"name": "Name", "type": "string", "format": "name", "jsonPath": ".metadata.name"});
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    let asked = version["additionalPrinterColumns"].as_array().filter(|a| !a.is_empty());
    let others = asked.cloned().unwrap_or_else(|| vec![age]);
    std::iter::once(name).chain(others).map(|column| Column::new(&column)).collect()
}

/// The columns of a row; `None` for built-in kinds.
pub(crate) fn of(columns: &Columns, row: &Resource) -> Option<Arc<[Column]>> {
    let key = (row.group.to_string(), row.version.to_string(), row.plural.to_string());
    columns.get(&key).cloned()
}

impl Column {
    fn new(asked: &Value) -> Self {
        let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description: text("description"),
            priority: asked["priority"].as_i64().unwrap_or(0),
            path: parse(asked["jsonPath"].as_str().unwrap_or_default()),
        }
    }

    /// The column's entry in `columnDefinitions`.
    pub(crate) fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }

    /// One object's cell; null for nothing. Dates become ages.
    pub(crate) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = walk(object, &self.path);
        let Some(first) = found.first() else { return Value::Null };
        if self.kind == "date" {
            let at = first.as_str().and_then(|text| text.parse::<Timestamp>().ok());
            return at.map_or(json!("<invalid>"), |at| json!(human_duration(now.duration_since(at).as_secs())));
        }
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match (self.kind.as_str(), first) {
            ("integer" | "number" | "boolean", value) => (*value).clone(),
            _ if found.len() == 1 => json!(text(first)),
            _ => json!(found.iter().map(|v| text(v)).collect::<Vec<_>>().join(",")),
        }
    }
}

/// The values that a path leads to.
fn walk<'a>(object: &'a Value, path: &[Step]) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in path {
        found = found
            .into_iter()
            .flat_map(|value| -> Vec<&Value> {
                match step {
                    Step::Field(name) => value.get(name).into_iter().collect(),
                    Step::Index(at) => value.get(at).into_iter().collect(),
                    Step::All => value.as_array().into_iter().flatten().collect(),
                    Step::Where(field, wanted) => {
                        let holds = |v: &&Value| field.iter().try_fold(*v, |v, key| v.get(key)) == Some(wanted);
                        value.as_array().into_iter().flatten().filter(holds).collect()
                    }
                }
            })
            .filter(|value| !value.is_null())
            .collect();
    }
    found
}

/// Reads a path; what cannot be read leads nowhere.
fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = text.trim().trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(field) = rest.strip_prefix('.') {
            let end = end_of_field(field);
            if end > 0 {
                steps.push(Step::Field(field[..end].replace('\\', "")));
            }
            rest = &field[end..];
        } else if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = end_of_bracket(inner) else { return vec![Step::Field(String::new())] };
            steps.push(bracket(inner[..end].trim()));
            rest = &inner[end + 1..];
        } else {
            return vec![Step::Field(String::new())];
        }
    }
    steps
}

/// Up to the next unescaped dot or bracket.
fn end_of_field(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '.' | '[' => return i,
            _ => {}
        }
    }
    text.len()
}

/// Up to the closing bracket, quotes apart.
fn end_of_bracket(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(i),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Step {
    if inner == "*" {
        return Step::All;
    }
    if let Ok(index) = inner.parse() {
        return Step::Index(index);
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|c| c.strip_suffix(')'))
        && let Some((left, right)) = condition.split_once("==")
    {
        let field = left.trim().trim_start_matches("@.").split('.').map(str::to_owned).collect();
        let text = right.trim();
        let bare = text.trim_matches(['"', '\'']);
        let value =
            if bare.len() < text.len() { json!(bare) } else { serde_json::from_str(text).unwrap_or(json!(text)) };
        return Step::Where(field, value);
    }
    Step::Field(inner.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_lead_to_cells() {
        let object = json!({
            "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "n"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "hosts": [{"name": "x"}, {"name": "y"}]},
            "status": {"conditions": [{"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let check = |kind: &str, path: &str, expected: Value| {
            let column = Column::new(&json!({"name": "C", "type": kind, "jsonPath": path}));
            assert_eq!(column.cell(&object, now), expected, "{path}");
        };
        check("integer", ".spec.replicas", json!(3));
        check("string", ".spec.replicas", json!("3"));
        check("string", ".status.conditions[?(@.type==\"Ready\")].status", json!("True"));
        check("string", ".status.conditions[?(@.type=='Ready')].status", json!("True"));
        check("string", ".spec.hosts[1].name", json!("y"));
        check("string", ".spec.hosts[*].name", json!("x,y"));
        check("string", ".metadata.labels.app\\.kubernetes\\.io/name", json!("n"));
        check("string", ".metadata.labels['app.kubernetes.io/name']", json!("n"));
        check("date", ".metadata.creationTimestamp", json!("5m"));
        check("string", ".spec.missing", Value::Null);
        check("string", "][", Value::Null);
    }

    #[test]
    fn a_definition_without_columns_shows_name_and_age() {
        let names = |version: Value| -> Vec<String> { columns(&version).iter().map(|c| c.name.clone()).collect() };
        assert_eq!(names(json!({})), ["Name", "Age"]);
        let asked = json!({"additionalPrinterColumns": [{"name": "Spec", "type": "string", "jsonPath": ".spec.cron"}]});
        assert_eq!(names(asked), ["Name", "Spec"]);
    }
}

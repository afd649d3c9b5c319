//! Printer columns: what `kubectl get` shows of each kind, computed here as upstream's API server
//! does. Source: upstream's `pkg/printers/internalversion/printers.go`.
//!
//! A kind is a list of [`Column`]s, each with a function from the object to its cell. Kinds without
//! a list show name and creation time.

mod apps;
mod cluster;
mod core;
mod other;
mod pod;
mod text;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::Resource;

pub use text::{human_duration, selector_text};

/// What a cell is made from.
pub struct Source<'a> {
    pub object: &'a Value,
    pub now: Timestamp,
}

/// A column of a kind's table.
#[derive(Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`, as in OpenAPI.
    pub kind: &'static str,
    /// 0 is always shown, more only in `-o wide`.
    pub priority: u8,
    cell: fn(&Source<'_>) -> Value,
}

impl Column {
    const fn new(name: &'static str, cell: fn(&Source<'_>) -> Value) -> Self {
        Self { name, kind: "string", priority: 0, cell }
    }

    const fn integer(name: &'static str, cell: fn(&Source<'_>) -> Value) -> Self {
        Self { name, kind: "integer", priority: 0, cell }
    }

    const fn wide(name: &'static str, cell: fn(&Source<'_>) -> Value) -> Self {
        Self { name, kind: "string", priority: 1, cell }
    }
}

const NAME: Column = Column::new("Name", |s| s.get("/metadata/name"));
const AGE: Column = Column::new("Age", |s| json!(s.age()));
const CREATED: Column = Column { kind: "date", ..Column::new("Created At", |s| s.get("/metadata/creationTimestamp")) };

/// The columns of a kind, in order.
pub fn columns(resource: &Resource) -> &'static [Column] {
    let lists = core::KINDS.iter().chain(apps::KINDS).chain(other::KINDS).chain(cluster::KINDS);
    let mine = |(group, kind, _): &&(&str, &str, &'static [Column])| resource.group == *group && resource.kind == *kind;
    lists.into_iter().find(mine).map_or(&[NAME, CREATED], |(_, _, columns)| columns)
}

/// The `columnDefinitions` of a Table.
pub fn definitions(columns: &[Column]) -> Value {
    let one = |column: &Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({
            "name": column.name,
            "type": column.kind,
            "format": format,
            "description": describe(column.name),
            "priority": column.priority,
        })
    };
    columns.iter().map(one).collect()
}

/// One object's cells.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let source = Source { object, now };
    columns.iter().map(|column| (column.cell)(&source)).collect()
}

fn describe(name: &str) -> String {
    match name {
        "Name" => "Name must be unique within a namespace.".into(),
        "Age" | "Created At" => "How long ago, or when, the object was created on the server.".into(),
        other => format!("{other} of the object."),
    }
}

impl<'a> Source<'a> {
    /// The value at a JSON pointer, or null.
    fn at(&self, pointer: &str) -> &'a Value {
        self.object.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The value at a JSON pointer as a cell: text, number or boolean; empty text for nothing.
    fn get(&self, pointer: &str) -> Value {
        match self.at(pointer) {
            Value::Null => json!(""),
            value => value.clone(),
        }
    }

    fn str(&self, pointer: &str) -> &'a str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// A text with upstream's `<none>` for the empty one.
    fn or_none(&self, pointer: &str) -> Value {
        json!(text::or_none(self.str(pointer)))
    }

    fn int(&self, pointer: &str) -> i64 {
        self.at(pointer).as_i64().unwrap_or_default()
    }

    fn list(&self, pointer: &str) -> &'a [Value] {
        self.at(pointer).as_array().map_or(&[], Vec::as_slice)
    }

    fn count(&self, pointer: &str) -> Value {
        match self.at(pointer) {
            Value::Object(map) => json!(map.len()),
            Value::Array(list) => json!(list.len()),
            _ => json!(0),
        }
    }

    fn age(&self) -> String {
        self.since(self.str("/metadata/creationTimestamp"))
    }

    /// How long ago a time was; `<unknown>` for none.
    fn since(&self, time: &str) -> String {
        match time.parse::<Timestamp>() {
            Ok(time) => human_duration(self.now.as_second() - time.as_second()),
            Err(_) => "<unknown>".into(),
        }
    }

    fn selector(&self, pointer: &str) -> Value {
        json!(text::label_selector(self.at(pointer)))
    }

    /// Names and images of the containers of the pod spec at `pointer`.
    fn containers(&self, pointer: &str, field: &str) -> Value {
        let names = self.list(pointer).iter().filter_map(|c| c[field].as_str());
        json!(names.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    /// The cells of `object`, as text, of all columns.
    pub(super) fn row(group: &str, kind: &str, object: &Value) -> Vec<String> {
        let version = if group == "autoscaling" { "v2" } else { "v1" };
        let resource = resource::builtin().by_kind(group, version, kind).unwrap();
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let text = |cell: Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
        cells(columns(resource), object, now).into_iter().map(text).collect()
    }

    #[test]
    fn every_list_belongs_to_a_known_kind() {
        for (group, kind, columns) in core::KINDS.iter().chain(apps::KINDS).chain(other::KINDS).chain(cluster::KINDS) {
            assert!(resource::builtin().iter().any(|r| r.group == *group && r.kind == *kind), "{group} {kind}");
            assert_eq!(columns.iter().filter(|c| c.name == "Name").count(), 1, "{kind}");
        }
    }

    #[test]
    fn an_empty_object_makes_a_row_of_every_kind() {
        for resource in resource::builtin().iter() {
            let cells = cells(columns(resource), &json!({}), Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), columns(resource).len(), "{}", resource.kind);
        }
    }

    #[test]
    fn a_deployment_and_a_service_read_as_upstreams() {
        let deployment = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1},
        });
        assert_eq!(row("apps", "Deployment", &deployment), ["web", "2/3", "3", "1", "60m", "c", "i:1", "app=web"]);
        let service = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:59:00Z"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "selector": {"app": "web"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        });
        let expected = ["web", "NodePort", "10.96.0.5", "<none>", "80:30080/TCP,53/UDP", "60s", "app=web"];
        assert_eq!(row("", "Service", &service), expected);
    }
}

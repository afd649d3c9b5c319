//! `metadata.managedFields`: who owns which fields since when. Reading and writing the list, its
//! order, the bound on managers of updates, and the checks of what a client sends.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::Set;
use crate::{limits, status::FieldError};

/// The annotation of client-side apply.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Whoever updated an object longest ago, once there are too many of them.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What makes an entry the same one: a manager's applies are one whatever their version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub manager: String,
    pub operation: Operation,
    /// Empty for [`Operation::Apply`].
    pub version: String,
    pub subresource: String,
}

impl Id {
    pub fn new(manager: &str, operation: Operation, version: &str, subresource: &str) -> Self {
        Self {
            manager: if manager.is_empty() { "unknown" } else { manager }.into(),
            operation,
            version: if operation == Operation::Apply { "" } else { version }.into(),
            subresource: subresource.into(),
        }
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The apiVersion that the paths are of.
    pub version: String,
    pub time: Option<String>,
    pub set: Set,
    /// As it was read, as long as nothing changed.
    raw: Option<Value>,
}

impl Entry {
    pub fn new(version: &str, time: Option<&str>, set: Set) -> Self {
        Self { version: version.into(), time: time.map(str::to_owned), set, raw: None }
    }

    /// Gives the entry another set.
    pub fn replace(&mut self, set: Set) {
        if self.set != set {
            self.set = set;
            self.raw = None;
        }
    }

    /// Gives the entry another time.
    pub fn touch(&mut self, time: &str) {
        if self.time.as_deref() != Some(time) {
            self.time = Some(time.into());
            self.raw = None;
        }
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(pub BTreeMap<Id, Entry>);

impl Managers {
    /// Reads the list; upstream's words for what is wrong with it.
    pub fn decode(list: &[Value]) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (i, raw) in list.iter().enumerate() {
            let text = |field: &str| raw[field].as_str().unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            let version = text("apiVersion");
            if version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}")),
            }
            let set = Set::from_json(&raw["fieldsV1"]).map_err(|why| format!("error decoding set: {why}"))?;
            let id = Id {
                manager: text("manager").into(),
                operation,
                version: if operation == Operation::Apply { String::new() } else { version.into() },
                subresource: text("subresource").into(),
            };
            let time = raw["time"].as_str().map(str::to_owned);
            all.insert(id, Entry { version: version.into(), time, set, raw: Some(raw.clone()) });
        }
        Ok(Self(all))
    }

    /// Upstream's reading of an object's list.
    pub fn of(object: &Value) -> Result<Self, String> {
        Self::decode(list_of(object))
    }

    /// The same managers, to be written in the form that the server uses.
    pub(super) fn rewritten(mut self) -> Self {
        self.0.values_mut().for_each(|entry| entry.raw = None);
        self
    }

    /// The list in upstream's order: applies first, then by time, name, version and subresource.
    pub fn encode(self) -> Vec<Value> {
        let mut entries: Vec<(Id, Entry)> = self.0.into_iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            // Times are UTC in whole seconds: their texts sort as they do.
            (a.operation, &x.time, &a.manager, &x.version, &a.subresource).cmp(&(
                b.operation,
                &y.time,
                &b.manager,
                &y.version,
                &b.subresource,
            ))
        });
        entries.into_iter().map(|(id, entry)| encode(&id, entry)).collect()
    }

    /// Writes the list into the object; no managers remove the field.
    pub fn store(self, object: &mut Value) {
        set_list(object, self.encode());
    }

    /// Drops who owns nothing any more.
    pub(super) fn drop_empty(&mut self) {
        self.0.retain(|_, entry| !entry.set.is_empty());
    }

    /// Puts the oldest updates of one version together while there are more than
    /// [`limits::UPDATE_MANAGERS`].
    pub(super) fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Id)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, entry)| (entry.time.clone(), id.clone()))
            .collect();
        let mut count = updates.len();
        if count <= limits::UPDATE_MANAGERS {
            return;
        }
        updates.sort();
        let mut first: BTreeMap<String, Id> = BTreeMap::new();
        for (time, id) in updates {
            if count <= limits::UPDATE_MANAGERS {
                return;
            }
            let version = id.version.clone();
            let bucket = Id::new(ANCIENT, Operation::Update, &version, "");
            let Some(oldest) = first.get(&version) else {
                first.insert(version, id);
                continue;
            };
            // What was put together before may be younger than the oldest left.
            let (oldest, id) = if id == bucket { (&id, oldest.clone()) } else { (oldest, id) };
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(oldest)
            {
                self.0.insert(bucket.clone(), Entry { raw: None, ..entry });
            }
            let Some(entry) = self.0.remove(&id) else { continue };
            if let Some(bucket) = self.0.get_mut(&bucket) {
                bucket.replace(bucket.set.union(&entry.set));
                bucket.time = time;
                bucket.raw = None;
            }
            count -= 1;
        }
    }
}

fn encode(id: &Id, entry: Entry) -> Value {
    if let Some(raw) = entry.raw {
        return raw;
    }
    let mut out = Map::new();
    out.insert("manager".into(), id.manager.as_str().into());
    out.insert("operation".into(), id.operation.as_str().into());
    out.insert("apiVersion".into(), entry.version.into());
    if let Some(time) = entry.time {
        out.insert("time".into(), time.into());
    }
    out.insert("fieldsType".into(), "FieldsV1".into());
    out.insert("fieldsV1".into(), entry.set.to_json());
    if !id.subresource.is_empty() {
        out.insert("subresource".into(), id.subresource.as_str().into());
    }
    Value::Object(out)
}

/// The object's list; empty when it has none.
pub(super) fn list_of(object: &Value) -> &[Value] {
    object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn set_list(object: &mut Value, list: Vec<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if list.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(list));
    }
}

/// Takes the list out of an object; `None` when it has none.
pub(super) fn take_list(object: &mut Value) -> Option<Vec<Value>> {
    match object.get_mut("metadata")?.as_object_mut()?.shift_remove("managedFields")? {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

/// Whether a client asks for the list to be cleared: it is empty, or has one empty entry.
pub(super) fn clears(list: &[Value]) -> bool {
    match list {
        [] => true,
        [one] => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// What is wrong with the names in an object's list (upstream's `ValidateManagedFields`).
pub fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, entry) in list_of(object).iter().enumerate() {
        let path = format!("metadata.managedFields[{i}]");
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        errors.extend(super::options::validate_manager(&format!("{path}.manager"), text("manager")));
        if text("subresource").len() > limits::SUBRESOURCE_NAME {
            let field = format!("{path}.subresource");
            errors.push(FieldError::too_long(field, limits::SUBRESOURCE_NAME));
        }
    }
    errors
}

/// Whether two objects are the same but for the times of their managers: then nothing was written.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let (before, after) = (list_of(a), list_of(b));
    before.len() == after.len()
        && before.iter().zip(after).all(|(a, b)| same_but(a, b, "time"))
        && same_but(a, b, "metadata")
        && same_but(&a["metadata"], &b["metadata"], "managedFields")
}

/// Whether two objects have the same fields beside one.
fn same_but(a: &Value, b: &Value, field: &str) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let count = |fields: &Map<String, Value>| fields.len() - usize::from(fields.contains_key(field));
    count(a) == count(b) && a.iter().all(|(name, value)| name == field || b.get(name) == Some(value))
}

/// The object without its list.
pub(super) fn without_list(object: &Value) -> Value {
    let mut object = object.clone();
    take_list(&mut object);
    object
}

/// An empty object with the type and name of another.
pub(super) fn named_like(object: &Value) -> Value {
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": {}})
}

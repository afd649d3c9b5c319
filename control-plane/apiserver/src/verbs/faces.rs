//! Subresources that are another face of the object: each shows it in its way and takes only a part
//! of what is submitted. PUT and PATCH of all of them run through the one read-modify-write. Pure.

use serde_json::{Value, json};
use sluice_api::{
    resource::Resource,
    scale,
    status::{FieldError, Status},
};

use super::write::Part;
use crate::meta;

type Show = fn(&Resource, &Value) -> Result<Value, Status>;
type Merge = fn(&Resource, &Value, Value) -> Result<Value, Status>;

/// One way to look at and to change an object.
pub(crate) struct Face {
    pub(super) part: Part,
    /// apiVersion and kind of what is shown, where it is not the object itself.
    pub(super) expected: Option<(&'static str, &'static str)>,
    pub(super) show: Show,
    /// The new object from the old one and what was submitted.
    pub(super) merge: Merge,
}

/// The object itself.
pub(super) const MAIN: Face = Face { part: Part::Whole, expected: None, show: itself, merge: submitted };

const STATUS: Face = Face { part: Part::Status, ..MAIN };

const SCALE: Face =
    Face { part: Part::Whole, expected: Some(("autoscaling/v1", "Scale")), show: scale_of, merge: scaled };

const FINALIZE: Face =
    Face { part: Part::Kept, merge: |_, old, new| Ok(with(old, &new, &["spec", "finalizers"])), ..MAIN };

const APPROVAL: Face = Face { part: Part::Kept, merge: approved, ..MAIN };

const EPHEMERAL: Face = Face { part: Part::Below("spec.ephemeralContainers"), merge: debugged, ..MAIN };

const RESIZE: Face = Face { part: Part::Below("spec."), merge: resized, ..MAIN };

impl Face {
    /// The face that a subresource's name stands for.
    pub(super) fn of(subresource: &str) -> Option<&'static Self> {
        Some(match subresource {
            "status" => &STATUS,
            "scale" => &SCALE,
            "finalize" => &FINALIZE,
            "approval" => &APPROVAL,
            "ephemeralcontainers" => &EPHEMERAL,
            "resize" => &RESIZE,
            _ => return None,
        })
    }
}

fn itself(_: &Resource, object: &Value) -> Result<Value, Status> {
    Ok(object.clone())
}

fn submitted(_: &Resource, _: &Value, new: Value) -> Result<Value, Status> {
    Ok(new)
}

fn scale_of(resource: &Resource, object: &Value) -> Result<Value, Status> {
    scale::get(resource, object).ok_or_else(Status::not_found_path)
}

fn scaled(resource: &Resource, old: &Value, scale: Value) -> Result<Value, Status> {
    let mut new = locked(old, &scale);
    scale::apply(resource, &mut new, &scale)?;
    Ok(new)
}

/// The old object with the preconditions (resourceVersion, uid) of what was submitted.
fn locked(old: &Value, submitted: &Value) -> Value {
    let mut new = old.clone();
    for field in ["resourceVersion", "uid"] {
        match meta::text(submitted, field) {
            "" => meta::clear(&mut new, &[field]),
            text => meta::set(&mut new, field, text),
        }
    }
    new
}

/// The old object with one field of two levels taken from what was submitted.
fn with(old: &Value, submitted: &Value, [outer, inner]: &[&str; 2]) -> Value {
    let mut new = locked(old, submitted);
    let taken = submitted[*outer][*inner].clone();
    let outer = meta::map(meta::map(&mut new).entry(*outer).or_insert_with(|| json!({})));
    if taken.is_null() {
        outer.shift_remove(*inner);
    } else {
        outer.insert((*inner).to_owned(), taken);
    }
    new
}

/// The conditions, and what the approver notes in the metadata.
fn approved(_: &Resource, old: &Value, submitted: Value) -> Result<Value, Status> {
    let noted = with(old, &submitted, &["metadata", "annotations"]);
    let labelled = with(&noted, &submitted, &["metadata", "labels"]);
    Ok(with(&labelled, &submitted, &["status", "conditions"]))
}

/// Ephemeral containers come and never go.
fn debugged(resource: &Resource, old: &Value, submitted: Value) -> Result<Value, Status> {
    let field = ["spec", "ephemeralContainers"];
    let new = with(old, &submitted, &field);
    let names = |object: &Value| -> Vec<Value> {
        let list = object[field[0]][field[1]].as_array();
        list.into_iter().flatten().map(|c| c["name"].clone()).collect()
    };
    let now = names(&new);
    match names(old).into_iter().find(|name| !now.contains(name)) {
        None => Ok(new),
        Some(gone) => {
            let why = format!("existing ephemeral containers {gone} may not be removed");
            let error = FieldError::forbidden(field.join("."), why);
            Err(Status::invalid(resource, meta::name(old), vec![error]))
        }
    }
}

/// Only the resources of containers that are there already.
fn resized(_: &Resource, old: &Value, submitted: Value) -> Result<Value, Status> {
    let mut new = locked(old, &submitted);
    for list in ["containers", "initContainers"] {
        let wanted = submitted["spec"][list].as_array();
        // Not by indexing, which would leave a null where there is no such list.
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let found = wanted.into_iter().flatten().find(|wanted| wanted["name"] == container["name"]);
            for field in ["resources", "resizePolicy"] {
                if let Some(value) = found.and_then(|found| found.get(field)) {
                    container[field] = value.clone();
                }
            }
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_face_takes_only_its_part() {
        let resource = sluice_api::resource::builtin().by_path("", "v1", "pods").unwrap();
        let old = json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "5", "labels": {"old": "1"}},
            "spec": {"finalizers": ["kubernetes"], "containers": [{"name": "c", "image": "i", "resources": {}}]},
        });
        let new = json!({
            "metadata": {"name": "a", "resourceVersion": "4", "labels": {"new": "1"}},
            "spec": {"containers": [{"name": "c", "image": "other", "resources": {"limits": {"cpu": "1"}}}]},
            "status": {"conditions": [1]},
        });
        let merge = |name: &str| (Face::of(name).unwrap().merge)(resource, &old, new.clone()).unwrap();
        let finalized = merge("finalize");
        assert_eq!(finalized["spec"]["finalizers"], Value::Null);
        assert_eq!(finalized["metadata"]["labels"], json!({"old": "1"}));
        assert_eq!(finalized["metadata"]["resourceVersion"], "4");
        assert_eq!(merge("approval")["status"], json!({"conditions": [1]}));
        assert_eq!(merge("approval")["spec"], old["spec"]);
        assert_eq!(merge("approval")["metadata"]["labels"], json!({"new": "1"}));
        assert_eq!(
            merge("resize")["spec"]["containers"],
            json!([{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}])
        );
        assert_eq!(merge("resize")["spec"].get("initContainers"), None);
        assert_eq!(merge("status"), new);
    }
}

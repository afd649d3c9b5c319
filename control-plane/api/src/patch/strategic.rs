//! Strategic merge patch, upstream's own format: lists merge by keys that the schema declares, and
//! `$` directives delete, replace and order. The rules are those of upstream's
//! `apimachinery/pkg/util/strategicpatch` and its API conventions.

use serde_json::{Map, Value};

use super::{
    cannot_apply, go_text,
    order::{arrange, position},
};
use crate::{
    schema::{Facts, Shape, TypeRef},
    status::Status,
};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// The patch formats that objects without a schema of merge keys accept.
const WITHOUT_SCHEMA: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

type Object = Map<String, Value>;

/// Applies a strategic merge patch. Without a schema (custom resources): `UnsupportedMediaType`.
/// `BadRequest` for malformed directives, 422 when a list's item lacks its merge key.
pub fn strategic(schema: Option<TypeRef<'_>>, original: &Value, patch: Value) -> Result<Value, Status> {
    let Some(schema) = schema else { return Err(Status::unsupported_media_type(&WITHOUT_SCHEMA)) };
    let (Value::Object(original), Value::Object(patch)) = (original.clone(), patch) else {
        return Err(Status::bad_request("invalid JSON document"));
    };
    merge_object(original, patch, Shape::Object(schema)).map(Value::Object)
}

/// What `$patch` asks of the object or list item that holds it.
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &mut Object) -> Result<Option<Directive>, Status> {
    match patch.shift_remove(DIRECTIVE) {
        None => Ok(None),
        Some(Value::String(word)) if word == "merge" => Ok(Some(Directive::Merge)),
        Some(Value::String(word)) if word == "replace" => Ok(Some(Directive::Replace)),
        Some(Value::String(word)) if word == "delete" => Ok(Some(Directive::Delete)),
        Some(other) => {
            let word = go_text(&other);
            patch.insert(DIRECTIVE.into(), other);
            Err(plain(format!("unknown patch type: {word} in map: {}", go_text(&Value::Object(patch.clone())))))
        }
    }
}

fn merge_object(mut original: Object, mut patch: Object, shape: Shape<'_>) -> Result<Object, Status> {
    match directive(&mut patch)? {
        Some(Directive::Replace) => return Ok(patch),
        Some(Directive::Delete) => return Ok(Object::new()),
        Some(Directive::Merge) | None => {}
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_PREFIX) {
            delete_values(&mut original, list, &value)?;
            continue;
        }
        match merge_value(original.shift_remove(&key), value, &Target::of(shape, &key))? {
            Some(merged) => original.insert(key, merged),
            None => None,
        };
    }
    Ok(original)
}

/// A field's value after the merge; `None` removes it.
fn merge_value(original: Option<Value>, patch: Value, target: &Target<'_>) -> Result<Option<Value>, Status> {
    Ok(match (original, patch) {
        (_, Value::Null) => None,
        (Some(Value::Object(old)), Value::Object(new)) if !target.facts.replace => {
            Some(Value::Object(merge_object(old, new, target.shape)?))
        }
        (Some(Value::Array(old)), Value::Array(new)) if target.facts.merge => {
            Some(Value::Array(merge_list(old, new, target)?))
        }
        // Nothing of the kind is there: the patch is merged into nothing, which carries out its
        // directives and drops its nulls.
        (_, Value::Object(mut new)) => match directive(&mut new)? {
            Some(Directive::Delete) => None,
            _ => Some(Value::Object(merge_object(Object::new(), new, target.shape)?)),
        },
        (_, Value::Array(new)) if target.facts.merge => Some(Value::Array(merge_list(Vec::new(), new, target)?)),
        (_, Value::Array(new)) => Some(Value::Array(plain_items(new, target.item())?)),
        (_, value) => Some(value),
    })
}

/// The items of a list that is replaced as a whole.
fn plain_items(items: Vec<Value>, shape: Shape<'_>) -> Result<Vec<Value>, Status> {
    let target = Target { shape, facts: &NO_FACTS };
    let merged = items.into_iter().map(|item| match item {
        Value::Null => Ok(Some(Value::Null)),
        item => merge_value(None, item, &target),
    });
    merged.filter_map(Result::transpose).collect()
}

/// `$retainKeys`: the patch names every field that may stay.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let Some(list) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let names = list.as_array().filter(|names| names.iter().all(Value::is_string));
    let Some(names) = names else { return Err(Status::bad_request("invalid patch format of retainKeys")) };
    let named = |key: &str| names.iter().any(|name| name == key);
    if !patch.iter().all(|(key, value)| value.is_null() || key.starts_with('$') || named(key)) {
        return Err(cannot_apply());
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// `$deleteFromPrimitiveList/<list>`.
fn delete_values(original: &mut Object, list: &str, values: &Value) -> Result<(), Status> {
    let Some(values) = values.as_array() else {
        return Err(Status::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(items)) = original.get_mut(list) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

/// Every list with a `$setElementOrder/<list>`: merged, and put into that order.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, shape: Shape<'_>) -> Result<(), Status> {
    let orders: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER_PREFIX)).cloned().collect();
    for order in orders {
        let wanted = patch.shift_remove(&order);
        let list = order[ORDER_PREFIX.len()..].to_owned();
        let Some(Value::Array(wanted)) = wanted else { return Err(bad_order()) };
        let target = Target::of(shape, &list);
        let key = target.facts.merge_key.as_deref();
        if key.is_some_and(|key| wanted.iter().any(|item| item.get(key).is_none())) {
            return Err(bad_order());
        }
        if let Some(deleted) = patch.shift_remove(&format!("{DELETE_PREFIX}{list}")) {
            delete_values(original, &list, &deleted)?;
        }
        let new = match patch.get(&list) {
            None => Vec::new(),
            Some(Value::Array(_)) => match patch.shift_remove(&list) {
                Some(Value::Array(new)) => new,
                _ => Vec::new(),
            },
            Some(_) => continue,
        };
        let old = match original.get_mut(&list) {
            Some(Value::Array(old)) => std::mem::take(old),
            _ if new.is_empty() => continue,
            _ => Vec::new(),
        };
        let live = old.clone();
        check_order(&new, &wanted, key)?;
        let merged = if target.facts.merge { merge_list(old, new, &target)? } else { new };
        original.insert(list, Value::Array(arrange(merged, &wanted, &live, key)));
    }
    Ok(())
}

/// The patch's items have to stand in the order that it asks for.
fn check_order(items: &[Value], wanted: &[Value], key: Option<&str>) -> Result<(), Status> {
    let mut last = 0;
    for item in items.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        match position(wanted, item, key) {
            Some(at) if at >= last => last = at,
            _ => return Err(bad_order()),
        }
    }
    Ok(())
}

fn bad_order() -> Status {
    Status::bad_request("invalid patch format of setElementOrder list")
}

/// A list with the merge strategy.
fn merge_list(old: Vec<Value>, new: Vec<Value>, target: &Target<'_>) -> Result<Vec<Value>, Status> {
    if old.iter().chain(&new).any(Value::is_array) {
        return Err(cannot_apply());
    }
    match target.facts.merge_key.as_deref() {
        Some(key) => merge_objects(old, new, key, target.item()),
        None => {
            let live = old.clone();
            let mut merged: Vec<Value> = Vec::with_capacity(old.len() + new.len());
            for value in old.into_iter().chain(new.iter().cloned()) {
                if !merged.contains(&value) {
                    merged.push(value);
                }
            }
            Ok(arrange(merged, &new, &live, None))
        }
    }
}

/// A list of objects that are found by a key.
fn merge_objects(mut old: Vec<Value>, new: Vec<Value>, key: &str, shape: Shape<'_>) -> Result<Vec<Value>, Status> {
    let (mut plain, mut replace) = (Vec::new(), false);
    for item in new {
        let Value::Object(mut item) = item else {
            return Err(Status::bad_request(format!("invalid item in a list merged by {key:?}: {item}")));
        };
        match directive(&mut item)? {
            None => plain.push(item),
            Some(Directive::Replace) => replace = true,
            Some(Directive::Delete) => {
                let value = key_of(&item, key)?;
                old.retain(|other| other.get(key) != Some(&value));
            }
            Some(Directive::Merge) => {
                return Err(Status::bad_request("merging lists cannot yet be specified in the patch"));
            }
        }
    }
    if replace {
        return plain_items(plain.into_iter().map(Value::Object).collect(), shape);
    }
    let live = old.clone();
    let mut wanted = Vec::with_capacity(plain.len());
    for item in plain {
        let value = key_of(&item, key)?;
        wanted.push(Value::Object([(key.to_owned(), value.clone())].into_iter().collect()));
        match old.iter_mut().find(|other| other.get(key) == Some(&value)) {
            Some(Value::Object(found)) => *found = merge_object(std::mem::take(found), item, shape)?,
            _ => old.push(Value::Object(merge_object(Object::new(), item, shape)?)),
        }
    }
    Ok(arrange(old, &wanted, &live, Some(key)))
}

/// What upstream answers without a reason of its own.
fn plain(message: String) -> Status {
    Status::new(500, "", message)
}

fn key_of(item: &Object, key: &str) -> Result<Value, Status> {
    let missing = || {
        let item = go_text(&Value::Object(item.clone()));
        plain(format!("map: {item} does not contain declared merge key: {key}"))
    };
    item.get(key).cloned().ok_or_else(missing)
}

static NO_FACTS: Facts = Facts::NONE;

/// What the schema says about a field's value. Fields that it does not know merge as plain JSON:
/// decoding will refuse or drop them.
struct Target<'a> {
    shape: Shape<'a>,
    facts: &'a Facts,
}

impl<'a> Target<'a> {
    fn of(parent: Shape<'a>, key: &str) -> Self {
        match parent {
            Shape::Object(schema) | Shape::ObjectOr(schema) => match schema.field(key) {
                Some(field) => Self { shape: field.shape(), facts: field.facts() },
                None => Self { shape: Shape::Any, facts: &NO_FACTS },
            },
            Shape::Map(item) => Self { shape: item.shape(), facts: &NO_FACTS },
            _ => Self { shape: Shape::Any, facts: &NO_FACTS },
        }
    }

    /// The shape of the items, if this is a list.
    fn item(&self) -> Shape<'a> {
        match self.shape {
            Shape::Array(item) => item.shape(),
            _ => Shape::Any,
        }
    }
}

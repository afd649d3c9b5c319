//! Merging an applied configuration into an object, and taking fields out of one. The rules are those
//! of upstream's `typed.Merge` and `typed.RemoveItems`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    element::Element,
    set::{Node, Set},
    types::{Atom, Fields, List, Type},
    walk::{TypeError, index},
};

/// The object with everything that the configuration says; nothing is removed. Items of lists
/// stand in the configuration's order, those that only the object has keep their place among them.
pub(super) fn merge(live: &Value, config: &Value, ty: Type<'_>) -> Result<Value, TypeError> {
    Ok(merged(Some(live), Some(config), ty)?.unwrap_or_else(|| Value::Object(Map::new())))
}

fn merged(live: Option<&Value>, config: Option<&Value>, ty: Type<'_>) -> Result<Option<Value>, TypeError> {
    let (live, new) = match (live, config) {
        (Some(live), Some(new)) => (live, new),
        // Nothing to merge with: the value is kept as it is.
        (only, None) | (None, only) => return Ok(only.cloned()),
    };
    match (ty.atom(live), ty.atom(new)) {
        (Atom::Map(_), Atom::Map(fields)) => maps(live, new, &fields),
        (Atom::List(_), Atom::List(list)) => lists(live, new, &list),
        _ => Ok(Some(new.clone())),
    }
}

fn maps(live: &Value, new: &Value, fields: &Fields<'_>) -> Result<Option<Value>, TypeError> {
    let (before, after) = (live.as_object(), new.as_object());
    let empty = before.is_none_or(Map::is_empty) && after.is_none_or(Map::is_empty);
    if fields.atomic || empty {
        return Ok(Some(new.clone()));
    }
    let mut out = Map::new();
    let mut put = |name: &String, live: Option<&Value>, new: Option<&Value>| -> Result<(), TypeError> {
        let value = merged(live, new, fields.child(name).0).map_err(|e| e.below(&Element::field(name)))?;
        if let Some(value) = value {
            out.insert(name.clone(), value);
        }
        Ok(())
    };
    for (name, live) in before.into_iter().flatten() {
        put(name, Some(live), after.and_then(|after| after.get(name)))?;
    }
    for (name, new) in after.into_iter().flatten() {
        if before.is_none_or(|before| !before.contains_key(name)) {
            put(name, None, Some(new))?;
        }
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

fn lists(live: &Value, new: &Value, list: &List<'_>) -> Result<Option<Value>, TypeError> {
    let (before, after) = (live.as_array(), new.as_array());
    let empty = before.is_none_or(Vec::is_empty) && after.is_none_or(Vec::is_empty);
    if list.atomic || empty {
        return Ok(Some(new.clone()));
    }
    let (live, new) = (index(list, before)?, index(list, after)?);
    if let Some((element, _)) = new.iter().find(|(_, items)| items.len() > 1) {
        return Err(TypeError::here(format!("duplicate entries for key {element}")));
    }
    let elements = |items: Option<&Vec<Value>>| -> Vec<Element> {
        items.into_iter().flatten().filter_map(|item| list.identify(item).ok()).collect()
    };
    let (left, right) = (elements(before), elements(after));
    let take = |element: &Element| -> Result<Option<Value>, TypeError> {
        // Duplicates are not merged with: the configuration's item takes their place.
        let old = live.get(element).and_then(|items| match items[..] {
            [item] => Some(item),
            _ => None,
        });
        let new = new.get(element).and_then(|items| items.first().copied());
        merged(old, new, list.item).map_err(|e| e.below(element))
    };
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let mut shared = right.iter().filter(|element| live.contains_key(*element));
    let mut next = shared.next();
    let mut done: BTreeSet<&Element> = BTreeSet::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
            if a == b {
                done.insert(a);
                out.extend(take(a)?);
                (l, r) = (l + 1, r + 1);
                next = shared.next();
                continue;
            }
            if new.contains_key(a) && next.is_some_and(|next| next != a) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if let Some(a) = left.get(l) {
            if !new.contains_key(a) {
                // The item at this very place: there may be several of the kind.
                out.extend(before.and_then(|items| items.get(l)).cloned());
                l += 1;
                continue;
            }
            if done.contains(a) {
                l += 1;
            }
        }
        if let Some(b) = right.get(r) {
            done.insert(b);
            out.extend(take(b)?);
            r += 1;
            if next == Some(b) {
                next = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

/// The value without these fields and items. What is left without any content is null.
pub(super) fn remove(value: &Value, gone: &Set, ty: Type<'_>) -> Value {
    match ty.atom(value) {
        Atom::Scalar(_) => value.clone(),
        Atom::List(list) => {
            let mut kept = Vec::new();
            for item in value.as_array().into_iter().flatten().filter(|_| !list.atomic) {
                let node = list.identify(item).ok().and_then(|element| gone.get(&element));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => kept.push(remove(item, &node.children, list.item)),
                    None => kept.push(item.clone()),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        Atom::Map(fields) => {
            let mut kept = Map::new();
            for (name, value) in value.as_object().into_iter().flatten().filter(|_| !fields.atomic) {
                match gone.get(&Element::field(name)) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        kept.insert(name.clone(), remove(value, &node.children, fields.child(name).0));
                    }
                    None => {
                        kept.insert(name.clone(), value.clone());
                    }
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
    }
}

/// Drops the nulls that [`remove`] left where `before` had something.
pub(super) fn drop_nulls(value: &mut Value, before: &Value) {
    match (value, before) {
        (Value::Object(fields), Value::Object(before)) => {
            fields.retain(|name, value| !value.is_null() || before.get(name).is_none_or(Value::is_null));
            for (name, value) in fields {
                if let Some(before) = before.get(name) {
                    drop_nulls(value, before);
                }
            }
        }
        (Value::Array(items), Value::Array(before)) if items.len() == before.len() => {
            for (item, before) in items.iter_mut().zip(before) {
                drop_nulls(item, before);
            }
        }
        (Value::Array(items), _) => items.iter_mut().for_each(drop_all_nulls),
        _ => {}
    }
}

fn drop_all_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_all_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_all_nulls),
        _ => {}
    }
}

/// The set with the declared fields above its members as members, so that a struct goes with the
/// last of its fields.
pub(super) fn with_named_parents(set: &Set, ty: Type<'_>) -> Set {
    let (map, list) = (ty.map(), ty.list());
    let nodes = set.nodes().iter().map(|node| {
        let (child, declared) = match (&node.element, map, list) {
            (Element::Field(name), Some(map), _) => map.child(name),
            (Element::Key(_), _, Some(list)) => (list.item, false),
            _ => (Type::Deduced, false),
        };
        Node {
            element: node.element.clone(),
            member: node.member || (declared && !node.children.is_empty()),
            children: with_named_parents(&node.children, child),
        }
    });
    Set::from_nodes(nodes.collect())
}

/// The set with members below a place that is owned whole by now moved up to it; `None` where there
/// are none (upstream's `ReconcileFieldSetWithSchema`).
pub(super) fn reconciled(set: &Set, ty: Type<'_>) -> Option<Set> {
    let (map, list) = (ty.map(), ty.list());
    if map.is_some_and(|map| map.is_deduced()) {
        return None;
    }
    let mut changed = false;
    let nodes = set.nodes().iter().map(|node| {
        let child = match (&node.element, map, list) {
            (Element::Field(name), Some(map), _) => map.field(name).map(|(ty, _)| ty),
            (Element::Field(_), ..) => None,
            (_, _, Some(list)) => Some(list.item),
            _ => None,
        };
        let mut node = node.clone();
        if let Some(ty) = child.filter(|_| !node.children.is_empty()) {
            let deduced = ty.map().is_some_and(|map| map.is_deduced());
            let atomic = ty.map().is_some_and(|map| map.atomic) || ty.list().is_some_and(|list| list.atomic);
            if atomic && !deduced {
                changed = true;
                node.member = true;
                node.children = Set::default();
            } else if let Some(children) = reconciled(&node.children, ty) {
                changed = true;
                node.children = children;
            }
        }
        node
    });
    let nodes = nodes.collect();
    changed.then(|| Set::from_nodes(nodes))
}

//! Which fields a value has, and which fields differ between two values, along their type. The rules
//! are those of upstream's `typed.ToFieldSet` and `typed.Compare`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    element::Element,
    set::{Node, Set},
    types::{Atom, Fields, List, Type},
};

/// What became of the fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    pub removed: Set,
    /// Added or given another value.
    pub written: Set,
}

impl Diff {
    /// Everything that is not as it was.
    pub fn changed(&self) -> Set {
        self.removed.union(&self.written)
    }

    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.written.is_empty()
    }

    /// Without what `reset` holds or is above of.
    pub(super) fn without(self, reset: &Set) -> Self {
        if reset.is_empty() {
            return self;
        }
        Self { removed: self.removed.recursive_difference(reset), written: self.written.recursive_difference(reset) }
    }
}

/// Something about the value that the type does not allow, at a place below the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    pub path: String,
    pub message: String,
}

impl TypeError {
    pub(super) fn here(message: impl Into<String>) -> Self {
        Self { path: String::new(), message: message.into() }
    }

    pub(super) fn below(mut self, element: &Element) -> Self {
        self.path.insert_str(0, &element.to_string());
        self
    }
}

impl std::fmt::Display for TypeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every leaf and item that the value names.
pub fn field_set(value: &Value, ty: Type<'_>) -> Result<Set, TypeError> {
    Ok(own(value, ty)?.1)
}

/// Whether the place itself is owned by whoever names the value, and what is below it.
fn own(value: &Value, ty: Type<'_>) -> Result<(bool, Set), TypeError> {
    let mut nodes = Vec::new();
    match ty.atom(value) {
        Atom::Scalar(_) => return Ok((true, Set::default())),
        Atom::List(list) if list.atomic => return Ok((true, Set::default())),
        Atom::Map(fields) if fields.atomic => return Ok((true, Set::default())),
        Atom::List(list) => {
            for (element, items) in index(&list, value.as_array())? {
                let children = match items[..] {
                    [item] => own(item, list.item).map_err(|e| e.below(&element))?.1,
                    _ => Set::default(),
                };
                nodes.push(Node { element, member: true, children });
            }
        }
        Atom::Map(fields) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let element = Element::field(name);
                let (ty, declared) = fields.child(name);
                let (member, children) = own(value, ty).map_err(|e| e.below(&element))?;
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                nodes.push(Node { element, member: member || empty || !declared, children });
            }
        }
    }
    Ok((false, Set::from_nodes(nodes)))
}

/// Which fields differ. `managedFields` and what else the server alone writes is not looked at
/// beyond what the type says: the caller takes it out of what is owned.
pub fn compare(old: &Value, new: &Value, ty: Type<'_>) -> Result<Diff, TypeError> {
    if old == new {
        return Ok(Diff::default());
    }
    let mut change = Change::default();
    change.compare(old, new, ty)?;
    Ok(change.below())
}

/// What became of one place.
#[derive(Default)]
struct Change {
    removed: bool,
    written: bool,
    below_removed: Vec<Node>,
    below_written: Vec<Node>,
}

impl Change {
    fn below(self) -> Diff {
        Diff { removed: Set::from_nodes(self.below_removed), written: Set::from_nodes(self.below_written) }
    }

    fn add(&mut self, element: Element, child: Self) {
        let (removed, written) = (child.removed, child.written);
        let Diff { removed: below_removed, written: below_written } = child.below();
        if removed || !below_removed.is_empty() {
            self.below_removed.push(Node { element: element.clone(), member: removed, children: below_removed });
        }
        if written || !below_written.is_empty() {
            self.below_written.push(Node { element, member: written, children: below_written });
        }
    }

    fn compare(&mut self, old: &Value, new: &Value, ty: Type<'_>) -> Result<(), TypeError> {
        match (ty.atom(old), ty.atom(new)) {
            (Atom::Map(_), Atom::Map(fields)) => self.maps(old, new, &fields),
            (Atom::List(_), Atom::List(list)) => self.lists(old, new, &list),
            (Atom::Scalar(_), Atom::Scalar(_)) => {
                self.written = old != new;
                Ok(())
            }
            // It is of another kind now: the place is changed, what was below it is not there any more.
            (_, _) => {
                self.written = true;
                self.below_removed = below(old, ty)?;
                self.below_written = below(new, ty)?;
                Ok(())
            }
        }
    }

    fn maps(&mut self, old: &Value, new: &Value, fields: &Fields<'_>) -> Result<(), TypeError> {
        let (before, after) = (old.as_object(), new.as_object());
        let empty = before.is_none_or(Map::is_empty) && after.is_none_or(Map::is_empty);
        if fields.atomic || empty {
            self.written = old != new;
            return Ok(());
        }
        for (name, old) in before.into_iter().flatten() {
            let element = Element::field(name);
            let (ty, _) = fields.child(name);
            let child = match after.and_then(|after| after.get(name)).or_else(|| fields.absent(name)) {
                Some(new) if old == new => continue,
                Some(new) => {
                    let mut child = Self::default();
                    child.compare(old, new, ty).map_err(|e| e.below(&element))?;
                    child
                }
                None => Self::gone(old, ty).map_err(|e| e.below(&element))?,
            };
            self.add(element, child);
        }
        for (name, new) in after.into_iter().flatten() {
            if before.is_none_or(|before| !before.contains_key(name)) {
                let element = Element::field(name);
                let (ty, _) = fields.child(name);
                let child = match fields.absent(name) {
                    Some(old) => {
                        let mut child = Self::default();
                        child.compare(old, new, ty).map_err(|e| e.below(&element))?;
                        child
                    }
                    None => Self::come(new, ty).map_err(|e| e.below(&element))?,
                };
                self.add(element, child);
            }
        }
        Ok(())
    }

    fn lists(&mut self, old: &Value, new: &Value, list: &List<'_>) -> Result<(), TypeError> {
        let (before, after) = (old.as_array(), new.as_array());
        let empty = before.is_none_or(Vec::is_empty) && after.is_none_or(Vec::is_empty);
        if list.atomic || empty {
            self.written = old != new;
            return Ok(());
        }
        let before = index(list, before)?;
        let mut after = index(list, after)?;
        for (element, old) in before {
            let new = after.remove(&element).unwrap_or_default();
            let child = Self::items(&old, &new, list.item).map_err(|e| e.below(&element))?;
            self.add(element, child);
        }
        for (element, new) in after {
            let child = Self::items(&[], &new, list.item).map_err(|e| e.below(&element))?;
            self.add(element, child);
        }
        Ok(())
    }

    /// The items that are the same one before and after; several count as one that is owned whole.
    fn items(old: &[&Value], new: &[&Value], ty: Type<'_>) -> Result<Self, TypeError> {
        let mut child = Self::default();
        match (old, new) {
            ([], []) => {}
            ([old], [new]) => child.compare(old, new, ty)?,
            ([old], []) => child = Self::gone(old, ty)?,
            ([], [new]) => child = Self::come(new, ty)?,
            ([], _) => child.written = true,
            (_, []) => child.removed = true,
            ([old], _) => {
                child = Self::gone(old, ty)?;
                child.written = true;
            }
            (_, [new]) => {
                child = Self::come(new, ty)?;
                child.removed = true;
            }
            (old, new) => child.written = old != new,
        }
        Ok(child)
    }

    fn come(new: &Value, ty: Type<'_>) -> Result<Self, TypeError> {
        Ok(Self { written: true, below_written: below(new, ty)?, ..Self::default() })
    }

    fn gone(old: &Value, ty: Type<'_>) -> Result<Self, TypeError> {
        Ok(Self { removed: true, below_removed: below(old, ty)?, ..Self::default() })
    }
}

/// Everything below a place, parents as well as leaves.
fn below(value: &Value, ty: Type<'_>) -> Result<Vec<Node>, TypeError> {
    let mut nodes = Vec::new();
    match ty.atom(value) {
        Atom::Map(fields) if !fields.atomic => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let element = Element::field(name);
                let children = below(value, fields.child(name).0).map_err(|e| e.below(&element))?;
                nodes.push(Node { element, member: true, children: Set::from_nodes(children) });
            }
        }
        Atom::List(list) if !list.atomic => {
            for (element, items) in index(&list, value.as_array())? {
                let children = match items[..] {
                    [item] => below(item, list.item).map_err(|e| e.below(&element))?,
                    _ => Vec::new(),
                };
                nodes.push(Node { element, member: true, children: Set::from_nodes(children) });
            }
        }
        _ => {}
    }
    Ok(nodes)
}

/// The items by what identifies them; several where the list has duplicates.
pub(super) fn index<'v>(
    list: &List<'_>,
    items: Option<&'v Vec<Value>>,
) -> Result<BTreeMap<Element, Vec<&'v Value>>, TypeError> {
    let mut found: BTreeMap<Element, Vec<&'v Value>> = BTreeMap::new();
    for (i, item) in items.into_iter().flatten().enumerate() {
        let element = list.identify(item).map_err(|why| TypeError::here(format!("element {i}: {why}")))?;
        found.entry(element).or_default().push(item);
    }
    Ok(found)
}

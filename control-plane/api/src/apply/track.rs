//! The two operations on an object's managers: an update, which takes over what it changed, and an
//! apply, which says all that its manager wants. Source: upstream's `merge.Updater` and the chain of
//! `managedfields` managers around it.

use serde_json::Value;

use super::{
    blank::EMPTY,
    check,
    conflict::{self, Conflicts},
    managers::{self, Entry, Id, LAST_APPLIED, Managers, Operation, clears, list_of, take_list},
    merge::{drop_nulls, merge, reconciled, remove, with_named_parents},
    reset::stripped,
    set::Set,
    types::Type,
    walk::{Diff, TypeError, compare, field_set},
};
use crate::status::Status;

/// The manager of what was there before anybody was kept track of.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager whose applies follow and keep the annotation of client-side apply.
const KUBECTL: &str = "kubectl";

/// How the objects of a kind look in each of its versions.
pub trait Versions {
    /// The type in a version; `None` when the version is not served (any more).
    fn type_of(&self, api_version: &str) -> Option<Type<'_>>;
    /// An object of one served version in another.
    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value>;
}

/// One write to an object, or to a part of it.
pub struct Write<'a> {
    pub versions: &'a dyn Versions,
    /// The version that the request speaks.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// What this write does not take ([`super::reset_fields`]).
    pub reset: &'a Set,
    /// The manager's name.
    pub manager: &'a str,
    /// The present second in RFC 3339.
    pub now: &'a str,
}

impl<'a> Write<'a> {
    /// Brings the managers of `new` up to date after an update of `live` (`None`: a create). Takes
    /// the request's own list where it may; where the values do not fit their type, the live list
    /// is kept.
    pub fn update(&self, live: Option<&Value>, new: &mut Value) {
        let given = take_list(new);
        let kept = live.map(list_of).unwrap_or_default();
        let live_managers = || Managers::decode(kept).unwrap_or_default();
        // Objects whose managers nobody kept stay that way, until the first apply.
        let managers = match given.as_deref().filter(|_| self.subresource.is_empty()) {
            Some(list) if clears(list) && live.is_some() => return,
            Some(list) if clears(list) => Managers::default(),
            // The object as it was read: by far the most common case.
            Some(list) if list != kept => match Managers::decode(list) {
                Ok(given) if !given.0.is_empty() => given.rewritten(),
                _ => live_managers(),
            },
            _ => live_managers(),
        };
        if managers.0.is_empty() && live.is_some() {
            return;
        }
        let tracked = self.updated(live, new, managers);
        let list = tracked.unwrap_or_else(|_| kept.to_vec());
        managers::set_list(new, list);
    }

    fn updated(&self, live: Option<&Value>, new: &Value, managers: Managers) -> Result<Vec<Value>, TypeError> {
        let Some(ty) = self.versions.type_of(self.api_version) else { return Ok(managers.encode()) };
        let live = live.unwrap_or(&EMPTY);
        let mut managers = reconcile(self.versions, managers);
        let diff = compare(live, new, ty)?.without(self.reset);
        let written = diff.written.clone();
        self.take(&mut managers, &diff, None, |to| {
            let old = self.versions.convert(live, self.api_version, to)?;
            let new = self.versions.convert(new, self.api_version, to)?;
            compare(&old, &new, self.versions.type_of(to)?).ok()
        });
        let own = written.difference(stripped());
        if !own.is_empty() {
            let id = Id::new(self.manager, Operation::Update, self.api_version, self.subresource);
            let entry = managers.0.entry(id).or_insert_with(|| Entry::new(self.api_version, None, Set::default()));
            entry.replace(entry.set.union(&own));
            if !(self.subresource == "scale" && entry.time.is_none()) {
                entry.touch(self.now);
            }
        }
        managers.drop_empty();
        managers.cap();
        Ok(managers.encode())
    }

    /// Takes from everybody but `own` what changed.
    fn take(&self, managers: &mut Managers, diff: &Diff, own: Option<&Id>, in_version: impl Fn(&str) -> Option<Diff>) {
        let changed = diff.changed();
        managers.0.retain(|id, entry| {
            if Some(id) == own {
                return true;
            }
            if entry.version == self.api_version {
                entry.replace(entry.set.difference(&changed));
                return true;
            }
            // Versions that are gone take their managers along.
            if self.versions.type_of(&entry.version).is_none() {
                return false;
            }
            if let Some(diff) = in_version(&entry.version) {
                entry.replace(entry.set.difference(&diff.without(self.reset).changed()));
            }
            true
        });
    }

    /// The object after an apply of `config` by this manager, with its managers; not yet decoded or
    /// defaulted. `live` is `None` for a create. 409 when others own what it changes, unless `force`.
    pub fn apply(&self, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
        let plain = |what: &str, why: String| {
            let place = |field: &str| config["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (name, namespace) = (place("name"), place("namespace"));
            let (group, version) = crate::resource::split_api_version(self.api_version);
            let kind = config["kind"].as_str().unwrap_or_default();
            Status::new(500, "", format!("{what} ({namespace}/{name}; {group}/{version}, Kind={kind}): {why}"))
        };
        if config["metadata"].get("managedFields").is_some_and(|list| !list.is_null()) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let Some(ty) = self.versions.type_of(self.api_version) else { return Err(Status::not_found_path()) };
        let errors = check::check(config, ty);
        if !errors.is_empty() {
            return Err(plain("failed to create typed patch object", check::text(&errors)));
        }
        let (managers, live) = match live {
            Some(live) => {
                let managers = Managers::of(live)
                    .map_err(|why| Status::new(500, "", format!("failed to decode managed fields: {why}")))?;
                (managers, managers::without_list(live))
            }
            None => (Managers::default(), managers::named_like(config)),
        };
        let merged = self.applied(&live, config, managers.clone(), force, ty);
        let merged = merged.map_err(|error| plain("failed to merge config", error.to_string()))?;
        let mut applied = match merged {
            Ok(applied) => applied,
            Err(conflicts) => {
                let left = self.beyond_last_applied(&live, conflicts, ty);
                if !left.is_empty() {
                    return Err(conflict::status(&left));
                }
                let forced = self.applied(&live, config, managers, true, ty);
                match forced.map_err(|error| plain("failed to merge config", error.to_string()))? {
                    Ok(applied) => applied,
                    Err(conflicts) => return Err(conflict::status(&conflicts)),
                }
            }
        };
        self.keep_last_applied(&mut applied, config);
        Ok(applied)
    }

    /// One try of an apply: the object, or the conflicts.
    fn applied(
        &self,
        live: &Value,
        config: &Value,
        mut managers: Managers,
        force: bool,
        ty: Type<'_>,
    ) -> Result<Result<Value, Conflicts>, TypeError> {
        if managers.0.is_empty() {
            let all = compare(&EMPTY, live, ty)?.without(self.reset).written.difference(stripped());
            if !all.is_empty() {
                let id = Id::new(BEFORE_FIRST_APPLY, Operation::Update, self.api_version, self.subresource);
                managers.0.insert(id, Entry::new(self.api_version, Some(self.now), all));
            }
        }
        let mut managers = reconcile(self.versions, managers);
        let id = Id::new(self.manager, Operation::Apply, "", self.subresource);
        let set = field_set(config, ty)?.recursive_difference(self.reset);
        let last = managers.0.remove(&id);
        managers.0.insert(id.clone(), Entry::new(self.api_version, None, set.clone()));
        let mut new = merge(live, config, ty)?;
        if let Some(last) = &last {
            new = self.prune(new, last, &set, &managers)?;
            // A map that lost its last field may be one that is applied empty.
            new = merge(&new, config, ty)?;
        }
        let diff = compare(live, &new, ty)?.without(self.reset);
        let in_version = |to: &str| {
            let old = self.versions.convert(live, self.api_version, to)?;
            let new = self.versions.convert(&new, self.api_version, to)?;
            compare(&old, &new, self.versions.type_of(to)?).ok()
        };
        if !force {
            let mut conflicts = Conflicts::new();
            for (other, entry) in managers.0.iter().filter(|(other, _)| **other != id) {
                let written = if entry.version == self.api_version {
                    entry.set.intersection(&diff.written)
                } else {
                    match in_version(&entry.version) {
                        Some(diff) => entry.set.intersection(&diff.without(self.reset).written),
                        None => continue,
                    }
                };
                if !written.is_empty() {
                    conflicts.insert(other.clone(), written);
                }
            }
            if !conflicts.is_empty() {
                return Ok(Err(conflicts));
            }
        }
        self.take(&mut managers, &diff, Some(&id), in_version);
        if let Some(entry) = managers.0.get_mut(&id) {
            entry.replace(set.difference(stripped()));
            let same = last.as_ref().is_some_and(|last| last.set == entry.set && last.version == entry.version);
            match last.filter(|_| same && diff.is_empty()) {
                // Nothing happened: the entry is the one that was there.
                Some(last) => *entry = last,
                None => entry.touch(self.now),
            }
        }
        managers.drop_empty();
        managers.store(&mut new);
        Ok(Ok(new))
    }

    /// Takes out what this manager applied last time and neither it nor anybody else owns by now.
    fn prune(&self, merged: Value, last: &Entry, set: &Set, managers: &Managers) -> Result<Value, TypeError> {
        if last.set.is_subset(set) && last.version == self.api_version {
            return Ok(merged);
        }
        let version = last.version.as_str();
        let at = |value: &Value, from: &str, to: &str| {
            if from == to { Some(value.clone()) } else { self.versions.convert(value, from, to) }
        };
        let (Some(ty), Some(converted)) = (self.versions.type_of(version), at(&merged, self.api_version, version))
        else {
            return Ok(merged);
        };
        let last_named = with_named_parents(&last.set, ty);
        let mut pruned = remove(&converted, &last_named, ty);
        // What the last version's managers own comes back first, as upstream has it.
        let mut versions: Vec<&str> = managers.0.values().map(|entry| entry.version.as_str()).collect();
        versions.sort_unstable_by_key(|v| (*v != version, *v));
        versions.dedup();
        for other in versions {
            let owned = managers.0.values().filter(|entry| entry.version == other);
            let owned = owned.fold(Set::default(), |all, entry| all.union(&entry.set));
            let Some(ty) = self.versions.type_of(other) else { continue };
            let (Some(whole), Some(less)) = (at(&converted, version, other), at(&pruned, version, other)) else {
                continue;
            };
            let kept = with_named_parents(&field_set(&less, ty)?, ty).union(&with_named_parents(&owned, ty));
            let gone = with_named_parents(&field_set(&whole, ty)?, ty).difference(&kept);
            if let Some(back) = at(&remove(&whole, &gone, ty), other, version) {
                pruned = back;
            }
        }
        // Only what this manager had owned goes.
        let left = with_named_parents(&field_set(&pruned, ty)?, ty);
        let all = with_named_parents(&field_set(&converted, ty)?, ty);
        let gone = all.difference(&left).intersection(&last_named);
        let mut pruned = remove(&converted, &gone, ty);
        drop_nulls(&mut pruned, &converted);
        Ok(at(&pruned, version, self.api_version).unwrap_or(merged))
    }

    /// The conflicts about fields that client-side apply had not set to what they are: kubectl may
    /// take over the others (upstream's `lastAppliedManager`).
    fn beyond_last_applied(&self, live: &Value, conflicts: Conflicts, ty: Type<'_>) -> Conflicts {
        let Some(allowed) = self.last_applied(live, ty).filter(|_| self.manager == KUBECTL) else {
            return conflicts;
        };
        let left = conflicts.into_iter().map(|(id, set)| (id, set.difference(&allowed)));
        left.filter(|(_, set)| !set.is_empty()).collect()
    }

    /// What the annotation of client-side apply says and the object has.
    fn last_applied(&self, live: &Value, ty: Type<'_>) -> Option<Set> {
        let text = live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
        let last: Value = serde_json::from_str(text).ok()?;
        if last["apiVersion"] != self.api_version || !check::check(&last, ty).is_empty() {
            return None;
        }
        let diff = compare(&last, live, ty).ok()?;
        Some(field_set(&last, ty).ok()?.difference(&diff.changed()))
    }

    /// Keeps the annotation of client-side apply in step, where there is one.
    fn keep_last_applied(&self, object: &mut Value, config: &Value) {
        if self.manager != KUBECTL {
            return;
        }
        let there = object.pointer_mut("/metadata/annotations").and_then(|all| all.get_mut(LAST_APPLIED));
        let Some(annotation) = there.filter(|text| text.as_str().is_some_and(|text| !text.is_empty())) else { return };
        let mut config = config.clone();
        if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove(LAST_APPLIED);
        }
        *annotation = format!("{config}\n").into();
    }
}

/// Moves ownership to where the types have it by now.
fn reconcile(versions: &dyn Versions, mut managers: Managers) -> Managers {
    for entry in managers.0.values_mut() {
        if let Some(set) = versions.type_of(&entry.version).and_then(|ty| reconciled(&entry.set, ty)) {
            entry.replace(set);
        }
    }
    managers
}

//! CustomResourceDefinitions: each makes rows in the table of served resources, is told so in its
//! status, and takes its objects along when it is deleted. Objects of custom resources then go the
//! way of every other, by the schema that their row carries.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sluice_api::{
    resource::{self, Registry, Resource, Storage as Place, Subresources, Verbs, builtin, custom_store_prefix},
    status::Status,
    structural::Custom,
};
use sluice_store::cache::CacheItem;

use crate::{
    columns::{self, Columns},
    limits, meta,
    pipeline::Pipeline,
    storage::Storage,
};

const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

fn definitions() -> Option<&'static Resource> {
    let row = builtin().by_path("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    row.map(|row| &**row)
}

/// Every definition, the oldest first: of two that want one name, it has it.
fn stored(storage: &Storage) -> Vec<Value> {
    let stored = definitions().map(|row| storage.list(row.store_prefix(), "").items);
    let mut all: Vec<Value> = stored.into_iter().flatten().map(|object| object.value()).collect();
    // Times are whole seconds: who was established before keeps its names.
    let established = |d: &Value| {
        let conditions = d["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    let age = |d: &Value| (meta::text(d, "creationTimestamp").to_owned(), meta::name(d).to_owned());
    all.sort_by_key(|d| (!established(d), age(d)));
    mark_conflicts(&mut all);
    all
}

/// Where a definition keeps, on its way through here, which of its names another one has.
const CONFLICT: &str = "\u{0}conflict";

fn conflict(definition: &Value) -> Option<(&str, &str)> {
    let found = &definition[CONFLICT];
    Some((found["reason"].as_str()?, found["message"].as_str()?))
}

/// Notes in each definition the names that an older one of its group, or a built-in kind, has.
fn mark_conflicts(all: &mut [Value]) {
    let mut resources: HashSet<(String, String)> = HashSet::new();
    let mut kinds: HashSet<(String, String)> = HashSet::new();
    for definition in all {
        let spec = &definition["spec"];
        let (group, names) = (spec["group"].as_str().unwrap_or_default(), &spec["names"]);
        let mut found: Option<(&str, String)> = None;
        let mut own = (Vec::new(), Vec::new());
        for (field, reason) in [("plural", "PluralConflict"), ("singular", "SingularConflict")] {
            if let Some(name) = names[field].as_str() {
                own.0.push((reason, name));
            }
        }
        own.0.extend(meta::strings(&names["shortNames"]).into_iter().map(|name| ("ShortNamesConflict", name)));
        for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
            if let Some(name) = names[field].as_str() {
                own.1.push((reason, name));
            }
        }
        for (taken, own) in [(&resources, &own.0), (&kinds, &own.1)] {
            for (reason, name) in own {
                if taken.contains(&(group.to_owned(), (*name).to_owned())) {
                    found = Some((reason, format!("{name:?} is already in use")));
                }
            }
        }
        match found {
            None => {
                let owned = |(_, name): (&str, &str)| (group.to_owned(), name.to_owned());
                resources.extend(own.0.into_iter().map(owned));
                kinds.extend(own.1.into_iter().map(owned));
            }
            Some((reason, message)) => {
                let mark = json!({"reason": reason, "message": message});
                definition[CONFLICT] = mark;
            }
        }
    }
}

/// The table with the rows of every definition that is stored.
pub(crate) fn registry(storage: &Storage) -> Registry {
    let custom = stored(storage).into_iter().filter(|d| conflict(d).is_none()).flat_map(|d| rows(&d));
    Registry::new(resource::builtin().iter().cloned().chain(custom.map(Arc::new)))
}

/// The printer columns of every definition that is stored.
pub(crate) fn columns(storage: &Storage) -> Columns {
    let mut all = Columns::new();
    for definition in stored(storage) {
        for row in rows(&definition) {
            let versions = definition["spec"]["versions"].as_array();
            if let Some(version) = versions.into_iter().flatten().find(|v| v["name"] == *row.version) {
                let key = (row.group.into(), row.version.into(), row.plural.into());
                all.insert(key, columns::columns(version));
            }
        }
    }
    all
}

/// The rows of one definition: one per served version.
fn rows(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| meta::strings(value).into_iter().map(|s| s.to_owned().into()).collect();
    let (group, plural, kind) = (text(&spec["group"]), text(&names["plural"]), text(&names["kind"]));
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let stored = versions.iter().find(|v| v["storage"] == true).map(|v| text(&v["name"]));
    let (Some(stored), false) = (stored, group.is_empty() || plural.is_empty() || kind.is_empty()) else {
        return Vec::new();
    };
    let or = |value: &Value, default: String| value.as_str().map_or(default, str::to_owned);
    let row = |version: &Value| {
        let custom = Custom::new(definition, version);
        Resource {
            group: group.clone().into(),
            version: text(&version["name"]).into(),
            kind: kind.clone().into(),
            list_kind: or(&names["listKind"], format!("{kind}List")).into(),
            plural: plural.clone().into(),
            singular: or(&names["singular"], kind.to_lowercase()).into(),
            short_names: list(&names["shortNames"]),
            categories: list(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            subresources: Subresources {
                status: version["subresources"]["status"].is_object(),
                scale: version["subresources"]["scale"].is_object(),
                named: (&[][..]).into(),
            },
            verbs: Verbs::All,
            schema: schema_name(&group, &text(&version["name"]), &kind).into(),
            storage: Place {
                prefix: custom_store_prefix(&group, &plural).into(),
                group: group.clone().into(),
                version: stored.clone().into(),
            },
            selectable: custom.selectable().iter().map(|f| f.clone().into()).collect(),
            published: version["schema"].get("openAPIV3Schema").cloned().map(Arc::new),
            custom: Some(custom),
        }
    };
    versions.iter().filter(|v| v["served"] == true).map(row).collect()
}

/// What OpenAPI calls the type: `com.example.v1.CronTab`.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

/// Follows the definitions for ever.
pub(crate) async fn follow(pipeline: Arc<Pipeline>) {
    let Some(definitions) = definitions() else { return };
    let core = pipeline.core();
    let storage = &*core.storage;
    loop {
        let newest = storage.snapshot(definitions.store_prefix(), "").revision;
        let Ok(mut changes) = storage.watch(definitions.store_prefix(), "", newest) else {
            tokio::time::sleep(limits::CRD_RETRY).await;
            continue;
        };
        loop {
            core.columns.store(Arc::new(columns(storage)));
            core.registry.store(Arc::new(registry(storage)));
            let waiting = settle_all(storage, definitions).await.unwrap_or_else(|status| {
                let error = &status.message;
                tracing::warn!(%error, "custom resource definitions could not be settled, trying again");
                true
            });
            // Only a deletion in progress, or a failed write, is looked at again without a change.
            let patience = if waiting { limits::CRD_RETRY } else { Duration::MAX };
            if let Ok(CacheItem::Lagged) = tokio::time::timeout(patience, changes.next()).await {
                break;
            }
        }
    }
}

/// Brings each definition to where it should be; true while one waits for its objects to go.
async fn settle_all(storage: &Storage, definitions: &Resource) -> Result<bool, Status> {
    let mut waiting = false;
    for definition in stored(storage) {
        if meta::deleting(&definition) {
            waiting |= !clean_up(storage, definitions, definition).await?;
        } else {
            establish(storage, definitions, definition).await?;
        }
    }
    Ok(waiting)
}

/// Writes what a served definition's status and finalizers should be, if they are not.
async fn establish(storage: &Storage, definitions: &Resource, mut old: Value) -> Result<(), Status> {
    let conflict = old.as_object_mut().and_then(|d| d.shift_remove(CONFLICT));
    let mut new = old.clone();
    let mut finalizers: Vec<String> = meta::finalizers(&old).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
        meta::set_finalizers(&mut new, &finalizers);
    }
    let stored = old["spec"]["versions"].as_array().into_iter().flatten().find(|v| v["storage"] == true);
    let stored = stored.map(|v| v["name"].clone()).unwrap_or_default();
    let mut versions = old["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    if !versions.contains(&stored) {
        versions.push(stored);
    }
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    new["status"]["storedVersions"] = versions.into();
    match &conflict {
        None => {
            new["status"]["acceptedNames"] = old["spec"]["names"].clone();
            condition(&mut new, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            let message = "the initial names have been accepted";
            condition(&mut new, "Established", true, "InitialNamesAccepted", message);
        }
        Some(why) => {
            let text = |field: &str| why[field].as_str().unwrap_or_default();
            condition(&mut new, "NamesAccepted", false, text("reason"), text("message"));
            condition(&mut new, "Established", false, "NotAccepted", "not all names are accepted");
        }
    }
    if new == old {
        return Ok(());
    }
    match storage.update(definitions, new).await {
        // Whoever changed it meanwhile made an event, which leads here again.
        Err(status) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

/// Brings a condition to this state, unless it is in it.
fn condition(object: &mut Value, kind: &str, holds: bool, reason: &str, message: &str) {
    let status = meta::map(&mut object["status"]);
    let Value::Array(conditions) = status.entry("conditions").or_insert_with(|| json!([])) else { return };
    let state = if holds { "True" } else { "False" };
    if conditions.iter().any(|c| c["type"] == kind && c["status"] == state && c["reason"] == reason) {
        return;
    }
    let new = json!({
        "type": kind,
        "status": state,
        "lastTransitionTime": meta::now(),
        "reason": reason,
        "message": message,
    });
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(condition) => *condition = new,
        None => conditions.push(new),
    }
}

/// Deletes the objects of a definition that is going, then lets it go; false while some are left.
async fn clean_up(storage: &Storage, definitions: &Resource, mut definition: Value) -> Result<bool, Status> {
    if !meta::finalizers(&definition).contains(&FINALIZER) {
        return Ok(true);
    }
    if let Some(fields) = definition.as_object_mut() {
        fields.shift_remove(CONFLICT);
    }
    let old = definition.clone();
    condition(
        &mut definition,
        "Terminating",
        true,
        "InstanceDeletionInProgress",
        "CustomResource deletion is in progress",
    );
    if definition != old {
        // The write makes an event, which leads here again.
        return ignore_missing(storage.update(definitions, definition).await.map(drop)).map(|()| false);
    }
    let mut left = 0;
    if let Some(row) = rows(&definition).first() {
        for object in storage.list(row.store_prefix(), "").items {
            let mut value = object.value();
            if meta::finalizers(&value).is_empty() {
                ignore_missing(storage.delete(row, &object.namespace, &object.name).await)?;
                continue;
            }
            left += 1;
            if !object.deleting {
                meta::set(&mut value, "deletionTimestamp", meta::now());
                meta::set(&mut value, "deletionGracePeriodSeconds", 0);
                ignore_missing(storage.update(row, value).await.map(drop))?;
            }
        }
    }
    if left > 0 {
        return Ok(false);
    }
    let others: Vec<String> =
        meta::finalizers(&definition).into_iter().filter(|f| *f != FINALIZER).map(str::to_owned).collect();
    if others.is_empty() {
        ignore_missing(storage.delete(definitions, "", meta::name(&definition)).await)?;
    } else {
        meta::set_finalizers(&mut definition, &others);
        ignore_missing(storage.update(definitions, definition).await.map(drop))?;
    }
    Ok(true)
}

fn ignore_missing(result: Result<(), Status>) -> Result<(), Status> {
    result.or_else(|status| if matches!(status.code, 404 | 409) { Ok(()) } else { Err(status) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_of_two_definitions_has_the_name() {
        let of = |plural: &str, kind: &str, short: &str| json!({"spec": {"group": "example.com", "names": {"plural": plural, "kind": kind, "shortNames": [short]}}});
        let mut all = [of("as", "A", "x"), of("bs", "B", "x"), of("cs", "A", "c"), of("ds", "D", "d")];
        mark_conflicts(&mut all);
        let found: Vec<Option<(&str, &str)>> = all.iter().map(conflict).collect();
        assert_eq!(
            found,
            [
                None,
                Some(("ShortNamesConflict", "\"x\" is already in use")),
                Some(("KindConflict", "\"A\" is already in use")),
                None
            ]
        );
    }

    #[test]
    fn a_definition_makes_a_row_per_served_version() {
        let definition = json!({"spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"]},
            "versions": [
                {"name": "v2", "served": true, "storage": true, "subresources": {"status": {}}},
                {"name": "v1", "served": true, "storage": false},
                {"name": "v0", "served": false, "storage": false}]}});
        let rows = rows(&definition);
        let versions: Vec<&str> = rows.iter().map(|r| &*r.version).collect();
        assert_eq!(versions, ["v2", "v1"]);
        assert_eq!((&*rows[1].singular, &*rows[1].list_kind), ("crontab", "CronTabList"));
        assert_eq!(rows[1].store_prefix(), "/registry/example.com/crontabs/");
        assert_eq!(rows[0].schema, "com.example.v2.CronTab");
        assert!(rows[0].is_storage_version() && !rows[1].is_storage_version());
        assert!(rows[0].subresources.status && !rows[1].subresources.status);
        assert!(super::rows(&json!({"spec": {}})).is_empty());
    }
}

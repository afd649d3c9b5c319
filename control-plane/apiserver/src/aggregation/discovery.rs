//! Extension servers' groups beside this server's own, in every form of discovery.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Extension, Extensions};
use crate::meta;

impl Extensions {
    /// Completes the `APIGroupList` of this server.
    pub(crate) fn add_groups(&self, list: &mut Value) {
        let all = self.all.load();
        let Some(groups) = list["groups"].as_array_mut() else { return };
        for extension in all.iter() {
            match groups.iter_mut().find(|g| g["name"] == *extension.group) {
                Some(group) => add_version(group, extension),
                None => groups.push(entry(extension)),
            }
        }
    }

    /// The `APIGroup` of a name, given this server's.
    pub(crate) fn group(&self, name: &str, own: Option<Value>) -> Option<Value> {
        let all = self.all.load();
        let mut group = own;
        for extension in all.iter().filter(|e| e.group == name) {
            match &mut group {
                Some(group) => add_version(group, extension),
                None => {
                    let mut made = json!({"kind": "APIGroup", "apiVersion": "v1"});
                    meta::map(&mut made).extend(meta::map(&mut entry(extension)).clone());
                    group = Some(made);
                }
            }
        }
        group
    }

    /// Completes this server's `APIGroupDiscoveryList`.
    pub(crate) fn add_discovery(&self, list: &mut Value) {
        let all = self.all.load();
        let Some(items) = list["items"].as_array_mut() else { return };
        for extension in all.iter() {
            let version = aggregated(extension);
            let found = items.iter_mut().find(|g| g["metadata"]["name"] == *extension.group);
            match found.and_then(|group| group["versions"].as_array_mut()) {
                Some(versions) => {
                    versions.retain(|v| v["version"] != *extension.version);
                    versions.push(version);
                }
                None => items.push(json!({
                    "metadata": {"name": extension.group, "creationTimestamp": null}, "versions": [version]})),
            }
        }
    }
}

fn version_entry(extension: &Extension) -> Value {
    json!({"groupVersion": format!("{}/{}", extension.group, extension.version), "version": extension.version})
}

fn entry(extension: &Extension) -> Value {
    let version = version_entry(extension);
    json!({"name": extension.group, "versions": [version], "preferredVersion": version})
}

fn add_version(group: &mut Value, extension: &Extension) {
    let version = version_entry(extension);
    if let Some(versions) = group["versions"].as_array_mut()
        && !versions.contains(&version)
    {
        versions.push(version);
    }
}

/// A version of an `APIGroupDiscovery`, from the server's `APIResourceList`.
fn aggregated(extension: &Extension) -> Value {
    let Extension { version, resources, available, .. } = extension;
    let mut found: BTreeMap<&str, Value> = BTreeMap::new();
    let entries = resources.as_ref().and_then(|list| list["resources"].as_array());
    // Subresources follow the resources in any order, so they come second.
    let all = || entries.into_iter().flatten().filter_map(|r| Some((r["name"].as_str()?, r)));
    for (name, resource) in all().filter(|(name, _)| !name.contains('/')) {
        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut entry = json!({"resource": name, "responseKind": kind(extension, resource), "scope": scope,
            "singularResource": resource["singularName"], "verbs": resource["verbs"]});
        for field in ["shortNames", "categories"] {
            if resource[field].is_array() {
                entry[field] = resource[field].clone();
            }
        }
        found.insert(name, entry);
    }
    for (name, resource) in all() {
        if let Some((parent, sub)) = name.split_once('/')
            && let Some(parent) = found.get_mut(parent)
        {
            let entry =
                json!({"subresource": sub, "responseKind": kind(extension, resource), "verbs": resource["verbs"]});
            match &mut parent["subresources"] {
                Value::Array(all) => all.push(entry),
                none => *none = json!([entry]),
            }
        }
    }
    let freshness = if *available { "Current" } else { "Stale" };
    json!({"version": version, "resources": found.into_values().collect::<Vec<_>>(), "freshness": freshness})
}

fn kind(extension: &Extension, resource: &Value) -> Value {
    let or = |field: &str, default: &str| {
        resource[field].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
    };
    json!({"group": or("group", &extension.group), "version": or("version", &extension.version), "kind": resource["kind"]})
}

//! Discovery documents, made from the resource table: the plain ones (`/api`, `/apis`,
//! `/apis/<group>`, `/apis/<group>/<version>`) and the aggregated ones (`apidiscovery.k8s.io`).

use serde_json::{Value, json};

use crate::resource::{Registry, Resource, Subresource, api_version};

/// The versions of `apidiscovery.k8s.io` that [`aggregated`] can answer with.
pub const AGGREGATED_VERSIONS: [&str; 2] = ["v2", "v2beta1"];

/// Which of the two discovery roots is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// `/api`: the core group.
    Core,
    /// `/apis`: the named groups.
    Groups,
}

/// `/api`: `APIVersions`. `address` is the server's `host:port` for clients without a better one.
pub fn api_versions(registry: &Registry, address: &str) -> Value {
    let core = registry.groups().into_iter().find(|(group, _)| group.is_empty());
    json!({
        "kind": "APIVersions",
        "versions": core.map_or(Vec::new(), |(_, versions)| versions),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`: `APIGroupList`.
pub fn api_groups(registry: &Registry) -> Value {
    let named = registry.groups().into_iter().filter(|(group, _)| !group.is_empty());
    let groups: Vec<Value> = named.map(|(group, versions)| group_entry(group, &versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`: `APIGroup`, if the group is served.
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let (group, versions) = registry.groups().into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let mut out = json!({"kind": "APIGroup", "apiVersion": "v1"});
    let entry = group_entry(group, &versions);
    for (key, value) in entry.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    Some(out)
}

/// `/api/v1` or `/apis/<group>/<version>`: `APIResourceList`, if the version is served.
pub fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    for row in registry.in_version(group, version) {
        entries.push((row.plural.to_string(), plain_entry(row)));
        for sub in row.subresources() {
            entries.push((format!("{}/{}", row.plural, sub.name), plain_subentry(row, &sub)));
        }
    }
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        out["apiVersion"] = json!("v1");
    }
    out["groupVersion"] = json!(api_version(group, version));
    out["resources"] = entries.into_iter().map(|(_, entry)| entry).collect();
    Some(out)
}

/// Everything below one root in a single `APIGroupDiscoveryList`; `version` is one of
/// [`AGGREGATED_VERSIONS`].
pub fn aggregated(registry: &Registry, root: Root, version: &str) -> Value {
    let wanted = |group: &str| group.is_empty() == (root == Root::Core);
    let groups = registry.groups().into_iter().filter(|(group, _)| wanted(group));
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(registry, group, v)).collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn group_entry(group: &str, versions: &[&str]) -> Value {
    let entry = |v: &&str| json!({"groupVersion": api_version(group, v), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

fn plain_entry(row: &Resource) -> Value {
    let mut out = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": row.verbs.names(),
    });
    add_names(&mut out, row);
    out
}

fn plain_subentry(row: &Resource, sub: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", row.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
    });
    let (group, version, kind) = body(row, sub);
    if (group, version) != (&row.group, &row.version) {
        out["group"] = json!(group);
        out["version"] = json!(version);
    }
    out["kind"] = json!(kind);
    out["verbs"] = json!(sub.verbs);
    out
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    let mut rows: Vec<&Resource> = registry.in_version(group, version).map(AsRef::as_ref).collect();
    rows.sort_by(|a, b| a.plural.cmp(&b.plural));
    let resources: Vec<Value> = rows.into_iter().map(aggregated_entry).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_entry(row: &Resource) -> Value {
    let mut out = json!({
        "resource": row.plural,
        "responseKind": response_kind((&row.group, &row.version, &row.kind)),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs.names(),
    });
    add_names(&mut out, row);
    let subentry = |sub: Subresource| {
        json!({
            "subresource": sub.name,
            "responseKind": response_kind(body(row, &sub)),
            "verbs": sub.verbs,
        })
    };
    let subresources: Vec<Value> = row.subresources().into_iter().map(subentry).collect();
    if !subresources.is_empty() {
        out["subresources"] = json!(subresources);
    }
    out
}

fn add_names(entry: &mut Value, row: &Resource) {
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
}

fn response_kind((group, version, kind): (&str, &str, &str)) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Group, version and kind of a subresource's body.
fn body<'a>(row: &'a Resource, sub: &Subresource) -> (&'a str, &'a str, &'a str) {
    sub.kind.unwrap_or((&row.group, &row.version, &row.kind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::builtin;

    fn named<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
        list.as_array().unwrap().iter().find(|e| e[key] == name).unwrap()
    }

    #[test]
    fn roots_list_groups_in_order_of_preference() {
        assert_eq!(api_versions(builtin(), "h:1")["versions"], json!(["v1"]));
        let groups = api_groups(builtin());
        let autoscaling = named(&groups["groups"], "name", "autoscaling");
        assert_eq!(autoscaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(autoscaling["versions"].as_array().unwrap().len(), 2);
        assert_eq!(group(builtin(), "apps").unwrap()["preferredVersion"]["version"], "v1");
        assert!(group(builtin(), "").is_none());
        assert!(group(builtin(), "nope").is_none());
    }

    #[test]
    fn plain_lists_have_resources_and_subresources() {
        let core = resource_list(builtin(), "", "v1").unwrap();
        assert_eq!(
            named(&core["resources"], "name", "pods"),
            &json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                    "shortNames": ["po"], "categories": ["all"]})
        );
        assert_eq!(
            named(&core["resources"], "name", "pods/eviction"),
            &json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy",
                    "version": "v1", "kind": "Eviction", "verbs": ["create"]})
        );
        let apps = resource_list(builtin(), "apps", "v1").unwrap();
        let scale = named(&apps["resources"], "name", "deployments/scale");
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        assert!(resource_list(builtin(), "apps", "v2").is_none());
    }

    #[test]
    fn aggregated_lists_hold_one_root() {
        let core = aggregated(builtin(), Root::Core, "v2");
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        let groups = aggregated(builtin(), Root::Groups, "v2beta1");
        let apps = groups["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let deployments = named(&apps["versions"][0]["resources"], "resource", "deployments");
        assert_eq!(deployments["responseKind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        assert_eq!(deployments["scope"], "Namespaced");
        let scale = named(&deployments["subresources"], "subresource", "scale");
        assert_eq!(scale["responseKind"]["group"], "autoscaling");
    }
}

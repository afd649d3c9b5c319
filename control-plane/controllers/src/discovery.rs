//! Which resources the API serves: read once, and again when CustomResourceDefinitions or APIServices change.

use std::collections::BTreeMap;

use kube::Client;
use kube::core::ApiResource;
use kube::core::discovery::v2::{APIGroupDiscovery, APIResourceDiscovery};
use kube::discovery::verbs;

/// One listable resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// Whether the whole collection can be deleted at once.
    pub(crate) deletes_collections: bool,
    /// Whether it can be watched.
    pub(crate) watchable: bool,
}

impl Served {
    /// `resource.group`, the resource's name whatever its version.
    pub(crate) fn id(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }

    /// Whether nobody knows just now if it is still served.
    pub(crate) fn stale(&self, all: &All) -> bool {
        all.stale.contains(&self.resource.api_version)
    }
}

/// What is served.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct All {
    /// All resources that can be listed and deleted, in their preferred versions, by [`Served::id`].
    pub(crate) served: BTreeMap<String, Served>,
    /// `group/version` of servers that do not answer: what they serve is left out above.
    pub(crate) stale: Vec<String>,
}

/// # Errors
/// When the API server cannot be asked.
pub(crate) async fn read(client: &Client) -> kube::Result<All> {
    let core = client.list_core_api_versions_aggregated().await?;
    let groups = client.list_api_groups_aggregated().await?;
    Ok(all(core.items.into_iter().chain(groups.items)))
}

fn all(groups: impl Iterator<Item = APIGroupDiscovery>) -> All {
    let mut all = All::default();
    for group in groups {
        let name = group.metadata.and_then(|metadata| metadata.name).unwrap_or_default();
        // The preferred version comes first, and others have what it lacks.
        for version in group.versions {
            let known = version.version.unwrap_or_default();
            let api_version = if name.is_empty() { known.clone() } else { format!("{name}/{known}") };
            if version.freshness.as_deref() == Some("Stale") {
                all.stale.push(api_version);
                continue;
            }
            for resource in version.resources {
                if let Some(served) = served(&name, &known, &api_version, resource) {
                    all.served.entry(served.id()).or_insert(served);
                }
            }
        }
    }
    all
}

fn served(group: &str, version: &str, api_version: &str, resource: APIResourceDiscovery) -> Option<Served> {
    let can = |verb: &str| resource.verbs.iter().any(|known| known == verb);
    if !can(verbs::LIST) || !can(verbs::DELETE) {
        return None;
    }
    Some(Served {
        namespaced: resource.scope.as_deref() == Some("Namespaced"),
        deletes_collections: can(verbs::DELETE_COLLECTION),
        watchable: can(verbs::WATCH),
        resource: ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: api_version.into(),
            kind: resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default(),
            plural: resource.resource?,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resource(name: &str, verbs: &[&str]) -> Value {
        json!({"resource": name, "responseKind": {"group": "", "version": "", "kind": "Kind"}, "scope": "Namespaced", "verbs": verbs})
    }

    #[test]
    fn servers_that_do_not_answer_are_left_out_and_named() {
        let many = ["list", "delete", "watch"];
        let groups = json!([
            {"metadata": {"name": ""}, "versions": [
                {"version": "v1", "freshness": "Current", "resources": [resource("pods", &many), resource("bindings", &["create"])]}]},
            {"metadata": {"name": "shop.example"}, "versions": [
                {"version": "v2", "freshness": "Current", "resources": [resource("carts", &["list", "delete"])]},
                {"version": "v1", "freshness": "Current", "resources": [resource("carts", &many), resource("bills", &many)]}]},
            {"metadata": {"name": "gone.example"}, "versions": [
                {"version": "v1", "freshness": "Stale", "resources": [resource("things", &many)]}]},
        ]);
        let groups: Vec<APIGroupDiscovery> = serde_json::from_value(groups).unwrap();
        let all = all(groups.into_iter());
        let found: Vec<(&str, &str, bool)> = all
            .served
            .iter()
            .map(|(id, served)| (id.as_str(), served.resource.api_version.as_str(), served.watchable))
            .collect();
        let expected = [
            ("bills.shop.example", "shop.example/v1", true),
            ("carts.shop.example", "shop.example/v2", false),
            ("pods.", "v1", true),
        ];
        assert_eq!((found.as_slice(), all.stale.as_slice()), (&expected[..], &["gone.example/v1".to_owned()][..]));
    }
}

//! The resource table: what the API server serves, as data.
//!
//! The built-in rows come from the static table in `builtin.rs`; a CRD makes the same row at run
//! time. A [`Registry`] is immutable: the server swaps in a new one when a CRD changes. Nothing
//! here knows how a verb is carried out.

mod builtin;
mod version;

use std::{borrow::Cow, collections::HashSet, sync::Arc, sync::LazyLock};

/// Text that is static for built-in rows and owned for those of CRDs.
pub type Str = Cow<'static, str>;

/// One served resource in one version: a row of the table. Subresources are flags of their parent.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    /// `PodList`; a CRD may choose another name.
    pub list_kind: Str,
    /// Plural, lower case: the path segment (`pods`).
    pub plural: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    pub categories: Vec<Str>,
    pub namespaced: bool,
    pub subresources: Subresources,
    pub verbs: Verbs,
    /// The name of the object's schema in [`crate::schema`], e.g. `io.k8s.api.core.v1.Pod`.
    pub schema: Str,
    pub storage: Storage,
    /// The JSON paths that field selectors may name beside `metadata.name` and `.namespace`.
    pub selectable: Vec<Str>,
    /// The JSON schema that OpenAPI publishes for a custom resource; built-in types have their own.
    pub published: Option<Arc<serde_json::Value>>,
    /// The compiled schema of a custom resource.
    pub custom: Option<Arc<crate::structural::Custom>>,
}

/// Where and in which version the objects of a row are stored. Rows that share their objects
/// (`autoscaling/v1` and `v2`; Events of the core group and of `events.k8s.io`) have equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The store prefix with its final slash, e.g. `/registry/services/specs/`.
    pub prefix: Str,
    pub group: Str,
    pub version: Str,
}

/// Which subresources a row serves. `status`, `scale` are generic; the others are named.
#[derive(Clone, Debug, Default)]
pub struct Subresources {
    pub status: bool,
    pub scale: bool,
    /// e.g. `binding`, `eviction`, `log`, `exec`, `attach`, `portforward`, `proxy`, `token`,
    /// `approval`, `ephemeralcontainers`, `finalize`, `resize`.
    pub named: Cow<'static, [&'static str]>,
}

/// The verbs of the main resource. Reviews are create-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    All,
    /// Namespaces: everything but `deletecollection`.
    NoDeleteCollection,
    CreateOnly,
    /// get, list (componentstatuses).
    ReadOnly,
}

impl Verbs {
    /// The verbs' names in upstream's (alphabetical) order.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Self::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
            Self::CreateOnly => &["create"],
            Self::ReadOnly => &["get", "list"],
        }
    }

    /// Whether the main resource answers `verb`.
    pub fn contains(self, verb: &str) -> bool {
        self.names().contains(&verb)
    }
}

/// What one subresource takes and answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    /// Group, version and kind of the body; `None`: the parent's own.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods`, `deployments.apps`: how upstream's messages name a resource.
    pub fn qualified(&self) -> String {
        qualified(&self.group, &self.plural)
    }

    /// `Pod`, `Deployment.apps`: how upstream's messages name a kind.
    pub fn qualified_kind(&self) -> String {
        qualified(&self.group, &self.kind)
    }

    /// The store prefix with its final slash, in upstream's layout: `/registry/pods/`.
    pub fn store_prefix(&self) -> &str {
        &self.storage.prefix
    }

    /// Whether objects are stored in this row's own version, so that no conversion is needed.
    pub fn is_storage_version(&self) -> bool {
        self.group == self.storage.group && self.version == self.storage.version
    }

    /// The subresources with their bodies' kinds and verbs, in the order of discovery (by name).
    pub fn subresources(&self) -> Vec<Subresource> {
        let mut names: Vec<&'static str> = self.subresources.named.to_vec();
        names.extend(self.subresources.status.then_some("status"));
        names.extend(self.subresources.scale.then_some("scale"));
        names.sort_unstable();
        names.into_iter().map(|n| builtin::subresource(&self.kind, n)).collect()
    }

    /// The named subresource, if this row serves it.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources().into_iter().find(|s| s.name == name)
    }
}

/// `v1` for the core group, else `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The group and version of an `apiVersion`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// The store prefix of a custom resource: `/registry/<group>/<plural>/`.
pub fn custom_store_prefix(group: &str, plural: &str) -> String {
    format!("/registry/{group}/{plural}/")
}

/// Every resource of the GA groups of Kubernetes 1.36, in the order of upstream's discovery.
pub fn builtin() -> &'static Registry {
    static BUILTIN: LazyLock<Registry> = LazyLock::new(|| Registry::new(builtin::rows().map(Arc::new)));
    &BUILTIN
}

/// The groups of [`builtin`].
fn builtin_groups() -> &'static HashSet<&'static str> {
    static GROUPS: LazyLock<HashSet<&'static str>> =
        LazyLock::new(|| builtin().iter().map(|row| row.group.as_ref()).collect());
    &GROUPS
}

/// The rows that are served now. Immutable; a CRD change makes a new one (swapped by the server).
#[derive(Clone, Debug, Default)]
pub struct Registry {
    rows: Vec<Arc<Resource>>,
    /// Indices into `rows` sorted by (group, version, plural).
    by_path: Vec<usize>,
    /// Indices into `rows` sorted by (group, version, kind).
    by_kind: Vec<usize>,
}

impl Registry {
    /// Of two rows with one path the first is kept.
    pub fn new(rows: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let rows: Vec<Arc<Resource>> = rows.into_iter().collect();
        let sorted = |last: fn(&Resource) -> &str| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by_key(|&i| (key(&rows[i], last), i));
            order.dedup_by_key(|i| key(&rows[*i], last));
            order
        };
        let (by_path, by_kind) = (sorted(plural), sorted(kind));
        Self { rows, by_path, by_kind }
    }

    /// By group, version, plural.
    pub fn by_path(&self, group: &str, version: &str, name: &str) -> Option<&Arc<Resource>> {
        self.find(&self.by_path, plural, (group, version, name))
    }

    /// By group, version, kind.
    pub fn by_kind(&self, group: &str, version: &str, name: &str) -> Option<&Arc<Resource>> {
        self.find(&self.by_kind, kind, (group, version, name))
    }

    /// By `apiVersion` and `kind` as an object carries them.
    pub fn by_type(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let (group, version) = split_api_version(api_version);
        self.by_kind(group, version, kind)
    }

    /// The row in whose version `row`'s objects are stored: itself for all but a few.
    pub fn storage_row<'a>(&'a self, row: &'a Arc<Resource>) -> &'a Arc<Resource> {
        self.by_path(&row.storage.group, &row.storage.version, &row.plural).unwrap_or(row)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.rows.iter()
    }

    /// The groups in the order of the rows, those of custom resources behind them by name; their versions by
    /// preference.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for row in &self.rows {
            let at = groups.iter().position(|(g, _)| *g == row.group).unwrap_or_else(|| {
                groups.push((&row.group, Vec::new()));
                groups.len() - 1
            });
            if !groups[at].1.contains(&&*row.version) {
                groups[at].1.push(&row.version);
            }
        }
        let built_in = builtin_groups();
        groups.sort_by_key(|(group, _)| Some(*group).filter(|group| !built_in.contains(group)));
        groups.iter_mut().for_each(|(_, versions)| version::sort(versions));
        groups
    }

    /// The rows of one group and version in the table's order.
    pub fn in_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.rows.iter().filter(move |r| r.group == group && r.version == version)
    }

    fn find(&self, order: &[usize], last: fn(&Resource) -> &str, wanted: (&str, &str, &str)) -> Option<&Arc<Resource>> {
        let at = order.binary_search_by(|&i| key(&self.rows[i], last).cmp(&wanted)).ok()?;
        Some(&self.rows[order[at]])
    }
}

fn key(row: &Resource, last: fn(&Resource) -> &str) -> (&str, &str, &str) {
    (&row.group, &row.version, last(row))
}

fn plural(row: &Resource) -> &str {
    &row.plural
}

fn kind(row: &Resource) -> &str {
    &row.kind
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_found_by_path_and_by_kind() {
        let all = builtin();
        for row in all.iter() {
            let found = all.by_path(&row.group, &row.version, &row.plural).unwrap();
            assert_eq!(found.kind, row.kind);
            let found = all.by_type(&row.api_version(), &row.kind).unwrap();
            assert_eq!(found.plural, row.plural);
        }
        assert!(all.by_path("", "v1", "deployments").is_none());
        assert!(all.by_path("apps", "v2", "deployments").is_none());
    }

    #[test]
    fn groups_and_versions_come_by_preference() {
        let row = |group: &'static str, version: &'static str| {
            let mut row = (**builtin().by_kind("apps", "v1", "Deployment").unwrap()).clone();
            (row.group, row.version) = (group.into(), version.into());
            Arc::new(row)
        };
        let custom = [row("z.com", "v1beta1"), row("z.com", "v1"), row("z.com", "v2"), row("a.com", "v1")];
        let all = Registry::new(builtin().iter().cloned().chain(custom));
        let (groups, fixed) = (all.groups(), builtin().groups());
        assert_eq!(groups[..fixed.len()], fixed);
        assert_eq!(groups[fixed.len()..], [("a.com", vec!["v1"]), ("z.com", vec!["v2", "v1", "v1beta1"])]);
    }

    #[test]
    fn names_and_prefixes_are_upstreams() {
        let check = |api: &str, kind: &str, plural: &str, prefix: &str, short: &[&str]| {
            let row = builtin().by_type(api, kind).unwrap();
            assert_eq!((&*row.plural, row.store_prefix()), (plural, prefix));
            assert_eq!(row.short_names, short);
        };
        check("v1", "Pod", "pods", "/registry/pods/", &["po"]);
        check("v1", "Service", "services", "/registry/services/specs/", &["svc"]);
        check("v1", "Endpoints", "endpoints", "/registry/services/endpoints/", &["ep"]);
        check("v1", "Node", "nodes", "/registry/minions/", &["no"]);
        check("apps/v1", "Deployment", "deployments", "/registry/deployments/", &["deploy"]);
        check("networking.k8s.io/v1", "Ingress", "ingresses", "/registry/ingress/", &["ing"]);
        check("events.k8s.io/v1", "Event", "events", "/registry/events/", &["ev"]);
        check(
            "apiregistration.k8s.io/v1",
            "APIService",
            "apiservices",
            "/registry/apiregistration.k8s.io/apiservices/",
            &[],
        );
        check(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "/registry/apiextensions.k8s.io/customresourcedefinitions/",
            &["crd", "crds"],
        );
    }

    #[test]
    fn versions_that_share_objects_share_a_prefix() {
        let all = builtin();
        let check = |api: &str, kind: &str, stored: &str| {
            let row = all.by_type(api, kind).unwrap();
            let storage = all.storage_row(row);
            assert_eq!(storage.api_version(), stored);
            assert_eq!(storage.store_prefix(), row.store_prefix());
            assert_eq!(row.is_storage_version(), api == stored);
        };
        check("autoscaling/v1", "HorizontalPodAutoscaler", "autoscaling/v2");
        check("autoscaling/v2", "HorizontalPodAutoscaler", "autoscaling/v2");
        check("events.k8s.io/v1", "Event", "v1");
        check("v1", "Event", "v1");
        check("apps/v1", "Deployment", "apps/v1");
    }

    #[test]
    fn no_two_kinds_share_a_prefix() {
        let stored = |r: &&Arc<Resource>| r.verbs != Verbs::CreateOnly && r.is_storage_version();
        let rows: Vec<_> = builtin().iter().filter(stored).collect();
        for a in &rows {
            for b in &rows {
                let apart = !b.store_prefix().starts_with(a.store_prefix());
                assert!(apart || Arc::ptr_eq(a, b), "{} {}", a.plural, b.plural);
            }
        }
    }
}

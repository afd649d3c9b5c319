//! The resource table: what the API server serves, as data.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

type Str = Cow<'static, str>;

/// One served resource in one version: a row of the table. Subresources are flags of their parent.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    /// Plural, lower case: the path segment and the store key (`pods`).
    pub plural: Str,
    pub singular: Str,
    pub short_names: Cow<'static, [&'static str]>,
    pub categories: Cow<'static, [&'static str]>,
    pub namespaced: bool,
    pub subresources: Subresources,
    pub verbs: Verbs,
    /// The name of the object's schema in [`crate::schema`], e.g. `io.k8s.api.core.v1.Pod`.
    pub schema: Str,
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
    CreateOnly,
    /// get, list (componentstatuses).
    ReadOnly,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, `deployments.apps`: how upstream's messages name a resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The store prefix with its final slash, in upstream's layout: `/registry/pods/`,
    /// `/registry/deployments/`, `/registry/<group>/<plural>/` for CRDs and where upstream does so.
    pub fn store_prefix(&self) -> String {
        crate::resource::store_prefix(&self.group, &self.plural)
    }
}

/// Upstream's key layout, with its irregular names (`services/specs`, `minions`, ...).
pub fn store_prefix(group: &str, plural: &str) -> String {
    let place = match (group, plural) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("networking.k8s.io", "ingresses") => "ingress",
        (g, p) if g.is_empty() || !g.contains('.') || g.ends_with(".k8s.io") => p,
        (g, p) => return format!("/registry/{g}/{p}/"),
    };
    format!("/registry/{place}/")
}

/// The rows that are served now. Immutable; a CRD change makes a new one (swapped by the server).
#[derive(Clone, Debug, Default)]
pub struct Registry {
    rows: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Registry {
    pub fn new(rows: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut registry = Self::default();
        for row in rows {
            let index = registry.rows.len();
            let at = |last: &Str| {
                (
                    row.group.to_string(),
                    row.version.to_string(),
                    last.to_string(),
                )
            };
            registry.by_path.insert(at(&row.plural), index);
            registry.by_kind.insert(at(&row.kind), index);
            registry.rows.push(row);
        }
        registry
    }

    /// By group, version, plural.
    pub fn by_path(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path
            .get(&(group.into(), version.into(), plural.into()))
            .map(|&i| &self.rows[i])
    }

    /// By group, version, kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.by_kind
            .get(&(group.into(), version.into(), kind.into()))
            .map(|&i| &self.rows[i])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.rows.iter()
    }
}

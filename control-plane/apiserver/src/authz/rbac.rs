//! RBAC: bindings compiled into grants per subject, made again when a role or binding changes.
//!
//! A ClusterRole with an aggregation rule holds the rules of the roles it selects, found here at
//! compile time, so that it never lags behind the controller that writes them out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;

use super::policy::{Rule, list};
use crate::{
    auth::view::View,
    context::{Attributes, UserInfo},
    storage::StoredObject,
};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const KINDS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// Evaluates RBAC over the cached store.
pub struct Rbac {
    view: Arc<dyn View>,
    index: ArcSwap<Index>,
    rebuild: Mutex<()>,
    /// The store's revision up to which the index is known to hold.
    checked: AtomicI64,
}

/// The number of objects and the newest revision of each kind: any change moves one of them.
type Stamp = [(usize, i64); 4];

#[derive(Default)]
struct Index {
    stamp: Option<Stamp>,
    grants: HashMap<Subject, Vec<Grant>>,
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// A role given to a subject, in one namespace or (`None`) everywhere.
struct Grant {
    namespace: Option<String>,
    /// `None`: the role does not exist; the text says which.
    rules: Result<Arc<[Rule]>, String>,
}

#[derive(Deserialize)]
struct RoleObject {
    #[serde(default, deserialize_with = "list")]
    rules: Vec<Rule>,
    #[serde(rename = "aggregationRule", default)]
    aggregation: Option<Aggregation>,
}

#[derive(Deserialize)]
struct Aggregation {
    #[serde(rename = "clusterRoleSelectors", default, deserialize_with = "list")]
    selectors: Vec<Selector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    #[serde(default)]
    match_labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "list")]
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default, deserialize_with = "list")]
    values: Vec<String>,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Binding {
    #[serde(default, deserialize_with = "list")]
    subjects: Vec<SubjectRef>,
    pub(crate) role_ref: RoleRef,
}

#[derive(Deserialize)]
struct SubjectRef {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl Rbac {
    pub fn new(view: Arc<dyn View>) -> Self {
        Self { view, index: ArcSwap::default(), rebuild: Mutex::new(()), checked: AtomicI64::new(-1) }
    }

    /// `Err` carries what may explain the refusal: roles that bindings name and nobody made.
    pub fn authorize(&self, request: &Attributes<'_>) -> Result<(), Option<String>> {
        let index = self.index();
        let mut missing = Vec::new();
        for grant in index.grants(request.user, request.namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(request)) => return Ok(()),
                Ok(_) => {}
                Err(what) => missing.push(what.as_str()),
            }
        }
        missing.dedup();
        Err((!missing.is_empty()).then(|| format!("RBAC: {}", aggregate(&missing))))
    }

    /// Every rule that holds for the user in the namespace.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let mut rules: Vec<Rule> = Vec::new();
        for grant in index.grants(user, namespace) {
            for rule in grant.rules.iter().flat_map(|rules| rules.iter()) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        rules
    }

    /// The rules behind a RoleRef.
    pub fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.index().role(kind, namespace, name)
    }

    fn index(&self) -> Arc<Index> {
        let revision = self.view.revision();
        let index = self.index.load_full();
        if index.stamp.is_some() && self.checked.load(Ordering::Acquire) == revision {
            return index;
        }
        let stamp = KINDS.map(|kind| self.view.stamp(GROUP, kind));
        let index = if index.stamp == Some(stamp) { index } else { self.rebuilt(stamp) };
        // What was read is at least as new as the revision asked for before.
        self.checked.fetch_max(revision, Ordering::AcqRel);
        index
    }

    fn rebuilt(&self, stamp: Stamp) -> Arc<Index> {
        let _one = self.rebuild.lock();
        let current = self.index.load_full();
        if current.stamp == Some(stamp) {
            return current;
        }
        let index = Arc::new(Index::compile(&*self.view, stamp));
        self.index.store(index.clone());
        index
    }
}

impl Index {
    fn compile(view: &dyn View, stamp: Stamp) -> Self {
        let mut index = Self { stamp: Some(stamp), ..Self::default() };
        let cluster_roles: Vec<(Arc<StoredObject>, RoleObject)> = parsed(view, "clusterroles");
        for (object, role) in &cluster_roles {
            let mut seen = HashSet::from([&*object.name]);
            // An aggregated role's own rules are what a controller last wrote there; what it selects
            // now is what counts.
            let mut rules = if role.aggregation.is_some() { Vec::new() } else { role.rules.clone() };
            gather(role, &cluster_roles, &mut seen, &mut rules);
            index.cluster_roles.insert(object.name.to_string(), rules.into());
        }
        for (object, role) in parsed::<RoleObject>(view, "roles") {
            let key = (object.namespace.to_string(), object.name.to_string());
            index.roles.insert(key, role.rules.into());
        }
        for kind in ["rolebindings", "clusterrolebindings"] {
            for (object, binding) in parsed::<Binding>(view, kind) {
                index.bind(&object.namespace, &binding);
            }
        }
        index
    }

    fn bind(&mut self, namespace: &str, binding: &Binding) {
        let reference = &binding.role_ref;
        let rules = self.role(&reference.kind, namespace, &reference.name).ok_or_else(|| {
            let plural = reference.kind.to_ascii_lowercase();
            format!("{plural}.{GROUP} {:?} not found", reference.name)
        });
        for subject in &binding.subjects {
            let key = match subject.kind.as_str() {
                "User" => Subject::User(subject.name.clone()),
                "Group" => Subject::Group(subject.name.clone()),
                "ServiceAccount" => {
                    let namespace = if subject.namespace.is_empty() { namespace } else { &subject.namespace };
                    Subject::User(format!("system:serviceaccount:{namespace}:{}", subject.name))
                }
                _ => continue,
            };
            self.grants
                .entry(key)
                .or_default()
                .push(Grant { namespace: (!namespace.is_empty()).then(|| namespace.to_owned()), rules: rules.clone() });
        }
    }

    fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        match kind {
            "ClusterRole" => self.cluster_roles.get(name).cloned(),
            "Role" => self.roles.get(&(namespace.to_owned(), name.to_owned())).cloned(),
            _ => None,
        }
    }

    fn grants<'a>(&'a self, user: &UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let keys: Vec<Subject> = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().cloned().map(Subject::Group))
            .collect();
        keys.into_iter()
            .filter_map(|key| self.grants.get(&key))
            .flatten()
            .filter(move |grant| grant.namespace.as_ref().is_none_or(|of| !namespace.is_empty() && of == namespace))
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(view: &dyn View, kind: &str) -> Vec<(Arc<StoredObject>, T)> {
    let objects = view.list(GROUP, kind, "");
    let parse = |object: Arc<StoredObject>| {
        let parsed = serde_json::from_slice(&object.bytes).ok()?;
        Some((object, parsed))
    };
    objects.into_iter().filter_map(parse).collect()
}

/// Adds the rules of the roles that `role` selects, and of those that these select.
fn gather<'a>(
    role: &RoleObject,
    all: &'a [(Arc<StoredObject>, RoleObject)],
    seen: &mut HashSet<&'a str>,
    into: &mut Vec<Rule>,
) {
    let Some(aggregation) = &role.aggregation else {
        return;
    };
    for (object, other) in all {
        let selected = aggregation.selectors.iter().any(|s| s.matches(object));
        if selected && seen.insert(&*object.name) {
            let own = if other.aggregation.is_some() { &[][..] } else { &other.rules };
            for rule in own {
                if !into.contains(rule) {
                    into.push(rule.clone());
                }
            }
            gather(other, all, seen, into);
        }
    }
}

impl Selector {
    fn matches(&self, object: &StoredObject) -> bool {
        let labels = self.match_labels.iter().flatten();
        labels.into_iter().all(|(key, value)| object.label(key) == Some(value))
            && self.match_expressions.iter().all(|e| e.matches(object))
    }
}

impl Expression {
    fn matches(&self, object: &StoredObject) -> bool {
        let value = object.label(&self.key);
        let listed = value.is_some_and(|v| self.values.iter().any(|w| w == v));
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

/// Several errors as upstream prints an aggregate.
fn aggregate(errors: &[&str]) -> String {
    match errors {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

//! Which writes a webhook is asked about.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_api::selector::Labels;

use crate::{auth::view::View, authz::policy::list, context::Admit};

/// One webhook of a configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) client_config: ClientConfig,
    #[serde(default, deserialize_with = "list")]
    rules: Vec<Rule>,
    #[serde(default)]
    failure_policy: String,
    #[serde(default)]
    namespace_selector: Value,
    #[serde(default)]
    object_selector: Value,
    #[serde(default)]
    pub(super) side_effects: String,
    #[serde(default)]
    pub(super) timeout_seconds: Option<u64>,
    #[serde(default)]
    pub(super) reinvocation_policy: String,
    #[serde(default)]
    pub(super) match_conditions: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClientConfig {
    #[serde(default)]
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) service: Option<ServiceRef>,
    #[serde(default)]
    pub(super) ca_bundle: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct ServiceRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) path: Option<String>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admission) struct Rule {
    #[serde(default, deserialize_with = "list")]
    resource_names: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    operations: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    api_groups: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    api_versions: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    resources: Vec<String>,
    #[serde(default)]
    scope: Option<String>,
}

/// The webhooks of a configuration; those that cannot be read are left out and logged.
pub(super) fn parse(configuration: &Value) -> Vec<Webhook> {
    let read = |webhook: &Value| {
        Webhook::deserialize(webhook)
            .inspect_err(|error| tracing::warn!(%error, name = %webhook["name"], "a webhook cannot be read"))
            .ok()
    };
    super::super::list(&configuration["webhooks"]).iter().filter_map(read).collect()
}

impl Webhook {
    /// `failurePolicy: Ignore`.
    pub(super) fn fails_open(&self) -> bool {
        self.failure_policy == "Ignore"
    }

    pub(super) fn matches(&self, view: &dyn View, admit: &Admit<'_>, object: Option<&Value>) -> bool {
        self.rules.iter().any(|rule| rule.matches(admit))
            && takes_namespace(&self.namespace_selector, view, admit, object)
            && takes_object(&self.object_selector, admit, object)
    }
}

/// A namespace is judged by its own labels, what is in one by that one's; cluster-wide objects
/// always match.
pub(in crate::admission) fn takes_namespace(
    selector: &Value,
    view: &dyn View,
    admit: &Admit<'_>,
    object: Option<&Value>,
) -> bool {
    let a = &admit.attributes;
    if a.group.is_empty() && a.resource == "namespaces" {
        let labels = object.or(admit.old).and_then(|o| o["metadata"]["labels"].as_object());
        return selects(selector, labels);
    }
    if a.namespace.is_empty() || selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return true;
    }
    let namespace = view.get("", "namespaces", "", a.namespace).map(|n| n.value());
    let labels = namespace.as_ref().and_then(|n| n["metadata"]["labels"].as_object());
    selects(selector, labels)
}

/// The old or the new state may match; what has no state at all (a CONNECT) matches where nothing is asked for.
pub(in crate::admission) fn takes_object(selector: &Value, admit: &Admit<'_>, object: Option<&Value>) -> bool {
    let mut states = [object, admit.old].into_iter().flatten().peekable();
    if states.peek().is_none() {
        return selects(selector, None);
    }
    states.any(|o| selects(selector, o["metadata"]["labels"].as_object()))
}

impl Rule {
    pub(in crate::admission) fn matches(&self, admit: &Admit<'_>) -> bool {
        let a = &admit.attributes;
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name);
        let any = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        let scope = match self.scope.as_deref() {
            Some("Cluster") => a.namespace.is_empty() || a.resource == "namespaces",
            Some("Namespaced") => !a.namespace.is_empty() && a.resource != "namespaces",
            _ => true,
        };
        let resource = self.resources.iter().any(|rule| {
            let (resource, subresource) = rule.split_once('/').unwrap_or((rule, ""));
            (resource == "*" || resource == a.resource) && (subresource == "*" || subresource == a.subresource)
        });
        named
            && scope
            && resource
            && any(&self.operations, admit.operation.as_str())
            && any(&self.api_groups, a.group)
            && any(&self.api_versions, a.version)
    }
}

/// An absent selector takes everything; one that cannot be read nothing.
fn selects(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    selector.is_null() || Labels::from_object(selector).is_ok_and(|s| s.matches_map(labels))
}

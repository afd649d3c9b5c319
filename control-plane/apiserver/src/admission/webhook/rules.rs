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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientConfig {
    #[serde(default)]
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) service: Option<ServiceRef>,
    #[serde(default)]
    pub(super) ca_bundle: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ServiceRef {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) path: Option<String>,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
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
            && self.takes_namespace(view, admit, object)
            && self.takes_object(admit, object)
    }

    /// A namespace is judged by its own labels, what is in one by that one's; cluster-wide objects
    /// always match.
    fn takes_namespace(&self, view: &dyn View, admit: &Admit<'_>, object: Option<&Value>) -> bool {
        let a = &admit.attributes;
        if a.group.is_empty() && a.resource == "namespaces" {
            let labels = object.or(admit.old).and_then(|o| o["metadata"]["labels"].as_object());
            return selects(&self.namespace_selector, labels);
        }
        if a.namespace.is_empty() {
            return true;
        }
        let namespace = view.get("", "namespaces", "", a.namespace).map(|n| n.value());
        let labels = namespace.as_ref().and_then(|n| n["metadata"]["labels"].as_object());
        selects(&self.namespace_selector, labels)
    }

    /// The old or the new state may match.
    fn takes_object(&self, admit: &Admit<'_>, object: Option<&Value>) -> bool {
        let states = [object, admit.old];
        states.into_iter().flatten().any(|o| selects(&self.object_selector, o["metadata"]["labels"].as_object()))
    }
}

impl Rule {
    fn matches(&self, admit: &Admit<'_>) -> bool {
        let a = &admit.attributes;
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
        scope
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

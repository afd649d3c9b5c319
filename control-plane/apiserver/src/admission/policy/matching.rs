//! Which writes a policy is about, and which parameters a binding names.

use serde::Deserialize as _;
use serde_json::Value;
use sluice_api::{
    resource::{builtin, custom_store_prefix, split_api_version},
    selector::Labels,
};

use super::super::{
    list, text,
    webhook::rules::{Rule, takes_namespace, takes_object},
};
use crate::{auth::view::View, context::Admit};

/// `MatchResources`; without rules it takes what its selectors take unless rules are `required`.
pub(super) fn matches(
    view: &dyn View,
    admit: &Admit<'_>,
    object: Option<&Value>,
    constraints: &Value,
    required: bool,
) -> bool {
    let hit =
        |rules: &Value| list(rules).iter().any(|rule| Rule::deserialize(rule).is_ok_and(|rule| rule.matches(admit)));
    let rules = &constraints["resourceRules"];
    let takes = if list(rules).is_empty() { !required } else { hit(rules) };
    takes
        && !hit(&constraints["excludeResourceRules"])
        && takes_namespace(&constraints["namespaceSelector"], view, admit, object)
        && takes_object(&constraints["objectSelector"], admit, object)
}

/// The parameters that a binding names, each once; an error where it has to have some and has none.
pub(super) fn params(
    view: &dyn View,
    admit: &Admit<'_>,
    kind: &Value,
    reference: &Value,
) -> Result<Vec<Option<Value>>, String> {
    if kind.is_null() || reference.is_null() {
        return Ok(vec![None]);
    }
    let (prefix, namespaced) = collection(view, kind).ok_or_else(|| {
        format!(
            "failed to find resource referenced by paramKind: '{}, Kind={}'",
            text(kind, "apiVersion"),
            text(kind, "kind")
        )
    })?;
    let namespace = match text(reference, "namespace") {
        _ if !namespaced => "",
        "" => admit.attributes.namespace,
        namespace => namespace,
    };
    if namespaced && namespace.is_empty() {
        return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
    }
    let selector = Labels::from_object(&reference["selector"]);
    let name = text(reference, "name");
    let wanted = |object: &Value| match name {
        "" => selector.as_ref().is_ok_and(|s| s.matches_map(object["metadata"]["labels"].as_object())),
        name => text(&object["metadata"], "name") == name,
    };
    let found: Vec<Option<Value>> =
        view.list_at(&prefix, namespace).iter().map(|o| o.value()).filter(wanted).map(Some).collect();
    match text(reference, "parameterNotFoundAction") {
        "Allow" => Ok(found),
        _ if found.is_empty() => Err("no params found for policy binding with `Deny` parameterNotFoundAction".into()),
        _ => Ok(found),
    }
}

/// Where objects of a kind are stored, and whether they are namespaced.
fn collection(view: &dyn View, kind: &Value) -> Option<(String, bool)> {
    let (api, kind) = (text(kind, "apiVersion"), text(kind, "kind"));
    if let Some(row) = builtin().by_type(api, kind) {
        return Some((row.store_prefix().to_owned(), row.namespaced));
    }
    let (group, _) = split_api_version(api);
    let definitions = view.list("apiextensions.k8s.io", "customresourcedefinitions", "");
    definitions.iter().map(|d| d.value()).find_map(|definition| {
        let spec = &definition["spec"];
        let found = text(spec, "group") == group && text(&spec["names"], "kind") == kind;
        found.then(|| (custom_store_prefix(group, text(&spec["names"], "plural")), text(spec, "scope") == "Namespaced"))
    })
}

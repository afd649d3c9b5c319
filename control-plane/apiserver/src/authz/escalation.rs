//! Nobody grants what they do not hold: the check on writes of roles and bindings, lifted by the
//! verbs `escalate` (roles) and `bind` (bindings), as upstream's rbac registry storage does.

use serde::Deserialize;
use serde_json::Value;
use sluice_api::status::Status;

use super::{Authorizer, Rule, policy, rbac};
use crate::{
    auth::refusal,
    context::{Attributes, Decision},
};

#[derive(Deserialize)]
struct RoleRules {
    #[serde(default, deserialize_with = "policy::list")]
    rules: Vec<Rule>,
    #[serde(rename = "aggregationRule", default)]
    aggregation: Option<Value>,
}

/// Checks a create or update of one of the four RBAC kinds; others pass.
///
/// # Errors
/// 403 naming the rules that the user does not hold.
pub fn check(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    if request.group != rbac::GROUP {
        return Ok(());
    }
    match request.resource {
        "roles" | "clusterroles" => check_role(authorizer, request, old, new),
        "rolebindings" | "clusterrolebindings" => check_binding(authorizer, request, old, new),
        _ => Ok(()),
    }
}

fn check_role(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    if old.is_some_and(|old| old["rules"] == new["rules"] && old["aggregationRule"] == new["aggregationRule"]) {
        return Ok(());
    }
    let name = new["metadata"]["name"].as_str().unwrap_or(request.name);
    if allowed(authorizer, request, "escalate", request.resource, name) {
        return Ok(());
    }
    let Ok(role) = RoleRules::deserialize(new) else {
        return Ok(());
    };
    // Aggregation may bring in anything, so it takes everything (upstream's rule).
    let mut wanted = role.rules;
    if role.aggregation.is_some_and(|a| !a.is_null()) {
        wanted.extend(policy::everything());
    }
    refuse_missing(authorizer, request, name, &wanted)
}

fn check_binding(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    if old.is_some_and(|old| old["subjects"] == new["subjects"] && old["roleRef"] == new["roleRef"]) {
        return Ok(());
    }
    let Ok(binding) = rbac::Binding::deserialize(new) else {
        return Ok(());
    };
    let role = &binding.role_ref;
    let resource = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
    if allowed(authorizer, request, "bind", resource, &role.name) {
        return Ok(());
    }
    let name = new["metadata"]["name"].as_str().unwrap_or(request.name);
    let Some(rules) = authorizer.role_rules(&role.kind, request.namespace, &role.name) else {
        return Err(refusal::not_found(rbac::GROUP, resource, &role.name));
    };
    refuse_missing(authorizer, request, name, &rules)
}

fn allowed(authorizer: &Authorizer, request: &Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = Attributes { verb, resource, subresource: "", name, ..*request };
    authorizer.authorize(&attributes) == Decision::Allow
}

fn refuse_missing(
    authorizer: &Authorizer,
    request: &Attributes<'_>,
    name: &str,
    wanted: &[Rule],
) -> Result<(), Status> {
    let held = authorizer.rules_for(request.user, request.namespace);
    let missing = missing(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing.iter().map(Rule::to_string).collect();
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        request.user.username,
        request.user.groups,
        lines.join("\n")
    );
    Err(refusal::forbid(request.group, request.resource, name, &why))
}

/// The parts of `wanted` that no single held rule covers, each a rule of one verb, group,
/// resource and name (upstream's `Covers`).
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(atoms).filter(|atom| !held.iter().any(|rule| covers(rule, atom))).collect()
}

fn atoms(rule: &Rule) -> Vec<Rule> {
    let one = |s: &String| vec![s.clone()];
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            atoms.push(Rule { non_resource_urls: one(url), verbs: one(verb), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom =
                    Rule { api_groups: one(group), resources: one(resource), verbs: one(verb), ..Rule::default() };
                if rule.resource_names.is_empty() {
                    atoms.push(atom);
                    continue;
                }
                atoms.extend(rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..atom.clone() }));
            }
        }
    }
    atoms
}

fn covers(held: &Rule, atom: &Rule) -> bool {
    let verb = atom.verbs.iter().all(|v| policy::has(&held.verbs, v));
    let url = atom.non_resource_urls.iter().all(|u| held.non_resource_urls.iter().any(|h| policy::url_matches(h, u)));
    let group = atom.api_groups.iter().all(|g| policy::has(&held.api_groups, g));
    let resource = atom.resources.iter().all(|r| {
        let (plain, sub) = r.split_once('/').unwrap_or((r, ""));
        held.resources.iter().any(|h| h == r || policy::resource_matches(h, plain, sub))
    });
    let name = held.resource_names.is_empty()
        || (!atom.resource_names.is_empty() && atom.resource_names.iter().all(|n| held.resource_names.contains(n)));
    verb && url && group && resource && name
}

//! Roles and bindings.

use super::{Errors, cursor::At, workload};
use crate::{names, status::FieldError};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(object: At<'_>, errors: &mut Errors) {
    for rule in object.field("rules").items() {
        self::rule(&rule, true, errors);
    }
}

pub(super) fn cluster_role(object: At<'_>, errors: &mut Errors) {
    for rule in object.field("rules").items() {
        self::rule(&rule, false, errors);
    }
    let aggregation = object.field("aggregationRule");
    if aggregation.present() {
        let selectors = aggregation.field("clusterRoleSelectors");
        if selectors.require_because("at least one clusterRoleSelector required if aggregationRule is non-nil", errors)
        {
            selectors.items().for_each(|selector| workload::label_selector(&selector, errors));
        }
    }
}

fn rule(at: &At<'_>, namespaced: bool, errors: &mut Errors) {
    at.field("verbs").require_because("verbs must contain at least one value", errors);
    let urls = at.field("nonResourceURLs");
    if !urls.is_empty() {
        if namespaced {
            urls.invalid("namespaced rules cannot apply to non-resource URLs", errors);
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !at.field(field).is_empty()) {
            urls.invalid("rules cannot apply to both regular resources and non-resource URLs", errors);
        }
        return;
    }
    at.field("apiGroups").require_because("resource rules must supply at least one api group", errors);
    at.field("resources").require_because("resource rules must supply at least one resource", errors);
}

pub(super) fn binding(object: At<'_>, errors: &mut Errors) {
    let reference = object.field("roleRef");
    let group = reference.field("apiGroup");
    if group.text() != GROUP {
        errors.push(FieldError::not_supported(&group.path, group.value.clone(), &[GROUP]));
    }
    let kind = reference.field("kind");
    let kinds: &[&str] =
        if object.at("metadata.namespace").is_empty() { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
    if !kinds.contains(&kind.text()) {
        errors.push(FieldError::not_supported(&kind.path, kind.value.clone(), kinds));
    }
    if reference.field("name").require(errors) {
        reference.field("name").syntax(names::path_segment, errors);
    }
    for subject in object.field("subjects").items() {
        self::subject(&subject, errors);
    }
}

fn subject(at: &At<'_>, errors: &mut Errors) {
    at.field("name").require(errors);
    let group = at.field("apiGroup");
    let wanted = match at.field("kind").text() {
        "ServiceAccount" => {
            at.field("name").syntax(names::dns_subdomain, errors);
            at.field("namespace").require(errors);
            ""
        }
        "User" | "Group" => GROUP,
        _ => {
            let kind = at.field("kind");
            errors.push(FieldError::not_supported(
                &kind.path,
                kind.value.clone(),
                &["ServiceAccount", "User", "Group"],
            ));
            return;
        }
    };
    if group.text() != wanted {
        errors.push(FieldError::not_supported(&group.path, group.value.clone(), &[wanted]));
    }
}

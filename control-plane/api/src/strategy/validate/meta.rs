//! Object metadata: names, labels, annotations, owners, and what of it never changes.

use serde_json::Value;

use super::{Errors, address, cursor::At};
use crate::{names, resource::Resource, status::FieldError};

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The rules of a syntax that a text breaks.
type Syntax = fn(&str) -> Vec<String>;

/// Kinds whose names are not DNS subdomains.
const NAMES: &[(&str, &str, Syntax)] = &[
    ("", "Namespace", names::dns_label),
    ("", "Service", names::dns_1035_label),
    ("rbac.authorization.k8s.io", "Role", names::path_segment),
    ("rbac.authorization.k8s.io", "ClusterRole", names::path_segment),
    ("rbac.authorization.k8s.io", "RoleBinding", names::path_segment),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", names::path_segment),
    ("networking.k8s.io", "IPAddress", address::name),
];

pub(super) fn meta(resource: &Resource, meta: At<'_>, errors: &mut Errors) {
    let syntax = NAMES
        .iter()
        .find(|(group, kind, _)| resource.group == *group && resource.kind == *kind)
        .map_or(names::dns_subdomain as Syntax, |(_, _, syntax)| *syntax);
    let name = meta.field("name");
    if name.is_empty() {
        errors.push(FieldError::required(&name.path, "name or generateName is required"));
    } else {
        name.syntax(syntax, errors);
    }
    let namespace = meta.field("namespace");
    if resource.namespaced && namespace.is_empty() {
        errors.push(FieldError::required(&namespace.path, ""));
    } else if !resource.namespaced && !namespace.is_empty() {
        namespace.forbid("not allowed on this type", errors);
    }
    labels(meta.field("labels"), errors);
    annotations(meta.field("annotations"), errors);
    for finalizer in meta.field("finalizers").items() {
        finalizer.syntax(names::qualified_name, errors);
    }
    owners(meta.field("ownerReferences"), errors);
}

/// Labels; an error names the map, as upstream's do.
pub(super) fn labels(labels: At<'_>, errors: &mut Errors) {
    for (key, value) in labels.value.as_object().into_iter().flatten() {
        for detail in names::qualified_name(key) {
            errors.push(FieldError::invalid(&labels.path, key.as_str(), detail));
        }
        for detail in names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(&labels.path, value.clone(), detail));
        }
    }
}

fn annotations(annotations: At<'_>, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.value.as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        for detail in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(&annotations.path, key.as_str(), detail));
        }
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(&annotations.path, MAX_ANNOTATIONS));
    }
}

fn owners(owners: At<'_>, errors: &mut Errors) {
    let mut controllers = 0;
    for owner in owners.items() {
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            let field = owner.field(field);
            if field.is_empty() {
                errors.push(FieldError::invalid(&field.path, "", detail));
            }
        }
        controllers += usize::from(owner.field("controller").is_true());
    }
    if controllers > 1 {
        owners.invalid("Only one reference can have Controller set to true", errors);
    }
}

/// What of the metadata no update changes.
pub(super) fn change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (before, after) = (old.field(field), new.field(field));
        // A mark of deletion is the server's to set; clients only send back what they read.
        let set_now = field.starts_with("deletion") && !before.present();
        if before.value != after.value && !set_now {
            after.immutable("field is immutable", errors);
        }
    }
    let deleting = old.field("deletionTimestamp").present();
    if deleting {
        let known = old.field("finalizers");
        let known: Vec<&Value> = known.items().map(|item| item.value).collect();
        for finalizer in new.field("finalizers").items().filter(|item| !known.contains(&item.value)) {
            let detail = "no new finalizers can be added if the object is being deleted";
            errors.push(FieldError::forbidden(
                new.field("finalizers").path,
                format!("{detail}, found new finalizers {:?}", [finalizer.text()]),
            ));
        }
    }
}

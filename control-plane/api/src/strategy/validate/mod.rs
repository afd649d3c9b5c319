//! Validation with upstream's rules and words, field path first. Kinds without rules of their own
//! get the checks of metadata; their schema is the decoder's. Source: upstream's
//! `pkg/apis/*/validation`.

mod config;
mod container;
mod cursor;
mod meta;
mod pod;
mod rbac;
mod service;
mod update;
mod volume;
mod workload;

use serde_json::Value;

use self::cursor::At;
use crate::{resource::Resource, status::FieldError};

/// What a check adds to.
type Errors = Vec<FieldError>;
/// A check of one object.
type Check = fn(At<'_>, &mut Errors);
/// A check of a change, old object first.
type ChangeCheck = fn(At<'_>, At<'_>, &mut Errors);

const CREATE: &[(&str, &str, Check)] = &[
    ("", "Pod", pod::pod),
    ("", "PodTemplate", |o, e| pod::template(o.field("template"), e)),
    ("", "ReplicationController", workload::replication_controller),
    ("", "Service", service::service),
    ("", "ConfigMap", config::config_map),
    ("", "Secret", config::secret),
    ("", "Node", config::node),
    ("apps", "Deployment", workload::deployment),
    ("apps", "ReplicaSet", workload::replica_set),
    ("apps", "StatefulSet", workload::stateful_set),
    ("apps", "DaemonSet", workload::daemon_set),
    ("batch", "Job", workload::job),
    ("batch", "CronJob", workload::cron_job),
    ("discovery.k8s.io", "EndpointSlice", service::endpoint_slice),
    ("coordination.k8s.io", "Lease", config::lease),
    ("rbac.authorization.k8s.io", "Role", rbac::role),
    ("rbac.authorization.k8s.io", "ClusterRole", rbac::cluster_role),
    ("rbac.authorization.k8s.io", "RoleBinding", rbac::binding),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", rbac::binding),
];

const UPDATE: &[(&str, &str, ChangeCheck)] = &[
    ("", "Pod", update::pod),
    ("", "Service", update::service),
    ("", "ConfigMap", update::immutable_data),
    ("", "Secret", update::secret),
    ("", "Node", update::node),
    ("apps", "Deployment", update::selector),
    ("apps", "ReplicaSet", update::selector),
    ("apps", "StatefulSet", update::stateful_set),
    ("apps", "DaemonSet", update::selector),
    ("batch", "Job", update::job),
    ("discovery.k8s.io", "EndpointSlice", update::endpoint_slice),
    ("rbac.authorization.k8s.io", "RoleBinding", update::role_ref),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", update::role_ref),
];

/// Every broken rule of a new object, which has its defaults and its metadata.
pub fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = At::root(object);
    meta::meta(resource, at.field("metadata"), &mut errors);
    for (_, _, check) in mine(CREATE, resource) {
        check(at.clone(), &mut errors);
    }
    errors
}

/// Every broken rule of a changed object: its own and those of the change.
pub fn validate_update(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (before, after) = (At::root(old), At::root(new));
    meta::change(before.field("metadata"), after.field("metadata"), &mut errors);
    // What an earlier release let in stays changeable in every other respect.
    let known = validate_create(resource, old);
    errors.extend(validate_create(resource, new).into_iter().filter(|error| !known.contains(error)));
    for (_, _, check) in mine(UPDATE, resource) {
        check(before.clone(), after.clone(), &mut errors);
    }
    errors
}

fn mine<'t, T>(
    table: &'t [(&'static str, &'static str, T)],
    resource: &Resource,
) -> impl Iterator<Item = &'t (&'static str, &'static str, T)> {
    table.iter().filter(move |(group, kind, _)| resource.group == *group && resource.kind == *kind)
}

#[cfg(test)]
mod tests;

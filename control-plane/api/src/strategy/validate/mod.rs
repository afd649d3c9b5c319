//! Validation with upstream's rules and words, field path first. Kinds without rules of their own
//! get the checks of metadata and those of required fields by their schema. Source: upstream's
//! `pkg/apis/*/validation`.

mod address;
mod balancer;
mod batch;
mod config;
mod container;
mod cursor;
mod hooks;
mod limits;
mod meta;
mod networking;
mod other;
mod pod;
mod rbac;
mod service;
mod update;
mod volume;
mod volumes;
mod workload;

use serde_json::Value;

use self::cursor::At;
use crate::{resource::Resource, schema, status::FieldError, structural};

/// What a check adds to.
type Errors = Vec<FieldError>;
/// A check of one object.
type Check = fn(At<'_>, &mut Errors);
/// A check of a change, old object first.
type ChangeCheck = fn(At<'_>, At<'_>, &mut Errors);

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const OWN: &str = "sluice.dev";
const STORAGE: &str = "storage.k8s.io";

const CREATE: &[(&str, &str, Check)] = &[
    ("", "Pod", pod::pod),
    ("", "PodTemplate", |o, e| pod::template(o.field("template"), e)),
    ("", "ReplicationController", workload::replication_controller),
    ("", "Service", service::service),
    ("", "Service", balancer::service),
    ("", "ConfigMap", config::config_map),
    ("", "Secret", config::secret),
    ("", "Node", config::node),
    ("apps", "Deployment", workload::deployment),
    ("apps", "ReplicaSet", workload::replica_set),
    ("apps", "StatefulSet", workload::stateful_set),
    ("apps", "DaemonSet", workload::daemon_set),
    ("batch", "Job", batch::job),
    ("batch", "CronJob", batch::cron_job),
    ("discovery.k8s.io", "EndpointSlice", service::endpoint_slice),
    ("coordination.k8s.io", "Lease", config::lease),
    ("rbac.authorization.k8s.io", "Role", rbac::role),
    ("rbac.authorization.k8s.io", "ClusterRole", rbac::cluster_role),
    ("rbac.authorization.k8s.io", "RoleBinding", rbac::binding),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", rbac::binding),
    ("", "Endpoints", networking::endpoints),
    ("", "Event", other::core_event),
    ("", "LimitRange", limits::limit_range),
    ("", "Namespace", |_, _| ()),
    ("", "PersistentVolume", volumes::volume),
    ("", "PersistentVolumeClaim", volumes::claim),
    ("", "ResourceQuota", limits::resource_quota),
    ("", "ServiceAccount", |_, _| ()),
    (ADMISSION, "MutatingAdmissionPolicy", hooks::mutating_policy),
    (ADMISSION, "MutatingAdmissionPolicyBinding", hooks::mutating_binding),
    (ADMISSION, "MutatingWebhookConfiguration", hooks::mutating),
    (ADMISSION, "ValidatingAdmissionPolicy", hooks::validating_policy),
    (ADMISSION, "ValidatingAdmissionPolicyBinding", hooks::validating_binding),
    (ADMISSION, "ValidatingWebhookConfiguration", hooks::validating),
    ("apiextensions.k8s.io", "CustomResourceDefinition", |o, e| e.extend(structural::definition(o.value))),
    ("apiregistration.k8s.io", "APIService", other::api_service),
    ("apps", "ControllerRevision", other::controller_revision),
    ("autoscaling", "HorizontalPodAutoscaler", limits::autoscaler),
    ("certificates.k8s.io", "CertificateSigningRequest", other::certificate_request),
    ("events.k8s.io", "Event", other::event),
    (FLOW, "FlowSchema", other::flow_schema),
    (FLOW, "PriorityLevelConfiguration", other::priority_level),
    (NETWORKING, "IPAddress", address::ip_address),
    (NETWORKING, "Ingress", networking::ingress),
    (NETWORKING, "IngressClass", networking::ingress_class),
    (NETWORKING, "NetworkPolicy", networking::network_policy),
    (NETWORKING, "ServiceCIDR", address::service_cidr),
    ("node.k8s.io", "RuntimeClass", limits::runtime_class),
    (OWN, "LoadBalancerAnnouncement", balancer::announcement),
    (OWN, "LoadBalancerPool", balancer::pool),
    ("policy", "PodDisruptionBudget", limits::budget),
    ("scheduling.k8s.io", "PriorityClass", limits::priority_class),
    (STORAGE, "CSIDriver", volumes::csi_driver),
    (STORAGE, "CSINode", volumes::csi_node),
    (STORAGE, "CSIStorageCapacity", volumes::csi_capacity),
    (STORAGE, "StorageClass", volumes::storage_class),
    (STORAGE, "VolumeAttachment", volumes::attachment),
    (STORAGE, "VolumeAttributesClass", volumes::attributes_class),
];

const UPDATE: &[(&str, &str, ChangeCheck)] = &[
    ("", "Pod", update::pod),
    ("", "Service", update::service),
    ("", "Service", balancer::service_change),
    ("", "ConfigMap", update::immutable_data),
    ("", "Secret", update::secret),
    ("", "Node", update::node),
    ("apps", "Deployment", update::selector),
    ("apps", "ReplicaSet", update::selector),
    ("apps", "StatefulSet", update::stateful_set),
    ("apps", "DaemonSet", update::selector),
    ("batch", "Job", batch::job_change),
    ("discovery.k8s.io", "EndpointSlice", update::endpoint_slice),
    ("rbac.authorization.k8s.io", "RoleBinding", update::role_ref),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", update::role_ref),
    ("", "PersistentVolume", volumes::volume_change),
    ("", "PersistentVolumeClaim", volumes::claim_change),
    ("", "ResourceQuota", limits::resource_quota_change),
    ("apiextensions.k8s.io", "CustomResourceDefinition", |old, new, e| {
        e.extend(structural::definition_change(old.value, new.value));
    }),
    ("apps", "ControllerRevision", other::controller_revision_change),
    (NETWORKING, "IPAddress", |old, new, errors| update::fixed(old, new, "spec.parentRef", errors)),
    (NETWORKING, "ServiceCIDR", address::service_cidr_change),
    (NETWORKING, "IngressClass", |old, new, errors| update::fixed(old, new, "spec.controller", errors)),
    ("node.k8s.io", "RuntimeClass", limits::runtime_class_change),
    (OWN, "LoadBalancerAnnouncement", |old, new, errors| update::fixed(old, new, "spec.address", errors)),
    ("scheduling.k8s.io", "PriorityClass", limits::priority_class_change),
    (STORAGE, "StorageClass", volumes::storage_class_change),
    (STORAGE, "VolumeAttachment", volumes::attachment_change),
    (STORAGE, "VolumeAttributesClass", volumes::attributes_class_change),
];

/// Every broken rule of a new object, which has its defaults and its metadata.
pub fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = metadata(resource, object);
    let at = At::root(object);
    if let Some(custom) = &resource.custom {
        errors.extend(custom.validate(object, None));
        return errors;
    }
    let mut own = false;
    for (_, _, check) in mine(CREATE, resource) {
        own = true;
        check(at.clone(), &mut errors);
    }
    if !own && let Some(schema) = schema::builtin().get(&resource.schema) {
        errors.extend(schema::missing(schema, object));
    }
    errors
}

/// Every broken rule of the fields of a Service that name addresses and families, alone: what allocation may count on.
pub fn service_addresses(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    service::addresses(&At::root(object).field("spec"), &mut errors);
    errors
}

fn metadata(resource: &Resource, object: &Value) -> Errors {
    let mut errors = Vec::new();
    meta::meta(resource, At::root(object).field("metadata"), &mut errors);
    errors
}

/// Every broken rule of a status that is written through its own subresource.
pub fn validate_status_update(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    match &resource.custom {
        Some(custom) => {
            let known = custom.validate(old, None);
            let mut errors = custom.validate_status(new, old);
            errors.retain(|error| !known.contains(error));
            errors
        }
        None => Vec::new(),
    }
}

/// Every broken rule of a changed object: its own and those of the change.
pub fn validate_update(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (before, after) = (At::root(old), At::root(new));
    meta::change(before.field("metadata"), after.field("metadata"), &mut errors);
    // What an earlier release let in stays changeable in every other respect.
    let known = validate_create(resource, old);
    if let Some(custom) = &resource.custom {
        let new_errors = metadata(resource, new).into_iter().chain(custom.validate(new, Some(old)));
        errors.extend(new_errors.filter(|error| !known.contains(error)));
        return errors;
    }
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

//! The Rust types whose schemas are generated; those they refer to follow by themselves.

use schemars::SchemaGenerator;

macro_rules! roots {
    ($generator:ident; $($($module:ident)::+ { $($name:ident),* $(,)? })*) => {
        $({
            use k8s_openapi::$($module)::+ as module;
            $(let _ = $generator.subschema_for::<module::$name>();)*
        })*
    };
}

/// Puts every type of a served resource, and of a request's body, into the generator.
pub(crate) fn generate(generator: &mut SchemaGenerator) {
    roots! { generator;
        api::core::v1 {
            Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        }
        api::apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        api::events::v1 { Event }
        api::authentication::v1 { SelfSubjectReview, TokenRequest, TokenReview }
        api::authorization::v1 {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        }
        api::autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        api::autoscaling::v2 { HorizontalPodAutoscaler }
        api::batch::v1 { CronJob, Job }
        api::certificates::v1 { CertificateSigningRequest }
        api::networking::v1 { Ingress, IngressClass, IPAddress, NetworkPolicy, ServiceCIDR }
        api::policy::v1 { Eviction, PodDisruptionBudget }
        api::rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        api::storage::v1 {
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
        }
        api::admissionregistration::v1 {
            MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
        }
        api::scheduling::v1 { PriorityClass }
        api::coordination::v1 { Lease }
        api::node::v1 { RuntimeClass }
        api::discovery::v1 { EndpointSlice }
        api::flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        api::resource::v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
        kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
        apimachinery::pkg::apis::meta::v1 {
            APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, Patch, Status,
        }
    }
}

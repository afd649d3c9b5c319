//! The narrow view of a Pod that the node keeps: only the fields it acts on, with absent lists empty, so that the
//! code that reads them needs no ladders of options. Deserialized straight from the API server's JSON; never
//! written back (status goes out as `k8s_openapi` types).

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use sluice_dataplane::ServicePath;

mod volume;

pub use volume::*;

/// Annotation of a pod whose connections to services are not translated at its sockets.
const SOCKET_SERVICES: &str = "sluice.dev/socket-lb";

/// A pod as the API server knows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

impl Pod {
    /// The pod's name, empty if it has none.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's namespace, empty if it has none.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's uid, empty if it has none.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `name_namespace(uid)`, as upstream's messages name a pod.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    /// Where its connections to services are translated: when sockets connect, or packet by packet on its link when the
    /// annotation says `"false"` (a guest kernel's sockets, or a proxy in the pod that has to see service addresses).
    pub fn service_path(&self) -> ServicePath {
        match self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOCKET_SERVICES)) {
            Some(text) if text == "false" => ServicePath::Packets,
            _ => ServicePath::Sockets,
        }
    }

    /// Drops what the node never reads, to keep a pod small in memory.
    pub fn shrink(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(a) = &mut self.metadata.annotations {
            a.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }

    /// Init containers, then the main ones, then the ephemeral ones (which may come later: positions stay).
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.own_containers().chain(&self.spec.ephemeral_containers)
    }

    /// The containers the pod was created with: init containers, then the main ones.
    pub fn own_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// The container of that name, of any kind.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers().find(|c| c.name == name)
    }

    /// True if the pod has ended, as the API server knows it.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}

impl kube::Resource for Pod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: String,
    pub restart_policy: String,
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    pub ephemeral_containers: Vec<Container>,
    pub runtime_class_name: Option<String>,
    pub volumes: Vec<Volume>,
    pub active_deadline_seconds: Option<i64>,
    pub termination_grace_period_seconds: Option<i64>,
    pub dns_policy: String,
    pub dns_config: Option<DnsConfig>,
    pub enable_service_links: Option<bool>,
    pub host_aliases: Vec<HostAlias>,
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    pub host_network: bool,
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    pub hostname: Option<String>,
    pub hostname_override: Option<String>,
    pub subdomain: Option<String>,
    #[serde(rename = "setHostnameAsFQDN")]
    pub set_hostname_as_fqdn: Option<bool>,
    pub share_process_namespace: Option<bool>,
    pub image_pull_secrets: Vec<NameRef>,
    pub node_selector: BTreeMap<String, String>,
    pub readiness_gates: Vec<ReadinessGate>,
    pub resources: Option<Resources>,
    pub overhead: BTreeMap<String, String>,
    pub security_context: PodSecurityContext,
    pub service_account_name: String,
    pub tolerations: Vec<Toleration>,
    pub priority: Option<i32>,
}

/// A reference by name.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct NameRef {
    pub name: String,
}

/// A condition the pod's readiness waits for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReadinessGate {
    pub condition_type: String,
}

/// Extra lines of a pod's /etc/hosts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

/// `dnsConfig` of a pod.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<DnsOption>,
}

/// One resolver option.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct DnsOption {
    pub name: String,
    pub value: Option<String>,
}

/// A container, init or not.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub image: String,
    pub image_pull_policy: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<EnvVar>,
    pub env_from: Vec<EnvFrom>,
    pub ports: Vec<Port>,
    pub resources: Resources,
    pub volume_mounts: Vec<VolumeMount>,
    pub liveness_probe: Option<Box<Probe>>,
    pub readiness_probe: Option<Box<Probe>>,
    pub startup_probe: Option<Box<Probe>>,
    pub lifecycle: Option<Box<Lifecycle>>,
    pub restart_policy: Option<String>,
    pub restart_policy_rules: Vec<RestartRule>,
    pub resize_policy: Vec<ResizePolicy>,
    /// Of an ephemeral container: whose processes it sees.
    pub target_container_name: String,
    pub security_context: Option<Box<SecurityContext>>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub termination_message_path: String,
    pub termination_message_policy: String,
}

/// What a change of one resource does to a running container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResizePolicy {
    pub resource_name: String,
    /// `NotRequired` or `RestartContainer`.
    pub restart_policy: String,
}

/// A rule that decides on a restart by exit code (Kubernetes 1.35).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RestartRule {
    pub action: String,
    pub exit_codes: Option<RestartExitCodes>,
}

/// The exit codes of a [`RestartRule`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RestartExitCodes {
    pub operator: String,
    pub values: Vec<i32>,
}

/// A named port.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    pub name: String,
    pub container_port: u16,
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: String,
}

/// Requests and limits as written (`100m`, `64Mi`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
}

/// An environment variable.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    pub value: String,
    pub value_from: Option<Box<EnvSource>>,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvSource {
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
    pub file_key_ref: Option<FileKeyRef>,
}

/// A key of a file in a volume (Kubernetes 1.34).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileKeyRef {
    pub key: String,
    pub path: String,
    pub volume_name: String,
    pub optional: bool,
}

/// A field of the pod itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldRef {
    pub field_path: String,
}

/// A container's request or limit.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResourceFieldRef {
    pub container_name: String,
    pub resource: String,
    pub divisor: Option<String>,
}

/// A key of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: bool,
}

/// All keys of a ConfigMap or Secret as variables.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvFrom {
    pub prefix: String,
    pub config_map_ref: Option<ObjectRef>,
    pub secret_ref: Option<ObjectRef>,
}

/// A ConfigMap or Secret as a whole.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ObjectRef {
    pub name: String,
    pub optional: bool,
}

/// A mount of a volume into a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub read_only: bool,
    pub sub_path: String,
    pub sub_path_expr: String,
    pub mount_propagation: Option<String>,
    pub recursive_read_only: Option<String>,
}

/// A probe of any kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Probe {
    #[serde(flatten)]
    pub handler: Handler,
    pub initial_delay_seconds: Option<u32>,
    pub period_seconds: Option<u32>,
    pub timeout_seconds: Option<u32>,
    pub success_threshold: Option<u32>,
    pub failure_threshold: Option<u32>,
    pub termination_grace_period_seconds: Option<i64>,
}

/// What a probe or hook does. One of them is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Handler {
    pub exec: Option<ExecAction>,
    pub http_get: Option<HttpGet>,
    pub tcp_socket: Option<TcpSocket>,
    pub grpc: Option<GrpcAction>,
    pub sleep: Option<SleepAction>,
}

/// A command in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ExecAction {
    pub command: Vec<String>,
}

/// An HTTP request to the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpGet {
    pub host: String,
    pub path: String,
    pub port: IntOrString,
    pub scheme: String,
    pub http_headers: Vec<HttpHeader>,
}

/// A header of an [`HttpGet`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
}

/// A TCP connection to the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct TcpSocket {
    pub host: String,
    pub port: IntOrString,
}

/// A gRPC health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct GrpcAction {
    pub port: u16,
    pub service: Option<String>,
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct SleepAction {
    pub seconds: u32,
}

/// Hooks of a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lifecycle {
    pub post_start: Option<Handler>,
    pub pre_stop: Option<Handler>,
    pub stop_signal: Option<String>,
}

/// Pod-wide security settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSecurityContext {
    pub fs_group: Option<u32>,
    pub fs_group_change_policy: Option<String>,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: Option<bool>,
    pub supplemental_groups: Vec<u32>,
    pub seccomp_profile: Option<SeccompProfile>,
    pub sysctls: Vec<Sysctl>,
}

/// A kernel parameter of the pod's namespaces.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

/// A container's security settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    pub allow_privilege_escalation: Option<bool>,
    pub capabilities: Capabilities,
    pub privileged: bool,
    pub proc_mount: Option<String>,
    pub read_only_root_filesystem: bool,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: Option<bool>,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub type_: String,
    pub localhost_profile: Option<String>,
}

/// Capabilities added to and dropped from the default set.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_where_its_services_are_translated() {
        let cases = [
            (None, ServicePath::Sockets),
            (Some("true"), ServicePath::Sockets),
            (Some("no"), ServicePath::Sockets),
            (Some("false"), ServicePath::Packets),
        ];
        for (text, expected) in cases {
            let mut pod = Pod::default();
            pod.metadata.annotations = text.map(|text| [(SOCKET_SERVICES.to_owned(), text.to_owned())].into());
            assert_eq!(pod.service_path(), expected, "{text:?}");
        }
    }
}

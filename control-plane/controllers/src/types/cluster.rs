//! Kinds of the cluster itself: nodes, namespaces, leases, accounts, certificates.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::{metadata, nullable, resource};
use crate::account_tokens;
use crate::informer::Kind;

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Wishes.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: NodeSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: NodeStatus,
}
resource!(Node, "", "v1", "Node", "nodes", ClusterResourceScope);
impl Kind for Node {}

/// What is wanted of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NodeSpec {
    /// First range of pod addresses.
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    /// Ranges of pod addresses.
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub(crate) pod_cidrs: Vec<String>,
    /// Cordoned.
    pub(crate) unschedulable: bool,
    /// Taints.
    #[serde(deserialize_with = "nullable")]
    pub(crate) taints: Vec<Taint>,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    /// Names and addresses.
    #[serde(deserialize_with = "nullable")]
    pub(crate) addresses: Vec<NodeAddress>,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<NodeCondition>,
}

/// A name or address of a node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    /// The name or address.
    pub(crate) address: String,
}

/// A condition of a node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NodeCondition {
    /// Ready, MemoryPressure, ...
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// True, False or Unknown.
    pub(crate) status: String,
    /// Last time the node said so.
    pub(crate) last_heartbeat_time: Option<Time>,
    /// Since when.
    pub(crate) last_transition_time: Option<Time>,
    /// Word for programs.
    pub(crate) reason: String,
    /// Sentence for people.
    pub(crate) message: String,
}

impl Node {
    /// A condition by name.
    pub(crate) fn condition(&self, kind: &str) -> Option<&NodeCondition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }
}

/// A Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Finalizers.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: NamespaceSpec,
    /// Facts.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: NamespaceStatus,
}
resource!(Namespace, "", "v1", "Namespace", "namespaces", ClusterResourceScope);
impl Kind for Namespace {}

/// A namespace's own finalizers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamespaceSpec {
    /// `kubernetes` until its content is gone.
    #[serde(deserialize_with = "nullable")]
    pub(crate) finalizers: Vec<String>,
}

/// A namespace's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamespaceStatus {
    /// Active or Terminating.
    pub(crate) phase: Option<String>,
    /// What holds its deletion up.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<NodeCondition>,
}

/// A Lease: only who renewed it and when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Lease {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Holder and time.
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: LeaseSpec,
}
resource!(Lease, "coordination.k8s.io", "v1", "Lease", "leases", NamespaceResourceScope);
impl Kind for Lease {}

/// A lease's time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LeaseSpec {
    /// Last renewal.
    pub(crate) renew_time: Option<MicroTime>,
}

/// A ServiceAccount: only that it exists.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceAccount {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
}
resource!(ServiceAccount, "", "v1", "ServiceAccount", "serviceaccounts", NamespaceResourceScope);
impl Kind for ServiceAccount {}

/// A ConfigMap (only those called kube-root-ca.crt are watched).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigMap {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Data.
    #[serde(deserialize_with = "nullable")]
    pub(crate) data: BTreeMap<String, String>,
}
resource!(ConfigMap, "", "v1", "ConfigMap", "configmaps", NamespaceResourceScope);
impl Kind for ConfigMap {}

/// A Secret (only bootstrap tokens and those with service accounts' tokens are watched).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Secret {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// Only what controllers look at is kept, and of a token only that there is one.
    #[serde(deserialize_with = "nullable")]
    pub(crate) data: BTreeMap<String, ByteString>,
}
resource!(Secret, "", "v1", "Secret", "secrets", NamespaceResourceScope);

impl Kind for Secret {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        self.data.retain(|key, _| matches!(key.as_str(), "expiration" | "ca.crt" | "namespace" | "token"));
        if let Some(token) = self.data.get_mut("token") {
            token.0.truncate(1);
            token.0.shrink_to_fit();
        }
    }

    fn indexes(&self) -> Vec<String> {
        account_tokens::index(self).into_iter().collect()
    }
}

/// A CertificateSigningRequest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificate {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// What is asked.
    pub(crate) spec: CertificateSpec,
    /// What was answered.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: CertificateStatus,
}
resource!(
    Certificate,
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
    ClusterResourceScope
);
impl Kind for Certificate {}

/// What is asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CertificateSpec {
    /// The request in PEM.
    pub(crate) request: ByteString,
    /// Who is to sign.
    pub(crate) signer_name: String,
    /// Who asks.
    pub(crate) username: String,
    /// The asker's groups.
    #[serde(deserialize_with = "nullable")]
    pub(crate) groups: Vec<String>,
    /// What for.
    #[serde(deserialize_with = "nullable")]
    pub(crate) usages: Vec<String>,
    /// How long.
    pub(crate) expiration_seconds: Option<i64>,
}

/// What was answered.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CertificateStatus {
    /// Approved, Denied, Failed.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<NodeCondition>,
    /// The certificate in PEM.
    pub(crate) certificate: Option<ByteString>,
}

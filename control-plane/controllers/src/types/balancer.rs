//! The kinds of our own group: pools of load-balancer addresses and who announces each address.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{nullable, resource};
use crate::informer::Kind;

/// A LoadBalancerPool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pool {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Addresses and whom they are for.
    pub(crate) spec: PoolSpec,
    /// How many are in use.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: PoolStatus,
}
resource!(Pool, "sluice.dev", "v1", "LoadBalancerPool", "loadbalancerpools", ClusterResourceScope);
impl Kind for Pool {}

/// What a pool holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PoolSpec {
    /// Addresses.
    #[serde(deserialize_with = "nullable")]
    pub(crate) blocks: Vec<AddressBlock>,
    /// Services' labels.
    pub(crate) service_selector: Option<LabelSelector>,
    /// Their namespaces' labels.
    pub(crate) namespace_selector: Option<LabelSelector>,
    /// Gives out nothing new.
    pub(crate) disabled: bool,
    /// Only for those who ask for it, if false.
    pub(crate) auto_assign: Option<bool>,
    /// The ends of CIDRs are kept back, if false.
    #[serde(rename = "allowFirstLastIPs")]
    pub(crate) allow_first_last: Option<bool>,
    /// How its addresses are made known.
    #[serde(deserialize_with = "nullable")]
    pub(crate) announcement: AnnouncementPolicy,
}

/// A run of addresses as the API writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AddressBlock {
    /// A prefix.
    pub(crate) cidr: String,
    /// Or the first address ...
    pub(crate) start: String,
    /// ... and the last.
    pub(crate) stop: String,
}

/// How a pool's addresses are made known.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AnnouncementPolicy {
    /// L2 or None.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Nodes that may announce.
    pub(crate) node_selector: Option<LabelSelector>,
    /// Links to announce on.
    #[serde(deserialize_with = "nullable")]
    pub(crate) interfaces: Vec<String>,
}

/// What became of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PoolStatus {
    /// Conflict.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<Condition>,
    /// Addresses.
    pub(crate) total: i64,
    /// In use.
    pub(crate) used: i64,
    /// Left.
    pub(crate) free: i64,
}

/// A LoadBalancerAnnouncement.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Announcement {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Address and nodes.
    pub(crate) spec: AnnouncementSpec,
}
resource!(
    Announcement,
    "sluice.dev",
    "v1",
    "LoadBalancerAnnouncement",
    "loadbalancerannouncements",
    ClusterResourceScope
);
impl Kind for Announcement {}

/// An address and who may announce it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AnnouncementSpec {
    /// The address.
    pub(crate) address: String,
    /// `namespace/name` of the Services that have it.
    #[serde(deserialize_with = "nullable")]
    pub(crate) services: Vec<String>,
    /// Links to announce on.
    #[serde(deserialize_with = "nullable")]
    pub(crate) interfaces: Vec<String>,
    /// Who may, in order.
    #[serde(deserialize_with = "nullable")]
    pub(crate) nodes: Vec<AnnouncingNode>,
}

/// A node that may announce an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AnnouncingNode {
    /// Its name.
    pub(crate) name: String,
    /// Its own addresses.
    #[serde(deserialize_with = "nullable")]
    pub(crate) addresses: Vec<String>,
}

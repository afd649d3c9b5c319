//! IPAddresses and ServiceCIDRs.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ObjectMeta;
use serde::Deserialize;
use sluice_api::block::Block;

use super::{nullable, resource};
use crate::informer::Kind;

/// An IPAddress.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IpAddress {
    /// Metadata; the name is the address.
    pub(crate) metadata: ObjectMeta,
    /// Whose it is.
    pub(crate) spec: IpAddressSpec,
}
resource!(IpAddress, "networking.k8s.io", "v1", "IPAddress", "ipaddresses", ClusterResourceScope);
impl Kind for IpAddress {}

/// Whose an address is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IpAddressSpec {
    /// The object that has it.
    pub(crate) parent_ref: Parent,
}

/// The object that an address belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Parent {
    /// Empty for Services.
    pub(crate) group: String,
    /// Plural of the kind.
    pub(crate) resource: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceCidr {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// The ranges.
    pub(crate) spec: ServiceCidrSpec,
    /// Whether addresses are given from it.
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: ServiceCidrStatus,
}
resource!(ServiceCidr, "networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", ClusterResourceScope);
impl Kind for ServiceCidr {}

/// The ranges of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceCidrSpec {
    /// One, or one of each family.
    #[serde(deserialize_with = "nullable")]
    pub(crate) cidrs: Vec<String>,
}

/// What became of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceCidrStatus {
    /// Ready and others.
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<Condition>,
}

impl ServiceCidr {
    /// The ranges that can be read.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Block> {
        self.spec.cidrs.iter().filter_map(|cidr| Block::cidr(cidr))
    }

    /// Whether it may give this address to a Service: not a network's own, nor one for all of an IPv4 network.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let inside = |range: Block| {
            range.contains(address) && address != range.first() && !(range.is_ipv4() && address == range.last())
        };
        self.ranges().any(inside)
    }
}

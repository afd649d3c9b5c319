//! The parts of pods, nodes and namespaces that scheduling looks at, as they arrive. They live only until they have been
//! turned into [`crate::pod::Pod`] and [`crate::node::NodeSpec`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::ObjectMeta;
use serde::Deserialize;

/// A value that may also arrive as `null`.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Metadata without what scheduling never looks at: the list of managers is the larger part of most objects.
fn metadata<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Narrow {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    let narrow = Narrow::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: narrow.name,
        namespace: narrow.namespace,
        uid: narrow.uid,
        resource_version: narrow.resource_version,
        labels: narrow.labels,
        owner_references: narrow.owner_references,
        creation_timestamp: narrow.creation_timestamp,
        deletion_timestamp: narrow.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

macro_rules! resource {
    ($type:ident, $kind:literal, $plural:literal, $scope:ty) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                "".into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

/// A pod as read from the API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: PodStatus,
}
resource!(Pod, "Pod", "pods", kube::core::NamespaceResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub scheduler_name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub scheduling_gates: Vec<core::PodSchedulingGate>,
    pub priority: Option<i32>,
    pub preemption_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<core::Affinity>,
    #[serde(deserialize_with = "nullable")]
    pub tolerations: Vec<core::Toleration>,
    #[serde(deserialize_with = "nullable")]
    pub topology_spread_constraints: Vec<core::TopologySpreadConstraint>,
    #[serde(deserialize_with = "nullable")]
    pub overhead: BTreeMap<String, Quantity>,
    pub resources: Option<Requests>,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub image: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub resources: Requests,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requests {
    #[serde(deserialize_with = "nullable")]
    pub requests: BTreeMap<String, Quantity>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    pub host_port: Option<i32>,
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: Option<String>,
    pub nominated_node_name: Option<String>,
    pub start_time: Option<Time>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<core::PodCondition>,
}

/// A node as read from the API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: NodeStatus,
}
resource!(Node, "Node", "nodes", kube::core::ClusterResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    pub unschedulable: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<core::Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub allocatable: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "nullable")]
    pub images: Vec<NodeImage>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeImage {
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    pub size_bytes: i64,
}

/// A namespace: its labels decide which pods an affinity term looks at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
}
resource!(Namespace, "Namespace", "namespaces", kube::core::ClusterResourceScope);

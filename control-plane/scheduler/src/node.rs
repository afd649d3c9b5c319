//! A node as the planner sees it: what it offers and, kept as running sums, what the pods on it take.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::pod::{HostPort, Pod, normalized_image};
use crate::resources::{self, Resources};
use crate::wire;

/// What the API says about a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSpec {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<core::Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`, or the capacity while that is unknown.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub max_pods: i64,
    /// Sizes in bytes of the images present, by normalized name.
    pub images: HashMap<Box<str>, i64>,
}

impl NodeSpec {
    /// Reads a node.
    pub fn from_wire(node: wire::Node) -> Self {
        let amounts = if node.status.allocatable.is_empty() { node.status.capacity } else { node.status.allocatable };
        Self {
            name: node.metadata.name.unwrap_or_default().into(),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: node.spec.taints,
            unschedulable: node.spec.unschedulable.unwrap_or(false),
            max_pods: amounts.get("pods").map_or(0, resources::value),
            allocatable: Resources::parse(&amounts),
            images: node
                .status
                .images
                .into_iter()
                .flat_map(|image| {
                    let size = image.size_bytes;
                    image.names.into_iter().map(move |name| (normalized_image(&name).into(), size))
                })
                .collect(),
        }
    }
}

/// A node with the pods on it.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// What the API says; kept while pods remain on a node that is gone.
    pub spec: NodeSpec,
    /// Whether the API has the node.
    pub present: bool,
    /// Pods bound or assumed here, by uid.
    pub pods: HashMap<Arc<str>, Arc<Pod>>,
    /// Sum of their requests.
    pub requested: Resources,
    /// The same with scoring defaults.
    pub scored: Resources,
    /// Host ports in use.
    pub ports: Vec<HostPort>,
}

impl Node {
    /// Counts a pod in.
    pub fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod.requests);
        self.scored.add(&pod.scored_requests);
        self.ports.extend_from_slice(&pod.ports);
        let replaced = self.pods.insert(pod.uid.clone(), pod);
        debug_assert!(replaced.is_none(), "a pod is counted once");
    }

    /// Counts a pod out.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let pod = self.pods.remove(uid)?;
        self.requested.sub(&pod.requests);
        self.scored.sub(&pod.scored_requests);
        for port in &pod.ports {
            if let Some(i) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(i);
            }
        }
        Some(pod)
    }
}

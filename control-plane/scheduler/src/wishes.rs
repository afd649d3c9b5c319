//! What pods with equal wishes about nodes find on each node, whoever else is there: worked out once, then kept up to date
//! node by node, so that planning compares no labels and taints again.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Taint, Toleration};
use serde::Serialize;

use crate::filter;
use crate::matching;
use crate::node::NodeSpec;
use crate::pod::Pod;

/// What one node is to these pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Nothing about the node itself keeps the pod away.
    pub(crate) fits: bool,
    /// The node selector and the required node affinity admit it.
    pub(crate) admitted: bool,
    /// The pod tolerates all taints that keep pods away.
    pub(crate) tolerated: bool,
    /// Taints that it does not tolerate and that only make the node worse.
    pub(crate) disliked: u16,
}

/// The wishes of some pods, and what they find by node slot.
#[derive(Debug)]
pub(crate) struct Wishes {
    pod: Arc<Pod>,
    pub(crate) on: Arc<Vec<Found>>,
}

impl Wishes {
    /// Of pods like `pod`, on these nodes.
    pub(crate) fn new<'a>(pod: &Pod, nodes: impl Iterator<Item = &'a NodeSpec>) -> Self {
        let on = nodes.map(|node| found(pod, node)).collect();
        Self { pod: Arc::new(pod.clone()), on: Arc::new(on) }
    }

    /// Takes in how the node in `slot` is now.
    pub(crate) fn set(&mut self, slot: usize, node: &NodeSpec) {
        let on = Arc::make_mut(&mut self.on);
        if slot >= on.len() {
            on.resize(slot + 1, Found::default());
        }
        on[slot] = found(&self.pod, node);
    }
}

/// Equal for pods with equal wishes.
pub(crate) fn key(pod: &Pod) -> String {
    #[derive(Serialize)]
    struct Key<'a>(&'a BTreeMap<String, String>, &'a Option<Vec<NodeSelectorTerm>>, &'a [Toleration]);
    serde_json::to_string(&Key(&pod.node_selector, &pod.node_terms, &pod.tolerations)).unwrap_or_default()
}

fn found(pod: &Pod, node: &NodeSpec) -> Found {
    let disliked = |taint: &&Taint| {
        matching::untolerated(std::slice::from_ref(*taint), &pod.tolerations, &["PreferNoSchedule"]).is_some()
    };
    Found {
        fits: filter::fixed(pod, node).is_none(),
        admitted: matching::admits(pod, node),
        tolerated: matching::untolerated(&node.taints, &pod.tolerations, &["NoSchedule", "NoExecute"]).is_none(),
        disliked: u16::try_from(node.taints.iter().filter(disliked).count()).unwrap_or(u16::MAX),
    }
}

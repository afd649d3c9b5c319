//! Clears away pods nobody else will: those of nodes that are gone, those being deleted that never had a node, and the
//! oldest finished ones when there are too many.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::json;

use super::patch_strategic;
use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::{Node, Pod};

const NAME: &str = "pod-garbage-collector-controller";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Controller {
    client: Client,
    context: Context,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    finished: std::sync::atomic::AtomicUsize,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        nodes: wiring.reads(&all.nodes),
        pods: wiring.reads(&all.pods),
        finished: Default::default(),
    });
    let pods = controller.pods.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| {
        let Some(any) = new.or(old) else { return };
        if new.is_none() || new.is_some_and(|node| out_of_service(node)) {
            let after = if new.is_none() { limits::ORPHAN_QUARANTINE } else { Duration::ZERO };
            for pod in pods.indexed(&format!("node/{}", any.name())) {
                queue.add_after(pod.key(), after);
            }
        }
    });
    let watching = controller.clone();
    wiring.wakes(&all.pods, move |old, new, queue| watching.pod_changed(old, new, queue));
    wiring.run(context, NAME, controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let crowded = self.finished.load(std::sync::atomic::Ordering::Relaxed) > limits::TERMINATED_PODS;
        if self.orphaned(&pod) {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            if super::exists(&self.client, node).await? {
                return Ok(Some(Duration::from_secs(1)));
            }
            if !pod.finished() {
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists", "lastTransitionTime": format!("{:.0}", self.context.now()),
                });
                patch_strategic(&self.client, &*pod, json!({"phase": "Failed", "conditions": [condition]})).await?;
            }
        } else if pod.deleting() && (pod.spec.node_name.is_none() || self.out_of_service(&pod)) {
            // Nobody else will say that it ended.
            if !pod.finished() {
                patch_strategic(&self.client, &*pod, json!({"phase": "Failed"})).await?;
            }
        } else if !(pod.finished() && crowded) {
            return Ok(None);
        }
        rest::delete_now(&self.client, &*pod).await?;
        Ok(None)
    }
}

impl Controller {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>, queue: &Queue<Key>) {
        use std::sync::atomic::Ordering::Relaxed;
        let finished = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| pod.finished());
        let (before, after) = (finished(old), finished(new));
        if before && !after {
            self.finished.fetch_sub(1, Relaxed);
        } else if after && !before {
            let others = self.finished.fetch_add(1, Relaxed);
            if others >= limits::TERMINATED_PODS {
                self.too_many(queue);
            }
        }
        let Some(pod) = new else { return };
        // A pod listed before its node looks like an orphan for a moment: the second look decides.
        if pod.deleting() && (pod.spec.node_name.is_none() || self.out_of_service(pod)) {
            queue.add(pod.key());
        } else if old.is_none_or(|old| old.spec.node_name != pod.spec.node_name) && self.orphaned(pod) {
            queue.add_after(pod.key(), limits::ORPHAN_QUARANTINE);
        }
    }

    /// The oldest finished pods beyond the limit go, a tenth at a time so that this is rare.
    fn too_many(&self, queue: &Queue<Key>) {
        let mut finished: Vec<_> =
            self.pods.all().into_iter().filter(|pod| pod.finished() && !pod.deleting()).collect();
        finished.sort_by_key(|pod| pod.created());
        for pod in finished.iter().take(limits::TERMINATED_PODS / 10) {
            queue.add(Key::new(pod.ns(), pod.name()));
        }
    }

    /// Whether someone declared the pod's node, which is not ready, out of service (KEP-2268).
    fn out_of_service(&self, pod: &Pod) -> bool {
        let node = pod.spec.node_name.as_deref().and_then(|node| self.nodes.get(&Key::new("", node)));
        node.is_some_and(|node| out_of_service(&node))
    }

    fn orphaned(&self, pod: &Pod) -> bool {
        pod.spec.node_name.as_deref().is_some_and(|node| self.nodes.get(&Key::new("", node)).is_none())
    }
}

fn out_of_service(node: &Node) -> bool {
    super::health::ready(node) != "True" && node.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE)
}

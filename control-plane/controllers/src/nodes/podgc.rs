//! Clears away pods nobody else will: those of nodes that are gone, those being deleted that never had a node, and the
//! oldest finished ones when there are too many.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::json;

use super::patch_strategic;
use crate::context::Context;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::types::{Node, Pod};

const NAME: &str = "pod-garbage-collector-controller";

struct Controller {
    client: Client,
    context: Context,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    queue: Queue<Key>,
    finished: std::sync::atomic::AtomicUsize,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, nodes: &Informer<Node>, pods: &Informer<Pod>) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        nodes: nodes.store.clone(),
        pods: pods.store.clone(),
        queue: Queue::default(),
        finished: Default::default(),
    });
    let watching = controller.clone();
    nodes.on_change(move |old, new| {
        if let (Some(node), None) = (old, new) {
            for pod in watching.pods.indexed(&format!("node/{}", node.name())) {
                watching.queue.add_after(pod.key(), limits::ORPHAN_QUARANTINE);
            }
        }
    });
    let watching = controller.clone();
    pods.on_change(move |old, new| watching.pod_changed(old, new));
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.nodes.synced().await;
        controller.pods.synced().await;
        // Pods may have been listed before their nodes.
        for pod in controller.pods.all().iter().filter(|pod| controller.orphaned(pod)) {
            controller.queue.add_after(pod.key(), limits::ORPHAN_QUARANTINE);
        }
        queue::work(NAME, queue, limits::WORKERS, shutdown, |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    });
}

impl Controller {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        use std::sync::atomic::Ordering::Relaxed;
        let finished = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| pod.finished());
        let (before, after) = (finished(old), finished(new));
        if before && !after {
            self.finished.fetch_sub(1, Relaxed);
        } else if after && !before {
            let others = self.finished.fetch_add(1, Relaxed);
            if others >= limits::TERMINATED_PODS {
                self.too_many();
            }
        }
        let Some(pod) = new else { return };
        if pod.deleting() && pod.spec.node_name.is_none() {
            self.queue.add(pod.key());
        } else if old.is_none_or(|old| old.spec.node_name != pod.spec.node_name) && self.orphaned(pod) {
            self.queue.add_after(pod.key(), limits::ORPHAN_QUARANTINE);
        }
    }

    /// The oldest finished pods beyond the limit go, a tenth at a time so that this is rare.
    fn too_many(&self) {
        let mut finished: Vec<_> =
            self.pods.all().into_iter().filter(|pod| pod.finished() && !pod.deleting()).collect();
        finished.sort_by_key(|pod| pod.created());
        for pod in finished.iter().take(limits::TERMINATED_PODS / 10) {
            self.queue.add(Key::new(pod.ns(), pod.name()));
        }
    }

    fn orphaned(&self, pod: &Pod) -> bool {
        pod.spec.node_name.as_deref().is_some_and(|node| self.nodes.get(&Key::new("", node)).is_none())
    }

    async fn sync(&self, key: &Key) -> anyhow::Result<()> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let crowded = self.finished.load(std::sync::atomic::Ordering::Relaxed) > limits::TERMINATED_PODS;
        if self.orphaned(&pod) {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            if super::exists(&self.client, node).await? {
                self.queue.add_after(key.clone(), Duration::from_secs(1));
                return Ok(());
            }
            if !pod.finished() {
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists", "lastTransitionTime": format!("{:.0}", self.context.now()),
                });
                patch_strategic(&self.client, &*pod, json!({"phase": "Failed", "conditions": [condition]})).await?;
            }
        } else if !(pod.deleting() && pod.spec.node_name.is_none() || pod.finished() && crowded) {
            return Ok(());
        }
        Ok(rest::delete_now(&self.client, &*pod).await?)
    }
}

//! DaemonSets: a pod on every node that fits. [`plan`] decides.

mod plan;

use std::sync::Arc;

use kube::Client;
use kube::core::{Selector, SelectorExt};

use crate::claim::claim;
use crate::context::Context;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::pods::PodControl;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::revisions;
use crate::types::{ControllerRevision, DaemonSet, Node, Pod};

const NAME: &str = "daemonset-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    sets: Arc<Store<DaemonSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
    queue: Queue<Key>,
}

/// Starts the controller.
pub(crate) fn start(
    context: &Context,
    sets: &Informer<DaemonSet>,
    revisions: &Informer<ControllerRevision>,
    pods: &Informer<Pod>,
    nodes: &Informer<Node>,
) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        sets: sets.store.clone(),
        revisions: revisions.store.clone(),
        pods: pods.store.clone(),
        nodes: nodes.store.clone(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            queue.add(set.key());
        }
    });
    controller.control.follow::<DaemonSet>(pods, controller.queue.clone());
    let watching = controller.clone();
    nodes.on_change(move |old, new| {
        let fitness = |node: &Node| (node.labels().clone(), node.spec.taints.clone(), node.spec.unschedulable);
        if old.map(|node| fitness(node)) != new.map(|node| fitness(node)) {
            watching.sets.all().iter().for_each(|set| watching.queue.add(set.key()));
        }
    });
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.sets.synced().await;
        controller.revisions.synced().await;
        controller.pods.synced().await;
        controller.nodes.synced().await;
        queue::work(NAME, queue, limits::WORKERS, shutdown, |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<()> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            return Ok(());
        };
        let Some(selector) = Selector::try_from(set.spec.selector.clone()).ok().filter(|s| !s.selects_all()) else {
            return Ok(());
        };
        let settled = self.control.expectations.met(key);
        let orphans = self.pods.indexed(&format!("orphan/{}", set.ns()));
        let orphans = orphans.into_iter().filter(|pod| selector.matches(pod.labels())).collect();
        let pods = claim(&self.client, &*set, &selector, &self.pods, orphans).await?;
        if set.deleting() || !settled {
            return Ok(());
        }
        let history = revisions::current(&self.client, &self.revisions, &*set, &set.spec.template).await?;
        let plan = plan::plan(&set, &self.nodes.all(), &pods, &history.hash, self.context.now());
        for pod in &plan.failed {
            let node = pod.node().unwrap_or_default();
            let message =
                format!("Found failed daemon pod {}/{} on node {node}, will try to kill it", pod.ns(), pod.name());
            self.control.events.warning(&*set, "FailedDaemonPod", message);
        }
        let mut outcome = Ok(());
        if !plan.delete.is_empty() {
            outcome = self.control.delete(key, &*set, plan.delete).await;
        } else if !plan.create.is_empty() {
            let nodes = plan.create.iter().take(limits::BURST_REPLICAS);
            let bodies = nodes.map(|node| plan::pod_body(&set, &history.hash, node)).collect();
            outcome = self.control.create(key, &*set, bodies).await;
        }
        if plan.status != set.status {
            rest::patch_status(&self.client, &*set, serde_json::to_value(&plan.status)?).await?;
        }
        let live: Vec<String> =
            pods.iter().filter_map(|pod| pod.labels().get(revisions::HASH_LABEL).cloned()).collect();
        history.trim(&self.client, set.spec.revision_history_limit.unwrap_or(10), &live).await?;
        Ok(outcome?)
    }
}

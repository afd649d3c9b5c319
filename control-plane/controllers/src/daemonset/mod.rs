//! DaemonSets: a pod on every node that fits. [`plan`] decides.

mod backoff;
mod plan;
mod update;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::core::{Selector, SelectorExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::claim::claim;
use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::pods::{self, PodControl};
use crate::queue::Key;
use crate::rest;
use crate::revisions::{self, HASH_LABEL};
use crate::types::{ControllerRevision, DaemonSet, Node, Pod};
use backoff::Backoff;

const NAME: &str = "daemonset-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    sets: Arc<Store<DaemonSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
    failures: Mutex<Backoff>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        sets: wiring.drives(&all.daemon_sets),
        revisions: wiring.reads(&all.revisions),
        pods: wiring.reads(&all.pods),
        nodes: wiring.reads(&all.nodes),
        failures: Mutex::default(),
    });
    controller.control.follow::<DaemonSet>(&wiring, &all.pods);
    pods::adopters(&wiring, &all.pods, &controller.sets, selector);
    let sets = controller.sets.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| {
        let fitness = |node: &Node| (node.labels().clone(), node.spec.taints.clone(), node.spec.unschedulable);
        if old.map(|node| fitness(node)) != new.map(|node| fitness(node)) {
            sets.all().iter().for_each(|set| queue.add(set.key()));
        }
    });
    wiring.run(context, NAME, controller);
}

fn selector(set: &DaemonSet) -> Option<Selector> {
    pods::selector(&set.spec.selector)
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            self.failures.lock().forget(key);
            return Ok(None);
        };
        let Some(selector) = selector(&set) else {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.events.warning(&*set, "SelectingAll", message.into());
            return Ok(None);
        };
        let settled = self.control.expectations.met(key);
        let orphans = self.pods.indexed(&format!("orphan/{}", set.ns()));
        let orphans = orphans.into_iter().filter(|pod| selector.matches(pod.labels())).collect();
        let pods = claim(&self.client, &*set, &selector, &self.pods, orphans).await?;
        if set.deleting() || !settled {
            return Ok(None);
        }
        let template = &set.spec.template;
        let history = revisions::current(&self.client, &self.revisions, &*set, template, HASH_LABEL).await?;
        let now = self.context.now();
        let mut plan = plan::plan(&set, &self.nodes.all(), &pods, &history.hash, now);
        let wait = self.finished(key, &set, &mut plan);
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
        let live: Vec<String> = pods.iter().filter_map(|pod| pod.labels().get(HASH_LABEL).cloned()).collect();
        history.trim(&self.client, set.spec.revision_history_limit.unwrap_or(10), &live).await?;
        outcome?;
        let available = pods::next_available(&pods, set.spec.min_ready_seconds.unwrap_or(0), now);
        Ok(wait.into_iter().chain(available).min())
    }
}

impl Controller {
    /// Finished pods are deleted to be replaced, a node's next one later than the one before. How long the next waits.
    fn finished(&self, key: &Key, set: &DaemonSet, plan: &mut plan::Plan) -> Option<Duration> {
        let mut wait: Option<Duration> = None;
        for pod in std::mem::take(&mut plan.finished) {
            let node = pod.node().unwrap_or_default();
            if let Err(left) = self.failures.lock().admit(key, node, Instant::now()) {
                wait = Some(wait.map_or(left, |known| known.min(left)));
                continue;
            }
            let (namespace, name) = (pod.ns(), pod.name());
            if pod.status.phase.as_deref() == Some("Failed") {
                let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
                self.control.events.warning(set, "FailedDaemonPod", message);
            } else {
                let message =
                    format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
                self.control.events.normal(set, "SucceededDaemonPod", message);
            }
            plan.delete.push(pod);
        }
        wait
    }
}

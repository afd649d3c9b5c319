//! Deployments: replaces pods by new ReplicaSets step by step. The decisions are in [`plan`], [`rolling`] and [`status`];
//! this module gathers what they need and carries them out.

pub(crate) mod hash;
mod plan;
mod rolling;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::claim::claim;
use crate::context::Context;
use crate::events::Recorder;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::types::{Deployment, Pod, ReplicaSet};
use plan::{Action, Observed};

const NAME: &str = "deployment-controller";

struct Controller {
    client: Client,
    context: Context,
    events: Recorder,
    deployments: Arc<Store<Deployment>>,
    sets: Arc<Store<ReplicaSet>>,
    pods: Arc<Store<Pod>>,
    queue: Queue<Key>,
}

/// Starts the controller.
pub(crate) fn start(
    context: &Context,
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    pods: &Informer<Pod>,
) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(NAME),
        deployments: deployments.store.clone(),
        sets: sets.store.clone(),
        pods: pods.store.clone(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    deployments.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            queue.add(object.key());
        }
    });
    let watching = controller.clone();
    sets.on_change(move |old, new| watching.set_changed(old, new));
    let watching = controller.clone();
    pods.on_change(move |old, new| {
        if let (Some(pod), None) = (old, new) {
            watching.pod_gone(pod);
        }
    });
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.deployments.synced().await;
        controller.sets.synced().await;
        controller.pods.synced().await;
        queue::work(NAME, queue, limits::WORKERS, shutdown, |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    });
}

impl Controller {
    fn set_changed(&self, old: Option<&Arc<ReplicaSet>>, new: Option<&Arc<ReplicaSet>>) {
        for set in [old, new].into_iter().flatten() {
            if let Some(owner) = set.controller().filter(|owner| owner.kind == "Deployment") {
                self.queue.add(Key::new(set.ns(), &owner.name));
            }
        }
        let Some(orphan) = new.filter(|set| set.controller().is_none() && !set.deleting()) else { return };
        for deployment in self.deployments.namespace(orphan.ns()) {
            if selector(&deployment).is_some_and(|s| s.matches(orphan.labels())) {
                self.queue.add(deployment.key());
            }
        }
    }

    /// A Deployment that recreates waits for the last old pod to go.
    fn pod_gone(&self, pod: &Pod) {
        let Some(owner) = pod.controller().filter(|owner| owner.kind == "ReplicaSet") else { return };
        let set = self.sets.get(&Key::new(pod.ns(), &owner.name));
        let Some(deployment) = set.as_ref().and_then(|set| set.controller()) else { return };
        let key = Key::new(pod.ns(), &deployment.name);
        if self.deployments.get(&key).is_some_and(|d| rolling::recreates(&d)) {
            self.queue.add(key);
        }
    }

    async fn sync(&self, key: &Key) -> anyhow::Result<()> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(()) };
        let Some(selector) = selector(&deployment) else {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*deployment, "SelectingAll", message.into());
            return Ok(());
        };
        let orphans = self.sets.indexed(&format!("orphan/{}", deployment.ns()));
        let sets = claim(&self.client, &*deployment, &selector, &self.sets, orphans).await?;
        let observed = Observed {
            deployment: &deployment,
            sets: &sets,
            old_pods_remain: rolling::recreates(&deployment) && self.old_pods_remain(&deployment, &sets),
            now: self.context.now(),
        };
        let mut plan = plan::plan(&observed);
        let mut outcome = Ok(());
        for action in plan.actions {
            outcome = self.carry_out(&deployment, action, &mut plan.status.collision_count).await;
            if outcome.is_err() {
                break;
            }
        }
        if plan.status != deployment.status {
            rest::patch_status(&self.client, &*deployment, serde_json::to_value(&plan.status)?).await?;
        }
        if let Some(seconds) = plan.check_after {
            self.queue.add_after(key.clone(), Duration::from_secs(seconds.unsigned_abs()));
        }
        outcome
    }

    fn old_pods_remain(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
        let newest = plan::newest(sets, &deployment.spec.template.value());
        let old = sets.iter().filter(|set| newest.as_ref().is_none_or(|n| n.uid() != set.uid()));
        let mut pods = old.flat_map(|set| self.pods.indexed(&format!("owner/{}", set.uid())));
        pods.any(|pod| !pod.finished())
    }

    async fn carry_out(
        &self,
        deployment: &Arc<Deployment>,
        action: Action,
        collisions: &mut Option<i32>,
    ) -> anyhow::Result<()> {
        match action {
            Action::Create { name, body, size } => {
                match rest::create::<ReplicaSet>(&self.client, deployment.ns(), body).await {
                    Ok(_) if size > 0 => self.scaled(deployment, &name, 0, size),
                    Ok(_) => {}
                    Err(error) if rest::namespace_terminating(&error) => {}
                    Err(error) if rest::is(&error, 409) => self.collided(deployment, &name, collisions).await?,
                    Err(error) => {
                        let words = rest::words(&error);
                        let message = format!("Failed to create new replica set \"{name}\": {words}");
                        self.events.warning(&**deployment, "FailedCreate", message);
                        return Err(error.into());
                    }
                }
            }
            Action::Scale { rs, from, to, patch } => {
                rest::patch(&self.client, &*rs, patch).await?;
                if from != to {
                    self.scaled(deployment, rs.name(), from, to);
                }
            }
            Action::Refresh { rs, patch } => {
                rest::patch(&self.client, &*rs, patch).await?;
            }
            Action::Revision(revision) => {
                let annotations = json!({plan::REVISION: revision});
                rest::patch(&self.client, &**deployment, json!({"metadata": {"annotations": annotations}})).await?;
            }
            Action::Cleanup(rs) => rest::delete_background(&self.client, &*rs).await?,
        }
        Ok(())
    }

    /// The name is taken: by ourselves a moment ago, or by another template with the same hash.
    async fn collided(&self, deployment: &Deployment, name: &str, collisions: &mut Option<i32>) -> anyhow::Result<()> {
        let existing = rest::fresh::<ReplicaSet>(&self.client, deployment.ns(), name).await?;
        let template = deployment.spec.template.value();
        let ours = existing.is_none_or(|rs| {
            rs.controlled_by(deployment.uid()) && hash::same_template(&rs.spec.template.value(), &template)
        });
        if !ours {
            *collisions = Some(collisions.unwrap_or(0) + 1);
        }
        Ok(())
    }

    fn scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events.normal(deployment, "ScalingReplicaSet", message);
    }
}

fn selector(deployment: &Deployment) -> Option<Selector> {
    Selector::try_from(deployment.spec.selector.clone()).ok().filter(|s| !s.selects_all())
}

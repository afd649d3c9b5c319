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
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::{Key, Queue};
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
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(NAME),
        deployments: wiring.drives(&all.deployments),
        sets: wiring.reads(&all.replica_sets),
        pods: wiring.reads(&all.pods),
    });
    let watching = controller.clone();
    wiring.wakes(&all.replica_sets, move |old, new, queue| watching.set_changed(old, new, queue));
    let watching = controller.clone();
    wiring.wakes(&all.pods, move |old, new, queue| {
        if let (Some(pod), None) = (old, new) {
            watching.pod_gone(pod, queue);
        }
    });
    wiring.run(context, NAME, controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(None) };
        let Some(selector) = selector(&deployment) else {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*deployment, "SelectingAll", message.into());
            return Ok(None);
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
        outcome?;
        Ok(plan.check_after.map(|seconds| Duration::from_secs(seconds.unsigned_abs())))
    }
}

impl Controller {
    fn set_changed(&self, old: Option<&Arc<ReplicaSet>>, new: Option<&Arc<ReplicaSet>>, queue: &Queue<Key>) {
        for set in [old, new].into_iter().flatten() {
            if let Some(owner) = set.controller().filter(|owner| owner.kind == "Deployment") {
                queue.add(Key::new(set.ns(), &owner.name));
            }
        }
        let Some(orphan) = new.filter(|set| set.controller().is_none() && !set.deleting()) else { return };
        for deployment in self.deployments.namespace(orphan.ns()) {
            if selector(&deployment).is_some_and(|s| s.matches(orphan.labels())) {
                queue.add(deployment.key());
            }
        }
    }

    /// A Deployment that recreates waits for the last old pod to go.
    fn pod_gone(&self, pod: &Pod, queue: &Queue<Key>) {
        let Some(owner) = pod.controller().filter(|owner| owner.kind == "ReplicaSet") else { return };
        let set = self.sets.get(&Key::new(pod.ns(), &owner.name));
        let Some(deployment) = set.as_ref().and_then(|set| set.controller()) else { return };
        let key = Key::new(pod.ns(), &deployment.name);
        if self.deployments.get(&key).is_some_and(|d| rolling::recreates(&d)) {
            queue.add(key);
        }
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
    crate::pods::selector(&deployment.spec.selector)
}

//! StatefulSets: pods with lasting names, one after the other. [`plan`] decides; [`claims`] knows whose the volume claims
//! are.

mod claims;
mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::core::Selector;
use serde_json::json;

use crate::claim::claim;
use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::pods::{self, PodControl};
use crate::queue::Key;
use crate::rest;
use crate::revisions::{self, STATEFUL_HASH_LABEL};
use crate::types::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet, Template};

const NAME: &str = "statefulset-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    sets: Arc<Store<StatefulSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    pods: Arc<Store<Pod>>,
    claims: Arc<Store<PersistentVolumeClaim>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        sets: wiring.drives(&all.stateful_sets),
        revisions: wiring.reads(&all.revisions),
        pods: wiring.reads(&all.pods),
        claims: wiring.reads(&all.claims),
    });
    controller.control.follow::<StatefulSet>(&wiring, &all.pods);
    pods::adopters(&wiring, &all.pods, &controller.sets, selector);
    wiring.run(context, NAME, controller);
}

fn selector(set: &StatefulSet) -> Option<Selector> {
    pods::selector(&set.spec.selector)
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            return Ok(None);
        };
        let Some(selector) = selector(&set) else { return Ok(None) };
        if set.deleting() || !self.control.expectations.met(key) {
            return Ok(None);
        }
        let orphans = self.pods.indexed(&format!("orphan/{}", set.ns()));
        let orphans = orphans.into_iter().filter(|pod| plan::ordinal(&set, pod).is_some()).collect();
        let pods = claim(&self.client, &*set, &selector, &self.pods, orphans).await?;
        let template = &set.spec.template;
        let history = revisions::current(&self.client, &self.revisions, &*set, template, STATEFUL_HASH_LABEL).await?;
        let update = format!("{}-{}", set.name(), history.hash);
        let now = self.context.now();
        let plan = plan::plan(&set, &pods, &update, now);
        self.own_claims(&set, &pods).await?;
        let mut outcome = Ok(());
        if !plan.delete.is_empty() {
            self.tell(&set, &plan.delete);
            outcome = self.control.delete(key, &*set, plan.delete).await;
        } else if !plan.create.is_empty() {
            let mut bodies = Vec::new();
            for number in plan.create.into_iter().take(limits::BURST_REPLICAS) {
                self.make_claims(&set, number).await?;
                let revision = plan::revision_for(&set, &plan.status, number);
                let template = self.template(&set, revision);
                bodies.push(plan::pod_body(&set, &template, revision, number));
            }
            outcome = self.control.create(key, &*set, bodies).await;
        }
        if plan.status != set.status {
            rest::patch_status(&self.client, &*set, serde_json::to_value(&plan.status)?).await?;
        }
        let mut live: Vec<String> = pods.iter().filter_map(|pod| plan::revision(pod).map(str::to_owned)).collect();
        live.extend([plan.status.current_revision, plan.status.update_revision]);
        history.trim(&self.client, set.spec.revision_history_limit.unwrap_or(10), &live).await?;
        outcome?;
        Ok(pods::next_available(&pods, set.spec.min_ready_seconds.unwrap_or(0), now))
    }
}

impl Controller {
    fn tell(&self, set: &StatefulSet, victims: &[Arc<Pod>]) {
        for pod in victims.iter().filter(|pod| pod.finished()) {
            let (namespace, name) = (set.ns(), set.name());
            let failed = pod.status.phase.as_deref() == Some("Failed");
            let (how, reason) =
                if failed { ("failed", "RecreatingFailedPod") } else { ("terminated", "RecreatingTerminatedPod") };
            let message = format!("StatefulSet {namespace}/{name} is recreating {how} Pod {}", pod.name());
            self.control.events.warning(set, reason, message);
        }
    }

    /// The template of a revision by name; the newest when that revision is gone.
    fn template(&self, set: &StatefulSet, revision: &str) -> Template {
        let kept = self.revisions.get(&Key::new(set.ns(), revision)).filter(|r| r.controlled_by(set.uid()));
        let Some(kept) = kept else { return set.spec.template.clone() };
        let mut template = kept.data.value()["spec"]["template"].take();
        if let Some(template) = template.as_object_mut() {
            template.shift_remove("$patch");
        }
        Template(json!(template).to_string().into())
    }

    async fn make_claims(&self, set: &StatefulSet, number: i32) -> anyhow::Result<()> {
        for body in claims::bodies(set, number) {
            match rest::create::<PersistentVolumeClaim>(&self.client, set.ns(), body).await {
                Err(error) if !rest::is(&error, 409) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Claims go with the StatefulSet or with a pod that is scaled away, if the user wants it so.
    async fn own_claims(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> anyhow::Result<()> {
        for pod in pods {
            for name in claims::names(set, pod.name()) {
                let Some(claim) = self.claims.get(&Key::new(set.ns(), &name)) else { continue };
                if let Some(owners) = claims::owners(set, pod, &claim) {
                    let version = claim.meta_version();
                    let body = json!({"metadata": {"ownerReferences": owners, "resourceVersion": version}});
                    rest::patch(&self.client, &*claim, body).await?;
                }
            }
        }
        Ok(())
    }
}

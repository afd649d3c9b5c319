//! StatefulSets: pods with lasting names, one after the other. [`plan`] decides.

mod plan;

use std::sync::Arc;

use kube::Client;
use kube::core::Selector;
use serde_json::json;

use crate::claim::claim;
use crate::context::Context;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::pods::PodControl;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::revisions;
use crate::types::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet, Template};

const NAME: &str = "statefulset-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    sets: Arc<Store<StatefulSet>>,
    revisions: Arc<Store<ControllerRevision>>,
    pods: Arc<Store<Pod>>,
    queue: Queue<Key>,
}

/// Starts the controller.
pub(crate) fn start(
    context: &Context,
    sets: &Informer<StatefulSet>,
    revisions: &Informer<ControllerRevision>,
    pods: &Informer<Pod>,
) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        sets: sets.store.clone(),
        revisions: revisions.store.clone(),
        pods: pods.store.clone(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            queue.add(set.key());
        }
    });
    controller.control.follow::<StatefulSet>(pods, controller.queue.clone());
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.sets.synced().await;
        controller.revisions.synced().await;
        controller.pods.synced().await;
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
        if set.deleting() || !self.control.expectations.met(key) {
            return Ok(());
        }
        let orphans = self.pods.indexed(&format!("orphan/{}", set.ns()));
        let prefix = format!("{}-", set.name());
        let orphans = orphans.into_iter().filter(|pod| pod.name().starts_with(&prefix)).collect();
        let pods = claim(&self.client, &*set, &selector, &self.pods, orphans).await?;
        let history = revisions::current(&self.client, &self.revisions, &*set, &set.spec.template).await?;
        let update = format!("{}-{}", set.name(), history.hash);
        let plan = plan::plan(&set, &pods, &update, self.context.now());
        let mut outcome = Ok(());
        if !plan.delete.is_empty() {
            outcome = self.control.delete(key, &*set, plan.delete).await;
        } else if !plan.create.is_empty() {
            let mut bodies = Vec::new();
            for number in plan.create.into_iter().take(limits::BURST_REPLICAS) {
                self.claims(&set, number).await?;
                let revision = plan::revision_for(&set, &plan.status, number);
                let template = self.template(&set, revision);
                bodies.push(plan::pod_body(&set, &template, revision, number));
            }
            outcome = self.control.create(key, &*set, bodies).await;
        }
        if plan.status != set.status {
            rest::patch_status(&self.client, &*set, serde_json::to_value(&plan.status)?).await?;
        }
        let name = |hash: &String| hash.strip_prefix(&prefix).unwrap_or(hash).to_owned();
        let live: Vec<String> =
            pods.iter().filter_map(|pod| pod.labels().get(revisions::HASH_LABEL).map(name)).collect();
        history.trim(&self.client, set.spec.revision_history_limit.unwrap_or(10), &live).await?;
        Ok(outcome?)
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

    async fn claims(&self, set: &StatefulSet, number: i32) -> anyhow::Result<()> {
        for body in plan::claims(set, number) {
            match rest::create::<PersistentVolumeClaim>(&self.client, set.ns(), body).await {
                Err(error) if !rest::is(&error, 409) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

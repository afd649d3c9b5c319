//! ReplicaSets and ReplicationControllers: keeps the wanted number of pods. The decisions are in [`plan`]; this module
//! gathers what they need from the informers and carries them out.

pub(crate) mod plan;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::Client;
use kube::core::SelectorExt;

use crate::claim::claim;
use crate::context::Context;
use crate::events::Recorder;
use crate::expectations::Expectations;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::types::{Pod, Selectable};
use plan::Step;

struct Controller<K> {
    client: Client,
    context: Context,
    events: Recorder,
    owners: Arc<Store<K>>,
    pods: Arc<Store<Pod>>,
    expectations: Expectations,
    queue: Queue<Key>,
}

/// Starts the controller of one of the two kinds.
pub(crate) fn start<K: Selectable>(context: &Context, name: &'static str, owners: &Informer<K>, pods: &Informer<Pod>) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(name),
        owners: owners.store.clone(),
        pods: pods.store.clone(),
        expectations: Expectations::default(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    owners.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            queue.add(object.key());
        }
    });
    let watching = controller.clone();
    pods.on_change(move |old, new| watching.pod_changed(old, new));
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.owners.synced().await;
        controller.pods.synced().await;
        queue::work(name, queue, limits::WORKERS, shutdown, |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    });
}

impl<K: Selectable> Controller<K> {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        for pod in [old, new].into_iter().flatten() {
            let Some(owner) = self.owner_of(pod) else { continue };
            let appeared = old.is_none();
            let left = new.is_none_or(|pod| pod.deleting());
            if appeared {
                self.expectations.created(&owner, 1);
            }
            if left {
                self.expectations.deleted(&owner, pod.uid());
            }
            self.queue.add(owner);
        }
        let orphan = new.filter(|pod| pod.controller().is_none() && !pod.deleting());
        if let Some(pod) = orphan
            && old.is_none_or(|old| old.labels() != pod.labels() || old.controller().is_some())
        {
            for owner in self.owners.namespace(pod.ns()) {
                if owner.selector().is_some_and(|s| s.matches(pod.labels())) {
                    self.queue.add(owner.key());
                }
            }
        }
    }

    fn owner_of(&self, pod: &Pod) -> Option<Key> {
        let owner = pod.controller()?;
        (owner.kind == K::kind(&()) && owner.api_version == K::api_version(&()))
            .then(|| Key::new(pod.ns(), &owner.name))
    }

    async fn sync(&self, key: &Key) -> anyhow::Result<()> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(());
        };
        let Some(selector) = owner.selector() else { return Ok(()) };
        // Asked before the pods are read: what was seen by then is in the store.
        let settled = self.expectations.met(key);
        let orphans = self.pods.indexed(&format!("orphan/{}", owner.ns()));
        let owned = claim(&self.client, &*owner, &selector, &self.pods, orphans).await?;
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| pod.active()).cloned().collect();
        let outcome = if settled && !owner.deleting() { self.scale(key, &owner, active).await } else { Ok(()) };
        let failure = outcome.as_ref().err().map(|(reason, error)| (*reason, error.to_string()));
        let now = self.context.now();
        let status = plan::status(&*owner, &owned, failure, now);
        if status != *owner.status() {
            rest::patch_status(&self.client, &*owner, serde_json::to_value(&status)?).await?;
        }
        if let Some(seconds) = plan::next_available(&*owner, &owned, now) {
            self.queue.add_after(key.clone(), Duration::from_secs(seconds.unsigned_abs()));
        }
        outcome.map_err(|(_, error)| error.into())
    }

    async fn scale(&self, key: &Key, owner: &Arc<K>, active: Vec<Arc<Pod>>) -> Result<(), (&'static str, kube::Error)> {
        match plan::step(owner.replicas(), active.len(), limits::BURST_REPLICAS) {
            Step::Keep => Ok(()),
            Step::Create(count) => self.create(key, owner, count).await.map_err(|error| ("FailedCreate", error)),
            Step::Delete(count) => {
                let related = self.related(owner);
                let victims = plan::victims(active, &related, count, self.context.now());
                self.delete(key, owner, victims).await.map_err(|error| ("FailedDelete", error))
            }
        }
    }

    /// Active pods of all owners of the same Deployment, or just of this one.
    fn related(&self, owner: &K) -> Vec<Arc<Pod>> {
        let mut uids = vec![owner.uid().to_owned()];
        if let Some(parent) = owner.controller() {
            uids = self.owners.indexed(&format!("owner/{}", parent.uid)).iter().map(|o| o.uid().to_owned()).collect();
        }
        let pods = uids.iter().flat_map(|uid| self.pods.indexed(&format!("owner/{uid}")));
        pods.filter(|pod| pod.active()).collect()
    }

    /// Creates pods in batches that double, so that a failure that hits all of them costs one attempt and not hundreds.
    async fn create(&self, key: &Key, owner: &Arc<K>, count: usize) -> kube::Result<()> {
        self.expectations.expect_creations(key, count);
        let body = plan::pod_body(owner.template(), owner.name(), owner.as_controller());
        let (mut left, mut batch) = (count, limits::SLOW_START_BATCH);
        while left > 0 {
            let now = batch.min(left);
            let results: Vec<kube::Result<Pod>> = stream::iter(0..now)
                .map(|_| rest::create::<Pod>(&self.client, owner.ns(), body.clone()))
                .buffer_unordered(limits::WRITES_IN_FLIGHT)
                .collect()
                .await;
            left -= now;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => self.events.normal(&**owner, "SuccessfulCreate", format!("Created pod: {}", pod.name())),
                    Err(error) => {
                        self.expectations.created(key, 1);
                        if !rest::namespace_terminating(&error) {
                            self.events.warning(&**owner, "FailedCreate", format!("Error creating: {}", words(&error)));
                        }
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                self.expectations.created(key, left);
                return if rest::namespace_terminating(&error) { Ok(()) } else { Err(error) };
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, owner: &Arc<K>, victims: Vec<Arc<Pod>>) -> kube::Result<()> {
        self.expectations.expect_deletions(key, victims.iter().map(|pod| pod.uid().to_owned()));
        let results: Vec<(Arc<Pod>, kube::Result<()>)> = stream::iter(victims)
            .map(|pod| async move {
                let result = rest::delete(&self.client, &*pod).await;
                (pod, result)
            })
            .buffer_unordered(limits::WRITES_IN_FLIGHT)
            .collect()
            .await;
        let mut outcome = Ok(());
        for (pod, result) in results {
            match result {
                Ok(()) => self.events.normal(&**owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())),
                Err(error) => {
                    self.expectations.deleted(key, pod.uid());
                    self.events.warning(&**owner, "FailedDelete", format!("Error deleting: {}", words(&error)));
                    outcome = Err(error);
                }
            }
        }
        outcome
    }
}

/// The API's own sentence, without the client's wrapping.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

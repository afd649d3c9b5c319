//! ReplicaSets and ReplicationControllers: keeps the wanted number of pods. The decisions are in [`plan`]; this module
//! gathers what they need from the informers and carries them out.

pub(crate) mod plan;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use crate::claim::claim;
use crate::context::Context;
use crate::harness::{Reconcile, Wiring};
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::pods::{self, PodControl};
use crate::queue::Key;
use crate::rest;
use crate::types::{Pod, Selectable};
use plan::Step;

struct Controller<K> {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    owners: Arc<Store<K>>,
    pods: Arc<Store<Pod>>,
}

/// Starts the controller of one of the two kinds.
pub(crate) fn start<K: Selectable>(context: &Context, name: &'static str, owners: &Informer<K>, pods: &Informer<Pod>) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, name),
        owners: wiring.drives(owners),
        pods: wiring.reads(pods),
    });
    controller.control.follow::<K>(&wiring, pods);
    pods::adopters(&wiring, pods, &controller.owners, K::selector);
    wiring.run(context, name, controller);
}

impl<K: Selectable> Reconcile for Controller<K> {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(owner) = self.owners.get(key) else {
            self.control.expectations.forget(key);
            return Ok(None);
        };
        let Some(selector) = owner.selector() else { return Ok(None) };
        // Asked before the pods are read: what was seen by then is in the store.
        let settled = self.control.expectations.met(key);
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
        outcome.map_err(|(_, error)| error)?;
        Ok(pods::next_available(&owned, owner.min_ready(), now))
    }
}

impl<K: Selectable> Controller<K> {
    async fn scale(&self, key: &Key, owner: &Arc<K>, active: Vec<Arc<Pod>>) -> Result<(), (&'static str, kube::Error)> {
        match plan::step(owner.replicas(), active.len(), limits::BURST_REPLICAS) {
            Step::Keep => Ok(()),
            Step::Create(count) => {
                let body = pods::body(owner.template(), owner.name(), owner.as_controller());
                let created = self.control.create(key, &**owner, vec![body; count]).await;
                created.map_err(|error| ("FailedCreate", error))
            }
            Step::Delete(count) => {
                let related = self.related(owner);
                let victims = plan::victims(active, &related, count, self.context.now());
                self.control.delete(key, &**owner, victims).await.map_err(|error| ("FailedDelete", error))
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
}

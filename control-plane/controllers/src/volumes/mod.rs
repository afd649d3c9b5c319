//! Persistent volumes made by hand: binds claims to them, says what became of both, and keeps those in use from being
//! deleted ([`protection`]). [`matching`] chooses. Volumes are never made or wiped here: that is for their drivers.

mod matching;
pub(crate) mod protection;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::json;

use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{PersistentVolume, PersistentVolumeClaim, Pod, StorageClass};

const NAME: &str = "persistentvolume-controller";
const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

struct Claims {
    client: Client,
    events: Recorder,
    claims: Arc<Store<PersistentVolumeClaim>>,
    volumes: Arc<Store<PersistentVolume>>,
    classes: Arc<Store<StorageClass>>,
    pods: Arc<Store<Pod>>,
}

struct Volumes {
    client: Client,
    claims: Arc<Store<PersistentVolumeClaim>>,
    volumes: Arc<Store<PersistentVolume>>,
}

/// Starts the controllers of claims and of volumes.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let claims = Arc::new(Claims {
        client: context.client.clone(),
        events: context.events.of(NAME),
        claims: wiring.drives(&all.claims),
        volumes: wiring.reads(&all.volumes),
        classes: wiring.reads(&all.classes),
        pods: wiring.reads(&all.pods),
    });
    let waiting = claims.claims.clone();
    wiring.wakes(&all.volumes, move |old, new, queue| {
        for reference in [old, new].into_iter().flatten().filter_map(|volume| volume.spec.claim_ref.as_ref()) {
            queue.add(Key::new(&reference.namespace, &reference.name));
        }
        if new.is_some_and(|volume| volume.spec.claim_ref.is_none()) {
            waiting.all().iter().filter(|c| c.spec.volume_name.is_none()).for_each(|claim| queue.add(claim.key()));
        }
    });
    wiring.wakes(&all.pods, |old, new, queue| {
        if let (None, Some(pod)) = (old, new) {
            pod.claims.iter().for_each(|claim| queue.add(Key::new(pod.ns(), claim)));
        }
    });
    wiring.run(context, NAME, claims);

    let mut wiring = Wiring::new();
    let volumes = Arc::new(Volumes {
        client: context.client.clone(),
        claims: wiring.reads(&all.claims),
        volumes: wiring.drives(&all.volumes),
    });
    wiring.wakes(&all.claims, |old, new, queue| {
        for volume in [old, new].into_iter().flatten().filter_map(|claim| claim.spec.volume_name.as_deref()) {
            queue.add(Key::new("", volume));
        }
    });
    wiring.run(context, "persistentvolume-phases", volumes);
}

impl Reconcile for Claims {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(claim) = self.claims.get(key).filter(|claim| !claim.deleting()) else { return Ok(None) };
        let named = claim.spec.volume_name.as_deref().filter(|name| !name.is_empty());
        let volume = match named {
            Some(name) => self.volumes.get(&Key::new("", name)),
            None if self.waits(&claim) => None,
            None => matching::best(&claim, self.volumes.all()),
        };
        let Some(volume) = volume else {
            if named.is_some() && claim.annotations().contains_key(BIND_COMPLETED) {
                self.phase(&claim, "Lost").await?;
            } else if claim.spec.storage_class_name.as_deref().unwrap_or_default().is_empty() && named.is_none() {
                let message = "no persistent volumes available for this claim and no storage class is set";
                self.events.normal(&*claim, "FailedBinding", message.into());
            }
            return Ok(None);
        };
        if matching::free_for(&volume, &claim) {
            self.bind(&claim, &volume, named.is_none()).await?;
        }
        Ok(None)
    }
}

impl Claims {
    /// Whether the claim is bound only when a pod uses it, and none does.
    fn waits(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = claim.spec.storage_class_name.as_deref().and_then(|name| self.classes.get(&Key::new("", name)));
        let first = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let used = || self.pods.namespace(claim.ns()).iter().any(|pod| pod.claims.iter().any(|c| **c == *claim.name()));
        let waits = first && !used();
        if waits {
            let message = "waiting for first consumer to be created before binding";
            self.events.normal(claim, "WaitForFirstConsumer", message.into());
        }
        waits
    }

    /// The volume is given away first: two claims never get one.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume, ours: bool) -> anyhow::Result<()> {
        let reference = volume.spec.claim_ref.as_ref();
        if reference.is_none_or(|reference| reference.uid != claim.uid()) {
            let mut metadata = json!({"resourceVersion": volume.meta_version()});
            if reference.is_none() {
                metadata["annotations"] = json!({BOUND_BY_US: "yes"});
            }
            let claim_ref = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.ns(),
                "name": claim.name(), "uid": claim.uid(), "resourceVersion": claim.meta_version()});
            rest::patch(&self.client, volume, json!({"metadata": metadata, "spec": {"claimRef": claim_ref}})).await?;
        }
        if ours || !claim.annotations().contains_key(BIND_COMPLETED) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if ours {
                annotations[BOUND_BY_US] = json!("yes");
            }
            let body = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.name()}});
            rest::patch(&self.client, claim, body).await?;
        }
        if claim.status.phase.as_deref() != Some("Bound") {
            let status =
                json!({"phase": "Bound", "accessModes": volume.spec.access_modes, "capacity": volume.spec.capacity});
            rest::patch_status(&self.client, claim, status).await?;
        }
        Ok(())
    }

    async fn phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> anyhow::Result<()> {
        if claim.status.phase.as_deref() != Some(phase) {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            self.events.warning(claim, "ClaimLost", message.into());
            rest::patch_status(&self.client, claim, json!({"phase": phase})).await?;
        }
        Ok(())
    }
}

impl Reconcile for Volumes {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(volume) = self.volumes.get(key) else { return Ok(None) };
        let claim = volume.spec.claim_ref.as_ref().map(|c| self.claims.get(&Key::new(&c.namespace, &c.name)));
        let phase = matching::phase(&volume, claim.flatten().as_deref());
        if volume.status.phase.as_deref() != Some(phase) {
            rest::patch_status(&self.client, &*volume, json!({"phase": phase})).await?;
        }
        Ok(None)
    }
}

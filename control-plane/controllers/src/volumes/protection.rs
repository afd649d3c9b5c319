//! Keeps claims that pods use, and volumes that claims have, from going: a finalizer holds them until they are free.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::{Kind, Store};
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{PersistentVolume, PersistentVolumeClaim, Pod};

struct Claims {
    client: Client,
    claims: Arc<Store<PersistentVolumeClaim>>,
    pods: Arc<Store<Pod>>,
}

struct Volumes {
    client: Client,
    volumes: Arc<Store<PersistentVolume>>,
}

/// Starts both controllers.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let claims = Arc::new(Claims {
        client: context.client.clone(),
        claims: wiring.drives(&all.claims),
        pods: wiring.reads(&all.pods),
    });
    wiring.wakes(&all.pods, |old, new, queue| {
        if let Some(pod) = old.filter(|old| !old.finished() && new.is_none_or(|new| new.finished())) {
            pod.claims.iter().for_each(|claim| queue.add(Key::new(pod.ns(), claim)));
        }
    });
    wiring.run(context, "pvc-protection-controller", claims);
    let mut wiring = Wiring::new();
    let volumes = Arc::new(Volumes { client: context.client.clone(), volumes: wiring.drives(&all.volumes) });
    wiring.run(context, "pv-protection-controller", volumes);
}

impl Reconcile for Claims {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(claim) = self.claims.get(key) else { return Ok(None) };
        let uses = |pod: &Arc<Pod>| {
            pod.spec.node_name.is_some() && !pod.finished() && pod.claims.iter().any(|c| **c == *key.name)
        };
        let used = || self.pods.namespace(&key.namespace).iter().any(uses);
        protect(&self.client, &*claim, "kubernetes.io/pvc-protection", used).await
    }
}

impl Reconcile for Volumes {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(volume) = self.volumes.get(key) else { return Ok(None) };
        let bound = || volume.status.phase.as_deref() == Some("Bound");
        protect(&self.client, &*volume, "kubernetes.io/pv-protection", bound).await
    }
}

async fn protect<K: Kind>(
    client: &Client,
    object: &K,
    finalizer: &str,
    used: impl Fn() -> bool,
) -> anyhow::Result<Option<Duration>> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == finalizer);
    if held && object.deleting() && !used() {
        rest::remove_finalizer(client, object, finalizer).await?;
    } else if !held && !object.deleting() {
        finalizers.push(finalizer.into());
        rest::set_finalizers(client, object, &finalizers).await?;
    }
    Ok(None)
}

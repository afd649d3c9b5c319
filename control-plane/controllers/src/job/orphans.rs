//! Pods with the Job controller's finalizer that no Job counts any more: their Job is gone, or let go of them. The
//! finalizer is removed, or they would never go.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{JOB_TRACKING, Job, Pod};

struct Controller {
    client: Client,
    jobs: Arc<Store<Job>>,
    pods: Arc<Store<Pod>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        jobs: wiring.reads(&all.jobs),
        pods: wiring.reads(&all.pods),
    });
    wiring.wakes(&all.pods, |old, new, queue| {
        let Some(pod) = new.filter(|pod| pod.held_by(JOB_TRACKING)) else { return };
        let owner = |pod: &Pod| pod.controller().map(|owner| owner.uid.clone());
        if old.is_none_or(|old| owner(old) != owner(pod)) || pod.deleting() || pod.controller().is_none() {
            queue.add(pod.key());
        }
    });
    let pods = controller.pods.clone();
    wiring.wakes(&all.jobs, move |old, new, queue| {
        if let (Some(job), None) = (old, new) {
            pods.indexed(&format!("owner/{}", job.uid())).iter().for_each(|pod| queue.add(pod.key()));
        }
    });
    wiring.run(context, "job-orphan-pods", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key).filter(|pod| pod.held_by(JOB_TRACKING)) else { return Ok(None) };
        if !self.counted(&pod).await? {
            rest::remove_finalizer(&self.client, &*pod, JOB_TRACKING).await?;
        }
        Ok(None)
    }
}

impl Controller {
    /// Whether a Job will count this pod.
    async fn counted(&self, pod: &Pod) -> kube::Result<bool> {
        let Some(owner) = pod.controller().filter(|owner| owner.kind == "Job") else { return Ok(false) };
        if self.jobs.get(&Key::new(pod.ns(), &owner.name)).is_some_and(|job| job.uid() == owner.uid) {
            return Ok(true);
        }
        // The store may not have it yet.
        let job = rest::fresh::<Job>(&self.client, pod.ns(), &owner.name).await?;
        Ok(job.is_some_and(|job| job.uid() == owner.uid))
    }
}

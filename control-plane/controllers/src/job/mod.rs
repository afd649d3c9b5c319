//! Jobs: runs pods until enough of them succeeded, and clears finished Jobs away when their time is up. [`tally`] counts
//! what ended, [`plan`] decides, [`policy`] knows the user's rules for failures and successes, [`orphans`] lets go of pods
//! whose Job is gone. The end of a pod is first noted in the Job's status, then the pod's finalizer is removed, then it is
//! counted (KEP-2307): no end is lost or counted twice, whatever dies in between.

mod body;
pub(crate) mod indexes;
pub(crate) mod orphans;
mod plan;
mod policy;
mod tally;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use kube::core::Selector;

use crate::claim::claim;
use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::pods::{self, PodControl};
use crate::queue::Key;
use crate::rest;
use crate::types::{JOB_TRACKING, Job, JobStatus, Pod};

const NAME: &str = "job-controller";
/// Whoever says nothing, or this, leaves a Job to us.
const MANAGER: &str = "kubernetes.io/job-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    jobs: Arc<Store<Job>>,
    pods: Arc<Store<Pod>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        jobs: wiring.drives(&all.jobs),
        pods: wiring.reads(&all.pods),
    });
    controller.control.follow::<Job>(&wiring, &all.pods);
    pods::adopters(&wiring, &all.pods, &controller.jobs, selector);
    wiring.run(context, NAME, controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(job) = self.jobs.get(key) else {
            self.control.expectations.forget(key);
            return Ok(None);
        };
        if job.spec.managed_by.as_deref().is_some_and(|by| by != MANAGER) || !self.control.expectations.met(key) {
            return Ok(None);
        }
        let pods = self.claimed(&job).await?;
        if job.finished() && !pods.iter().any(|pod| pod.held_by(JOB_TRACKING)) {
            return self.expire(&job).await;
        }
        let plan = plan::plan(&job, &pods, self.context.now());
        let mut outcome = Ok(());
        if !plan.remove.is_empty() {
            // Not wanted any more, but not failed either: they are let go before they are deleted.
            self.release(plan.remove.clone()).await?;
            outcome = self.control.delete(key, &*job, plan.remove).await;
        } else if !plan.kill.is_empty() {
            outcome = self.control.delete(key, &*job, plan.kill).await;
        } else if !plan.create.is_empty() {
            let new = plan.create.iter().take(limits::BURST_REPLICAS);
            let bodies = new.map(|pod| body::pod_body(&job, pod)).collect();
            outcome = self.control.create(key, &*job, bodies).await;
        }
        if plan.status != job.status {
            let status = serde_json::to_value(&plan.status)?;
            rest::patch_status_of_version(&self.client, &*job, status).await?;
            self.tell(&job, &plan.status);
        }
        // Only what the API has noted may lose its finalizer.
        self.release(plan.release).await?;
        outcome?;
        Ok(plan.again)
    }
}

impl Controller {
    /// The Job's pods, after adopting and releasing. Pods that run without the finalizer get it, and are then seen with it:
    /// what is let go of later in the same turn must lose it again.
    async fn claimed(&self, job: &Arc<Job>) -> anyhow::Result<Vec<Arc<Pod>>> {
        let Some(selector) = selector(job) else {
            return Ok(self.pods.indexed(&format!("owner/{}", job.uid())));
        };
        let orphans = self.pods.indexed(&format!("orphan/{}", job.ns()));
        let mut pods = claim(&self.client, &**job, &selector, &self.pods, orphans).await?;
        if !job.finished() && !job.deleting() {
            for pod in pods.iter_mut().filter(|pod| pod.active() && !pod.held_by(JOB_TRACKING)) {
                let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
                finalizers.push(JOB_TRACKING.into());
                if let Some(held) = rest::set_finalizers(&self.client, &**pod, &finalizers).await? {
                    *pod = Arc::new(held);
                }
            }
        }
        Ok(pods)
    }

    async fn release(&self, pods: Vec<Arc<Pod>>) -> kube::Result<()> {
        let held = pods.into_iter().filter(|pod| pod.held_by(JOB_TRACKING));
        stream::iter(held)
            .map(|pod| async move { rest::remove_finalizer(&self.client, &*pod, JOB_TRACKING).await })
            .buffer_unordered(limits::WRITES_IN_FLIGHT)
            .try_collect()
            .await
    }

    fn tell(&self, job: &Job, status: &JobStatus) {
        let events = &self.control.events;
        let had = |kind: &str, value: &str| job.status.conditions.iter().any(|c| c.kind == kind && c.status == value);
        for condition in status.conditions.iter().filter(|c| !had(&c.kind, &c.status)) {
            let message = condition.message.clone();
            match (condition.kind.as_str(), condition.status.as_str()) {
                ("Complete", _) => events.normal(job, "Completed", "Job completed".into()),
                ("Suspended", "True") => events.normal(job, "Suspended", message),
                ("Suspended", _) => events.normal(job, "Resumed", message),
                ("Failed", _) => events.warning(job, plan::event_reason(&condition.reason), message),
                _ => {}
            }
        }
    }

    /// Deletes a finished Job with its pods when `ttlSecondsAfterFinished` is over.
    async fn expire(&self, job: &Job) -> anyhow::Result<Option<Duration>> {
        let Some(ttl) = job.spec.ttl_seconds_after_finished.filter(|_| !job.deleting()) else { return Ok(None) };
        let last = job.status.conditions.iter().filter(|c| matches!(c.kind.as_str(), "Complete" | "Failed"));
        let Some(at) = last.filter_map(|c| c.last_transition_time.as_ref()).map(|t| t.0).max() else {
            return Ok(None);
        };
        let left = at.as_second() + ttl - self.context.now().as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        rest::delete_background(&self.client, job).await?;
        Ok(None)
    }
}

/// The Job's pods; the API fills the selector in unless the user manages it.
fn selector(job: &Job) -> Option<Selector> {
    match &job.spec.selector {
        Some(selector) => pods::selector(selector),
        None => Some([("batch.kubernetes.io/controller-uid".to_owned(), job.uid().to_owned())].into_iter().collect()),
    }
}

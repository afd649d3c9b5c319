//! Jobs: runs pods until enough of them succeeded, and clears finished Jobs away when their time is up. [`plan`] decides.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use crate::context::Context;
use crate::informer::{Informer, Store};
use crate::limits;
use crate::object::Object;
use crate::pods::PodControl;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::types::{Job, JobStatus, Pod};

const NAME: &str = "job-controller";

struct Controller {
    client: Client,
    context: Context,
    control: Arc<PodControl>,
    jobs: Arc<Store<Job>>,
    pods: Arc<Store<Pod>>,
    queue: Queue<Key>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, jobs: &Informer<Job>, pods: &Informer<Pod>) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        control: PodControl::new(context, NAME),
        jobs: jobs.store.clone(),
        pods: pods.store.clone(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    jobs.on_change(move |old, new| {
        if let Some(job) = new.or(old) {
            queue.add(job.key());
        }
    });
    controller.control.follow::<Job>(pods, controller.queue.clone());
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        controller.jobs.synced().await;
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
        let Some(job) = self.jobs.get(key) else {
            self.control.expectations.forget(key);
            return Ok(());
        };
        let others = job.spec.managed_by.as_deref().is_some_and(|by| by != "kubernetes.io/job-controller");
        if job.deleting() || others || !self.control.expectations.met(key) {
            return Ok(());
        }
        let pods = self.pods.indexed(&format!("owner/{}", job.uid()));
        let now = self.context.now();
        let plan = plan::plan(&job, &pods, now);
        let mut outcome = Ok(());
        if !plan.delete.is_empty() {
            outcome = self.control.delete(key, &*job, plan.delete).await;
        } else if !plan.create.is_empty() {
            let bodies =
                plan.create.iter().take(limits::BURST_REPLICAS).map(|index| plan::pod_body(&job, *index)).collect();
            outcome = self.control.create(key, &*job, bodies).await;
        }
        if plan.status != job.status {
            self.tell(&job, &plan.status);
            rest::patch_status(&self.client, &*job, serde_json::to_value(&plan.status)?).await?;
        }
        if let Some(after) = plan.again {
            self.queue.add_after(key.clone(), after);
        }
        if job.finished() {
            self.expire(key, &job).await?;
        }
        Ok(outcome?)
    }

    fn tell(&self, job: &Job, status: &JobStatus) {
        for condition in status.conditions.iter().filter(|c| !job.status.conditions.contains(c)) {
            match (condition.kind.as_str(), condition.status.as_str()) {
                ("Complete", _) => self.control.events.normal(job, "Completed", "Job completed".into()),
                ("Suspended", "True") => self.control.events.normal(job, "Suspended", condition.message.clone()),
                ("Suspended", _) => self.control.events.normal(job, "Resumed", condition.message.clone()),
                ("FailureTarget", _) if condition.reason == "DeadlineExceeded" => {
                    self.control.events.warning(job, "DeadlineExceeded", condition.message.clone());
                }
                ("FailureTarget", _) => {
                    self.control.events.warning(job, "BackoffLimitExceeded", condition.message.clone())
                }
                _ => {}
            }
        }
    }

    /// Deletes a finished Job with its pods when `ttlSecondsAfterFinished` is over.
    async fn expire(&self, key: &Key, job: &Job) -> anyhow::Result<()> {
        let Some(ttl) = job.spec.ttl_seconds_after_finished else { return Ok(()) };
        let last = job.status.conditions.iter().filter(|c| matches!(c.kind.as_str(), "Complete" | "Failed"));
        let Some(at) = last.filter_map(|c| c.last_transition_time.as_ref()).map(|t| t.0).max() else { return Ok(()) };
        let left = at.as_second() + ttl - self.context.now().as_second();
        if left > 0 {
            self.queue.add_after(key.clone(), Duration::from_secs(left.unsigned_abs()));
            return Ok(());
        }
        Ok(rest::delete_background(&self.client, job).await?)
    }
}

//! CronJobs: starts a Job whenever the schedule says so, and clears old ones away. [`schedule`] knows the times, [`plan`]
//! decides. It wakes for changes of CronJobs and their Jobs, and at the next time of each schedule.

mod plan;
mod schedule;

#[cfg(test)]
mod tests;

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
use crate::types::{CronJob, Job, Reference};
use plan::Start;

const NAME: &str = "cronjob-controller";

struct Controller {
    client: Client,
    context: Context,
    events: Recorder,
    crons: Arc<Store<CronJob>>,
    jobs: Arc<Store<Job>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(NAME),
        crons: wiring.drives(&all.cron_jobs),
        jobs: wiring.reads(&all.jobs),
    });
    wiring.wakes(&all.jobs, |old, new, queue| {
        let Some(job) = new.or(old) else { return };
        if let Some(owner) = job.controller().filter(|owner| owner.kind == "CronJob") {
            queue.add(Key::new(job.ns(), &owner.name));
        }
    });
    wiring.run(context, NAME, controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(cron) = self.crons.get(key) else { return Ok(None) };
        let jobs = self.jobs.indexed(&format!("owner/{}", cron.uid()));
        let (cron, jobs) = self.agree(cron, jobs).await?;
        let mut plan = plan::plan(&cron, &jobs, self.context.now());
        for event in plan.events {
            if event.warning {
                self.events.warning(&*cron, event.reason, event.message);
            } else {
                self.events.normal(&*cron, event.reason, event.message);
            }
        }
        for job in plan.delete {
            rest::delete_background(&self.client, &*job).await?;
            self.events.normal(&*cron, "SuccessfulDelete", format!("Deleted job {}", job.name()));
        }
        if let Some(start) = plan.start {
            // What is to be forgotten is written even if nothing can be started.
            match self.create(&cron, &start).await {
                Ok(Some(job)) => {
                    plan.status.active.push(reference(&job));
                    plan.status.last_schedule_time = Some(start.at);
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.write(&cron, &plan.status).await?;
                    return Err(error);
                }
            }
        }
        self.write(&cron, &plan.status).await?;
        Ok(plan.again)
    }
}

impl Controller {
    /// News of a Job and of the list that names it come one after the other. Where they do not fit together the API server is
    /// asked, as upstream does, before a Job counts as missing or unexpected.
    async fn agree(
        &self,
        mut cron: Arc<CronJob>,
        mut jobs: Vec<Arc<Job>>,
    ) -> anyhow::Result<(Arc<CronJob>, Vec<Arc<Job>>)> {
        let named = |cron: &CronJob, job: &Job| cron.status.active.iter().any(|known| known.uid == job.uid());
        if jobs.iter().any(|job| !job.finished() && !named(&cron, job))
            && let Some(fresh) = rest::fresh::<CronJob>(&self.client, cron.ns(), cron.name()).await?
            && fresh.uid() == cron.uid()
        {
            cron = Arc::new(fresh);
        }
        for known in &cron.status.active {
            if !jobs.iter().any(|job| job.uid() == known.uid)
                && let Some(fresh) = rest::fresh::<Job>(&self.client, cron.ns(), &known.name).await?
                && fresh.uid() == known.uid
            {
                jobs.push(Arc::new(fresh));
            }
        }
        Ok((cron, jobs))
    }

    async fn write(&self, cron: &CronJob, status: &crate::types::CronJobStatus) -> anyhow::Result<()> {
        if *status != cron.status {
            rest::patch_status_of_version(&self.client, cron, serde_json::to_value(status)?).await?;
        }
        Ok(())
    }

    /// Creates the Job; `None` when the namespace goes away. A Job of that name that is ours was started a moment ago.
    async fn create(&self, cron: &CronJob, start: &Start) -> anyhow::Result<Option<Job>> {
        match rest::create::<Job>(&self.client, cron.ns(), plan::body(cron, start)).await {
            Ok(job) => {
                self.events.normal(cron, "SuccessfulCreate", format!("Created job {}", job.name()));
                Ok(Some(job))
            }
            Err(error) if rest::namespace_terminating(&error) => Ok(None),
            Err(error) if rest::is(&error, 409) => {
                let found = rest::fresh::<Job>(&self.client, cron.ns(), &start.name).await?;
                match found.filter(|job| job.controlled_by(cron.uid())) {
                    Some(job) => Ok(Some(job)),
                    None => Err(error.into()),
                }
            }
            Err(error) => {
                let message = format!("Error creating job: {}", rest::words(&error));
                self.events.warning(cron, "FailedCreate", message);
                Err(error.into())
            }
        }
    }
}

fn reference(job: &Job) -> Reference {
    let value = json!({
        "apiVersion": "batch/v1", "kind": "Job", "name": job.name(), "namespace": job.ns(), "uid": job.uid(),
        "resourceVersion": job.meta_version(),
    });
    serde_json::from_value(value).unwrap_or_default()
}

//! Starts one container: image, environment, specification, create, start, post-start hook. A task of its own, so
//! that the worker stays able to hear of deletion meanwhile.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sluice_runtime::Prepared;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::early::{self, Early};
use super::machine::StartError;
use super::state::{Exit, Made};
use super::worker::Message;
use super::{hooks, images};
use crate::container::{self, Inputs};
use crate::env;
use crate::etc;
use crate::fields::Facts;
use crate::model::{Container, Pod};
use crate::node_context::NodeContext;
use crate::probes::Target;
use crate::references::PodObjects;

/// Everything a start needs.
pub(super) struct Start {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: Arc<Pod>,
    pub(super) index: usize,
    pub(super) attempt: u32,
    pub(super) objects: Arc<PodObjects>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) netns: Option<PathBuf>,
    pub(super) neighbour: Option<u32>,
    pub(super) target: Option<u32>,
    pub(super) worker: mpsc::Sender<Message>,
    pub(super) aborted: CancellationToken,
    /// The container's file system, if it is being made already.
    pub(super) early: Option<Early>,
}

/// What a successful start yields.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) image: String,
    pub(super) image_id: String,
    pub(super) at: Timestamp,
}

impl Start {
    /// Does all of it.
    pub(super) async fn run(mut self) -> Result<Started, StartError> {
        let mut early = match self.early.take() {
            Some(early) => early.finish().await,
            None => None,
        };
        let started = self.make(&mut early).await;
        if let Some((id, _)) = early {
            early::remove(&self.node, &id).await;
        }
        started
    }

    /// Takes what was made early once it is used.
    async fn make(&self, early: &mut Option<(String, Prepared)>) -> Result<Started, StartError> {
        let pod = self.pod.clone();
        let container = pod.containers().nth(self.index).ok_or(StartError::Aborted)?;
        let wanted = images::Wanted {
            image: &container.image,
            policy: &container.image_pull_policy,
            container: Some(&container.name),
            present: early.as_ref().map(|(_, prepared)| &prepared.image),
        };
        let image = tokio::select! {
            image = images::ensure(&self.node, &pod, wanted, &self.objects) => image?,
            () = self.aborted.cancelled() => return Err(StartError::Aborted),
        };
        let env = tokio::select! {
            env = self.environment(container) => env.map_err(config_error)?,
            () = self.aborted.cancelled() => return Err(StartError::Aborted),
        };
        let Ok(_permit) = self.node.starts.acquire().await else { return Err(StartError::Aborted) };
        if self.aborted.is_cancelled() {
            return Err(StartError::Aborted);
        }
        let mut spec = self.spec(container, env).await.map_err(config_error)?;
        let prepared = early.take().map(|(id, prepared)| {
            spec.id = id;
            prepared
        });
        self.node.own(&spec.id, self.index, self.worker.clone());
        let made = Made {
            id: spec.id.clone(),
            image: image.names.first().cloned().unwrap_or_else(|| container.image.clone()),
            image_id: if image.repo_digest.is_empty() { image.id } else { image.repo_digest },
        };
        if let Err(e) = self.node.runtime.create(&spec, prepared).await {
            self.node.disown(&spec.id);
            return Err(self.create_error(container, made, &e));
        }
        self.event(container, "Created", "Container created");
        let pid = match self.node.runtime.start(&spec.id).await {
            Ok(pid) => pid,
            Err(e) => {
                self.node.disown(&spec.id);
                if let Err(error) = self.node.runtime.remove(&spec.id).await {
                    tracing::debug!(%error, id = spec.id, "a container that did not start was not removed");
                }
                let message = format!("failed to create containerd task: failed to start container: {e}");
                return Err(StartError::Run { made, message });
            }
        };
        let at = Timestamp::now();
        self.event(container, "Started", "Container started");
        self.post_start(container, &made, at).await?;
        Ok(Started { id: made.id, pid, image: made.image, image_id: made.image_id, at })
    }

    fn event(&self, container: &Container, reason: &str, message: &str) {
        self.node.recorder.pod(&self.pod, Some(&container.name), false, reason, message);
    }

    async fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        self.objects.loaded().await;
        let mut services = self.node.services.clone();
        // A sender that is gone means shutdown: the start is then of no consequence.
        let services = match services.wait_for(Option::is_some).await {
            Ok(links) => links.as_ref().map(|links| links.of(self.pod.namespace())).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let identity = &self.node.identity;
        let facts = Facts {
            host_ips: identity.ips.clone(),
            pod_ips: self.ips.clone(),
            allocatable: identity.allocatable.clone(),
        };
        env::resolve(&self.pod, container, &facts, &*self.objects, &services)
    }

    async fn spec(
        &self,
        container: &Container,
        env: Vec<(String, String)>,
    ) -> Result<sluice_runtime::ContainerSpec, String> {
        let (node, pod) = (&self.node, &self.pod);
        let hostname = etc::kernel_hostname(pod, &node.identity.dns.cluster_domain)?;
        let cgroup_parent = node
            .runtime
            .make_cgroup(container::qos(pod), pod.uid(), container::pod_resources(pod))
            .await
            .map_err(|e| e.to_string())?;
        let dir = node.dir(pod.uid());
        let message = dir.termination(&container.name, self.attempt);
        let log_path = node.log_path(pod, &container.name, self.attempt);
        let made = tokio::task::spawn_blocking(move || {
            if let Some(parent) = message.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::File::create(&message)?;
            std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        });
        made.await.map_err(|e| e.to_string())?.map_err(|e| format!("termination message file: {e}"))?;
        container::spec(Inputs {
            pod,
            container,
            attempt: self.attempt,
            env,
            dir: &dir,
            log_path,
            netns: self.netns.clone(),
            hostname,
            cgroup_parent,
            neighbour: self.neighbour,
            target: self.target,
            node_memory: node.identity.memory,
        })
    }

    fn create_error(&self, container: &Container, made: Made, e: &sluice_runtime::Error) -> StartError {
        match e {
            sluice_runtime::Error::RunAsRoot | sluice_runtime::Error::RunAsNamedUser(_) => {
                let pod = self.pod.full_name();
                config_error(format!("{e} (pod: \"{pod}\", container: {})", container.name))
            }
            // The container itself was made; its process was not.
            sluice_runtime::Error::Refused(_) => {
                self.event(container, "Created", "Container created");
                StartError::Run { made, message: format!("failed to create containerd task: {e}") }
            }
            _ => StartError::Create { message: e.to_string() },
        }
    }

    async fn post_start(&self, container: &Container, made: &Made, started: Timestamp) -> Result<(), StartError> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let target = Target {
            container: Arc::new(container.clone()),
            id: made.id.clone(),
            ip: self.ips.first().copied(),
            runtime: self.node.runtime.clone(),
        };
        let result = tokio::select! {
            result = hooks::run(&target, hook, Duration::from_secs(3600)) => result,
            () = self.aborted.cancelled() => Ok(()),
        };
        let Err(message) = result else { return Ok(()) };
        let grace = super::spec::seconds(self.pod.spec.termination_grace_period_seconds.unwrap_or(30));
        let end = self.node.runtime.stop(&made.id, None, grace).await;
        let exit = Exit {
            id: made.id.clone(),
            code: end.as_ref().map_or(137, |e| e.code),
            signal: None,
            reason: "Error".into(),
            message: Some(message.clone()),
            started: Some(started),
            finished: Timestamp::now(),
        };
        Err(StartError::PostStart { made: made.clone(), message, exit })
    }
}

fn config_error(message: String) -> StartError {
    StartError::Config { reason: "CreateContainerConfigError", message }
}

//! Carries out what the state machine asks for: each action becomes a task whose answer comes back as a message.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_network::Bandwidth;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::{Message, Own, StartedContainer, Worker};
use crate::bandwidth;
use crate::etc;
use crate::limits;
use crate::model::Pod;
use crate::node_context::NodeContext;
use crate::pod::files::{Files, pod_name};
use crate::pod::hooks;
use crate::pod::machine::{Action, Event, StartError, StopReason};
use crate::pod::spec::ProbeKind;
use crate::pod::start::{Start, Started};
use crate::probes::{self, Target};
use crate::seams::PodAddress;

impl Worker {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::SetupNetwork => self.set_up_network(),
            Action::SetupVolumes => self.set_up_volumes(),
            Action::Start { index, attempt } => self.start(index, attempt),
            Action::AbortStart { index } => {
                if let Some(token) = self.starts.get(&index) {
                    token.cancel();
                }
            }
            Action::Stop { index, grace, reason } => self.stop(index, grace, reason),
            Action::StartProbe { index, kind } => self.probe(index, kind),
            Action::EndProbes { index, readiness } => {
                self.probes.retain(|(i, kind), task| {
                    let ends = *i == index && (readiness || *kind != ProbeKind::Readiness);
                    if ends {
                        task.abort();
                    }
                    !ends
                });
            }
            Action::TearDown => self.tear_down(),
            Action::DeletePod => self.delete_wanted = true,
            Action::Record { warning, reason, message, container } => {
                let name = container.map(|i| self.state.spec.containers[i].name.to_string());
                self.node.recorder.pod(&self.pod, name.as_deref(), warning, reason, &message);
            }
        }
    }

    fn set_up_network(&self) {
        let (node, pod) = (self.node.clone(), self.pod.clone());
        self.task(async move {
            if let Err(message) = check_runtime(&node, &pod).await {
                return Own::Network(Err(message));
            }
            let bandwidth = match bandwidth::of(&pod) {
                Ok(bandwidth) => bandwidth,
                Err(message) => return Own::Network(Err(message)),
            };
            let address = if pod.spec.host_network {
                Ok(PodAddress { netns: PathBuf::new(), ips: node.identity.ips.clone() })
            } else {
                node.network.create(&pod_name(&pod), pod.service_path(), bandwidth).await
            };
            let address = match address {
                Ok(address) => address,
                Err(e) => return Own::Network(Err(e)),
            };
            if !pod.spec.host_network
                && bandwidth != Bandwidth::default()
                && let Err(message) = node.network.limit(pod.uid(), bandwidth).await
            {
                node.recorder.pod(&pod, None, true, "BandwidthNotLimited", &message);
            }
            let ips = address.ips.clone();
            let files = tokio::task::spawn_blocking(move || write_etc(&node, &pod, &ips)).await;
            Own::Network(match files {
                Ok(Ok(())) => Ok(address),
                Ok(Err(e)) => Err(format!("the pod's /etc files could not be written: {e}")),
                Err(e) => Err(e.to_string()),
            })
        });
    }

    fn set_up_volumes(&mut self) {
        if let Some(old) = self.files.take() {
            old.abort();
        }
        let files = Files {
            node: self.node.clone(),
            pod: self.pods.subscribe(),
            objects: self.objects.clone(),
            refresh: self.refresh.clone(),
        };
        let queue = self.own.clone();
        let task = tokio::spawn(files.run(move |result| {
            let event = match result {
                Ok(()) => Event::VolumesReady,
                Err(message) => Event::VolumesFailed(message),
            };
            // The queue is bounded: the answer waits for its place without holding up the volumes.
            tokio::spawn(async move { queue.send(Message::Event(event)).await });
        }));
        self.files = Some(task.abort_handle());
    }

    fn start(&mut self, index: usize, attempt: u32) {
        let aborted = CancellationToken::new();
        self.starts.insert(index, aborted.clone());
        self.attempts.insert(index, attempt);
        let c = &mut self.state.containers[index];
        c.resources.clone_from(&c.allocated);
        let start = Start {
            node: self.node.clone(),
            pod: self.allocated(),
            index,
            attempt,
            objects: self.objects.clone(),
            ips: self.state.ips.clone(),
            netns: self.netns.clone(),
            neighbour: self.neighbour(),
            target: self.target_process(index),
            worker: self.own.clone(),
            aborted,
            early: self.early.take_if(|early| early.index == index),
        };
        self.task(async move { Own::Started { index, result: start.run().await.map(StartedContainer) } });
    }

    /// A running process of the pod.
    fn neighbour(&self) -> Option<u32> {
        self.state.each().filter(|(_, _, c)| c.run().is_some()).find_map(|(i, ..)| self.pids.get(&i).copied())
    }

    /// The process of the container that an ephemeral one is to look at, if it runs.
    fn target_process(&self, index: usize) -> Option<u32> {
        let name = &self.pod.containers().nth(index)?.target_container_name;
        self.pids.get(&self.state.spec.index(name)?).copied()
    }

    pub(super) fn started(&mut self, index: usize, result: Result<StartedContainer, StartError>) {
        self.starts.remove(&index);
        match result {
            Ok(StartedContainer(s)) => {
                self.pids.insert(index, s.pid);
                let attempt = self.attempts.get(&index).copied().unwrap_or(0);
                self.forget_old(index, attempt);
                self.kept.push((index, attempt, s.id.clone()));
                let Started { id, image, image_id, at, .. } = s;
                self.event(Event::Started { index, id, image, image_id, at });
                self.resize();
            }
            Err(error) => {
                if let StartError::PostStart { made, .. } = &error {
                    let attempt = self.attempts.get(&index).copied().unwrap_or(0);
                    self.kept.push((index, attempt, made.id.clone()));
                }
                self.event(Event::StartFailed { index, error });
            }
        }
    }

    /// Of every container the newest and the one before are kept, as upstream does.
    fn forget_old(&mut self, index: usize, newest: u32) {
        let name = self.state.spec.containers[index].name.to_string();
        let (old, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.kept).into_iter().partition(|(i, a, _)| *i == index && a + 1 < newest);
        self.kept = kept;
        for (_, attempt, id) in old {
            let node = self.node.clone();
            let files =
                [node.log_path(&self.pod, &name, attempt), node.dir(self.pod.uid()).termination(&name, attempt)];
            tokio::spawn(async move {
                node.disown(&id);
                if let Err(error) = node.runtime.remove(&id).await {
                    tracing::debug!(%error, id, "an old container was not removed");
                }
                for file in files {
                    // Gone already is what is wanted.
                    let _ = tokio::fs::remove_file(file).await;
                }
            });
        }
    }

    fn stop(&mut self, index: usize, grace: Duration, reason: StopReason) {
        let Some(id) = self.state.containers[index].run().map(|r| r.id.clone()) else { return };
        let again = self.stops.remove(&index).inspect(AbortHandle::abort).is_some();
        let target = self.target(index, &id);
        let hook = target.container.lifecycle.clone();
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let task = tokio::spawn(async move {
            let begun = std::time::Instant::now();
            if let Some(hook) = hook.as_ref().and_then(|l| l.pre_stop.as_ref()).filter(|_| !again)
                && let Err(message) = hooks::run(&target, hook, grace).await
            {
                tracing::info!(
                    pod = pod.full_name(),
                    container = target.container.name,
                    message,
                    "pre-stop hook failed"
                );
                node.recorder.pod(&pod, Some(&target.container.name), true, "FailedPreStopHook", "PreStopHook failed");
            }
            let signal = hook.as_ref().and_then(|l| l.stop_signal.clone());
            // A probe's or a user's explicit grace counts to the second; a hook that used it up leaves the minimum.
            let least =
                if grace < limits::MIN_GRACE || reason != StopReason::PodStops { grace } else { limits::MIN_GRACE };
            let left = grace.saturating_sub(begun.elapsed()).max(least.min(limits::MIN_GRACE));
            while let Err(error) = node.runtime.stop(&id, signal.as_deref(), left).await {
                if error.is_not_found() {
                    break;
                }
                tracing::warn!(pod = pod.full_name(), %error, "container did not stop; trying again");
                tokio::time::sleep(limits::STATUS_RETRY).await;
            }
        });
        self.stops.insert(index, task.abort_handle());
    }

    fn target(&self, index: usize, id: &str) -> Target {
        let container = self.pod.containers().nth(index).cloned().unwrap_or_default();
        Target {
            container: Arc::new(container),
            id: id.to_owned(),
            ip: self.state.ips.first().copied(),
            runtime: self.node.runtime.clone(),
        }
    }

    fn probe(&mut self, index: usize, kind: ProbeKind) {
        let Some((id, at)) = self.state.containers[index].run().map(|r| (r.id.clone(), r.at)) else { return };
        let target = self.target(index, &id);
        let container = target.container.clone();
        let probe = match kind {
            ProbeKind::Liveness => &container.liveness_probe,
            ProbeKind::Readiness => &container.readiness_probe,
            ProbeKind::Startup => &container.startup_probe,
        };
        let Some(probe) = probe else { return };
        let queue = self.own.clone();
        let report = move |ok| {
            let event = Event::Probe { index, id: id.clone(), kind, ok };
            let queue = queue.clone();
            tokio::spawn(async move { queue.send(Message::Event(event)).await });
        };
        let (node, pod, name) = (self.node.clone(), self.pod.clone(), container.name.clone());
        let unhealthy = move |message: String| node.recorder.pod(&pod, Some(&name), true, "Unhealthy", &message);
        let task = probes::start(target, kind, probe, at, report, unhealthy);
        if let Some(old) = self.probes.insert((index, kind), task) {
            old.abort();
        }
    }

    fn tear_down(&mut self) {
        if let Some(early) = self.early.take() {
            early.discard(&self.node);
        }
        for (_, task) in self.probes.drain() {
            task.abort();
        }
        if let Some(files) = self.files.take() {
            files.abort();
        }
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let queue = self.own.clone();
        tokio::spawn(async move {
            let mut delay = limits::SETUP_RETRY_FIRST;
            while let Err(error) = take_away(&node, &pod).await {
                tracing::warn!(pod = pod.full_name(), error, "the pod's network or volumes are not gone; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(limits::SETUP_RETRY_MAX);
            }
            let _ = queue.send(Message::Event(Event::TornDown)).await;
        });
    }
}

/// A RuntimeClass may ask for a handler that this node does not have.
async fn check_runtime(node: &NodeContext, pod: &Pod) -> Result<(), String> {
    let Some(class) = pod.spec.runtime_class_name.as_deref().filter(|c| !c.is_empty()) else { return Ok(()) };
    let handler = node.api.runtime_handler(class).await;
    let handler = handler.map_err(|e| format!("failed to get the RuntimeClass {class:?}: {e}"))?;
    if matches!(handler.as_str(), "" | "runc") {
        return Ok(());
    }
    Err(format!(
        "rpc error: code = Unknown desc = failed to get sandbox runtime: no runtime for {handler:?} is configured"
    ))
}

async fn take_away(node: &Arc<NodeContext>, pod: &Arc<Pod>) -> Result<(), String> {
    let network = async { if pod.spec.host_network { Ok(()) } else { node.network.delete(pod.uid()).await } };
    let volumes = async {
        node.unmount_images(pod.uid()).await.map_err(|e| e.to_string())?;
        let dir = node.dir(pod.uid());
        let removed = tokio::task::spawn_blocking(move || crate::volumes::tear_down(&dir)).await;
        removed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    };
    let (network, volumes) = tokio::join!(network, volumes);
    network.and(volumes)
}

fn write_etc(node: &NodeContext, pod: &Pod, ips: &[std::net::IpAddr]) -> std::io::Result<()> {
    let dir = node.dir(pod.uid());
    let identity = &node.identity;
    std::fs::create_dir_all(dir.root())?;
    let host = if pod.spec.host_network { Some(std::fs::read_to_string("/etc/hosts")?) } else { None };
    let domain = &identity.dns.cluster_domain;
    let name = if pod.spec.host_network {
        identity.name.clone()
    } else {
        etc::kernel_hostname(pod, domain).map_err(std::io::Error::other)?
    };
    for (file, text) in [
        ("etc-hosts", etc::hosts(pod, ips, domain, host.as_deref())),
        ("resolv.conf", etc::resolv_conf(pod, &identity.dns).render()),
        ("hostname", format!("{name}\n")),
    ] {
        let path = dir.file(file);
        // Written in place: a bind mount holds on to the file itself.
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(())
}

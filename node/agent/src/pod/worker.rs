//! One pod's worker: feeds events to the state machine, carries its actions out as tasks, and keeps the pod's status
//! at the API server equal to the state. It decides nothing about the order of things; [`super::machine`] does.

mod actions;
mod resize;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::adopt::{Found, FoundState, adopt};
use super::early::Early;
use super::files::pod_name;
use super::machine::{Event, StartError, step, wake};
use super::spec::{ProbeKind, Spec};
use super::start::Started;
use super::state::{Ctr, Exit, Failure, PodState, Resize};
use super::{messages, status};
use crate::model::{Pod, Resources};
use crate::node_context::NodeContext;
use crate::references::PodObjects;
use crate::seams::{ApiError, PodAddress};
use crate::{bandwidth, limits};

/// What a worker is told.
pub enum Message {
    /// The API object changed.
    Updated(Arc<Pod>),
    /// The API object is gone.
    Gone,
    /// The node wants the pod down (eviction), or another event for the machine.
    Event(Event),
    /// A container of the pod ended.
    Exited { index: usize, id: String, exit: sluice_runtime::Exit },
    #[doc(hidden)]
    Own(Own),
}

/// Answers of the worker's own tasks.
pub enum Own {
    Network(Result<PodAddress, String>),
    Started {
        index: usize,
        result: Result<StartedContainer, StartError>,
    },
    Published(Box<PodStatus>, Result<(), ApiError>),
    Deleted(Result<(), ApiError>),
    /// Position, id and new resources of the containers whose cgroups were changed.
    Resized(Result<Vec<(usize, String, Resources)>, String>),
    ResizeAgain,
    Retry,
}

/// A container that was started.
pub struct StartedContainer(Started);

/// What others may know of a running worker, for the node's API.
#[derive(Clone)]
pub struct View {
    pub pod: Arc<Pod>,
    pub status: Arc<PodStatus>,
    pub containers: Vec<ContainerView>,
    pub netns: Option<PathBuf>,
}

/// One container of a [`View`].
#[derive(Clone, Debug)]
pub struct ContainerView {
    pub name: String,
    /// Set while it runs.
    pub id: Option<String>,
    /// Number of the newest attempt, if any was made.
    pub attempt: Option<u32>,
}

/// A worker from outside.
#[derive(Clone)]
pub struct Handle {
    pub uid: String,
    pub queue: mpsc::Sender<Message>,
    pub view: watch::Receiver<View>,
}

/// How a worker begins.
pub enum Beginning {
    /// A pod that may have containers already.
    Normal { found: Vec<Found> },
    /// The node refuses it.
    Rejected(Failure),
}

/// Starts the worker of a pod. It ends when the pod is gone; `done` is then called.
pub fn spawn(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    beginning: Beginning,
    done: impl FnOnce(&str) + Send + 'static,
) -> Handle {
    let (queue, messages) = mpsc::channel(limits::WORKER_QUEUE);
    let notify = Arc::new(Notify::new());
    let objects = Arc::new(node.references.of(&pod, &notify));
    let spec = Arc::new(Spec::of(&pod));
    let now = Timestamp::now();
    let (found, rejected) = match beginning {
        Beginning::Normal { found } => (found, None),
        Beginning::Rejected(failure) => (Vec::new(), Some(failure)),
    };
    let state = adopt(spec, &found, &pod.status, None, now);
    let (pods, _) = watch::channel(pod.clone());
    let view = View { pod: pod.clone(), status: Arc::default(), containers: Vec::new(), netns: None };
    let (views, view) = watch::channel(view);
    let worker = Worker {
        node,
        state,
        published: pod.status.clone(),
        current: pod.status.clone(),
        pod,
        pods,
        views,
        objects,
        notify,
        refresh: Arc::new(Notify::new()),
        own: queue.clone(),
        netns: None,
        probes: HashMap::new(),
        starts: HashMap::new(),
        attempts: HashMap::new(),
        stops: HashMap::new(),
        pids: HashMap::new(),
        kept: Vec::new(),
        files: None,
        early: None,
        publishing: false,
        resizing: false,
        heard: false,
        delete_wanted: false,
        gone: false,
    };
    let uid = worker.pod.uid().to_owned();
    let name = uid.clone();
    tokio::spawn(async move {
        worker.run(messages, found, rejected).await;
        done(&name);
    });
    Handle { uid, queue, view }
}

struct Worker {
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    pods: watch::Sender<Arc<Pod>>,
    views: watch::Sender<View>,
    state: PodState,
    /// What the API server has, as far as we know.
    published: PodStatus,
    /// What it should have.
    current: PodStatus,
    objects: Arc<PodObjects>,
    /// Told when one of the objects changes.
    notify: Arc<Notify>,
    refresh: Arc<Notify>,
    own: mpsc::Sender<Message>,
    netns: Option<PathBuf>,
    probes: HashMap<(usize, ProbeKind), AbortHandle>,
    starts: HashMap<usize, CancellationToken>,
    attempts: HashMap<usize, u32>,
    stops: HashMap<usize, AbortHandle>,
    pids: HashMap<usize, u32>,
    /// Containers in containerd: position, attempt, id.
    kept: Vec<(usize, u32, String)>,
    files: Option<AbortHandle>,
    /// The first container's file system, until its start takes it.
    early: Option<Early>,
    publishing: bool,
    /// A change of cgroups is under way, or waits before it is tried again.
    resizing: bool,
    /// The API server told of the pod while a write was under way.
    heard: bool,
    delete_wanted: bool,
    gone: bool,
}

impl Worker {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>, found: Vec<Found>, rejected: Option<Failure>) {
        let mut returned = self.node.allocations.returned();
        self.begin(found, rejected).await;
        let notify = self.notify.clone();
        while !self.is_over() {
            let nap =
                wake(&self.state).map(|t| Duration::try_from(t.duration_since(Timestamp::now())).unwrap_or_default());
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return,
                },
                () = notify.notified() => {
                    self.refresh.notify_one();
                    self.event(Event::ReferenceChanged);
                }
                _ = returned.changed(), if matches!(self.state.resize, Some(Resize::Pending { .. })) => self.resize(),
                () = tokio::time::sleep(nap.unwrap_or_default()), if nap.is_some() => self.event(Event::Wake),
            }
        }
        self.clean_up().await;
    }

    /// Nothing of the pod is left, here and at the API server.
    fn is_over(&self) -> bool {
        use super::state::Teardown;
        self.gone && matches!(self.state.teardown, Teardown::Done | Teardown::Deleting)
    }

    async fn begin(&mut self, found: Vec<Found>, rejected: Option<Failure>) {
        for f in &found {
            if let Some(index) = self.state.spec.index(&f.name) {
                self.node.own(&f.id, index, self.own.clone());
                self.kept.push((index, f.attempt, f.id.clone()));
                if let FoundState::Running { pid, .. } = f.state {
                    self.pids.insert(index, pid);
                }
            }
        }
        if rejected.is_none() && !self.pod.is_terminal() {
            self.enter();
        }
        if let Some(failure) = rejected {
            self.event(Event::Rejected(failure));
        } else if !found.is_empty() {
            // It ran before this daemon did: its network is there, and its status must not flicker.
            let limits = bandwidth::of(&self.pod).unwrap_or_default();
            let (name, services) = (pod_name(&self.pod), self.pod.service_path());
            if !self.pod.spec.host_network
                && let Ok(address) = self.node.network.create(&name, services, limits).await
            {
                self.netns = Some(address.netns);
                self.state.network = super::state::Step::Done;
                self.state.ips = address.ips;
            }
            self.event(Event::Adopted);
        } else if self.pod.metadata.deletion_timestamp.is_none() {
            if self.state.stop.is_none() && self.state.containers.iter().all(|c| !c.made) {
                self.early = Early::begin(&self.node, &self.pod);
            }
            self.event(Event::Wake);
        }
        let pod = self.pod.clone();
        self.check_deletion(&pod);
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Updated(pod) => self.updated(pod),
            Message::Gone => {
                self.gone = true;
                let grace = self.pod.metadata.deletion_grace_period_seconds;
                let grace = grace.map_or(self.state.spec.grace, super::spec::seconds);
                self.event(Event::Delete { grace });
            }
            Message::Event(event) => self.event(event),
            Message::Exited { index, id, exit } => self.exited(index, id, exit).await,
            Message::Own(own) => self.own_answer(own),
        }
    }

    fn own_answer(&mut self, own: Own) {
        match own {
            Own::Network(Ok(address)) => {
                self.netns = (!self.pod.spec.host_network).then_some(address.netns);
                self.event(Event::NetworkReady(address.ips));
            }
            Own::Network(Err(message)) => self.event(Event::NetworkFailed(message)),
            Own::Started { index, result } => self.started(index, result),
            Own::Published(status, result) => {
                self.publishing = false;
                match result {
                    Ok(()) => {
                        self.published = *status;
                        if std::mem::take(&mut self.heard) {
                            self.hear();
                        }
                    }
                    // Another pod has the name, or none: the watch will say so.
                    Err(ApiError::Gone(_)) => {
                        self.published = *status;
                        if self.delete_wanted {
                            self.gone = true;
                        }
                    }
                    Err(ApiError::Other(error)) => {
                        tracing::warn!(pod = self.pod.full_name(), %error, "status not written; trying again");
                        self.publishing = true;
                        self.later(limits::STATUS_RETRY);
                        return;
                    }
                }
                self.publish();
            }
            Own::Deleted(Ok(()) | Err(ApiError::Gone(_))) => self.gone = true,
            Own::Deleted(Err(ApiError::Other(error))) => {
                tracing::warn!(pod = self.pod.full_name(), %error, "pod not deleted at the API server; trying again");
                self.delete_wanted = true;
                self.publishing = true;
                self.later(limits::STATUS_RETRY);
            }
            Own::Resized(result) => self.resized(result),
            Own::ResizeAgain => {
                self.resizing = false;
                self.resize();
            }
            Own::Retry => {
                self.publishing = false;
                self.publish();
            }
        }
    }

    fn later(&self, delay: Duration) {
        self.task(async move {
            tokio::time::sleep(delay).await;
            Own::Retry
        });
    }

    /// Runs a task whose answer comes back as a message.
    fn task(&self, work: impl Future<Output = Own> + Send + 'static) -> AbortHandle {
        let queue = self.own.clone();
        tokio::spawn(async move {
            let answer = work.await;
            // The worker ends before its tasks only when nothing is left to tell it.
            let _ = queue.send(Message::Own(answer)).await;
        })
        .abort_handle()
    }

    fn updated(&mut self, pod: Arc<Pod>) {
        let before = std::mem::replace(&mut self.pod, pod.clone());
        let meta = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
        let described = meta(&before) != meta(&pod);
        if described {
            self.pods.send_replace(pod.clone());
        }
        if before.metadata.generation != pod.metadata.generation || before.metadata.generation.is_none() {
            self.respecify();
        }
        // Conditions of others come from the API server, ours stay as they are.
        let [pending, resizing] = status::RESIZE;
        let own = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", pending, resizing];
        let mut list = self.current.conditions.take().unwrap_or_default();
        list.retain(|c| own.contains(&c.type_.as_str()));
        let theirs = pod.status.conditions.iter().flatten().filter(|c| !own.contains(&c.type_.as_str()));
        list.extend(theirs.cloned());
        self.current.conditions = Some(list);
        self.heard = self.publishing;
        self.hear();
        // A configuration that could not be made may depend on labels and annotations.
        self.event(if described { Event::ReferenceChanged } else { Event::Wake });
        self.resize();
        self.check_deletion(&pod);
    }

    /// Takes over what may change in a pod's spec: the deadline, and ephemeral containers that were added.
    fn respecify(&mut self) {
        let spec = Spec::of(&self.pod);
        if spec.containers.len() < self.state.spec.containers.len() {
            return;
        }
        if spec.containers.len() > self.state.spec.containers.len() {
            self.objects = Arc::new(self.node.references.of(&self.pod, &self.notify));
        }
        self.state.containers.resize_with(spec.containers.len(), Ctr::new);
        self.state.spec = Arc::new(spec);
    }

    /// What the API server has counts as published: the node controller takes readiness from the pods of a node that
    /// seemed lost, and ours is written again. News that is older than our last write costs one write too many.
    fn hear(&mut self) {
        self.published.conditions.clone_from(&self.pod.status.conditions);
    }

    fn check_deletion(&mut self, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let grace = pod.metadata.deletion_grace_period_seconds.map_or(self.state.spec.grace, super::spec::seconds);
        if !self.state.deleting || grace.is_zero() {
            self.event(Event::Delete { grace });
        } else {
            // A later request may shorten the grace.
            self.event(Event::Delete { grace: grace.min(self.left()) });
        }
    }

    fn left(&self) -> Duration {
        let left = self.state.stop.as_ref().map(|s| s.deadline.duration_since(Timestamp::now()));
        left.map_or(Duration::MAX, |l| Duration::try_from(l).unwrap_or_default())
    }

    fn event(&mut self, event: Event) {
        let now = Timestamp::now();
        let (state, actions) = step(self.state.clone(), event, now);
        self.state = state;
        for action in actions {
            tracing::debug!(pod = self.pod.name(), ?action, "action");
            self.act(action);
        }
        self.current = status::compute(&self.pod, &self.state, &self.current, &self.node.identity.ips, now);
        if self.state.is_finished() {
            self.node.allocations.leave(self.pod.uid());
        }
        self.show();
        self.publish();
    }

    fn show(&mut self) {
        let containers = self
            .state
            .each()
            .map(|(_, s, c)| ContainerView {
                name: s.name.to_string(),
                id: c.run().map(|r| r.id.clone()),
                attempt: c.made.then_some(c.restarts),
            })
            .collect();
        self.views.send_replace(View {
            pod: self.pod.clone(),
            status: Arc::new(self.current.clone()),
            containers,
            netns: self.netns.clone(),
        });
    }

    /// Writes the status if it differs, one write at a time; then the deletion, if it is its turn.
    fn publish(&mut self) {
        if self.publishing || self.gone {
            return;
        }
        let node = self.node.clone();
        let name = pod_name(&self.pod);
        if let Some(patch) = status::patch(self.pod.uid(), &self.published, &self.current) {
            self.publishing = true;
            let status = Box::new(self.current.clone());
            self.task(async move {
                let result = node.api.patch_status(&name, &patch).await;
                Own::Published(status, result)
            });
        } else if self.delete_wanted {
            self.delete_wanted = false;
            self.task(async move { Own::Deleted(node.api.delete(&name).await) });
        }
    }

    async fn exited(&mut self, index: usize, id: String, exit: sluice_runtime::Exit) {
        let Some(container) = self.pod.containers().nth(index).cloned() else { return };
        let attempt = match self.state.containers[index].run() {
            Some(run) if run.id == id => self.state.containers[index].restarts,
            _ => self.attempts.get(&index).copied().unwrap_or(0),
        };
        let file = self.node.dir(self.pod.uid()).termination(&container.name, attempt);
        let log = self.node.log_path(&self.pod, &container.name, attempt);
        let code = exit.code;
        let read = tokio::task::spawn_blocking(move || messages::read(&container, &file, &log, code)).await;
        if let Some(stop) = self.stops.remove(&index) {
            stop.abort();
        }
        self.pids.remove(&index);
        tracing::debug!(pod = self.pod.name(), id, code, "container ended");
        let exit = exit_of(id, &exit, read.unwrap_or_default());
        self.event(Event::Exited { index, exit });
    }

    async fn clean_up(&mut self) {
        if let Some(early) = self.early.take() {
            early.discard(&self.node);
        }
        self.node.allocations.leave(self.pod.uid());
        for (_, task) in self.stops.drain() {
            task.abort();
        }
        for (_, _, id) in std::mem::take(&mut self.kept) {
            self.node.disown(&id);
            if let Err(error) = self.node.runtime.remove(&id).await {
                tracing::warn!(%error, id, "container not removed; it will be when the daemon starts again");
            }
        }
        let qos = crate::container::qos(&self.pod);
        if let Err(error) = self.node.runtime.remove_cgroup(qos, self.pod.uid()).await {
            tracing::debug!(%error, pod = self.pod.full_name(), "cgroup not removed");
        }
        let logs = self.node.log_dir(&self.pod);
        let dir = self.node.dir(self.pod.uid());
        let removed = tokio::task::spawn_blocking(move || {
            // Gone already is what is wanted.
            let _ = std::fs::remove_dir_all(&logs);
            crate::volumes::tear_down(&dir)
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, pod = self.pod.full_name(), "the pod's directory was not removed");
        }
    }
}

/// The state's exit for what the runtime reported.
pub fn exit_of(id: String, exit: &sluice_runtime::Exit, message: Option<String>) -> Exit {
    let reason = match exit {
        e if e.oom_killed => "OOMKilled",
        e if e.code == 0 => "Completed",
        _ => "Error",
    };
    Exit {
        id,
        code: exit.code,
        signal: None,
        reason: reason.into(),
        message,
        started: exit.started_at,
        finished: exit.finished_at,
    }
}

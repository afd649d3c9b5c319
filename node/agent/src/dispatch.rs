//! Gives every pod bound to this node its worker: follows the API server's pods of the node, finds the containers an
//! earlier daemon left, refuses what does not fit, and removes what belongs to no pod any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::RwLock;
use sluice_runtime::{ContainerState, Status};
use tokio_util::sync::CancellationToken;

use crate::admit;
use crate::lenient::{Lenient, Sieve};
use crate::limits;
use crate::model::Pod;
use crate::node_context::NodeContext;
use crate::pod::adopt::{Found, FoundState};
use crate::pod::state::Failure;
use crate::pod::worker::{self, Beginning, Handle, Message};
use crate::seams::PodName;

/// The workers of a node, by pod uid.
#[derive(Clone, Default)]
pub struct Workers(Arc<RwLock<HashMap<String, Handle>>>);

impl Workers {
    /// The worker of the pod of that name.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Handle> {
        let workers = self.0.read();
        let is = |h: &&Handle| {
            let view = h.view.borrow();
            view.pod.namespace() == namespace && view.pod.name() == name
        };
        workers.values().find(is).cloned()
    }

    /// Every worker.
    pub fn all(&self) -> Vec<Handle> {
        self.0.read().values().cloned().collect()
    }

    fn get(&self, uid: &str) -> Option<Handle> {
        self.0.read().get(uid).cloned()
    }
}

/// Follows the node's pods until the shutdown. Containers keep running afterwards.
pub async fn run(
    client: Client,
    node: Arc<NodeContext>,
    workers: Workers,
    labels: tokio::sync::watch::Receiver<Option<BTreeMap<String, String>>>,
    shutdown: CancellationToken,
) {
    let mut dispatcher = Dispatcher {
        node: node.clone(),
        workers,
        labels,
        left: HashMap::new(),
        seen: HashSet::new(),
        swept: false,
        sieve: Sieve::default(),
    };
    // Events are followed before the list is read, so that no exit falls between the two.
    let mut containers = node.runtime.containers().await;
    while let Err(error) = &containers {
        tracing::warn!(%error, "containerd's containers cannot be listed; pods wait for it");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(limits::STATUS_RETRY) => {}
        }
        containers = node.runtime.containers().await;
    }
    if let Err(error) = node.runtime.sweep().await {
        tracing::warn!(%error, "what an earlier daemon had begun to make is left");
    }
    for c in containers.unwrap_or_default() {
        dispatcher.left.entry(c.pod_uid.clone()).or_default().push(c);
    }
    let api: Api<Lenient<Pod>> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", node.identity.name));
    let stream = watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    loop {
        let item = tokio::select! {
            () = shutdown.cancelled() => return,
            item = stream.next() => item,
        };
        match item {
            None => return,
            Some(Err(error)) => tracing::warn!(%error, "the watch of the node's pods broke; it starts again"),
            Some(Ok(event)) => dispatcher.take(event).await,
        }
    }
}

struct Dispatcher {
    node: Arc<NodeContext>,
    workers: Workers,
    labels: tokio::sync::watch::Receiver<Option<BTreeMap<String, String>>>,
    /// Containers found at the start whose pod was not seen yet, by pod uid.
    left: HashMap<String, Vec<ContainerState>>,
    seen: HashSet<String>,
    /// The networks of pods that are gone were removed.
    swept: bool,
    sieve: Sieve,
}

impl Dispatcher {
    async fn take(&mut self, event: watcher::Event<Lenient<Pod>>) {
        match event {
            watcher::Event::Init => self.seen.clear(),
            watcher::Event::InitApply(pod) => {
                self.seen.insert(pod.meta().uid.clone().unwrap_or_default());
                self.sift(pod).await;
            }
            watcher::Event::InitDone => {
                let gone: Vec<Handle> =
                    self.workers.all().into_iter().filter(|h| !self.seen.contains(&h.uid)).collect();
                for handle in gone {
                    tell(&handle, Message::Gone).await;
                }
                self.seen = HashSet::new();
                self.remove_orphans().await;
                self.remove_networks().await;
                resync(&self.node).await;
            }
            watcher::Event::Apply(pod) => self.sift(pod).await,
            watcher::Event::Delete(pod) => {
                self.sieve.forget(pod.meta());
                if let Some(handle) = self.workers.get(pod.meta().uid.as_deref().unwrap_or_default()) {
                    tell(&handle, Message::Gone).await;
                }
            }
        }
    }

    async fn sift(&mut self, pod: Lenient<Pod>) {
        match self.sieve.pass(pod) {
            Ok(pod) => self.apply(pod).await,
            Err(meta) => self.let_go(*meta).await,
        }
    }

    /// A pod that cannot be read never ran here: its deletion waits for nothing.
    async fn let_go(&self, meta: ObjectMeta) {
        let uid = meta.uid.unwrap_or_default();
        if meta.deletion_timestamp.is_none() || self.workers.get(&uid).is_some() {
            return;
        }
        let pod = PodName { uid, namespace: meta.namespace.unwrap_or_default(), name: meta.name.unwrap_or_default() };
        if let Err(error) = self.node.api.delete(&pod).await {
            tracing::warn!(%error, pod = pod.name, namespace = pod.namespace, "a pod that cannot be read was not deleted");
        }
    }

    async fn apply(&mut self, mut pod: Pod) {
        pod.shrink();
        let pod = Arc::new(pod);
        if let Some(handle) = self.workers.get(pod.uid()) {
            tell(&handle, Message::Updated(pod)).await;
            return;
        }
        let found: Vec<Found> = self.left.remove(pod.uid()).unwrap_or_default().into_iter().map(found).collect();
        let beginning = match self.refusal(&pod) {
            Some(failure) if found.is_empty() => Beginning::Rejected(failure),
            _ => Beginning::Normal { found },
        };
        let workers = self.workers.clone();
        let uid = pod.uid().to_owned();
        let mut map = self.workers.0.write();
        let handle = worker::spawn(self.node.clone(), pod, beginning, move |uid| {
            workers.0.write().remove(uid);
        });
        map.insert(uid, handle);
    }

    /// Why this node does not take the pod, in upstream's words.
    fn refusal(&self, pod: &Pod) -> Option<Failure> {
        if pod.is_terminal() || pod.status.start_time.is_some() {
            return None;
        }
        let others: Vec<Arc<Pod>> = self
            .workers
            .all()
            .iter()
            .map(|h| h.view.borrow().clone())
            .filter(|v| !matches!(v.status.phase.as_deref(), Some("Succeeded" | "Failed")))
            .map(|v| v.pod)
            .collect();
        let labels = self.labels.borrow().clone();
        admit::refusal(pod, &others, &self.node.identity.allocatable, labels.as_ref(), *self.node.pressure.borrow())
    }

    /// Removes, once, the networks of pods that were deleted while no daemon ran, made before any container was.
    async fn remove_networks(&mut self) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        let known: HashSet<String> = self.workers.all().into_iter().map(|handle| handle.uid).collect();
        if let Err(error) = self.node.network.retain(&known).await {
            tracing::warn!(error, "networks of pods that are gone are left");
        }
    }

    async fn remove_orphans(&mut self) {
        for (uid, containers) in std::mem::take(&mut self.left) {
            tracing::info!(pod = uid, "a pod is gone that an earlier daemon ran; its containers are removed");
            for c in containers {
                if let Err(error) = self.node.runtime.remove(&c.id).await {
                    tracing::warn!(%error, id = c.id, "container of a pod that is gone not removed");
                }
            }
            if let Err(error) = self.node.network.delete(&uid).await {
                tracing::warn!(error, pod = uid, "network of a pod that is gone not removed");
            }
            if let Err(error) = self.node.unmount_images(&uid).await {
                tracing::warn!(%error, pod = uid, "images mounted for a pod that is gone are left");
            }
            let dir = self.node.dir(&uid);
            let removed = tokio::task::spawn_blocking(move || crate::volumes::tear_down(&dir)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, pod = uid, "directory of a pod that is gone not removed");
            }
        }
    }
}

/// Compares what containerd has with what the workers think, and tells them what they missed.
pub async fn resync(node: &NodeContext) {
    match node.runtime.containers().await {
        Err(error) => tracing::warn!(%error, "containerd's containers cannot be listed"),
        Ok(list) => {
            for c in list {
                if let (Status::Exited(exit), Some((index, worker))) = (c.status, node.owner(&c.id)) {
                    // A worker that ended meanwhile needs no news.
                    let _ = worker.send(Message::Exited { index, id: c.id, exit }).await;
                }
            }
        }
    }
}

async fn tell(handle: &Handle, message: Message) {
    // The worker ended: it was told before.
    let _ = handle.queue.send(message).await;
}

/// A container of containerd as the state machine's adoption wants it.
fn found(c: ContainerState) -> Found {
    let state = match c.status {
        Status::Running { pid, started_at } | Status::Paused { pid, started_at } => {
            FoundState::Running { at: started_at, pid }
        }
        Status::Created | Status::Unknown => FoundState::Created,
        Status::Exited(exit) => FoundState::Exited(worker::exit_of(c.id.clone(), &exit, None)),
    };
    Found { id: c.id, name: c.name, attempt: c.attempt, image: c.image, image_id: c.image_id, state }
}

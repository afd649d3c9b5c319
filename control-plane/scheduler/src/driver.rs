//! The thin driver: one task owns the cluster picture and the queue, takes changes from the informers, asks the planner and
//! binds through the API, many at once. It wakes for changes, finished bindings and due back-offs only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::runtime::watcher::Event;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, NodeChange};
use crate::informer::{self, Change};
use crate::limits;
use crate::node::NodeSpec;
use crate::plan::{Planner, Unschedulable};
use crate::pod::Pod;
use crate::preempt;
use crate::queue::Queue;
use crate::reason::Rules;
use crate::report::{GATED, Report, Reporter};
use crate::wire;

/// What a pod that left or arrived may change for others.
const POD_GONE: Rules = Rules::FIT.or(Rules::PORTS).or(Rules::SPREAD).or(Rules::POD_AFFINITY);
const POD_PLACED: Rules = Rules::SPREAD.or(Rules::POD_AFFINITY);

struct Bound {
    pod: Arc<Pod>,
    node: Arc<str>,
    result: Result<(), kube::Error>,
}

/// The state of the scheduler between two events.
pub(crate) struct Driver {
    client: Client,
    cluster: Cluster,
    queue: Queue,
    planner: Planner,
    rng: SmallRng,
    reporter: Reporter,
    /// Bound by us, not yet confirmed by the informer.
    assumed: HashSet<Arc<str>>,
    /// Last failure told per pod.
    told: HashMap<Arc<str>, String>,
    binds: FuturesUnordered<BoxFuture<'static, Bound>>,
    listing: HashMap<&'static str, HashSet<String>>,
    known_nodes: HashSet<String>,
    synced: HashSet<&'static str>,
}

impl Driver {
    /// A driver that knows nothing yet. `seed` decides ties between equal nodes.
    pub(crate) fn new(client: Client, seed: u64, shutdown: CancellationToken) -> Self {
        Self {
            reporter: Reporter::start(client.clone(), shutdown),
            client,
            cluster: Cluster::default(),
            queue: Queue::default(),
            planner: Planner::default(),
            rng: SmallRng::seed_from_u64(seed),
            assumed: HashSet::new(),
            told: HashMap::new(),
            binds: FuturesUnordered::new(),
            listing: HashMap::new(),
            known_nodes: HashSet::new(),
            synced: HashSet::new(),
        }
    }

    /// Schedules until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = informer::start(&self.client, &shutdown);
        loop {
            self.take(&mut changes);
            if self.synced.len() == informer::KINDS.len() && self.plan_some() {
                tokio::task::yield_now().await;
                while let Some(Some(bound)) = self.binds.next().now_or_never() {
                    self.bound(bound);
                }
                continue;
            }
            let deadline = self.wakeup().map(tokio::time::Instant::from_std);
            tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.recv() => match change {
                    Some(change) => self.apply(change),
                    None => return,
                },
                Some(bound) = self.binds.next(), if !self.binds.is_empty() => self.bound(bound),
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn take(&mut self, changes: &mut mpsc::Receiver<Change>) {
        for _ in 0..limits::EVENT_BATCH {
            match changes.try_recv() {
                Ok(change) => self.apply(change),
                Err(_) => return,
            }
        }
    }

    /// When to look again if nothing happens; never while all binding slots are taken or lists are missing.
    fn wakeup(&mut self) -> Option<Instant> {
        if self.binds.len() >= limits::BINDS_IN_FLIGHT || self.synced.len() < informer::KINDS.len() {
            return None;
        }
        self.queue.deadline(Instant::now())
    }

    /// Plans a batch; false when there was nothing to do.
    fn plan_some(&mut self) -> bool {
        for planned in 0..limits::PLAN_BATCH {
            let free = self.binds.len() < limits::BINDS_IN_FLIGHT;
            let Some(pod) = free.then(|| self.queue.pop(Instant::now())).flatten() else { return planned > 0 };
            match self.planner.plan(&mut self.cluster, &pod, &mut self.rng) {
                Ok(slot) => self.bind(pod, slot),
                Err(failure) => self.failed(&pod, failure),
            }
        }
        true
    }

    fn bind(&mut self, pod: Arc<Pod>, slot: usize) {
        let node = self.cluster.node(slot).spec.name.clone();
        let placed = Arc::new(Pod { node: Some(node.clone()), ..(*pod).clone() });
        self.cluster.place(placed, &node);
        self.assumed.insert(pod.uid.clone());
        let client = self.client.clone();
        self.binds.push(
            async move {
                let result = post_binding(client, &pod, &node).await;
                Bound { pod, node, result }
            }
            .boxed(),
        );
    }

    fn bound(&mut self, Bound { pod, node, result }: Bound) {
        match result {
            Ok(()) => {
                self.queue.remove(&pod.uid);
                self.told.remove(&pod.uid);
                self.cluster.forget_nominated(&pod.uid);
                self.reporter.send(Report::Scheduled(pod, node));
            }
            Err(error) => {
                if self.assumed.remove(&pod.uid) {
                    self.cluster.remove(&pod.uid);
                }
                let lost = matches!(&error, kube::Error::Api(status) if status.code == 404);
                if lost {
                    self.queue.remove(&pod.uid);
                } else {
                    tracing::warn!(pod = pod.key(), %node, %error, "binding failed; it is tried again");
                    self.queue.retry(&pod.uid, Instant::now());
                }
                self.queue.wake(POD_GONE, Instant::now());
            }
        }
    }

    fn failed(&mut self, pod: &Arc<Pod>, failure: Unschedulable) {
        let outcome = preempt::find(&self.cluster, pod, &failure);
        let message = format!("{} preemption: {}", failure.tally, outcome.tally);
        let message = if failure.tally.nodes == 0 { failure.tally.to_string() } else { message };
        self.queue.failed(&pod.uid, failure.tally.rules(), Instant::now());
        if let Some(chosen) = outcome.chosen {
            let node = self.cluster.node(chosen.slot).spec.name.clone();
            self.cluster.nominate(pod.clone(), &node);
            preempt::carry_out(self.client.clone(), self.reporter.clone(), pod.clone(), node, chosen.victims);
        }
        let news = pod.reported.as_deref() != Some(&message) && self.told.get(&pod.uid) != Some(&message);
        if news {
            self.told.insert(pod.uid.clone(), message.clone());
            self.reporter.send(Report::Unschedulable(pod.clone(), message));
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Pod(event) => self.pod_event(event),
            Change::Node(event) => self.node_event(event),
            Change::Namespace(event) => self.namespace_event(event),
        }
    }

    fn pod_event(&mut self, event: Event<wire::Pod>) {
        match event {
            Event::Apply(pod) => self.pod(Pod::from_wire(pod)),
            Event::InitApply(pod) => {
                let pod = Pod::from_wire(pod);
                self.listing.entry(informer::PODS).or_default().insert(pod.uid.to_string());
                self.pod(pod);
            }
            Event::Delete(pod) => self.pod_gone(&pod.metadata.uid.unwrap_or_default()),
            Event::Init => {
                self.listing.insert(informer::PODS, HashSet::new());
            }
            Event::InitDone => {
                let seen = self.listing.remove(informer::PODS).unwrap_or_default();
                let known = self.cluster.uids().chain(self.queue.uids());
                let lost: Vec<Arc<str>> = known.filter(|uid| !seen.contains(&***uid)).cloned().collect();
                lost.iter().for_each(|uid| self.pod_gone(uid));
                self.synced.insert(informer::PODS);
            }
        }
    }

    fn pod(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        if pod.finished {
            return self.pod_gone(&pod.uid);
        }
        if let Some(node) = pod.node.clone() {
            self.queue.remove(&pod.uid);
            self.told.remove(&pod.uid);
            let confirmed = self.assumed.remove(&pod.uid);
            let news = confirmed || self.cluster.pod(&pod.uid).is_none_or(|old| old.labels != pod.labels);
            self.cluster.forget_nominated(&pod.uid);
            self.cluster.place(pod, &node);
            if news {
                self.queue.wake(POD_PLACED, Instant::now());
            }
            return;
        }
        if !pod.wants_node() {
            return self.pod_gone(&pod.uid);
        }
        if let Some(node) = pod.nominated.clone() {
            self.cluster.nominate(pod.clone(), &node);
        }
        if pod.gated && pod.reported.as_deref() != Some(GATED) {
            self.reporter.send(Report::Gated(pod.clone()));
        }
        // While assumed, an update without a node is older than our binding.
        if !self.assumed.contains(&pod.uid) || self.queue.get(&pod.uid).is_some() {
            self.queue.upsert(pod, Instant::now());
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.told.remove(uid);
        self.cluster.forget_nominated(uid);
        if self.cluster.remove(uid).is_some() {
            self.queue.wake(POD_GONE, Instant::now());
        }
    }

    fn node_event(&mut self, event: Event<wire::Node>) {
        match event {
            Event::Apply(node) => self.node(node),
            Event::InitApply(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                self.listing.entry(informer::NODES).or_default().insert(name);
                self.node(node);
            }
            Event::Delete(node) => self.node_gone(&node.metadata.name.unwrap_or_default()),
            Event::Init => {
                self.listing.insert(informer::NODES, HashSet::new());
            }
            Event::InitDone => {
                let seen = self.listing.remove(informer::NODES).unwrap_or_default();
                let lost: Vec<String> = self.known_nodes.difference(&seen).cloned().collect();
                lost.iter().for_each(|name| self.node_gone(name));
                self.synced.insert(informer::NODES);
            }
        }
    }

    fn node(&mut self, node: wire::Node) {
        let spec = NodeSpec::from_wire(node);
        self.known_nodes.insert(spec.name.to_string());
        if self.cluster.set_node(spec) != NodeChange::Same {
            self.queue.wake(Rules::ALL, Instant::now());
        }
    }

    fn node_gone(&mut self, name: &str) {
        self.known_nodes.remove(name);
        self.cluster.remove_node(name);
        // The message of waiting pods changes with the number of nodes, and domains may have gone.
        self.queue.wake(Rules::SPREAD, Instant::now());
    }

    fn namespace_event(&mut self, event: Event<wire::Namespace>) {
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let labels = namespace.metadata.labels.unwrap_or_default();
                if self.cluster.set_namespace(&namespace.metadata.name.unwrap_or_default(), labels) {
                    self.queue.wake(Rules::POD_AFFINITY, Instant::now());
                }
            }
            Event::Delete(namespace) => self.cluster.remove_namespace(&namespace.metadata.name.unwrap_or_default()),
            Event::Init => {}
            Event::InitDone => {
                self.synced.insert(informer::NAMESPACES);
            }
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn post_binding(client: Client, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let pods: Api<wire::Pod> = Api::namespaced(client, &pod.namespace);
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": &*pod.name, "namespace": &*pod.namespace, "uid": &*pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    pods.create_subresource::<_, Value>("binding", &pod.name, &PostParams::default(), &body).await?;
    Ok(())
}

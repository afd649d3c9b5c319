//! Keeps the node usable: collects images when the disk fills, evicts pods while the node is short of memory, disk or
//! process numbers, and pods that take more of the disk than they allowed themselves. Woken by the node's heartbeat
//! with what is left ([`Signals`]); the choices are pure ([`rank`], [`storage`], [`images`]).

pub mod images;
pub mod rank;
pub mod signals;
pub mod storage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admit::requests;
use crate::dispatch::Workers;
use crate::limits;
use crate::model::Pod;
use crate::node_context::NodeContext;
use crate::pod::machine::Event;
use crate::pod::state::Failure;
use crate::pod::worker::{Handle, Message, View};
use crate::quantity;
use images::{Collector, Goal};
use rank::{Candidate, Resource, Share};
use signals::{Signals, Thresholds};

/// Acts on every heartbeat, until the shutdown.
pub async fn run(
    node: Arc<NodeContext>,
    workers: Workers,
    mut beats: watch::Receiver<Signals>,
    thresholds: Thresholds,
    shutdown: CancellationToken,
) {
    let mut keeper = Housekeeper { node, workers, thresholds, collector: Collector::default(), looked: None };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = beats.changed() => if changed.is_err() { return },
        }
        let signals = *beats.borrow_and_update();
        keeper.beat(signals).await;
    }
}

struct Housekeeper {
    node: Arc<NodeContext>,
    workers: Workers,
    thresholds: Thresholds,
    collector: Collector,
    /// When images were looked at last.
    looked: Option<Instant>,
}

impl Housekeeper {
    async fn beat(&mut self, signals: Signals) {
        let thresholds = self.thresholds;
        let pressure = signals.pressure(&thresholds);
        let due = self.looked.is_none_or(|at| at.elapsed() >= limits::IMAGES_PERIOD);
        if due || pressure.disk {
            self.looked = Some(Instant::now());
            let goal = if pressure.disk { Some(Goal::All) } else { Goal::of(signals.disk, &thresholds) };
            let freed = self.collector.look(&self.node, &self.workers, goal).await;
            if pressure.disk && freed > 0 {
                // The next heartbeat shows whether that was enough.
                return self.enforce_limits().await;
            }
        }
        if pressure.memory {
            self.evict_one(Resource::Memory, thresholds.memory, signals.memory).await;
        } else if pressure.disk {
            let threshold = (signals.disk.all / 100 * thresholds.disk).min(thresholds.disk_enough);
            self.evict_one(Resource::EphemeralStorage, threshold, signals.disk.left).await;
        } else if pressure.pids {
            let threshold = signals.pids.all / 100 * thresholds.pids;
            self.evict_one(Resource::Pids, threshold, signals.pids.left).await;
        }
        self.enforce_limits().await;
    }

    /// Pods that take more of the disk than their own limits say.
    async fn enforce_limits(&self) {
        for handle in self.running() {
            let view = handle.view.borrow().clone();
            if !storage::is_limited(&view.pod) {
                continue;
            }
            let usage = storage::measure(&self.node, &view).await;
            if let Some(message) = storage::exceeded(&view.pod, &usage) {
                evict(&handle, message).await;
            }
        }
    }

    async fn evict_one(&self, of: Resource, threshold: u64, available: u64) {
        let mut candidates = Vec::new();
        let running = self.running();
        for handle in &running {
            let view = handle.view.borrow().clone();
            candidates.push(self.candidate(&view, of).await);
        }
        let Some(chosen) = rank::victim(&candidates, of) else { return };
        let Some(handle) = running.iter().find(|h| h.uid == chosen.uid) else { return };
        tracing::warn!(pod = chosen.uid, resource = of.name(), available, "the node is short; a pod is evicted");
        evict(handle, rank::message(chosen, of, threshold, available)).await;
    }

    fn running(&self) -> Vec<Handle> {
        let mut all = self.workers.all();
        all.retain(|h| !matches!(h.view.borrow().status.phase.as_deref(), Some("Succeeded" | "Failed")));
        all
    }

    async fn candidate(&self, view: &View, of: Resource) -> Candidate {
        let pod = &view.pod;
        let mut candidate =
            Candidate { uid: pod.uid().to_owned(), priority: pod.spec.priority.unwrap_or(0), ..Candidate::default() };
        if of == Resource::EphemeralStorage {
            let usage = storage::measure(&self.node, view).await;
            candidate.usage = usage.on_disk();
            candidate.request = usage.containers.iter().map(|s| s.request).sum();
            candidate.shares = usage.containers;
            return candidate;
        }
        for c in &view.containers {
            let Some(id) = &c.id else { continue };
            let Ok(stats) = self.node.runtime.stats(id).await else { continue };
            let usage = if of == Resource::Memory { stats.memory_working_set } else { stats.pids };
            candidate.usage += i128::from(usage);
            candidate.shares.push(Share {
                container: c.name.clone(),
                usage: usage.into(),
                request: memory_request(pod, &c.name),
            });
        }
        candidate.request = if of == Resource::Memory { requests(pod).1 } else { 0 };
        candidate
    }
}

fn memory_request(pod: &Pod, container: &str) -> i128 {
    let container = pod.container(container);
    container.and_then(|c| c.resources.requests.get("memory")).and_then(|q| quantity::value(q)).unwrap_or(0)
}

async fn evict(handle: &Handle, message: String) {
    let failure = Failure { reason: "Evicted".into(), message };
    // A pod that ended meanwhile takes nothing any more.
    let _ = handle.queue.send(Message::Event(Event::Evict { failure, grace: Duration::from_secs(1) })).await;
}

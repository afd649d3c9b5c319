//! Eviction under memory pressure: while the node has less memory than it keeps free, the pod that uses the most above
//! its request goes, lowest priority first, one at a time. The choice is pure.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admit::requests;
use crate::dispatch::Workers;
use crate::limits;
use crate::node::machine::available_memory;
use crate::node_context::NodeContext;
use crate::pod::machine::Event;
use crate::pod::state::Failure;
use crate::pod::worker::{Message, View};

/// A pod that could go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    /// Bytes.
    pub usage: i128,
    /// Bytes.
    pub request: i128,
}

/// Who goes first, by upstream's order: over its request, then lowest priority, then most above its request.
pub fn victim(candidates: &[Candidate]) -> Option<&Candidate> {
    let rank = |c: &&Candidate| (c.usage <= c.request, c.priority, std::cmp::Reverse(c.usage - c.request));
    candidates.iter().filter(|c| c.usage > 0 && c.priority < CRITICAL).min_by_key(rank)
}

/// Evicts while there is pressure, until the shutdown.
pub async fn run(
    node: Arc<NodeContext>,
    workers: Workers,
    mut pressure: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = pressure.wait_for(|p| *p) => if changed.is_err() { return },
        }
        evict_one(&node, &workers).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(limits::LEASE_RENEW) => {}
        }
    }
}

/// Priority of `system-cluster-critical`, which is not evicted.
const CRITICAL: i32 = 2_000_000_000;

async fn evict_one(node: &NodeContext, workers: &Workers) {
    let available = available_memory();
    if available >= limits::EVICTION_MEMORY {
        return;
    }
    let mut candidates = Vec::new();
    for handle in workers.all() {
        let view = handle.view.borrow().clone();
        candidates.push(candidate(node, &view).await);
    }
    let Some(chosen) = victim(&candidates) else { return };
    let Some(handle) = workers.all().into_iter().find(|h| h.uid == chosen.uid) else { return };
    tracing::warn!(pod = chosen.uid, available, "the node is low on memory; a pod is evicted");
    let message = format!(
        "The node was low on resource: memory. Threshold quantity: {}Mi, available: {}Ki. ",
        limits::EVICTION_MEMORY >> 20,
        available >> 10
    );
    let failure = Failure { reason: "Evicted".into(), message };
    // A pod that ended meanwhile has freed its memory.
    let _ = handle.queue.send(Message::Event(Event::Evict { failure, grace: Duration::from_secs(1) })).await;
}

async fn candidate(node: &NodeContext, view: &View) -> Candidate {
    let mut usage = 0;
    for id in view.containers.iter().filter_map(|c| c.id.as_ref()) {
        if let Ok(stats) = node.runtime.stats(id).await {
            usage += i128::from(stats.memory_working_set);
        }
    }
    Candidate {
        uid: view.pod.uid().to_owned(),
        priority: view.pod.spec.priority.unwrap_or(0),
        usage,
        request: requests(&view.pod).1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let c = |uid: &str, priority, usage, request| Candidate { uid: uid.into(), priority, usage, request };
        for (list, expected) in [
            (vec![c("a", 0, 100, 200), c("b", 0, 50, 0)], Some("b")),
            (vec![c("a", 10, 500, 0), c("b", 0, 50, 0)], Some("b")),
            (vec![c("a", 0, 500, 100), c("b", 0, 450, 0)], Some("b")),
            (vec![c("a", CRITICAL, 500, 0)], None),
            (vec![c("a", 0, 0, 0)], None),
            (vec![], None),
        ] {
            assert_eq!(victim(&list).map(|c| c.uid.as_str()), expected, "{list:?}");
        }
    }
}

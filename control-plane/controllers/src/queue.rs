//! The work queue and the loop every controller shares: keys are worked on one at a time each, several at once, again after
//! a growing delay when that failed, and only when something happened.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits;

/// `namespace/name` of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Namespace, or empty.
    pub(crate) namespace: Arc<str>,
    /// Name.
    pub(crate) name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

#[derive(Debug)]
struct State<K> {
    /// Due, in order of arrival.
    due: VecDeque<K>,
    /// Due or to become due again when done.
    dirty: HashSet<K>,
    /// Being worked on.
    active: HashSet<K>,
    /// To be added at a time.
    later: BinaryHeap<Reverse<(Instant, K)>>,
    /// Earliest time per key in `later`.
    times: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

/// A queue of distinct keys. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    shared: Arc<(Mutex<State<K>>, Notify)>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            due: VecDeque::new(),
            dirty: HashSet::new(),
            active: HashSet::new(),
            later: BinaryHeap::new(),
            times: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { shared: Arc::new((Mutex::new(state), Notify::new())) }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Marks a key as due; a key already due stays where it is.
    pub(crate) fn add(&self, key: K) {
        let (state, notify) = &*self.shared;
        state.lock().push(key);
        notify.notify_one();
    }

    /// Marks a key as due after `delay`, unless it is due earlier anyway.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let (state, notify) = &*self.shared;
        let at = Instant::now() + delay;
        let mut state = state.lock();
        if state.times.get(&key).is_some_and(|known| *known <= at) {
            return;
        }
        state.times.insert(key.clone(), at);
        state.later.push(Reverse((at, key)));
        drop(state);
        notify.notify_one();
    }

    /// Waits for a key and takes it; it is not given out again until [`Queue::done`].
    pub(crate) async fn next(&self) -> K {
        let (state, notify) = &*self.shared;
        loop {
            let deadline = {
                let mut state = state.lock();
                state.fire(Instant::now());
                if let Some(key) = state.due.pop_front() {
                    state.dirty.remove(&key);
                    state.active.insert(key.clone());
                    return key;
                }
                state.later.peek().map(|Reverse((at, _))| *at)
            };
            match deadline {
                Some(at) => tokio::select! {
                    () = notify.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notify.notified().await,
            }
        }
    }

    /// The work on a key ended well: its failures are forgotten.
    pub(crate) fn done(&self, key: &K) {
        self.finish(key, |state| {
            state.failures.remove(key);
        });
    }

    /// The work on a key failed: it is due again after a growing delay.
    pub(crate) fn failed(&self, key: &K) {
        let mut delay = limits::RETRY_MIN;
        self.finish(key, |state| {
            let failures = state.failures.entry(key.clone()).or_default();
            delay = limits::RETRY_MIN.saturating_mul(2u32.saturating_pow((*failures).min(20))).min(limits::RETRY_MAX);
            *failures += 1;
        });
        self.add_after(key.clone(), delay);
    }

    /// Keys due or being worked on.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> usize {
        let state = self.shared.0.lock();
        state.due.len() + state.active.len()
    }

    fn finish(&self, key: &K, change: impl FnOnce(&mut State<K>)) {
        let (state, notify) = &*self.shared;
        let mut state = state.lock();
        change(&mut state);
        state.active.remove(key);
        if state.dirty.contains(key) {
            state.due.push_back(key.clone());
            notify.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn push(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.active.contains(&key) {
            self.due.push_back(key);
        }
    }

    fn fire(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, key))) = self.later.pop() else { return };
            if self.times.get(&key) == Some(&at) {
                self.times.remove(&key);
                self.push(key);
            }
        }
    }
}

/// Works on a queue's keys, `workers` at once, until `shutdown`. Errors are logged and the key is tried again later.
pub(crate) async fn work<K, F, Fut>(
    name: &'static str,
    queue: Queue<K>,
    workers: usize,
    shutdown: CancellationToken,
    sync: F,
) where
    K: Clone + Eq + Hash + Ord + std::fmt::Display + Send + 'static,
    F: Fn(K) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = running.join_next(), if !running.is_empty() => {}
            key = queue.next(), if running.len() < workers => {
                let (queue, synced) = (queue.clone(), sync(key.clone()));
                running.spawn(async move {
                    match synced.await {
                        Ok(()) => queue.done(&key),
                        Err(error) => {
                            report(name, &key, &error);
                            queue.failed(&key);
                        }
                    }
                });
            }
        }
    }
}

/// Conflicts and vanished objects are the normal course of things; the rest is worth a warning.
fn report(controller: &'static str, key: &impl std::fmt::Display, error: &anyhow::Error) {
    let normal = error
        .downcast_ref::<kube::Error>()
        .is_some_and(|error| matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409)));
    if normal {
        tracing::debug!(controller, %key, "tried again soon: {error:#}");
    } else {
        tracing::warn!(controller, %key, "tried again later: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_again_when_it_changed_meanwhile() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        let nothing = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(nothing.is_err(), "a key is never worked on twice at once");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert_eq!(queue.busy(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets() {
        let queue = Queue::default();
        queue.add("a");
        let mut waited = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            let key = queue.next().await;
            waited.push(start.elapsed().as_millis());
            queue.failed(&key);
        }
        assert_eq!(waited, [0, 5, 10, 20]);
        queue.next().await;
        queue.done(&"a");
        queue.add("a");
        queue.next().await;
        queue.failed(&"a");
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed(), limits::RETRY_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_counts() {
        let queue = Queue::default();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(20));
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.done(&"a");
        let again = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(again.is_err());
    }
}

//! The watch cache: every stored object decoded once, in memory, following one watch of the engine.
//!
//! Reads, lists and watches of the API server are answered from here; nothing here writes objects.
//! A driver task applies whole revisions, so a snapshot never shows half a transaction, and hands
//! each change to the watchers of its resource only. [`Cache::fresh`] makes a read linearizable.

mod driver;
mod state;
mod watcher;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{DynEngine, Error, Kv, Op, Revision, Txn, cow::CowMap, limits};
use state::{Change, Interest, State};
pub use state::{Filter, Kind};
pub use watcher::{CacheItem, CacheWatch};

/// Turns stored bytes into what the cache holds.
pub trait Decode: Send + Sync + 'static {
    type Object: Send + Sync + 'static;
    /// `None` when the key is no object: the cache then leaves it out. A deletion is decoded too:
    /// `kv` then carries the last value with `mod_revision` = the deleting revision.
    fn decode(&self, kv: &Kv) -> Option<Self::Object>;
    /// By what [`Cache::watch_tagged`] sorts its watchers: something that many of them choose one
    /// value of, such as the node of a pod.
    fn tag(_object: &Self::Object) -> &str {
        ""
    }
}

/// Bounds of one cache; the defaults are those of [`limits`].
#[derive(Clone, Debug)]
pub struct CacheLimits {
    /// Changes kept for watches that start in the past, over all resources.
    pub ring_events: usize,
    /// Bytes of stored values those changes may hold.
    pub ring_bytes: usize,
    /// How long they are kept.
    pub ring_age: Duration,
    /// Changes waiting for one watcher before it lags.
    pub watcher_queue: usize,
    pub max_watchers: usize,
    /// How long a quiet watcher goes without a [`CacheItem::Progress`].
    pub progress_interval: Duration,
    /// How long [`Cache::fresh`] waits for the newest revision before it writes a barrier key.
    pub fresh_patience: Duration,
    /// How long [`Cache::fresh`] waits altogether.
    pub fresh_timeout: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits {
            ring_events: limits::RING_EVENTS,
            ring_bytes: limits::RING_BYTES,
            ring_age: limits::RING_AGE,
            watcher_queue: limits::WATCHER_QUEUE,
            max_watchers: limits::MAX_WATCHERS,
            progress_interval: limits::PROGRESS_INTERVAL,
            fresh_patience: limits::FRESH_PATIENCE,
            fresh_timeout: limits::FRESH_TIMEOUT,
        }
    }
}

/// Decoded objects under one prefix of the store; see the module.
pub struct Cache<D: Decode> {
    inner: Arc<Inner<D>>,
    engine: DynEngine,
    /// Serializes barrier writes, so that many waiting readers share few of them.
    barrier: tokio::sync::Mutex<()>,
    newest: Newest,
    _driver: AbortOnDropHandle<()>,
}

/// What the driver task, the cache and its watchers share.
struct Inner<D: Decode> {
    prefix: String,
    decode: D,
    limits: CacheLimits,
    state: RwLock<State<D::Object>>,
    applied: watch::Sender<Revision>,
}

impl<D: Decode> Cache<D> {
    /// Loads everything under `prefix` (for example `/registry/`, ending in a slash) and follows it;
    /// ready when loaded.
    ///
    /// # Errors
    /// What the engine answers to the first read.
    pub async fn start(
        engine: DynEngine,
        prefix: &str,
        decode: D,
        limits: CacheLimits,
    ) -> Result<Arc<Cache<D>>, Error> {
        let inner = Arc::new(Inner {
            prefix: prefix.to_owned(),
            decode,
            state: RwLock::new(State::new(prefix, &limits, D::tag)),
            limits,
            applied: watch::Sender::new(0),
        });
        driver::load(&inner, &engine).await?;
        let task = tokio::spawn(driver::follow(Arc::clone(&inner), Arc::clone(&engine)));
        Ok(Arc::new(Cache {
            inner,
            engine,
            barrier: tokio::sync::Mutex::new(()),
            newest: Newest::default(),
            _driver: AbortOnDropHandle::new(task),
        }))
    }

    /// The newest applied state of one key.
    pub fn get(&self, key: &str) -> Option<Arc<D::Object>> {
        self.inner.state.read().get(key)
    }

    /// Every object whose key starts with `prefix`, all of one revision; costs no more than a few
    /// reference counts.
    pub fn list(&self, prefix: &str) -> Snapshot<D::Object> {
        self.inner.state.read().snapshot(prefix)
    }

    /// As [`Cache::list`], as it was at `revision`: the newest state with the changes since then taken back. `None` when the
    /// cache cannot tell, or they are too many. The prefix is one resource's, or narrower.
    pub fn list_at(&self, prefix: &str, revision: Revision) -> Option<Snapshot<D::Object>> {
        let (mut snapshot, since) = self.inner.state.read().since(prefix, revision)?;
        for change in since.iter().rev() {
            snapshot.take_back(change);
        }
        snapshot.revision = revision;
        Some(snapshot)
    }

    /// The newest applied revision.
    pub fn revision(&self) -> Revision {
        *self.inner.applied.borrow()
    }

    /// Waits until `revision` is applied.
    ///
    /// # Errors
    /// [`Error::Future`] when it is not within `timeout`.
    pub async fn wait_for(&self, revision: Revision, timeout: Duration) -> Result<(), Error> {
        let mut applied = self.inner.applied.subscribe();
        let reached = applied.wait_for(|newest| *newest >= revision);
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Unavailable("the watch cache has ended".to_owned())),
            Err(_) => Err(Error::Future { requested: revision, newest: self.revision() }),
        }
    }

    /// A linearizable barrier: whatever was acknowledged before this call is applied when it
    /// returns. Answers the applied revision.
    ///
    /// etcd may be shared with keys outside the prefix, whose revisions no watch of ours shows (and
    /// etcd 3.4 cannot be trusted to report progress), so when the newest revision does not arrive
    /// soon a barrier key is written under the prefix: its event follows everything before it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the engine does not answer or the cache cannot catch up in time.
    pub async fn fresh(&self) -> Result<Revision, Error> {
        let newest = self.newest.ask(&self.engine).await?;
        if self.revision() >= newest || self.wait_for(newest, self.inner.limits.fresh_patience).await.is_ok() {
            return Ok(self.revision());
        }
        {
            let _one = self.barrier.lock().await;
            if self.revision() < newest {
                let written = self.engine.txn(self.barrier_txn()).await?.revision;
                let timeout = self.inner.limits.fresh_timeout;
                self.wait_for(written, timeout).await.map_err(|_| {
                    Error::Unavailable(format!(
                        "the watch cache is behind: revision {written} has not arrived within {timeout:?}"
                    ))
                })?;
            }
        }
        Ok(self.revision())
    }

    /// Changes to keys starting with `prefix`, with revisions after `from` (0: from now on).
    ///
    /// # Errors
    /// [`Error::Compacted`] when the cache no longer knows every change since `from`;
    /// [`Error::Unavailable`] when there are too many watchers.
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<CacheWatch<D::Object>, Error> {
        CacheWatch::open(Arc::clone(&self.inner), prefix, from, Interest { filter: None, tag: None })
    }

    /// As [`Cache::watch`], of the changes for which `filter` holds only. A change it turns down costs
    /// its watcher nothing, not even a wake-up.
    ///
    /// The filter sees the object and what it was before, runs under the cache's lock and must be
    /// quick.
    ///
    /// # Errors
    /// As [`Cache::watch`].
    pub fn watch_where(
        &self,
        prefix: &str,
        from: Revision,
        filter: Filter<D::Object>,
    ) -> Result<CacheWatch<D::Object>, Error> {
        CacheWatch::open(Arc::clone(&self.inner), prefix, from, Interest { filter: Some(filter), tag: None })
    }

    /// As [`Cache::watch_where`], of the changes of objects whose [`Decode::tag`] is `tag`, or was before
    /// the change. Watchers of other tags are not even asked: a change costs the same with ten of them
    /// and with ten thousand.
    ///
    /// # Errors
    /// As [`Cache::watch`].
    pub fn watch_tagged(
        &self,
        prefix: &str,
        from: Revision,
        tag: &str,
        filter: Filter<D::Object>,
    ) -> Result<CacheWatch<D::Object>, Error> {
        let interest = Interest { filter: Some(filter), tag: Some(tag.into()) };
        CacheWatch::open(Arc::clone(&self.inner), prefix, from, interest)
    }

    /// How many watchers are open.
    pub fn watchers(&self) -> usize {
        self.inner.state.read().watchers()
    }

    fn barrier_txn(&self) -> Txn {
        Txn {
            success: vec![Op::Put {
                key: Bytes::from(format!("{}.sluice/barrier", self.inner.prefix)),
                value: Bytes::new(),
                lease: 0,
            }],
            ..Txn::default()
        }
    }
}

/// Asks the engine for its newest revision, one question for all who wait for it.
#[derive(Default)]
struct Newest {
    /// How many have asked.
    arrived: AtomicU64,
    /// How many had asked when the last question was put, and its answer.
    answered: tokio::sync::Mutex<(u64, Revision)>,
}

impl Newest {
    /// The newest revision at some moment after this call began, which is what makes a read fresh:
    /// an answer to a question put earlier will not do.
    async fn ask(&self, engine: &DynEngine) -> Result<Revision, Error> {
        let mine = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.answered.lock().await;
        if answered.0 < mine {
            let asking = self.arrived.load(Ordering::SeqCst);
            *answered = (asking, engine.revision().await?);
        }
        Ok(answered.1)
    }
}

/// Objects under a prefix as they were at one revision, sorted by key. Holding one costs the memory
/// of what has been replaced since.
pub struct Snapshot<O> {
    pub revision: Revision,
    prefix: Box<str>,
    maps: Vec<CowMap<Arc<O>>>,
}

impl<O> Clone for Snapshot<O> {
    fn clone(&self) -> Self {
        Snapshot { revision: self.revision, prefix: self.prefix.clone(), maps: self.maps.clone() }
    }
}

impl<O> Snapshot<O> {
    /// All of it, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<O>)> {
        self.iter_from("")
    }

    /// What has keys at or after `start`, in key order (where a `continue` token points).
    pub fn iter_from(&self, start: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<O>)> {
        let from = start.max(&*self.prefix).to_owned();
        self.maps.iter().flat_map(move |map| map.iter_from(&from)).take_while(|(key, _)| key.starts_with(&*self.prefix))
    }

    /// How many objects, all of them.
    pub fn len(&self) -> usize {
        self.len_from("")
    }

    /// How many objects with keys at or after `start`.
    pub fn len_from(&self, start: &str) -> usize {
        let (prefix, start) = (&*self.prefix, start.max(&*self.prefix));
        let before = |map: &CowMap<Arc<O>>| map.rank(|key| key < start);
        let upto = |map: &CowMap<Arc<O>>| map.rank(|key| key < prefix || key.starts_with(prefix));
        self.maps.iter().map(|map| upto(map).saturating_sub(before(map))).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Undoes the newest change that it shows.
    fn take_back(&mut self, change: &Change<O>) {
        let Some(map) = self.maps.first_mut() else { return };
        match &change.previous {
            Some(previous) => map.insert(Arc::clone(&change.key), Arc::clone(previous)),
            None => map.remove(&change.key),
        };
    }

    pub fn get(&self, key: &str) -> Option<&Arc<O>> {
        if !key.starts_with(&*self.prefix) {
            return None;
        }
        self.maps.iter().find_map(|map| map.get(key))
    }
}

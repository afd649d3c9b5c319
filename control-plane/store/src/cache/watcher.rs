//! One watcher of the cache: first what it missed, then its bounded queue.

use std::{collections::VecDeque, sync::Arc};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    Decode, Inner,
    state::{Change, Interest, Kind, State},
};
use crate::{Error, Revision};

/// What a watcher of the cache is told.
pub enum CacheItem<O> {
    Change {
        revision: Revision,
        key: Arc<str>,
        kind: Kind,
        /// The new state; for a deletion the last state with the deleting revision.
        object: Arc<O>,
        previous: Option<Arc<O>>,
    },
    /// Every change up to and including this revision has been delivered.
    Progress(Revision),
    /// The watcher did not keep up (or the cache had to start over): changes are lost, and nothing
    /// more comes. List again.
    Lagged,
}

/// Changes of one prefix, in order. Dropping it ends the watch.
pub struct CacheWatch<O> {
    prefix: Box<str>,
    tag: Option<Box<str>>,
    id: u64,
    source: Arc<dyn Source<O>>,
    backlog: VecDeque<Arc<Change<O>>>,
    queue: mpsc::Receiver<Arc<Change<O>>>,
    /// The newest revision the watcher knows of.
    told: Revision,
    /// When to say where it stands, should nothing happen.
    next_progress: Instant,
}

/// The cache as its watchers see it, free of the decoder's type.
trait Source<O>: Send + Sync {
    fn with_state(&self, f: &mut dyn FnMut(&mut State<O>));
    fn applied_if(&self, idle: &mut dyn FnMut() -> bool) -> Option<Revision>;
    fn progress_interval(&self) -> std::time::Duration;
}

impl<D: Decode> Source<D::Object> for Inner<D> {
    fn with_state(&self, f: &mut dyn FnMut(&mut State<D::Object>)) {
        f(&mut self.state.write());
    }

    fn applied_if(&self, idle: &mut dyn FnMut() -> bool) -> Option<Revision> {
        let state = self.state.read();
        idle().then(|| state.revision())
    }

    fn progress_interval(&self) -> std::time::Duration {
        self.limits.progress_interval
    }
}

impl<O: Send + Sync + 'static> CacheWatch<O> {
    pub(super) fn open<D: Decode<Object = O>>(
        inner: Arc<Inner<D>>,
        prefix: &str,
        from: Revision,
        interest: Interest<O>,
    ) -> Result<Self, Error> {
        let tag = interest.tag.clone();
        let (subscription, applied) = {
            let mut state = inner.state.write();
            (state.subscribe(prefix, from, interest, &inner.limits)?, state.revision())
        };
        Ok(CacheWatch {
            prefix: prefix.into(),
            tag,
            id: subscription.id,
            backlog: subscription.backlog,
            queue: subscription.queue,
            told: if from == 0 { applied } else { from },
            next_progress: Instant::now() + inner.limits.progress_interval,
            source: inner,
        })
    }

    /// Waits for the next item. Safe to drop half-way. After [`CacheItem::Lagged`] it says so again.
    pub async fn next(&mut self) -> CacheItem<O> {
        if let Some(change) = self.backlog.pop_front() {
            return self.deliver(change);
        }
        loop {
            tokio::select! {
                biased;
                change = self.queue.recv() => return match change {
                    Some(change) => self.deliver(change),
                    None => CacheItem::Lagged,
                },
                () = sleep_until(self.next_progress) => {
                    self.next_progress = Instant::now() + self.source.progress_interval();
                    if let Some(revision) = self.progress().filter(|r| *r > self.told) {
                        self.told = revision;
                        return CacheItem::Progress(revision);
                    }
                }
            }
        }
    }

    /// The revision up to which everything has been delivered: `None` while changes wait.
    pub fn progress(&self) -> Option<Revision> {
        let mut idle = || self.backlog.is_empty() && self.queue.is_empty() && !self.queue.is_closed();
        self.source.applied_if(&mut idle)
    }

    fn deliver(&mut self, change: Arc<Change<O>>) -> CacheItem<O> {
        self.told = change.revision;
        CacheItem::Change {
            revision: change.revision,
            key: Arc::clone(&change.key),
            kind: change.kind,
            object: Arc::clone(&change.object),
            previous: change.previous.clone(),
        }
    }
}

impl<O> Drop for CacheWatch<O> {
    fn drop(&mut self) {
        self.source.with_state(&mut |state| state.unsubscribe(&self.prefix, self.tag.as_deref(), self.id));
    }
}

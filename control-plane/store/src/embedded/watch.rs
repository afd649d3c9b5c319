//! Watch streams: each has its own position and takes what follows from memory or, when it is
//! behind, from the log on disk. No queue grows for a slow watcher.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use redb::ReadableDatabase;
use tokio::sync::watch as newest;

use super::{Shared, error, recent::Published, tables};
use crate::{Error, Revision, Watch, WatchItem, WatchStream, check, limits};

struct Watcher {
    shared: Arc<Shared>,
    newest: newest::Receiver<Revision>,
    key: Bytes,
    end: Bytes,
    /// The next revision to look at.
    next: Revision,
    ready: VecDeque<WatchItem>,
    /// [`Shared::losses`] when the watch began.
    losses: u64,
    ended: bool,
}

pub(super) fn stream(shared: Arc<Shared>, watch: Watch) -> WatchStream {
    let mut newest = shared.newest.clone();
    let current = *newest.borrow_and_update();
    let watcher = Watcher {
        next: if watch.start == 0 { current + 1 } else { watch.start },
        losses: shared.losses.load(Ordering::SeqCst),
        shared,
        newest,
        key: watch.key,
        end: watch.end,
        ready: VecDeque::new(),
        ended: false,
    };
    Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        let item = watcher.item().await?;
        watcher.ended |= item.is_err();
        Some((item, watcher))
    }))
}

impl Watcher {
    /// The next item; `None` when the engine has closed or an error was told.
    async fn item(&mut self) -> Option<Result<WatchItem, Error>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            let newest = *self.newest.borrow_and_update();
            if self.shared.losses.load(Ordering::SeqCst) != self.losses {
                return Some(Err(Error::Compacted { requested: self.next, oldest: newest }));
            }
            if self.next > newest {
                self.newest.changed().await.ok()?;
                continue;
            }
            let recent = self.shared.recent.read().since(self.next);
            let revisions = match recent {
                Some(revisions) => Ok(revisions),
                None => self.read_log().await,
            };
            match revisions {
                // Revisions that a crash took from lazy writes are in no log.
                Ok(revisions) if revisions.is_empty() => {
                    self.next = newest + 1;
                    self.ready.push_back(WatchItem::Progress(newest));
                }
                Ok(revisions) => self.take(revisions, newest),
                Err(e) => return Some(Err(e)),
            }
        }
    }

    /// Queues what concerns this watcher, and how far it has come when there is nothing newer.
    fn take(&mut self, revisions: Vec<Published>, newest: Revision) {
        let mut told = 0;
        for (revision, events) in revisions {
            self.next = revision + 1;
            let concerned = |e: &&crate::Event| check::contains(&self.key, &self.end, &e.kv.key);
            let events: Vec<_> = events.iter().filter(concerned).cloned().collect();
            if !events.is_empty() {
                told = revision;
                self.ready.push_back(WatchItem::Events { revision, events });
            }
        }
        let seen = self.next - 1;
        if seen >= newest && told < seen {
            self.ready.push_back(WatchItem::Progress(seen));
        }
    }

    async fn read_log(&self) -> Result<Vec<Published>, Error> {
        let shared = Arc::clone(&self.shared);
        let start = self.next;
        let read = tokio::task::spawn_blocking(move || {
            shared.check_watch(start)?;
            shared.with_db(|db| {
                let txn = db.begin_read().map_err(error)?;
                let log = txn.open_table(tables::LOG).map_err(error)?;
                let history = txn.open_table(tables::HISTORY).map_err(error)?;
                tables::read_log(&log, &history, start, limits::REPLAY_REVISIONS)
            })
        });
        let revisions = read.await.map_err(|e| Error::Unavailable(format!("reading the log failed: {e}")))??;
        Ok(revisions.into_iter().map(|(revision, events)| (revision, events.into())).collect())
    }
}

//! The one thread that writes: gathers waiting requests, applies them in one redb transaction, makes
//! it durable, then tells watchers and callers. Between requests it sleeps until a lease expires.

use std::{
    fs,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Instant,
};

use redb::{Database, Durability, ReadableTable};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch as newest};

use super::{
    Shared,
    apply::{Batch, Revisions},
    error,
    lease::Deadlines,
    open_file, tables,
};
use crate::{Error, Revision, Txn, TxnResult, check, limits};

pub(super) enum Request {
    Txn(Txn),
    Grant(i64),
    KeepAlive(i64),
    Revoke(i64),
    Compact(Revision),
}

pub(super) enum Answer {
    Txn(TxnResult),
    Lease(i64),
    Done,
}

pub(super) struct Command {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Answer, Error>>,
    /// The caller's place in the bounded queue.
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    newest: newest::Sender<Revision>,
    deadlines: Deadlines,
    /// True while a compaction has history left to remove.
    trimming: bool,
    /// When lazy writes become durable by themselves; `None` when all of them are.
    unsynced: Option<Instant>,
}

/// Makes the tables when missing; returns the newest revision and the leases.
pub(super) fn prepare(db: &Database, first: Revision) -> Result<(Revision, Vec<(i64, i64)>), Error> {
    let txn = db.begin_write().map_err(error)?;
    let (revision, leases, changed) = {
        let mut meta = txn.open_table(tables::META).map_err(error)?;
        let format = meta.get(tables::META_FORMAT).map_err(error)?.map(|v| v.value());
        match format {
            Some(tables::FORMAT) => {}
            None => {
                meta.insert(tables::META_FORMAT, tables::FORMAT).map_err(error)?;
                meta.insert(tables::META_REVISION, first).map_err(error)?;
            }
            Some(other) => {
                return Err(Error::Corrupt(format!(
                    "the store has format {other}, this version knows format {}: use the version that wrote it",
                    tables::FORMAT
                )));
            }
        }
        drop(meta);
        let mut batch = Batch::open(&txn)?;
        let changed = batch.skip_reserved()? || format.is_none();
        (batch.revision(), batch.leases()?, changed)
    };
    if changed {
        txn.commit().map_err(error)?;
    } else {
        txn.abort().map_err(error)?;
    }
    Ok((revision, leases))
}

/// An answer of the wrong kind cannot happen: each request has one.
pub(super) fn mismatch() -> Error {
    Error::Unavailable("the store's writer mixed up its answers".to_owned())
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        newest: newest::Sender<Revision>,
        leases: Vec<(i64, i64)>,
    ) -> Self {
        let mut deadlines = Deadlines::default();
        let now = Instant::now();
        for (lease, ttl) in leases {
            deadlines.insert(lease, ttl, now);
        }
        Writer { shared, commands, newest, deadlines, trimming: true, unsynced: None }
    }

    /// Runs until the last handle of the engine is gone.
    pub(super) fn run(mut self) {
        loop {
            let first = match self.wait() {
                Ok(first) => first,
                Err(Closed) => return self.sync(),
            };
            let commands = self.gather(first);
            let expired = self.deadlines.expired(Instant::now());
            if !commands.is_empty() || !expired.is_empty() {
                self.batch(commands, expired);
            }
            if self.trimming {
                self.trim();
            }
            if self.unsynced.is_some_and(|at| at <= Instant::now()) {
                self.sync();
            }
        }
    }

    /// The next command, or `None` when there is other work to do.
    fn wait(&self) -> Result<Option<Command>, Closed> {
        use mpsc::{RecvTimeoutError, TryRecvError};
        if self.trimming {
            return match self.commands.try_recv() {
                Ok(command) => Ok(Some(command)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Closed),
            };
        }
        let Some(deadline) = self.deadlines.next().into_iter().chain(self.unsynced).min() else {
            return self.commands.recv().map(Some).map_err(|_| Closed);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match self.commands.recv_timeout(left) {
            Ok(command) => Ok(Some(command)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Closed),
        }
    }

    /// Everything that already waits, within bounds. What arrives during the fsync makes the next
    /// batch, so no time is spent waiting for company.
    fn gather(&self, first: Option<Command>) -> Vec<Command> {
        let size = |command: &Command| match &command.request {
            Request::Txn(txn) => check::size(txn),
            _ => 0,
        };
        let Some(first) = first else {
            return Vec::new();
        };
        let mut bytes = size(&first);
        let mut commands = vec![first];
        while commands.len() < limits::GROUP_COMMIT_TXNS && bytes < limits::GROUP_COMMIT_BYTES {
            let Ok(command) = self.commands.try_recv() else {
                break;
            };
            bytes += size(&command);
            commands.push(command);
        }
        commands
    }

    fn batch(&mut self, commands: Vec<Command>, expired: Vec<i64>) {
        if self.shared.db.read().is_none() {
            self.reopen();
        }
        let full = self.space().err();
        let mut answers = Vec::with_capacity(commands.len());
        let mut replies = Vec::with_capacity(commands.len());
        let shared = Arc::clone(&self.shared);
        let committed = shared.with_db(|db| {
            let mut txn = db.begin_write().map_err(error)?;
            let mut batch = Batch::open(&txn)?;
            for lease in &expired {
                batch.revoke(*lease).or_else(ignore_missing)?;
            }
            for command in &commands {
                let answer = self.apply(&mut batch, &command.request, full.as_ref());
                // What the caller got wrong is its own affair, a failing disk ends the batch.
                match answer {
                    Err(e @ (Error::Unavailable(_) | Error::Corrupt(_))) => return Err(e),
                    Err(Error::NoSpace(why)) if full.is_none() => return Err(Error::NoSpace(why)),
                    answer => answers.push(answer),
                }
            }
            let dirty = batch.dirty;
            let (published, durability) = batch.finish()?;
            if dirty {
                txn.set_durability(durability).map_err(error)?;
                txn.commit().map_err(error)?;
            } else {
                txn.abort().map_err(error)?;
            }
            Ok((published, dirty.then_some(durability)))
        });
        replies.extend(commands.into_iter().map(|c| (c.request, c.reply)));
        match committed {
            Ok((published, durability)) => {
                match durability {
                    Some(Durability::None) => {
                        self.unsynced.get_or_insert(Instant::now() + shared.options.lazy_delay);
                    }
                    Some(_) => self.unsynced = None,
                    None => {}
                }
                for lease in expired {
                    self.deadlines.remove(lease);
                }
                self.publish(published);
                for ((request, reply), answer) in replies.into_iter().zip(answers) {
                    self.acknowledge(&request, &answer);
                    // A caller that went away does not undo its write.
                    let _ = reply.send(answer);
                }
            }
            Err(e) => {
                tracing::error!(error = %e, requests = replies.len(), "a write to the store failed");
                self.reopen();
                for lease in expired {
                    // Tried again after its time, not at once and for ever.
                    self.deadlines.renew(lease, Instant::now());
                }
                for (_, reply) in replies {
                    let _ = reply.send(Err(again(&e)));
                }
            }
        }
    }

    fn apply(&self, batch: &mut Batch<'_>, request: &Request, full: Option<&Error>) -> Result<Answer, Error> {
        match (request, full) {
            (Request::Txn(txn), Some(full)) if check::puts(txn) => Err(again(full)),
            (Request::Grant(_), Some(full)) => Err(again(full)),
            (Request::Txn(txn), _) => batch.txn(txn).map(Answer::Txn),
            (Request::Grant(_), None) if self.deadlines.len() >= limits::MAX_LEASES => {
                Err(Error::TooLarge(format!("there are already {} leases", limits::MAX_LEASES)))
            }
            (Request::Grant(ttl), None) => batch.grant(*ttl).map(Answer::Lease),
            // Checked in acknowledge's order by the table, which is the truth.
            (Request::KeepAlive(lease), _) => batch.require_lease(*lease).map(|()| Answer::Done),
            (Request::Revoke(lease), _) => batch.revoke(*lease).map(|()| Answer::Done),
            (Request::Compact(revision), _) => batch.compact(*revision).map(|()| Answer::Done),
        }
    }

    /// Brings the state in memory in line with what became durable.
    fn acknowledge(&mut self, request: &Request, answer: &Result<Answer, Error>) {
        let now = Instant::now();
        match (request, answer) {
            (Request::Grant(ttl), Ok(Answer::Lease(lease))) => {
                self.deadlines.insert(*lease, *ttl, now);
            }
            (Request::KeepAlive(lease), Ok(_)) => {
                self.deadlines.renew(*lease, now);
            }
            (Request::Revoke(lease), Ok(_)) => self.deadlines.remove(*lease),
            (Request::Compact(_), Ok(_)) => self.trimming = true,
            _ => {}
        }
    }

    fn publish(&self, published: Revisions) {
        let Some((last, _)) = published.last() else {
            return;
        };
        let last = *last;
        {
            let mut recent = self.shared.recent.write();
            for (revision, events) in published {
                recent.push(revision, events);
            }
        }
        self.newest.send_replace(last);
    }

    /// One step of a compaction. Only the last one is synced: a crash before it repeats the work.
    fn trim(&mut self) {
        let done = self.shared.with_db(|db| {
            let mut txn = db.begin_write().map_err(error)?;
            let mut batch = Batch::open(&txn)?;
            let done = batch.trim(limits::COMPACT_BATCH)?;
            let dirty = batch.dirty;
            batch.finish()?;
            if !dirty {
                txn.abort().map_err(error)?;
                return Ok(true);
            }
            if !done {
                txn.set_durability(Durability::None).map_err(error)?;
            }
            txn.commit().map_err(error)?;
            Ok(done)
        });
        match done {
            Ok(done) => self.trimming = !done,
            Err(e) => {
                tracing::error!(error = %e, "removing old history from the store failed");
                // Tried again with the next compaction.
                self.trimming = false;
                self.reopen();
            }
        }
    }

    /// Makes lazy writes durable, and gives back the revisions that were set apart for more.
    fn sync(&mut self) {
        let synced = self.shared.with_db(|db| {
            let txn = db.begin_write().map_err(error)?;
            let mut batch = Batch::open(&txn)?;
            let reserved = batch.give_back_reserved()?;
            batch.finish()?;
            if reserved { txn.commit().map_err(error) } else { txn.abort().map_err(error) }
        });
        match synced {
            Ok(()) => self.unsynced = None,
            Err(e) => {
                tracing::error!(error = %e, "making writes to the store durable failed");
                self.reopen();
            }
        }
    }

    /// Is there room for more?
    fn space(&self) -> Result<(), Error> {
        let Shared { path, options, .. } = &*self.shared;
        let size = fs::metadata(path).map_or(0, |m| m.len());
        if size > options.max_file_bytes {
            return Err(Error::NoSpace(format!(
                "{} has {size} bytes, its limit is {}; delete objects or raise the limit",
                path.display(),
                options.max_file_bytes
            )));
        }
        let Ok(stat) = nix::sys::statvfs::statvfs(path) else {
            return Ok(());
        };
        let free = stat.blocks_available() * stat.fragment_size();
        if free < options.min_free_bytes {
            return Err(Error::NoSpace(format!(
                "the file system of {} has {free} bytes free, writes need {}; make room there",
                path.display(),
                options.min_free_bytes
            )));
        }
        Ok(())
    }

    /// redb refuses everything after a failed write until the file is opened again. A commit that
    /// failed may have reached the disk all the same: watchers then read it from the log. Lazy writes
    /// may be gone: those who watched them have to read everything again.
    fn reopen(&mut self) {
        let mut db = self.shared.db.write();
        *db = None;
        if self.unsynced.take().is_some() {
            self.shared.losses.fetch_add(1, Ordering::SeqCst);
        }
        let opened = open_file(&self.shared.path, &self.shared.options)
            .and_then(|db| prepare(&db, self.shared.options.first_revision).map(|(revision, _)| (db, revision)));
        match opened {
            Ok((opened, revision)) => {
                self.shared.recent.write().clear();
                *db = Some(opened);
                drop(db);
                self.newest.send_replace(revision);
            }
            Err(e) => tracing::error!(error = %e, "opening the store again failed"),
        }
    }
}

/// Every handle of the engine is gone.
struct Closed;

fn ignore_missing(e: Error) -> Result<(), Error> {
    match e {
        Error::LeaseNotFound(_) => Ok(()),
        e => Err(e),
    }
}

/// The same error for one more caller of a failed batch.
fn again(e: &Error) -> Error {
    match e {
        Error::NoSpace(why) => Error::NoSpace(why.clone()),
        Error::Corrupt(why) => Error::Corrupt(why.clone()),
        other => Error::Unavailable(other.to_string()),
    }
}

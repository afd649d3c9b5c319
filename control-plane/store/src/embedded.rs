//! The embedded engine: etcd's semantics in one redb file, for one machine.
//!
//! One writer thread gathers concurrent requests into one redb transaction and one fsync (group
//! commit); each still has its own revision. Readers use redb's snapshots and never block it.
//! Watchers learn of a revision only once it is durable; lazy writes alone ([`Txn::lazy`]) are told
//! of before. Nothing else may open the file.

mod apply;
mod lease;
mod recent;
mod tables;
mod watch;
mod writer;

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::RwLock;
use redb::{Database, DatabaseError, ReadableDatabase, StorageError, backends::FileBackend};
use tokio::sync::{Semaphore, oneshot, watch as newest};

use crate::{Engine, Error, Range, RangeResult, Revision, Status, Txn, TxnResult, Watch, WatchStream, check, limits};
use recent::Recent;
use writer::{Answer, Command, Request};

const FILE: &str = "store.redb";

/// How the embedded engine uses memory and disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// Page cache in bytes.
    pub cache_bytes: usize,
    /// Writes are refused while the file system has fewer free bytes than this.
    pub min_free_bytes: u64,
    /// Writes are refused while the file is larger than this.
    pub max_file_bytes: u64,
    /// How long [lazy](Txn::lazy) writes wait until they are made durable by themselves.
    pub lazy_delay: Duration,
    /// Where a store that is made anew begins to count.
    pub first_revision: Revision,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: limits::PAGE_CACHE_BYTES,
            min_free_bytes: limits::MIN_FREE_BYTES,
            max_file_bytes: limits::MAX_FILE_BYTES,
            lazy_delay: limits::LAZY_DELAY,
            first_revision: tables::FIRST_REVISION,
        }
    }
}

/// An open store. Dropping the last handle ends the writer and closes the file.
pub struct Embedded {
    shared: Arc<Shared>,
    /// Taken when dropped, which ends the writer.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<thread::JoinHandle<()>>,
    queue: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// What the writer, the readers and the watchers share.
struct Shared {
    path: PathBuf,
    options: Options,
    /// `None` between a failed write and the next successful opening of the file.
    db: RwLock<Option<Database>>,
    recent: RwLock<Recent>,
    /// How often lazy writes that watchers may have seen were lost by a failing disk.
    losses: AtomicU64,
    /// The newest acknowledged revision; its sender belongs to the writer and ends with it.
    newest: newest::Receiver<Revision>,
}

impl Embedded {
    /// Opens the store in `dir` (made with mode 0700 when missing), repairing it after a crash.
    ///
    /// # Errors
    /// When the directory cannot be used, another process has it open, or the file is damaged.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Embedded>, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::Unavailable(format!("cannot make {}: {e}", dir.display())))?;
        let path = dir.join(FILE);
        let db = open_file(&path, &options)?;
        let (revision, leases) = writer::prepare(&db, options.first_revision)?;
        // The file's name must survive a power cut as well.
        fs::File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| Error::Unavailable(format!("cannot sync {}: {e}", dir.display())))?;
        let (newest, watching) = newest::channel(revision);
        let shared = Arc::new(Shared {
            path,
            options,
            db: RwLock::new(Some(db)),
            recent: RwLock::default(),
            losses: AtomicU64::new(0),
            newest: watching,
        });
        let (commands, received) = mpsc::channel();
        let writer = writer::Writer::new(Arc::clone(&shared), received, newest, leases);
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| Error::Unavailable(format!("cannot start the writer thread: {e}")))?;
        Ok(Arc::new(Embedded {
            shared,
            commands: Some(commands),
            writer: Some(thread),
            queue: Arc::new(Semaphore::new(limits::WRITE_QUEUE)),
            reads: Arc::new(Semaphore::new(limits::CONCURRENT_READS)),
        }))
    }

    async fn ask(&self, request: Request) -> Result<Answer, Error> {
        let ended = || Error::Unavailable("the store's writer has ended".to_owned());
        let permit = Arc::clone(&self.queue).acquire_owned().await;
        let (reply, answer) = oneshot::channel();
        let command = Command { request, reply, _permit: permit.map_err(|_| ended())? };
        let commands = self.commands.as_ref().ok_or_else(ended)?;
        commands.send(command).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Runs a read on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let ended = |_| Error::Unavailable("the store is closing".to_owned());
        let permit = Arc::clone(&self.reads).acquire_owned().await;
        let permit = permit.map_err(|_| Error::Unavailable("the store is closing".to_owned()))?;
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            f(&shared)
        })
        .await
        .map_err(ended)?
    }
}

#[async_trait]
impl Engine for Embedded {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        check::range(&range)?;
        self.read(move |shared| shared.range(&range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        check::txn(&txn)?;
        match self.ask(Request::Txn(txn)).await? {
            Answer::Txn(result) => Ok(result),
            _ => Err(writer::mismatch()),
        }
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        let shared = Arc::clone(&self.shared);
        let start = watch.start;
        // Asked now rather than at the first item, so that the caller can act on it.
        self.read(move |shared| shared.check_watch(start)).await?;
        Ok(watch::stream(shared, watch))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(*self.shared.newest.borrow())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(Request::Compact(revision)).await.map(|_| ())
    }

    async fn lease_grant(&self, ttl: i64) -> Result<i64, Error> {
        let (shortest, longest) = limits::LEASE_TTL;
        if ttl > longest {
            return Err(Error::Invalid(format!("a lease of {ttl} s, at most {longest} s are allowed")));
        }
        match self.ask(Request::Grant(ttl.max(shortest))).await? {
            Answer::Lease(id) => Ok(id),
            _ => Err(writer::mismatch()),
        }
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), Error> {
        self.ask(Request::KeepAlive(lease)).await.map(|_| ())
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        self.ask(Request::Revoke(lease)).await.map(|_| ())
    }

    async fn status(&self) -> Result<Status, Error> {
        self.read(|shared| {
            let (revision, compacted) = shared.with_db(|db| {
                let txn = db.begin_read().map_err(error)?;
                counters(&txn)
            })?;
            Ok(Status {
                engine: "embedded",
                version: format!("redb format {}", tables::FORMAT),
                revision,
                compacted,
                size_bytes: fs::metadata(&shared.path).map_or(0, |m| m.len()),
            })
        })
        .await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
        // Waits for running reads, then closes the file.
        *self.shared.db.write() = None;
    }
}

impl Shared {
    fn with_db<T>(&self, f: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        match &*self.db.read() {
            Some(db) => f(db),
            None => Err(Error::Unavailable("the store is not open".to_owned())),
        }
    }

    fn range(&self, range: &Range) -> Result<RangeResult, Error> {
        self.with_db(|db| {
            let txn = db.begin_read().map_err(error)?;
            let (newest, compacted) = counters(&txn)?;
            check_revision(range.revision, newest, compacted)?;
            let at = if range.revision > 0 { range.revision } else { newest };
            let history = txn.open_table(tables::HISTORY).map_err(error)?;
            tables::read_range(&history, range, at, newest)
        })
    }

    fn check_watch(&self, start: Revision) -> Result<(), Error> {
        self.with_db(|db| {
            let txn = db.begin_read().map_err(error)?;
            let (_, compacted) = counters(&txn)?;
            if start > 0 && start < compacted {
                return Err(Error::Compacted { requested: start, oldest: compacted });
            }
            Ok(())
        })
    }
}

fn open_file(path: &Path, options: &Options) -> Result<Database, Error> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::Unavailable(format!("cannot open {}: {e}", path.display())))?;
    let open = |file| {
        let backend = FileBackend::new(file)?;
        Database::builder().set_cache_size(options.cache_bytes).create_with_backend(backend)
    };
    open(file).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => {
            Error::Unavailable(format!("{} is open in another process; stop that one first", path.display()))
        }
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() == ErrorKind::InvalidData => damaged(path, &e),
        DatabaseError::Storage(StorageError::Corrupted(why)) => damaged(path, &why),
        e @ (DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted) => damaged(path, &e),
        e => error(e),
    })
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Corrupt(format!(
        "{}: {why}; put a copy of it back, or move it away to start with an empty cluster",
        path.display()
    ))
}

/// The newest and the compacted revision.
fn counters(txn: &redb::ReadTransaction) -> Result<(Revision, Revision), Error> {
    let meta = txn.open_table(tables::META).map_err(error)?;
    let counter = |name| -> Result<i64, Error> { Ok(meta.get(name).map_err(error)?.map_or(0, |v| v.value())) };
    Ok((counter(tables::META_REVISION)?, counter(tables::META_COMPACTED)?))
}

/// May the history at `revision` (0: the newest) be read?
fn check_revision(revision: Revision, newest: Revision, compacted: Revision) -> Result<(), Error> {
    if revision > newest {
        return Err(Error::Future { requested: revision, newest });
    }
    if revision > 0 && revision < compacted {
        return Err(Error::Compacted { requested: revision, oldest: compacted });
    }
    Ok(())
}

/// redb's errors as the caller can act on them.
fn error(e: impl Into<redb::Error>) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match e.into() {
        redb::Error::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            Error::NoSpace(e.to_string())
        }
        redb::Error::Corrupted(what) => Error::Corrupt(what),
        e => Error::Unavailable(e.to_string()),
    }
}

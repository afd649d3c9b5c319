//! Every bound of this crate in one place.

use std::time::Duration;

/// Largest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;
/// Largest sum of keys and values in one transaction, in bytes (the API server's body limit is 3 MiB).
pub const MAX_TXN_BYTES: usize = 8 * 1024 * 1024;
/// Most compares, and most operations of one branch, in a transaction (etcd's default).
pub const MAX_TXN_OPS: usize = 128;

/// Page cache of the embedded engine, in bytes.
pub const PAGE_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// Free bytes of the file system below which the embedded engine refuses writes.
pub const MIN_FREE_BYTES: u64 = 32 * 1024 * 1024;
/// File size above which the embedded engine refuses writes.
pub const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Requests waiting for the embedded engine's writer; further callers wait their turn.
pub const WRITE_QUEUE: usize = 1024;
/// Most transactions made durable by one fsync.
pub const GROUP_COMMIT_TXNS: usize = 256;
/// Most bytes of keys and values made durable by one fsync.
pub const GROUP_COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// Range reads that run at once in the embedded engine.
pub const CONCURRENT_READS: usize = 4;
/// Revisions (and their bytes) kept in memory for watchers of the embedded engine; one that is
/// further behind reads the log on disk.
pub const RECENT_REVISIONS: usize = 1024;
pub const RECENT_BYTES: usize = 1024 * 1024;
/// Revisions a lagging watcher reads from the log at once.
pub const REPLAY_REVISIONS: usize = 256;
/// Log entries removed by one write transaction of a compaction: writers wait no longer than that takes
/// (about 5 ms).
pub const COMPACT_BATCH: usize = 200;
/// How long the embedded engine keeps lazy writes before it makes them durable by themselves.
pub const LAZY_DELAY: Duration = Duration::from_secs(120);
/// Revisions set apart for lazy writes by one durable write: after a crash as many are skipped.
pub const LAZY_REVISIONS: i64 = 1000;
/// Leases that may exist at once in the embedded engine.
pub const MAX_LEASES: usize = 100_000;
/// Shortest and longest time to live of a lease, in seconds.
pub const LEASE_TTL: (i64, i64) = (1, 9_000_000);

/// Keys asked etcd for at once when a large range is read in pages.
pub const RANGE_PAGE: i64 = 500;
/// Keys the watch cache asks an engine for at once while it loads.
pub const LOAD_PAGE: i64 = 2000;

/// Changes the watch cache keeps for watches that start in the past.
pub const RING_EVENTS: usize = 8192;
/// Bytes of stored values those changes may hold.
pub const RING_BYTES: usize = 16 * 1024 * 1024;
/// How long those changes are kept: as long as the history (see [`COMPACT_INTERVAL`]).
pub const RING_AGE: Duration = Duration::from_secs(300);
/// Changes that a look at an older state takes back; one that is further away is read from the engine.
pub const TAKEN_BACK: usize = 2048;
/// Changes waiting for one watcher before it is told that it lags.
pub const WATCHER_QUEUE: usize = 1024;
/// Watchers of one cache.
pub const MAX_WATCHERS: usize = 50_000;
/// How long a quiet watcher goes without hearing of progress.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);
/// How long a linearizable read waits for the newest revision before it writes a barrier.
pub const FRESH_PATIENCE: Duration = Duration::from_millis(200);
/// How long a linearizable read waits altogether.
pub const FRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// First and longest pause between attempts to reach an engine that is away.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long one request to etcd may take.
pub const ETCD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read is repeated while etcd is away.
pub const ETCD_READ_PATIENCE: Duration = Duration::from_secs(7);
/// How long one attempt to connect to etcd may take.
pub const ETCD_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often an idle connection to etcd is probed, and how long the answer may take.
/// etcd ends connections that are probed more often than every 5 s.
pub const ETCD_KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(2));
/// How long a member of etcd may take until others are asked by those who come later.
pub const ETCD_SLOW: Duration = Duration::from_secs(1);
/// How long the first attempt to read, or to open a watch, may take.
pub const ETCD_FIRST_READ: Duration = Duration::from_secs(2);
/// Largest message taken from etcd, in bytes.
pub const ETCD_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// How long history is kept, and how often it is trimmed (upstream's default).
pub const COMPACT_INTERVAL: Duration = Duration::from_secs(300);

/// Bytes of keys and values after which a restore writes what it has read (etcd takes requests of 1.5 MiB).
pub const RESTORE_BATCH_BYTES: usize = 256 * 1024;
/// Writes under way at once while a restore raises the revision.
pub const RESTORE_WRITES: usize = 256;
/// How many revisions a restored store is ahead of its snapshot: writes made after that may have been seen.
pub const RESTORE_MARGIN: i64 = 10_000;
/// What restored events have left to live (upstream's whole life of an event).
pub const RESTORED_LEASE: Duration = Duration::from_secs(3600);

//! The revisioned key-value store under the API server, with etcd's semantics.
//!
//! Two engines implement [`Engine`]: the embedded one (redb, one machine) and etcd (several API
//! servers). One conformance suite runs on both. [`cache`] keeps decoded objects in memory and
//! serves linearizable reads and watches from them. Only the API server uses this crate.

mod backoff;
pub mod cache;
mod check;
pub mod compactor;
mod cow;
pub mod embedded;
pub mod etcd;
pub mod limits;
pub mod snapshot;

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// A revision: one per committed transaction that wrote something. An empty store is at 1, as in etcd.
pub type Revision = i64;

/// A key with its value and history counters, as etcd's `KeyValue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// Writes since the key was created; 1 for the creating write.
    pub version: i64,
    /// The lease the key is attached to, or 0.
    pub lease: i64,
}

/// Reads `[key, end)` (or the one key when `end` is empty; everything from `key` when `end` is `\0`).
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub key: Bytes,
    pub end: Bytes,
    /// 0 reads the newest revision.
    pub revision: Revision,
    /// 0 is no limit.
    pub limit: i64,
    pub count_only: bool,
}

#[derive(Clone, Debug)]
pub struct RangeResult {
    /// The store's newest revision when the range was read.
    pub revision: Revision,
    pub kvs: Vec<Kv>,
    /// True when the limit cut the answer.
    pub more: bool,
    /// How many keys the range holds, limit apart.
    pub count: i64,
}

/// A precondition of a transaction. A missing key has mod revision, version and value-length 0.
#[derive(Clone, Debug)]
pub enum Compare {
    ModRevision { key: Bytes, equals: Revision },
    Version { key: Bytes, equals: i64 },
    Value { key: Bytes, equals: Bytes },
}

#[derive(Clone, Debug)]
pub enum Op {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes, end: Bytes },
    Get(Range),
}

/// If every `compare` holds runs `success`, else `failure`; all writes share one revision.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
    /// The writes may be lost by a crash that comes soon, and nobody minds (a heartbeat): the
    /// embedded engine acknowledges them before they are durable, which they are with the next other
    /// write or after [`limits::LAZY_DELAY`]. A revision that a crash loses is never used again.
    /// etcd knows no such writes.
    pub lazy: bool,
}

#[derive(Clone, Debug)]
pub enum OpResult {
    Put,
    Delete { deleted: i64 },
    Get(RangeResult),
}

#[derive(Clone, Debug)]
pub struct TxnResult {
    pub succeeded: bool,
    pub revision: Revision,
    pub results: Vec<OpResult>,
}

#[derive(Clone, Debug)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change. For a delete, `kv` carries the key and the deleting revision with an empty value.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub kv: Kv,
    pub previous: Option<Kv>,
}

/// What a watch delivers: whole revisions, never a part of one.
#[derive(Clone, Debug)]
pub enum WatchItem {
    Events {
        revision: Revision,
        events: Vec<Event>,
    },
    /// Nothing up to and including this revision is still to come.
    Progress(Revision),
}

#[derive(Clone, Debug)]
pub struct Watch {
    pub key: Bytes,
    pub end: Bytes,
    /// First revision to deliver; 0 starts after the newest one.
    pub start: Revision,
}

pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem, Error>> + Send>>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("revision {requested} has been compacted; the oldest is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future { requested: Revision, newest: Revision },
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    /// The disk is full or the quota is reached: reads go on, writes are refused.
    #[error("the store has no space left: {0}")]
    NoSpace(String),
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    #[error("the request to the store is too large: {0}")]
    TooLarge(String),
    /// A request the store never takes, such as two puts of one key in one transaction.
    #[error("the store refuses the request: {0}")]
    Invalid(String),
}

/// What `sluice status` says of the store.
#[derive(Clone, Debug)]
pub struct Status {
    /// `embedded` or `etcd`.
    pub engine: &'static str,
    pub version: String,
    pub revision: Revision,
    pub compacted: Revision,
    pub size_bytes: u64,
}

/// A store with etcd's semantics. A write is durable (fsync) before its future resolves, unless it is
/// [lazy](Txn::lazy).
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    async fn range(&self, range: Range) -> Result<RangeResult, Error>;
    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error>;
    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error>;
    /// The newest revision, linearizable.
    async fn revision(&self) -> Result<Revision, Error>;
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
    /// Grants a lease of `ttl` seconds and returns its id.
    async fn lease_grant(&self, ttl: i64) -> Result<i64, Error>;
    async fn lease_keep_alive(&self, lease: i64) -> Result<(), Error>;
    async fn lease_revoke(&self, lease: i64) -> Result<(), Error>;
    async fn status(&self) -> Result<Status, Error>;
}

pub type DynEngine = Arc<dyn Engine>;

/// The `end` of a range of all keys that start with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

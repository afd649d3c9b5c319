//! The server's view of the store: reads from the watch cache, writes with compare-and-swap.
//! The only module that builds store keys. It knows objects, not requests: validation and admission
//! happen above it.

mod along;
mod encode;
mod heartbeat;
mod lease;
mod object;
mod own;
mod servers;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};
use sluice_store::{
    Compare, DynEngine, Error, Kv, Op, Range, Revision, Txn,
    cache::{Cache, CacheLimits, CacheWatch, Decode, Filter, Snapshot},
    compactor, prefix_end,
};
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub(crate) use along::{Along, Notes};
use encode::encode;
pub use object::StoredObject;
pub(crate) use object::frame;

use crate::{context::AtRest, limits, meta};

/// Where everything is stored.
const ROOT: &str = "/registry/";
/// Keys beside the objects that are none: the cache follows their revisions and leaves them out.
const NOTES: &str = "/registry/.sluice/";
/// What expires.
const EVENTS: &str = "/registry/events/";

/// Reads and writes of objects. Shared as `Arc<Storage>`.
pub struct Storage {
    engine: DynEngine,
    cache: Arc<Cache<Decoder>>,
    at_rest: Arc<dyn AtRest>,
    event_lease: lease::EventLease,
    /// By hash of the key; see [`Storage::lock`].
    locks: Box<[Mutex<()>]>,
    _compaction: AbortOnDropHandle<()>,
}

/// Objects of one collection at one revision, sorted by namespace and name.
pub struct Objects {
    pub revision: Revision,
    pub items: Vec<Arc<StoredObject>>,
}

/// Turns stored bytes into objects for the cache.
struct Decoder {
    at_rest: Arc<dyn AtRest>,
}

impl Decode for Decoder {
    type Object = StoredObject;

    fn decode(&self, kv: &Kv) -> Option<StoredObject> {
        if kv.value.is_empty() || kv.key.starts_with(NOTES.as_bytes()) {
            return None;
        }
        decode(&*self.at_rest, kv)
            .inspect_err(|status| {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::warn!(%key, error = %status.message, "a stored value is no object and is left out");
            })
            .ok()
    }

    fn tag(object: &StoredObject) -> &str {
        object.tag()
    }
}

fn decode(at_rest: &dyn AtRest, kv: &Kv) -> Result<StoredObject, Status> {
    let key = std::str::from_utf8(&kv.key).map_err(Status::internal)?;
    let plain = at_rest.open(key, &kv.value)?;
    let mut object = StoredObject::decode(&plain, kv.mod_revision, kv.version == 1).map_err(Status::internal)?;
    object.fields = crate::fields::extract(key, &object.bytes);
    object.tagged_by = crate::fields::tagged_by(key);
    Ok(object)
}

/// The key of one object. The namespace is empty for cluster-scoped resources.
pub(crate) fn key(prefix: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") }
}

/// The prefix of the objects of one namespace, or of all for `""`.
pub(crate) fn collection(prefix: &str, namespace: &str) -> String {
    if namespace.is_empty() { prefix.to_owned() } else { format!("{prefix}{namespace}/") }
}

/// A page of an older revision, read from the engine.
pub(crate) struct Page {
    pub(crate) items: Vec<(String, Arc<StoredObject>)>,
    pub(crate) more: bool,
    /// Keys from the page's start on, this page included.
    pub(crate) count: i64,
}

impl Storage {
    /// Loads the cache; ready when this returns.
    pub async fn start(engine: DynEngine, at_rest: Arc<dyn AtRest>) -> anyhow::Result<Arc<Self>> {
        let decoder = Decoder { at_rest: Arc::clone(&at_rest) };
        let cache = Cache::start(Arc::clone(&engine), ROOT, decoder, CacheLimits::default()).await?;
        let compaction = tokio::spawn(compactor::run(Arc::clone(&engine), limits::HISTORY, CancellationToken::new()));
        Ok(Arc::new(Self {
            engine,
            cache,
            at_rest,
            event_lease: lease::EventLease::default(),
            locks: std::iter::repeat_with(Mutex::default).take(limits::WRITE_LOCKS).collect(),
            _compaction: AbortOnDropHandle::new(compaction),
        }))
    }

    /// The newest state that the cache has seen; every write of this server that has returned is in
    /// it. `prefix` is [`Resource::store_prefix`]; the namespace is empty for cluster-scoped
    /// resources.
    pub fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<StoredObject>> {
        self.cache.get(&key(prefix, namespace, name))
    }

    /// The newest collection that the cache has seen: of one namespace, or of all for `""`.
    pub fn list(&self, prefix: &str, namespace: &str) -> Objects {
        let snapshot = self.snapshot(prefix, namespace);
        Objects { revision: snapshot.revision, items: snapshot.iter().map(|(_, object)| Arc::clone(object)).collect() }
    }

    /// As [`Storage::list`], without copying anything.
    pub(crate) fn snapshot(&self, prefix: &str, namespace: &str) -> Snapshot<StoredObject> {
        self.cache.list(&collection(prefix, namespace))
    }

    /// Waits until the cache has everything that was committed before the call.
    pub async fn fresh(&self) -> Result<Revision, Status> {
        self.cache.fresh().await.map_err(failed)
    }

    /// Waits until the cache has seen `revision`; 504 when it does not come in time.
    pub(crate) async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        self.cache.wait_for(revision, limits::FRESH_TIMEOUT).await.map_err(failed)
    }

    /// The newest revision that the cache has seen.
    pub fn revision(&self) -> Revision {
        self.cache.revision()
    }

    /// Changes after `from` (0: from now on) under a collection.
    pub fn watch(&self, prefix: &str, namespace: &str, from: Revision) -> Result<CacheWatch<StoredObject>, Status> {
        self.cache.watch(&collection(prefix, namespace), from).map_err(cannot_watch)
    }

    /// As [`Storage::watch`], of the changes that `filter` lets through; see [`Cache::watch_where`].
    /// With a tag, which objects of the filter all have ([`StoredObject::tag`]), nobody else's changes
    /// are filtered at all.
    pub(crate) fn watch_where(
        &self,
        prefix: &str,
        namespace: &str,
        from: Revision,
        tag: Option<&str>,
        filter: Filter<StoredObject>,
    ) -> Result<CacheWatch<StoredObject>, Status> {
        let collection = collection(prefix, namespace);
        let watch = match tag {
            Some(tag) => self.cache.watch_tagged(&collection, from, tag, filter),
            None => self.cache.watch_where(&collection, from, filter),
        };
        watch.map_err(cannot_watch)
    }

    /// How many watches are open.
    pub(crate) fn watchers(&self) -> usize {
        self.cache.watchers()
    }

    /// As [`Storage::snapshot`], as it was at `revision`, while the engine still knows that revision; `None` when the cache
    /// cannot tell.
    pub(crate) async fn snapshot_at(
        &self,
        prefix: &str,
        namespace: &str,
        revision: Revision,
    ) -> Result<Option<Snapshot<StoredObject>>, Error> {
        let Some(snapshot) = self.cache.list_at(&collection(prefix, namespace), revision) else { return Ok(None) };
        // Clients are told of a compaction when it happens, not when the cache has forgotten.
        let key = Bytes::from(collection(prefix, namespace));
        self.engine.range(Range { key, end: Bytes::new(), revision, limit: 1, count_only: true }).await?;
        Ok(Some(snapshot))
    }

    /// Objects with keys from `start` on as they were at `revision`, at most `limit` of them.
    pub(crate) async fn page(
        &self,
        prefix: &str,
        start: String,
        revision: Revision,
        limit: i64,
    ) -> Result<Page, Error> {
        let range =
            Range { key: Bytes::from(start), end: prefix_end(prefix.as_bytes()), revision, limit, count_only: false };
        let result = self.engine.range(range).await?;
        let items = result
            .kvs
            .iter()
            .filter_map(|kv| {
                let object = decode(&*self.at_rest, kv).ok()?;
                Some((String::from_utf8_lossy(&kv.key).into_owned(), Arc::new(object)))
            })
            .collect();
        Ok(Page { items, more: result.more, count: result.count })
    }

    /// What the store says of itself.
    pub async fn status(&self) -> Result<sluice_store::Status, Status> {
        self.engine.status().await.map_err(failed)
    }

    /// Held by whoever reads, changes and writes one object, so that the writers of this server
    /// queue up instead of repeating each other's work. What keeps writes apart is still the
    /// comparison in the store: other servers do not see this lock.
    pub(crate) async fn lock(&self, prefix: &str, namespace: &str, name: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (prefix, namespace, name).hash(&mut hasher);
        let at = hasher.finish() as usize % self.locks.len();
        self.locks[at].lock().await
    }

    /// Writes a new object and what goes along with it; `None` when the key is taken, or something does not hold.
    pub(crate) async fn insert(
        &self,
        resource: &Resource,
        object: &Value,
        along: Along,
    ) -> Result<Option<Arc<StoredObject>>, Status> {
        let key = self.key_of(resource, object);
        let free = Compare::Version { key: Bytes::copy_from_slice(key.as_bytes()), equals: 0 };
        self.put(resource, key, free, object, along).await
    }

    /// Replaces the object that was last written at `expected`; `None` when that is no longer so, or something of what
    /// goes along does not hold.
    pub(crate) async fn replace(
        &self,
        resource: &Resource,
        object: &Value,
        expected: Revision,
        along: Along,
    ) -> Result<Option<Arc<StoredObject>>, Status> {
        let key = self.key_of(resource, object);
        let unchanged = Compare::ModRevision { key: Bytes::copy_from_slice(key.as_bytes()), equals: expected };
        self.put(resource, key, unchanged, object, along).await
    }

    /// Removes the object that was last written at `expected`; `None` when that is no longer so, or something of what
    /// goes along does not hold, else the revision of the removal.
    pub(crate) async fn remove(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        expected: Revision,
        along: Along,
    ) -> Result<Option<Revision>, Status> {
        let key = Bytes::from(key(resource.store_prefix(), namespace, name));
        let Along { mut compare, writes: mut success } = along;
        compare.push(Compare::ModRevision { key: key.clone(), equals: expected });
        success.push(Op::Delete { key, end: Bytes::new() });
        let txn = Txn { compare, success, ..Txn::default() };
        let result = self.engine.txn(txn).await.map_err(failed)?;
        if !result.succeeded {
            return Ok(None);
        }
        self.seen(result.revision).await;
        Ok(Some(result.revision))
    }

    async fn put(
        &self,
        resource: &Resource,
        key: String,
        condition: Compare,
        object: &Value,
        along: Along,
    ) -> Result<Option<Arc<StoredObject>>, Status> {
        let created = matches!(condition, Compare::Version { .. });
        let before = self
            .cache
            .get(&key)
            .filter(|cached| matches!(condition, Compare::ModRevision { equals, .. } if equals == cached.revision));
        let plain = encode(object)?;
        let value = self.at_rest.seal(&key, plain.clone())?;
        let lease = if resource.store_prefix() == EVENTS { self.event_lease.current(&self.engine).await? } else { 0 };
        let Along { mut compare, writes: mut success } = along;
        compare.push(condition);
        success.push(Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value, lease });
        let lazy = heartbeat::is_one(resource, before.as_deref(), object);
        let txn = Txn { compare, success, failure: Vec::new(), lazy };
        let result = self.engine.txn(txn).await.map_err(failed)?;
        if !result.succeeded {
            return Ok(None);
        }
        self.seen(result.revision).await;
        // The cache has just decoded the same bytes; only a write on top of ours hides them.
        if let Some(cached) = self.cache.get(&key).filter(|o| o.revision == result.revision) {
            return Ok(Some(cached));
        }
        let mut stored = StoredObject::decode(&plain, result.revision, created).map_err(Status::internal)?;
        stored.fields = crate::fields::extract(&key, &stored.bytes);
        stored.tagged_by = crate::fields::tagged_by(&key);
        Ok(Some(Arc::new(stored)))
    }

    /// Lets the cache catch up with a write of ours, so that whatever this server decides next is
    /// decided on it. A cache that is late is not an error: the write is done.
    async fn seen(&self, revision: Revision) {
        if let Err(error) = self.cache.wait_for(revision, limits::FRESH_TIMEOUT).await {
            tracing::warn!(%error, "the cache is late");
        }
    }

    fn key_of(&self, resource: &Resource, object: &Value) -> String {
        let namespace = if resource.namespaced { meta::namespace(object) } else { "" };
        key(resource.store_prefix(), namespace, meta::name(object))
    }
}

fn cannot_watch(error: Error) -> Status {
    match error {
        Error::Compacted { requested, oldest } => Status::too_old(requested, (oldest - 1).max(0)),
        other => failed(other),
    }
}

/// A failure of the store as the client is told of it.
pub(crate) fn failed(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => Status::list_too_old(),
        Error::Future { requested, newest } => Status::too_new(requested, newest),
        Error::TooLarge(_) => Status::too_large(limits::BODY_BYTES),
        Error::Unavailable(_) | Error::NoSpace(_) => Status::unavailable(error.to_string()),
        Error::LeaseNotFound(_) | Error::Corrupt(_) | Error::Invalid(_) => Status::internal(error),
    }
}

//! The cache's memory: objects by resource, recent changes, and who watches what. Pure data under
//! one lock; no IO and no waiting.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{CacheLimits, Snapshot};
use crate::{Error, Revision, cow::CowMap, limits};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// Whether a watcher wants a change, by the object and what it was before.
pub type Filter<O> = Box<dyn Fn(&O, Option<&O>) -> bool + Send + Sync>;

/// What a watcher wants of the changes under its prefix.
pub(super) struct Interest<O> {
    pub(super) filter: Option<Filter<O>>,
    /// Only changes of objects with this tag, now or before.
    pub(super) tag: Option<Box<str>>,
}

/// One change, shared by the ring and every queue it waits in.
pub(super) struct Change<O> {
    pub(super) revision: Revision,
    pub(super) key: Arc<str>,
    pub(super) kind: Kind,
    pub(super) object: Arc<O>,
    pub(super) previous: Option<Arc<O>>,
}

/// Changes in the order of their revisions.
pub(super) type Changes<O> = Vec<Arc<Change<O>>>;

/// A decoded event, about to be applied. `object` is `None` when the value is no object.
pub(super) struct Update<O> {
    pub(super) key: Arc<str>,
    pub(super) object: Option<Arc<O>>,
    pub(super) deleted: bool,
    pub(super) bytes: usize,
}

pub(super) struct State<O> {
    prefix: String,
    /// By what watchers of one bucket are sorted.
    tag: fn(&O) -> &str,
    revision: Revision,
    /// By bucket: the prefix with one more path segment, such as `/registry/pods/`.
    buckets: BTreeMap<Arc<str>, Bucket<O>>,
    /// Watchers of prefixes wider than one bucket.
    wide: Subscribers<O>,
    /// In order of arrival.
    ring: VecDeque<Kept>,
    ring_bytes: usize,
    limits: (usize, usize, Duration),
    /// Nothing up to here can be replayed for a bucket that is new.
    loaded: Revision,
    watchers: usize,
    next_id: u64,
}

/// One change of the ring: the bucket it sits in, its size, when it came.
struct Kept {
    bucket: Arc<str>,
    bytes: usize,
    at: Instant,
}

struct Bucket<O> {
    objects: CowMap<Arc<O>>,
    recent: VecDeque<Arc<Change<O>>>,
    /// Changes up to this revision may be missing from `recent`.
    forgotten: Revision,
    subscribers: Subscribers<O>,
}

/// Those who want every change, and those who want the changes of one tag.
struct Subscribers<O> {
    all: Vec<Subscriber<O>>,
    tagged: HashMap<Box<str>, Vec<Subscriber<O>>>,
}

impl<O> Default for Subscribers<O> {
    fn default() -> Self {
        Self { all: Vec::new(), tagged: HashMap::new() }
    }
}

struct Subscriber<O> {
    id: u64,
    prefix: Arc<str>,
    filter: Option<Filter<O>>,
    queue: mpsc::Sender<Arc<Change<O>>>,
}

impl<O> Subscriber<O> {
    fn wants(&self, change: &Change<O>) -> bool {
        let filter = |filter: &Filter<O>| filter(&change.object, change.previous.as_deref());
        change.key.starts_with(&*self.prefix) && self.filter.as_ref().is_none_or(filter)
    }
}

/// A new watcher's start: what it missed, and where its queue begins.
pub(super) struct Subscription<O> {
    pub(super) id: u64,
    pub(super) backlog: VecDeque<Arc<Change<O>>>,
    pub(super) queue: mpsc::Receiver<Arc<Change<O>>>,
}

impl<O> State<O> {
    pub(super) fn new(prefix: &str, limits: &CacheLimits, tag: fn(&O) -> &str) -> Self {
        State {
            prefix: prefix.to_owned(),
            tag,
            revision: 0,
            buckets: BTreeMap::new(),
            wide: Subscribers::default(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            limits: (limits.ring_events, limits.ring_bytes, limits.ring_age),
            loaded: 0,
            watchers: 0,
            next_id: 0,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn watchers(&self) -> usize {
        self.watchers
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<O>> {
        let bucket = self.buckets.get(bucket_of(&self.prefix, key))?;
        bucket.objects.get(key).cloned()
    }

    pub(super) fn snapshot(&self, prefix: &str) -> Snapshot<O> {
        let own = bucket_of(&self.prefix, prefix);
        let maps = if own.ends_with('/') && own.len() > self.prefix.len() {
            let bucket = self.buckets.get(own);
            bucket.map(|b| b.objects.clone()).into_iter().collect()
        } else {
            self.under(prefix).map(|(_, b)| b.objects.clone()).collect()
        };
        Snapshot { revision: self.revision, prefix: prefix.into(), maps }
    }

    /// The newest state of a prefix within one bucket, and what has changed in the bucket since `revision`; `None` when that
    /// is not known, or is too much.
    pub(super) fn since(&self, prefix: &str, revision: Revision) -> Option<(Snapshot<O>, Changes<O>)> {
        let bucket = self.buckets.get(bucket_of(&self.prefix, prefix))?;
        if revision > self.revision || revision < bucket.forgotten.max(self.loaded) {
            return None;
        }
        let start = bucket.recent.partition_point(|change| change.revision <= revision);
        let since = bucket.recent.range(start..);
        (since.len() <= limits::TAKEN_BACK).then(|| (self.snapshot(prefix), since.cloned().collect()))
    }

    /// The state a read of the whole prefix found.
    pub(super) fn loaded(mut self, revision: Revision, objects: Vec<(Arc<str>, Arc<O>)>) -> Self {
        self.loaded = revision;
        self.revision = revision;
        for (key, object) in objects {
            self.bucket(&key).objects.insert(key, object);
        }
        self
    }

    /// Puts `next` in this state's place and returns what was there. Its watchers end: what
    /// happened in between is not known.
    pub(super) fn replace(&mut self, mut next: Self) -> Self {
        next.next_id = self.next_id;
        std::mem::replace(self, next)
    }

    /// Applies one whole revision, which came at `now`.
    pub(super) fn apply(&mut self, revision: Revision, updates: Vec<Update<O>>, now: Instant) {
        for update in updates {
            self.apply_one(revision, update, now);
        }
        self.revision = self.revision.max(revision);
        self.forget(now);
    }

    fn apply_one(&mut self, revision: Revision, update: Update<O>, now: Instant) {
        let Update { key, object, deleted, bytes } = update;
        let bucket = self.bucket(&key);
        let change = match object {
            Some(object) if !deleted => {
                let previous = bucket.objects.insert(Arc::clone(&key), Arc::clone(&object));
                let kind = match previous {
                    Some(_) => Kind::Modified,
                    None => Kind::Added,
                };
                Change { revision, key, kind, object, previous }
            }
            // A deletion, or a value that no longer is an object.
            object => {
                let Some(previous) = bucket.objects.remove(&key) else {
                    return;
                };
                Change {
                    revision,
                    key,
                    kind: Kind::Deleted,
                    object: object.unwrap_or_else(|| Arc::clone(&previous)),
                    previous: Some(previous),
                }
            }
        };
        self.publish(Arc::new(change), bytes, now);
    }

    fn publish(&mut self, change: Arc<Change<O>>, bytes: usize, now: Instant) {
        let name: Arc<str> = Arc::from(bucket_of(&self.prefix, &change.key));
        let tag = self.tag;
        let bucket = self.bucket(&change.key);
        bucket.recent.push_back(Arc::clone(&change));
        let ended = bucket.subscribers.send(&change, tag) + self.wide.send(&change, tag);
        self.watchers -= ended;
        self.ring.push_back(Kept { bucket: name, bytes, at: now });
        self.ring_bytes += bytes;
        self.forget(now);
    }

    /// Drops the changes beyond the ring's limits.
    fn forget(&mut self, now: Instant) {
        let (events, bytes, age) = self.limits;
        while self.ring.len() > events
            || self.ring_bytes > bytes
            || self.ring.front().is_some_and(|kept| now.saturating_duration_since(kept.at) > age)
        {
            let Some(kept) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= kept.bytes;
            if let Some(bucket) = self.buckets.get_mut(&kept.bucket)
                && let Some(oldest) = bucket.recent.pop_front()
            {
                bucket.forgotten = oldest.revision;
            }
        }
    }

    /// Registers a watcher of `prefix` for changes after `from`.
    pub(super) fn subscribe(
        &mut self,
        prefix: &str,
        from: Revision,
        interest: Interest<O>,
        limits: &CacheLimits,
    ) -> Result<Subscription<O>, Error> {
        if self.watchers >= limits.max_watchers {
            return Err(Error::Unavailable(format!(
                "there are already {} watches, the most this server takes",
                self.watchers
            )));
        }
        let from = if from == 0 { self.revision } else { from };
        let mut backlog = self.replay(prefix, from)?;
        let (sender, queue) = mpsc::channel(limits.watcher_queue);
        self.next_id += 1;
        let id = self.next_id;
        let Interest { filter, tag } = interest;
        let subscriber = Subscriber { id, prefix: prefix.into(), filter, queue: sender };
        let has = |object: &O| tag.as_deref().is_none_or(|tag| (self.tag)(object) == tag);
        let tagged = |change: &Change<O>| has(&change.object) || change.previous.as_deref().is_some_and(has);
        backlog.retain(|change| tagged(change) && subscriber.wants(change));
        let subscribers = self.subscribers(prefix);
        match tag {
            Some(tag) => subscribers.tagged.entry(tag).or_default().push(subscriber),
            None => subscribers.all.push(subscriber),
        }
        self.watchers += 1;
        Ok(Subscription { id, backlog, queue })
    }

    pub(super) fn unsubscribe(&mut self, prefix: &str, tag: Option<&str>, id: u64) {
        let subscribers = self.subscribers(prefix);
        let list = match tag {
            Some(tag) => subscribers.tagged.get_mut(tag),
            None => Some(&mut subscribers.all),
        };
        // One that lagged, or whose state was replaced, is gone already.
        let Some(list) = list else { return };
        let before = list.len();
        list.retain(|s| s.id != id);
        let ended = before - list.len();
        if let Some(tag) = tag.filter(|_| list.is_empty()) {
            subscribers.tagged.remove(tag);
        }
        self.watchers -= ended;
    }

    fn replay(&self, prefix: &str, from: Revision) -> Result<VecDeque<Arc<Change<O>>>, Error> {
        let compacted = |oldest| Error::Compacted { requested: from, oldest };
        if from < self.loaded {
            return Err(compacted(self.loaded));
        }
        let mut backlog = Vec::new();
        let own = self.buckets.get_key_value(bucket_of(&self.prefix, prefix));
        for (_, bucket) in own.into_iter().chain(self.under(prefix)) {
            if from < bucket.forgotten {
                return Err(compacted(bucket.forgotten));
            }
            let start = bucket.recent.partition_point(|c| c.revision <= from);
            let missed = bucket.recent.range(start..);
            backlog.extend(missed.filter(|c| c.key.starts_with(prefix)).cloned());
            if own.is_some() {
                return Ok(backlog.into());
            }
        }
        backlog.sort_by_key(|c| c.revision);
        Ok(backlog.into())
    }

    /// The buckets whose whole keys start with `prefix`.
    fn under(&self, prefix: &str) -> impl Iterator<Item = (&Arc<str>, &Bucket<O>)> {
        self.buckets
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(name, _)| name.starts_with(prefix))
    }

    fn bucket(&mut self, key: &str) -> &mut Bucket<O> {
        let name = bucket_of(&self.prefix, key);
        if !self.buckets.contains_key(name) {
            let bucket = Bucket {
                objects: CowMap::default(),
                recent: VecDeque::new(),
                forgotten: self.loaded,
                subscribers: Subscribers::default(),
            };
            self.buckets.insert(Arc::from(name), bucket);
        }
        self.buckets.get_mut(name).expect("the bucket was just made when it was missing")
    }

    fn subscribers(&mut self, prefix: &str) -> &mut Subscribers<O> {
        let name = bucket_of(&self.prefix, prefix);
        if name.ends_with('/') && name.len() > self.prefix.len() {
            &mut self.bucket(prefix).subscribers
        } else {
            &mut self.wide
        }
    }
}

impl<O> Subscribers<O> {
    /// Queues `change` for those it concerns. Returns how many watches that ended.
    fn send(&mut self, change: &Arc<Change<O>>, tag: fn(&O) -> &str) -> usize {
        let mut ended = send(&mut self.all, change);
        if self.tagged.is_empty() {
            return ended;
        }
        let now = tag(&change.object);
        let before = change.previous.as_deref().map(tag).filter(|before| *before != now);
        for tag in before.into_iter().chain([now]) {
            if let Some(list) = self.tagged.get_mut(tag) {
                ended += send(list, change);
                if list.is_empty() {
                    self.tagged.remove(tag);
                }
            }
        }
        ended
    }
}

/// Queues `change` for those it concerns; one whose queue is full is dropped, which it sees as the
/// end of the queue. Returns how many ended.
fn send<O>(subscribers: &mut Vec<Subscriber<O>>, change: &Arc<Change<O>>) -> usize {
    let before = subscribers.len();
    subscribers.retain(|s| !s.wants(change) || s.queue.try_send(Arc::clone(change)).is_ok());
    before - subscribers.len()
}

/// `key` up to and including the first slash after `prefix`, or all of it.
fn bucket_of<'a>(prefix: &str, key: &'a str) -> &'a str {
    let rest = key.strip_prefix(prefix).unwrap_or("");
    match rest.find('/') {
        Some(at) => &key[..prefix.len() + at + 1],
        None => key,
    }
}

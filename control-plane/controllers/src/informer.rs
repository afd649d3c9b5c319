//! One watch per kind, shared by all controllers: a store of narrow objects and handlers that turn changes into keys.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::object::Object;
use crate::queue::Key;

/// A kind that is watched: its narrow view and how to make it narrower still.
pub(crate) trait Kind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
    /// Drops what no controller looks at.
    fn slim(&mut self) {
        self.meta_mut().managed_fields = None;
    }

    /// Keys under which [`Store::indexed`] finds the object, besides its name.
    fn indexes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// One change: what was known before and what is known now.
pub(crate) type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

#[derive(Debug)]
struct Objects<K> {
    by_key: HashMap<Key, Arc<K>>,
    by_namespace: HashMap<Arc<str>, HashSet<Key>>,
    by_index: HashMap<String, HashSet<Key>>,
}

/// The objects of one kind as last seen.
#[derive(Debug)]
pub(crate) struct Store<K> {
    objects: RwLock<Objects<K>>,
    synced: AtomicBool,
    notify: Notify,
}

impl<K: Kind> Default for Store<K> {
    fn default() -> Self {
        let objects = Objects { by_key: HashMap::new(), by_namespace: HashMap::new(), by_index: HashMap::new() };
        Self { objects: RwLock::new(objects), synced: AtomicBool::new(false), notify: Notify::new() }
    }
}

impl<K: Kind> Store<K> {
    /// The object, if it exists.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().by_key.get(key).cloned()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().by_key.values().cloned().collect()
    }

    /// All objects of a namespace.
    pub(crate) fn namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let keys = objects.by_namespace.get(namespace);
        keys.into_iter().flatten().filter_map(|key| objects.by_key.get(key).cloned()).collect()
    }

    /// All objects with this one among their [`Kind::indexes`].
    pub(crate) fn indexed(&self, index: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        objects.by_index.get(index).into_iter().flatten().filter_map(|key| objects.by_key.get(key).cloned()).collect()
    }

    /// Waits until the first list is complete.
    pub(crate) async fn synced(&self) {
        loop {
            let notified = self.notify.notified();
            if self.synced.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Takes in a new state of an object, returning the one before.
    pub(crate) fn put(&self, object: Arc<K>) -> Option<Arc<K>> {
        let key = object.key();
        let mut objects = self.objects.write();
        let old = objects.by_key.insert(key.clone(), object.clone());
        if old.is_none() {
            objects.by_namespace.entry(key.namespace.clone()).or_default().insert(key.clone());
        }
        let before = old.as_ref().map(|o| o.indexes()).unwrap_or_default();
        let after = object.indexes();
        for index in before.iter().filter(|i| !after.contains(i)) {
            drop_from(&mut objects.by_index, index, &key);
        }
        for index in after.into_iter().filter(|i| !before.contains(i)) {
            objects.by_index.entry(index).or_default().insert(key.clone());
        }
        old
    }

    /// Forgets an object, returning what was known.
    pub(crate) fn take(&self, key: &Key) -> Option<Arc<K>> {
        let mut objects = self.objects.write();
        let old = objects.by_key.remove(key)?;
        drop_from(&mut objects.by_namespace, &key.namespace, key);
        for index in old.indexes() {
            drop_from(&mut objects.by_index, &index, key);
        }
        Some(old)
    }

    fn keys(&self) -> HashSet<Key> {
        self.objects.read().by_key.keys().cloned().collect()
    }
}

fn drop_from<I: std::hash::Hash + Eq + Clone>(index: &mut HashMap<I, HashSet<Key>>, at: &I, key: &Key) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

/// A kind's store and the handlers of its changes. Handlers are added before [`Informer::start`].
pub(crate) struct Informer<K> {
    /// The store.
    pub(crate) store: Arc<Store<K>>,
    handlers: Mutex<Vec<Handler<K>>>,
    config: watcher::Config,
}

impl<K: Kind> Informer<K> {
    /// An informer of all objects `config` selects.
    pub(crate) fn new(config: watcher::Config) -> Self {
        Self { store: Arc::default(), handlers: Mutex::default(), config: config.page_size(limits::LIST_PAGE) }
    }

    /// Calls `handler` with every change, after the store has it.
    pub(crate) fn on_change(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        self.handlers.lock().push(Box::new(handler));
    }

    /// Starts the watch; it ends with `shutdown`.
    pub(crate) fn start(self, client: Client, shutdown: CancellationToken) {
        let Self { store, handlers, config } = self;
        let handlers = handlers.into_inner();
        let stream = watch(Api::<K>::all(client), config).default_backoff();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            let mut stream = std::pin::pin!(stream);
            let mut listed: HashSet<Key> = HashSet::new();
            while let Some(item) = stream.next().await {
                match item {
                    Ok(event) => apply(&store, &handlers, &mut listed, event),
                    Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is resumed"),
                }
            }
        }));
    }
}

fn apply<K: Kind>(store: &Store<K>, handlers: &[Handler<K>], listed: &mut HashSet<Key>, event: Event<K>) {
    let tell = |old: Option<&Arc<K>>, new: Option<&Arc<K>>| handlers.iter().for_each(|handler| handler(old, new));
    let put = |mut object: K| {
        object.slim();
        let object = Arc::new(object);
        let old = store.put(object.clone());
        tell(old.as_ref(), Some(&object));
    };
    let take = |key: &Key| {
        if let Some(old) = store.take(key) {
            tell(Some(&old), None);
        }
    };
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            listed.insert(object.key());
            put(object);
        }
        Event::InitDone => {
            store.keys().difference(listed).for_each(take);
            listed.clear();
            store.synced.store(true, Ordering::Release);
            store.notify.notify_waiters();
        }
        Event::Apply(object) => put(object),
        Event::Delete(object) => take(&object.key()),
    }
}

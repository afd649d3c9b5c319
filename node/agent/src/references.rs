//! ConfigMaps and Secrets that pods of this node refer to, each watched by name as long as a pod needs it, and never
//! listed as a whole: what the Node authorizer allows and what keeps memory small. One watch serves all pods.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::env::{self, KeyData, Objects};
use crate::model::Pod;
use crate::volumes::payload;

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The first answer has not come yet.
    Pending,
    Missing,
    Found(Arc<KeyData>),
}

/// Finds objects by name and follows them.
pub trait Source: Send + Sync + 'static {
    /// Follows one object until the sender's receivers are gone. Runs as its own task.
    fn follow(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        out: watch::Sender<Lookup>,
        changed: Arc<Changed>,
    ) -> AbortHandle;
}

/// Those to be told of a change.
#[derive(Default)]
pub struct Changed(Mutex<Vec<Weak<Notify>>>);

impl Changed {
    /// Wakes every pod that refers to the object.
    pub fn tell(&self) {
        self.0.lock().retain(|n| n.upgrade().inspect(|n| n.notify_one()).is_some());
    }
}

/// All objects followed on this node.
pub struct References {
    source: Box<dyn Source>,
    entries: Mutex<HashMap<(Kind, String, String), Weak<Entry>>>,
}

struct Entry {
    lookup: watch::Receiver<Lookup>,
    changed: Arc<Changed>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl References {
    /// No object is followed yet.
    pub fn new(source: impl Source) -> References {
        References { source: Box::new(source), entries: Mutex::new(HashMap::new()) }
    }

    /// Follows every object the pod refers to; `notify` is told of changes.
    pub fn of(&self, pod: &Pod, notify: &Arc<Notify>) -> PodObjects {
        let mut wanted: Vec<(Kind, &str)> = Vec::new();
        let lists = pod.containers().map(env::references).chain(pod.spec.volumes.iter().map(payload::references));
        for (maps, secrets) in lists {
            wanted.extend(maps.into_iter().map(|n| (Kind::ConfigMap, n)));
            wanted.extend(secrets.into_iter().map(|n| (Kind::Secret, n)));
        }
        wanted.extend(pod.spec.image_pull_secrets.iter().map(|s| (Kind::Secret, s.name.as_str())));
        let mut entries: HashMap<(Kind, String), Arc<Entry>> = HashMap::new();
        for (kind, name) in wanted {
            entries.entry((kind, name.to_owned())).or_insert_with(|| self.follow(kind, pod.namespace(), name, notify));
        }
        PodObjects { entries }
    }

    fn follow(&self, kind: Kind, namespace: &str, name: &str, notify: &Arc<Notify>) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        let key = (kind, namespace.to_owned(), name.to_owned());
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade) {
            entry.changed.0.lock().push(Arc::downgrade(notify));
            return entry;
        }
        entries.retain(|_, e| e.strong_count() > 0);
        let (sender, lookup) = watch::channel(Lookup::Pending);
        let changed = Arc::new(Changed::default());
        changed.0.lock().push(Arc::downgrade(notify));
        let task = self.source.follow(kind, namespace, name, sender, changed.clone());
        let entry = Arc::new(Entry { lookup, changed, task });
        entries.insert(key, Arc::downgrade(&entry));
        entry
    }
}

/// The objects one pod refers to.
pub struct PodObjects {
    entries: HashMap<(Kind, String), Arc<Entry>>,
}

impl PodObjects {
    /// Waits until each of them was looked up once.
    pub async fn loaded(&self) {
        for entry in self.entries.values() {
            let mut lookup = entry.lookup.clone();
            // The sender lives as long as the entry: an error cannot come before an answer that matters.
            let _ = lookup.wait_for(|l| !matches!(l, Lookup::Pending)).await;
        }
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Arc<KeyData>> {
        match &*self.entries.get(&(kind, name.to_owned()))?.lookup.borrow() {
            Lookup::Found(data) => Some(data.clone()),
            _ => None,
        }
    }
}

impl Objects for PodObjects {
    fn config_map(&self, name: &str) -> Option<Arc<KeyData>> {
        self.get(Kind::ConfigMap, name)
    }
    fn secret(&self, name: &str) -> Option<Arc<KeyData>> {
        self.get(Kind::Secret, name)
    }
}

/// The API server as the source: one watch with a `metadata.name` field selector per object.
pub struct ApiSource(pub Client);

impl Source for ApiSource {
    fn follow(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        out: watch::Sender<Lookup>,
        changed: Arc<Changed>,
    ) -> AbortHandle {
        let (client, namespace, name) = (self.0.clone(), namespace.to_owned(), name.to_owned());
        tokio::spawn(async move {
            match kind {
                Kind::ConfigMap => {
                    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                    follow(watcher::watch_object(api, &name), config_map, out, changed).await;
                }
                Kind::Secret => {
                    let api: Api<Secret> = Api::namespaced(client, &namespace);
                    follow(watcher::watch_object(api, &name), secret, out, changed).await;
                }
            }
        })
        .abort_handle()
    }
}

async fn follow<K: Send>(
    stream: impl futures::Stream<Item = watcher::Result<Option<K>>> + Send,
    decode: fn(K) -> KeyData,
    out: watch::Sender<Lookup>,
    changed: Arc<Changed>,
) {
    let stream = stream.default_backoff().into_stream();
    futures::pin_mut!(stream);
    while let Some(item) = stream.next().await {
        let next = match item {
            Ok(Some(object)) => Lookup::Found(Arc::new(decode(object))),
            Ok(None) => Lookup::Missing,
            // Not allowed or not reachable: a pod that needs it shows it as not found, and it is tried again.
            Err(error) => {
                tracing::debug!(%error, "watch of a referenced object");
                if !matches!(*out.borrow(), Lookup::Pending) {
                    continue;
                }
                Lookup::Missing
            }
        };
        let differs = out.send_if_modified(|current| {
            let same = match (&*current, &next) {
                (Lookup::Found(a), Lookup::Found(b)) => a == b,
                (Lookup::Missing, Lookup::Missing) => true,
                _ => false,
            };
            if !same {
                *current = next;
            }
            !same
        });
        if differs {
            changed.tell();
        }
    }
}

fn config_map(m: ConfigMap) -> KeyData {
    KeyData {
        data: m.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect(),
        binary: m.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(),
    }
}

fn secret(s: Secret) -> KeyData {
    KeyData { data: s.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(), ..KeyData::default() }
}

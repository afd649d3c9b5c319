//! The garbage collector: deletes what its owners left behind (KEP-less, as old as owner references): background,
//! foreground and orphan. It watches the metadata of every resource the API serves; [`graph`] decides, this module asks the
//! API about owners it has not seen and writes.

mod graph;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use kube::Client;
use kube::Resource;
use kube::api::{Api, DeleteParams, GetParams, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::discovery::{self, Served};
use crate::limits;
use crate::queue::{self, Queue};
use crate::rest;
use graph::{FOREGROUND, Graph, Node, ORPHAN, Owner, Propagation, Standing, Verdict};

/// Resources without owners worth following: events are many and live an hour.
const IGNORED: [&str; 2] = ["events.", "events.events.k8s.io"];
/// Resources whose changes may change what the API serves.
const DEFINING: [&str; 2] = ["customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"];
/// Key in the queue of discoveries.
const DISCOVER: &str = "discover";

type Meta = PartialObjectMeta<DynamicObject>;

/// The resources that are followed, by `resource.group`.
#[derive(Clone, Default)]
pub(crate) struct Catalog(Arc<Mutex<BTreeMap<String, Watched>>>);

impl Catalog {
    /// A resource, if the API serves it.
    pub(crate) fn get(&self, id: &str) -> Option<ApiResource> {
        self.0.lock().get(id).map(|watched| watched.served.resource.clone())
    }
}

/// What happened to a namespace's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// An object is new.
    Came,
    /// An object is gone.
    Went,
}

type Listener = Box<dyn Fn(&str, Content) + Send + Sync>;

struct Watched {
    served: Served,
    stop: CancellationToken,
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    watched: Catalog,
    /// Uids to look at.
    queue: Queue<Uid>,
    discoveries: Queue<&'static str>,
    /// Told of every object that came to a namespace or went.
    content: Listener,
    shutdown: CancellationToken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Uid(Arc<str>);

impl std::fmt::Display for Uid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Starts the collector, which keeps `catalog`; `content` is told of every object that came to a namespace or went.
pub(crate) fn start(context: &Context, catalog: Catalog, content: impl Fn(&str, Content) + Send + Sync + 'static) {
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        graph: Mutex::default(),
        watched: catalog,
        queue: Queue::default(),
        discoveries: Queue::default(),
        content: Box::new(content),
        shutdown: context.shutdown.clone(),
    });
    collector.discoveries.add(DISCOVER);
    let (discovering, shutdown) = (collector.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        let queue = discovering.discoveries.clone();
        queue::work("garbage-collector-discovery", queue, 1, shutdown, |_| {
            let collector = discovering.clone();
            async move { collector.discover().await }
        })
        .await;
    });
    let shutdown = context.shutdown.clone();
    tokio::spawn(async move {
        let queue = collector.queue.clone();
        queue::work("garbage-collector-controller", queue, limits::GC_WORKERS, shutdown, |uid| {
            let collector = collector.clone();
            async move { collector.look(&uid.0).await }
        })
        .await;
    });
}

impl Collector {
    /// Starts watches for resources that are new and ends those of resources that are gone.
    async fn discover(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut all = discovery::read(&self.client).await?;
        let mut served = std::mem::take(&mut all.served);
        served.retain(|id, served| served.watchable && !IGNORED.contains(&id.as_str()));
        let mut watched = self.watched.0.lock();
        watched.retain(|id, old| {
            // What nobody knows about just now is likely to come back.
            let keep = served.get(id) == Some(&old.served) || old.served.stale(&all);
            if !keep {
                old.stop.cancel();
            }
            keep
        });
        for (id, served) in served {
            if let Entry::Vacant(entry) = watched.entry(id) {
                let stop = self.shutdown.child_token();
                let id: Arc<str> = entry.key().as_str().into();
                tokio::spawn(self.clone().follow(id, served.resource.clone(), stop.clone()));
                entry.insert(Watched { served, stop });
            }
        }
        Ok(())
    }

    async fn follow(self: Arc<Self>, id: Arc<str>, resource: ApiResource, stop: CancellationToken) {
        let api: Api<Meta> = Api::all_with(self.client.clone(), &resource);
        let stream = watch(api, watcher::Config::default().page_size(limits::LIST_PAGE)).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut listed: HashSet<Arc<str>> = HashSet::new();
        let mut ready = false;
        while let Some(Some(item)) = stop.run_until_cancelled(stream.next()).await {
            match item {
                Ok(event) => self.apply(&id, event, &mut listed, &mut ready),
                Err(error) => tracing::debug!(resource = %id, %error, "watch interrupted; it is resumed"),
            }
        }
        let mut graph = self.graph.lock();
        for uid in graph.of_resource(&id) {
            graph.remove(&uid).into_iter().for_each(|uid| self.queue.add(Uid(uid)));
        }
    }

    fn apply(&self, id: &Arc<str>, event: Event<Meta>, listed: &mut HashSet<Arc<str>>, ready: &mut bool) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(object.metadata.uid.as_deref().unwrap_or_default().into());
                self.put(id, object);
            }
            Event::InitDone => {
                let lost = self.graph.lock().of_resource(id).into_iter().filter(|uid| !listed.contains(uid));
                lost.for_each(|uid| self.remove(&uid));
                listed.clear();
                *ready = true;
            }
            Event::Apply(object) => {
                self.defines(id, *ready);
                self.put(id, object);
            }
            Event::Delete(object) => {
                self.defines(id, *ready);
                self.remove(object.metadata.uid.as_deref().unwrap_or_default());
            }
        }
    }

    /// A definition changed: the API may serve more or less.
    fn defines(&self, id: &str, ready: bool) {
        if ready && DEFINING.contains(&id) {
            self.discoveries.add(DISCOVER);
        }
    }

    fn put(&self, id: &Arc<str>, object: Meta) {
        let uid: Arc<str> = object.metadata.uid.as_deref().unwrap_or_default().into();
        let node = node(id, object.metadata);
        let namespace = node.namespace.clone();
        let mut graph = self.graph.lock();
        let new = graph.get(&uid).is_none();
        let look = graph.put(&uid, node);
        drop(graph);
        if new && !namespace.is_empty() {
            (self.content)(&namespace, Content::Came);
        }
        look.into_iter().for_each(|uid| self.queue.add(Uid(uid)));
    }

    fn remove(&self, uid: &str) {
        let mut graph = self.graph.lock();
        let namespace = graph.get(uid).map(|node| node.namespace.clone()).unwrap_or_default();
        let look = graph.remove(uid);
        drop(graph);
        look.into_iter().for_each(|uid| self.queue.add(Uid(uid)));
        if !namespace.is_empty() {
            (self.content)(&namespace, Content::Went);
        }
    }

    async fn look(&self, uid: &Arc<str>) -> anyhow::Result<()> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        let mut standings = Vec::new();
        for owner in &node.owners {
            let known = self.graph.lock().standing(&node, owner);
            standings.push(match known {
                Some(standing) => standing,
                None => self.ask(&node, owner).await?,
            });
        }
        let verdict = self.graph.lock().judge(uid, &standings);
        match verdict {
            Verdict::Keep => Ok(()),
            Verdict::Delete(how) => self.delete(uid, &node, how).await,
            Verdict::Release(owners) => self.release(uid, &node, &owners).await,
            Verdict::Unblock => self.unblock(uid, &node).await,
            Verdict::Orphan(dependents) => {
                for dependent in dependents {
                    let dependent_node = self.graph.lock().get(&dependent).cloned();
                    if let Some(dependent_node) = dependent_node {
                        self.release(&dependent, &dependent_node, std::slice::from_ref(uid)).await?;
                    }
                }
                self.remove_finalizer(uid, &node, ORPHAN).await
            }
            Verdict::FinishForeground => self.remove_finalizer(uid, &node, FOREGROUND).await,
        }
    }

    /// Asks the API whether an owner exists that no watch has shown.
    async fn ask(&self, dependent: &Node, owner: &Owner) -> anyhow::Result<Standing> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let found = self
            .watched
            .0
            .lock()
            .values()
            .map(|w| &w.served)
            .find(|s| *s.resource.kind == *owner.kind && s.resource.group == group)
            .cloned();
        let Some(served) = found else {
            // Not (yet) served: never delete on account of a kind nobody knows.
            anyhow::bail!(
                "owner {} {} of {}/{} is of a kind the API does not serve",
                owner.kind,
                owner.name,
                dependent.namespace,
                dependent.name
            );
        };
        if served.namespaced && dependent.namespace.is_empty() {
            return Ok(Standing::Absent);
        }
        match self.get(&served.resource, served.namespaced.then_some(&*dependent.namespace), &owner.name).await? {
            Some(meta) if meta.uid.as_deref() == Some(&*owner.uid) => {
                let waits =
                    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                Ok(if waits { Standing::WaitsForDependents } else { Standing::Solid })
            }
            _ => {
                self.graph.lock().note_absent(&owner.uid);
                Ok(Standing::Absent)
            }
        }
    }

    async fn delete(&self, uid: &Arc<str>, node: &Node, how: Propagation) -> anyhow::Result<()> {
        // The cache may be old: look at the object itself before the irrevocable.
        let Some(meta) = self.fresh(uid, node).await? else { return Ok(()) };
        let current = self::node(&node.resource, meta.clone());
        if current.owners != node.owners || current.deleting {
            self.queue.add(Uid(uid.clone()));
            self.graph.lock().put(uid, current);
            return Ok(());
        }
        let policy = match how {
            Propagation::Background => PropagationPolicy::Background,
            Propagation::Foreground => PropagationPolicy::Foreground,
            Propagation::Orphan => PropagationPolicy::Orphan,
        };
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: meta.resource_version };
        let params =
            DeleteParams { propagation_policy: Some(policy), preconditions: Some(preconditions), ..Default::default() };
        let Some(url) = self.url(node) else { return Ok(()) };
        let request = kube::core::Request::new(url).delete(&node.name, &params).map_err(kube::Error::BuildRequest)?;
        gone_is_fine(self.client.request::<Value>(request).await)
    }

    async fn release(&self, uid: &Arc<str>, node: &Node, owners: &[Arc<str>]) -> anyhow::Result<()> {
        let Some(meta) = self.fresh(uid, node).await? else { return Ok(()) };
        let remaining: Vec<_> =
            meta.owner_references.iter().flatten().filter(|o| !owners.iter().any(|gone| **gone == o.uid)).collect();
        self.patch(node, &meta, json!({"ownerReferences": remaining})).await
    }

    async fn unblock(&self, uid: &Arc<str>, node: &Node) -> anyhow::Result<()> {
        let Some(mut meta) = self.fresh(uid, node).await? else { return Ok(()) };
        let mut owners = meta.owner_references.take().unwrap_or_default();
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        self.patch(node, &meta, json!({"ownerReferences": owners})).await
    }

    async fn remove_finalizer(&self, uid: &Arc<str>, node: &Node, finalizer: &str) -> anyhow::Result<()> {
        let Some(meta) = self.fresh(uid, node).await? else { return Ok(()) };
        let remaining: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        self.patch(node, &meta, json!({"finalizers": remaining})).await
    }

    async fn patch(&self, node: &Node, meta: &ObjectMeta, mut change: Value) -> anyhow::Result<()> {
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let Some(url) = self.url(node) else { return Ok(()) };
        let patch = Patch::Merge(json!({"metadata": change}));
        let request = kube::core::Request::new(url)
            .patch(&node.name, &PatchParams::default(), &patch)
            .map_err(kube::Error::BuildRequest)?;
        gone_is_fine(self.client.request::<Value>(request).await)
    }

    /// The object's metadata as it is now, if it is still the same object.
    async fn fresh(&self, uid: &Arc<str>, node: &Node) -> anyhow::Result<Option<ObjectMeta>> {
        let Some(resource) = self.watched.get(&node.resource) else { return Ok(None) };
        let namespace = Some(&*node.namespace).filter(|ns| !ns.is_empty());
        let meta = self.get(&resource, namespace, &node.name).await?;
        Ok(meta.filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn get(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> kube::Result<Option<ObjectMeta>> {
        let request = kube::core::Request::new(DynamicObject::url_path(resource, namespace))
            .get_metadata(name, &GetParams::default())
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request::<Meta>(request).await {
            Ok(object) => Ok(Some(object.metadata)),
            Err(error) if rest::is(&error, 404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn url(&self, node: &Node) -> Option<String> {
        let namespace = Some(&*node.namespace).filter(|ns| !ns.is_empty());
        Some(DynamicObject::url_path(&self.watched.get(&node.resource)?, namespace))
    }
}

fn gone_is_fine(result: kube::Result<Value>) -> anyhow::Result<()> {
    match result {
        Err(error) if !rest::is(&error, 404) => Err(error.into()),
        _ => Ok(()),
    }
}

fn node(resource: &Arc<str>, meta: ObjectMeta) -> Node {
    let deleting = meta.deletion_timestamp.is_some();
    let finalizer = |wanted: &str| meta.finalizers.iter().flatten().any(|f| f == wanted);
    Node {
        resource: resource.clone(),
        deleting,
        foreground: finalizer(FOREGROUND),
        orphaning: finalizer(ORPHAN),
        namespace: meta.namespace.unwrap_or_default().into(),
        name: meta.name.unwrap_or_default().into(),
        owners: meta
            .owner_references
            .unwrap_or_default()
            .into_iter()
            .map(|owner| Owner {
                uid: owner.uid.into(),
                api_version: owner.api_version.into(),
                kind: owner.kind.into(),
                name: owner.name.into(),
                blocks: owner.block_owner_deletion == Some(true),
            })
            .collect(),
    }
}

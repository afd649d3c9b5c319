//! Policies, pods and namespaces from the API into the kernel: watches, and one pass of compiler and writes for what changed.
//!
//! A pod's guard stands before its link has programs. A pod that the API is not yet known to have, or whose policies have not
//! been listed, is closed until they are; what an earlier process left stays in effect until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::pin;

use futures::{FutureExt, StreamExt};
use kube::Resource;
use kube::runtime::watcher::{self, Event};
use serde::Deserialize;
use sluice_ebpf_common::Guard;
use tokio_util::sync::CancellationToken;

use super::compile::Compiler;
use super::follow::{Heard, Kind, Nodes};
use super::model::{Labels, Node, Pod, Policy, Snapshot, TierKind};
use super::rules::Tables;
use super::store::Store;
use super::tier_views::{PlaceView, TierView};
use super::views::{NamespaceView, PolicyView};
use crate::limits::{GATHERED, QUARANTINE};
use crate::model::ObjectName;
use crate::pins::Pins;
use crate::views::PodView;
use crate::watch::{events, taken};
use crate::{Dataplane, Error};

/// How much is known of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody will tell.
    Alone,
    /// Lists are under way.
    Listing,
    /// Everything.
    Listed,
}

/// What policies hold for this node's pods, and what the kernel was told of it.
pub(crate) struct Policies {
    compiler: Compiler,
    store: Store,
    written: Tables,
    /// Digests of the names of the pods behind links.
    digests: BTreeMap<u32, [u32; 4]>,
    generation: u32,
    stage: Stage,
}

impl Policies {
    /// Goes on from what the kernel holds.
    pub(crate) fn open(pins: &Pins) -> Result<Policies, Error> {
        let store = Store::open(pins)?;
        let (written, guards) = (store.read()?, store.guards()?);
        let sets = written.sets.keys().chain(written.guards.values().flatten()).filter(|id| **id != Guard::CLOSED);
        let last = sets.chain(written.peers.values()).chain(written.blocks.values()).max();
        let generation = guards.values().map(|guard| guard.generation).max();
        Ok(Policies {
            compiler: Compiler::new(last.copied().unwrap_or(0).saturating_add(1)),
            // A link's index may be another pod's after a restart, and what the earlier one was allowed is still remembered.
            generation: generation.unwrap_or(0).max(uptime()),
            digests: guards.into_iter().map(|(link, guard)| (link, guard.pod)).collect(),
            store,
            written,
            stage: Stage::Alone,
        })
    }

    /// Links of pods that a policy holds for.
    pub(crate) fn isolated(&self) -> BTreeSet<u32> {
        self.written.guards.iter().filter(|(_, sets)| **sets != [0, 0]).map(|(link, _)| *link).collect()
    }

    /// The pod behind a link, before its programs are attached. `fresh` says that the link has none of ours yet.
    pub(crate) fn add(&mut self, link: u32, name: ObjectName, fresh: bool) -> Result<(), Error> {
        let digest = digest(&name);
        let known = self.digests.insert(link, digest) == Some(digest);
        if !known {
            self.written.guards.remove(&link);
        }
        self.compiler.set_link(link, name);
        match self.stage {
            Stage::Listed => self.write(),
            _ if known => Ok(()),
            stage => {
                let sets = if stage == Stage::Listing && fresh { [Guard::CLOSED; 2] } else { [0; 2] };
                self.written.guards.insert(link, sets);
                self.store.guard(link, sets, (self.generation, digest))
            }
        }
    }

    /// Pods by the index of the node's side of their link.
    pub(crate) fn links(&self) -> BTreeMap<u32, ObjectName> {
        self.compiler.links().collect()
    }

    /// Pods of the cluster by their addresses.
    pub(crate) fn addresses(&self) -> HashMap<IpAddr, ObjectName> {
        self.compiler.addresses().collect()
    }

    pub(crate) fn forget_link(&mut self, link: u32) -> Result<(), Error> {
        self.compiler.forget_link(link);
        self.written.guards.remove(&link);
        self.digests.remove(&link);
        self.store.forget(link)
    }

    /// Makes the kernel say what everything known makes.
    fn write(&mut self) -> Result<(), Error> {
        let result = self.carry_out();
        if result.is_err() {
            // What was written and what not is known to the kernel alone now.
            self.written = self.store.read()?;
        }
        result
    }

    fn carry_out(&mut self) -> Result<(), Error> {
        let wanted = self.compiler.compile();
        let plan = self.written.plan(wanted);
        self.store.add(&plan)?;
        let digest = |link: &u32| self.digests.get(link).copied().unwrap_or_default();
        for (link, sets) in &plan.guards {
            self.store.guard(*link, *sets, (self.generation, digest(link)))?;
        }
        self.store.remove(&plan)?;
        if plan.narrows {
            self.generation = self.generation.wrapping_add(1);
            for (link, sets) in wanted.guards.iter().filter(|(_, sets)| **sets != [0, 0]) {
                self.store.guard(*link, *sets, (self.generation, digest(link)))?;
            }
        }
        let mut written = wanted.clone();
        // Links whose pods nobody named yet are guarded as before, by sets that are empty if they are gone.
        for (link, sets) in std::mem::take(&mut self.written.guards) {
            written.guards.entry(link).or_insert(sets);
        }
        self.written = written;
        Ok(())
    }

    /// Finds the pods behind links that an earlier process guarded, now that all pods are known.
    fn recognise(&mut self) {
        let nameless: BTreeMap<[u32; 4], u32> = self.digests.iter().map(|(link, digest)| (*digest, *link)).collect();
        let known = self.compiler.names().filter_map(|name| Some((*nameless.get(&digest(name))?, name.clone())));
        for (link, name) in known.collect::<Vec<_>>() {
            self.compiler.set_link(link, name);
        }
    }
}

/// Seconds since the kernel started, as far as it says.
fn uptime() -> u32 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

/// A digest of a pod's name (FNV-1a of 128 bits), by which a process that starts finds the pods that it guards.
fn digest((namespace, name): &ObjectName) -> [u32; 4] {
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let bytes = namespace.bytes().chain([b'/']).chain(name.bytes());
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    [0, 32, 64, 96].map(|shift| (hash >> shift) as u32)
}

/// One kind of object, listed and then watched.
#[derive(Default)]
struct Listing {
    /// Names that the list under way has had.
    seen: Option<BTreeSet<ObjectName>>,
    /// All names.
    known: BTreeSet<ObjectName>,
    listed: bool,
}

impl Listing {
    /// Takes in an event; true if anything changed by it, or if the first list is whole.
    fn take<V, T>(&mut self, event: Event<V>, mut set: impl FnMut(&ObjectName, Option<T>) -> bool) -> bool
    where
        V: Resource + Into<Option<T>>,
    {
        match event {
            Event::Init => {
                self.seen = Some(BTreeSet::new());
                false
            }
            Event::InitApply(view) | Event::Apply(view) => {
                let name = name(&view);
                if let Some(seen) = &mut self.seen {
                    seen.insert(name.clone());
                }
                let object = view.into();
                match object {
                    Some(_) => self.known.insert(name.clone()),
                    None => self.known.remove(&name),
                };
                set(&name, object)
            }
            Event::InitDone => {
                let seen = self.seen.take().unwrap_or_default();
                let gone: Vec<ObjectName> = self.known.difference(&seen).cloned().collect();
                let mut changed = !std::mem::replace(&mut self.listed, true);
                for name in gone {
                    self.known.remove(&name);
                    changed |= set(&name, None);
                }
                changed
            }
            Event::Delete(view) => {
                let name = name(&view);
                self.known.remove(&name);
                set(&name, None)
            }
        }
    }
}

fn name<V: Resource>(view: &V) -> ObjectName {
    let meta = view.meta();
    (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
}

impl Dataplane {
    /// This node's pods by the index of the node's side of their link.
    pub fn pods(&self) -> BTreeMap<u32, ObjectName> {
        self.inner.policies.lock().links()
    }

    /// Makes these the policies, pods and namespaces of the cluster. Pods whose links are not known yet get what holds for them
    /// when they are added.
    pub fn apply_policies(&self, snapshot: Snapshot) -> Result<(), Error> {
        let mut policies = self.inner.policies.lock();
        policies.compiler.replace(snapshot);
        self.enforce(&mut policies)
    }

    /// The first call says that everything is known.
    fn enforce(&self, policies: &mut Policies) -> Result<(), Error> {
        if policies.stage != Stage::Listed {
            policies.stage = Stage::Listed;
            policies.recognise();
        }
        let written = policies.write();
        // What is isolated has to pass the programs that judge, and what is not any more may go straight again.
        self.change_neighbours(|neighbours| neighbours.isolate(policies.isolated()))?;
        written
    }

    /// From now on a new pod is closed until its policies are known.
    pub(crate) fn expect_policies(&self) {
        let mut policies = self.inner.policies.lock();
        if policies.stage == Stage::Alone {
            policies.stage = Stage::Listing;
        }
    }

    /// Feeds the kernel from the API until the shutdown.
    pub(crate) async fn follow_policies(
        &self,
        client: kube::Client,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        self.expect_policies();
        let kinds = TierKind::ALL.map(|kind| Kind::new(&client, kind).map(move |heard| Change::Tier(kind, heard)));
        let mut all = pin!(futures::stream::select(
            events::<PodView>(&client, None).map(Change::Pod),
            futures::stream::select(
                events::<NamespaceView>(&client, None).map(Change::Namespace),
                futures::stream::select(
                    events::<PolicyView>(&client, None).map(Change::Policy),
                    futures::stream::select_all(kinds),
                ),
            ),
        ));
        let (mut lists, mut nodes) = (Lists::default(), Nodes::new(&client));
        loop {
            let first = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                change = all.next() => change,
                said = nodes.next() => Some(Change::Node(said)),
            };
            let Some(first) = first else { return Ok(()) };
            let (mut changed, mut gathered) = (self.take(&mut lists, first), 1);
            // What is there already belongs to the same pass.
            while gathered < GATHERED
                && let Some(Some(next)) = all.next().now_or_never()
            {
                changed |= self.take(&mut lists, next);
                gathered += 1;
            }
            if nodes.watch(self.inner.policies.lock().compiler.names_nodes()) {
                changed |= self.forget_nodes(&mut lists);
            }
            while changed && lists.whole() {
                let dataplane = self.clone();
                let pass = tokio::task::spawn_blocking(move || {
                    let mut policies = dataplane.inner.policies.lock();
                    dataplane.enforce(&mut policies)
                });
                changed = match pass.await {
                    Ok(Ok(())) => false,
                    Ok(Err(error)) => {
                        tracing::error!(%error, "the network policies could not be written");
                        true
                    }
                    Err(error) => {
                        tracing::error!(%error, "the policy compiler failed");
                        false
                    }
                };
                if changed {
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(()),
                        () = tokio::time::sleep(QUARANTINE) => {}
                    }
                }
            }
        }
    }

    fn take(&self, lists: &mut Lists, change: Change) -> bool {
        let mut policies = self.inner.policies.lock();
        let compiler = &mut policies.compiler;
        match change {
            Change::Pod(event) => {
                taken(event, |event| lists.pods.take(event, |name, pod: Option<Pod>| compiler.set_pod(name, pod)))
            }
            Change::Namespace(event) => taken(event, |event| {
                lists.namespaces.take(event, |(_, name), labels: Option<Labels>| compiler.set_namespace(name, labels))
            }),
            Change::Policy(event) => taken(event, |event| {
                lists.policies.take(event, |name, policy: Option<Policy>| compiler.set_policy(name, policy))
            }),
            Change::Node(event) => taken(event, |event| {
                lists.nodes.take(event, |(_, name), node: Option<Node>| compiler.set_node(name, node))
            }),
            Change::Tier(kind, heard) => {
                let list = lists.tiers.entry(kind).or_default();
                let mut set = |(_, name): &ObjectName, view: Option<TierView>| {
                    compiler.set_tier(&(kind, name.clone()), view.map(|view| view.policy(kind)))
                };
                match heard {
                    Heard::Object(event) => taken(*event, |event| list.objects.take(event, set)),
                    Heard::Installed(true) => !std::mem::replace(&mut list.installed, true),
                    Heard::Installed(false) => {
                        let gone = std::mem::take(&mut list.objects).known;
                        for name in &gone {
                            set(name, None);
                        }
                        *list = Tier { installed: false, ..Tier::default() };
                        true
                    }
                }
            }
        }
    }

    /// Nodes are not watched as they were, so what was known of them is not so any more.
    fn forget_nodes(&self, lists: &mut Lists) -> bool {
        let mut policies = self.inner.policies.lock();
        let known = std::mem::take(&mut lists.nodes).known;
        lists.with_nodes = policies.compiler.names_nodes();
        known.iter().fold(false, |changed, (_, name)| policies.compiler.set_node(name, None) | changed)
    }
}

/// What a watch says.
type Said<V> = Result<Event<V>, watcher::Error>;

enum Change {
    Pod(Said<PodView>),
    Namespace(Said<NamespaceView>),
    Policy(Said<PolicyView>),
    Node(Said<PlaceView>),
    Tier(TierKind, Heard),
}

/// A kind that users may install.
#[derive(Default)]
struct Tier {
    installed: bool,
    objects: Listing,
}

#[derive(Default)]
struct Lists {
    pods: Listing,
    namespaces: Listing,
    policies: Listing,
    nodes: Listing,
    with_nodes: bool,
    /// Kinds that are known to be installed, or not to be.
    tiers: BTreeMap<TierKind, Tier>,
    /// Everything was known once: a kind that is installed later, and may not be listed for long, holds nothing up.
    began: bool,
}

impl Lists {
    fn whole(&mut self) -> bool {
        let builtin = self.pods.listed && self.namespaces.listed && self.policies.listed;
        let tiers = self.tiers.len() == TierKind::ALL.len()
            && self.tiers.values().all(|tier| tier.objects.listed || !tier.installed);
        self.began |= builtin && tiers;
        builtin && self.began && (self.nodes.listed || !self.with_nodes)
    }
}

/// Objects as the API writes them, by their kinds; others are passed over.
pub fn snapshot(objects: &[serde_json::Value]) -> Result<Snapshot, serde_json::Error> {
    let mut snapshot = Snapshot::default();
    for object in objects {
        match object["kind"].as_str() {
            Some("Pod") => insert::<PodView, Pod>(object, &mut snapshot.pods)?,
            Some("NetworkPolicy") => insert::<PolicyView, Policy>(object, &mut snapshot.policies)?,
            Some("Namespace") => {
                let mut named: BTreeMap<ObjectName, Labels> = BTreeMap::new();
                insert::<NamespaceView, Labels>(object, &mut named)?;
                snapshot.namespaces.extend(named.into_iter().map(|((_, name), labels)| (name, labels)));
            }
            Some("Node") => {
                let mut named: BTreeMap<ObjectName, Node> = BTreeMap::new();
                insert::<PlaceView, Node>(object, &mut named)?;
                snapshot.nodes.extend(named.into_iter().map(|((_, name), node)| (name, node)));
            }
            Some(other) => {
                if let Some(kind) = TierKind::ALL.into_iter().find(|kind| kind.name() == other) {
                    let view = TierView::deserialize(object)?;
                    let (_, name) = name(&view);
                    snapshot.tiers.insert((kind, name), view.policy(kind));
                }
            }
            None => {}
        }
    }
    Ok(snapshot)
}

fn insert<V, T>(object: &serde_json::Value, all: &mut BTreeMap<ObjectName, T>) -> Result<(), serde_json::Error>
where
    V: Resource + Into<Option<T>> + serde::de::DeserializeOwned,
{
    let view = V::deserialize(object)?;
    let name = name(&view);
    all.extend(view.into().map(|known| (name, known)));
    Ok(())
}

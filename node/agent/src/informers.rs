//! The cluster-wide views a node keeps besides its pods: nodes (its own pod range and labels, routes to the others), Services
//! (environment variables) and the ranges of their addresses. Narrow, event-driven.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use sluice_network::{Cidr, Peer, PeerPath};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::env::{ServiceLink, ServiceLinks};
use crate::lenient::{Lenient, Sieve};

/// A Node as far as routes need it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: ObjectMeta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

/// See [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// See [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub addresses: Vec<NodeAddress>,
}

/// See [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub type_: String,
    pub address: String,
}

/// A Service as environment variables need it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
}

/// See [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

/// See [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    pub metadata: ObjectMeta,
    pub spec: ServiceCidrSpec,
}

/// See [`ServiceCidr`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    pub cidrs: Vec<String>,
}

macro_rules! resource {
    ($type:ty, $group:literal, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Node, "", "Node", "nodes", k8s_openapi::ClusterResourceScope);
resource!(Service, "", "Service", "services", k8s_openapi::NamespaceResourceScope);
resource!(ServiceCidr, "networking.k8s.io", "ServiceCIDR", "servicecidrs", k8s_openapi::ClusterResourceScope);

impl Node {
    /// The pod ranges the controllers assigned.
    pub fn ranges(&self) -> Vec<Cidr> {
        let many = self.spec.pod_cidrs.iter().filter_map(|c| c.parse().ok());
        let list: Vec<Cidr> = many.collect();
        if list.is_empty() { self.spec.pod_cidr.parse().ok().into_iter().collect() } else { list }
    }

    fn internal_ips(&self) -> Vec<IpAddr> {
        let internal = self.status.addresses.iter().filter(|a| a.type_ == "InternalIP");
        internal.filter_map(|a| a.address.parse().ok()).collect()
    }

    /// As another node's network needs it; `None` while it has no pod range or address.
    pub fn peer(&self, path: PeerPath) -> Option<Peer> {
        let pod_cidrs = self.ranges();
        let node_ips = self.internal_ips();
        let node = self.metadata.name.clone()?;
        (!pod_cidrs.is_empty() && !node_ips.is_empty()).then_some(Peer { node, pod_cidrs, node_ips, path })
    }
}

/// What is known of the cluster's nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodesView {
    /// Of this node.
    pub ranges: Vec<Cidr>,
    /// Of this node; none before it was seen.
    pub labels: Option<BTreeMap<String, String>>,
    pub uid: Option<String>,
    /// The others, by name.
    pub peers: Vec<Peer>,
}

/// Follows the nodes until the shutdown.
pub async fn nodes(
    client: Client,
    own: String,
    path: PeerPath,
    out: watch::Sender<NodesView>,
    shutdown: CancellationToken,
) {
    let mut all: HashMap<String, Node> = HashMap::new();
    let stream = watcher(Api::<Lenient<Node>>::all(client), watcher::Config::default()).default_backoff();
    follow(stream, shutdown, |change| {
        match change {
            Change::All(nodes) => all = nodes.into_iter().map(|node| (key(&node.metadata).1, node)).collect(),
            Change::Put(node) => drop(all.insert(key(&node.metadata).1, node)),
            Change::Gone(meta) => drop(all.remove(&key(meta).1)),
        }
        let me = all.get(&own);
        let mut peers: Vec<Peer> = all.iter().filter(|(n, _)| **n != own).filter_map(|(_, n)| n.peer(path)).collect();
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        let view = NodesView {
            ranges: me.map(Node::ranges).unwrap_or_default(),
            labels: me.map(|n| n.metadata.labels.clone().unwrap_or_default()),
            uid: me.and_then(|n| n.metadata.uid.clone()),
            peers,
        };
        out.send_if_modified(|old| {
            let differs = *old != view;
            *old = view;
            differs
        });
    })
    .await;
}

/// Follows the Services until the shutdown.
pub async fn services(client: Client, out: watch::Sender<Option<ServiceLinks>>, shutdown: CancellationToken) {
    let stream = watcher(Api::<Lenient<Service>>::all(client), watcher::Config::default()).default_backoff();
    follow(stream, shutdown, |change| {
        out.send_modify(|links| match (change, links) {
            (Change::All(services), links) => {
                let mut all = ServiceLinks::default();
                services.iter().for_each(|service| all.put(link(service)));
                *links = Some(all);
            }
            (Change::Put(service), Some(links)) => links.put(link(&service)),
            (Change::Gone(meta), Some(links)) => {
                let (namespace, name) = key(meta);
                links.remove(&namespace, &name);
            }
            (_, None) => {}
        });
    })
    .await;
}

/// Follows the ranges of Services' addresses until the shutdown.
pub async fn service_ranges(client: Client, out: watch::Sender<Vec<Cidr>>, shutdown: CancellationToken) {
    let mut all: BTreeMap<String, Vec<Cidr>> = BTreeMap::new();
    let ranges = |object: &ServiceCidr| object.spec.cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    let stream = watcher(Api::<Lenient<ServiceCidr>>::all(client), watcher::Config::default()).default_backoff();
    follow(stream, shutdown, |change| {
        match change {
            Change::All(objects) => all = objects.iter().map(|o| (key(&o.metadata).1, ranges(o))).collect(),
            Change::Put(object) => drop(all.insert(key(&object.metadata).1, ranges(&object))),
            Change::Gone(meta) => drop(all.remove(&key(meta).1)),
        }
        let mut now: Vec<Cidr> = all.values().flatten().copied().collect();
        now.sort();
        now.dedup();
        out.send_if_modified(|old| {
            let differs = *old != now;
            *old = now;
            differs
        });
    })
    .await;
}

fn link(s: &Service) -> ServiceLink {
    let port = |p: &ServicePort| {
        let protocol = if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() };
        (p.name.clone(), p.port, protocol)
    };
    ServiceLink {
        name: s.metadata.name.clone().unwrap_or_default(),
        namespace: s.metadata.namespace.clone().unwrap_or_default(),
        cluster_ip: s.spec.cluster_ip.clone(),
        ports: s.spec.ports.iter().map(port).collect(),
    }
}

fn key(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// What became of the objects of a kind.
enum Change<'a, K> {
    /// These are all that there are.
    All(Vec<K>),
    Put(K),
    Gone(&'a ObjectMeta),
}

/// Tells every change of the stream from the first whole list on. What cannot be read is not there.
async fn follow<K: Resource<DynamicType = ()>>(
    stream: impl futures::Stream<Item = watcher::Result<watcher::Event<Lenient<K>>>>,
    shutdown: CancellationToken,
    mut changed: impl FnMut(Change<'_, K>),
) {
    futures::pin_mut!(stream);
    let mut sieve = Sieve::default();
    let read = |sieve: &mut Sieve, object: Lenient<K>| {
        sieve.pass(object).map(|mut object| {
            object.meta_mut().managed_fields = None;
            object
        })
    };
    let mut fresh = Vec::new();
    loop {
        let item = tokio::select! {
            () = shutdown.cancelled() => return,
            item = stream.next() => item,
        };
        match item {
            None => return,
            Some(Err(error)) => tracing::debug!(%error, "watch"),
            Some(Ok(watcher::Event::Init)) => fresh.clear(),
            Some(Ok(watcher::Event::InitApply(object))) => fresh.extend(read(&mut sieve, object)),
            Some(Ok(watcher::Event::InitDone)) => changed(Change::All(std::mem::take(&mut fresh))),
            Some(Ok(watcher::Event::Apply(object))) => match read(&mut sieve, object) {
                Ok(object) => changed(Change::Put(object)),
                Err(meta) => changed(Change::Gone(&meta)),
            },
            Some(Ok(watcher::Event::Delete(object))) => {
                sieve.forget(object.meta());
                changed(Change::Gone(object.meta()));
            }
        }
    }
}

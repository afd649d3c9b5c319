//! Nodes' life: notices those that are not heard any more (leases or status), says so on the node and its pods, and taints
//! them. [`health`] decides; [`evict`] makes pods leave tainted nodes, [`ipam`] gives nodes their pod ranges and [`podgc`]
//! clears away pods of nodes that are gone.

pub(crate) mod evict;
pub(crate) mod health;
pub(crate) mod ipam;
pub(crate) mod podgc;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::{Lease, Node, Pod};
use health::Zones;

const NAME: &str = "node-controller";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Namespace of the nodes' leases.
pub(crate) const LEASES: &str = "kube-node-lease";

struct Controller {
    client: Client,
    context: Context,
    events: Recorder,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
    /// When each node was last heard, by our own clock: the nodes' clocks may be wrong.
    heard: Mutex<HashMap<Arc<str>, Instant>>,
    zones: Mutex<Zones>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(NAME),
        nodes: wiring.reads(&all.nodes),
        pods: wiring.reads(&all.pods),
        heard: Mutex::default(),
        zones: Mutex::default(),
    });
    let watching = controller.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| watching.node_changed(old, new, queue));
    wiring.reads(&all.leases);
    let watching = controller.clone();
    wiring.wakes(&all.leases, move |old, new, queue| {
        let renewed = |lease: Option<&Arc<Lease>>| lease.and_then(|l| l.spec.renew_time.clone());
        if let Some(lease) = new.filter(|lease| lease.ns() == LEASES)
            && renewed(old) != renewed(new)
        {
            watching.heard(lease.name(), queue);
        }
    });
    let nodes = controller.nodes.clone();
    wiring.wakes(&all.pods, move |old, new, queue| {
        // A pod that came to a node in trouble has to be marked too.
        let placed = |pod: &Arc<Pod>| pod.spec.node_name.clone();
        if let Some(node) = new.and_then(placed)
            && old.and_then(placed).is_none()
            && nodes.get(&Key::new("", &node)).is_some_and(|n| health::ready(&n) != "True")
        {
            queue.add(Key::new("", &node));
        }
    });
    wiring.run(context, "node-lifecycle-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(node) = self.nodes.get(key) else { return Ok(None) };
        let now = self.context.now();
        let grace = self.context.options.node_grace;
        let silent = self.heard.lock().entry(key.name.clone()).or_insert_with(Instant::now).elapsed();
        if let Some(status) = health::lost(&node, silent, grace, now) {
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            self.events.normal(&*node, "NodeNotReady", message);
            // The change comes back through the informer and is acted on then.
            patch_strategic(&self.client, &*node, status).await?;
            return Ok(None);
        }
        let mut again = (silent <= grace).then(|| grace - silent + Duration::from_millis(100));
        let ready = health::ready(&node) == "True";
        let evict = !ready
            && self.may_evict(&node, now).map_err(|wait| again = Some(again.map_or(wait, |a| a.min(wait)))).is_ok();
        if let Some(taints) = health::taints(&node, evict, now) {
            let version = node.meta_version();
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            rest::patch(&self.client, &*node, patch).await?;
        }
        if !ready {
            self.mark_pods(&node, now).await?;
        }
        Ok(again)
    }
}

impl Controller {
    fn heard(&self, node: &str, queue: &Queue<Key>) {
        self.heard.lock().insert(node.into(), Instant::now());
        // Only a node thought lost needs a look at once; the others have their deadline.
        let key = Key::new("", node);
        if self.nodes.get(&key).is_some_and(|n| health::ready(&n) == "Unknown") {
            queue.add(key);
        }
    }

    fn node_changed(&self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, queue: &Queue<Key>) {
        let Some(node) = new else {
            if let Some(node) = old {
                self.heard.lock().remove(node.name());
            }
            return;
        };
        let beat = |node: &Node| node.condition("Ready").and_then(|c| c.last_heartbeat_time.clone());
        if old.is_none_or(|old| beat(old) != beat(node)) {
            self.heard.lock().insert(node.name().into(), Instant::now());
        }
        let state = |node: &Node| {
            let conditions: Vec<_> =
                node.status.conditions.iter().map(|c| (c.kind.clone(), c.status.clone())).collect();
            (conditions, node.spec.taints.clone(), node.spec.unschedulable)
        };
        if old.is_none_or(|old| state(old) != state(node)) {
            queue.add(node.key());
        }
        if old.is_some_and(|old| health::ready(old) != "True") && health::ready(node) == "True" {
            // Evictions that stopped because everything seemed lost may go on.
            let lost = self.nodes.all().into_iter().filter(|other| health::ready(other) != "True");
            lost.for_each(|other| queue.add(other.key()));
        }
    }

    /// Whether the node may get its NoExecute taint now; otherwise how long it has to wait.
    fn may_evict(&self, node: &Node, now: Timestamp) -> Result<(), Duration> {
        let zone = |node: &Node| node.labels().get(ZONE).cloned().unwrap_or_default();
        if node
            .spec
            .taints
            .iter()
            .any(|t| t.effect == "NoExecute" && [health::NOT_READY, health::UNREACHABLE].contains(&t.key.as_str()))
        {
            return Ok(());
        }
        let all: Vec<_> = self.nodes.all().iter().map(|n| (zone(n), health::ready(n) == "True")).collect();
        let admitted = self.zones.lock().admit(&zone(node), &all, now);
        admitted.map_err(|wait| wait.unwrap_or(limits::EVICTION_INTERVAL_DISRUPTED))
    }

    /// Pods of a node in trouble are not ready, whatever the node last said: services stop sending to them.
    async fn mark_pods(&self, node: &Node, now: Timestamp) -> anyhow::Result<()> {
        let ready = self.pods.indexed(&format!("node/{}", node.name())).into_iter().filter(|pod| pod.ready());
        let marked = stream::iter(ready).map(|pod| async move {
            let status = json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": format!("{now:.0}")}]});
            self.events.warning(&*pod, "NodeNotReady", "Node is not ready".into());
            patch_strategic(&self.client, &*pod, status).await
        });
        let results: Vec<anyhow::Result<()>> = marked.buffer_unordered(limits::WRITES_IN_FLIGHT).collect().await;
        results.into_iter().collect()
    }
}

/// Merges conditions into a status by their type.
pub(crate) async fn patch_strategic<K: crate::informer::Kind>(
    client: &Client,
    object: &K,
    status: Value,
) -> anyhow::Result<()> {
    let body = json!({"metadata": {"uid": object.uid()}, "status": status});
    let scope = Some(object.ns()).filter(|ns| !ns.is_empty());
    let request = kube::core::Request::new(K::url_path(&(), scope))
        .patch_subresource("status", object.name(), &PatchParams::default(), &Patch::Strategic(body))
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<Value>(request).await {
        Err(error) if !rest::is(&error, 404) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether the API, asked directly, has the node.
pub(crate) async fn exists(client: &Client, node: &str) -> kube::Result<bool> {
    Ok(Api::<Node>::all(client.clone()).get_opt(node).await?.is_some())
}

//! EndpointSlices and the old Endpoints: keeps the addresses of every Service's pods. [`slices`] and [`classic`] decide;
//! this module gathers and writes.

mod classic;
pub(crate) mod mirror;
mod resolve;
mod slices;
mod trigger;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::context::Context;
use crate::expectations::Expectations;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::{Kind, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::{Endpoints, Node, Pod, Service, Slice};
use slices::Write;

const ZONE: &str = "topology.kubernetes.io/zone";

struct Controller {
    client: Client,
    services: Arc<Store<Service>>,
    pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
    slices: Arc<Store<Slice>>,
    endpoints: Arc<Store<Endpoints>>,
    expectations: Expectations,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        services: wiring.drives(&all.services),
        pods: wiring.reads(&all.pods),
        nodes: wiring.reads(&all.nodes),
        slices: wiring.reads(&all.slices),
        // Endpoints are named as their Service is.
        endpoints: wiring.drives(&all.endpoints),
        expectations: Expectations::default(),
    });
    let watching = controller.clone();
    wiring.wakes(&all.pods, move |old, new, queue| watching.pod_changed(old, new, queue));
    let watching = controller.clone();
    wiring.wakes(&all.slices, move |old, new, queue| watching.slice_changed(old, new, queue));
    let watching = controller.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| watching.node_changed(old, new, queue));
    wiring.run(context, "endpointslice-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(service) = self.services.get(key) else {
            self.expectations.forget(key);
            if let Some(endpoints) = self.endpoints.get(key).filter(|e| ours(e)) {
                rest::delete(&self.client, &*endpoints).await?;
            }
            return Ok(None);
        };
        if !resolve::selects(&service) {
            return Ok(None);
        }
        let pods: Vec<Arc<Pod>> =
            self.pods.namespace(&key.namespace).into_iter().filter(|pod| resolve::matches(&service, pod)).collect();
        if self.expectations.met(key) {
            self.sync_slices(key, &service, &pods).await?;
        }
        self.sync_classic(key, &service, &pods).await?;
        Ok(None)
    }
}

impl Controller {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>, queue: &Queue<Key>) {
        if let (Some(old), Some(new)) = (old, new)
            && !resolve::changed(old, new)
        {
            return;
        }
        let Some(any) = new.or(old) else { return };
        for service in self.services.namespace(any.ns()) {
            if [old, new].into_iter().flatten().any(|pod| resolve::matches(&service, pod)) {
                queue.add(service.key());
            }
        }
    }

    fn slice_changed(&self, old: Option<&Arc<Slice>>, new: Option<&Arc<Slice>>, queue: &Queue<Key>) {
        let Some(slice) = new.or(old).filter(|slice| managed(slice)) else { return };
        let Some(service) = slice.labels().get(crate::types::SERVICE_NAME) else { return };
        let key = Key::new(slice.ns(), service);
        if old.is_none() {
            self.expectations.created(&key, 1);
        }
        queue.add(key);
    }

    /// A node's zone is part of its pods' endpoints.
    fn node_changed(&self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, queue: &Queue<Key>) {
        let zone = |node: Option<&Arc<Node>>| node.and_then(|n| n.labels().get(ZONE).cloned());
        let Some(node) = new.or(old).filter(|_| zone(old) != zone(new)) else { return };
        for pod in self.pods.indexed(&format!("node/{}", node.name())) {
            self.pod_changed(None, Some(&pod), queue);
        }
    }

    async fn sync_slices(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> anyhow::Result<()> {
        let existing = self.slices.indexed(&format!("{}/{}", key.namespace, key.name));
        let existing: Vec<_> = existing.into_iter().filter(|slice| managed(slice)).collect();
        let zone_of = |node: &str| self.nodes.get(&Key::new("", node))?.labels().get(ZONE).cloned();
        let mut writes = slices::plan(service, pods, &existing, &zone_of);
        trigger::note(&mut writes, service, pods, &existing);
        let creations = writes.iter().filter(|w| matches!(w, Write::Create(_))).count();
        if creations > 0 {
            self.expectations.expect_creations(key, creations);
        }
        let written = stream::iter(writes)
            .map(|write| carry_out(&self.client, &self.expectations, key, write))
            .buffer_unordered(limits::WRITES_IN_FLIGHT);
        Ok(written.try_collect::<()>().await?)
    }

    async fn sync_classic(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> anyhow::Result<()> {
        let subsets = classic::subsets(service, pods);
        let labels = classic::labels(service);
        let mut metadata = json!({"name": &*key.name, "namespace": &*key.namespace, "labels": labels});
        let Some(existing) = self.endpoints.get(key) else {
            let body = json!({"metadata": metadata, "subsets": subsets});
            return match rest::create::<Endpoints>(&self.client, &key.namespace, body).await {
                Ok(_) => Ok(()),
                Err(error) if rest::namespace_terminating(&error) || rest::is(&error, 409) => Ok(()),
                Err(error) => Err(error.into()),
            };
        };
        if existing.subsets == subsets && *existing.labels() == labels {
            return Ok(());
        }
        metadata["resourceVersion"] = json!(existing.meta_version());
        metadata["annotations"] = json!(existing.annotations());
        let body = json!({"metadata": metadata, "subsets": subsets});
        Ok(replace(&self.client, &*existing, body).await?)
    }
}

async fn carry_out(client: &Client, expectations: &Expectations, key: &Key, write: Write) -> kube::Result<()> {
    match write {
        Write::Create(body) => match rest::create::<Slice>(client, &key.namespace, body).await {
            Ok(_) => Ok(()),
            Err(error) => {
                expectations.created(key, 1);
                if rest::namespace_terminating(&error) { Ok(()) } else { Err(error) }
            }
        },
        Write::Update(slice, body) => replace(client, &*slice, body).await,
        Write::Delete(slice) => rest::delete(client, &*slice).await,
    }
}

fn managed(slice: &Slice) -> bool {
    slice.labels().get(slices::MANAGED_BY).is_some_and(|by| by == slices::MANAGER)
}

fn ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(classic::MANAGED_BY).is_some_and(|by| by == "endpoint-controller")
}

async fn replace<K: Kind>(client: &Client, object: &K, mut body: Value) -> kube::Result<()> {
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    let request = kube::core::Request::new(K::url_path(&(), Some(object.ns())))
        .replace(object.name(), &PostParams::default(), body.to_string().into_bytes())
        .map_err(kube::Error::BuildRequest)?;
    client.request::<K>(request).await.map(|_| ())
}

//! The node's own objects: the Node with its status, and the lease that says it lives. Every ten seconds the
//! lease is renewed and the Node read; its status is written when it differs from what this node sees, whoever changed
//! it, and every five minutes.

pub mod machine;
pub mod object;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::eviction::signals::{Pressure, Signals, Thresholds};
use crate::limits;
use crate::seams::Containers;
use object::Observed;

const LEASES: &str = "kube-node-lease";

/// A time as the API writes it.
pub fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn micro_time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// When each kind of pressure was felt last.
#[derive(Debug, Default)]
pub struct Relief([Option<std::time::Instant>; 3]);

impl Relief {
    /// What the Node's conditions say: pressure is shown for a while after it has gone, so that they do not flap.
    fn shown(&mut self, felt: Pressure, now: std::time::Instant) -> Pressure {
        let mut show = [felt.memory, felt.disk, felt.pids];
        for (show, last) in show.iter_mut().zip(&mut self.0) {
            if *show {
                *last = Some(now);
            }
            *show |= last.is_some_and(|at| now.duration_since(at) < limits::PRESSURE_SHOWN);
        }
        let [memory, disk, pids] = show;
        Pressure { memory, disk, pids }
    }
}

/// Keeps the Node and its lease alive.
pub struct Keeper {
    pub client: Client,
    pub runtime: Arc<dyn Containers>,
    pub observed: Observed,
    /// True once pods can have addresses.
    pub network: watch::Receiver<bool>,
    /// When the node began to see to that.
    pub begun: std::time::Instant,
    /// Told when images or the runtime may have changed.
    pub changed: Arc<Notify>,
    /// The daemon's directory, whose filesystem is watched.
    pub dir: PathBuf,
    pub thresholds: Thresholds,
    /// Tells at every heartbeat what is left.
    pub beats: watch::Sender<Signals>,
    /// The conditions as they are shown.
    pub pressure: watch::Sender<Pressure>,
    /// Since when each kind of pressure is gone, while it is still shown.
    pub relief: Relief,
    /// Whether the Node is as a start of this daemon makes it.
    pub registered: bool,
}

impl Keeper {
    /// Creates the Node, or brings an existing one's labels and status up to date. A server that knows the node and takes no
    /// writes just now is written to later: its pods are looked after meanwhile.
    pub async fn register(&mut self) -> Result<(), Error> {
        self.observe(true).await;
        let api: Api<Node> = Api::all(self.client.clone());
        match self.write(&api).await {
            Err(Error::Api(s)) if s.code >= 500 && api.get(&self.observed.name).await.is_ok() => {
                tracing::warn!(error = s.message, "the Node was not brought up to date; trying again in ten seconds");
                Ok(())
            }
            written => {
                self.registered = written.is_ok();
                written
            }
        }
    }

    async fn write(&self, api: &Api<Node>) -> Result<(), Error> {
        let object = object::node(&self.observed, Timestamp::now());
        let node: Node = serde_json::from_value(object.clone()).map_err(Error::SerdeError)?;
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => {}
            Err(Error::Api(s)) if s.code == 409 => {
                let labels = json!({"metadata": {"labels": object["metadata"]["labels"]}});
                api.patch(&self.observed.name, &PatchParams::default(), &Patch::Merge(labels)).await?;
            }
            Err(e) => return Err(e),
        }
        self.report(true).await.map(drop)
    }

    /// Renews the lease and keeps the status true until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut written_at: Option<std::time::Instant> = None;
        let mut beat = tokio::time::interval(limits::LEASE_RENEW);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let images = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = beat.tick() => {
                    if let Err(error) = within(self.renew_lease()).await {
                        tracing::warn!(%error, "the node's lease was not renewed");
                    }
                    written_at.is_none()
                }
                changed = self.network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                () = self.changed.notified() => true,
            };
            if !self.registered
                && let Err(error) = within(self.register()).await
            {
                tracing::warn!(%error, "registration failed; trying again in ten seconds");
            }
            self.observe(images).await;
            let due = written_at.is_none_or(|t| t.elapsed() >= limits::NODE_STATUS);
            match within(self.report(due)).await {
                Ok(true) => written_at = Some(std::time::Instant::now()),
                Ok(false) => {}
                // Whoever deletes the Node of a daemon that still runs has some minutes to end it.
                Err(Error::Api(s)) if s.code == 404 && !due => {}
                Err(Error::Api(s)) if s.code == 404 => {
                    tracing::warn!(node = self.observed.name, "the Node object is gone; registering again");
                    if let Err(error) = self.register().await {
                        tracing::warn!(%error, "registration failed; trying again in ten seconds");
                    }
                    written_at = None;
                }
                Err(error) => tracing::warn!(%error, "the Node's status was not written; trying again in ten seconds"),
            }
        }
    }

    async fn observe(&mut self, images: bool) {
        self.observed.network = match *self.network.borrow_and_update() {
            false if self.begun.elapsed() < limits::NETWORK_MADE => None,
            known => Some(known),
        };
        let version = tokio::time::timeout(Duration::from_secs(5), self.runtime.version()).await;
        self.observed.runtime = Some(match version {
            Ok(Ok(version)) => Ok(version),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("no answer within 5 s".to_owned()),
        });
        if images && let Ok(list) = self.runtime.images().await {
            self.observed.images = object::images(list);
        }
        let signals = Signals::read(&self.dir);
        self.observed.pressure = self.relief.shown(signals.pressure(&self.thresholds), std::time::Instant::now());
        let pressure = self.observed.pressure;
        if self.pressure.send_if_modified(|old| std::mem::replace(old, pressure) != pressure) {
            say(pressure, &signals);
        }
        self.beats.send_replace(signals);
    }

    /// Writes the status if the server's Node differs from it, or `always`; true if it was written.
    async fn report(&self, always: bool) -> Result<bool, Error> {
        let resource = ApiResource::erase::<Node>(&());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let old = api.get(&self.observed.name).await?.data["status"].take();
        let new = object::status(&self.observed, &old, Timestamp::now());
        if !always && !object::differs(&old, &new) {
            return Ok(false);
        }
        let patch = object::patch(&old, &new);
        api.patch_status(&self.observed.name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
        Ok(true)
    }

    async fn renew_lease(&self) -> Result<(), Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let name = &self.observed.name;
        let now = micro_time(Timestamp::now());
        let patch = json!({"spec": {
            "holderIdentity": name, "leaseDurationSeconds": limits::LEASE_DURATION.as_secs(), "renewTime": now,
        }});
        match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(Error::Api(s)) if s.code == 404 => self.create_lease(&api, &patch).await,
            other => other.map(|_| ()),
        }
    }

    async fn create_lease(&self, api: &Api<Lease>, spec: &Value) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.observed.name).await?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": self.observed.name, "namespace": LEASES,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": self.observed.name, "uid": node.metadata.uid,
                }],
            },
            "spec": spec["spec"],
        });
        let lease: Lease = serde_json::from_value(lease).map_err(Error::SerdeError)?;
        api.create(&PostParams::default(), &lease).await.map(|_| ())
    }
}

/// Says why pods are kept away from the node, or that they are no longer.
fn say(pressure: Pressure, signals: &Signals) {
    let Signals { memory, disk, inodes, pids } = signals;
    let (disk, inodes, pids) = (disk.left, inodes.left, pids.left);
    if pressure.any() {
        let conditions = pressure.names().join(", ");
        tracing::warn!(conditions, memory, disk, inodes, pids, "the node has too little left for more pods");
    } else {
        tracing::info!(memory, disk, inodes, pids, "the node has room for pods again");
    }
}

/// An answer that does not come before the next heartbeat is an error.
async fn within<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limits::LEASE_RENEW, work).await.unwrap_or_else(|late| Err(Error::Service(Box::new(late))))
}

#[cfg(test)]
mod tests;

//! The API's side: which announcements there are, and telling it which of them this node took over.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::StreamExt;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::ClusterResourceScope;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch as channel;

use crate::limits;

/// An address and who may announce it, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The object's name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// The links to announce on; empty for the fitting ones.
    pub interfaces: Vec<String>,
    /// The nodes in order.
    pub nodes: Vec<Node>,
}

/// A node that may announce.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The object as far as it is looked at.
#[derive(Clone, Debug, Deserialize)]
struct View {
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Deserialize)]
struct Spec {
    address: IpAddr,
    #[serde(default)]
    interfaces: Vec<String>,
    #[serde(default)]
    nodes: Vec<Node>,
}

impl Resource for View {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "LoadBalancerAnnouncement".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "sluice.dev".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "loadbalancerannouncements".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Follows the announcements for ever. While the API does not answer the last known ones hold.
pub(crate) async fn follow(client: Client, sender: channel::Sender<Vec<Announcement>>) {
    let mut events = watch(Api::<View>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut all: BTreeMap<String, Announcement> = BTreeMap::new();
    let mut listed: Option<BTreeMap<String, Announcement>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed = Some(BTreeMap::new());
                continue;
            }
            Ok(Event::InitApply(view)) => {
                let announcement = Announcement::from(view);
                listed.get_or_insert_default().insert(announcement.name.clone(), announcement);
                continue;
            }
            Ok(Event::InitDone) => all = listed.take().unwrap_or_default(),
            Ok(Event::Apply(view)) => {
                let announcement = Announcement::from(view);
                all.insert(announcement.name.clone(), announcement);
            }
            Ok(Event::Delete(view)) => drop(all.remove(view.metadata.name.as_deref().unwrap_or_default())),
            Err(error) => {
                tracing::debug!(%error, "the announcements of load balancers cannot be read");
                continue;
            }
        }
        let now: Vec<Announcement> = all.values().cloned().collect();
        sender.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

impl From<View> for Announcement {
    fn from(view: View) -> Self {
        let Spec { address, interfaces, nodes } = view.spec;
        Self { name: view.metadata.name.unwrap_or_default(), address, interfaces, nodes }
    }
}

/// Writes this node into the status of every announcement that it takes over, again and again until the API takes it or the
/// address is elsewhere. People read it, nobody decides by it.
pub(crate) async fn tell(client: Client, node: String, mut held: channel::Receiver<BTreeSet<String>>) {
    let api: Api<View> = Api::all(client);
    let patch: Patch<Value> = Patch::Merge(json!({"status": {"node": node}}));
    let mut told: BTreeSet<String> = BTreeSet::new();
    let mut wait = limits::TELL_MIN;
    loop {
        let now = held.borrow_and_update().clone();
        told.retain(|name| now.contains(name));
        for name in now.difference(&told.clone()) {
            match api.patch_status(name, &PatchParams::default(), &patch).await {
                Ok(_) => drop(told.insert(name.clone())),
                Err(error) => tracing::debug!(name, %error, "the API cannot be told who announces an address"),
            }
        }
        let all = told.len() == now.len();
        wait = if all { limits::TELL_MIN } else { (wait * 2).min(limits::TELL_MAX) };
        tokio::select! {
            changed = held.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(wait), if !all => {}
        }
    }
}

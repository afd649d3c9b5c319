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
    status: Option<Status>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    node: String,
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

/// Who announces an address by what the API shows, by the announcement's name.
pub(crate) type Shown = BTreeMap<String, String>;

/// Follows the announcements for ever. While the API does not answer the last known ones hold.
pub(crate) async fn follow(client: Client, sender: channel::Sender<Vec<Announcement>>, shown: channel::Sender<Shown>) {
    let mut events = watch(Api::<View>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut all: BTreeMap<String, View> = BTreeMap::new();
    let mut listed: Option<BTreeMap<String, View>> = None;
    let name = |view: &View| view.metadata.name.clone().unwrap_or_default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed = Some(BTreeMap::new());
                continue;
            }
            Ok(Event::InitApply(view)) => {
                listed.get_or_insert_default().insert(name(&view), view);
                continue;
            }
            Ok(Event::InitDone) => all = listed.take().unwrap_or_default(),
            Ok(Event::Apply(view)) => {
                all.insert(name(&view), view);
            }
            Ok(Event::Delete(view)) => drop(all.remove(&name(&view))),
            Err(error) => {
                tracing::debug!(%error, "the announcements of load balancers cannot be read");
                continue;
            }
        }
        let by = |view: &View| view.status.as_ref().map_or_else(String::new, |status| status.node.clone());
        shown.send_replace(all.iter().map(|(name, view)| (name.clone(), by(view))).collect());
        let now: Vec<Announcement> = all.values().cloned().map(Announcement::from).collect();
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
/// address is elsewhere; once more when another node wrote itself there that had the address for a moment. People read it,
/// nobody decides by it.
pub(crate) async fn tell(
    client: Client,
    node: String,
    mut held: channel::Receiver<BTreeSet<String>>,
    mut shown: channel::Receiver<Shown>,
) {
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
            changed = shown.changed() => {
                if changed.is_err() {
                    return;
                }
                let shown = shown.borrow_and_update().clone();
                let before = told.len();
                told.retain(|name| shown.get(name).is_none_or(|shown| *shown == node));
                // Two nodes that both have it write no faster than this.
                if told.len() < before {
                    tokio::time::sleep(limits::TELL_MIN).await;
                }
            }
            () = tokio::time::sleep(wait), if !all => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::{Request, Response};
    use kube::client::Body;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_has_an_address_says_so_again_when_another_did() {
        let (patches, mut patched) = mpsc::unbounded_channel();
        let api = tower::service_fn(move |request: Request<Body>| {
            let patches = patches.clone();
            async move {
                patches.send(request.uri().path().to_owned()).unwrap();
                let answer = json!({"metadata": {"name": "a"}, "spec": {"address": "10.0.0.1"}});
                Ok::<_, std::io::Error>(Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        let (holds, held) = channel::channel(BTreeSet::from(["a".to_owned()]));
        let (shows, shown) = channel::channel(Shown::new());
        let telling = tokio::spawn(tell(Client::new(api, "default"), "here".into(), held, shown));
        let path = "/apis/sluice.dev/v1/loadbalancerannouncements/a/status";
        assert_eq!(patched.recv().await.unwrap(), path);
        for (by, again) in [("here", false), ("there", true), ("", true)] {
            shows.send_replace(Shown::from([("a".to_owned(), by.to_owned())]));
            if again {
                assert_eq!(patched.recv().await.unwrap(), path, "{by:?}");
            }
        }
        // What it has no more is the other's to tell.
        holds.send_replace(BTreeSet::new());
        shows.send_replace(Shown::from([("a".to_owned(), "there".to_owned())]));
        drop((holds, shows));
        telling.await.unwrap();
        assert!(patched.recv().await.is_none());
    }
}

//! Watches pods, nodes and namespaces and hands every change, in order, to the driver's one bounded queue.

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::wire;

/// Names of the watched kinds.
pub(crate) const KINDS: [&str; 3] = [PODS, NODES, NAMESPACES];
/// Pods.
pub(crate) const PODS: &str = "pods";
/// Nodes.
pub(crate) const NODES: &str = "nodes";
/// Namespaces.
pub(crate) const NAMESPACES: &str = "namespaces";

/// One change of one kind.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most changes are of pods: boxing them would cost an allocation each")]
pub(crate) enum Change {
    /// A pod.
    Pod(Event<wire::Pod>),
    /// A node.
    Node(Event<wire::Node>),
    /// A namespace.
    Namespace(Event<wire::Namespace>),
}

/// Starts the watches; they end with `shutdown` or when the receiver is dropped.
pub(crate) fn start(client: &Client, shutdown: &CancellationToken) -> mpsc::Receiver<Change> {
    let (sender, receiver) = mpsc::channel(limits::EVENT_QUEUE);
    follow(client, PODS, Change::Pod, sender.clone(), shutdown);
    follow(client, NODES, Change::Node, sender.clone(), shutdown);
    follow(client, NAMESPACES, Change::Namespace, sender, shutdown);
    receiver
}

fn follow<K>(
    client: &Client,
    kind: &'static str,
    wrap: fn(Event<K>) -> Change,
    sender: mpsc::Sender<Change>,
    shutdown: &CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let stream = watch(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    let shutdown = shutdown.clone();
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.next().await {
            match item {
                Ok(event) => {
                    if sender.send(wrap(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(kind, %error, "watch interrupted; it is resumed"),
            }
        }
    }));
}

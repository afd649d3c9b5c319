//! Sluice's controllers: each brings one part of the cluster closer to what its objects ask for.
//!
//! Every controller is a pure planner (what is there → what to write) and a thin driver on the shared harness: one watch
//! per kind ([`informer`]), one work queue per controller ([`queue`]). Everything goes through the Kubernetes API; nothing
//! here opens the store. Nothing polls: timers exist only for deadlines.

mod accounts;
mod claim;
mod context;
mod deployment;
mod discovery;
mod endpoints;
mod events;
mod expectations;
mod informer;
mod limits;
mod namespaces;
mod object;
mod queue;
mod replicaset;
mod rest;
mod types;

use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use kube::runtime::watcher::Config;
use tokio_util::sync::CancellationToken;

use context::Context;
use events::Recorder;
use informer::Informer;
use types::{
    ConfigMap, Deployment, Endpoints, Namespace, Node, Pod, ReplicaSet, ReplicationController, Service, ServiceAccount,
    Slice,
};

/// A source of the current time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How the controllers run.
#[derive(Clone)]
pub struct Options {
    /// The bundle published as `kube-root-ca.crt`, in PEM.
    pub root_ca: String,
    /// The time.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_ca: String::new(), clock: Arc::new(Timestamp::now) }
    }
}

/// Runs all controllers until `shutdown`. May be called again afterwards.
///
/// # Errors
/// None at present: an API server that cannot be reached is tried again for ever.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let context = Context {
        events: Recorder::start(client.clone(), shutdown.clone()),
        client,
        options: Arc::new(options),
        shutdown: shutdown.clone(),
    };
    start(&context);
    shutdown.cancelled().await;
    Ok(())
}

/// Wires every controller to the informers, then starts the informers.
fn start(context: &Context) {
    let pods: Informer<Pod> = Informer::new(Config::default());
    let sets: Informer<ReplicaSet> = Informer::new(Config::default());
    let replications: Informer<ReplicationController> = Informer::new(Config::default());
    let deployments: Informer<Deployment> = Informer::new(Config::default());
    let services: Informer<Service> = Informer::new(Config::default());
    let slices: Informer<Slice> = Informer::new(Config::default());
    let classic: Informer<Endpoints> = Informer::new(Config::default());
    let nodes: Informer<Node> = Informer::new(Config::default());
    let namespaces: Informer<Namespace> = Informer::new(Config::default());
    let accounts: Informer<ServiceAccount> = Informer::new(Config::default());
    let maps: Informer<ConfigMap> =
        Informer::new(Config::default().fields(&format!("metadata.name={}", accounts::ROOT_CA)));

    replicaset::start(context, "replicaset-controller", &sets, &pods);
    replicaset::start(context, "replication-controller", &replications, &pods);
    deployment::start(context, &deployments, &sets, &pods);
    endpoints::start(context, &services, &pods, &nodes, &slices, &classic);
    accounts::start(context, &namespaces, &accounts, &maps);
    namespaces::start(context, &namespaces);

    let (client, shutdown) = (&context.client, &context.shutdown);
    pods.start(client.clone(), shutdown.clone());
    sets.start(client.clone(), shutdown.clone());
    replications.start(client.clone(), shutdown.clone());
    deployments.start(client.clone(), shutdown.clone());
    services.start(client.clone(), shutdown.clone());
    slices.start(client.clone(), shutdown.clone());
    classic.start(client.clone(), shutdown.clone());
    nodes.start(client.clone(), shutdown.clone());
    namespaces.start(client.clone(), shutdown.clone());
    accounts.start(client.clone(), shutdown.clone());
    maps.start(client.clone(), shutdown.clone());
}

//! Sluice's controllers: each brings one part of the cluster closer to what its objects ask for.
//!
//! Every controller is a pure planner (what is there → what to write) and a thin driver on the shared harness: one watch
//! per kind ([`informer`]), one work queue per controller ([`queue`]). Everything goes through the Kubernetes API; nothing
//! here opens the store. Nothing polls: timers exist only for deadlines.

mod accounts;
mod certificates;
mod claim;
mod context;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod events;
mod expectations;
mod gc;
mod informer;
mod job;
mod limits;
mod namespaces;
mod nodes;
mod object;
mod pods;
mod queue;
mod replicaset;
mod rest;
mod revisions;
mod statefulset;
mod tokens;
mod types;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::runtime::watcher::Config;
use tokio_util::sync::CancellationToken;

use context::Context;
use disruption::Budget;
use events::Recorder;
use informer::Informer;
use types::{
    Certificate, ConfigMap, ControllerRevision, DaemonSet, Deployment, Endpoints, Job, Lease, Namespace, Node, Pod,
    ReplicaSet, ReplicationController, Secret, Service, ServiceAccount, Slice, StatefulSet,
};

/// A source of the current time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How the controllers run.
#[derive(Clone)]
pub struct Options {
    /// Certificate and key of the authority that signs nodes' certificates, in PEM. Without it nothing is signed.
    pub cluster_ca: Option<(String, String)>,
    /// The bundle published as `kube-root-ca.crt`, in PEM.
    pub ca_bundle: String,
    /// Domain of Services.
    pub cluster_domain: String,
    /// The cluster's pod ranges, one per address family; every node gets a part of each. Empty: nodes get none.
    pub pod_cidrs: Vec<String>,
    /// How long a node may be silent before it counts as lost.
    pub node_grace: Duration,
    /// The time.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_ca: None,
            ca_bundle: String::new(),
            cluster_domain: "cluster.local".into(),
            pod_cidrs: Vec::new(),
            node_grace: Duration::from_secs(40),
            clock: Arc::new(Timestamp::now),
        }
    }
}

/// Runs all controllers until `shutdown`. May be called again afterwards.
///
/// # Errors
/// When an option makes no sense. An API server that cannot be reached is tried again for ever.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let context = Context {
        events: Recorder::start(client.clone(), shutdown.clone()),
        client,
        options: Arc::new(options),
        shutdown: shutdown.clone(),
    };
    start(&context).map_err(anyhow::Error::msg)?;
    shutdown.cancelled().await;
    Ok(())
}

/// Wires every controller to the informers, then starts the informers.
fn start(context: &Context) -> Result<(), String> {
    let pods: Informer<Pod> = Informer::new(Config::default());
    let sets: Informer<ReplicaSet> = Informer::new(Config::default());
    let replications: Informer<ReplicationController> = Informer::new(Config::default());
    let deployments: Informer<Deployment> = Informer::new(Config::default());
    let daemons: Informer<DaemonSet> = Informer::new(Config::default());
    let revisions: Informer<ControllerRevision> = Informer::new(Config::default());
    let jobs: Informer<Job> = Informer::new(Config::default());
    let stateful: Informer<StatefulSet> = Informer::new(Config::default());
    let budgets: Informer<Budget> = Informer::new(Config::default());
    let services: Informer<Service> = Informer::new(Config::default());
    let slices: Informer<Slice> = Informer::new(Config::default());
    let classic: Informer<Endpoints> = Informer::new(Config::default());
    let nodes: Informer<Node> = Informer::new(Config::default());
    let leases: Informer<Lease> = Informer::new(Config::default());
    let requests: Informer<Certificate> = Informer::new(Config::default());
    let tokens: Informer<Secret> = Informer::new(Config::default().fields(tokens::FIELDS));
    let namespaces: Informer<Namespace> = Informer::new(Config::default());
    let accounts: Informer<ServiceAccount> = Informer::new(Config::default());
    let maps: Informer<ConfigMap> =
        Informer::new(Config::default().fields(&format!("metadata.name={}", accounts::ROOT_CA)));

    replicaset::start(context, "replicaset-controller", &sets, &pods);
    replicaset::start(context, "replication-controller", &replications, &pods);
    deployment::start(context, &deployments, &sets, &pods);
    daemonset::start(context, &daemons, &revisions, &pods, &nodes);
    job::start(context, &jobs, &pods);
    statefulset::start(context, &stateful, &revisions, &pods);
    let workloads = disruption::Workloads {
        deployments: deployments.store.clone(),
        replica_sets: sets.store.clone(),
        stateful_sets: stateful.store.clone(),
    };
    disruption::start(context, &budgets, &pods, workloads);
    endpoints::start(context, &services, &pods, &nodes, &slices, &classic);
    accounts::start(context, &namespaces, &accounts, &maps);
    let emptied = namespaces::start(context, &namespaces);
    gc::start(context, emptied);
    nodes::start(context, &nodes, &leases, &pods);
    nodes::evict::start(context, &nodes, &pods);
    nodes::podgc::start(context, &nodes, &pods);
    nodes::ipam::start(context, &nodes)?;
    certificates::start(context, &requests, &nodes)?;
    tokens::start(context, &tokens);

    let (client, shutdown) = (&context.client, &context.shutdown);
    pods.start(client.clone(), shutdown.clone());
    sets.start(client.clone(), shutdown.clone());
    replications.start(client.clone(), shutdown.clone());
    deployments.start(client.clone(), shutdown.clone());
    daemons.start(client.clone(), shutdown.clone());
    revisions.start(client.clone(), shutdown.clone());
    jobs.start(client.clone(), shutdown.clone());
    stateful.start(client.clone(), shutdown.clone());
    budgets.start(client.clone(), shutdown.clone());
    services.start(client.clone(), shutdown.clone());
    slices.start(client.clone(), shutdown.clone());
    classic.start(client.clone(), shutdown.clone());
    nodes.start(client.clone(), shutdown.clone());
    namespaces.start(client.clone(), shutdown.clone());
    accounts.start(client.clone(), shutdown.clone());
    maps.start(client.clone(), shutdown.clone());
    leases.start(client.clone(), shutdown.clone());
    requests.start(client.clone(), shutdown.clone());
    tokens.start(client.clone(), shutdown.clone());
    Ok(())
}

//! Sluice's controllers: each brings one part of the cluster closer to what its objects ask for.
//!
//! Every controller is a pure planner (what is there → what to write) and a thin driver on the shared harness: one watch
//! per kind ([`informer`]), one work queue per controller ([`queue`]). Everything goes through the Kubernetes API; nothing
//! here opens the store. Nothing polls: timers exist only for deadlines.

mod accounts;
mod certificates;
mod claim;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod events;
mod expectations;
mod gc;
mod harness;
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
use tokio_util::sync::CancellationToken;

use context::Context;
use events::Recorder;
use harness::Informers;

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
    let all = Informers::new();
    replicaset::start(context, "replicaset-controller", &all.replica_sets, &all.pods);
    replicaset::start(context, "replication-controller", &all.replication_controllers, &all.pods);
    deployment::start(context, &all);
    daemonset::start(context, &all);
    statefulset::start(context, &all);
    job::start(context, &all);
    job::orphans::start(context, &all);
    cronjob::start(context, &all);
    disruption::start(context, &all);
    endpoints::start(context, &all);
    accounts::start(context, &all);
    let emptied = namespaces::start(context, &all);
    gc::start(context, emptied);
    nodes::start(context, &all);
    nodes::evict::start(context, &all);
    nodes::podgc::start(context, &all);
    nodes::ipam::start(context, &all)?;
    certificates::start(context, &all)?;
    tokens::start(context, &all);
    all.start(context);
    Ok(())
}

//! Sluice's controllers: each brings one part of the cluster closer to what its objects ask for.
//!
//! Every controller is a pure planner (what is there → what to write) and a thin driver on the shared harness: one watch
//! per kind ([`informer`]), one work queue per controller ([`queue`]). Everything goes through the Kubernetes API; nothing
//! here opens the store. Nothing polls: timers exist only for deadlines.

mod account_tokens;
mod accounts;
mod addresses;
mod aggregation;
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
mod loadbalancer;
mod namespaces;
mod nodes;
mod object;
mod pods;
mod queue;
mod quotas;
mod replicaset;
mod rest;
mod revisions;
mod statefulset;
mod tokens;
mod types;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use sluice_scheduler::leader::{self, Election};
use tokio_util::sync::CancellationToken;

use context::Context;
use events::Recorder;
use harness::Informers;
use queue::Key;

/// Name of the lease that controllers elect their leader by.
pub const LEASE: &str = "kube-controller-manager";

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
    /// Prefix of a node's part of the IPv4 and of the IPv6 range.
    pub node_prefixes: (u8, u8),
    /// How long a node may be silent before it counts as lost.
    pub node_grace: Duration,
    /// The time.
    pub clock: Clock,
    /// With several of them: control only while elected. By default these are the only ones.
    pub election: Option<Election>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_ca: None,
            ca_bundle: String::new(),
            cluster_domain: "cluster.local".into(),
            pod_cidrs: Vec::new(),
            node_prefixes: (24, 64),
            node_grace: Duration::from_secs(40),
            clock: Arc::new(Timestamp::now),
            election: None,
        }
    }
}

/// Runs all controllers until `shutdown`. May be called again afterwards.
///
/// # Errors
/// When an option makes no sense. An API server that cannot be reached is tried again for ever.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let options = Arc::new(options);
    let control = |shutdown: CancellationToken| {
        let context = Context {
            events: Recorder::start(client.clone(), shutdown.clone()),
            client: client.clone(),
            options: options.clone(),
            shutdown: shutdown.clone(),
        };
        async move {
            start(&context).map_err(anyhow::Error::msg)?;
            shutdown.cancelled().await;
            Ok(())
        }
    };
    match &options.election {
        Some(election) => leader::lead(client.clone(), LEASE, election, shutdown, control).await,
        None => control(shutdown).await,
    }
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
    endpoints::mirror::start(context, &all);
    loadbalancer::start(context, &all);
    accounts::start(context, &all);
    account_tokens::start(context, &all);
    addresses::ranges::start(context, &all);
    addresses::repair::start(context, &all);
    addresses::ports::start(context, &all);
    let emptied = namespaces::start(context, &all);
    let catalog = gc::Catalog::default();
    let counted = quotas::start(context, &all, catalog.clone());
    gc::start(context, catalog, move |namespace, change| {
        counted(namespace);
        if change == gc::Content::Went {
            emptied.add(Key::new("", namespace));
        }
    });
    aggregation::start(context, &all);
    volumes::start(context, &all);
    volumes::protection::start(context, &all);
    nodes::start(context, &all);
    nodes::evict::start(context, &all);
    nodes::podgc::start(context, &all);
    nodes::ipam::start(context, &all)?;
    certificates::start(context, &all)?;
    tokens::start(context, &all);
    all.start(context);
    Ok(())
}

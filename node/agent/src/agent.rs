//! Puts the node together: network, data plane, runtime, the Node object, pods, DNS, the HTTPS API; and runs all of it
//! until the shutdown. What runs in containers is left running.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kube::Client;
use sluice_dataplane::Dataplane;
use sluice_network::{Cidr, Network, PeerPath};
use sluice_runtime::{Event, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::dispatch::{self, Workers};
use crate::dns;
use crate::etc::{DnsSettings, ResolvConf};
use crate::events::{self, Note, Recorder};
use crate::eviction::{self, signals::Thresholds};
use crate::home;
use crate::informers::{self, NodesView};
use crate::kept::Kept;
use crate::node::machine::Machine;
use crate::node::object::Observed;
use crate::node::{Keeper, Relief};
use crate::node_context::{Identity, NodeContext};
use crate::pod::worker::Message;
use crate::real::{RealApi, RealNetwork};
use crate::references::{ApiSource, References};
use crate::refused;

/// Everything a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, the primary one first; empty: those of the default route's link.
    pub node_ips: Vec<IpAddr>,
    /// `/var/lib/sluice`; pods' volumes are below it.
    pub dir: PathBuf,
    /// `/var/log/pods`.
    pub logs: PathBuf,
    pub runtime: sluice_runtime::Config,
    pub network: sluice_network::Config,
    /// Without one, Services do not work; its `pod_range` and `cluster_range` are filled in here.
    pub dataplane: Option<sluice_dataplane::Config>,
    /// Ranges outside of the cluster that pods' packets go to with the pod's own address.
    pub unmasqueraded: Vec<Cidr>,
    pub peer_path: PeerPath,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Addresses of the kube-dns Service.
    pub cluster_dns: Vec<IpAddr>,
    /// Serve cluster DNS on this node.
    pub serve_dns: bool,
    /// Servers for names outside the cluster; `None`: those of the host's resolv.conf.
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    /// DNS sockets of the process before this one.
    pub kept: Arc<Kept>,
    /// The host's resolv.conf, which pods with `dnsPolicy: Default` get.
    pub resolv_conf: PathBuf,
    /// When the node is short of something.
    pub thresholds: Thresholds,
    /// The node's HTTPS API; `None`: not served.
    pub api: Option<api::Config>,
}

/// A node that is ready to run pods.
pub struct Agent {
    config: Config,
    client: Client,
    node: Arc<NodeContext>,
    network: Network,
    dataplane: Option<Dataplane>,
    runtime: Runtime,
    keeper: Keeper,
    workers: Workers,
    nodes: watch::Sender<NodesView>,
    services: watch::Sender<Option<crate::env::ServiceLinks>>,
    network_ready: watch::Sender<bool>,
    notes: mpsc::Receiver<Note>,
    images_changed: Arc<Notify>,
}

impl Agent {
    /// Connects to everything and registers the node. Routes that keep service and pod addresses on the machine are
    /// set before anything else.
    ///
    /// # Errors
    /// What is missing (containerd, a kernel feature, the right to do it), in a sentence that says so.
    pub async fn start(config: Config, client: Client) -> Result<Agent> {
        std::fs::create_dir_all(&config.dir).with_context(|| format!("cannot make {}", config.dir.display()))?;
        let network = Network::new(config.network.clone()).await.context("the pod network")?;
        network.setup_node().await.context("the pod network")?;
        let ips = if config.node_ips.is_empty() {
            network.node_ips().await.context("the node's addresses")?
        } else {
            config.node_ips.clone()
        };
        let dataplane = match &config.dataplane {
            Some(c) => {
                let mut c = c.clone();
                if c.node_addresses.is_empty() {
                    c.node_addresses.clone_from(&ips);
                }
                let loaded = tokio::task::spawn_blocking(move || Dataplane::load(c)).await?;
                Some(loaded.context("the data plane")?)
            }
            None => None,
        };
        let runtime = Runtime::connect(config.runtime.clone()).await.context("the container runtime")?;
        let machine = Machine::read(&config.dir);
        let host = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let identity = Identity {
            name: config.node_name.clone(),
            dir: config.dir.clone(),
            logs: config.logs.clone(),
            ips: ips.clone(),
            dns: DnsSettings {
                cluster_dns: config.cluster_dns.clone(),
                cluster_domain: config.cluster_domain.clone(),
                host: ResolvConf::parse(&host),
            },
            memory: machine.memory.into(),
            allocatable: machine.allocatable(),
        };
        let (network_ready, ready) = watch::channel(false);
        let (services, links) = watch::channel(None);
        let (recorder, notes) = Recorder::new();
        let real = RealNetwork { network: network.clone(), dataplane: dataplane.clone(), ready: ready.clone() };
        let node = Arc::new(NodeContext::new(
            identity,
            Arc::new(runtime.clone()),
            Arc::new(real),
            Arc::new(RealApi(client.clone())),
            References::new(ApiSource(client.clone())),
            recorder,
            links,
        ));
        let observed = Observed {
            name: config.node_name.clone(),
            ips,
            api_port: config.api.as_ref().map_or(10250, |a| a.bind.port()),
            machine,
            ..Observed::default()
        };
        let images_changed = Arc::new(Notify::new());
        let mut keeper = Keeper {
            client: client.clone(),
            runtime: Arc::new(runtime.clone()),
            observed,
            network: ready,
            begun: std::time::Instant::now(),
            changed: images_changed.clone(),
            dir: config.dir.clone(),
            thresholds: config.thresholds,
            beats: watch::Sender::default(),
            pressure: node.pressure.clone(),
            relief: Relief::default(),
            registered: false,
        };
        keeper.register().await.context("the node could not be registered at the API server")?;
        let (nodes, _) = watch::channel(NodesView::default());
        Ok(Agent {
            config,
            client,
            node,
            network,
            dataplane,
            runtime,
            keeper,
            workers: Workers::default(),
            nodes,
            services,
            network_ready,
            notes,
            images_changed,
        })
    }

    /// The node's pods, for inspection.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// The node's data plane, for those who follow its connections.
    pub fn dataplane(&self) -> Option<&Dataplane> {
        self.dataplane.as_ref()
    }

    /// Runs until the shutdown.
    ///
    /// # Errors
    /// When the HTTPS API cannot be served.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let tasks = TaskTracker::new();
        let own = self.config.node_name.clone();
        let (client, stop) = (self.client.clone(), shutdown.clone());
        tasks.spawn(until(stop.clone(), events::write(client.clone(), own.clone(), self.notes)));
        tasks.spawn(informers::services(client.clone(), self.services, stop.clone()));
        let labels = labels(&self.nodes, &tasks, &stop);
        let ranges = self.nodes.subscribe();
        let (known, services) = watch::channel(Vec::new());
        tasks.spawn(informers::service_ranges(client.clone(), known, stop.clone()));
        tasks.spawn(informers::nodes(client.clone(), own, self.config.peer_path, self.nodes, stop.clone()));
        let sources = api::Sources { dataplane: self.dataplane.clone(), ..api::Sources::default() };
        let (home_network, home_ready) = (self.network.clone(), self.network_ready.subscribe());
        let routes = Routes {
            dns_stats: sources.dns.clone(),
            client: client.clone(),
            config: self.config.clone(),
            network: self.network,
            dataplane: self.dataplane.clone(),
            services,
            ready: self.network_ready,
        };
        tasks.spawn(routes.run(ranges, tasks.clone(), stop.clone()));
        let beats = self.keeper.beats.subscribe();
        tasks.spawn(eviction::run(
            self.node.clone(),
            self.workers.clone(),
            beats,
            self.config.thresholds,
            stop.clone(),
        ));
        tasks.spawn(self.keeper.run(stop.clone()));
        self.node.recorder.node(&self.config.node_name, false, "Starting", "Starting kubelet.");
        tasks.spawn(follow_runtime(self.runtime.clone(), self.node.clone(), self.images_changed, stop.clone()));
        if let Some(dataplane) = self.dataplane {
            tasks.spawn(until(stop.clone(), home::lead(home_network, dataplane.clone(), home_ready)));
            let (client, stop) = (client.clone(), stop.clone());
            let told = refused::tell(client.clone(), self.node.recorder.clone(), dataplane.refused());
            tasks.spawn(until(stop.clone(), told));
            tasks.spawn(async move {
                if let Err(error) = dataplane.run(client, stop).await {
                    tracing::error!(%error, "the data plane no longer follows the Services");
                }
            });
        }
        tasks.spawn(dispatch::run(client.clone(), self.node.clone(), self.workers.clone(), labels, stop.clone()));
        if let Some(mut config) = self.config.api.clone() {
            // A node that has just joined is given its serving certificate only after it is registered.
            tokio::select! {
                () = shutdown.cancelled() => {}
                known = config.identity.wait_for(|identity| !identity.cert_pem.is_empty()) => {
                    known.context("no serving certificate for the node's API")?;
                }
            }
            if shutdown.is_cancelled() {
                tasks.close();
                tasks.wait().await;
                return Ok(());
            }
            let server = api::Server::new(
                config,
                self.node.clone(),
                self.workers,
                client,
                self.config.thresholds,
                sources,
                stop.clone(),
            )?;
            let served = server.run().await;
            if served.is_err() {
                shutdown.cancel();
            }
            tasks.close();
            tasks.wait().await;
            return served;
        }
        stop.cancelled().await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

async fn until(shutdown: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

fn dataplane_range(cidr: &Cidr) -> Option<sluice_dataplane::Range> {
    sluice_dataplane::Range::new(cidr.addr(), cidr.prefix())
}

/// This node's labels as a channel of their own.
fn labels(
    nodes: &watch::Sender<NodesView>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<Option<std::collections::BTreeMap<String, String>>> {
    let (out, labels) = watch::channel(None);
    let mut views = nodes.subscribe();
    tasks.spawn(until(shutdown.clone(), async move {
        while views.changed().await.is_ok() {
            let labels = views.borrow_and_update().labels.clone();
            out.send_if_modified(|old| {
                let differs = *old != labels;
                *old = labels;
                differs
            });
        }
    }));
    labels
}

/// Gives containers' ends to their pods' workers.
async fn follow_runtime(runtime: Runtime, node: Arc<NodeContext>, changed: Arc<Notify>, shutdown: CancellationToken) {
    let mut events = runtime.events();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Event::Exited { id, exit } => {
                if let Some((index, worker)) = node.owner(&id) {
                    // A worker that ended meanwhile needs no news.
                    let _ = worker.send(Message::Exited { index, id, exit }).await;
                }
            }
            Event::Resync => {
                dispatch::resync(&node).await;
                changed.notify_one();
            }
            Event::Started { .. } | Event::Oom { .. } | Event::Removed { .. } => {}
        }
    }
}

/// The node's part of the cluster's routes, and what can only begin once they are there.
struct Routes {
    client: Client,
    config: Config,
    network: Network,
    dataplane: Option<Dataplane>,
    /// The ranges of Services' addresses; none before they are known.
    services: watch::Receiver<Vec<Cidr>>,
    dns_stats: Arc<sluice_dns::Stats>,
    ready: watch::Sender<bool>,
}

impl Routes {
    async fn run(mut self, mut views: watch::Receiver<NodesView>, tasks: TaskTracker, shutdown: CancellationToken) {
        let mut ranges = Vec::new();
        let mut peers = Vec::new();
        let (mut refused, mut shared) = ((Vec::new(), Vec::new()), Vec::new());
        let mut dns = false;
        loop {
            let view = views.borrow_and_update().clone();
            let nodes: Vec<IpAddr> = view.peers.iter().flat_map(|peer| peer.node_ips.iter().copied()).collect();
            if view.ranges != ranges && !view.ranges.is_empty() {
                match self.set_ranges(&view).await {
                    Ok(()) => {
                        ranges.clone_from(&view.ranges);
                        self.ready.send_replace(true);
                        if self.config.serve_dns && !dns {
                            dns = true;
                            tasks.spawn(serve_dns(self.dns(&view), self.client.clone(), shutdown.clone()));
                        }
                    }
                    Err(error) => tracing::error!(error = format!("{error:#}"), "the pod range could not be set"),
                }
            }
            if view.peers != peers {
                match self.network.set_peers(view.peers.clone()).await {
                    Ok(()) => peers = view.peers,
                    Err(error) => tracing::error!(%error, "routes to other nodes' pods could not be set"),
                }
                let told = self.dataplane.as_ref().map(|dataplane| dataplane.set_nodes(nodes.iter().copied()));
                if let Some(Err(error)) = told {
                    tracing::error!(%error, "the data plane does not know the other nodes");
                }
            }
            let services = self.services.borrow_and_update().clone();
            if !services.is_empty() && refused != (services.clone(), nodes.clone()) {
                match self.network.set_service_cidrs(&services, &nodes).await {
                    Ok(left) => {
                        for range in left.iter().filter(|range| !shared.contains(*range)) {
                            tracing::warn!(%range, "nodes have addresses in a range of Services: what nobody serves there is not refused");
                        }
                        (refused, shared) = ((services, nodes), left);
                    }
                    Err(error) => tracing::error!(%error, "routes to further ranges of Services could not be set"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = views.changed() => if changed.is_err() { return },
                Ok(()) = self.services.changed() => {}
            }
        }
    }

    async fn set_ranges(&self, view: &NodesView) -> Result<()> {
        self.network.set_pod_cidrs(view.ranges.clone()).await?;
        let Some(dataplane) = &self.dataplane else { return Ok(()) };
        let excluded: Vec<_> = self.config.unmasqueraded.iter().filter_map(dataplane_range).collect();
        dataplane.set_unmasqueraded(&excluded)?;
        for own in &view.ranges {
            let same = |all: &&Cidr| all.addr().is_ipv4() == own.addr().is_ipv4();
            let all = self.config.network.cluster_cidrs.iter().find(same).unwrap_or(own);
            if let (Some(own), Some(all)) = (dataplane_range(own), dataplane_range(all)) {
                dataplane.set_pod_ranges(own, all)?;
            }
        }
        Ok(())
    }

    fn dns(&self, view: &NodesView) -> dns::Settings {
        let upstreams = self.config.dns_upstreams.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default();
            sluice_dns::upstreams_from(&host, &self.config.cluster_dns)
        });
        dns::Settings {
            node: self.config.node_name.clone(),
            node_uid: view.uid.clone(),
            domain: self.config.cluster_domain.clone(),
            listen: self.network.gateways(),
            upstreams,
            stats: self.dns_stats.clone(),
            kept: self.config.kept.clone(),
        }
    }
}

async fn serve_dns(settings: dns::Settings, client: Client, shutdown: CancellationToken) {
    let listen = settings.listen.clone();
    if let Err(error) = dns::run(client, settings, shutdown).await {
        tracing::error!(error = format!("{error:#}"), ?listen, "cluster DNS is not served on this node");
    }
}

//! The cluster that `api` and `sched` put their load on: a control plane of our own on this machine's loopback, or any
//! Kubernetes cluster that a kubeconfig leads to. The load is the same and goes through the same client.
//!
//! What a bench makes on it is a [`Space`], which is removed also when a signal ends the bench.

mod caller;
mod meter;
mod server;
mod space;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use kube::config::{KubeConfigOptions, Kubeconfig};

pub(crate) use caller::Caller;
use meter::Share;
pub(crate) use meter::{Meter, Reading};
pub(crate) use space::{Object, Space};

#[cfg(feature = "flamegraph")]
use crate::profile::Profile;
use crate::{document::Label, limits, machine::Machine, proc, report::Measured};
use server::Server;

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Where {
    /// Measure this cluster instead of starting one
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// With --kubeconfig: a process of the control plane on this machine, whose CPU time and memory count as the server's
    /// [repeatable]
    #[arg(long, value_name = "PID", value_delimiter = ',', requires = "kubeconfig")]
    pub(crate) pid: Vec<u32>,
    /// What our own control plane keeps its objects in [default: both for `api`, embedded for `sched`]
    #[arg(long, value_name = "STORE", conflicts_with = "kubeconfig")]
    pub(crate) store: Option<Stores>,
    /// Draw what the server's processes spend their CPU time on, as a flame graph in this file
    #[cfg(feature = "flamegraph")]
    #[arg(long, value_name = "FILE")]
    pub(crate) flamegraph: Option<std::path::PathBuf>,
    /// What to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
}

/// See [`Where::store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stores {
    /// The store of its own
    Embedded,
    /// One etcd on this machine, with its writes synced to the disk
    Etcd,
    /// One after the other
    Both,
}

impl Stores {
    fn each(self) -> &'static [Store] {
        match self {
            Self::Embedded => &[Store::Embedded],
            Self::Etcd => &[Store::Etcd],
            Self::Both => &[Store::Embedded, Store::Etcd],
        }
    }
}

/// What a control plane of our own keeps its objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Embedded,
    Etcd,
}

impl Where {
    /// Refuses what cannot be measured.
    pub(crate) fn check(&self) -> Result<()> {
        match self.pid.iter().find(|pid| proc::cpu_seconds(**pid).is_err()) {
            Some(pid) => bail!("--pid {pid}: there is no such process on this machine"),
            None => Ok(()),
        }
    }

    /// The work of one cluster, looked at where that is asked for.
    async fn watched(&self, cluster: &Cluster, work: impl Future<Output = Result<()>>) -> Result<()> {
        #[cfg(feature = "flamegraph")]
        if let Some(picture) = &self.flamegraph {
            let profile = Profile::begin(cluster.meter.server(), picture)?;
            work.await?;
            return profile.end();
        }
        let _ = cluster;
        work.await
    }
}

/// A cluster while it is measured.
pub(crate) struct Cluster {
    config: kube::Config,
    pub(crate) label: Label,
    /// Of a control plane of our own.
    pub(crate) store: Option<Store>,
    /// Processes of the server, and of the store where that is another.
    pub(crate) meter: Meter,
    _server: Option<Server>,
}

impl Cluster {
    /// The client of one more user, with connections of its own.
    pub(crate) fn caller(&self) -> Result<Caller> {
        Caller::new(&self.config)
    }

    async fn own(store: Store, options: &Where) -> Result<Self> {
        let server = Server::start(store).await?;
        let config = config(&server.kubeconfig()).await?;
        let meter = Meter::new(vec![server.pid()], server.etcd_pid());
        let mut cluster = Self { config, label: Label::default(), store: Some(store), meter, _server: None };
        cluster.name(options).await?;
        if let Some(etcd) = server.etcd_version()? {
            cluster.label.versions.insert("etcd".into(), etcd);
        }
        let kind = if store == Store::Etcd { "etcd" } else { "embedded" };
        cluster.label.name = format!("{}, {kind}", cluster.label.name);
        cluster._server = Some(server);
        Ok(cluster)
    }

    async fn elsewhere(file: &Path, options: &Where) -> Result<Self> {
        let mut cluster = Self {
            config: config(file).await?,
            label: Label::default(),
            store: None,
            meter: Meter::new(options.pid.clone(), None),
            _server: None,
        };
        cluster.name(options).await?;
        Ok(cluster)
    }

    async fn name(&mut self, options: &Where) -> Result<()> {
        let version = self.caller()?.version().await?;
        self.label.name = options.label.clone().unwrap_or_else(|| version.clone());
        self.label.versions = BTreeMap::from([("server".to_owned(), version)]);
        Ok(())
    }
}

/// Runs `measure` on each of the clusters that are asked for, one after the other; a signal ends it, and what it made on
/// the cluster is removed either way.
pub(crate) fn each(
    options: &Where,
    usual: Stores,
    mut measure: impl AsyncFnMut(&Cluster, &Arc<Space>, &mut Measured) -> Result<()>,
) -> Result<Vec<(Label, Measured)>> {
    options.check()?;
    let clusters = match &options.kubeconfig {
        Some(_) => &[None][..],
        None => &options.store.unwrap_or(usual).each().iter().copied().map(Some).collect::<Vec<_>>(),
    };
    #[cfg(feature = "flamegraph")]
    if options.flamegraph.is_some() && clusters.len() > 1 {
        bail!("--flamegraph draws one picture: name one --store");
    }
    if let Some(warning) = Machine::read()?.busy() {
        eprintln!("warning: {warning}");
    }
    // It fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    threads.block_on(async {
        let mut all = Vec::new();
        for store in clusters {
            let cluster = match (store, &options.kubeconfig) {
                (Some(store), _) => Cluster::own(*store, options).await?,
                (None, Some(file)) => Cluster::elsewhere(file, options).await?,
                (None, None) => continue,
            };
            eprintln!("==> measuring {}", cluster.label.name);
            let space = Arc::new(Space::new(cluster.caller()?));
            let share = Share::begin(&cluster.meter)?;
            let mut measured = Measured::default();
            let work = async {
                space.make().await?;
                options.watched(&cluster, measure(&cluster, &space, &mut measured)).await
            };
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(limits::LOAD_WHOLE, work) => {
                    outcome.unwrap_or_else(|_| bail!("not done within {} s", limits::LOAD_WHOLE.as_secs()))
                }
                signal = interrupted() => signal.and_then(|()| bail!("ended by a signal")),
            };
            // Everything on a control plane of our own goes with its directory.
            if options.kubeconfig.is_some() {
                eprintln!("==> removing what was made");
                space.remove().await?;
            }
            outcome.with_context(|| cluster.label.name.clone())?;
            if let Some(others) = share.end(&cluster.meter)?.filter(|others| *others > limits::OTHERS) {
                measured.note(format!(
                    "other programs used {others:.0} % of the machine's CPU time meanwhile: trust CPU times and ratios more than rates"
                ));
            }
            all.push((cluster.label.clone(), measured));
        }
        Ok(all)
    })
}

async fn config(file: &Path) -> Result<kube::Config> {
    let text = Kubeconfig::read_from(file).with_context(|| format!("cannot read {}", file.display()))?;
    let config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await;
    config.with_context(|| format!("{} leads to no cluster", file.display()))
}

/// Until the user wants the end.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

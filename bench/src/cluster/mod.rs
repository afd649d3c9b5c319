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
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use caller::Caller;
use meter::Share;
pub(crate) use meter::{Meter, Reading};
pub(crate) use space::{Object, Space};

#[cfg(feature = "flamegraph")]
use crate::profile::Profile;
use crate::{document::Label, limits, proc, report::Measured};
use server::Server;

/// Which cluster.
#[derive(Args, Clone, Debug, Default)]
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

    /// The same way, for typed objects.
    pub(crate) fn client(&self) -> Result<kube::Client> {
        Ok(kube::Client::try_from(self.config.clone())?)
    }

    async fn own(store: Store, options: &Where) -> Result<Self> {
        let server = Server::start(store).await?;
        let config = config(&server.kubeconfig()).await?;
        let meter = Meter::new(vec![server.pid()], server.etcd_pid());
        let mut cluster = Self { config, label: Label::default(), store: Some(store), meter, _server: None };
        cluster.label = label(&cluster.caller()?, options.label.as_deref()).await?;
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
        cluster.label = label(&cluster.caller()?, options.label.as_deref()).await?;
        Ok(cluster)
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
    run(async {
        let mut signals = Signals::catch()?;
        let mut all = Vec::new();
        for store in clusters {
            let begin = async {
                match (store, &options.kubeconfig) {
                    (Some(store), _) => Cluster::own(*store, options).await,
                    (None, Some(file)) => Cluster::elsewhere(file, options).await,
                    (None, None) => bail!("neither a store nor a cluster"),
                }
            };
            let cluster = signals.end(begin).await?;
            eprintln!("==> measuring {}", cluster.label.name);
            let space = Arc::new(Space::new(cluster.caller()?));
            let share = Share::begin(&cluster.meter)?;
            let mut measured = Measured::default();
            let work = async {
                space.make().await?;
                options.watched(&cluster, measure(&cluster, &space, &mut measured)).await
            };
            let limited = async {
                let outcome = tokio::time::timeout(limits::LOAD_WHOLE, work).await;
                outcome.unwrap_or_else(|_| bail!("not done within {} s", limits::LOAD_WHOLE.as_secs()))
            };
            let outcome = signals.end(limited).await;
            // Everything on a control plane of our own goes with its directory.
            let removed = match options.kubeconfig.is_some() {
                true => space.remove().await,
                false => Ok(()),
            };
            outcome.with_context(|| cluster.label.name.clone())?;
            removed?;
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

/// Runs what speaks to a cluster.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    // It fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// What to call a cluster: as the user says, or by its server's version.
pub(crate) async fn label(caller: &Caller, label: Option<&str>) -> Result<Label> {
    let version = caller.version().await?;
    let name = label.map_or_else(|| version.clone(), str::to_owned);
    Ok(Label { name, versions: BTreeMap::from([("server".to_owned(), version)]) })
}

/// How to reach the cluster that a kubeconfig leads to.
pub(crate) async fn config(file: &Path) -> Result<kube::Config> {
    // What is not there is told once.
    std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Kubeconfig::read_from(file).with_context(|| format!("cannot read {}", file.display()))?;
    let config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await;
    config.with_context(|| format!("{} leads to no cluster", file.display()))
}

/// The signals by which a user wants the end; from [`Signals::catch`] on they do not end the process by themselves.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn catch() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// The outcome of `work`, which a signal ends early, also one that came before.
    pub(crate) async fn end<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            outcome = work => return outcome,
        }
        eprintln!("ending; removing what was made first");
        bail!("ended by a signal")
    }
}

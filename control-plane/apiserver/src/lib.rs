//! The API server: one pipeline for every resource, from HTTPS or in process, over the watch cache.
//!
//! A request is parsed into [`context::RequestInfo`], authenticated, authorized, admitted, stored
//! and answered from canonical bytes. This crate is the only one that opens the store.

pub mod admission;
mod aggregation;
pub mod auth;
pub mod authz;
mod body;
pub mod bootstrap;
mod columns;
pub mod connect;
pub mod context;
mod conversion;
mod core;
mod crds;
mod documents;
mod drain;
mod fields;
pub mod limits;
pub mod meta;
mod metrics;
mod negotiate;
mod openapi;
#[cfg(test)]
#[path = "../tests/common/peer.rs"]
mod peer;
mod pipeline;
pub mod request;
mod respond;
mod rules;
mod server;
mod services;
pub mod storage;
mod transport;
mod verbs;
mod view;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use sluice_store::DynEngine;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use documents::described_metrics;

use crate::{
    admission::Admission,
    aggregation::Extensions,
    auth::Authenticator,
    authz::Authorizer,
    bootstrap::{
        encryption::SecretsAtRest,
        endpoints,
        objects::{self, Cluster},
        pki::{Names, Pki},
    },
    connect::Connect,
    context::UserInfo,
    core::Core,
    metrics::Metrics,
    pipeline::Pipeline,
    services::{Range, Services},
    storage::Storage,
};

/// What one server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where keys, certificates and tokens are kept.
    pub dir: PathBuf,
    /// The addresses under which others reach this server.
    pub advertise: Vec<IpAddr>,
    /// Where it listens; the port is the one it is advertised with.
    pub bind: SocketAddr,
    /// `10.96.0.0/16`, or one range of each family, the default one first: `10.96.0.0/16,fd00:96::/108`
    pub service_cidr: String,
    /// `10.244.0.0/16`, or one range of each family
    pub pod_cidr: String,
    /// `cluster.local`
    pub cluster_domain: String,
}

/// A running API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pipeline: Arc<Pipeline>,
    pki: Arc<Pki>,
    config: Arc<Config>,
    cluster: Arc<Cluster>,
    _tasks: Arc<[AbortOnDropHandle<()>; 4]>,
}

impl ApiServer {
    /// Opens keys and cache and makes sure that the objects of a new cluster exist. Serves
    /// in-process clients from then on; [`ApiServer::serve`] adds the network.
    ///
    /// # Errors
    /// When a key file cannot be read or made, the store does not answer, a range is wrong, or the servers that serve the
    /// cluster already listen on another port.
    pub async fn start(config: Config, engine: DynEngine) -> anyhow::Result<Self> {
        let ranges = Range::parse_all(&config.service_cidr)?;
        let range = *ranges.first().context("no range for Services")?;
        let names = Names {
            advertise: config.advertise.clone(),
            service: range.at(1),
            cluster_domain: config.cluster_domain.clone(),
            extra: Vec::new(),
        };
        let pki = Arc::new(Pki::open(&config.dir, names)?);
        let at_rest = Arc::new(SecretsAtRest::new(pki.encryption_key())?);
        let storage = Storage::start(engine, at_rest).await.context("the store could not be read")?;
        let cluster = Cluster {
            advertise: config.advertise.clone(),
            port: config.bind.port(),
            service_ip: range.at(1),
            dns_ip: range.at(10),
            service_cidr: config.service_cidr.clone(),
            pod_cidr: config.pod_cidr.clone(),
            ca_pem: pki.ca_pem().to_owned(),
            front_proxy_ca_pem: pki.front_proxy_ca_pem().to_owned(),
        };
        endpoints::agree(&storage, &cluster)?;
        objects::ensure(&storage, &cluster).await.context("the default objects could not be written")?;

        let authenticator = Authenticator::new(&pki, storage.clone(), &config.cluster_domain)?;
        let authenticator = Arc::new(authenticator);
        let authorizer = Arc::new(Authorizer::new(storage.clone()));
        let connect = Connect::new(&pki, storage.clone(), Arc::clone(&authenticator), Arc::clone(&authorizer))?;
        let host = config.advertise.first().copied().unwrap_or(config.bind.ip());
        let pipeline = Arc::new(Pipeline::new(Core {
            admission: Admission::new(storage.clone(), Arc::clone(&authorizer)),
            registry: ArcSwap::from_pointee(crds::registry(&storage)),
            columns: ArcSwap::from_pointee(crds::columns(&storage)),
            authenticator,
            authorizer,
            connect,
            extensions: Extensions::default(),
            services: Services::new(&ranges),
            metrics: Arc::new(Metrics::default()),
            openapi: Default::default(),
            shutdown: CancellationToken::new(),
            address: SocketAddr::new(host, config.bind.port()).to_string(),
            storage,
        }));
        let renewal = {
            let pki = Arc::clone(&pki);
            tokio::spawn(async move { pki.run_renewal(CancellationToken::new()).await })
        };
        let extensions = tokio::spawn(aggregation::follow(Arc::clone(&pipeline), Arc::clone(&pki)));
        let definitions = tokio::spawn(crds::follow(Arc::clone(&pipeline)));
        let own = tokio::spawn(bootstrap::keep::run(Arc::clone(&pipeline.core().storage), cluster.clone()));
        Ok(Self {
            pipeline,
            pki,
            config: Arc::new(config),
            cluster: Arc::new(cluster),
            _tasks: Arc::new([renewal, definitions, extensions, own].map(AbortOnDropHandle::new)),
        })
    }

    /// A client in this process, with a fixed identity: no socket, no authentication, but
    /// authorization and admission as for everybody.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        transport::client(Arc::clone(&self.pipeline), user)
    }

    /// Serves HTTPS until `shutdown`, and is an endpoint of the `kubernetes` Service meanwhile: no more of it when
    /// connections are no longer taken.
    ///
    /// # Errors
    /// When the serving certificate cannot be used.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        let tls = self.pki.server_config()?;
        let closing = CancellationToken::new();
        let announced = async {
            endpoints::run(self.storage(), &self.cluster, &shutdown).await;
            closing.cancel();
        };
        let served = server::serve(Arc::clone(&self.pipeline), listener, tls, closing.clone());
        tokio::join!(announced, served).1
    }

    /// The cluster's authority, to issue certificates and kubeconfigs.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// What this server was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The store behind the server, for inspection.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.pipeline.core().storage
    }
}

//! The control plane's parts: store, API server, scheduler, controllers.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail};
use sluice_apiserver::{ApiServer, bootstrap::claim::claim, context::UserInfo};
use sluice_scheduler::leader::Election;
use sluice_store::{DynEngine, Engine as _, embedded::Embedded, etcd::Etcd};
use tokio::net::TcpListener;

use crate::{
    addresses, backup,
    config::{Config, joined},
    daemon::Parts,
    etcd, machine,
};

/// The oldest etcd whose watches and transactions are as the store wants them.
const OLDEST_ETCD: (u32, u32) = (3, 4);

/// Starts everything and returns when the API server answers.
pub(crate) async fn start(config: &Config, parts: &mut Parts) -> Result<ApiServer> {
    addresses::reached(&config.service_cidrs, &config.server_addresses())?;
    let listener = TcpListener::bind(config.bind)
        .await
        .with_context(|| format!("cannot listen on {}; another API server may run there (--bind)", config.bind))?;
    let engine = engine(config).await?;
    if !config.etcd.is_empty() {
        claim(&engine, &config.pki_dir(), &config.node_name).await?;
    }
    if config.etcd.is_empty() {
        let serving = backup::serve(engine.clone(), backup::socket(config), parts.shutdown.clone());
        parts.tasks.spawn(serving);
    }
    std::fs::create_dir_all(&config.data_dir).with_context(|| format!("cannot make {}", config.data_dir.display()))?;
    let server = ApiServer::start(server_config(config), engine).await?;
    let kubeconfig = server.pki().admin_kubeconfig(&local_url(config))?;
    machine::write_secret(&config.admin_kubeconfig(), &kubeconfig)?;
    parts.tasks.spawn({
        let (server, shutdown) = (server.clone(), parts.shutdown.clone());
        async move { server.serve(listener, shutdown).await.context("the API server ended") }
    });
    let scheduler = server.client(UserInfo::new("system:kube-scheduler", &["system:authenticated"]));
    let election = election(config);
    let options = sluice_scheduler::Options { election: election.clone(), ..sluice_scheduler::Options::default() };
    parts.tasks.spawn(sluice_scheduler::run(scheduler, options, parts.shutdown.clone()));
    let manager = server.client(UserInfo::new("system:kube-controller-manager", &["system:authenticated"]));
    let pki = server.pki();
    let options = sluice_controllers::Options {
        cluster_ca: Some((pki.ca_pem().to_owned(), pki.ca_key_pem())),
        ca_bundle: pki.ca_pem().to_owned(),
        pod_cidrs: config.pod_cidrs.iter().map(ToString::to_string).collect(),
        node_prefixes: (config.node_prefixes.v4, config.node_prefixes.v6),
        cluster_domain: config.cluster_domain.clone(),
        election,
        ..sluice_controllers::Options::default()
    };
    parts.tasks.spawn(sluice_controllers::run(manager, options, parts.shutdown.clone()));
    Ok(server)
}

/// How programs on this machine reach the API server.
pub(crate) fn local_url(config: &Config) -> String {
    let ip = config.bind.ip();
    // A socket on `::` takes IPv4 connections too.
    let host = if ip.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { ip };
    format!("https://{}", std::net::SocketAddr::new(host, config.bind.port()))
}

/// How another machine is told to reach it.
pub(crate) fn join_url(config: &Config) -> String {
    match config.server_addresses().first() {
        Some(ip) => format!("https://{}", std::net::SocketAddr::new(*ip, config.bind.port())),
        None => local_url(config),
    }
}

fn server_config(config: &Config) -> sluice_apiserver::Config {
    sluice_apiserver::Config {
        dir: config.pki_dir(),
        advertise: config.server_addresses(),
        bind: config.bind,
        service_cidr: joined(&config.service_cidrs),
        pod_cidr: joined(&config.pod_cidrs),
        cluster_domain: config.cluster_domain.clone(),
    }
}

/// Servers that share an etcd take turns; with a store of its own a server has nobody to stand against.
fn election(config: &Config) -> Option<Election> {
    let shared = !config.etcd.is_empty();
    shared.then(|| Election::new(format!("{}_{:016x}", config.node_name, rand::random::<u64>())))
}

/// Where the embedded store is.
pub(crate) fn store_dir(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

/// What is left of it when it was moved to etcd.
pub(crate) fn migrated_dir(config: &Config) -> PathBuf {
    config.data_dir.join("store.migrated")
}

/// The embedded store, or etcd where endpoints are given.
pub(crate) async fn engine(config: &Config) -> Result<DynEngine> {
    if config.etcd.is_empty() {
        let (dir, moved) = (store_dir(config), migrated_dir(config));
        if moved.exists() && !dir.exists() {
            bail!(
                "this server's store was moved to etcd (`sluice migrate`): say where that is (--etcd, or `etcd:` in the \
                 settings); to go back to the cluster as it was before, rename {} to {}",
                moved.display(),
                dir.display()
            );
        }
        let engine = Embedded::open(&dir, sluice_store::embedded::Options::default());
        return Ok(engine.with_context(|| format!("cannot open the store in {}", dir.display()))?);
    }
    let tls = config.etcd_files.as_ref().map(etcd::Files::read).transpose()?;
    let engine: Arc<Etcd> = Etcd::connect(&config.etcd, tls)
        .await
        .with_context(|| format!("cannot reach etcd at {}", config.etcd.join(", ")))?;
    let version = engine.status().await.context("cannot ask etcd for its version")?.version;
    new_enough(&version).with_context(|| format!("etcd at {}", config.etcd.join(", ")))?;
    Ok(engine)
}

fn new_enough(etcd: &str) -> Result<()> {
    let (major, minor) = OLDEST_ETCD;
    // One that does not say what it is may be anything.
    if machine::version(etcd).is_some_and(|version| version < OLDEST_ETCD) {
        bail!("it is version {etcd}: {major}.{minor} or newer is needed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    #[test]
    fn an_etcd_that_is_too_old_is_named() {
        for (version, expected) in [
            ("3.4.23", None),
            ("3.5.0-rc.1", None),
            ("4.0.0", None),
            ("3.3.27", Some("it is version 3.3.27: 3.4 or newer is needed")),
            ("2.3.8", Some("it is version 2.3.8: 3.4 or newer is needed")),
        ] {
            assert_eq!(new_enough(version).err().map(|error| error.to_string()).as_deref(), expected);
        }
    }

    #[tokio::test]
    async fn an_etcd_that_cannot_be_reached_is_named() {
        let url = "http://127.0.0.1:9";
        let config = Options { etcd: vec![url.to_owned()], ..Options::default() }.resolve().unwrap();
        let error = format!("{:#}", engine(&config).await.err().unwrap());
        assert!(error.starts_with(&format!("cannot reach etcd at {url}: ")), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}

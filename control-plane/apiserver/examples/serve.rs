//! An API server alone, for trying kubectl by hand: `serve [dir] [address]`. Prints the path of a
//! kubeconfig and serves until interrupted.

use std::{net::SocketAddr, path::PathBuf};

use sluice_apiserver::{ApiServer, Config};
use sluice_store::embedded::Embedded;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("sluice-serve"), PathBuf::from);
    let bind: SocketAddr = args.next().unwrap_or("127.0.0.1:0".into()).parse()?;
    let listener = TcpListener::bind(bind).await?;
    let bind = listener.local_addr()?;
    let engine = Embedded::open(&dir.join("store"), Default::default())?;
    let config = Config {
        dir: dir.join("pki"),
        advertise: vec![bind.ip()],
        bind,
        service_cidr: "10.96.0.0/16".into(),
        pod_cidr: "10.244.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
    };
    let server = ApiServer::start(config, engine).await?;
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, server.pki().admin_kubeconfig(&format!("https://{bind}"))?)?;
    println!("{}", kubeconfig.display());
    let shutdown = CancellationToken::new();
    let interrupted = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    server.serve(listener, shutdown).await
}

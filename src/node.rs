//! The node's part: which containerd, which directories, and what the agent is told.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use sluice_agent::{
    Agent, api,
    bootstrap::{Join, Membership, Place, Trust},
    kept::Kept,
};
use sluice_apiserver::{ApiServer, bootstrap::pki::Usage, context::UserInfo};
use sluice_network::{Network, PeerPath};
use sluice_runtime::daemon::Containerd;
use tokio::net::UnixStream;

use crate::{
    config::{self, Config, JoinSettings, Overlay, SocketHooks},
    daemon::Parts,
    flows,
};

/// Where a machine's own containerd listens.
const MACHINE_CONTAINERD: &str = "/run/containerd/containerd.sock";
/// What a containerd of our own consists of.
const PROGRAMS: [&str; 2] = ["containerd", "runc"];
/// Where they may be beside `PATH`.
const PROGRAM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
/// Prefixes of the names of pods' links and of the tunnel: not uplinks.
const OWN_LINKS: [&str; 2] = ["slc", "sluice"];
/// How long the serving certificate of a node beside the control plane lasts; every start makes a new one.
const SERVING_TTL: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Starts the node in the control plane's process: its client needs no socket and no certificate.
pub(crate) async fn start_beside(config: &Config, server: &ApiServer, kept: Kept, parts: &mut Parts) -> Result<()> {
    let user = format!("system:node:{}", config.node_name);
    let client = server.client(UserInfo::new(&user, &["system:nodes", "system:authenticated"]));
    let pki = server.pki();
    let mut sans = vec![config.node_name.clone()];
    sans.extend(config.node_addresses().iter().map(IpAddr::to_string));
    let identity = pki.issue(&user, &["system:nodes"], &sans, Usage::Both, SERVING_TTL)?;
    let bind = SocketAddr::new(config.everywhere(), config.node_port);
    let mut api = api::Config::fixed(bind, pki.ca_pem().to_owned(), identity.cert_pem, identity.key_pem);
    api.system_logs = config.system_logs();
    start(config, client, api, kept, parts).await
}

/// Starts the node with the identity that it joined with, joining first if it has none.
pub(crate) async fn start_joined(config: &Config, kept: Kept, parts: &mut Parts) -> Result<()> {
    let place = Place { node_name: config.node_name.clone(), node_ips: config.node_addresses(), dir: keys(config) };
    let membership = if place.has_joined() {
        Membership::open(place, &config.join.servers).await?
    } else {
        Membership::join(place, &join(&config.join)?).await?
    };
    let bind = SocketAddr::new(config.everywhere(), config.node_port);
    let api = api::Config {
        bind,
        client_ca_pem: membership.ca_pem().to_owned(),
        identity: membership.identity(),
        system_logs: config.system_logs(),
    };
    let client = membership.client();
    let shutdown = parts.shutdown.clone();
    parts.tasks.spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            served = membership.serve() => served?,
        }
        membership.renew(shutdown).await;
        Ok(())
    });
    start(config, client, api, kept, parts).await
}

/// Where a node that joined keeps its keys, and what it knows of the cluster.
pub(crate) fn keys(config: &Config) -> PathBuf {
    config.data_dir.join("node-pki")
}

/// What the first start needs; each missing setting is named.
fn join(settings: &JoinSettings) -> Result<Join> {
    let missing = |flag: &str| {
        let what = "this node has not joined a cluster yet";
        format!("{what}: {flag} is missing; `sluice token create` prints the whole command")
    };
    if settings.servers.is_empty() {
        bail!(missing("--server"));
    }
    let need = |value: &Option<String>, flag: &str| value.clone().with_context(|| missing(flag));
    Ok(Join {
        servers: settings.servers.clone(),
        token: need(&settings.token, "--token")?,
        trust: Trust::Hash(need(&settings.ca_hash, "--ca-hash")?),
    })
}

/// Whether there is a containerd to use, or the programs to start one; makes nothing.
///
/// # Errors
/// A sentence that says what to install or to choose.
pub(crate) async fn require_containerd(config: &Config) -> Result<()> {
    let socket = containerd_socket(config).await;
    match UnixStream::connect(&socket).await {
        Ok(_) => Ok(()),
        Err(_) if socket == config.own_containerd_socket() => match PROGRAMS.into_iter().find(|p| !is_installed(p)) {
            Some(program) => bail!("{program} is not installed: apt-get install containerd runc"),
            None => Ok(()),
        },
        Err(error) => bail!(
            "containerd does not answer at {} ({error}): install and start it (apt-get install containerd), or let \
             Sluice run one of its own (--containerd own)",
            socket.display()
        ),
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(PROGRAM_DIRS).any(|dir| Path::new(dir).join(program).is_file())
}

async fn start(config: &Config, client: kube::Client, api: api::Config, kept: Kept, parts: &mut Parts) -> Result<()> {
    let socket = containerd_socket(config).await;
    if socket == config.own_containerd_socket() {
        let containerd = Containerd::spawn(&config.own_containerd_dir(), &socket).await.context("containerd")?;
        let shutdown = parts.shutdown.clone();
        parts.tasks.spawn(async move {
            containerd.supervise(shutdown).await;
            Ok(())
        });
    }
    if let Some(logs) = config.system_logs() {
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    }
    let agent = Agent::start(agent_config(config, api, kept).await?, client.clone()).await?;
    if let Some(dataplane) = agent.dataplane() {
        let path = flows::serve::socket(config);
        parts.tasks.spawn(flows::serve::serve(dataplane.clone(), path, parts.shutdown.clone()));
    }
    parts.tasks.spawn(agent.run(parts.shutdown.clone()));
    let announcer = sluice_announce::Config { node: config.node_name.clone(), addresses: config.node_addresses() };
    let shutdown = parts.shutdown.clone();
    parts.tasks.spawn(async move {
        let announcing = sluice_announce::run(announcer, client, shutdown);
        announcing.await.context("addresses of load balancers cannot be announced")
    });
    Ok(())
}

/// The socket of the containerd that this node uses, as the settings say.
pub(crate) async fn containerd_socket(config: &Config) -> PathBuf {
    match &config.containerd {
        config::Containerd::At(socket) => socket.clone(),
        config::Containerd::Own => config.own_containerd_socket(),
        // Once started, our own stays the choice, whatever is installed later.
        config::Containerd::Auto if config.own_containerd_dir().exists() => config.own_containerd_socket(),
        config::Containerd::Auto => match UnixStream::connect(MACHINE_CONTAINERD).await {
            Ok(_) => MACHINE_CONTAINERD.into(),
            Err(_) => config.own_containerd_socket(),
        },
    }
}

/// How this node's containers are found and run.
pub(crate) fn runtime_config(config: &Config, socket: PathBuf) -> sluice_runtime::Config {
    sluice_runtime::Config {
        socket,
        namespace: "k8s.io".into(),
        cgroup_prefix: config.instance.clone(),
        state_dir: config.run_dir.clone(),
        snapshotter: None,
        logger: std::env::current_exe().unwrap_or_else(|_| Path::new("/usr/bin/sluice").into()),
        plain_http: Vec::new(),
    }
}

/// This node's pod network as the kernel has it, for `reset`.
pub(crate) async fn network(config: &Config) -> Result<Network> {
    Ok(Network::new(network_config(config)).await?)
}

fn network_config(config: &Config) -> sluice_network::Config {
    sluice_network::Config {
        cluster_cidrs: config.pod_cidrs.clone(),
        service_cidrs: config.service_cidrs.clone(),
        pod_cidrs: Vec::new(),
        node_ips: config.node_addresses(),
        mtu: None,
        netns_dir: config.run_dir.join("netns"),
    }
}

async fn agent_config(config: &Config, api: api::Config, kept: Kept) -> Result<sluice_agent::Config> {
    // Upstream's convention: the tenth address of the first service range.
    let dns: Vec<IpAddr> = config.service_cidrs.first().and_then(|range| range.nth(10)).into_iter().collect();
    Ok(sluice_agent::Config {
        node_name: config.node_name.clone(),
        node_ips: config.node_addresses(),
        dir: config.data_dir.clone(),
        logs: config.pod_logs(),
        runtime: runtime_config(config, containerd_socket(config).await),
        network: network_config(config),
        dataplane: Some(dataplane_config(config)?),
        unmasqueraded: config.unmasqueraded.clone(),
        peer_path: match config.overlay {
            Overlay::Auto => PeerPath::Auto,
            Overlay::Direct => PeerPath::Direct,
            Overlay::Vxlan => PeerPath::Tunnel,
        },
        cluster_domain: config.cluster_domain.clone(),
        cluster_dns: dns,
        serve_dns: true,
        dns_upstreams: Some(config.dns_upstreams.clone()),
        kept: Arc::new(kept),
        resolv_conf: "/etc/resolv.conf".into(),
        thresholds: sluice_agent::eviction::signals::Thresholds::default(),
        api: Some(api),
    })
}

fn dataplane_config(config: &Config) -> Result<sluice_dataplane::Config> {
    let cgroup = match config.socket_hooks {
        SocketHooks::Root => None,
        SocketHooks::Instance => {
            let group = crate::machine::cgroup_root().join(&config.instance);
            std::fs::create_dir_all(&group).with_context(|| format!("cannot make the cgroup {}", group.display()))?;
            Some(group)
        }
    };
    Ok(sluice_dataplane::Config {
        node: config.node_name.clone(),
        cgroup,
        pin_dir: config.pin_dir(),
        // Filled in by the agent, which knows the node's links.
        node_addresses: Vec::new(),
        node_ports: 30000..=32767,
        node_port_addresses: config.node_port_addresses.clone(),
        pod_range: None,
        cluster_range: None,
        uplinks: sluice_dataplane::Uplinks::Every { except: OWN_LINKS.map(String::from).to_vec() },
        xdp: match config.xdp {
            config::Xdp::Auto => sluice_dataplane::Xdp::Auto,
            config::Xdp::Off => sluice_dataplane::Xdp::Off,
            config::Xdp::Always => sluice_dataplane::Xdp::Always,
        },
        forwarding: match config.load_balancer_mode {
            config::LoadBalancerMode::Snat => sluice_dataplane::model::Forwarding::Snat,
            config::LoadBalancerMode::Dsr => sluice_dataplane::model::Forwarding::Dsr,
        },
        redirect: match config.pod_redirect {
            config::PodRedirect::On => sluice_dataplane::Redirect::On,
            config::PodRedirect::Off => sluice_dataplane::Redirect::Off,
        },
    })
}

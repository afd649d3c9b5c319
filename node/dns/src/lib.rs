//! Cluster DNS, served on every node.
//!
//! The zone is a pure index of Services and EndpointSlices ([`zone`]), fed by two narrow watches, and
//! answered after the Kubernetes DNS-based service discovery specification 1.1.0 ([`answer`]). Names
//! outside the cluster are asked of upstream servers, when there are any. This crate writes nothing
//! to the API server, and the address it serves on must be made reachable by others.

pub mod answer;
mod forward;
mod informer;
mod limits;
mod server;
mod stats;
pub mod zone;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use anyhow::Context;
use kube::Client;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use forward::upstreams_from;
use informer::Shared;
use server::{Server, own_addresses};
pub use stats::{METRICS, Stats};
use zone::Zone;

/// How cluster DNS is served.
#[derive(Debug, Default)]
pub struct Config {
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// Addresses to serve on, UDP and TCP. They need not be on a link yet (`IP_FREEBIND`); port 0
    /// picks one.
    pub listen: Vec<SocketAddr>,
    /// Sockets that are already bound, for example in another network namespace. Those of an address of `listen` serve it.
    pub udp: Vec<UdpSocket>,
    pub tcp: Vec<TcpListener>,
    /// Servers asked for names outside the cluster, in order ([`upstreams_from`] reads the host's
    /// `resolv.conf`). None: such names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Where it is counted what the server does.
    pub stats: Arc<Stats>,
}

/// A DNS server, bound and ready to run.
pub struct Dns {
    client: Client,
    shared: Arc<Shared>,
    server: Arc<Server>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Dns {
    /// Binds the sockets.
    ///
    /// # Errors
    /// When the cluster domain is empty, there is nothing to serve on, or an address cannot be bound.
    pub fn new(client: Client, config: Config) -> anyhow::Result<Dns> {
        let domain = config.cluster_domain.trim_matches('.');
        anyhow::ensure!(!domain.is_empty(), "the cluster domain is empty; the usual one is cluster.local");
        let (mut udp, mut tcp) = (config.udp, config.tcp);
        for address in config.listen {
            let bound = |to: std::io::Result<SocketAddr>| to.is_ok_and(|to| to == address);
            if udp.iter().any(|own| bound(own.local_addr())) && tcp.iter().any(|own| bound(own.local_addr())) {
                continue;
            }
            let (u, t) = bind_both(address).with_context(|| format!("cannot serve DNS on {address}"))?;
            udp.push(u);
            tcp.push(t);
        }
        anyhow::ensure!(!udp.is_empty() || !tcp.is_empty(), "DNS has no address to serve on");
        let mut bound = Vec::new();
        for socket in &udp {
            socket.set_nonblocking(true).context("a DNS socket")?;
            bound.push(socket.local_addr().context("a DNS socket")?);
        }
        for listener in &tcp {
            listener.set_nonblocking(true).context("a DNS socket")?;
            bound.push(listener.local_addr().context("a DNS socket")?);
        }
        let upstreams = config.upstreams.into_iter().filter(|u| !bound.contains(u)).collect();
        let shared = Arc::new(Shared::new(Zone::new(domain, own_addresses(&bound))));
        let server = Arc::new(Server::new(Arc::clone(&shared), upstreams, config.stats));
        Ok(Dns { client, shared, server, udp, tcp })
    }

    /// The sockets, for a process that comes after this one.
    pub fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        let udp = self.udp.iter().map(UdpSocket::as_fd);
        udp.chain(self.tcp.iter().map(TcpListener::as_fd)).collect()
    }

    /// The addresses UDP is served on.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Answers until `shutdown`; running answers are finished. What is asked before everything is known waits for a while.
    ///
    /// # Errors
    /// When a socket cannot be handed to the runtime.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Dns { client, shared, server, udp, tcp } = self;
        let tasks = TaskTracker::new();
        let served = async {
            // What is not known by then is answered with an error.
            let _ = timeout(limits::LOADING, shared.wait_until_loaded()).await;
            serve(&server, udp, tcp, &tasks, &shutdown)?;
            shutdown.cancelled().await;
            anyhow::Ok(())
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            served = served => served?,
            () = informer::run(client, Arc::clone(&shared)) => {}
        }
        shutdown.cancelled().await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

fn serve(
    server: &Arc<Server>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    for socket in udp {
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket).context("a DNS socket")?);
        for _ in 0..limits::UDP_READERS {
            tasks.spawn(Arc::clone(server).serve_udp(Arc::clone(&socket), tasks.clone(), shutdown.clone()));
        }
    }
    for listener in tcp {
        let listener = tokio::net::TcpListener::from_std(listener).context("a DNS socket")?;
        tasks.spawn(Arc::clone(server).serve_tcp(listener, tasks.clone(), shutdown.clone()));
    }
    Ok(())
}

/// A UDP socket and a TCP listener on one port.
fn bind_both(address: SocketAddr) -> anyhow::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::from(open(address, SockType::Datagram)?);
    let port = udp.local_addr()?.port();
    let tcp = TcpListener::from(open(SocketAddr::new(address.ip(), port), SockType::Stream)?);
    Ok((udp, tcp))
}

fn open(address: SocketAddr, kind: SockType) -> anyhow::Result<OwnedFd> {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(limits::TCP_BACKLOG)?)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests;

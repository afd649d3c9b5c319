//! Connects to a port inside a pod's network namespace, on its loopback, as upstream's port-forward does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to `localhost:port` of the namespace (of this process if there is none).
pub(super) async fn dial(netns: Option<&Path>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let netns = netns.map(Path::to_path_buf);
    let (send, receive) = tokio::sync::oneshot::channel();
    // A thread of its own, that ends afterwards: a namespace entered must not leak into the pool's threads.
    std::thread::Builder::new().name("dial".to_owned()).spawn(move || {
        // The receiver left: the client hung up.
        let _ = send.send(connect(netns.as_deref(), port));
    })?;
    let stream = receive.await.map_err(|_| io::Error::other("the dialing thread ended"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    if let Some(netns) = netns {
        let file = std::fs::File::open(netns)?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
    }
    let first = TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), TIMEOUT);
    first.or_else(|e| {
        TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port), TIMEOUT).map_err(|_| e)
    })
}

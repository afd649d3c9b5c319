//! Sockets that outlive the daemon in the service manager's store (systemd: `FileDescriptorStoreMax=`). What is asked while the
//! next process starts waits in them; without them it would be refused.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// What the manager calls them.
const NAME: &str = "dns";

/// What a process before this one left.
#[derive(Debug, Default)]
pub struct Kept {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Kept {
    /// Takes what the manager passed to this process. Only once, and before there are threads: it changes the environment.
    pub fn take() -> Kept {
        let mut passed = ListenFd::from_env();
        let mut kept = Kept::default();
        for at in 0..passed.len() {
            if let Ok(Some(socket)) = passed.take_udp_socket(at) {
                kept.udp.push(socket);
            } else if let Ok(Some(socket)) = passed.take_tcp_listener(at) {
                kept.tcp.push(socket);
            }
        }
        kept
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.udp.len() + self.tcp.len()
    }

    /// Those that are bound to these addresses.
    pub(crate) fn of(&self, addresses: &[SocketAddr]) -> (Vec<UdpSocket>, Vec<TcpListener>) {
        let wanted = |bound: std::io::Result<SocketAddr>| bound.is_ok_and(|bound| addresses.contains(&bound));
        let udp = self.udp.iter().filter(|socket| wanted(socket.local_addr()));
        let tcp = self.tcp.iter().filter(|socket| wanted(socket.local_addr()));
        (
            udp.filter_map(|socket| socket.try_clone().ok()).collect(),
            tcp.filter_map(|socket| socket.try_clone().ok()).collect(),
        )
    }
}

/// Gives sockets to the manager. It knows those that it has already; if `others` are among them it forgets all first.
pub(crate) fn keep(sockets: &[BorrowedFd<'_>], others: bool) {
    let name = NotifyState::FdName(NAME);
    let forgotten = if others { sd_notify::notify(&[NotifyState::FdStoreRemove, name.clone()]) } else { Ok(()) };
    let kept = forgotten.and_then(|()| sd_notify::notify_with_fds(&[NotifyState::FdStore, name], sockets));
    if let Err(error) = kept {
        tracing::warn!(%error, "the service manager keeps no sockets: names are not answered while the daemon starts again");
    }
}

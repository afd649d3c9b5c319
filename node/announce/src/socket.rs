//! Packet sockets of one link: one for ARP, one for neighbour discovery behind a filter, and a socket that keeps the link in
//! the groups that questions for IPv6 addresses go to. The only place with `unsafe`: a packet socket's address has no safe
//! form.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::frame::{self, Mac, Message};
use crate::limits;
use crate::links::Link;

/// Passes neighbour solicitations and advertisements: bytes 20 (next header) and 54 (ICMPv6 type) of the frame.
const DISCOVERY: [SockFilter; 7] =
    [load(20), jump(58, 0, 4), load(54), jump(135, 1, 0), jump(136, 0, 1), verdict(u32::MAX), verdict(0)];

const fn load(at: u32) -> SockFilter {
    SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, at)
}

const fn jump(value: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, yes, no, value)
}

const fn verdict(length: u32) -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, length)
}

/// The open sockets of a link.
pub(crate) struct Sockets {
    mac: Mac,
    arp: Socket,
    discovery: Socket,
    groups: Groups,
    readers: [tokio::task::JoinHandle<()>; 2],
}

/// A message heard on a link.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) link: u32,
    pub(crate) message: Message,
}

impl Sockets {
    /// Opens the sockets and hears until they are dropped. What comes while `heard` is full is lost, as on the wire.
    pub(crate) fn open(link: &Link, heard: &mpsc::Sender<Heard>) -> io::Result<Self> {
        let arp = packet_socket(link.index, libc::ETH_P_ARP, None)?;
        let discovery = packet_socket(link.index, libc::ETH_P_IPV6, Some(&DISCOVERY))?;
        let readers = [arp.try_clone()?, discovery.try_clone()?]
            .map(|socket| tokio::spawn(hear(socket, link.index, link.mac, heard.clone())));
        Ok(Self { mac: link.mac, arp, discovery, groups: Groups::new(link.index)?, readers })
    }

    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends a frame about an address of this family.
    pub(crate) fn send(&self, about: IpAddr, frame: &[u8]) -> io::Result<()> {
        let socket = if about.is_ipv4() { &self.arp } else { &self.discovery };
        socket.send(frame).map(drop)
    }

    /// Hears questions for these addresses and no others.
    pub(crate) fn listen_for(&mut self, addresses: impl Iterator<Item = IpAddr>) -> io::Result<()> {
        self.groups.become_members(addresses.filter_map(|address| match address {
            IpAddr::V6(address) => Some(frame::solicited_node(address)),
            IpAddr::V4(_) => None,
        }))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.readers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The multicast groups of a link; left when dropped.
struct Groups {
    socket: Socket,
    link: u32,
    members: BTreeSet<Ipv6Addr>,
}

impl Groups {
    fn new(link: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        Ok(Self { socket, link, members: BTreeSet::new() })
    }

    fn become_members(&mut self, groups: impl Iterator<Item = Ipv6Addr>) -> io::Result<()> {
        let wanted: BTreeSet<Ipv6Addr> = groups.collect();
        for gone in self.members.difference(&wanted) {
            self.socket.leave_multicast_v6(gone, self.link)?;
        }
        for new in wanted.difference(&self.members) {
            self.socket.join_multicast_v6(new, self.link)?;
        }
        self.members = wanted;
        Ok(())
    }
}

/// A packet socket bound to a link and protocol; it hears nothing before it is bound and its filter is in place.
fn packet_socket(link: u32, protocol: i32, filter: Option<&[SockFilter]>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
    if let Some(filter) = filter {
        socket.attach_filter(filter)?;
    }
    let place = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: link as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: every address fits into the storage, which is aligned for all of them; `sockaddr_ll` is one, as its family
    // says, and the length is its own.
    let address = unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = place;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    socket.bind(&address)?;
    Ok(socket)
}

async fn hear(socket: Socket, link: u32, own: Mac, heard: mpsc::Sender<Heard>) {
    // SAFETY: the socket is a file descriptor of its own, which lives as long as what it is registered with.
    let Ok(socket) = (unsafe { AsyncFd::register(socket) }) else { return };
    let mut buffer = [0; limits::FRAME];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        match ready.try_io(|socket| (&mut socket.get_ref()).read(&mut buffer)) {
            Ok(Ok(length)) => {
                let message = frame::read(&buffer[..length]);
                // What this node says itself may come back from a bridge.
                let foreign = |message: &Message| message.tells.is_none_or(|(_, mac)| mac != own);
                if let Some(message) = message.filter(foreign) {
                    // A full queue loses messages as the wire may: every one of them is repeated.
                    let _ = heard.try_send(Heard { link, message });
                }
            }
            // The link went down; it may come up again.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Ok(Err(error)) => {
                tracing::warn!(link, %error, "a link cannot be listened to any more");
                return;
            }
            Err(_) => {}
        }
    }
}

//! Connected datagram sockets of the calling thread's network namespace: found and ended by the kernel's socket diagnosis
//! (`NETLINK_SOCK_DIAG`; sock_diag(7), `linux/inet_diag.h`).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use sluice_ebpf_common::{Address, protocol};

use crate::range::wire;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
/// Of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const ASKED: usize = 56;
const ANSWERED: usize = 72;
/// Where `struct inet_diag_sockid` stands in an answer, and its length.
const IDENTITY: usize = 4;
const IDENTITY_LENGTH: usize = 48;
/// `TCP_ESTABLISHED`: of datagram sockets those that are connected.
const CONNECTED: u32 = 1 << 1;
/// The kernel's answers come in pieces of at most this many bytes.
const ROOM: usize = 32 << 10;

/// A connected datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    family: u8,
    /// `struct inet_diag_sockid`.
    identity: [u8; IDENTITY_LENGTH],
}

impl Datagram {
    /// The number that the kernel gave the socket alone.
    pub(crate) fn cookie(&self) -> u64 {
        u64::from(self.word(40)) | u64::from(self.word(44)) << 32
    }

    /// Who it is connected to; the port in network order.
    pub(crate) fn remote(&self) -> (Address, u16) {
        let words = [20, 24, 28, 32].map(|at| self.word(at));
        let address = if self.family == libc::AF_INET as u8 { Address::v4(words[0]) } else { Address { words } };
        let [_, _, high, low, ..] = self.identity;
        (address, u16::from_ne_bytes([high, low]))
    }

    fn word(&self, at: usize) -> u32 {
        self.identity.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }
}

/// A connection to the kernel.
pub(crate) struct Diagnosis(OwnedFd);

impl Diagnosis {
    pub(crate) fn open() -> io::Result<Diagnosis> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Diagnosis(socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?))
    }

    /// All that are connected, of both families.
    pub(crate) fn datagrams(&self) -> io::Result<Vec<Datagram>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let all = Datagram { family: family as u8, identity: [0; IDENTITY_LENGTH] };
            self.ask(BY_FAMILY, REQUEST | DUMP, &all, |answer| {
                let identity = answer.get(IDENTITY..IDENTITY + IDENTITY_LENGTH)?.try_into().ok()?;
                found.push(Datagram { family: *answer.first()?, identity });
                Some(())
            })?;
        }
        Ok(found)
    }

    /// Ends a socket: whoever waits for it, or asks for the next datagram, gets `ECONNABORTED`, and nothing can be sent
    /// (`EDESTADDRREQ`) until it is connected anew. False if it has gone, or is connected to
    /// somebody else by now.
    pub(crate) fn destroy(&self, datagram: &Datagram) -> io::Result<bool> {
        match self.ask(DESTROY, REQUEST | ACKNOWLEDGE, datagram, |_| Some(())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        kind: u16,
        flags: u16,
        about: &Datagram,
        mut take: impl FnMut(&[u8]) -> Option<()>,
    ) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + ASKED);
        message.extend(((HEADER + ASKED) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([about.family, protocol::UDP, 0, 0]);
        message.extend(CONNECTED.to_ne_bytes());
        message.extend(about.identity);
        socket::send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut buffer = vec![0; ROOM];
        loop {
            let length = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, next)) = split(rest) {
                rest = next;
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    // Attributes that nobody asked for come behind it.
                    _ if body.len() >= ANSWERED => drop(take(body)),
                    _ => {}
                }
            }
        }
    }
}

/// The next message: its kind, its body, and what comes behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((kind, bytes.get(HEADER..length)?, bytes.get(next..)?))
}

/// Can this kernel end a datagram socket? Tried on one of our own.
pub(crate) fn works() -> io::Result<()> {
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let SocketAddr::V4(address) = own.local_addr()? else { return Ok(()) };
    own.connect(address)?;
    let port = address.port().to_be_bytes();
    let mut identity = [0; IDENTITY_LENGTH];
    let word = wire(*address.ip()).last().to_ne_bytes();
    for (at, bytes) in [(0, &port[..]), (2, &port), (4, &word), (20, &word), (40, &[u8::MAX; 8])] {
        identity.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }
    match Diagnosis::open()?.destroy(&Datagram { family: libc::AF_INET as u8, identity }) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_are_taken_apart() {
        let mut bytes = vec![20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        bytes.extend([0; 8]);
        assert_eq!(split(&bytes).unwrap(), (DONE, &[1, 2, 3, 4][..], &[0; 8][..]));
        assert_eq!(split(&bytes[20..]), None);
        bytes[0] = 200;
        assert_eq!(split(&bytes), None, "longer than what came");
    }

    #[test]
    fn an_answer_says_who_is_connected_to_whom() {
        let mut identity = [0; IDENTITY_LENGTH];
        identity[2..4].copy_from_slice(&53_u16.to_be_bytes());
        identity[20..24].copy_from_slice(&[10, 0, 0, 9]);
        identity[40..48].copy_from_slice(&0x0102_0304_0506_0708_u64.to_ne_bytes());
        let four = Datagram { family: libc::AF_INET as u8, identity };
        assert_eq!(four.remote(), (wire(Ipv4Addr::new(10, 0, 0, 9)), 53_u16.to_be()));
        assert_eq!(four.cookie(), 0x0102_0304_0506_0708);
        identity[20..36].copy_from_slice(&"fd00::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let six = Datagram { family: libc::AF_INET6 as u8, identity };
        assert_eq!(six.remote().0, wire("fd00::9".parse::<std::net::Ipv6Addr>().unwrap()));
    }
}

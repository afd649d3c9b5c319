//! What routers between nodes say about the length of packets: a packet that direct server return put into another one may be too
//! long for a link behind this node's. The error comes to this node and quotes the outer packet, and the kernel remembers the
//! length for its route, if there is a socket of that protocol; the programs' question for the way then knows it.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Sockets that never receive anything.
pub(crate) struct Lengths {
    _sockets: Vec<OwnedFd>,
}

impl Lengths {
    /// In this network namespace. Without them everything else works.
    pub(crate) fn learn() -> Lengths {
        let families = [(libc::AF_INET, libc::IPPROTO_IPIP), (libc::AF_INET6, libc::IPPROTO_IPV6)];
        let open = |(family, protocol)| {
            deaf(family, protocol)
                .inspect_err(|error| {
                    tracing::warn!(%error, protocol, "what routers say about the length of packets between nodes is not heard");
                })
                .ok()
        };
        Lengths { _sockets: families.into_iter().filter_map(open).collect() }
    }
}

/// A raw socket with a filter that lets nothing pass. One of IPv6 has to ask for errors, or the kernel takes no notice; it keeps
/// those that find room, which is as little as there can be.
fn deaf(family: i32, protocol: i32) -> io::Result<OwnedFd> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // SAFETY: the call has no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it out.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut nothing = libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &0)?;
    if family == libc::AF_INET6 {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1)?;
    }
    Ok(socket)
}

/// Sets an option whose value has this type.
fn set<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of_val(value) as libc::socklen_t;
    // SAFETY: the value, and what it points to, live until the call ends, and it is as long as is said.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

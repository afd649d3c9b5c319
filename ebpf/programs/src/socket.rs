//! cgroup programs on socket addresses: IPv4, IPv6, and IPv4 addresses in IPv6 form on IPv6 sockets.
#![allow(unsafe_code)]

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use sluice_ebpf_common::protocol::{self, UDP};
use sluice_ebpf_common::{Address, Reason, SocketState, Translation};
use sluice_packet::{SocketVerdict, answers_from, connect, original, remember, send};

use crate::kernel::Kernel;
use crate::{maps, stream};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    connecting(&Peer::V4(context))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    connecting(&Peer::V6(context))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    sending(&Peer::V4(context))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    sending(&Peer::V6(context))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    asking(&Peer::V4(context))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    asking(&Peer::V6(context))
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    asking(&Peer::V4(context))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    asking(&Peer::V6(context))
}

#[inline(always)]
fn connecting(socket: &Peer) -> i32 {
    let Some(protocol) = socket.protocol() else { return ALLOW };
    match connect(&socket.kernel(), &socket.address(), socket.port(), protocol) {
        SocketVerdict::Untouched => ALLOW,
        SocketVerdict::Refused(reason) => refuse(socket, reason, protocol),
        SocketVerdict::Kept(translation) => to(socket, &translation),
        SocketVerdict::Translated(translation, service) => {
            store(socket, translation, service);
            // TCP tells when it is connected.
            if protocol == UDP {
                tell(socket, &translation);
            }
            to(socket, &translation)
        }
    }
}

#[inline(always)]
fn sending(socket: &Peer) -> i32 {
    let Some(protocol) = socket.protocol() else { return ALLOW };
    // SAFETY: see `state`.
    let state = state(socket).map(|state| unsafe { &*state });
    match send(&socket.kernel(), &socket.address(), socket.port(), protocol, state) {
        SocketVerdict::Untouched => {
            if !socket.has_source()
                && let Some(source) = answers_from(&socket.kernel(), &socket.address())
            {
                socket.set_source(&source);
            }
            ALLOW
        }
        SocketVerdict::Refused(reason) => refuse(socket, reason, protocol),
        SocketVerdict::Kept(translation) => to(socket, &translation),
        SocketVerdict::Translated(translation, service) => {
            store(socket, translation, service);
            tell(socket, &translation);
            to(socket, &translation)
        }
    }
}

#[inline(always)]
fn to(socket: &Peer, translation: &Translation) -> i32 {
    socket.set(&translation.backend_address, translation.backend_port);
    ALLOW
}

/// Datagrams go to a Service from now on: the first one, or another backend, tells of it; later ones do not come here.
#[inline(always)]
fn tell(socket: &Peer, translation: &Translation) {
    if let Kernel::Socket(cookie) = socket.kernel() {
        stream::datagrams(cookie, translation);
    }
}

/// A program asks who sent a datagram or who its peer is.
#[inline(always)]
fn asking(socket: &Peer) -> i32 {
    let Some(state) = state(socket) else { return ALLOW };
    // SAFETY: see `state`.
    if let Some((address, port)) = original(unsafe { &*state }, &socket.address(), socket.port()) {
        socket.set(&address, port);
    }
    ALLOW
}

#[inline(always)]
fn refuse(socket: &Peer, reason: Reason, protocol: u8) -> i32 {
    if let Kernel::Socket(cookie) = socket.kernel() {
        stream::refused(cookie, &socket.address(), socket.port(), protocol, reason as u32);
    }
    // SAFETY: the helper has no preconditions; without it the answer would be EPERM.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

/// What this socket remembers. The pointer is valid while the program runs; two threads on one socket may write it at
/// the same time, which costs at most one remembered translation.
#[inline(always)]
fn state(socket: &Peer) -> Option<*mut SocketState> {
    // SAFETY: the context's socket is valid for the whole program.
    let state = unsafe { maps::SOCKETS.get_ptr_mut(socket.context()) };
    if state.is_null() { None } else { Some(state) }
}

#[inline(always)]
fn store(socket: &Peer, translation: Translation, service: u32) {
    // SAFETY: as in `state`; the helper makes a zeroed value when there is none.
    let state = unsafe { maps::SOCKETS.get_or_insert_ptr_mut(socket.context(), None) };
    if !state.is_null() {
        // SAFETY: see `state`.
        remember(unsafe { &mut *state }, translation, service);
    }
}

/// A socket's destination or peer.
enum Peer {
    V4(SockAddrContext),
    V6(SockAddrContext),
}

// SAFETY of all blocks: the context is valid for the whole program. Reads and writes are volatile because the kernel
// accepts them only in the width of the field.
impl Peer {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        match self {
            Peer::V4(context) | Peer::V6(context) => context,
        }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.context().sock_addr
    }

    #[inline(always)]
    fn kernel(&self) -> Kernel {
        // SAFETY: see above.
        Kernel::Socket(unsafe { bpf_get_netns_cookie(self.raw().cast()) })
    }

    #[inline(always)]
    fn address(&self) -> Address {
        let raw = self.raw();
        // SAFETY: see above.
        unsafe {
            match self {
                Peer::V4(_) => Address::v4(read_volatile(addr_of!((*raw).user_ip4))),
                Peer::V6(_) => Address {
                    words: [
                        read_volatile(addr_of!((*raw).user_ip6[0])),
                        read_volatile(addr_of!((*raw).user_ip6[1])),
                        read_volatile(addr_of!((*raw).user_ip6[2])),
                        read_volatile(addr_of!((*raw).user_ip6[3])),
                    ],
                },
            }
        }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: see above.
        unsafe { read_volatile(addr_of!((*self.raw()).user_port)) as u16 }
    }

    #[inline(always)]
    fn protocol(&self) -> Option<u8> {
        // SAFETY: see above.
        match unsafe { read_volatile(addr_of!((*self.raw()).protocol)) } {
            6 | IPPROTO_MPTCP => Some(protocol::TCP),
            17 => Some(protocol::UDP),
            _ => None,
        }
    }

    #[inline(always)]
    fn set(&self, address: &Address, port: u16) {
        let raw = self.raw();
        // SAFETY: see above.
        unsafe {
            match self {
                Peer::V4(_) => write_volatile(addr_of_mut!((*raw).user_ip4), address.last()),
                Peer::V6(_) => {
                    write_volatile(addr_of_mut!((*raw).user_ip6[0]), address.words[0]);
                    write_volatile(addr_of_mut!((*raw).user_ip6[1]), address.words[1]);
                    write_volatile(addr_of_mut!((*raw).user_ip6[2]), address.words[2]);
                    write_volatile(addr_of_mut!((*raw).user_ip6[3]), address.words[3]);
                }
            }
            write_volatile(addr_of_mut!((*raw).user_port), u32::from(port));
        }
    }
    /// Of a datagram: does the socket or the program say where it comes from?
    #[inline(always)]
    fn has_source(&self) -> bool {
        let raw = self.raw();
        // SAFETY: see above.
        unsafe {
            match self {
                Peer::V4(_) => read_volatile(addr_of!((*raw).msg_src_ip4)) != 0,
                Peer::V6(_) => {
                    read_volatile(addr_of!((*raw).msg_src_ip6[0]))
                        | read_volatile(addr_of!((*raw).msg_src_ip6[1]))
                        | read_volatile(addr_of!((*raw).msg_src_ip6[2]))
                        | read_volatile(addr_of!((*raw).msg_src_ip6[3]))
                        != 0
                }
            }
        }
    }

    #[inline(always)]
    fn set_source(&self, address: &Address) {
        let raw = self.raw();
        // SAFETY: see above.
        unsafe {
            match self {
                Peer::V4(_) => write_volatile(addr_of_mut!((*raw).msg_src_ip4), address.last()),
                Peer::V6(_) => {
                    write_volatile(addr_of_mut!((*raw).msg_src_ip6[0]), address.words[0]);
                    write_volatile(addr_of_mut!((*raw).msg_src_ip6[1]), address.words[1]);
                    write_volatile(addr_of_mut!((*raw).msg_src_ip6[2]), address.words[2]);
                    write_volatile(addr_of_mut!((*raw).msg_src_ip6[3]), address.words[3]);
                }
            }
        }
    }
}

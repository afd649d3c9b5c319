//! cgroup programs on sockets that got an address of their own: nobody listens on a service's node port.
#![allow(unsafe_code)]

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use sluice_ebpf_common::{Address, protocol};
use sluice_packet::may_listen;

use crate::kernel::Kernel;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const EADDRINUSE: i32 = 98;

#[cgroup_sock(post_bind4)]
pub fn post_bind4(context: SockContext) -> i32 {
    let sock = context.sock;
    // SAFETY: the context is valid for the whole program; reads have the width of the field.
    let address = Address::v4(unsafe { read_volatile(addr_of!((*sock).src_ip4)) });
    listening(&context, &address)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(context: SockContext) -> i32 {
    let sock = context.sock;
    // SAFETY: as above.
    let words = unsafe {
        [
            read_volatile(addr_of!((*sock).src_ip6[0])),
            read_volatile(addr_of!((*sock).src_ip6[1])),
            read_volatile(addr_of!((*sock).src_ip6[2])),
            read_volatile(addr_of!((*sock).src_ip6[3])),
        ]
    };
    listening(&context, &Address { words })
}

#[inline(always)]
fn listening(context: &SockContext, address: &Address) -> i32 {
    let sock = context.sock;
    // SAFETY: as above.
    let (number, port, cookie) = unsafe {
        (
            read_volatile(addr_of!((*sock).protocol)),
            read_volatile(addr_of!((*sock).src_port)),
            bpf_get_netns_cookie(sock.cast()),
        )
    };
    let number = match number {
        6 => protocol::TCP,
        17 => protocol::UDP,
        _ => return ALLOW,
    };
    // This port alone is in host order.
    if may_listen(&Kernel::Socket(cookie), address, (port as u16).to_be(), number) {
        return ALLOW;
    }
    // SAFETY: the helper has no preconditions; without it the answer would be EPERM.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    REFUSE
}

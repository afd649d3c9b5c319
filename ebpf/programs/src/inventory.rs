//! An iterator over the datagram sockets of a network namespace: user space reads from it a cookie and a `SocketState` for each
//! socket that remembers translations, without a gap.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_seq_write, bpf_sk_storage_get};
use sluice_ebpf_common::SocketState;

use crate::maps;

/// The beginning of `struct bpf_iter__udp`; the kernel checks every access by what it knows of it.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    socket: *mut c_void,
}

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
pub struct Meta {
    sequence: *mut c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub extern "C" fn translated(context: *const Context) -> i32 {
    // SAFETY: the context is valid for the whole program, and so is what it points to unless it is null.
    unsafe {
        let socket = read_volatile(&raw const (*context).socket);
        // The last call has none.
        if socket.is_null() {
            return 0;
        }
        let state = bpf_sk_storage_get((&raw const maps::SOCKETS).cast_mut().cast(), socket, null_mut(), 0);
        if state.is_null() {
            return 0;
        }
        let sequence = read_volatile(&raw const (*read_volatile(&raw const (*context).meta)).sequence);
        let cookie = bpf_get_socket_cookie(socket);
        // What does not fit is asked for again, as a whole.
        bpf_seq_write(sequence.cast(), (&raw const cookie).cast(), size_of::<u64>() as u32);
        bpf_seq_write(sequence.cast(), state, size_of::<SocketState>() as u32);
    }
    0
}

//! What a socket remembers about the service addresses it was translated from.

use crate::Address;

/// Translations that one socket remembers at a time; unconnected UDP sockets may talk to several services.
pub const SOCKET_TRANSLATIONS: usize = 4;

/// One service address and the backend that stands for it on this socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// What the program asked for.
    pub service_address: Address,
    /// What it got.
    pub backend_address: Address,
    /// Network order; 0 when the entry is unused.
    pub service_port: u16,
    /// Network order.
    pub backend_port: u16,
    /// Generation of the frontend when the backend was picked.
    pub generation: u32,
}

/// Lives in socket storage: it goes with the socket and cannot be evicted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// Newest entries overwrite the oldest.
    pub entries: [Translation; SOCKET_TRANSLATIONS],
    /// Where the next entry goes, in the two lowest bits; see the functions for the others, which builds before had at 0.
    pub marks: u32,
}

impl SocketState {
    /// Where the next entry goes.
    #[inline(always)]
    pub const fn next(&self) -> usize {
        (self.marks & 3) as usize
    }

    /// The entry that was written last, if it is known.
    #[inline(always)]
    pub const fn newest(&self) -> &Translation {
        &self.entries[(self.marks >> 2 & 3) as usize]
    }

    /// Id of the service that the newest entry is for; 0 when it is not known.
    #[inline(always)]
    pub const fn service(&self) -> u32 {
        self.marks >> 4
    }

    /// Sets all three; an id has 28 bits.
    #[inline(always)]
    pub const fn mark(&mut self, next: usize, newest: usize, service: u32) {
        self.marks = next as u32 & 3 | (newest as u32 & 3) << 2 | service << 4;
    }
}

const _: () = {
    assert!(SOCKET_TRANSLATIONS == 4);
    assert!(size_of::<Translation>() == 40 && align_of::<Translation>() == 4);
    assert!(size_of::<SocketState>() == 164 && align_of::<SocketState>() == 4);
};

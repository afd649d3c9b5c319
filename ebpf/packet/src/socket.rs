//! Socket addresses: a service address becomes a backend's before the connection exists, and the program that asked
//! never sees the difference.

use sluice_ebpf_common::{Reason, SOCKET_TRANSLATIONS, Scope, SocketState, Translation};

use crate::{Maps, service};

/// What becomes of a socket address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketVerdict {
    /// Not a service: nothing is touched.
    Untouched,
    /// Use the backend of this translation, and remember it.
    Translated(Translation),
    /// A service that nobody can answer now.
    Refused,
}

/// A TCP or UDP `connect()` to an address and port in network order.
#[inline(always)]
pub fn connect<M: Maps>(maps: &M, address: u32, port: u16, protocol: u8) -> SocketVerdict {
    translate(maps, address, port, protocol, None)
}

/// A datagram sent without a connection. The backend that this socket used before for the same service is kept as long
/// as the service has not changed.
#[inline(always)]
pub fn send<M: Maps>(maps: &M, address: u32, port: u16, protocol: u8, state: Option<&SocketState>) -> SocketVerdict {
    translate(maps, address, port, protocol, state)
}

#[inline(always)]
fn translate<M: Maps>(maps: &M, address: u32, port: u16, protocol: u8, state: Option<&SocketState>) -> SocketVerdict {
    let Some(settings) = maps.settings() else { return SocketVerdict::Untouched };
    let Some(frontend) = service::find(maps, &settings, address, port, protocol, Scope::Internal) else {
        return SocketVerdict::Untouched;
    };
    if !maps.translates(&settings) {
        return SocketVerdict::Untouched;
    }
    if let Some(state) = state {
        for entry in &state.entries {
            let same = entry.service_address == address && entry.service_port == port;
            if same && entry.generation == frontend.generation {
                return SocketVerdict::Translated(*entry);
            }
        }
    }
    match service::pick(maps, &frontend) {
        Ok((id, backend)) => {
            maps.count_service(frontend.service, |counters| counters.connections += 1);
            maps.count_backend(id, |counters| counters.connections += 1);
            SocketVerdict::Translated(Translation {
                service_address: address,
                backend_address: backend.address,
                service_port: port,
                backend_port: backend.port,
                generation: frontend.generation,
            })
        }
        Err(reason) => {
            if reason == Reason::NoEndpoint {
                maps.count_service(frontend.service, |counters| counters.refused += 1);
            }
            maps.count_reason(reason);
            SocketVerdict::Refused
        }
    }
}

/// The service address behind a peer's address, if this socket was translated to it.
#[inline(always)]
pub fn original(state: &SocketState, address: u32, port: u16) -> Option<(u32, u16)> {
    for entry in &state.entries {
        if entry.service_address != 0 && entry.backend_address == address && entry.backend_port == port {
            return Some((entry.service_address, entry.service_port));
        }
    }
    None
}

/// Remembers a translation; an entry for the same service is replaced, else the oldest.
#[inline(always)]
pub fn remember(state: &mut SocketState, translation: Translation) {
    let mut index = state.next as usize % SOCKET_TRANSLATIONS;
    let mut known = false;
    for (at, entry) in state.entries.iter().enumerate() {
        if entry.service_address == translation.service_address && entry.service_port == translation.service_port {
            index = at;
            known = true;
        }
    }
    if let Some(entry) = state.entries.get_mut(index) {
        *entry = translation;
    }
    if !known {
        state.next = (index as u32 + 1) % SOCKET_TRANSLATIONS as u32;
    }
}

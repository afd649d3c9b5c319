//! Socket addresses: a service address becomes a backend's before the connection exists, and the program that asked
//! never sees the difference.

use sluice_ebpf_common::{
    Address, AffinityKey, Frontend, FrontendKey, NO_NODE_PORTS, Reason, SOCKET_TRANSLATIONS, Scope, Settings,
    SocketState, Translation,
};

use crate::{Maps, service};

/// What becomes of a socket address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketVerdict {
    /// Not a service: nothing is touched.
    Untouched,
    /// Use the backend of this translation, and remember it, with the service's id.
    Translated(Translation, u32),
    /// Use the backend of this translation, which this socket remembers.
    Kept(Translation),
    /// A service that nobody can answer now, or not for this client.
    Refused(Reason),
}

/// A TCP or UDP `connect()` to an address and port in network order.
#[inline(always)]
pub fn connect<M: Maps>(maps: &M, address: &Address, port: u16, protocol: u8) -> SocketVerdict {
    translate(maps, address, port, protocol, None)
}

/// A datagram sent without a connection. The backend that this socket used before for the same service is kept as long
/// as the service has not changed.
#[inline(always)]
pub fn send<M: Maps>(
    maps: &M,
    address: &Address,
    port: u16,
    protocol: u8,
    state: Option<&SocketState>,
) -> SocketVerdict {
    translate(maps, address, port, protocol, state)
}

/// The source of a datagram that a socket of the node sends to a pod without saying one: a program that listens on every address
/// answers so, and pods ask it by the node's address. The route to the pod has another one, which the pod would not know.
#[inline(always)]
pub fn answers_from<M: Maps>(maps: &M, to: &Address) -> Option<Address> {
    let settings = maps.settings()?;
    let family = settings.family(to.is_v4());
    let to_pod = to.within(&family.cluster_network, &family.cluster_mask);
    let ours = to_pod && maps.namespace() == settings.host_cookie && maps.is_local(&family.node);
    ours.then_some(family.node)
}

/// May a socket listen on this port (network order)? Not on a node port: connections to it go to the service's backends,
/// and the program would wait for them forever.
#[inline(always)]
pub fn may_listen<M: Maps>(maps: &M, address: &Address, port: u16, protocol: u8) -> bool {
    let Some(settings) = maps.settings() else { return true };
    if !service::in_node_ports(settings, port) || maps.namespace() != settings.host_cookie {
        return true;
    }
    if maps.local(address).is_some_and(|local| local & NO_NODE_PORTS != 0) {
        return true;
    }
    let mut key = FrontendKey { address: address.any(), port, protocol, scope: Scope::Internal as u8 };
    let mut taken = maps.frontend(&key).is_some();
    // A socket on every IPv6 address hears IPv4, too.
    if !taken && address.same(&Address::ANY_V6) {
        key.address = Address::ANY_V4;
        taken = maps.frontend(&key).is_some();
    }
    if taken {
        maps.count_reason(Reason::NodePortTaken);
    }
    !taken
}

#[inline(always)]
fn translate<M: Maps>(
    maps: &M,
    address: &Address,
    port: u16,
    protocol: u8,
    state: Option<&SocketState>,
) -> SocketVerdict {
    let Some(settings) = maps.settings() else { return SocketVerdict::Untouched };
    let Some(frontend) = service::find(maps, settings, address, port, protocol, Scope::Internal) else {
        return SocketVerdict::Untouched;
    };
    if !maps.translates(settings) {
        return SocketVerdict::Untouched;
    }
    if frontend.flags & Frontend::RANGES != 0 && !in_ranges(maps, settings, &frontend, address) {
        // A pod's address is known when its packet comes.
        if maps.namespace() != settings.host_cookie {
            return SocketVerdict::Untouched;
        }
        return refuse(maps, &frontend, Reason::SourceRange);
    }
    if let Some(state) = state {
        for entry in &state.entries {
            let same = entry.service_port == port && entry.service_address.same(address);
            if same && entry.generation == frontend.generation {
                return SocketVerdict::Kept(*entry);
            }
        }
    }
    let cookie = maps.namespace();
    let client = AffinityKey {
        client: Address { words: [cookie as u32, (cookie >> 32) as u32, 0, 0] },
        service: frontend.service,
        kind: AffinityKey::NAMESPACE,
    };
    match service::pick(maps, &frontend, &client, || service::any(maps, &frontend)) {
        Ok((id, backend)) => {
            maps.count(frontend.service, id, |counters| counters.connections += 1);
            let translation = Translation {
                service_address: *address,
                backend_address: backend.address,
                service_port: port,
                backend_port: backend.port,
                generation: frontend.generation,
            };
            SocketVerdict::Translated(translation, frontend.service)
        }
        Err(reason) => refuse(maps, &frontend, reason),
    }
}

/// The node's own sockets have the node's address; what a pod's sockets will have is not known here.
#[inline(always)]
fn in_ranges<M: Maps>(maps: &M, settings: &Settings, frontend: &Frontend, address: &Address) -> bool {
    maps.namespace() == settings.host_cookie && service::admits(maps, frontend, &settings.family(address.is_v4()).node)
}

#[inline(always)]
fn refuse<M: Maps>(maps: &M, frontend: &Frontend, reason: Reason) -> SocketVerdict {
    if reason != Reason::Inconsistent {
        maps.count_service(frontend.service, |counters| counters.refused += 1);
    }
    maps.count_reason(reason);
    SocketVerdict::Refused(reason)
}

/// The service address behind a peer's address, if this socket was translated to it.
#[inline(always)]
pub fn original(state: &SocketState, address: &Address, port: u16) -> Option<(Address, u16)> {
    for entry in &state.entries {
        if entry.service_port != 0 && entry.backend_port == port && entry.backend_address.same(address) {
            return Some((entry.service_address, entry.service_port));
        }
    }
    None
}

/// The service that a connected socket asked for last: its id and what stands for it. `None` for another peer's socket.
#[inline(always)]
pub fn asked_for<'a>(state: &'a SocketState, address: &Address, port: u16) -> Option<(u32, &'a Translation)> {
    let newest = state.newest();
    let is_peer = newest.backend_port == port && newest.backend_address.same(address);
    if state.service() != 0 && is_peer { Some((state.service(), newest)) } else { None }
}

/// Remembers a translation for a service of this id; an entry for the same service is replaced, else the oldest.
#[inline(always)]
pub fn remember(state: &mut SocketState, translation: Translation, service: u32) {
    let mut index = state.next();
    let mut known = false;
    for (at, entry) in state.entries.iter().enumerate() {
        if entry.service_port == translation.service_port && entry.service_address.same(&translation.service_address) {
            index = at;
            known = true;
        }
    }
    if let Some(entry) = state.entries.get_mut(index) {
        *entry = translation;
    }
    let next = if known { state.next() } else { (index + 1) % SOCKET_TRANSLATIONS };
    state.mark(next, index, service);
}

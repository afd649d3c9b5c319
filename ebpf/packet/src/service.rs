//! From a service address to a backend.

use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Frontend, FrontendKey, RangeKey, Reason, Scope, Settings, limits,
};

use crate::Maps;

/// The frontend for an address and port (network order): an exact one, else the port on any local address.
#[inline(always)]
pub fn find<M: Maps>(
    maps: &M,
    settings: &Settings,
    address: &Address,
    port: u16,
    protocol: u8,
    scope: Scope,
) -> Option<Frontend> {
    if address.is_loopback() && !maps.is_local(address) {
        return None;
    }
    let mut key = FrontendKey { address: *address, port, protocol, scope: scope as u8 };
    if let Some(frontend) = maps.frontend(&key) {
        return Some(frontend);
    }
    if !is_node_port(maps, settings, address, port) {
        return None;
    }
    key.address.words = [0, 0, if address.is_v4() { Address::ANY_V4.words[2] } else { 0 }, 0];
    maps.frontend(&key)
}

/// Could this be a node port or a host port of this node?
#[inline(always)]
pub(crate) fn is_node_port<M: Maps>(maps: &M, settings: &Settings, address: &Address, port: u16) -> bool {
    (settings.host_ports != 0 || in_node_ports(settings, port)) && maps.is_local(address)
}

/// Is it in the range of the node ports?
#[inline(always)]
pub(crate) fn in_node_ports(settings: &Settings, port: u16) -> bool {
    let number = u16::from_be(port);
    number >= settings.node_port_first && number <= settings.node_port_last
}

/// May a client with this address use the frontend at all?
#[inline(always)]
pub(crate) fn admits<M: Maps>(maps: &M, frontend: &Frontend, client: &Address) -> bool {
    frontend.flags & Frontend::RANGES == 0 || maps.in_range(&RangeKey { service: frontend.service, address: *client })
}

/// Picks a backend: the one that the client keeps, else any.
#[inline(always)]
pub fn pick<M: Maps>(maps: &M, frontend: &Frontend, client: &AffinityKey) -> Result<(u32, Backend), Reason> {
    if frontend.count == 0 {
        let elsewhere = frontend.flags & Frontend::ELSEWHERE != 0;
        return Err(if elsewhere { Reason::NotHere } else { Reason::NoEndpoint });
    }
    if frontend.affinity != 0
        && let Some(kept) = kept(maps, frontend, client)
    {
        return Ok(kept);
    }
    let index = ((u64::from(maps.random()) * u64::from(frontend.count)) >> 32) as u32;
    let id = maps.slot(frontend.base.wrapping_add(index)).ok_or(Reason::Inconsistent)?;
    let backend = maps.backend(id).ok_or(Reason::Inconsistent)?;
    if backend.port == 0 {
        return Err(Reason::Inconsistent);
    }
    if frontend.affinity != 0 {
        maps.keep_affinity(client, &Affinity { backend, id, index, seen: maps.now() });
    }
    Ok((id, backend))
}

/// The backend that the client keeps, if it is still one of the frontend's. Each new connection starts the time anew, as
/// upstream's proxy does.
#[inline(always)]
fn kept<M: Maps>(maps: &M, frontend: &Frontend, client: &AffinityKey) -> Option<(u32, Backend)> {
    let mut affinity = maps.affinity(client)?;
    let now = maps.now();
    if now.wrapping_sub(affinity.seen) > frontend.affinity {
        return None;
    }
    let index = place(maps, frontend, &affinity)?;
    let backend = maps.backend(affinity.id)?;
    if !backend.address.same(&affinity.backend.address) || backend.port != affinity.backend.port {
        return None;
    }
    if affinity.seen != now || affinity.index != index {
        affinity.seen = now;
        affinity.index = index;
        maps.keep_affinity(client, &affinity);
    }
    Some((affinity.id, backend))
}

/// Where the frontend's list names the backend: near the place where it did before, as others come and go. A search by
/// halves would be exact for any length, but the kernel's verifier walks every path of it.
#[inline(always)]
fn place<M: Maps>(maps: &M, frontend: &Frontend, affinity: &Affinity) -> Option<u32> {
    let first = affinity.index.saturating_sub(limits::AFFINITY_WINDOW / 2);
    for step in 0..limits::AFFINITY_WINDOW {
        let index = first + step;
        if index >= frontend.count {
            return None;
        }
        if maps.slot(frontend.base.wrapping_add(index)) == Some(affinity.id) {
            return Some(index);
        }
    }
    None
}

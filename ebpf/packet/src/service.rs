//! From a service address to a backend.

use sluice_ebpf_common::{Backend, Frontend, FrontendKey, Reason, Scope, Settings};

use crate::Maps;

/// The frontend for an address and port (network order): an exact one, else the node port on any local address.
#[inline(always)]
pub fn find<M: Maps>(
    maps: &M,
    settings: &Settings,
    address: u32,
    port: u16,
    protocol: u8,
    scope: Scope,
) -> Option<Frontend> {
    let key = FrontendKey { address, port, protocol, scope: scope as u8 };
    if let Some(frontend) = maps.frontend(&key) {
        return Some(frontend);
    }
    if is_node_port(maps, settings, address, port) {
        return maps.frontend(&FrontendKey { address: 0, ..key });
    }
    None
}

/// Could this be a node port of this node?
#[inline(always)]
pub(crate) fn is_node_port<M: Maps>(maps: &M, settings: &Settings, address: u32, port: u16) -> bool {
    let number = u16::from_be(port);
    number >= settings.node_port_first && number <= settings.node_port_last && maps.is_local(address)
}

/// Picks a backend at random.
#[inline(always)]
pub fn pick<M: Maps>(maps: &M, frontend: &Frontend) -> Result<(u32, Backend), Reason> {
    if frontend.count == 0 {
        return Err(Reason::NoEndpoint);
    }
    let index = ((u64::from(maps.random()) * u64::from(frontend.count)) >> 32) as u32;
    let id = maps.slot(frontend.base.wrapping_add(index)).ok_or(Reason::Inconsistent)?;
    let backend = maps.backend(id).ok_or(Reason::Inconsistent)?;
    if backend.address == 0 { Err(Reason::Inconsistent) } else { Ok((id, backend)) }
}

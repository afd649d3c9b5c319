//! From a service address to a backend.
//!
//! A frontend without a table takes any backend of its list. One with a table (Maglev, NSDI 2016: external services, whose
//! packets may come to any node and to another one in the middle of a connection) goes by a hash of the connection, so that
//! all nodes choose alike.

use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, FlowKey, Frontend, FrontendKey, NO_NODE_PORTS, RangeKey, Reason, Scope,
    Settings, known, limits,
};

use crate::{Header, Maps, encap};

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
    let host_ports = settings.flags & Settings::HOST_PORTS != 0;
    let node_port = in_node_ports(settings, port);
    let closes = if node_port { NO_NODE_PORTS } else { 0 };
    (host_ports || node_port) && maps.local(address).is_some_and(|local| local & closes == 0)
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

/// Picks a backend: the one that the client keeps, else the one at a place in the list ([`any`] or [`planned`]).
#[inline(always)]
pub fn pick<M: Maps>(
    maps: &M,
    frontend: &Frontend,
    client: &AffinityKey,
    place: impl FnOnce() -> u32,
) -> Result<(u32, Backend), Reason> {
    if frontend.count == 0 {
        let elsewhere = frontend.flags & Frontend::ELSEWHERE != 0;
        return Err(if elsewhere { Reason::NotHere } else { Reason::NoEndpoint });
    }
    if frontend.affinity != 0
        && let Some(kept) = kept(maps, frontend, client)
    {
        return Ok(kept);
    }
    let index = place();
    let (id, backend) = at(maps, frontend, index).ok_or(Reason::Inconsistent)?;
    if frontend.affinity != 0 {
        maps.keep_affinity(client, &Affinity { backend, id, index, seen: maps.now() });
    }
    Ok((id, backend))
}

/// Marks a backend's number among places in a list.
const NAMED: u32 = 1 << 31;

/// The backend at a place in the list.
#[inline(always)]
pub(crate) fn at<M: Maps>(maps: &M, frontend: &Frontend, place: u32) -> Option<(u32, Backend)> {
    let id = match place & NAMED {
        0 => maps.slot(frontend.base.wrapping_add(place))?,
        _ => place & !NAMED,
    };
    let id = maps.hide(id);
    let backend = maps.backend(id)?;
    if backend.port == 0 { None } else { Some((id, backend)) }
}

/// Any place in the list.
#[inline(always)]
pub(crate) fn any<M: Maps>(maps: &M, frontend: &Frontend) -> u32 {
    scale(maps.random(), frontend.count)
}

/// The place in the list that the table has for a packet. Without a table it is any place; the same one for all packets of a
/// connection where it may not be remembered, or the backend that its first packet went to.
#[inline(always)]
pub(crate) fn planned<M: Maps>(maps: &M, frontend: &Frontend, header: &Header, trace: u64) -> u32 {
    let begun = encap::begun(maps, header, frontend, trace);
    if begun != 0 {
        return maps.hide(begun | NAMED);
    }
    if frontend.table == 0 && frontend.flags & Frontend::DIRECT == 0 {
        return any(maps, frontend);
    }
    let places = if frontend.table == 0 { frontend.count } else { frontend.table };
    let trace = if frontend.affinity == 0 { trace } else { clients(maps, frontend, header, trace) };
    let at = scale(maps.hide((trace >> 32) as u32), places);
    if frontend.table == 0 {
        return at;
    }
    let word = maps.slot(frontend.table_base().wrapping_add(at / 2)).unwrap_or(0);
    word >> (at % 2 * 16) & 0xffff
}

/// What decides where a connection goes whose client keeps its backend: the client alone, which other nodes send there, too; or
/// the whole connection where the client's time is over. A function of its own in the kernel, where the stack is small.
#[inline(never)]
fn clients<M: Maps>(maps: &M, frontend: &Frontend, header: &Header, trace: u64) -> u64 {
    let known = maps.affinity(&of_client(header, frontend));
    if known.is_some_and(|affinity| over(maps, frontend, &affinity)) {
        return trace;
    }
    known::trace(&FlowKey { source: header.source, ..FlowKey::default() })
}

/// Under which a client's backend is kept for its packets.
#[inline(always)]
pub(crate) fn of_client(header: &Header, frontend: &Frontend) -> AffinityKey {
    AffinityKey { client: header.source, service: frontend.service, kind: AffinityKey::ADDRESS }
}

#[inline(always)]
fn over<M: Maps>(maps: &M, frontend: &Frontend, affinity: &Affinity) -> bool {
    maps.now().wrapping_sub(affinity.seen) > frontend.affinity
}

/// A number below `limit`, in proportion.
#[inline(always)]
fn scale(number: u32, limit: u32) -> u32 {
    ((u64::from(number) * u64::from(limit)) >> 32) as u32
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

//! The way to a backend elsewhere, as the kernel told it, kept for the connections that begin after the one it was asked for:
//! to ask costs more than the rest of the decision.

use sluice_ebpf_common::{Address, Settings};

use crate::Header;
use crate::cache::Fast;
use crate::egress::own_address;
use crate::shortcut::Route;

/// A way that holds until the clock ticks, or until links or their addresses change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail {
    address: Address,
    stamp: u32,
    tick: u32,
    route: Route,
}

/// Is the way of an IP packet of `length` bytes to a backend known?
#[inline(always)]
pub(crate) fn known<M: Fast>(
    maps: &M,
    settings: &Settings,
    to: &Address,
    length: u16,
    backend: u32,
    route: &mut Route,
) -> bool {
    let (stamp, tick) = now(maps, settings);
    let known = maps.trail(
        backend,
        #[inline(always)]
        |trail| {
            *route = trail.route;
            trail.address.same(to) && trail.stamp == stamp && trail.tick == tick && length <= trail.route.mtu
        },
    );
    known == Some(true)
}

/// Asks for it, and keeps it; false unless the packet can be sent on a link at once.
#[inline(always)]
pub(crate) fn find<M: Fast>(
    maps: &M,
    settings: &Settings,
    header: &Header,
    length: u16,
    backend: u32,
    route: &mut Route,
) -> bool {
    if !ask(maps, settings, header, length, route) {
        return false;
    }
    let (stamp, tick) = now(maps, settings);
    maps.trail(
        backend,
        #[inline(always)]
        |trail| *trail = Trail { address: header.destination, stamp, tick, route: *route },
    );
    true
}

/// What a way depends on beside its end.
#[inline(always)]
fn now<M: Fast>(maps: &M, settings: &Settings) -> (u32, u32) {
    let stamp = settings.epoch.wrapping_mul(0x9e37_79b1) ^ maps.vlan() ^ maps.link().rotate_left(8);
    (stamp, settings.tick(maps.jiffies()))
}

/// Asks the kernel for the way, and for the address to leave with.
#[inline(always)]
pub(crate) fn ask<M: Fast>(maps: &M, settings: &Settings, header: &Header, length: u16, route: &mut Route) -> bool {
    let found = maps.route(header, length, route);
    if found {
        route.own = own_address(maps, settings, route.device, header.v4);
    }
    found
}

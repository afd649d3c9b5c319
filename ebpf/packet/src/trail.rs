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

/// Finds the way of an IP packet of `length` bytes to a backend; false unless it can be sent on a link at once.
#[inline(always)]
pub(crate) fn follow<M: Fast>(
    maps: &M,
    settings: &Settings,
    header: &Header,
    length: u16,
    backend: u32,
    route: &mut Route,
) -> bool {
    let stamp = settings.epoch.wrapping_mul(0x9e37_79b1) ^ maps.vlan() ^ maps.link().rotate_left(8);
    let tick = settings.tick(maps.jiffies());
    let known = maps.trail(
        backend,
        #[inline(always)]
        |trail| {
            *route = trail.route;
            trail.address.same(&header.destination)
                && trail.stamp == stamp
                && trail.tick == tick
                && length <= trail.route.mtu
        },
    );
    if known == Some(true) {
        return true;
    }
    if !ask(maps, settings, header, length, route) {
        return false;
    }
    maps.trail(
        backend,
        #[inline(always)]
        |trail| *trail = Trail { address: header.destination, stamp, tick, route: *route },
    );
    true
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

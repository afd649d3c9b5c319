//! Finding a free port of the node: a look at one word finds a group with room, a look at one of two finds the port, however
//! many are taken, and when none is left the first look says so.

use sluice_ebpf_common::ports::{self, GROUP, GROUPS};
use sluice_ebpf_common::{FlowKey, Settings, limits};

use crate::Maps;

/// Takes a port that is free towards the remote end of a reply, and writes it into the reply's key.
#[inline(always)]
pub(crate) fn take<M: Maps>(maps: &M, settings: &Settings, reply: &mut FlowKey) -> Option<()> {
    let count = count(settings);
    let groups = count.div_ceil(GROUP).min(GROUPS);
    let row = ports::row(&reply.source, reply.source_port, reply.protocol);
    // Two processors may want the same port: the slower one looks again.
    for _ in 0..limits::PORT_PROBES {
        let random = maps.random();
        let room = !maps.ports(row)? & !(u64::MAX << groups);
        if room == 0 {
            return None;
        }
        let group = pick(room, ((u64::from(random) * u64::from(groups)) >> 32) as u32);
        let first = group * 2;
        let words = [free(maps, row, first, count)?, free(maps, row, first + 1, count)?];
        let word = if words[0] == 0 || random & 1 == 1 && words[1] != 0 { 1 } else { 0 };
        let (bits, others) = if word == 1 { (words[1], words[0]) } else { (words[0], words[1]) };
        let number = (first + word) * 64 + pick(bits, random >> 8 & 63);
        if bits & bits.wrapping_sub(1) | others == 0 {
            // The last one of its group, or none is left.
            maps.take_port(row, group);
        }
        let (at, bit) = ports::place(row, number);
        if bits != 0 && maps.take_port(at, bit) {
            reply.destination_port = settings.source_port_first.wrapping_add(number as u16).to_be();
            return Some(());
        }
    }
    None
}

/// Gives the port of a reply's key back.
#[inline(always)]
pub(crate) fn give<M: Maps>(maps: &M, settings: &Settings, reply: &FlowKey) {
    let number = u32::from(u16::from_be(reply.destination_port).wrapping_sub(settings.source_port_first));
    let row = ports::row(&reply.source, reply.source_port, reply.protocol);
    let (at, bit) = ports::place(row, number);
    maps.give_port(at, bit);
    maps.give_port(row, ports::group(number));
}

#[inline(always)]
fn count(settings: &Settings) -> u32 {
    u32::from(settings.source_port_last.wrapping_sub(settings.source_port_first)) + 1
}

/// The free ports of a row's word.
#[inline(always)]
fn free<M: Maps>(maps: &M, row: u32, word: u32, count: u32) -> Option<u64> {
    let there = count.saturating_sub(word * 64);
    let mask = if there >= 64 { u64::MAX } else { !(u64::MAX << there) };
    maps.ports(row + 1 + word).map(|taken| !taken & mask)
}

/// The first bit at or after a place, else the first one of all.
#[inline(always)]
fn pick(bits: u64, from: u32) -> u32 {
    let later = bits & (u64::MAX << (from & 63));
    (if later == 0 { bits } else { later }).trailing_zeros()
}

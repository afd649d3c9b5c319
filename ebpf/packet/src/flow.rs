//! Keys of the flow table, the creation of a pair of entries, and what is counted.

use sluice_ebpf_common::{Flow, FlowKey, FlowKind, known};

use crate::header::Header;
use crate::{InsertError, Maps};

/// The key under which this packet's flow of that kind is found.
#[inline(always)]
pub(crate) fn key(header: &Header, kind: FlowKind) -> FlowKey {
    FlowKey {
        source: header.source,
        destination: header.destination,
        source_port: header.source_port,
        destination_port: header.destination_port,
        protocol: header.protocol,
        kind: kind as u8,
        reserved: 0,
    }
}

/// Notes a packet in its flow entry.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow, header: &Header, now: u32, bytes: u32) {
    if flow.seen != now {
        flow.seen = now;
    }
    let closes = header.closes();
    if flow.flags & closes != closes {
        flow.flags |= closes;
    }
    flow.packets += 1;
    flow.bytes += u64::from(bytes);
}

/// Counts packets for a service and its backend.
#[inline(always)]
pub(crate) fn count<M: Maps>(maps: &M, service: u32, backend: u32, packets: u64, bytes: u64) {
    maps.count(service, backend, |counters| {
        counters.packets += packets;
        counters.bytes += bytes;
    });
}

/// Notes that there may be an entry with this key, before there is one. Only clients' packets are told from strangers' by that.
#[inline(always)]
pub(crate) fn make_known<M: Maps>(maps: &M, key: &FlowKey) {
    if key.kind != FlowKind::Service as u8 {
        return;
    }
    let (word, bit) = known::place(known::trace(key));
    maps.make_known(word, bit);
}

/// Adds the entry of the first direction after the other one is there; on failure the other one is taken back, unless it is
/// also that of another processor, which was faster and chose alike.
#[inline(always)]
pub(crate) fn complete<M: Maps>(maps: &M, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
    make_known(maps, key);
    let inserted = maps.insert_flow(key, flow);
    match inserted {
        Ok(()) => maps.flow_created(),
        Err(_) => {
            let alike = |known: &mut Flow| known.address.same(&flow.address) && known.port == flow.port;
            if maps.flow(key, alike) != Some(true) {
                maps.remove_flow(&flow.other);
            }
        }
    }
    inserted
}

//! A copy of the flow map that falls behind, because programs of an earlier build go on making, ending and closing connections,
//! is brought in line with its original once they make no more.

use std::hash::BuildHasher;
use std::os::fd::AsFd;

use aya::maps::{HashMap, MapData};
use hashbrown::DefaultHashBuilder;
use sluice_ebpf_common::{Flow, FlowKey, maps};

use crate::pins::Pins;
use crate::store::{descriptor, typed};
use crate::{Error, sys};

/// What of an entry has to be the same in the copy: who it is about, and how it ended as far as the original knows.
struct Known {
    identity: u64,
    ends: u16,
    /// The copy has it.
    copied: bool,
}

const ENDS: u16 = Flow::FIN | Flow::RST;

/// Brings the flow map of these pins in line with another one, whose entries `original` hands over, each in the copy's layout.
/// What the copy counted and saw itself stays. The programs that use the copy must not add or remove entries meanwhile.
pub(crate) fn catch_up(
    pins: &Pins,
    original: impl Fn(&mut dyn FnMut(FlowKey, Flow)) -> Result<(), Error>,
) -> Result<(), Error> {
    let hasher = DefaultHashBuilder::default();
    let identity = |flow: &Flow| {
        let Flow { other, address, port, flags, service, backend, created, .. } = *flow;
        let address = (address.words, port, flags & !(ENDS | Flow::ACKNOWLEDGED));
        hasher.hash_one((other, address, service, backend, created))
    };
    // Hashes for keys: a map of a million flows is compared in a few dozen MB.
    let mut known: hashbrown::HashMap<u64, Known> = hashbrown::HashMap::new();
    original(&mut |key, flow| {
        let entry = Known { identity: identity(&flow), ends: flow.flags & ENDS, copied: false };
        known.insert(hasher.hash_one(key), entry);
    })?;
    let mut gone: Vec<FlowKey> = Vec::new();
    let copy = descriptor(&pins.map(maps::FLOWS))?;
    sys::read_each(copy.as_fd(), |key: FlowKey, flow: Flow| match known.get_mut(&hasher.hash_one(key)) {
        Some(entry) => entry.copied = entry.identity == identity(&flow) && entry.ends & !flow.flags == 0,
        None => gone.push(key),
    })
    .map_err(|error| Error::system("read the flow map", error))?;
    let mut flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS)?;
    for key in gone {
        flows.remove(&key).map_err(|error| Error::ebpf("remove a flow", error))?;
    }
    let mut result = Ok(());
    original(&mut |key, flow| {
        if known.get(&hasher.hash_one(key)).is_none_or(|entry| !entry.copied)
            && let Err(error) = flows.insert(key, flow, 0)
        {
            result = Err(Error::ebpf("copy a flow", error));
        }
    })?;
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::Dataplane;
    use crate::common::isolated;

    const KEPT: u16 = 1;
    const MADE: u16 = 2;
    const ENDED: u16 = 3;
    const AGAIN: u16 = 4;
    const CLOSED: u16 = 5;

    fn key(client: u16) -> FlowKey {
        FlowKey { source_port: client, protocol: 6, ..FlowKey::default() }
    }

    /// A connection's entry, which left by this port.
    fn flow(port: u16, flags: u16, packets: u64) -> Flow {
        Flow { other: key(port), port, flags, packets, ..Flow::default() }
    }

    #[test]
    fn a_copy_has_what_its_original_has_and_keeps_what_it_counted() {
        isolated("catch_up::tests::a_copy_has_what_its_original_has_and_keeps_what_it_counted", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut copy: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS).unwrap();
            for (client, flow) in [
                (KEPT, flow(100, Flow::RST, 9)),
                (ENDED, flow(101, 0, 1)),
                (AGAIN, flow(102, Flow::FIN, 5)),
                (CLOSED, flow(103, Flow::ACKNOWLEDGED, 5)),
            ] {
                copy.insert(key(client), flow, 0).unwrap();
            }
            let original = BTreeMap::from([
                (KEPT, flow(100, 0, 4)),
                (MADE, flow(104, 0, 1)),
                (AGAIN, flow(105, 0, 1)),
                (CLOSED, flow(103, Flow::FIN, 6)),
            ]);
            for _ in 0..2 {
                catch_up(pins, |take| {
                    original.iter().for_each(|(client, flow)| take(key(*client), *flow));
                    Ok(())
                })
                .unwrap();
                let left: BTreeMap<u16, Flow> =
                    copy.iter().map(|entry| entry.map(|(key, flow)| (key.source_port, flow)).unwrap()).collect();
                let mut expected = original.clone();
                expected.insert(KEPT, flow(100, Flow::RST, 9));
                assert_eq!(left, expected);
            }
        });
    }
}

//! The places of connections that clients only opened, from user space.

use aya::maps::{Array, MapData};
use sluice_ebpf_common::maps;
use sluice_ebpf_common::opened::{self, Opened};

use crate::Error;
use crate::limits::idle;
use crate::pins::Pins;
use crate::store::{typed, words};
use crate::sweep::Taken;
use crate::words::Words;

const STRIDE: usize = size_of::<Opened>() / size_of::<u32>();

pub(crate) struct Openings {
    /// The bits of places that somebody has.
    places: Words,
    /// All that stands there; the state comes first.
    states: Words,
    map: Array<MapData, Opened>,
}

impl Openings {
    pub(crate) fn open(pins: &Pins) -> Result<Openings, Error> {
        let places = words(&pins.map(maps::PLACES), opened::WORDS as usize * 2, true)?;
        let states = words(&pins.map(maps::OPENED), opened::PLACES as usize * STRIDE, true)?;
        Ok(Openings { places, states, map: typed(pins, maps::OPENED)? })
    }

    /// Those that wait for an answer.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Opened> {
        self.taken().map(|(_, opened)| opened).filter(Opened::waits)
    }

    /// Frees places of connections that nobody answered, and returns how many are taken. One look marks them, so that no answer
    /// makes a connection of them, and the next one gives back what they have.
    pub(crate) fn sweep(&self, ports: &Taken, now: u32) -> usize {
        let mut left = 0;
        for (place, opened) in self.taken() {
            let state = place as usize * STRIDE;
            if opened.state == Opened::ENDED {
                ports.give_back(&opened.reply);
                self.states.set(state, 0);
                let (word, bit) = opened::bit(place);
                self.places.clear_long(word as usize * 2, 1 << bit);
                continue;
            }
            left += 1;
            if opened.waits() && now.saturating_sub(opened.seen) > idle::TCP_OPENING {
                // It may be answered just now.
                self.states.replace(state, Opened::WAITS, Opened::ENDED);
            }
        }
        left
    }

    /// Places that somebody has, and what stands there.
    fn taken(&self) -> impl Iterator<Item = (u32, Opened)> {
        let word = |word: u32| self.places.get_long(word as usize * 2).unwrap_or(0);
        let places = (0..opened::WORDS).flat_map(move |at| {
            let bits = word(at);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        });
        places.filter_map(|place| Some((place, self.map.get(&place, 0).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sluice_ebpf_common::{FlowKey, ports, protocol};

    use super::*;
    use crate::Dataplane;
    use crate::common::isolated;
    use crate::sweep::{count, sweep, take_ports};

    #[test]
    fn what_nobody_answers_gives_its_place_and_port_back() {
        isolated("openings::tests::what_nobody_answers_gives_its_place_and_port_back", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut openings = Openings::open(pins).unwrap();
            let mut put = |place: u32, state: u32, seen: u32| {
                let (protocol, destination_port) = (protocol::TCP, (61_000 + place as u16).to_be());
                let reply = FlowKey { source_port: 80, destination_port, protocol, ..FlowKey::default() };
                openings.map.set(place, Opened { state, seen, reply, ..Opened::default() }, 0).unwrap();
                let (word, bit) = opened::bit(place);
                openings.places.mark_long(word as usize * 2, 1 << bit);
            };
            let (begun, late) = (1_000, 1_001 + idle::TCP_OPENING);
            for (place, state, seen) in
                [(0, Opened::WAITS, begun), (63, Opened::WAITS, begun), (64, Opened::WAITS, late), (500, 0, begun)]
            {
                put(place, state, seen);
            }
            take_ports(pins).unwrap();
            let ports = words(&pins.map(maps::PORTS), (ports::ROWS * ports::ROW * 2) as usize, false).unwrap();
            let taken = || (0..ports.len()).filter_map(|at| ports.get(at)).map(u32::count_ones).sum::<u32>();
            assert_eq!((taken(), count(pins).unwrap()), (3, 3));
            assert_eq!(sweep(pins, begun + idle::TCP_OPENING).unwrap(), 4, "they may still be answered");
            assert_eq!(sweep(pins, late).unwrap(), 4, "marked");
            assert_eq!((taken(), count(pins).unwrap()), (3, 1));
            // One that is being made is left alone, and one that begins in a place of before.
            assert_eq!(sweep(pins, late).unwrap(), 2);
            assert_eq!((taken(), count(pins).unwrap()), (1, 1));
            let places: Vec<u32> = Openings::open(pins).unwrap().taken().map(|(place, _)| place).collect();
            assert_eq!(places, [64, 500]);
        });
    }
}

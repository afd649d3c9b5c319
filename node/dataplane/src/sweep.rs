//! Removing flows that ended: a look every few seconds while there are any, none at all while there are none.
//!
//! The programs never remove an established flow to make room. They tell the first flow through the event ring, which
//! wakes the sweeper up.

use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, RingBuf};
use sluice_ebpf_common::{Flow, FlowKey, FlowKind, Settings, known, maps, ports, protocol};
use tokio_util::sync::CancellationToken;

use crate::limits::{STRANGERS, SWEEP, SWEEP_BUSY, idle};
use crate::openings::Openings;
use crate::pins::Pins;
use crate::store::{typed, words};
use crate::words::Words;
use crate::{Dataplane, Error, sys};

/// Sweeps until the shutdown.
pub(crate) async fn run(dataplane: &Dataplane, shutdown: &CancellationToken) -> Result<(), Error> {
    let pins = &dataplane.inner.pins;
    let ring: RingBuf<MapData> = typed(pins, maps::EVENTS)?;
    let mut ring = sys::watch(ring).map_err(|error| Error::system("listen to the event ring", error))?;
    loop {
        // While the word is 1 the programs send no event.
        arm(pins, 1)?;
        let mut before = 0;
        loop {
            let left = sweep_aside(dataplane).await?;
            if left == 0 {
                break;
            }
            let pause = pause(before, left, dataplane.flow_capacity());
            before = left;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
        while ring.get_mut().next().is_some() {}
        arm(pins, 0)?;
        // A flow that came between the last look and the word would have sent no event.
        if sweep_aside(dataplane).await? > 0 {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            ready = ring.readable_mut() => {
                ready.map_err(|error| Error::system("listen to the event ring", error))?.clear_ready();
            }
        }
    }
}

fn arm(pins: &Pins, value: u32) -> Result<(), Error> {
    let mut word: Array<MapData, u32> = typed(pins, maps::SWEEPER)?;
    word.set(0, value, 0).map_err(|error| Error::ebpf("tell the programs about the sweeper", error))
}

async fn sweep_aside(dataplane: &Dataplane) -> Result<usize, Error> {
    let dataplane = dataplane.clone();
    tokio::task::spawn_blocking(move || turn(&dataplane))
        .await
        .map_err(|error| Error::system("sweep the flows", std::io::Error::other(error)))?
}

/// Time until the next look: short while the map fills, so that it grows in time.
fn pause(before: usize, left: usize, capacity: u32) -> Duration {
    let capacity = capacity as usize;
    if left > capacity / 5 || left > before + capacity / 20 { SWEEP_BUSY } else { SWEEP }
}

/// One look: what ended goes, and a map under pressure grows.
pub(crate) fn turn(dataplane: &Dataplane) -> Result<usize, Error> {
    let left = {
        let _sweeping = dataplane.inner.sweeping.lock();
        sweep(&dataplane.inner.pins, sys::coarse_seconds())?
    };
    if let Err(error) = dataplane.grow_flows(u32::try_from(left).unwrap_or(u32::MAX)) {
        tracing::error!(%error, "the flow map cannot grow");
    }
    Ok(left)
}

/// Removes what has ended and returns how many entries are left.
pub(crate) fn sweep(pins: &Pins, now: u32) -> Result<usize, Error> {
    let mut flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS)?;
    let mut ended = Vec::new();
    let mut left = 0;
    let mut live = vec![0_u64; known::WORDS as usize];
    for entry in flows.iter() {
        // An entry that vanished while the map was walked ends the walk; the next one sees the rest.
        let Ok((key, flow)) = entry else { break };
        let other = flows.get(&flow.other, 0).ok();
        if over(&key, &flow, other.as_ref(), now) {
            ended.push(key);
        } else {
            left += 1;
            if let Some((word, bit)) = bit(&key) {
                live[word] |= 1 << bit;
            }
        }
    }
    let taken = Taken::open(pins)?;
    for key in ended {
        // It may be gone already, and its port another's.
        if flows.remove(&key).is_ok() && key.kind == FlowKind::MasqueradeReply as u8 {
            taken.give_back(&key);
        }
    }
    forget_strangers(pins, &live)?;
    Ok(left + Openings::open(pins)?.sweep(&taken, now))
}

/// Clears bits that no connection has any more, when they are so many that they cost looks at the flow table.
fn forget_strangers(pins: &Pins, live: &[u64]) -> Result<(), Error> {
    let words = known_words(pins)?;
    let kept = |word: usize| words.get_long(word * 2).unwrap_or(0);
    let count = |bits: u64| u64::from(bits.count_ones());
    let (set, used): (u64, u64) =
        live.iter().enumerate().fold((0, 0), |sum, (word, bits)| (sum.0 + count(kept(word)), sum.1 + count(*bits)));
    if set.saturating_sub(used) <= used + STRANGERS {
        return Ok(());
    }
    for (word, bits) in live.iter().enumerate() {
        words.clear_long(word * 2, kept(word) & !bits);
    }
    // Those that began meanwhile.
    know(pins)
}

/// Sets the bits of all connections.
pub(crate) fn know(pins: &Pins) -> Result<(), Error> {
    let flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS)?;
    let words = known_words(pins)?;
    for (word, bit) in flows.keys().filter_map(Result::ok).filter_map(|key| bit(&key)) {
        words.mark_long(word * 2, 1 << bit);
    }
    Ok(())
}

fn known_words(pins: &Pins) -> Result<Words, Error> {
    words(&pins.map(maps::KNOWN), known::WORDS as usize * 2, true)
}

/// The bit that says that a client's connection may be known.
fn bit(key: &FlowKey) -> Option<(usize, u32)> {
    (key.kind == FlowKind::Service as u8).then(|| {
        let (word, bit) = known::place(known::trace(key));
        (word as usize, bit)
    })
}

/// Takes the ports that known connections have, for a map that says of none that it is taken.
pub(crate) fn take_ports(pins: &Pins) -> Result<(), Error> {
    let flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS)?;
    let taken = Taken::open(pins)?;
    for key in flows.keys().filter_map(Result::ok).filter(|key| key.kind == FlowKind::MasqueradeReply as u8) {
        taken.take(&key);
    }
    Openings::open(pins)?.waiting().for_each(|opened| taken.take(&opened.reply));
    Ok(())
}

/// The ports that masqueraded connections have.
pub(crate) struct Taken {
    words: Words,
    first: u16,
}

impl Taken {
    fn open(pins: &Pins) -> Result<Taken, Error> {
        let settings: Array<MapData, Settings> = typed(pins, maps::SETTINGS)?;
        let settings = settings.get(&0, 0).map_err(|error| Error::ebpf("read the settings", error))?;
        let words = words(&pins.map(maps::PORTS), (ports::ROWS * ports::ROW * 2) as usize, true)?;
        Ok(Taken { words, first: settings.source_port_first })
    }

    pub(crate) fn give_back(&self, reply: &FlowKey) {
        let Some((row, number)) = self.place(reply) else { return };
        // The port first: a group that is said to have room has it.
        for (word, bit) in [ports::place(row, number), (row, ports::group(number))] {
            self.words.clear_long(word as usize * 2, 1 << bit);
        }
    }

    /// A group that is full by that is found to be full by who looks into it.
    fn take(&self, reply: &FlowKey) {
        let Some((row, number)) = self.place(reply) else { return };
        let (word, bit) = ports::place(row, number);
        self.words.mark_long(word as usize * 2, 1 << bit);
    }

    fn place(&self, reply: &FlowKey) -> Option<(u32, u32)> {
        let number = u16::from_be(reply.destination_port).checked_sub(self.first)?;
        Some((ports::row(&reply.source, reply.source_port, reply.protocol), number.into()))
    }
}

/// Has this direction ended? Both directions of a flow always get the same answer, as both look at both.
fn over(key: &FlowKey, flow: &Flow, other: Option<&Flow>, now: u32) -> bool {
    let seen = other.map_or(flow.seen, |other| flow.seen.max(other.seen));
    let quiet = now.saturating_sub(seen);
    let Some(other) = other.filter(|other| other.other == *key) else {
        // Half a flow: being made just now, or left over.
        return quiet > idle::OTHER;
    };
    if flow.other == *key {
        return quiet > alone(key.protocol, flow);
    }
    let flags = flow.flags | other.flags;
    let both = |bit: u16| flow.flags & other.flags & bit != 0;
    let answered = flow.packets > 0 && other.packets > 0;
    let limit = match key.protocol {
        protocol::TCP | protocol::SCTP if flags & Flow::RST != 0 || both(Flow::FIN) => idle::TCP_CLOSED,
        protocol::TCP if answered => idle::TCP,
        protocol::TCP => idle::TCP_OPENING,
        protocol::SCTP if answered => idle::SCTP,
        protocol::UDP if answered => idle::UDP,
        _ => idle::OTHER,
    };
    quiet > limit
}

/// Seconds after which a connection has ended that is seen in one direction only.
fn alone(number: u8, flow: &Flow) -> u32 {
    match number {
        protocol::TCP | protocol::SCTP if flow.flags & (Flow::RST | Flow::FIN) != 0 => idle::TCP_CLOSED,
        protocol::TCP if flow.flags & Flow::ACKNOWLEDGED != 0 => idle::TCP,
        protocol::TCP => idle::TCP_OPENING,
        protocol::SCTP if flow.packets > ALONE => idle::SCTP,
        protocol::UDP if flow.packets > ALONE => idle::UDP,
        _ => idle::OTHER,
    }
}

/// Packets that a client sends without ever being answered, more or less.
const ALONE: u64 = 2;

/// A connection's two entries, as many as there are flows in the map.
pub(crate) fn count(pins: &Pins) -> Result<usize, Error> {
    let flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS)?;
    let original = |key: &FlowKey| key.kind == FlowKind::Service as u8 || key.kind == FlowKind::Masquerade as u8;
    Ok(flows.keys().filter_map(Result::ok).filter(original).count() + Openings::open(pins)?.waiting().count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::common::{PATIENCE, connect, isolated, service, tcp_server};
    use crate::model::Protocol;

    #[test]
    fn flows_of_the_kernel_are_swept_when_they_ended() {
        isolated("sweep::tests::flows_of_the_kernel_are_swept_when_they_ended", |place| {
            // From outside to a socket of this node, by packet.
            let mut config = place.config();
            config.cgroup = Some(place.elsewhere.clone());
            config.uplinks = crate::Uplinks::Every { except: vec![] };
            let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
            let dataplane = Dataplane::load(config).unwrap();
            tcp_server("10.1.0.1:8080");
            dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8080"])).unwrap();
            let pins = dataplane.inner.pins.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // With no flow the sweeper sleeps until the programs tell the first one.
                let mut ring = sys::watch(typed::<RingBuf<MapData>>(&pins, maps::EVENTS).unwrap()).unwrap();
                assert_eq!(sweep_aside(&dataplane).await.unwrap(), 0);
                let mut open = outside.within(|| connect("10.1.0.1:30080").unwrap());
                tokio::time::timeout(PATIENCE, ring.readable_mut()).await.unwrap().unwrap().clear_ready();
                let word: Array<MapData, u32> = typed(&pins, maps::SWEEPER).unwrap();
                assert_eq!(word.get(&0, 0).unwrap(), 1, "one event is enough");
                let now = sys::coarse_seconds();
                assert_eq!(sweep(&pins, now + idle::TCP_CLOSED + 2).unwrap(), 2, "established: it stays");
                assert!(open.alive());
                drop(open);
                let gone = || sweep(&pins, sys::coarse_seconds() + idle::TCP_CLOSED + 2).unwrap() == 0;
                let start = std::time::Instant::now();
                while !gone() && start.elapsed() < PATIENCE {
                    tokio::task::yield_now().await;
                }
                assert!(gone(), "closed by both sides: it goes");
                assert_eq!(count(&pins).unwrap(), 0);
            });
        });
    }

    #[test]
    fn ports_of_known_connections_are_taken_again() {
        isolated("sweep::tests::ports_of_known_connections_are_taken_again", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS).unwrap();
            let reply = |number: u16, kind: FlowKind| FlowKey {
                source_port: 80,
                destination_port: (61_000 + number).to_be(),
                kind: kind as u8,
                protocol: protocol::TCP,
                ..FlowKey::default()
            };
            let known = reply(70, FlowKind::MasqueradeReply);
            for key in [known, reply(71, FlowKind::ServiceReply)] {
                flows.insert(key, Flow::default(), 0).unwrap();
            }
            take_ports(pins).unwrap();
            let words = words(&pins.map(maps::PORTS), (ports::ROWS * ports::ROW * 2) as usize, true).unwrap();
            let taken =
                || (0..words.len() / 2).filter_map(|at| words.get_long(at * 2)).map(u64::count_ones).sum::<u32>();
            let (word, bit) = ports::place(ports::row(&known.source, known.source_port, known.protocol), 70);
            assert_eq!((words.get_long(word as usize * 2), taken()), (Some(1 << bit), 1));
            Taken::open(pins).unwrap().give_back(&known);
            assert_eq!(taken(), 0);
        });
    }

    #[test]
    fn strangers_are_told_from_known_connections() {
        isolated("sweep::tests::strangers_are_told_from_known_connections", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut flows: HashMap<MapData, FlowKey, Flow> = typed(pins, maps::FLOWS).unwrap();
            let now = sys::coarse_seconds();
            let mut begin = |port: u16, seen: u32| {
                let key = FlowKey { source_port: port, protocol: protocol::TCP, ..FlowKey::default() };
                flows.insert(key, Flow { other: key, seen, ..Flow::default() }, 0).unwrap();
                bit(&key).unwrap()
            };
            let (live, ended) = (begin(1, now), begin(2, now.saturating_sub(idle::TCP_OPENING + 1)));
            know(pins).unwrap();
            let words = known_words(pins).unwrap();
            let is_set = |(word, bit): (usize, u32)| words.get_long(word * 2).unwrap() >> bit & 1 == 1;
            let set =
                || (0..known::WORDS as usize).filter_map(|at| words.get_long(at * 2)).map(u64::count_ones).sum::<u32>();
            assert_eq!((set(), is_set(live), is_set(ended)), (2, true, true));
            assert_eq!(sweep(pins, now).unwrap(), 1);
            assert_eq!(set(), 2, "a few are not worth the work");
            (0..words.len()).for_each(|at| words.set(at, u32::MAX));
            assert_eq!(sweep(pins, now).unwrap(), 1);
            assert_eq!((set(), is_set(live)), (1, true));
        });
    }

    #[test]
    fn a_map_that_fills_is_looked_at_more_often() {
        let cases =
            [(0, 10, SWEEP), (0, 60, SWEEP_BUSY), (60, 70, SWEEP), (60, 111, SWEEP_BUSY), (300, 201, SWEEP_BUSY)];
        for (before, left, expected) in cases {
            assert_eq!(pause(before, left, 1000), expected, "{before} {left}");
        }
    }

    #[test]
    fn connections_seen_in_one_direction_end_by_what_the_client_sent() {
        let (fin, rst, answers) = (Flow::FIN, Flow::RST, Flow::ACKNOWLEDGED);
        let cases = [
            (protocol::TCP, 0, 9, idle::TCP_OPENING),
            (protocol::TCP, answers, 2, idle::TCP),
            (protocol::TCP, answers | fin, 9, idle::TCP_CLOSED),
            (protocol::TCP, rst, 2, idle::TCP_CLOSED),
            (protocol::UDP, 0, 1, idle::OTHER),
            (protocol::UDP, 0, 9, idle::UDP),
            (protocol::SCTP, 0, 1, idle::OTHER),
            (protocol::SCTP, 0, 9, idle::SCTP),
            (protocol::SCTP, fin, 9, idle::TCP_CLOSED),
        ];
        for (number, flags, packets, limit) in cases {
            let key = FlowKey { protocol: number, source_port: 1, ..FlowKey::default() };
            let flags = flags | Flow::ENCAPSULATED;
            let flow = Flow { other: key, flags, packets, seen: 1000, ..Flow::default() };
            assert!(!over(&key, &flow, Some(&flow), 1000 + limit), "{number} {flags} {packets}");
            assert!(over(&key, &flow, Some(&flow), 1001 + limit), "{number} {flags} {packets}");
        }
    }

    #[test]
    fn flows_end_by_protocol_and_state() {
        let (fin, rst) = (Flow::FIN, Flow::RST);
        // protocol, flags and packets of both directions, quiet seconds at which it is over.
        let cases = [
            (protocol::TCP, (0, 5), (0, 5), idle::TCP),
            (protocol::TCP, (0, 1), (0, 0), idle::TCP_OPENING),
            (protocol::TCP, (fin, 5), (fin, 5), idle::TCP_CLOSED),
            (protocol::TCP, (fin, 5), (0, 5), idle::TCP),
            (protocol::TCP, (0, 5), (rst, 5), idle::TCP_CLOSED),
            (protocol::SCTP, (0, 5), (0, 5), idle::SCTP),
            (protocol::SCTP, (0, 5), (0, 0), idle::OTHER),
            (protocol::SCTP, (fin, 5), (fin, 5), idle::TCP_CLOSED),
            (protocol::UDP, (0, 5), (0, 5), idle::UDP),
            (protocol::UDP, (0, 5), (0, 0), idle::OTHER),
            (protocol::ICMP, (0, 5), (0, 5), idle::OTHER),
        ];
        for (number, ours, theirs, limit) in cases {
            let key = FlowKey { protocol: number, source_port: 1, ..FlowKey::default() };
            let reply = FlowKey { protocol: number, source_port: 2, ..FlowKey::default() };
            let make = |(flags, packets), other| Flow { other, flags, packets, seen: 1000, ..Flow::default() };
            let (flow, other) = (make(ours, reply), make(theirs, key));
            assert!(!over(&key, &flow, Some(&other), 1000 + limit), "{number} {ours:?} {theirs:?}");
            assert!(over(&key, &flow, Some(&other), 1001 + limit), "{number} {ours:?} {theirs:?}");
            assert!(over(&reply, &other, Some(&flow), 1001 + limit));
            assert!(over(&key, &flow, None, 1001 + idle::OTHER), "half a flow");
        }
    }
}

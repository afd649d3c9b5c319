//! Figures of the node as a whole: drops, maps, masquerade ports, policies.

use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, MapData};
use sluice_ebpf_common::{Allowed, AllowedKey, Guard, Reason, Settings, maps, ports};
use sluice_metrics::Text;

use super::catalog;
use super::flows::Active;
use crate::inspect::MapRow;
use crate::lost::{self, By};
use crate::pins::Pins;
use crate::store::{descriptor, typed, words};
use crate::{Error, pace, sys};

pub(super) fn write(text: &mut Text, pins: &Pins, maps: &[MapRow], active: &Active) -> Result<(), Error> {
    drops(text, pins)?;
    let mut series = text.metric(&catalog::FLOWS);
    series.add(&["service"], active.to_services);
    series.add(&["masquerade"], active.masqueraded);
    let mut series = text.metric(&catalog::MAP_ENTRIES);
    maps.iter().for_each(|map| series.add(&[map.name], map.used));
    let mut series = text.metric(&catalog::MAP_LIMIT);
    maps.iter().for_each(|map| series.add(&[map.name], map.limit));
    let mut series = text.metric(&catalog::MAP_BOUND);
    maps.iter().for_each(|map| series.add(&[map.name], map.bound));
    masquerade(text, pins)?;
    policies(text, pins)?;
    text.single(&catalog::PACED, pace::count(pins)?);
    Ok(())
}

fn drops(text: &mut Text, pins: &Pins) -> Result<(), Error> {
    let lost = lost::all(pins)?;
    let mut series = text.metric(&catalog::DROPPED);
    for row in &lost.rows {
        let by = match row.by {
            By::Sluice => "sluice",
            By::Kernel => "kernel",
        };
        series.add(&[by, &row.reason], row.packets);
    }
    text.single(&catalog::KERNEL_REASONS, u8::from(lost.missing.is_none()));
    let counted = lost::reasons(pins)?;
    let mut series = text.metric(&catalog::NOTED);
    for reason in Reason::ALL.iter().filter(|reason| !reason.drops()) {
        series.add(&[reason.name()], counted[*reason as usize]);
    }
    let mut series = text.metric(&catalog::POLICY_DENIED);
    series.add(&["ingress"], counted[Reason::PolicyIngress as usize]);
    series.add(&["egress"], counted[Reason::PolicyEgress as usize]);
    Ok(())
}

fn masquerade(text: &mut Text, pins: &Pins) -> Result<(), Error> {
    let settings: Array<MapData, Settings> = typed(pins, maps::SETTINGS)?;
    let settings = settings.get(&0, 0).map_err(|error| Error::ebpf("read the settings", error))?;
    let all = u32::from(settings.source_port_last.saturating_sub(settings.source_port_first)) + 1;
    let words = words(&pins.map(maps::PORTS), (ports::ROWS * ports::ROW * 2) as usize, false)?;
    // The first word of a row says which groups are full.
    let taken = |row: u32| {
        let words = (1..ports::ROW).map(|word| words.get_long(((row * ports::ROW + word) * 2) as usize));
        words.map(|word| word.unwrap_or(0).count_ones()).sum::<u32>()
    };
    let taken: Vec<u32> = (0..ports::ROWS).map(taken).collect();
    text.single(&catalog::PORTS, all);
    text.single(&catalog::PORTS_USED, taken.iter().sum::<u32>());
    text.single(&catalog::PORTS_LEFT, all.saturating_sub(taken.into_iter().max().unwrap_or(0)));
    Ok(())
}

fn policies(text: &mut Text, pins: &Pins) -> Result<(), Error> {
    let guards: HashMap<MapData, u32, Guard> = typed(pins, maps::GUARDS)?;
    let (mut isolated, mut allowed) = ([0_u64; 2], [0_u64; 2]);
    for entry in guards.iter() {
        // A pod that goes meanwhile ends the walk; the next one sees the rest.
        let Ok((_, guard)) = entry else { break };
        isolated[0] += u64::from(guard.ingress != 0);
        isolated[1] += u64::from(guard.egress != 0);
    }
    if isolated != [0, 0] {
        let map = descriptor(&pins.map(maps::ALLOWED))?;
        sys::read_each(map.as_fd(), |_: AllowedKey, connection: Allowed| {
            allowed[usize::from(connection.opener == Allowed::BY_POD)] += 1;
        })
        .map_err(|error| Error::system("read what policies allowed", error))?;
    }
    for (metric, values) in [(&catalog::POLICY_PODS, isolated), (&catalog::POLICY_ALLOWED, allowed)] {
        let mut series = text.metric(metric);
        for (direction, value) in ["ingress", "egress"].into_iter().zip(values) {
            series.add(&[direction], value);
        }
    }
    Ok(())
}

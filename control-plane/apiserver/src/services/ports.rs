//! Node ports: which are free, and how servers that share a store notice each other. Every write that newly gives a port to
//! a Service renews the port's note, and none is made unless that note is as it was before the Services were read: a port
//! that another server gave out since is never given again. Notes say nothing else, so that none is ever left over.

use std::collections::BTreeSet;

use rand::Rng as _;
use serde_json::Value;

use super::{complete, held::Held};
use crate::{
    limits,
    storage::{Along, Notes, Storage},
};

/// Where the notes are.
pub(super) const NOTES: &str = "nodeports/";

/// Whether a Service needs a port that it does not hold.
pub(super) fn wanted(object: &Value, held: &Held) -> bool {
    complete::lacks_port(object) || !Held::of(object).ports.is_subset(&held.ports)
}

/// Renews the notes of ports that a Service is about to hold. Several ports share a note: a transaction has room for
/// no more than [`limits::PORT_NOTES`] of them beside a Service.
pub(super) fn take<'p>(storage: &Storage, along: &mut Along, known: &Notes, ports: impl Iterator<Item = &'p u16>) {
    let notes: BTreeSet<u16> = ports.map(|port| port % limits::PORT_NOTES).collect();
    for note in notes {
        storage.also_note(along, &format!("{NOTES}{note}"), known);
    }
}

/// A free port, from upstream's upper band first: the lower one is for those who ask for one by number.
pub(super) fn free(is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    let (first, last) = (*limits::NODE_PORTS.start(), *limits::NODE_PORTS.end());
    let reserved = ((last - first + 1) / 32).clamp(16, 128);
    let start = rand::rng().random_range(first + reserved..=last);
    (start..=last).chain(first + reserved..start).chain(first..first + reserved).find(|port| !is_taken(*port))
}

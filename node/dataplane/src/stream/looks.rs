//! What two looks at the flow table tell: connections that ended, and those that go on. Pure.

use std::collections::HashMap;

use crate::flows::{End, FlowRow};
use crate::limits::PERIOD;

use super::event::Step;

type Ends = (&'static str, End, End);

struct Kept {
    row: FlowRow,
    created: u32,
    /// When it was told of, in seconds.
    told: u32,
    /// Packets that were told.
    packets: u64,
    /// It was said to have ended.
    ended: bool,
}

/// What is remembered of the last look.
#[derive(Default)]
pub(crate) struct Looks {
    kept: HashMap<Ends, Kept>,
}

impl Looks {
    /// What is new in these rows, seen at `now` (seconds of the coarse monotonic clock). That a connection began is told by the
    /// programs.
    pub(crate) fn look(&mut self, rows: Vec<FlowRow>, now: u32) -> Vec<(Step, FlowRow)> {
        let mut told = Vec::new();
        let mut kept = HashMap::with_capacity(rows.len());
        for row in rows {
            let ends = (row.protocol, row.client, row.destination);
            let (created, packets) = (now.saturating_sub(row.age_seconds), row.packets + row.answer_packets);
            let known = match self.kept.remove(&ends) {
                // Another connection with the same ends took its place.
                Some(other) if other.created != created => {
                    end(other, &mut told);
                    None
                }
                known => known,
            };
            // What a closing end says last may still be on its way: nothing more came since the last look.
            let quiet = known.as_ref().is_some_and(|kept| kept.row.packets + kept.row.answer_packets == packets);
            let begun = || Kept { row: row.clone(), created, told: now, packets, ended: false };
            let mut next = known.unwrap_or_else(begun);
            let ended = row.state == "reset" || row.state == "closed" && quiet;
            if ended && !next.ended {
                next.ended = true;
                told.push((Step::Last, row.clone()));
            } else if !next.ended && packets != next.packets && now.saturating_sub(next.told) >= PERIOD {
                (next.told, next.packets) = (now, packets);
                told.push((Step::Periodic, row.clone()));
            }
            next.row = row;
            kept.insert(ends, next);
        }
        self.kept.drain().for_each(|(_, gone)| end(gone, &mut told));
        self.kept = kept;
        told
    }

    /// Too many connections: nothing is remembered of any.
    pub(crate) fn forget(&mut self) {
        self.kept = HashMap::new();
    }
}

fn end(kept: Kept, told: &mut Vec<(Step, FlowRow)>) {
    if !kept.ended {
        told.push((Step::Last, kept.row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(port: u16, created: u32, now: u32, packets: u64, state: &'static str) -> FlowRow {
        let end = |port| End { address: [10, 0, 0, 1].into(), port };
        FlowRow {
            protocol: "TCP",
            client: end(port),
            destination: end(80),
            service: None,
            backend: None,
            leaves_as: None,
            direct_return: false,
            state,
            packets,
            bytes: packets * 100,
            answer_packets: 0,
            answer_bytes: 0,
            age_seconds: now - created,
            idle_seconds: 0,
        }
    }

    /// As `step port packets`.
    fn said(told: Vec<(Step, FlowRow)>) -> Vec<String> {
        let mut said: Vec<String> =
            told.iter().map(|(step, row)| format!("{} {} {}", step.name(), row.client.port, row.packets)).collect();
        said.sort();
        said
    }

    #[test]
    fn a_connection_ends_once_however_it_ends() {
        let mut looks = Looks::default();
        let mut look = |now: u32, rows: &[(u16, u32, u64, &'static str)]| {
            let rows = rows.iter().map(|(port, created, packets, state)| row(*port, *created, now, *packets, state));
            said(looks.look(rows.collect(), now))
        };
        // What is there when somebody begins to follow is told when it ends.
        assert_eq!(look(100, &[(1, 50, 5, "open"), (2, 60, 5, "open"), (3, 70, 5, "open")]), [""; 0]);
        // One closes, and its last answer is still to come; one is gone; another one is there in its place.
        assert_eq!(look(101, &[(1, 50, 8, "closed"), (3, 101, 1, "open")]), ["last 2 5", "last 3 5"]);
        assert_eq!(look(102, &[(1, 50, 9, "closed"), (3, 101, 4, "reset")]), ["last 3 4"]);
        // It is said once, and again for the next connection.
        assert_eq!(look(103, &[(1, 50, 9, "closed"), (3, 101, 4, "reset")]), ["last 1 9"]);
        assert_eq!(look(104, &[(1, 50, 9, "closed")]), [""; 0]);
        // One that began and ended between two looks; one that is gone before it was quiet.
        assert_eq!(look(105, &[(4, 104, 7, "closed"), (5, 104, 7, "closed")]), [""; 0]);
        assert_eq!(look(106, &[(4, 104, 7, "closed")]), ["last 4 7", "last 5 7"]);
    }

    #[test]
    fn a_connection_that_goes_on_is_told_now_and_then() {
        let mut looks = Looks::default();
        let mut look = |now: u32, packets: u64| said(looks.look(vec![row(1, 10, now, packets, "open")], now));
        assert_eq!(look(20, 1), [""; 0]);
        assert_eq!(look(20 + PERIOD - 1, 9), [""; 0], "too soon");
        assert_eq!(look(20 + PERIOD, 9), ["periodic 1 9"]);
        assert_eq!(look(20 + 2 * PERIOD, 9), [""; 0], "nothing happened");
        assert_eq!(look(21 + 2 * PERIOD, 10), ["periodic 1 10"]);
    }
}

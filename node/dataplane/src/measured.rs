//! What the probes measured, for people: a few words for each service port.

use std::path::Path;

use serde::Serialize;
use sluice_ebpf_common::SCHEMA;
use sluice_ebpf_common::probe::{Durations, ProbeFigures, ProbeKey};

use crate::pins::Pins;
use crate::{Error, probes};

/// TCP connections of this node's sockets and its pods to a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRow {
    /// Connections that were opened.
    pub opened: u64,
    /// Attempts that came to nothing.
    pub failed: u64,
    /// Segments that were sent again, SYNs included.
    pub retransmits: u64,
    /// Resets that came or were sent.
    pub resets: u64,
    /// From the first SYN to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Spread>,
    /// Smoothed round-trip times of connections that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Spread>,
    /// What it was made of.
    #[serde(skip)]
    pub figures: Box<Measured>,
}

/// What the programs count, to be compared with an earlier look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured(ProbeFigures);

/// TCP connections of a pod's sockets, or of the node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Index of the node's side of the pod's link, 0 for the node itself.
    pub link: u32,
    /// Connections that were taken from others.
    pub accepted: u64,
    /// Payload of connections that ended, both directions.
    pub bytes: u64,
    /// The others.
    #[serde(flatten)]
    pub tcp: TcpRow,
}

/// What was measured of pods under a pin directory, by link.
pub fn pods(pin_dir: &Path) -> Result<Vec<PodRow>, Error> {
    let row = |(key, figures): (ProbeKey, ProbeFigures)| {
        let link = if key == ProbeKey::NODE { Some(0) } else { key.pod() };
        link.map(|link| PodRow {
            link,
            accepted: figures.accepted,
            bytes: figures.sent_bytes + figures.received_bytes,
            tcp: TcpRow::of(&figures),
        })
    };
    Ok(probes::read(&Pins::new(pin_dir, SCHEMA))?.into_iter().filter_map(row).collect())
}

/// How long something took: powers of two that so many stayed below, or at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Half of them.
    pub median_microseconds: u64,
    /// 99 of 100.
    pub most_microseconds: u64,
}

impl TcpRow {
    pub(crate) fn of(figures: &ProbeFigures) -> TcpRow {
        TcpRow {
            opened: figures.connect.counts.iter().sum(),
            failed: figures.failed,
            retransmits: figures.retransmits,
            resets: figures.resets_received + figures.resets_sent,
            connect: spread(&figures.connect),
            round_trip: spread(&figures.round_trip),
            figures: Box::new(Measured(*figures)),
        }
    }

    /// What was added since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &TcpRow) -> TcpRow {
        let (after, before) = (&self.figures.0, &earlier.figures.0);
        let durations = |after: &Durations, before: &Durations| Durations {
            counts: std::array::from_fn(|at| after.counts[at].saturating_sub(before.counts[at])),
            microseconds: after.microseconds.saturating_sub(before.microseconds),
        };
        TcpRow::of(&ProbeFigures {
            connect: durations(&after.connect, &before.connect),
            round_trip: durations(&after.round_trip, &before.round_trip),
            failed: after.failed.saturating_sub(before.failed),
            retransmits: after.retransmits.saturating_sub(before.retransmits),
            resets_received: after.resets_received.saturating_sub(before.resets_received),
            resets_sent: after.resets_sent.saturating_sub(before.resets_sent),
            ..ProbeFigures::default()
        })
    }
}

fn spread(durations: &Durations) -> Option<Spread> {
    let all: u64 = durations.counts.iter().sum();
    let below = |share: u64| {
        let mut seen = 0;
        let place = durations.counts.iter().position(|count| {
            seen += count;
            seen * 100 >= all * share
        });
        1 << place.unwrap_or(0)
    };
    (all > 0).then(|| Spread { median_microseconds: below(50), most_microseconds: below(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_told_by_the_bucket_that_it_ends_in() {
        let mut figures = ProbeFigures::default();
        assert_eq!(TcpRow::of(&figures), TcpRow::default());
        figures.connect.counts[6] = 50;
        figures.connect.counts[7] = 49;
        figures.connect.counts[20] = 1;
        figures.resets_sent = 2;
        figures.resets_received = 3;
        let row = TcpRow::of(&figures);
        assert_eq!(row.connect, Some(Spread { median_microseconds: 64, most_microseconds: 128 }));
        assert_eq!((row.opened, row.resets, row.round_trip), (100, 5, None));
        figures.connect.counts[9] = 1;
        figures.resets_sent = 4;
        let more = TcpRow::of(&figures).since(&row);
        assert_eq!((more.opened, more.resets), (1, 2));
        assert_eq!(more.connect, Some(Spread { median_microseconds: 512, most_microseconds: 512 }));
    }
}

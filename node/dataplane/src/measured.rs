//! What the probes measured, for people: a few words for each service port.

use serde::Serialize;
use sluice_ebpf_common::probe::{Durations, ProbeFigures, ProbeKey};
use sluice_ebpf_common::{FrontendKey, Scope, protocol};

use crate::plan::Contents;

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
        }
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

/// The service port that was asked for, by its own address or as a node port: its number and name.
pub(crate) fn service<'a>(tables: &'a Contents, key: &ProbeKey) -> Option<(u32, &'a str)> {
    let scope = Scope::Internal as u8;
    let exact = FrontendKey { address: key.address, port: key.port, protocol: protocol::TCP, scope };
    let any = FrontendKey { address: key.address.any(), ..exact };
    let found = tables.frontends.get(&exact).or_else(|| tables.frontends.get(&any))?;
    Some((found.service, tables.names.get(&found.service)?))
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
    }
}

//! What the probes measured of TCP connections, for Services and for pods. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ebpf_common::probe::{DURATION_BUCKETS, Durations, ProbeFigures, ProbeKey};
use sluice_metrics::{Metric, OTHER, Text};

use super::{catalog, services};
use crate::limits::{TCP_POD_SERIES, TCP_SERVICE_SERIES};
use crate::model::ObjectName;
use crate::plan::Contents;
use crate::probes::plus;

/// The first bucket that is shown: what was shorter is counted in it, 16 microseconds.
const FIRST: usize = 4;
/// The last one with an upper bound: 67 seconds.
const LAST: usize = 26;

/// Upper bounds in seconds.
const BOUNDS: [f64; LAST - FIRST + 1] = {
    let mut bounds = [0.0; LAST - FIRST + 1];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = (1_u64 << (at + FIRST)) as f64 / 1e6;
        at += 1;
    }
    bounds
};

type Value = fn(&ProbeFigures) -> u64;
type Spread = fn(&ProbeFigures) -> &Durations;

/// The metrics of Services or of pods.
struct Family {
    spreads: [(&'static Metric, Spread); 2],
    values: &'static [(&'static Metric, Value)],
}

const SERVICES: Family = Family {
    spreads: [
        (&catalog::SERVICE_TCP_CONNECT, |figures| &figures.connect),
        (&catalog::SERVICE_TCP_ROUND_TRIP, |figures| &figures.round_trip),
    ],
    values: &[
        (&catalog::SERVICE_TCP_FAILED, |figures| figures.failed),
        (&catalog::SERVICE_TCP_CLOSED, ProbeFigures::closed),
        (&catalog::SERVICE_TCP_RETRANSMITS, |figures| figures.retransmits),
        (&catalog::SERVICE_TCP_SYN_RETRANSMITS, |figures| figures.syn_retransmits),
        (&catalog::SERVICE_TCP_RESETS_RECEIVED, |figures| figures.resets_received),
        (&catalog::SERVICE_TCP_RESETS_SENT, |figures| figures.resets_sent),
        (&catalog::SERVICE_TCP_SENT, |figures| figures.sent_bytes),
        (&catalog::SERVICE_TCP_RECEIVED, |figures| figures.received_bytes),
    ],
};

const PODS: Family = Family {
    spreads: [
        (&catalog::POD_TCP_CONNECT, |figures| &figures.connect),
        (&catalog::POD_TCP_ROUND_TRIP, |figures| &figures.round_trip),
    ],
    values: &[
        (&catalog::POD_TCP_ACCEPTED, |figures| figures.accepted),
        (&catalog::POD_TCP_FAILED, |figures| figures.failed),
        (&catalog::POD_TCP_CLOSED, ProbeFigures::closed),
        (&catalog::POD_TCP_RETRANSMITS, |figures| figures.retransmits),
        (&catalog::POD_TCP_SYN_RETRANSMITS, |figures| figures.syn_retransmits),
        (&catalog::POD_TCP_RESETS_RECEIVED, |figures| figures.resets_received),
        (&catalog::POD_TCP_RESETS_SENT, |figures| figures.resets_sent),
        (&catalog::POD_TCP_SENT, |figures| figures.sent_bytes),
        (&catalog::POD_TCP_RECEIVED, |figures| figures.received_bytes),
    ],
};

/// Figures by who they are of.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// By number and name of the service port.
    services: BTreeMap<u32, ([String; 3], ProbeFigures)>,
    /// By link and name of the pod; the node's own sockets have neither.
    pods: BTreeMap<u32, ([String; 2], ProbeFigures)>,
    /// What had no place of its own in the map.
    pub(super) rest: ProbeFigures,
    /// Places of those that are no more.
    pub(super) gone: BTreeSet<ProbeKey>,
}

impl Measured {
    /// Finds out whose the figures are. A pod without a name is gone unless its link is there.
    pub(super) fn new(
        all: &BTreeMap<ProbeKey, ProbeFigures>,
        tables: &Contents,
        pods: &BTreeMap<u32, ObjectName>,
        is_link: impl Fn(u32) -> bool,
    ) -> Measured {
        let mut measured = Measured::default();
        for (key, figures) in all {
            if let Some(id) = key.service() {
                let Some(name) = tables.names.get(&id) else {
                    measured.gone.insert(*key);
                    continue;
                };
                let [namespace, service, port, _] = services::labels(name, "TCP");
                measured.services.insert(id, ([namespace, service, port], *figures));
            } else if let Some(link) = key.pod() {
                match pods.get(&link) {
                    Some((namespace, name)) => {
                        measured.pods.insert(link, ([namespace.to_string(), name.to_string()], *figures));
                    }
                    // Not told yet whose it is.
                    None if is_link(link) => {}
                    None => drop(measured.gone.insert(*key)),
                }
            } else if *key == ProbeKey::NODE {
                measured.pods.insert(0, ([String::new(), String::new()], *figures));
            } else {
                measured.rest = plus(measured.rest, figures);
            }
        }
        measured
    }

    /// Writes all of it; returns how many Services and pods stand under [`OTHER`].
    pub(super) fn write(&self, text: &mut Text) -> [usize; 2] {
        let services = bounded(&self.services, &self.rest, TCP_SERVICE_SERIES);
        family(text, &SERVICES, &services);
        let pods = bounded(&self.pods, &ProbeFigures::default(), TCP_POD_SERIES);
        family(text, &PODS, &pods);
        text.single(&catalog::UNPLACED, self.rest.unplaced);
        [self.services.len().saturating_sub(TCP_SERVICE_SERIES), self.pods.len().saturating_sub(TCP_POD_SERIES)]
    }
}

/// Rows with series of their own, and one for all others if there is anything in it.
fn bounded<const N: usize>(
    all: &BTreeMap<u32, ([String; N], ProbeFigures)>,
    rest: &ProbeFigures,
    limit: usize,
) -> Vec<([String; N], ProbeFigures)> {
    let mut rows: Vec<_> = all.values().take(limit).cloned().collect();
    let beyond = all.values().skip(limit).fold(*rest, |sum, (_, figures)| plus(sum, figures));
    if beyond != ProbeFigures::default() {
        rows.push((std::array::from_fn(|_| OTHER.to_owned()), beyond));
    }
    rows
}

fn family<const N: usize>(text: &mut Text, family: &Family, rows: &[([String; N], ProbeFigures)]) {
    for (metric, spread) in family.spreads {
        let mut series = text.metric(metric);
        for (name, figures) in rows {
            let (counts, sum) = shown(spread(figures));
            series.histogram(&name.each_ref().map(String::as_str), &BOUNDS, &counts, sum);
        }
    }
    for (metric, value) in family.values {
        let mut series = text.metric(metric);
        for (name, figures) in rows {
            series.add(&name.each_ref().map(String::as_str), value(figures));
        }
    }
}

/// The map's buckets as they are shown, and the sum in seconds.
fn shown(durations: &Durations) -> ([u64; BOUNDS.len() + 1], f64) {
    let mut counts = [0; BOUNDS.len() + 1];
    for (at, count) in durations.counts.iter().enumerate().take(DURATION_BUCKETS) {
        counts[at.clamp(FIRST, LAST + 1) - FIRST] += count;
    }
    (counts, durations.microseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(connected: u64) -> ProbeFigures {
        let mut figures = ProbeFigures { unmeasured: connected, ..ProbeFigures::default() };
        figures.connect.counts[7] = connected;
        figures.connect.microseconds = connected * 100;
        figures
    }

    fn tables(services: &[u32]) -> Contents {
        let names = services.iter().map(|id| (*id, format!("shop/web{id}:main").into()));
        Contents { names: names.collect(), ..Contents::default() }
    }

    #[test]
    fn who_has_a_name_is_a_row_and_what_is_gone_is_told() {
        let tables = tables(&[5]);
        let all = [
            (ProbeKey::of_service(5), figures(5)),
            (ProbeKey::of_service(6), figures(1)),
            (ProbeKey::of_pod(7), figures(4)),
            (ProbeKey::of_pod(8), figures(1)),
            (ProbeKey::of_pod(9), figures(1)),
            (ProbeKey::NODE, figures(2)),
        ];
        let pods = [(7, ("shop".into(), "a".into()))].into();
        let measured = Measured::new(&all.into(), &tables, &pods, |link| link == 8);
        assert_eq!(measured.gone, [ProbeKey::of_service(6), ProbeKey::of_pod(9)].into());
        let mut text = Text::default();
        assert_eq!(measured.write(&mut text), [0, 0]);
        let text = text.finish();
        let web = r#"namespace="shop",service="web5",port="main""#;
        for line in [
            format!("sluice_service_tcp_connect_duration_seconds_bucket{{{web},le=\"0.000064\"}} 0"),
            format!("sluice_service_tcp_connect_duration_seconds_bucket{{{web},le=\"0.000128\"}} 5"),
            format!("sluice_service_tcp_connect_duration_seconds_sum{{{web}}} 0.0005"),
            "sluice_pod_tcp_closed_connections_total{namespace=\"shop\",pod=\"a\"} 4".to_owned(),
            "sluice_pod_tcp_closed_connections_total{namespace=\"\",pod=\"\"} 2".to_owned(),
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in\n{text}");
        }
        assert!(!text.contains("\"other\""), "{text}");
    }

    #[test]
    fn what_is_beyond_the_limit_stands_under_other() {
        let services: Vec<u32> = (1..=TCP_SERVICE_SERIES as u32 + 2).collect();
        let mut all: BTreeMap<_, _> = services.iter().map(|id| (ProbeKey::of_service(*id), figures(1))).collect();
        all.insert(ProbeKey::REST, ProbeFigures { unplaced: 9, ..figures(9) });
        let measured = Measured::new(&all, &tables(&services), &BTreeMap::new(), |_| false);
        let mut text = Text::default();
        assert_eq!(measured.write(&mut text), [2, 0]);
        let text = text.finish();
        let other = r#"namespace="other",service="other",port="other""#;
        assert!(text.contains(&format!("sluice_service_tcp_closed_connections_total{{{other}}} 11\n")), "{text}");
        assert!(text.contains("sluice_probe_unplaced_figures_total 9\n"));
    }

    #[test]
    fn no_duration_is_lost_when_it_is_shown() {
        let durations = Durations { counts: [1; DURATION_BUCKETS], microseconds: 0 };
        let (counts, _) = shown(&durations);
        assert_eq!(counts.iter().sum::<u64>(), DURATION_BUCKETS as u64);
        assert_eq!((counts[0], counts[1], counts[BOUNDS.len()]), (5, 1, 5));
        assert_eq!((BOUNDS[0], BOUNDS[16]), (0.000_016, 1.048_576));
    }
}

//! Figures of Services and their backends. Pure but for the rows that it is given.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use sluice_ebpf_common::Counters;
use sluice_metrics::{Metric, OTHER, Text};

use super::catalog;
use super::flows::Active;
use crate::inspect::ServiceRow;
use crate::limits::{BACKEND_SERIES, SERVICE_SERIES};

/// Labels of a service port.
pub(super) type Labels = [String; 4];

/// The figures of a service port or a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    counted: Counters,
    active: u64,
    backends: u64,
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        let (own, more) = (&mut self.counted, &other.counted);
        own.connections += more.connections;
        own.packets += more.packets;
        own.bytes += more.bytes;
        own.refused += more.refused;
        self.active += other.active;
        self.backends += other.backends;
    }
}

/// What was said last. Packets move from the flow cache into the counters while both are read, so that a sum may be a little
/// less than it was; said again it would look like a start from zero.
#[derive(Debug, Default)]
pub(crate) struct Said {
    services: HashMap<Labels, Counters>,
    backends: HashMap<SocketAddr, Counters>,
}

/// Splits `namespace/name:port/protocol` as the compiler makes it.
pub(super) fn labels(service: &str, protocol: &str) -> Labels {
    let (namespace, rest) = service.split_once('/').unwrap_or(("", service));
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    let port = port.split_once('/').map_or(port, |(port, _)| port);
    [namespace, name, port, protocol].map(str::to_owned)
}

/// Counters that never go back, unless they began anew: connections are counted at once and in one place.
fn steady(before: Option<&Counters>, now: Counters) -> Counters {
    match before {
        Some(before) if now.connections >= before.connections => Counters {
            connections: now.connections,
            packets: now.packets.max(before.packets),
            bytes: now.bytes.max(before.bytes),
            refused: now.refused.max(before.refused),
        },
        _ => now,
    }
}

/// Writes all of it. Those that have been there for longest have series of their own.
/// Returns how many services and backends have none.
pub(super) fn write(text: &mut Text, rows: &[ServiceRow], active: &Active, said: &mut Said) -> [usize; 2] {
    let mut services = Vec::new();
    let mut backends: BTreeMap<u32, (SocketAddr, Figures)> = BTreeMap::new();
    for row in rows {
        let labels = labels(&row.service, row.protocol);
        let ServiceRow { connections, packets, bytes, refused, .. } = *row;
        let counted = steady(said.services.get(&labels), Counters { connections, packets, bytes, refused });
        let figures = Figures { counted, active: active.of_service(row), backends: row.backends.len() as u64 };
        services.push((labels, figures));
        for backend in &row.backends {
            let end = SocketAddr::new(backend.address, backend.port);
            let counted = Counters {
                connections: backend.connections,
                packets: backend.packets,
                bytes: backend.bytes,
                refused: 0,
            };
            let counted = steady(said.backends.get(&end), counted);
            let figures = Figures { counted, active: active.of_backend(backend.id), backends: 0 };
            backends.entry(backend.id).or_insert((end, figures));
        }
    }
    said.services = services.iter().map(|(labels, figures)| (labels.clone(), figures.counted)).collect();
    said.backends = backends.values().map(|(end, figures)| (*end, figures.counted)).collect();
    let backends: Vec<([String; 1], Figures)> =
        backends.into_values().map(|(end, figures)| ([end.to_string()], figures)).collect();
    let merged = [services.len().saturating_sub(SERVICE_SERIES), backends.len().saturating_sub(BACKEND_SERIES)];
    family(text, &SERVICE_METRICS, services, SERVICE_SERIES);
    members(text, rows);
    family(text, &BACKEND_METRICS, backends, BACKEND_SERIES);
    merged
}

type Value = fn(&Figures) -> u64;

const SERVICE_METRICS: [(&Metric, Value); 6] = [
    (&catalog::SERVICE_CONNECTIONS, |figures| figures.counted.connections),
    (&catalog::SERVICE_PACKETS, |figures| figures.counted.packets),
    (&catalog::SERVICE_BYTES, |figures| figures.counted.bytes),
    (&catalog::SERVICE_REFUSED, |figures| figures.counted.refused),
    (&catalog::SERVICE_ACTIVE, |figures| figures.active),
    (&catalog::SERVICE_BACKENDS, |figures| figures.backends),
];

const BACKEND_METRICS: [(&Metric, Value); 4] = [
    (&catalog::BACKEND_CONNECTIONS, |figures| figures.counted.connections),
    (&catalog::BACKEND_PACKETS, |figures| figures.counted.packets),
    (&catalog::BACKEND_BYTES, |figures| figures.counted.bytes),
    (&catalog::BACKEND_ACTIVE, |figures| figures.active),
];

/// Writes these metrics of all rows; the figures of those beyond the limit are added up.
fn family<const N: usize>(
    text: &mut Text,
    metrics: &[(&'static Metric, Value)],
    mut rows: Vec<([String; N], Figures)>,
    limit: usize,
) {
    if rows.len() > limit {
        let mut rest = Figures::default();
        rows.drain(limit..).for_each(|(_, figures)| rest.add(&figures));
        rows.push((std::array::from_fn(|_| OTHER.to_owned()), rest));
    }
    for (metric, value) in metrics {
        let mut series = text.metric(metric);
        for (labels, figures) in &rows {
            series.add(&labels.each_ref().map(String::as_str), value(figures));
        }
    }
}

/// Which backends a Service has, as far as either has series of its own.
fn members(text: &mut Text, rows: &[ServiceRow]) {
    let mut series = text.metric(&catalog::SERVICE_BACKEND);
    let of = |row: &'_ ServiceRow| labels(&row.service, row.protocol);
    let pairs = rows.iter().take(SERVICE_SERIES).flat_map(|row| row.backends.iter().map(move |backend| (row, backend)));
    for (row, backend) in pairs.take(BACKEND_SERIES) {
        let [namespace, service, port, protocol] = of(row);
        let end = SocketAddr::new(backend.address, backend.port).to_string();
        let local = if backend.local { "true" } else { "false" };
        series.add(&[&namespace, &service, &port, &protocol, &end, local], 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::BackendRow;

    fn row(number: u32, packets: u64) -> ServiceRow {
        let backend = BackendRow {
            id: number,
            address: [10, 0, (number >> 8) as u8, number as u8].into(),
            port: 80,
            local: number == 0,
            connections: 1,
            packets,
            bytes: packets * 100,
        };
        ServiceRow {
            id: number,
            service: format!("shop/web{number}:main"),
            protocol: "TCP",
            frontends: Vec::new(),
            backends: vec![backend],
            connections: 1,
            packets,
            bytes: packets * 100,
            refused: 0,
            tcp: None,
        }
    }

    fn written(rows: &[ServiceRow], said: &mut Said) -> (String, [usize; 2]) {
        let mut text = Text::default();
        let merged = write(&mut text, rows, &Active::default(), said);
        (text.finish(), merged)
    }

    #[test]
    fn names_become_labels() {
        assert_eq!(labels("shop/web:main", "TCP"), ["shop", "web", "main", "TCP"]);
        assert_eq!(labels("kube-system/kube-dns:dns/udp", "UDP"), ["kube-system", "kube-dns", "dns", "UDP"]);
        assert_eq!(labels("?", "TCP"), ["", "?", "", "TCP"]);
    }

    #[test]
    fn what_is_beyond_the_limit_is_added_up_and_counted() {
        let rows: Vec<_> = (0..SERVICE_SERIES as u32 + 3).map(|number| row(number, 2)).collect();
        let (text, merged) = written(&rows, &mut Said::default());
        let all = r#"namespace="other",service="other",port="other",protocol="other""#;
        assert!(text.contains(&format!("sluice_service_packets_total{{{all}}} 6\n")), "{text}");
        assert_eq!(merged, [3, 0]);
        assert_eq!(
            text.lines().filter(|line| line.starts_with("sluice_service_bytes_total{")).count(),
            SERVICE_SERIES + 1
        );
    }

    #[test]
    fn counters_go_back_only_when_they_began_anew() {
        let mut said = Said::default();
        let line = |text: &str| {
            let found = text.lines().find(|line| line.starts_with("sluice_service_packets_total{"));
            found.and_then(|line| line.split(' ').next_back()?.parse::<u64>().ok())
        };
        for (packets, connections, expected) in [(10, 5, 10), (8, 5, 10), (12, 6, 12), (1, 1, 1)] {
            let row = ServiceRow { connections, ..row(0, packets) };
            assert_eq!(line(&written(&[row], &mut said).0), Some(expected));
        }
    }
}

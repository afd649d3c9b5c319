//! What happened between two looks at the kernel's counters, for each second of it. Pure.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use sluice_dataplane::{By, Drops, PodRow, ServiceRow, Spread};

/// What the counters say at one time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) services: Vec<ServiceRow>,
    pub(crate) pods: Vec<PodRow>,
    pub(crate) drops: Drops,
}

/// A Service's port, or a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rate {
    /// `namespace/name:port`, or a pod's `namespace/name`.
    pub(crate) name: String,
    /// Of a Service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<&'static str>,
    /// Connections that were sent to a backend; of a pod those that its sockets opened.
    pub(crate) connections: f64,
    /// Connections that a pod's sockets took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accepted: Option<f64>,
    /// Packets that were translated one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) packets: Option<f64>,
    /// Their bytes; of a pod the payload of connections that ended.
    pub(crate) bytes: f64,
    /// Connections that nobody took.
    pub(crate) failed: f64,
    /// Segments that were sent again.
    pub(crate) retransmits: f64,
    /// From the first SYN to the answer, of the connections that were opened meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect: Option<Spread>,
}

/// A reason for losses.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DropRate {
    pub(crate) by: By,
    pub(crate) reason: String,
    pub(crate) text: String,
    /// In a second.
    pub(crate) packets: f64,
    pub(crate) total: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rates {
    pub(crate) services: Vec<Rate>,
    pub(crate) pods: Vec<Rate>,
    pub(crate) drops: Vec<DropRate>,
}

/// The busiest first.
pub(crate) fn rates(before: &Sample, after: &Sample, took: Duration, names: &HashMap<u32, String>) -> Rates {
    let seconds = took.as_secs_f64().max(0.001);
    let per = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
    let known: HashMap<_, _> = before.services.iter().map(|row| ((row.service.as_str(), row.protocol), row)).collect();
    let mut services: Vec<Rate> = after
        .services
        .iter()
        .map(|row| {
            let earlier = known.get(&(row.service.as_str(), row.protocol));
            let of = |count: fn(&ServiceRow) -> u64| per(count(row), earlier.map_or(0, |row| count(row)));
            let tcp = row.tcp.as_ref().map(|tcp| match earlier.and_then(|row| row.tcp.as_ref()) {
                Some(earlier) => tcp.since(earlier),
                None => tcp.clone(),
            });
            let tcp = tcp.unwrap_or_default();
            Rate {
                name: row.service.clone(),
                protocol: Some(row.protocol),
                connections: of(|row| row.connections),
                accepted: None,
                packets: Some(of(|row| row.packets)),
                bytes: of(|row| row.bytes),
                failed: of(|row| row.refused) + tcp.failed as f64 / seconds,
                retransmits: tcp.retransmits as f64 / seconds,
                connect: tcp.connect,
            }
        })
        .collect();
    let known: HashMap<u32, &PodRow> = before.pods.iter().map(|row| (row.link, row)).collect();
    let mut pods: Vec<Rate> = after
        .pods
        .iter()
        .map(|row| {
            let earlier = known.get(&row.link);
            let of = |count: fn(&PodRow) -> u64| per(count(row), earlier.map_or(0, |row| count(row)));
            let tcp = earlier.map_or_else(|| row.tcp.clone(), |earlier| row.tcp.since(&earlier.tcp));
            Rate {
                name: names.get(&row.link).cloned().unwrap_or_else(|| match row.link {
                    0 => "(this node)".to_owned(),
                    link => format!("(link {link})"),
                }),
                protocol: None,
                connections: tcp.opened as f64 / seconds,
                accepted: Some(of(|row| row.accepted)),
                packets: None,
                bytes: of(|row| row.bytes),
                failed: tcp.failed as f64 / seconds,
                retransmits: tcp.retransmits as f64 / seconds,
                connect: tcp.connect,
            }
        })
        .collect();
    let busy = |rate: &Rate| rate.connections + rate.accepted.unwrap_or(0.0) + rate.packets.unwrap_or(0.0);
    for all in [&mut services, &mut pods] {
        all.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
    }
    let earlier = |by: By, reason: &str| {
        let found = before.drops.rows.iter().find(|row| row.by == by && row.reason == reason);
        found.map_or(0, |row| row.packets)
    };
    let mut drops: Vec<DropRate> = after
        .drops
        .rows
        .iter()
        .map(|row| DropRate {
            by: row.by,
            reason: row.reason.clone(),
            text: row.text.clone(),
            packets: per(row.packets, earlier(row.by, &row.reason)),
            total: row.packets,
        })
        .collect();
    drops.sort_by(|a, b| b.packets.total_cmp(&a.packets).then(b.total.cmp(&a.total)));
    Rates { services, pods, drops }
}

#[cfg(test)]
mod tests {
    use sluice_dataplane::{DropRow, TcpRow};

    use super::*;

    fn sample(accepted: u64, opened: u64, packets: u64) -> Sample {
        let tcp = TcpRow { opened, ..TcpRow::default() };
        let pod = |link, accepted| PodRow { link, accepted, bytes: accepted * 10, tcp: tcp.clone() };
        let drop = |reason: &str, packets| DropRow {
            by: By::Kernel,
            reason: reason.to_owned(),
            text: reason.to_lowercase(),
            packets,
        };
        let drops = Drops { rows: vec![drop("OLD", 900), drop("NEW", packets)], missing: None };
        Sample { services: Vec::new(), pods: vec![pod(0, 0), pod(7, accepted)], drops }
    }

    #[test]
    fn counters_become_rates_and_the_busiest_comes_first() {
        let names = HashMap::from([(7, "shop/web-1".to_owned())]);
        let rates = rates(&sample(10, 0, 5), &sample(30, 0, 9), Duration::from_secs(2), &names);
        let pods: Vec<_> = rates.pods.iter().map(|pod| (pod.name.as_str(), pod.accepted, pod.bytes)).collect();
        assert_eq!(pods, [("shop/web-1", Some(10.0), 100.0), ("(this node)", Some(0.0), 0.0)]);
        let drops: Vec<_> = rates.drops.iter().map(|drop| (drop.reason.as_str(), drop.packets, drop.total)).collect();
        assert_eq!(drops, [("NEW", 2.0, 9), ("OLD", 0.0, 900)]);
    }
}

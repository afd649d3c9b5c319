//! The connections that are translated packet by packet, as the flow table holds them: who talks to whom through which service
//! or address, how much, and in what state.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapData;
use serde::{Deserialize, Serialize};
use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{Flow, FlowKey, FlowKind, SCHEMA, ServiceName, maps, protocol};

use crate::openings::Openings;
use crate::pins::Pins;
use crate::range::unwire;
use crate::store::{decode_name, descriptor, typed};
use crate::{Error, sys};

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port; the identifier of an ICMP echo, or 0.
    pub port: u16,
}

/// A connection, seen from the end that opened it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: &'static str,
    /// Who opened it.
    pub client: End,
    /// What was asked for.
    pub destination: End,
    /// `namespace/name:port` of the service; `None` for what leaves the cluster with the node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Who answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<End>,
    /// What the packets leave the node with, if not with the client's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaves_as: Option<End>,
    /// The backend answers the client itself; its packets are not seen here.
    pub direct_return: bool,
    /// `opening`, `open`, `closing`, `closed` or `reset`; `open` for what has no connections.
    pub state: &'static str,
    /// Packets from the client. What the driver forwards is counted when a second is over.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets to the client.
    pub answer_packets: u64,
    /// Their bytes.
    pub answer_bytes: u64,
    /// Seconds since it was opened.
    pub age_seconds: u32,
    /// Seconds since its last packet.
    pub idle_seconds: u32,
}

/// The connections under a pin directory, by client.
pub fn flows(pin_dir: &Path) -> Result<Vec<FlowRow>, Error> {
    read(&Pins::new(pin_dir, SCHEMA))
}

/// All of them.
pub(crate) fn read(pins: &Pins) -> Result<Vec<FlowRow>, Error> {
    let few = read_few(pins, usize::MAX / ENTRIES)?;
    Ok(few.map(|(rows, _)| rows).unwrap_or_default())
}

/// Entries of a connection at most.
const ENTRIES: usize = 4;

/// All of them, with the time that their ages are counted to (seconds of the coarse monotonic clock); or about how many there are
/// when it is more than that.
pub(crate) fn read_few(pins: &Pins, most: usize) -> Result<Result<(Vec<FlowRow>, u32), usize>, Error> {
    let map = descriptor(&pins.map(maps::FLOWS))?;
    let mut entries: HashMap<FlowKey, Flow> = HashMap::new();
    let mut more = 0;
    sys::read_each(map.as_fd(), |key, flow| {
        if entries.len() < most * ENTRIES {
            entries.insert(key, flow);
        } else {
            more += 1;
        }
    })
    .map_err(|error| Error::system("read the flow map", error))?;
    if more > 0 {
        return Ok(Err((entries.len() + more) / 2));
    }
    entries.extend(
        Openings::open(pins)?
            .waiting()
            .map(|opened| entry(&opened))
            .filter(|(key, _)| !entries.contains_key(key))
            .collect::<Vec<_>>(),
    );
    let served: aya::maps::HashMap<MapData, u32, ServiceName> = typed(pins, maps::NAMES)?;
    let mut names: HashMap<u32, String> = HashMap::new();
    for flow in entries.values().filter(|flow| flow.service != Flow::NO_SERVICE) {
        let name = || served.get(&flow.service, 0).map_or_else(|_| "?".to_owned(), |name| decode_name(&name));
        names.entry(flow.service).or_insert_with(name);
    }
    let name = |service: u32| names.get(&service).cloned().unwrap_or_else(|| "?".to_owned());
    let now = sys::coarse_seconds();
    Ok(Ok((rows(&entries, now, name), now)))
}

fn rows(entries: &HashMap<FlowKey, Flow>, now: u32, name: impl Fn(u32) -> String) -> Vec<FlowRow> {
    let mut rows: Vec<FlowRow> = entries.iter().filter_map(|(key, flow)| row(entries, key, flow, now, &name)).collect();
    rows.sort_by_key(|row| (row.client, row.destination, row.protocol));
    rows
}

/// The client's entry that a connection will have when it is answered.
fn entry(opened: &Opened) -> (FlowKey, Flow) {
    let Opened { reply, client, service, backend, seen, bytes, .. } = *opened;
    let (address, port, flags) = (reply.source, reply.source_port, Flow::FUSED | Flow::NEEDS_SOURCE);
    let flow = Flow { other: reply, address, port, flags, service, backend, created: seen, seen, ..Flow::default() };
    (client, Flow { packets: 1, bytes: bytes.into(), ..flow })
}

/// Entries of a client's own direction make a row. The way out of a service's connection is part of its row.
fn row(
    entries: &HashMap<FlowKey, Flow>,
    key: &FlowKey,
    flow: &Flow,
    now: u32,
    name: &impl Fn(u32) -> String,
) -> Option<FlowRow> {
    let of_service = key.kind == FlowKind::Service as u8;
    let client = end(&key.source, key.source_port);
    let backend = End { address: unwire(flow.address), port: u16::from_be(flow.port) };
    let leaves_as = if of_service {
        way_out(entries, key, flow)
    } else if key.kind == FlowKind::Masquerade as u8 && flow.flags & Flow::FUSED == 0 && !continues(entries, key) {
        Some(backend)
    } else {
        return None;
    };
    let answer = entries.get(&flow.other).filter(|_| flow.other != *key).copied().unwrap_or_default();
    let seen = flow.seen.max(answer.seen);
    Some(FlowRow {
        protocol: protocol_name(key.protocol),
        client,
        destination: end(&key.destination, key.destination_port),
        service: of_service.then(|| name(flow.service)),
        backend: of_service.then_some(backend),
        leaves_as,
        direct_return: flow.flags & Flow::ENCAPSULATED != 0,
        state: state(key.protocol, flow, &answer),
        packets: flow.packets,
        bytes: flow.bytes,
        answer_packets: answer.packets,
        answer_bytes: answer.bytes,
        age_seconds: now.saturating_sub(flow.created),
        idle_seconds: now.saturating_sub(seen),
    })
}

/// What a service's packets leave with: in their own entry where both ends change at once, else in that of the way out.
fn way_out(entries: &HashMap<FlowKey, Flow>, key: &FlowKey, flow: &Flow) -> Option<End> {
    if flow.flags & Flow::FUSED != 0 {
        return Some(end(&flow.other.destination, flow.other.destination_port));
    }
    let onward =
        FlowKey { destination: flow.address, destination_port: flow.port, kind: FlowKind::Masquerade as u8, ..*key };
    let out = entries.get(&onward).filter(|_| flow.flags & Flow::NEEDS_SOURCE != 0)?;
    Some(end(&out.address, out.port))
}

/// Is it the way out of a service's connection? Its answers then have an entry towards the same client.
fn continues(entries: &HashMap<FlowKey, Flow>, key: &FlowKey) -> bool {
    entries.contains_key(&FlowKey {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        kind: FlowKind::ServiceReply as u8,
        ..*key
    })
}

pub(crate) fn end(address: &sluice_ebpf_common::Address, port: u16) -> End {
    End { address: unwire(*address), port: u16::from_be(port) }
}

pub(crate) fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "ICMP",
    }
}

fn state(number: u8, flow: &Flow, answer: &Flow) -> &'static str {
    let (either, both) = (flow.flags | answer.flags, flow.flags & answer.flags);
    if !matches!(number, protocol::TCP | protocol::SCTP) {
        "open"
    } else if either & Flow::RST != 0 {
        "reset"
    } else if both & Flow::FIN != 0 {
        "closed"
    } else if either & Flow::FIN != 0 {
        "closing"
    } else if either & Flow::ACKNOWLEDGED == 0 {
        "opening"
    } else {
        "open"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::wire;

    fn key(kind: FlowKind, from: &str, to: &str) -> FlowKey {
        let parse = |text: &str| text.parse::<std::net::SocketAddr>().map(|end| (wire(end.ip()), end.port().to_be()));
        let (Ok((source, source_port)), Ok((destination, destination_port))) = (parse(from), parse(to)) else {
            panic!("{from} {to}")
        };
        FlowKey { source, destination, source_port, destination_port, protocol: 6, kind: kind as u8, reserved: 0 }
    }

    /// An entry for packets that get this address, and its answers' key.
    fn flow(other: FlowKey, to: &str, flags: u16, packets: u64) -> Flow {
        let FlowKey { source: address, source_port: port, .. } = key(FlowKind::Service, to, to);
        Flow { other, address, port, flags, packets, bytes: packets * 100, created: 10, seen: 15, ..Flow::default() }
    }

    fn table(entries: &[(FlowKey, Flow)]) -> Vec<FlowRow> {
        rows(&entries.iter().copied().collect(), 20, |service| format!("shop/web:{service}"))
    }

    #[test]
    fn a_connection_is_one_row_however_many_entries_it_has() {
        let (client, service, pod, node) = ("192.0.2.9:5000", "10.1.0.1:30080", "10.244.1.5:80", "10.1.0.1:61000");
        let asked = key(FlowKind::Service, client, service);
        let answered = key(FlowKind::ServiceReply, pod, client);
        let onward = key(FlowKind::Masquerade, client, pod);
        let back = key(FlowKind::MasqueradeReply, pod, node);
        let rows = table(&[
            (asked, flow(answered, pod, Flow::NEEDS_SOURCE | Flow::ACKNOWLEDGED, 3)),
            (answered, flow(asked, service, Flow::ACKNOWLEDGED, 2)),
            (onward, flow(back, node, 0, 3)),
            (back, flow(onward, client, 0, 2)),
        ]);
        assert_eq!(rows.len(), 1, "{rows:?}");
        let row = &rows[0];
        assert_eq!((row.service.as_deref(), row.state), (Some("shop/web:0"), "open"));
        assert_eq!(row.leaves_as.map(|end| end.port), Some(61000));
        assert_eq!((row.packets, row.answer_packets, row.age_seconds, row.idle_seconds), (3, 2, 10, 5));
        // The driver's two entries say the same.
        let fused = [
            (asked, flow(back, pod, Flow::FUSED | Flow::NEEDS_SOURCE, 3)),
            (back, flow(asked, client, Flow::FUSED, 2)),
        ];
        let again = &table(&fused)[0];
        assert_eq!((again.leaves_as, again.backend), (row.leaves_as, row.backend));
        // So does its place before it is answered.
        let opened = Opened { reply: back, client: asked, bytes: 60, seen: 15, ..Opened::default() };
        let opening = &table(&[entry(&opened)])[0];
        assert_eq!((opening.client, opening.destination), (row.client, row.destination));
        assert_eq!((opening.leaves_as, opening.backend, opening.state), (row.leaves_as, row.backend, "opening"));
        assert_eq!((opening.packets, opening.bytes, opening.answer_packets), (1, 60, 0));
    }

    #[test]
    fn what_leaves_the_cluster_has_no_service() {
        let out = key(FlowKind::Masquerade, "10.244.0.5:1000", "192.0.2.1:443");
        let back = key(FlowKind::MasqueradeReply, "192.0.2.1:443", "10.1.0.1:61000");
        let rows = table(&[
            (out, flow(back, "10.1.0.1:61000", Flow::FIN, 1)),
            (back, flow(out, "10.244.0.5:1000", Flow::FIN, 1)),
        ]);
        assert_eq!(rows.len(), 1);
        assert_eq!((&rows[0].service, rows[0].backend, rows[0].state), (&None, None, "closed"));
        assert_eq!(rows[0].leaves_as.map(|end| end.port), Some(61000));
    }

    #[test]
    fn direct_returns_name_themselves() {
        let asked = key(FlowKind::Service, "[2001:db8::9]:5000", "[fd00::1]:80");
        let rows = table(&[(asked, flow(asked, "[fd44::5]:8080", Flow::ENCAPSULATED | Flow::RST, 4))]);
        assert_eq!((rows[0].direct_return, rows[0].answer_packets, rows[0].state), (true, 0, "reset"));
    }
}

//! What followers are told, as it is written: one JSON object a line, and what of it somebody wants.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::flows::End;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A connection began.
    First,
    /// It goes on.
    Periodic,
    /// It ended.
    Last,
    /// It was asked for in vain.
    Failed,
    /// A pod's network policies allowed it.
    Allowed,
    /// Nobody can answer it.
    Refused,
    /// A packet was lost.
    Drop,
    /// Events were not told.
    Lost,
}

impl Step {
    /// What became of it.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Step::First | Step::Periodic | Step::Last => Some(Verdict::Forwarded),
            Step::Allowed => Some(Verdict::Allowed),
            Step::Failed => Some(Verdict::Failed),
            Step::Refused => Some(Verdict::Refused),
            Step::Drop => Some(Verdict::Dropped),
            Step::Lost => None,
        }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Step::First => "first",
            Step::Periodic => "periodic",
            Step::Last => "last",
            Step::Failed => "failed",
            Step::Allowed => "allowed",
            Step::Refused => "refused",
            Step::Drop => "drop",
            Step::Lost => "lost",
        }
    }
}

/// What became of a connection or packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes its way.
    Forwarded,
    /// Network policies let it pass.
    Allowed,
    /// The other end did not take it.
    Failed,
    /// No endpoint answers for the Service.
    Refused,
    /// It was dropped.
    Dropped,
}

impl Verdict {
    const ALL: [(&'static str, Verdict); 5] = [
        ("forwarded", Verdict::Forwarded),
        ("allowed", Verdict::Allowed),
        ("failed", Verdict::Failed),
        ("refused", Verdict::Refused),
        ("dropped", Verdict::Dropped),
    ];
}

/// Who saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// The socket that opened the connection.
    Client,
    /// The socket that took it.
    Server,
    /// The programs on links: it is translated packet by packet, or was lost.
    Packets,
    /// The kernel, which dropped it.
    Kernel,
}

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Address and port.
    #[serde(flatten)]
    pub end: End,
    /// `namespace/name` of the pod that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// When this node's daemon was told.
    pub time: Timestamp,
    /// The node.
    pub node: String,
    /// What happened.
    pub event: Step,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why: of a loss one of the reasons of `sluice drops`; of events that were not told `rate`, `ring`, `table` or `reader`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Who saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_by: Option<Seen>,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Who opened the connection, or sent the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Party>,
    /// Who was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Party>,
    /// `namespace/name:port` of the Service that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Party>,
    /// What the packets leave the node with, if not with the source's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_as: Option<End>,
    /// What it carried so far, or measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// Of events that were not told: how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// Figures of a connection; those that are not known are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// Packets from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes from the client: of packets, or of payload where a socket tells. Of a loss the packet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Packets to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_packets: Option<u64>,
    /// Bytes to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_bytes: Option<u64>,
    /// Seconds since it was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u32>,
    /// Microseconds from the first SYN to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_microseconds: Option<u64>,
    /// Microseconds of a round trip, smoothed, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_microseconds: Option<u64>,
}

impl FlowEvent {
    /// An event that says nothing yet but what happened.
    pub(crate) fn new(node: &str, event: Step) -> FlowEvent {
        FlowEvent {
            time: Timestamp::now(),
            node: node.to_owned(),
            event,
            verdict: event.verdict(),
            reason: None,
            text: None,
            seen_by: None,
            protocol: None,
            source: None,
            destination: None,
            service: None,
            backend: None,
            leaves_as: None,
            figures: Figures::default(),
            lost: None,
        }
    }

    /// So many events were not told.
    pub(crate) fn lost(node: &str, why: &str, count: u64) -> FlowEvent {
        FlowEvent { reason: Some(why.to_owned()), lost: Some(count), ..FlowEvent::new(node, Step::Lost) }
    }

    fn parties(&self) -> impl Iterator<Item = &Party> {
        [&self.source, &self.destination, &self.backend].into_iter().flatten()
    }

    fn ends(&self) -> impl Iterator<Item = End> {
        self.parties().map(|party| party.end).chain(self.leaves_as)
    }
}

/// What somebody wants to see; everything by default. Several wishes have to be met at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    /// `namespace/name` of a pod at any end, or a name of any namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// A namespace of a pod at any end, or of the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `namespace/name` of the Service, or a name of any namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// A port at any end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A protocol by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// An address at any end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Filter {
    /// Sets a wish by name, as a request or a command line says it.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the value, or that there is no such wish.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned());
        match name {
            "pod" => self.pod = text(),
            "namespace" => self.namespace = text(),
            "service" => self.service = text(),
            "verdict" => {
                let found = Verdict::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
                let names = || Verdict::ALL.map(|(name, _)| name).join(", ");
                let found = found.ok_or_else(|| format!("verdict: \"{value}\" is none of {}", names()))?;
                self.verdict = Some(found.1);
            }
            "port" => {
                self.port = Some(value.parse().map_err(|_| format!("port: \"{value}\" is not a port number"))?);
            }
            "protocol" => {
                let known = ["TCP", "UDP", "SCTP", "ICMP"].iter().find(|name| name.eq_ignore_ascii_case(value));
                let known = known.ok_or_else(|| format!("protocol: \"{value}\" is none of tcp, udp, sctp, icmp"))?;
                self.protocol = Some((*known).to_owned());
            }
            "address" => {
                self.address = Some(value.parse().map_err(|_| format!("address: \"{value}\" is not an IP address"))?);
            }
            _ => return Err(format!("there is no filter \"{name}\"")),
        }
        Ok(())
    }

    /// The wishes as [`Self::set`] takes them.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let verdict = self.verdict.and_then(|wanted| Verdict::ALL.iter().find(|(_, verdict)| *verdict == wanted));
        let all = [
            ("pod", self.pod.clone()),
            ("namespace", self.namespace.clone()),
            ("service", self.service.clone()),
            ("verdict", verdict.map(|(name, _)| (*name).to_owned())),
            ("port", self.port.map(|port| port.to_string())),
            ("protocol", self.protocol.clone()),
            ("address", self.address.map(|address| address.to_string())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Is this event wanted? That others were lost concerns everybody.
    pub fn wants(&self, event: &FlowEvent) -> bool {
        let pods = || event.parties().filter_map(|party| party.pod.as_deref());
        let service = event.service.as_deref();
        let space = |full: &str| full.split_once('/').map(|(space, _)| space.to_owned());
        event.event == Step::Lost
            || self.pod.as_deref().is_none_or(|wanted| pods().any(|pod| is_named(pod, wanted)))
                && self.service.as_deref().is_none_or(|wanted| service.is_some_and(|full| is_service(full, wanted)))
                && self
                    .namespace
                    .as_ref()
                    .is_none_or(|wanted| pods().chain(service).filter_map(space).any(|space| space == *wanted))
                && self.verdict.is_none_or(|wanted| event.verdict == Some(wanted))
                && self.port.is_none_or(|wanted| event.ends().any(|end| end.port == wanted))
                && self.protocol.as_deref().is_none_or(|wanted| {
                    event.protocol.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(wanted))
                })
                && self.address.is_none_or(|wanted| event.ends().any(|end| end.address == wanted))
    }
}

/// Is `namespace/name` what was asked for: itself, or a name of any namespace?
fn is_named(full: &str, wanted: &str) -> bool {
    full == wanted || !wanted.contains('/') && full.split_once('/').is_some_and(|(_, name)| name == wanted)
}

/// Is `namespace/name:port` of the Service that was asked for, which may be a name of any namespace?
pub fn is_service(full: &str, wanted: &str) -> bool {
    is_named(full.rsplit_once(':').map_or(full, |(name, _)| name), wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(text: &str, pod: Option<&str>) -> Option<Party> {
        let at: std::net::SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text}"));
        Some(Party { end: End { address: at.ip(), port: at.port() }, pod: pod.map(str::to_owned) })
    }

    fn first() -> FlowEvent {
        FlowEvent {
            protocol: Some("TCP".into()),
            source: party("10.244.0.5:4000", Some("shop/web-1")),
            destination: party("10.96.0.10:80", None),
            backend: party("10.244.1.7:8080", Some("store/db-0")),
            service: Some("store/db:main".into()),
            ..FlowEvent::new("here", Step::First)
        }
    }

    #[test]
    fn an_event_is_wanted_when_every_wish_is_met() {
        let cases: &[(&[(&str, &str)], bool)] = &[
            (&[], true),
            (&[("pod", "shop/web-1")], true),
            (&[("pod", "web-1")], true),
            (&[("pod", "db-0")], true),
            (&[("pod", "store/web-1")], false),
            (&[("pod", "web")], false),
            (&[("namespace", "shop")], true),
            (&[("namespace", "store")], true),
            (&[("namespace", "sho")], false),
            (&[("service", "store/db")], true),
            (&[("service", "db")], true),
            (&[("service", "shop/db")], false),
            (&[("service", "main")], false),
            (&[("verdict", "forwarded")], true),
            (&[("verdict", "Dropped")], false),
            (&[("port", "80")], true),
            (&[("port", "8080")], true),
            (&[("port", "4000")], true),
            (&[("port", "81")], false),
            (&[("protocol", "tcp")], true),
            (&[("protocol", "UDP")], false),
            (&[("address", "10.244.1.7")], true),
            (&[("address", "10.244.1.8")], false),
            (&[("pod", "web-1"), ("port", "80"), ("verdict", "forwarded")], true),
            (&[("pod", "web-1"), ("port", "81")], false),
        ];
        for (wishes, expected) in cases {
            let mut filter = Filter::default();
            wishes.iter().for_each(|(name, value)| assert_eq!(filter.set(name, value), Ok(()), "{name}"));
            assert_eq!(filter.wants(&first()), *expected, "{wishes:?}");
            assert!(filter.wants(&FlowEvent::lost("here", "rate", 3)), "{wishes:?}");
            // As it goes over a wire.
            let mut again = Filter::default();
            filter.pairs().iter().for_each(|(name, value)| assert_eq!(again.set(name, value), Ok(())));
            assert_eq!(again, filter);
        }
    }

    #[test]
    fn wishes_that_cannot_be_met_are_refused() {
        let cases = [
            ("port", "http", "port: \"http\" is not a port number"),
            ("port", "70000", "port: \"70000\" is not a port number"),
            ("address", "10.0.0", "address: \"10.0.0\" is not an IP address"),
            ("protocol", "quic", "protocol: \"quic\" is none of tcp, udp, sctp, icmp"),
            ("verdict", "lost", "verdict: \"lost\" is none of forwarded, allowed, failed, refused, dropped"),
            ("color", "red", "there is no filter \"color\""),
        ];
        for (name, value, expected) in cases {
            assert_eq!(Filter::default().set(name, value), Err(expected.to_owned()));
        }
    }

    #[test]
    fn an_event_is_one_object_without_what_is_not_known() {
        let mut event = first();
        event.time = Timestamp::UNIX_EPOCH;
        event.figures.connect_microseconds = Some(120);
        let text = serde_json::to_string(&event).unwrap_or_default();
        assert_eq!(
            text,
            concat!(
                r#"{"time":"1970-01-01T00:00:00Z","node":"here","event":"first","verdict":"forwarded","protocol":"TCP","#,
                r#""source":{"address":"10.244.0.5","port":4000,"pod":"shop/web-1"},"#,
                r#""destination":{"address":"10.96.0.10","port":80},"service":"store/db:main","#,
                r#""backend":{"address":"10.244.1.7","port":8080,"pod":"store/db-0"},"connectMicroseconds":120}"#
            )
        );
        assert_eq!(serde_json::from_str::<FlowEvent>(&text).ok(), Some(event));
    }
}

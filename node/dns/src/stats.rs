//! What the server did, counted where it answers, and the same as metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use sluice_metrics::{Histogram, Metric, OTHER, Text};

/// From a tenth of a millisecond, for what is known here, to what no client waits for.
const BOUNDS: &[f64] = &[0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

const REQUESTS: Metric = Metric::counter(
    "sluice_dns_requests_total",
    &["protocol"],
    "Requests that the node's DNS server read, by what carried them.",
);
const RESPONSES: Metric = Metric::counter(
    "sluice_dns_responses_total",
    &["rcode"],
    "Responses that the node's DNS server sent, by their code.",
);
const ANSWERS: Metric = Metric::counter(
    "sluice_dns_answers_total",
    &["source"],
    "Requests by who knew the answer: the cluster's zone, an upstream server (or what it said before), nobody.",
);
const DROPPED: Metric = Metric::counter(
    "sluice_dns_dropped_requests_total",
    &[],
    "Requests that were not answered, or turned away, because a limit was reached.",
);
const DURATION: Metric = Metric::histogram(
    "sluice_dns_request_duration_seconds",
    &["source"],
    "From reading a request to its answer: of what was known on the node, and of what an upstream server was asked.",
);

/// Every metric of DNS.
pub const METRICS: &[&Metric] = &[&REQUESTS, &RESPONSES, &ANSWERS, &DROPPED, &DURATION];

/// Codes with a series of their own, by the names that tools print.
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
];

/// What carried a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// Who was asked for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nobody,
    Upstream,
}

/// What the server did since it started.
#[derive(Debug)]
pub struct Stats {
    /// Answered from the cluster's zone.
    pub cluster: AtomicU64,
    /// Answered by upstream servers, or from what they said before.
    pub forwarded: AtomicU64,
    /// Answered with REFUSED, SERVFAIL or FORMERR.
    pub failed: AtomicU64,
    /// Not answered at all, or turned away, because a limit was reached.
    pub dropped: AtomicU64,
    requests: [AtomicU64; 2],
    /// By code; the last one is for all others.
    codes: [AtomicU64; CODES.len() + 1],
    known: Histogram,
    asked: Histogram,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            cluster: AtomicU64::default(),
            forwarded: AtomicU64::default(),
            failed: AtomicU64::default(),
            dropped: AtomicU64::default(),
            requests: Default::default(),
            codes: Default::default(),
            known: Histogram::new(BOUNDS),
            asked: Histogram::new(BOUNDS),
        }
    }
}

impl Stats {
    /// Requests read.
    pub fn requests(&self) -> u64 {
        self.requests.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn requested(&self, by: Carrier) {
        self.requests[by as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A request that was read at that time is answered now.
    pub(crate) fn answered(&self, code: ResponseCode, asked: Asked, read: Instant) {
        let place = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        self.codes[place].fetch_add(1, Ordering::Relaxed);
        let durations = match asked {
            Asked::Nobody => &self.known,
            Asked::Upstream => &self.asked,
        };
        durations.observe(read.elapsed());
    }

    /// Writes every metric of [`METRICS`].
    pub fn write_metrics(&self, text: &mut Text) {
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut series = text.metric(&REQUESTS);
        for (carrier, count) in ["udp", "tcp"].into_iter().zip(&self.requests) {
            series.add(&[carrier], value(count));
        }
        let mut series = text.metric(&RESPONSES);
        for (code, count) in CODES.iter().map(|(_, name)| *name).chain([OTHER]).zip(&self.codes) {
            series.add(&[code], value(count));
        }
        let mut series = text.metric(&ANSWERS);
        for (source, count) in [("cluster", &self.cluster), ("upstream", &self.forwarded), ("none", &self.failed)] {
            series.add(&[source], value(count));
        }
        text.single(&DROPPED, value(&self.dropped));
        let mut series = text.metric(&DURATION);
        self.known.write(&mut series, &["node"]);
        self.asked.write(&mut series, &["upstream"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_written() {
        assert_eq!(sluice_metrics::lint(METRICS), Vec::<String>::new());
        let stats = Stats::default();
        stats.requested(Carrier::Udp);
        stats.requested(Carrier::Tcp);
        stats.answered(ResponseCode::NXDomain, Asked::Nobody, Instant::now());
        stats.answered(ResponseCode::NotAuth, Asked::Upstream, Instant::now());
        let mut text = Text::default();
        stats.write_metrics(&mut text);
        let text = text.finish();
        for line in [
            "sluice_dns_requests_total{protocol=\"tcp\"} 1",
            "sluice_dns_responses_total{rcode=\"NXDOMAIN\"} 1",
            "sluice_dns_responses_total{rcode=\"other\"} 1",
            "sluice_dns_responses_total{rcode=\"NOERROR\"} 0",
            "sluice_dns_request_duration_seconds_count{source=\"node\"} 1",
            "sluice_dns_request_duration_seconds_count{source=\"upstream\"} 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in\n{text}");
        }
        assert_eq!(stats.requests(), 2);
    }
}

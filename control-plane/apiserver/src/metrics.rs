//! The server's own numbers, in Prometheus' text format: a small registry with bounded label sets,
//! owned by the pipeline (no globals).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::limits;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// What one request was, as far as metrics care.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) scope: &'static str,
}

#[derive(Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(Series, u16), u64>>,
    latency: Mutex<BTreeMap<Series, Latency>>,
    watches: Mutex<BTreeMap<(String, String), i64>>,
    pub(crate) reading: AtomicI64,
    pub(crate) writing: AtomicI64,
    pub(crate) rejected: AtomicU64,
    pub(crate) watch_events: AtomicU64,
}

impl Metrics {
    /// Counts one answered request; `took` is `None` for watches and streams.
    pub(crate) fn request(&self, series: Series, code: u16, took: Option<Duration>) {
        if let Some(took) = took {
            let mut latency = self.latency.lock();
            let series = bounded(latency.len(), latency.contains_key(&series), &series);
            let entry = latency.entry(series).or_default();
            entry.count += 1;
            entry.seconds += took.as_secs_f64();
            for (bucket, bound) in entry.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(took.as_secs_f64() <= bound);
            }
        }
        let mut requests = self.requests.lock();
        let known = requests.contains_key(&(series.clone(), code));
        let series = bounded(requests.len(), known, &series);
        *requests.entry((series, code)).or_default() += 1;
    }

    /// One more (or less) open watch of a resource.
    pub(crate) fn watch(&self, group: &str, resource: &str, change: i64) {
        let key = (group.to_owned(), resource.to_owned());
        *self.watches.lock().entry(key).or_default() += change;
    }

    /// The text of `/metrics`; `gauges` are the store's current numbers.
    pub(crate) fn render(&self, gauges: &[(&str, &str, i64)]) -> String {
        let mut out = String::new();
        head(&mut out, "apiserver_request_total", "counter", "Requests by what they asked for and the answer's code.");
        for ((series, code), count) in self.requests.lock().iter() {
            let _ = writeln!(out, "apiserver_request_total{{{},code=\"{code}\"}} {count}", labels(series));
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "histogram", "How long answers took, watches and streams apart.");
        for (series, latency) in self.latency.lock().iter() {
            let labels = labels(series);
            for (bound, count) in BUCKETS.iter().zip(latency.buckets) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", latency.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", latency.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", latency.count);
        }
        let name = "apiserver_current_inflight_requests";
        head(&mut out, name, "gauge", "Requests running now, watches and streams apart.");
        for (kind, gauge) in [("readOnly", &self.reading), ("mutating", &self.writing)] {
            let _ = writeln!(out, "{name}{{request_kind=\"{kind}\"}} {}", gauge.load(Ordering::Relaxed));
        }
        let name = "apiserver_registered_watchers";
        head(&mut out, name, "gauge", "Open watches.");
        for ((group, resource), count) in self.watches.lock().iter() {
            let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{resource}\"}} {count}");
        }
        for (name, help, counter) in [
            (
                "apiserver_requests_rejected_total",
                "Requests answered 429 because too many were running.",
                &self.rejected,
            ),
            ("apiserver_watch_events_total", "Events sent to watches.", &self.watch_events),
        ] {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", counter.load(Ordering::Relaxed));
        }
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

/// The series itself while there is room, else the one that counts all others.
fn bounded(len: usize, known: bool, series: &Series) -> Series {
    if known || len < limits::METRIC_SERIES {
        return series.clone();
    }
    let other = || "other".to_owned();
    Series { verb: other(), group: other(), version: other(), resource: other(), subresource: String::new(), scope: "" }
}

pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labels(s: &Series) -> String {
    format!(
        "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\",scope=\"{}\"",
        s.verb, s.group, s.version, s.resource, s.subresource, s.scope
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(resource: &str) -> Series {
        Series {
            verb: "get".into(),
            group: String::new(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: String::new(),
            scope: "namespace",
        }
    }

    #[test]
    fn requests_are_counted_by_code_and_latency() {
        let metrics = Metrics::default();
        metrics.request(series("pods"), 200, Some(Duration::from_millis(3)));
        metrics.request(series("pods"), 404, Some(Duration::from_secs(2)));
        let text = metrics.render(&[("sluice_store_revision", "Newest revision.", 7)]);
        for line in [
            "apiserver_request_total{verb=\"get\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"namespace\",code=\"404\"} 1",
            "scope=\"namespace\",le=\"0.001\"} 0",
            "scope=\"namespace\",le=\"0.005\"} 1",
            "scope=\"namespace\",le=\"+Inf\"} 2",
            "sluice_store_revision 7",
        ] {
            assert!(text.contains(line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = Metrics::default();
        for i in 0..limits::METRIC_SERIES + 100 {
            metrics.request(series(&format!("r{i}")), 200, None);
        }
        assert_eq!(metrics.requests.lock().len(), limits::METRIC_SERIES + 1);
    }
}

//! What `promtool check metrics` would find fault with, and a little more: for the tests of whoever has a table of metrics.

use crate::{Kind, Metric};

/// Gauges that upstream calls so.
const UPSTREAMS: &[&str] = &["kubeproxy_sync_proxy_rules_no_local_endpoints_total"];

/// Units that a name may end with before `_total`, and no others of their kind.
const FOREIGN_UNITS: &[&str] =
    &["milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "kilobytes", "megabytes", "percent"];

/// Faults of a table of metrics; empty when there are none.
#[must_use]
pub fn lint(metrics: &[&Metric]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, metric) in metrics.iter().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{}: {what}", metric.name));
        if metrics[..at].iter().any(|earlier| earlier.name == metric.name) {
            fault("described twice");
        }
        if !is_snake(metric.name) {
            fault("not in lower case with underscores");
        }
        let total = metric.name.ends_with("_total") && !UPSTREAMS.contains(&metric.name);
        if total != (metric.kind == Kind::Counter) {
            fault("counters end with _total, and nothing else does");
        }
        let ends = ["_count", "_sum", "_bucket", "_info"];
        if ends.iter().any(|end| metric.name.ends_with(end)) {
            fault("ends as a part of a histogram does");
        }
        if metric.kind == Kind::Histogram && !["_seconds", "_bytes"].iter().any(|unit| metric.name.ends_with(unit)) {
            fault("a histogram names its unit");
        }
        if metric.name.split('_').any(|word| FOREIGN_UNITS.contains(&word)) {
            fault("not in a base unit");
        }
        if metric.name.split('_').any(|word| ["counter", "gauge", "histogram"].contains(&word)) {
            fault("names its kind");
        }
        if !metric.help.ends_with('.') || metric.help.contains('\n') || metric.help.contains('\\') {
            fault("its help is no sentence on one line");
        }
        if metric.labels.iter().any(|label| !is_snake(label) || ["le", "quantile", "job", "instance"].contains(label)) {
            fault("a label's name means something else");
        }
    }
    faults
}

fn is_snake(name: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(known) && !name.contains("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_can_be_broken() {
        let good = Metric::counter("a_bytes_total", &["x"], "Bytes of a.");
        assert_eq!(lint(&[&good]), Vec::<String>::new());
        for bad in [
            Metric { name: "a_bytes", ..good },
            Metric { name: "aBytes_total", ..good },
            Metric { name: "a_milliseconds_total", ..good },
            Metric { name: "a_counter_total", ..good },
            Metric { help: "Bytes of a", ..good },
            Metric { labels: &["le"], ..good },
            Metric { name: "a_count", kind: Kind::Gauge, ..good },
            Metric { name: "a", kind: Kind::Histogram, ..good },
        ] {
            assert_eq!(lint(&[&bad]).len(), 1, "{bad:?}");
        }
        assert_eq!(lint(&[&good, &good]).len(), 1);
    }
}

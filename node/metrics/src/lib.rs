//! Metrics in Prometheus' text format: what they are called, what they mean, and writing them. Pure; whoever has numbers
//! describes them by a table of [`Metric`] and writes them into a [`Text`] when somebody asks.
//!
//! Invariants: there is no registry and no global; a metric is written with exactly the labels that its description names.

mod histogram;
mod lint;

use std::fmt::{Display, Write as _};

pub use histogram::Histogram;
pub use lint::lint;

/// What `/metrics` is sent as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In place of the names of what has no series of its own.
pub const OTHER: &str = "other";

/// A metric's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until its source starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// As the text format writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, unit included.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Names of its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// A sentence.
    pub help: &'static str,
}

impl Metric {
    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
        Metric { name, kind: Kind::Counter, labels, help }
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
        Metric { name, kind: Kind::Gauge, labels, help }
    }

    /// A histogram.
    #[must_use]
    pub const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
        Metric { name, kind: Kind::Histogram, labels, help }
    }
}

/// The text that is being written.
#[derive(Clone, Debug, Default)]
pub struct Text {
    out: String,
}

impl Text {
    /// Begins a metric; all its series have to follow before the next one begins.
    pub fn metric(&mut self, metric: &'static Metric) -> Series<'_> {
        let (name, kind) = (metric.name, metric.kind.name());
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help);
        Series { out: &mut self.out, metric }
    }

    /// A metric without labels.
    pub fn single(&mut self, metric: &'static Metric, value: impl Display) {
        self.metric(metric).add(&[], value);
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> String {
        self.out
    }
}

/// The series of one metric.
#[derive(Debug)]
pub struct Series<'a> {
    out: &'a mut String,
    metric: &'static Metric,
}

impl Series<'_> {
    /// Writes the series with these values of the metric's labels.
    pub fn add(&mut self, labels: &[&str], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Writes a histogram: upper bounds in ascending order, with how many fell between each and the one before; what is above
    /// all of them stands last.
    pub fn histogram(&mut self, labels: &[&str], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            total += count;
            self.line("_bucket", labels, Some(&bound.to_string()), total);
        }
        total += counts.get(bounds.len()).copied().unwrap_or(0);
        self.line("_bucket", labels, Some("+Inf"), total);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: impl Display) {
        debug_assert_eq!(labels.len(), self.metric.labels.len(), "{}", self.metric.name);
        let _ = write!(self.out, "{}{suffix}", self.metric.name);
        let named = self.metric.labels.iter().copied().zip(labels.iter().copied());
        let mut separator = '{';
        for (name, value) in named.chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.out, "{separator}{name}=\"");
            escape(self.out, value);
            self.out.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// Writes a label's value as the text format wants it.
fn escape(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Metric = Metric::gauge("a_bytes", &[], "How long a is.");
    const LABELLED: Metric = Metric::counter("b_total", &["x", "y"], "How often b was.");
    const SPREAD: Metric = Metric::histogram("c_seconds", &["x"], "How long c took.");

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut text = Text::default();
        text.single(&PLAIN, 3);
        let mut series = text.metric(&LABELLED);
        series.add(&["1", "a \"b\" \\ \n"], 7);
        series.add(&["2", ""], 8);
        text.metric(&SPREAD).histogram(&["z"], &[0.000_016, 1.0], &[2, 1, 4], 9.5);
        assert_eq!(
            text.finish(),
            "# HELP a_bytes How long a is.\n# TYPE a_bytes gauge\na_bytes 3\n\
             # HELP b_total How often b was.\n# TYPE b_total counter\n\
             b_total{x=\"1\",y=\"a \\\"b\\\" \\\\ \\n\"} 7\nb_total{x=\"2\",y=\"\"} 8\n\
             # HELP c_seconds How long c took.\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{x=\"z\",le=\"0.000016\"} 2\nc_seconds_bucket{x=\"z\",le=\"1\"} 3\n\
             c_seconds_bucket{x=\"z\",le=\"+Inf\"} 7\nc_seconds_sum{x=\"z\"} 9.5\nc_seconds_count{x=\"z\"} 7\n"
        );
    }
}

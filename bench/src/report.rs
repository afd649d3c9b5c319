//! What a bench found, as a table for people and as one JSON document for programs. Pure.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    stats::{percentile, sorted},
};

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
}

impl Row {
    /// `None` without values: nothing was measured.
    pub(crate) fn of(name: &str, unit: &str, values: &[f64]) -> Option<Self> {
        let all = sorted(values);
        Some(Self {
            name: name.into(),
            unit: unit.into(),
            p50: percentile(&all, 50.0)?,
            p99: percentile(&all, 99.0)?,
            min: *all.first()?,
            max: *all.last()?,
            n: all.len(),
        })
    }
}

/// What a goal allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    Below(f64),
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::Below(limit) => value < limit,
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn text(self, unit: &str) -> String {
        let (sign, limit) = match self {
            Self::Below(limit) => ("<", limit),
            Self::AtMost(limit) => ("<=", limit),
            Self::AtLeast(limit) => (">=", limit),
        };
        format!("{sign} {limit} {unit}").trim_end().to_owned()
    }
}

/// A goal and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) name: String,
    /// With its unit, which is the value's too.
    pub(crate) goal: String,
    /// Absent when it could not be measured, which is no success.
    pub(crate) value: Option<f64>,
    pub(crate) met: bool,
}

impl Goal {
    pub(crate) fn new(name: &str, bound: Bound, unit: &str, value: Option<f64>) -> Self {
        let met = value.is_some_and(|value| bound.holds(value));
        Self { name: name.into(), goal: bound.text(unit), value, met }
    }
}

/// Results on their way to a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) results: Vec<Row>,
    pub(crate) goals: Vec<Goal>,
    /// What a reader has to know: what was not measured and why, what else ran.
    pub(crate) notes: Vec<String>,
}

impl Measured {
    /// Adds a quantity; one without values is left out.
    pub(crate) fn row(&mut self, name: &str, unit: &str, values: &[f64]) {
        self.results.extend(Row::of(name, unit, values));
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The median of a quantity.
    pub(crate) fn p50(&self, name: &str) -> Option<f64> {
        self.results.iter().find(|row| row.name == name).map(|row| row.p50)
    }
}

/// The document of one bench.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    pub(crate) machine: Machine,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

impl Report {
    /// A short table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let names = self.measured.results.iter().map(|row| &row.name);
        let width = names.chain(self.measured.goals.iter().map(|goal| &goal.name)).map(|name| name.chars().count());
        let width = width.max().unwrap_or(0).max(4);
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{}: {}", self.bench, self.machine.line());
        let _ = writeln!(
            out,
            "\n{:<width$}  {:>10} {:>10} {:>10} {:>10} {:>7}  unit",
            "result", "p50", "p99", "min", "max", "n"
        );
        for row in &self.measured.results {
            let [p50, p99, min, max] = [row.p50, row.p99, row.min, row.max].map(figure);
            let _ = writeln!(
                out,
                "{:<width$}  {p50:>10} {p99:>10} {min:>10} {max:>10} {:>7}  {}",
                row.name, row.n, row.unit
            );
        }
        let _ = writeln!(out, "\n{:<width$}  {:>14} {:>10}  met", "goal", "", "value");
        for goal in &self.measured.goals {
            let value = goal.value.map_or_else(|| "-".to_owned(), figure);
            let met = if goal.met { "yes" } else { "NO" };
            let _ = writeln!(out, "{:<width$}  {:>14} {value:>10}  {met}", goal.name, goal.goal);
        }
        for note in &self.measured.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }
}

/// About three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut measured = Measured::default();
        measured.row("start", "ms", &[400.0, 500.0, 450.0]);
        measured.row("nothing", "ms", &[]);
        measured.goals.push(Goal::new("start", Bound::Below(1000.0), "ms", measured.p50("start")));
        measured.goals.push(Goal::new("unknown", Bound::AtLeast(0.97), "", measured.p50("nothing")));
        measured.note("one note");
        Report {
            bench: "startup",
            machine: Machine { cpus: 2, memory: 8 << 30, kernel: "6.1".into(), load: 0.5 },
            measured,
        }
    }

    #[test]
    fn goals_hold_at_their_bounds() {
        let check =
            |bound, value, met| assert_eq!(Goal::new("x", bound, "", Some(value)).met, met, "{bound:?} {value}");
        check(Bound::Below(1.0), 1.0, false);
        check(Bound::Below(1.0), 0.999, true);
        check(Bound::AtMost(1.3), 1.3, true);
        check(Bound::AtMost(1.3), 1.31, false);
        check(Bound::AtLeast(0.97), 0.97, true);
        check(Bound::AtLeast(0.97), 0.96, false);
        check(Bound::AtLeast(0.97), f64::NAN, false);
        assert!(!Goal::new("x", Bound::Below(1.0), "", None).met);
    }

    #[test]
    fn the_document_has_the_promised_fields() {
        let value = serde_json::to_value(report()).unwrap();
        assert_eq!(value["bench"], "startup");
        assert_eq!(value["machine"]["cpus"], 2);
        assert_eq!(value["machine"]["kernel"], "6.1");
        let row = serde_json::json!({
            "name": "start", "unit": "ms", "p50": 450.0, "p99": 500.0, "min": 400.0, "max": 500.0, "n": 3
        });
        assert_eq!(value["results"], serde_json::json!([row]));
        let goal = serde_json::json!({"name": "start", "goal": "< 1000 ms", "value": 450.0, "met": true});
        assert_eq!(value["goals"][0], goal);
        assert_eq!(value["goals"][1]["value"], serde_json::Value::Null);
        assert_eq!(value["goals"][1]["met"], false);
    }

    #[test]
    fn the_table_says_what_was_not_measured() {
        let table = report().table();
        let line = |begin: &str| table.lines().rfind(|line| line.starts_with(begin)).unwrap_or_default().to_owned();
        assert!(line("start").ends_with("yes"), "{table}");
        assert!(line("unknown").contains(">= 0.97          -  NO"), "{table}");
        assert_eq!(line("note"), "note: one note");
        assert!(!table.contains("nothing"), "{table}");
    }

    #[test]
    fn figures_are_short() {
        let check = |value, text: &str| assert_eq!(figure(value), text);
        check(12345.6, "12346");
        check(12.345, "12.3");
        check(1.2345, "1.23");
        check(0.98765, "0.988");
        check(-0.0123, "-0.012");
    }
}

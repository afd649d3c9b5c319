//! What a bench found, as a table for people and as one JSON document for programs. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    document::Label,
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
    /// Which of the document's subjects it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on: Option<String>,
    /// The median of each repeat, where all repeats' values are summed up in the figures above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) repeats: Vec<f64>,
    /// Percentiles (0 to 100) and values, for the plot of a distribution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) quantiles: Vec<(f64, f64)>,
    /// Where it is on a scaling curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) point: Option<Point>,
}

/// A place on a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// The curve's name.
    pub(crate) of: String,
    /// What grows along it.
    pub(crate) by: String,
    pub(crate) at: f64,
}

/// What is kept of a distribution.
const QUANTILES: [f64; 13] = [0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.9, 100.0];

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
            on: None,
            repeats: Vec::new(),
            quantiles: Vec::new(),
            point: None,
        })
    }

    /// A distribution out of several repeats; `None` without values.
    pub(crate) fn distribution(name: &str, unit: &str, repeats: &[Vec<f64>]) -> Option<Self> {
        let all = sorted(&repeats.concat());
        let quantiles = QUANTILES.iter().filter_map(|percent| Some((*percent, percentile(&all, *percent)?))).collect();
        let repeats = repeats.iter().filter_map(|values| percentile(&sorted(values), 50.0)).collect();
        Some(Self { repeats, quantiles, ..Self::of(name, unit, &all)? })
    }

    /// The same, on a curve.
    pub(crate) fn at(self, of: &str, by: &str, at: f64) -> Self {
        Self { point: Some(Point { of: of.into(), by: by.into(), at }), ..self }
    }

    /// Lowest and highest figure of a repeat: how sure the median is.
    pub(crate) fn spread(&self) -> (f64, f64) {
        if self.repeats.is_empty() {
            return (self.min, self.max);
        }
        self.repeats.iter().fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(*value), high.max(*value)))
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
    /// Which of the document's subjects it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on: Option<String>,
}

impl Goal {
    pub(crate) fn new(name: &str, bound: Bound, unit: &str, value: Option<f64>) -> Self {
        let met = value.is_some_and(|value| bound.holds(value));
        Self { name: name.into(), goal: bound.text(unit), value, met, on: None }
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

    /// Adds a quantity that is already summed up; one without values is left out.
    pub(crate) fn push(&mut self, row: Option<Row>) {
        self.results.extend(row);
    }

    /// Adds what was measured elsewhere.
    pub(crate) fn extend(&mut self, other: Self) {
        self.results.extend(other.results);
        self.goals.extend(other.goals);
        self.notes.extend(other.notes);
    }

    /// The same, as one subject's among others.
    pub(crate) fn on(mut self, subject: &str) -> Self {
        self.results.iter_mut().for_each(|row| row.on = Some(subject.to_owned()));
        self.goals.iter_mut().for_each(|goal| goal.on = Some(subject.to_owned()));
        self.notes.iter_mut().for_each(|note| *note = format!("{subject}: {note}"));
        self
    }

    /// The same, of a cluster of so many nodes: on curves by their number, and named by it unless there is one.
    pub(crate) fn of_nodes(mut self, nodes: usize) -> Self {
        let named = |name: &str| if nodes == 1 { name.to_owned() } else { format!("{nodes} nodes, {name}") };
        for row in &mut self.results {
            let name = named(&row.name);
            let of = std::mem::replace(&mut row.name, name);
            #[expect(clippy::cast_precision_loss)]
            row.point.get_or_insert(Point { of, by: "nodes".into(), at: nodes as f64 });
        }
        self.goals.iter_mut().for_each(|goal| goal.name = named(&goal.name));
        self.notes.iter_mut().for_each(|note| *note = named(note));
        self
    }

    /// The median of a quantity.
    pub(crate) fn p50(&self, name: &str) -> Option<f64> {
        self.results.iter().find(|row| row.name == name).map(|row| row.p50)
    }
}

/// The document of one bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) bench: String,
    /// Of the benches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    pub(crate) machine: Machine,
    /// What was measured, where that may be several things or somebody else's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) subjects: Vec<Label>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

impl Report {
    pub(crate) fn new(bench: &str, machine: Machine, measured: Measured) -> Self {
        Self {
            bench: bench.into(),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            machine,
            subjects: Vec::new(),
            parameters: BTreeMap::new(),
            measured,
        }
    }

    /// A short table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let names = self.measured.results.iter().map(|row| &row.name);
        let width = names.chain(self.measured.goals.iter().map(|goal| &goal.name)).map(|name| name.chars().count());
        let width = width.max().unwrap_or(0).max(4);
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{}: {}", self.bench, self.machine.line());
        let parameters: Vec<String> = self.parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if !parameters.is_empty() {
            let _ = writeln!(out, "with {}", parameters.join(", "));
        }
        let labels: Vec<Option<&Label>> = match self.subjects.is_empty() {
            true => vec![None],
            false => self.subjects.iter().map(Some).collect(),
        };
        for label in labels {
            let on = label.map(|label| &label.name);
            if let Some(label) = label {
                let versions: Vec<String> = label.versions.iter().map(|(name, of)| format!("{name} {of}")).collect();
                let _ = writeln!(out, "\n{} ({})", label.name, versions.join(", "));
            }
            let rows = self.measured.results.iter().filter(|row| on.is_none() || row.on.as_ref() == on);
            let goals = self.measured.goals.iter().filter(|goal| on.is_none() || goal.on.as_ref() == on);
            results(&mut out, width, rows);
            asked(&mut out, width, goals);
        }
        for note in &self.measured.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }
}

fn results<'a>(out: &mut String, width: usize, rows: impl Iterator<Item = &'a Row>) {
    let _ = writeln!(
        out,
        "\n{:<width$}  {:>10} {:>10} {:>10} {:>10} {:>7}  unit",
        "result", "p50", "p99", "min", "max", "n"
    );
    for row in rows {
        let [p50, p99, min, max] = [row.p50, row.p99, row.min, row.max].map(figure);
        let _ =
            writeln!(out, "{:<width$}  {p50:>10} {p99:>10} {min:>10} {max:>10} {:>7}  {}", row.name, row.n, row.unit);
    }
}

fn asked<'a>(out: &mut String, width: usize, goals: impl Iterator<Item = &'a Goal>) {
    let mut goals = goals.peekable();
    if goals.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "\n{:<width$}  {:>14} {:>10}  met", "goal", "", "value");
    for goal in goals {
        let value = goal.value.map_or_else(|| "-".to_owned(), figure);
        let met = if goal.met { "yes" } else { "NO" };
        let _ = writeln!(out, "{:<width$}  {:>14} {value:>10}  {met}", goal.name, goal.goal);
    }
}

/// About three significant digits.
pub(crate) fn figure(value: f64) -> String {
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
        Report::new("startup", Machine { cpus: 2, memory: 8 << 30, kernel: "6.1".into(), load: 0.5 }, measured)
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
    fn a_distribution_keeps_its_repeats_and_its_shape() {
        let row = Row::distribution("x", "ms", &[vec![1.0, 2.0, 3.0], vec![], vec![5.0, 7.0, 9.0]]).unwrap();
        assert_eq!((row.p50, row.n, row.spread()), (3.0, 6, (2.0, 7.0)));
        assert_eq!((row.quantiles[0], row.quantiles[12]), ((0.0, 1.0), (100.0, 9.0)));
        assert_eq!(Row::distribution("x", "ms", &[]), None);
        assert_eq!(Row::of("x", "ms", &[4.0, 6.0]).unwrap().spread(), (4.0, 6.0));
    }

    #[test]
    fn the_table_has_a_part_for_each_subject() {
        let table = crate::document::tests::report("api", &[("one", &[1.0]), ("two", &[2.0])]).table();
        let parts: Vec<&str> =
            table.split("\none (server 1)\n").flat_map(|part| part.split("\ntwo (server 1)\n")).collect();
        assert_eq!(parts.len(), 3, "{table}");
        assert!(parts[1].contains("1.00") && !parts[1].contains("2.00"), "{table}");
        assert!(parts[2].contains("2.00") && !parts[2].contains("1.00"), "{table}");
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

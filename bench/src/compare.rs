//! `compare`: the ratios of two documents' figures. A ratio's spread is what the repeats of both sides leave open: the lowest
//! of one by the highest of the other, and the other way round.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    document::{self, Subject},
    report::{Report, Row, figure},
};

#[derive(Args)]
pub(crate) struct Options {
    /// What is compared with: a document of `--json`
    a: PathBuf,
    /// What is compared
    b: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let (a, b) = (document::read(&options.a)?, document::read(&options.b)?);
    print!("{}", compared(&a, &b)?);
    Ok(())
}

/// A ratio and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Of `b` to `a`; `None` where one of them is zero or less, as differences may be.
    pub(crate) fn of(a: &Row, b: &Row) -> Option<Self> {
        if a.p50 <= 0.0 || b.p50 <= 0.0 {
            return None;
        }
        let ((a_low, a_high), (b_low, b_high)) = (a.spread(), b.spread());
        let ratio = Self { value: b.p50 / a.p50, low: b_low / a_high, high: b_high / a_low };
        [ratio.value, ratio.low, ratio.high].iter().all(|part| part.is_finite()).then_some(ratio)
    }

    /// Whether the repeats overlap, so that the two may as well be the same.
    pub(crate) fn unsure(self) -> bool {
        self.low <= 1.0 && self.high >= 1.0
    }
}

/// Which of one document's subjects is compared with which of the other's: those of the same name where all names are the
/// same, else each with each.
fn pairs<'a, 'b>(a: &'b [Subject<'a>], b: &'b [Subject<'a>]) -> Vec<(&'b Subject<'a>, &'b Subject<'a>)> {
    let alike = a.len() == b.len() && a.iter().all(|one| b.iter().any(|other| other.name == one.name));
    let each = a.iter().flat_map(|one| b.iter().map(move |other| (one, other)));
    each.filter(|(one, other)| !alike || one.name == other.name).collect()
}

fn compared(a: &Report, b: &Report) -> Result<String> {
    if a.bench != b.bench {
        bail!(
            "the first document is of `{}`, the second of `{}`: only the same bench can be compared",
            a.bench,
            b.bench
        );
    }
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(out, "A: {}\nB: {}", a.machine.line(), b.machine.line());
    for (name, of_a) in &a.parameters {
        match b.parameters.get(name) {
            Some(of_b) if of_b != of_a => {
                let _ = writeln!(out, "warning: measured with different {name}: {of_a} and {of_b}");
            }
            _ => {}
        }
    }
    let (left, right) = (document::subjects(&[a]), document::subjects(&[b]));
    let mut rows = 0;
    for (one, other) in pairs(&left, &right) {
        let _ = writeln!(out, "\nA is {}, B is {}", one.name, other.name);
        let both: Vec<(&Row, &Row)> = one.rows().filter_map(|row| Some((row, other.row(&row.name)?))).collect();
        rows += both.len();
        table(&mut out, &both);
    }
    if rows == 0 {
        bail!("the documents have no figure in common");
    }
    for (side, notes) in [("A", &a.measured.notes), ("B", &b.measured.notes)] {
        for note in notes {
            let _ = writeln!(out, "note on {side}: {note}");
        }
    }
    Ok(out)
}

fn table(out: &mut String, rows: &[(&Row, &Row)]) {
    let width = rows.iter().map(|(row, _)| row.name.chars().count()).max().unwrap_or(0).max(6);
    let _ = writeln!(out, "{:<width$}  {:>10} {:>10}  {:>8}  {:<19}  unit", "result", "A", "B", "B / A", "spread");
    for (a, b) in rows {
        let (ratio, spread) = match Ratio::of(a, b) {
            None => ("-".to_owned(), String::new()),
            Some(ratio) => {
                let sure = if ratio.unsure() { " ~" } else { "" };
                (figure(ratio.value), format!("{} to {}{sure}", figure(ratio.low), figure(ratio.high)))
            }
        };
        let [left, right] = [a.p50, b.p50].map(figure);
        let _ = writeln!(out, "{:<width$}  {left:>10} {right:>10}  {ratio:>8}  {spread:<19}  {}", a.name, a.unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::report;

    #[test]
    fn a_ratio_is_as_sure_as_the_repeats() {
        let row = |values: &[f64]| Row::of("x", "s", values).unwrap();
        let ratio = Ratio::of(&row(&[1.0, 2.0, 4.0]), &row(&[6.0, 8.0, 10.0])).unwrap();
        assert_eq!(ratio, Ratio { value: 4.0, low: 1.5, high: 10.0 });
        assert!(!ratio.unsure());
        assert!(Ratio::of(&row(&[1.0, 2.0]), &row(&[1.5])).unwrap().unsure());
        assert_eq!(Ratio::of(&row(&[0.0]), &row(&[1.0])), None);
        assert_eq!(Ratio::of(&row(&[-2.0]), &row(&[1.0])), None);
    }

    #[test]
    fn figures_of_the_same_name_are_compared() {
        let check = |a: &[(&str, &[f64])], b: &[(&str, &[f64])], expected: &[&str]| {
            let text = compared(&report("api", a), &report("api", b)).unwrap();
            let found: Vec<&str> = text.lines().filter(|line| line.starts_with("A is ")).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(
            &[("embedded", &[1.0]), ("etcd", &[2.0])],
            &[("embedded", &[1.0]), ("etcd", &[2.0])],
            &["A is embedded, B is embedded", "A is etcd, B is etcd"],
        );
        check(
            &[("upstream", &[1.0])],
            &[("embedded", &[1.0]), ("etcd", &[2.0])],
            &["A is upstream, B is embedded", "A is upstream, B is etcd"],
        );
        let text = compared(&report("api", &[("x", &[2.0])]), &report("api", &[("x", &[5.0, 6.0, 7.0])])).unwrap();
        assert!(text.contains("3.00  2.50 to 3.50 "), "{text}");
    }

    #[test]
    fn different_things_are_not_compared() {
        let said = |a: &Report, b: &Report| compared(a, b).unwrap_err().to_string();
        let one = report("api", &[("x", &[2.0])]);
        assert!(said(&one, &report("sched", &[("x", &[2.0])])).ends_with("only the same bench can be compared"));
        assert_eq!(said(&one, &report("api", &[("x", &[])])), "the documents have no figure in common");
        let mut other = report("api", &[("x", &[2.0])]);
        let mut first = one.clone();
        first.parameters.insert("pods".into(), "1".into());
        other.parameters.insert("pods".into(), "2".into());
        assert!(compared(&first, &other).unwrap().contains("warning: measured with different pods: 1 and 2"));
    }
}

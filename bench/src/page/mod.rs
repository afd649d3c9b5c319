//! `report`: documents of benches as one HTML page that needs nothing else: scaling curves, distributions, goals and tables,
//! what was measured side by side. Pure but for the reading of the documents.

mod chart;
mod scale;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;

use crate::{
    compare::Ratio,
    document::{self, Subject},
    report::{Report, Row, figure},
};
use chart::{Chart, Curve, Dot};

const STYLE: &str = include_str!("style.css");
/// More colours than can be told apart help nobody.
const COLOURS: usize = 6;

#[derive(Args)]
pub(crate) struct Options {
    /// Documents of `--json`
    #[arg(required = true)]
    documents: Vec<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let reports: Vec<Report> = options.documents.iter().map(|file| document::read(file)).collect::<Result<_>>()?;
    print!("{}", page(&reports));
    Ok(())
}

/// Text as HTML.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The whole page.
pub(crate) fn page(reports: &[Report]) -> String {
    let mut benches: Vec<&str> = Vec::new();
    for report in reports {
        if !benches.contains(&&*report.bench) {
            benches.push(&report.bench);
        }
    }
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Sluice benches: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Sluice benches</h1>\n",
        Text(&benches.join(", "))
    );
    for bench in benches {
        let reports: Vec<&Report> = reports.iter().filter(|report| report.bench == bench).collect();
        section(&mut out, bench, &reports);
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn section(out: &mut String, bench: &str, reports: &[&Report]) {
    let subjects = document::subjects(reports);
    let titles = document::titles(&subjects);
    let _ = writeln!(out, "<section>\n<h2>{}</h2>", Text(bench));
    measured(out, &subjects, &titles);
    goals(out, &subjects, &titles);
    let curves = curves(&subjects, &titles);
    if !curves.is_empty() {
        out.push_str(
            "<h3>Scaling</h3>\n<p class=\"how\">Medians; bars reach from the lowest to the highest repeat.</p>\n",
        );
        charts(out, &curves);
    }
    let distributions = distributions(&subjects, &titles);
    if !distributions.is_empty() {
        out.push_str(
            "<h3>Distributions</h3>\n<p class=\"how\">How many percent took no longer; towards the right the scale widens, so \
             that the slowest can be seen.</p>\n",
        );
        charts(out, &distributions);
    }
    table(out, &subjects, &titles);
    notes(out, reports);
    out.push_str("</section>\n");
}

fn charts(out: &mut String, charts: &[Chart]) {
    out.push_str("<div class=\"charts\">\n");
    for chart in charts {
        let _ = writeln!(out, "{chart}");
    }
    out.push_str("</div>\n");
}

/// What, where and with which parameters.
fn measured(out: &mut String, subjects: &[Subject], titles: &[String]) {
    out.push_str("<dl class=\"subjects\">\n");
    for (number, (subject, title)) in subjects.iter().zip(titles).enumerate() {
        let versions = subject.versions.into_iter().flatten().map(|(name, version)| format!("{name} {version}"));
        let parameters = subject.report.parameters.iter().map(|(name, value)| format!("{name} {value}"));
        let _ = writeln!(
            out,
            "<dt><span class=\"key c{}\"></span>{}</dt><dd>{}<br>{}<br>{}</dd>",
            number % COLOURS,
            Text(title),
            Text(&versions.collect::<Vec<_>>().join(", ")),
            Text(&subject.report.machine.line()),
            Text(&parameters.collect::<Vec<_>>().join(", ")),
        );
    }
    out.push_str("</dl>\n");
}

fn goals(out: &mut String, subjects: &[Subject], titles: &[String]) {
    let rows: Vec<_> =
        subjects.iter().zip(titles).flat_map(|(one, title)| one.goals().map(move |goal| (title, goal))).collect();
    if rows.is_empty() {
        return;
    }
    out.push_str("<h3>Goals</h3>\n<div class=\"wide\"><table>\n<tr><th>goal</th><th>of</th><th>asked for</th><th>value</th><th>met</th></tr>\n");
    for (title, goal) in rows {
        let value = goal.value.map_or_else(|| "not measured".to_owned(), figure);
        let (class, word) = if goal.met { ("met", "yes") } else { ("missed", "no") };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{value}</td><td class=\"{class}\">{word}</td></tr>",
            Text(&goal.name),
            Text(title),
            Text(&goal.goal.replace("<=", "≤").replace(">=", "≥")),
        );
    }
    out.push_str("</table></div>\n");
}

/// One chart for each quantity that was measured at several places, a curve for each subject.
fn curves(subjects: &[Subject], titles: &[String]) -> Vec<Chart> {
    let mut all: Vec<Chart> = Vec::new();
    for (number, (subject, title)) in subjects.iter().zip(titles).enumerate() {
        for row in subject.rows() {
            let Some(point) = &row.point else { continue };
            let chart = match all.iter_mut().find(|chart| chart.title == point.of) {
                Some(chart) => chart,
                None => {
                    all.push(Chart::new(&point.of, &point.by, &row.unit, scale::Kind::of_sizes()));
                    let last = all.len() - 1;
                    &mut all[last]
                }
            };
            let (low, high) = row.spread();
            let dot = Dot { x: point.at, y: row.p50, bar: Some((low, high)) };
            match chart.curves.iter_mut().find(|curve| curve.colour == number % COLOURS && curve.name == *title) {
                Some(curve) => curve.dots.push(dot),
                None => chart.curves.push(Curve { name: title.clone(), colour: number % COLOURS, dots: vec![dot] }),
            }
        }
    }
    all.retain(|chart| chart.curves.iter().any(|curve| curve.dots.len() > 1));
    all.iter_mut().flat_map(|chart| &mut chart.curves).for_each(|curve| curve.dots.sort_by(|a, b| a.x.total_cmp(&b.x)));
    all
}

/// One chart for each quantity whose distribution is known.
fn distributions(subjects: &[Subject], titles: &[String]) -> Vec<Chart> {
    let mut all: Vec<Chart> = Vec::new();
    for (number, (subject, title)) in subjects.iter().zip(titles).enumerate() {
        for row in subject.rows().filter(|row| !row.quantiles.is_empty()) {
            let dots = row.quantiles.iter().map(|(percent, value)| Dot { x: *percent, y: *value, bar: None }).collect();
            let curve = Curve { name: title.clone(), colour: number % COLOURS, dots };
            match all.iter_mut().find(|chart| chart.title == row.name) {
                Some(chart) => chart.curves.push(curve),
                None => {
                    let mut chart = Chart::new(&row.name, "percent", &row.unit, scale::Kind::Percentiles);
                    chart.curves.push(curve);
                    all.push(chart);
                }
            }
        }
    }
    all
}

/// Every figure, those of one name in one line; ratios are to the first of them.
fn table(out: &mut String, subjects: &[Subject], titles: &[String]) {
    let mut names: Vec<&str> = Vec::new();
    let mut known = BTreeMap::new();
    for row in subjects.iter().flat_map(Subject::rows) {
        if known.insert(&*row.name, ()).is_none() {
            names.push(&row.name);
        }
    }
    out.push_str("<details open>\n<summary>All figures</summary>\n<div class=\"wide\"><table>\n<tr><th>median (lowest to highest repeat), p99</th><th>unit</th>");
    for (number, title) in titles.iter().enumerate() {
        let _ = write!(out, "<th><span class=\"key c{}\"></span>{}</th>", number % COLOURS, Text(title));
        if number > 0 {
            let _ = write!(out, "<th>by the first</th>");
        }
    }
    out.push_str("</tr>\n");
    for name in names {
        let rows: Vec<Option<&Row>> = subjects.iter().map(|subject| subject.row(name)).collect();
        let unit = rows.iter().flatten().next().map_or("", |row| &row.unit);
        let _ = write!(out, "<tr><td>{}</td><td class=\"number\">{}</td>", Text(name), Text(unit));
        for (number, row) in rows.iter().enumerate() {
            let _ = write!(out, "<td class=\"number\">{}</td>", row.map_or_else(String::new, cell));
            if number > 0 {
                let _ = write!(out, "<td class=\"number ratio\">{}</td>", beside(rows[0], *row));
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n</details>\n");
}

fn cell(row: &Row) -> String {
    let (low, high) = row.spread();
    let mut text = format!("<b>{}</b>", figure(row.p50));
    if row.n > 1 {
        let _ = write!(text, " <small>({} to {})</small>", figure(low), figure(high));
    }
    if !row.quantiles.is_empty() {
        let _ = write!(text, " {}", figure(row.p99));
    }
    text
}

fn beside(first: Option<&Row>, row: Option<&Row>) -> String {
    let ratio = first.zip(row).and_then(|(first, row)| Ratio::of(first, row));
    ratio.map_or_else(String::new, |ratio| {
        let sure = if ratio.unsure() { " ~" } else { "" };
        format!("{} × <small>({} to {}){sure}</small>", figure(ratio.value), figure(ratio.low), figure(ratio.high))
    })
}

fn notes(out: &mut String, reports: &[&Report]) {
    let notes: Vec<&String> = reports.iter().flat_map(|report| &report.measured.notes).collect();
    if notes.is_empty() {
        return;
    }
    out.push_str("<h3>Notes</h3>\n<ul>\n");
    for note in notes {
        let _ = writeln!(out, "<li>{}</li>", Text(note));
    }
    out.push_str("</ul>\n");
}

#[cfg(test)]
mod browser;
#[cfg(test)]
mod tests;

//! Documents that benches wrote, read again: whose figures they hold. Pure but for the reading.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::report::{Goal, Report, Row};

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) name: String,
    /// Of its programs.
    pub(crate) versions: BTreeMap<String, String>,
}

/// The figures of one thing that was measured, out of a document that may hold several.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) report: &'a Report,
    pub(crate) name: String,
    pub(crate) versions: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Subject<'a> {
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a Row> {
        let on = self.versions.map(|_| self.name.clone());
        self.report.measured.results.iter().filter(move |row| on.is_none() || row.on == on)
    }

    pub(crate) fn goals(&self) -> impl Iterator<Item = &'a Goal> {
        let on = self.versions.map(|_| self.name.clone());
        self.report.measured.goals.iter().filter(move |goal| on.is_none() || goal.on == on)
    }

    pub(crate) fn row(&self, name: &str) -> Option<&'a Row> {
        self.rows().find(|row| row.name == name)
    }
}

/// Reads one document.
pub(crate) fn read(file: &Path) -> Result<Report> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a document of `bench … --json`", file.display()))?;
    if report.measured.results.is_empty() {
        bail!("{} holds no results", file.display());
    }
    Ok(report)
}

/// Everything that these documents measured, those of one bench beside each other, in the order of the documents.
pub(crate) fn subjects<'a>(reports: &[&'a Report]) -> Vec<Subject<'a>> {
    let mut all: Vec<Subject<'a>> = Vec::new();
    for report in reports {
        if report.subjects.is_empty() {
            let version = report.version.as_deref().unwrap_or("an earlier version");
            all.push(Subject { report, name: format!("Sluice {version}"), versions: None });
        }
        let named = |label: &'a Label| Subject { report, name: label.name.clone(), versions: Some(&label.versions) };
        all.extend(report.subjects.iter().map(named));
    }
    all
}

/// Names to show: those that occur more than once get the document's number.
pub(crate) fn titles(subjects: &[Subject]) -> Vec<String> {
    let same = |name: &str| subjects.iter().filter(|subject| subject.name == name).count() > 1;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let title = |subject: &Subject, nth: usize| match same(&subject.name) {
        true => format!("{} ({})", subject.name, char::from(b'A' + u8::try_from(nth % 26).unwrap_or(0))),
        false => subject.name.clone(),
    };
    let mut out = Vec::new();
    for subject in subjects {
        let nth = seen.entry(&subject.name).or_default();
        out.push(title(subject, *nth));
        *nth += 1;
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{machine::Machine, report::Measured};

    /// A document of `bench` with a row of these values for each subject.
    pub(crate) fn report(bench: &str, subjects: &[(&str, &[f64])]) -> Report {
        let mut measured = Measured::default();
        for (name, values) in subjects {
            let mut one = Measured::default();
            one.row("rate", "per s", values);
            measured.extend(one.on(name));
        }
        let label = |name: &str| Label { name: name.into(), versions: BTreeMap::from([("server".into(), "1".into())]) };
        Report {
            subjects: subjects.iter().map(|(name, _)| label(name)).collect(),
            ..Report::new(bench, Machine { cpus: 2, memory: 8 << 30, kernel: "6.1".into(), load: 0.5 }, measured)
        }
    }

    #[test]
    fn a_document_is_split_by_what_was_measured() {
        let both = report("api", &[("embedded", &[1.0]), ("etcd", &[2.0])]);
        let found = subjects(&[&both]);
        let values: Vec<(&str, f64)> =
            found.iter().map(|subject| (&*subject.name, subject.row("rate").unwrap().p50)).collect();
        assert_eq!(values, [("embedded", 1.0), ("etcd", 2.0)]);
    }

    #[test]
    fn equal_names_are_told_apart() {
        let (a, b) = (report("api", &[("x", &[1.0]), ("y", &[1.0])]), report("api", &[("x", &[2.0])]));
        assert_eq!(titles(&subjects(&[&a, &b])), ["x (A)", "y", "x (B)"]);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        assert!(read(&file).unwrap_err().to_string().starts_with("cannot read "));
        for text in ["", "{}", "[]"] {
            fs::write(&file, text).unwrap();
            assert!(read(&file).unwrap_err().to_string().contains("is not a document of"), "{text}");
        }
        let empty = report("api", &[]);
        fs::write(&file, serde_json::to_string(&empty).unwrap()).unwrap();
        assert!(read(&file).unwrap_err().to_string().ends_with("holds no results"));
    }

    #[test]
    fn a_document_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        let written = report("api", &[("x", &[1.0, 2.0])]);
        fs::write(&file, serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap(), written);
    }
}

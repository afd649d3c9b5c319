//! One bench from its beginning to its document: what the machine did before it, which programs were measured, with which
//! parameters.

use std::{collections::BTreeMap, process::Command};

use anyhow::Result;

use crate::{
    document::Label,
    lab,
    machine::Machine,
    report::{Measured, Report},
};

/// See the module.
pub(crate) struct Trial(Report);

impl Trial {
    /// Says so when the machine is busy.
    pub(crate) fn begin(bench: &str, parameters: impl IntoIterator<Item = (&'static str, String)>) -> Result<Self> {
        // Read first: the load that others make, not ours.
        let machine = Machine::read()?;
        let mut report = Report::new(bench, machine, Measured::default());
        if let Some(warning) = report.machine.busy() {
            eprintln!("warning: {warning}");
            report.measured.note(warning);
        }
        report.parameters = parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Self(report))
    }

    /// What was measured on programs of ours on this machine.
    pub(crate) fn own(self, measure: impl FnOnce() -> Result<Measured>) -> Result<Report> {
        let label = own();
        self.of(vec![(label, measure()?)])
    }

    /// What was measured, of each subject.
    pub(crate) fn of(mut self, found: Vec<(Label, Measured)>) -> Result<Report> {
        for (label, measured) in found {
            self.0.measured.extend(measured.on(&label.name));
            self.0.subjects.push(label);
        }
        Ok(self.0)
    }
}

/// Sluice itself, and what it runs pods by.
fn own() -> Label {
    // Not every bench runs it.
    let version = lab::binary().ok().and_then(|program| said(Command::new(program).arg("--version")));
    let version = version.unwrap_or_default();
    let version = version.split_whitespace().nth(1).unwrap_or(env!("CARGO_PKG_VERSION")).to_owned();
    let mut versions = BTreeMap::from([("server".to_owned(), version.clone())]);
    for (program, place) in [("containerd", 2), ("runc", 2)] {
        let words = said(Command::new(program).arg("--version")).unwrap_or_default();
        versions.extend(words.split_whitespace().nth(place).map(|version| (program.to_owned(), version.to_owned())));
    }
    Label { name: format!("Sluice {version}"), versions }
}

/// The first line that a program prints.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

//! `all`: every bench by itself, one after the other; their documents and the page of them in one folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    document::{self, Label},
    lab::{Interrupts, say},
    machine::Machine,
    page,
    report::{Measured, Report},
};

/// In this order: those that want a calm machine most before those that leave caches full.
const BENCHES: [&str; 6] = ["startup", "memory", "pods", "lb", "sched", "api"];

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document of everything on standard output instead of the tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder of the documents and the page
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    folder: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = Machine::read()?;
    let interrupts = Interrupts::catch()?;
    let folder = &options.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for (number, bench) in BENCHES.iter().enumerate() {
        say(&format!("{bench} ({} of {})", number + 1, BENCHES.len()));
        match measure(bench, folder, interrupts) {
            Ok(report) => {
                if !options.json {
                    println!("{}", report.table());
                }
                reports.push(report);
            }
            Err(error) => {
                interrupts.check()?;
                eprintln!("error: {bench}: {error:#}");
                failed.push(*bench);
            }
        }
    }
    let page = folder.join("report.html");
    fs::write(&page, page::page(&reports)).with_context(|| format!("cannot write {}", page.display()))?;
    say(&format!("the page of all is {}", page.display()));
    if options.json {
        println!("{}", serde_json::to_string_pretty(&whole(machine, reports))?);
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{} could not be measured", failed.join(", ")),
    }
}

/// Runs one bench; its document stays in the folder.
fn measure(bench: &str, folder: &Path, interrupts: &Interrupts) -> Result<Report> {
    let file = folder.join(format!("{bench}.json"));
    let out = fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    let child = command.args([bench, "--json"]).stdin(Stdio::null()).stdout(out).spawn()?;
    let status = interrupts.output(child)?.status;
    if !status.success() {
        bail!("ended with {status}");
    }
    document::read(&file)
}

/// All documents as one: what had no subject is Sluice's, and names begin with their bench.
fn whole(machine: Machine, reports: Vec<Report>) -> Report {
    let mut whole = Report::new("all", machine, Measured::default());
    for report in reports {
        let Report { bench, version, subjects, parameters, mut measured, .. } = report;
        measured.results.iter_mut().for_each(|row| row.name = format!("{bench}: {}", row.name));
        measured.goals.iter_mut().for_each(|goal| goal.name = format!("{bench}: {}", goal.name));
        let subjects = match subjects.is_empty() {
            true => {
                let label = Label { name: format!("Sluice {}", version.unwrap_or_default()), ..Label::default() };
                measured = measured.on(&label.name);
                vec![label]
            }
            false => subjects,
        };
        let new: Vec<Label> = subjects.into_iter().filter(|label| !whole.subjects.contains(label)).collect();
        whole.subjects.extend(new);
        whole.parameters.extend(parameters.into_iter().map(|(name, value)| (format!("{bench}: {name}"), value)));
        whole.measured.extend(measured);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::report;

    #[test]
    fn one_document_tells_benches_and_subjects_apart() {
        let mut alone = report("lb", &[]);
        alone.measured.row("rate", "per s", &[3.0]);
        let machine = alone.machine.clone();
        let whole = whole(machine, vec![alone, report("api", &[("embedded", &[1.0]), ("etcd", &[2.0])])]);
        let version = format!("Sluice {}", env!("CARGO_PKG_VERSION"));
        let rows: Vec<(&str, Option<&str>)> =
            whole.measured.results.iter().map(|row| (&*row.name, row.on.as_deref())).collect();
        let expected = [("lb: rate", Some(&*version)), ("api: rate", Some("embedded")), ("api: rate", Some("etcd"))];
        assert_eq!(rows, expected);
        let table = whole.table();
        assert!(["lb: rate", "embedded (", "etcd ("].iter().all(|part| table.contains(part)), "{table}");
    }
}

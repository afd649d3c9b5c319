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

/// In this order: those that want a calm machine most before those that leave caches full. With the words that make each
/// short for `--quick`.
const BENCHES: [(&str, &[&str]); 6] = [
    ("startup", &["--repeats", "2"]),
    ("memory", &["--seconds", "12", "--settle", "5"]),
    ("pods", &["--sequence", "5", "--bursts", "1"]),
    ("lb", &["--only", "packets,pods,control,policies"]),
    ("sched", &["--nodes", "500", "--repeats", "1", "--seconds", "3"]),
    ("api", &["--requests", "500", "--repeats", "1", "--pods", "2000", "--watchers", "100"]),
];

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document of everything on standard output instead of the tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder of the documents and the page
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    folder: PathBuf,
    /// Fewer and smaller repeats, for a first look: figures are not to be relied on
    #[arg(long, conflicts_with = "kubeconfig")]
    quick: bool,
    /// Measure this cluster instead of starting ones: `pods`, `lb`, `sched` and `api`; with --pid also `memory`
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// With --kubeconfig: a process of the cluster on this machine [repeatable]
    #[arg(long, value_name = "PID", value_delimiter = ',', requires = "kubeconfig")]
    pid: Vec<u32>,
    /// With --kubeconfig: what to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    label: Option<String>,
}

impl Options {
    /// The benches to run, each with its command line.
    fn benches(&self) -> Vec<(&'static str, Vec<String>)> {
        BENCHES.iter().filter_map(|(bench, quick)| Some((*bench, self.words(bench, quick)?))).collect()
    }

    /// `None` for a bench that needs more than is given.
    fn words(&self, bench: &str, quick: &[&str]) -> Option<Vec<String>> {
        let mut words = vec![bench.to_owned(), "--json".to_owned()];
        if self.quick {
            words.extend(quick.iter().map(|word| (*word).to_owned()));
        }
        let Some(kubeconfig) = &self.kubeconfig else { return Some(words) };
        if bench == "startup" || bench == "memory" && self.pid.is_empty() {
            return None;
        }
        words.extend(["--kubeconfig".to_owned(), kubeconfig.to_string_lossy().into_owned()]);
        words.extend(self.label.iter().flat_map(|label| ["--label".to_owned(), label.clone()]));
        if matches!(bench, "memory" | "sched" | "api") {
            words.extend(self.pid.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]));
        }
        Some(words)
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = Machine::read()?;
    let interrupts = Interrupts::catch()?;
    let folder = &options.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    let benches = options.benches();
    let count = benches.len();
    for (number, (bench, words)) in (1..).zip(benches) {
        say(&format!("{bench} ({number} of {count})"));
        match measure(bench, &words, folder, interrupts) {
            Ok(report) => {
                if !options.json {
                    println!("{}", report.table());
                }
                reports.push(report);
            }
            Err(error) => {
                interrupts.check()?;
                eprintln!("error: {bench}: {error:#}");
                failed.push(bench);
            }
        }
    }
    if reports.is_empty() {
        bail!("nothing could be measured");
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
fn measure(bench: &str, words: &[String], folder: &Path, interrupts: &Interrupts) -> Result<Report> {
    let file = folder.join(format!("{bench}.json"));
    let out = fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    let child = command.args(words).stdin(Stdio::null()).stdout(out).spawn()?;
    let outcome = interrupts.output(child).map(|output| output.status);
    if !outcome.as_ref().is_ok_and(std::process::ExitStatus::success) {
        // An empty one would be taken for a document.
        let _ = fs::remove_file(&file);
    }
    let status = outcome?;
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
    use crate::{document::tests::report, tests::parsed};

    #[test]
    fn every_short_bench_is_understood() {
        use clap::Parser as _;
        for (bench, words) in parsed::<Options>(&["--quick"]).unwrap().benches() {
            let words = ["sluice-bench".to_owned()].into_iter().chain(words);
            if let Err(error) = crate::Arguments::try_parse_from(words) {
                panic!("{bench}: {error}");
            }
        }
    }

    #[test]
    fn another_cluster_is_measured_from_outside() {
        let names = |words: &[&str]| -> Vec<&str> {
            parsed::<Options>(words).unwrap().benches().into_iter().map(|(bench, _)| bench).collect()
        };
        assert_eq!(names(&["--kubeconfig", "x"]), ["pods", "lb", "sched", "api"]);
        assert_eq!(names(&["--kubeconfig", "x", "--pid", "1"]), ["memory", "pods", "lb", "sched", "api"]);
    }

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

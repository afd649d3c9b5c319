//! Macro benches on real parts: a one-node cluster of the release build in network namespaces of its own, a control plane of
//! its own on loopback, or, for what can be measured from outside, any cluster that a kubeconfig leads to.
//!
//! Progress goes to standard error, the table or the document to standard output. Nothing is left behind.

mod all;
mod api;
mod cluster;
mod compare;
mod document;
mod lab;
mod lb;
mod limits;
mod load;
mod machine;
mod memory;
mod page;
mod pods;
mod proc;
#[cfg(feature = "flamegraph")]
mod profile;
mod report;
mod sched;
mod startup;
mod stats;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::{
    machine::Machine,
    pods::Target,
    report::{Measured, Report},
};

#[derive(Parser)]
#[command(name = "sluice-bench", version, about = "Measures Sluice on this machine, beside what it is compared with")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// From the start of `sluice up` to ready, with fresh and with existing directories
    Startup(Options),
    /// Create to Running and delete to gone, beside `ctr run`; many pods at once; a Service beside its pod's own address
    Pods(Options),
    /// Memory, CPU time and writes of an idle cluster, without and with the sample
    Memory(Options),
    /// The Service data plane by itself: a packet in each program, connections, changes
    Lb(lb::Options),
    /// The API server: single requests, lists, watches, memory; on our own server or any cluster
    Api(api::Options),
    /// The scheduler, on thousands of nodes that are only objects; on our own server or any cluster
    Sched(sched::Options),
    /// All of the above, one after the other, with one page of them at the end
    All(all::Options),
    /// Print the ratios of two documents' figures, with their spread
    Compare(compare::Options),
    /// Make one HTML page of several documents, on standard output
    Report(page::Options),
    /// A client of `lb`
    #[command(hide = true)]
    Call(lb::call::Options),
    /// The data plane's process of `lb`
    #[command(hide = true)]
    Follow(lb::control::Options),
    /// Measure from inside the node; the results go to standard output as JSON
    #[command(hide = true)]
    Measure(Measure),
}

#[derive(Args)]
struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    json: bool,
    /// Measure this cluster from outside instead of starting one (`pods` only)
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The image to run; with --kubeconfig, nodes must have it or be able to pull it
    #[arg(long, value_name = "NAME", default_value = pods::IMAGE)]
    image: String,
    /// The container's arguments: it must run until SIGTERM and then exit at once
    #[arg(long, value_name = "WORDS", default_value = pods::ARGUMENTS, allow_hyphen_values = true)]
    arguments: String,
}

#[derive(Args)]
struct Measure {
    /// Which bench
    bench: String,
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    node: pods::NodePlace,
}

fn main() -> ExitCode {
    match run(Arguments::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Startup(options) => own_cluster("startup", &options, startup::run),
        Bench::Api(options) => show(options.json, api::run(&options)?),
        Bench::Sched(options) => show(options.json, sched::run(&options)?),
        Bench::All(options) => all::run(&options),
        Bench::Compare(options) => compare::run(&options),
        Bench::Report(options) => page::run(&options),
        Bench::Call(options) => lb::call::run(&options),
        Bench::Follow(options) => lb::control::follow(&options),
        Bench::Lb(options) => print("lb", options.json, || lb::run(&options)),
        Bench::Memory(options) => own_cluster("memory", &options, memory::run),
        Bench::Pods(options) => print("pods", options.json, || match &options.kubeconfig {
            Some(kubeconfig) => pods::run(kubeconfig, target(&options), None),
            None => {
                let node = lab::Node::start()?;
                node.import()?;
                node.measure("pods")
            }
        }),
        Bench::Measure(measure) if measure.bench == "pods" => {
            let measured = pods::run(&measure.kubeconfig, Target::sample(), Some(measure.node))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        Bench::Measure(measure) => bail!("nothing of {:?} is measured from inside the node", measure.bench),
    }
}

fn target(options: &Options) -> Target {
    Target {
        image: options.image.clone(),
        arguments: options.arguments.split_whitespace().map(str::to_owned).collect(),
    }
}

fn own_cluster(bench: &'static str, options: &Options, measure: impl FnOnce() -> Result<Measured>) -> Result<()> {
    if options.kubeconfig.is_some() {
        bail!("{bench} looks at processes of a cluster that it starts itself; leave --kubeconfig out");
    }
    print(bench, options.json, measure)
}

fn print(bench: &'static str, json: bool, measure: impl FnOnce() -> Result<Measured>) -> Result<()> {
    // Read first: the load that others make, not ours.
    let machine = Machine::read()?;
    show(json, Report::new(bench, machine, measure()?))
}

fn show(json: bool, mut report: Report) -> Result<()> {
    report.measured.notes.extend(report.machine.busy());
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    /// The options that a command line gives.
    pub(crate) fn parsed<A: clap::Args>(words: &[&str]) -> Result<A, clap::Error> {
        let command = A::augment_args(clap::Command::new("bench").no_binary_name(true));
        A::from_arg_matches(&command.try_get_matches_from(words)?)
    }
}

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
mod trial;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sys::signal::SigSet;

use crate::report::Report;

#[derive(Parser)]
#[command(name = "sluice-bench", version, about = "Measures Sluice on this machine, beside what it is compared with")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// From the start of `sluice up` to ready, with fresh and with existing directories
    Startup(startup::Options),
    /// Create to Running and delete to gone, beside `ctr run`; many pods at once; a Service beside its pod's own address
    Pods(pods::Options),
    /// Memory, CPU time and writes of an idle cluster, without and with the sample
    Memory(memory::Options),
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
    #[command(hide = true, subcommand)]
    Measure(Measure),
}

#[derive(Subcommand)]
enum Measure {
    Pods(pods::Inside),
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
    // Whoever started this may have blocked the signals that end it, as `all` does, and what it starts would inherit that.
    SigSet::empty().thread_set_mask()?;
    match bench {
        Bench::Startup(options) => show(options.json, startup::run(&options)?),
        Bench::Api(options) => show(options.json, api::run(&options)?),
        Bench::Sched(options) => show(options.json, sched::run(&options)?),
        Bench::All(options) => all::run(&options),
        Bench::Compare(options) => compare::run(&options),
        Bench::Report(options) => page::run(&options),
        Bench::Call(options) => lb::call::run(&options),
        Bench::Follow(options) => lb::control::follow(&options),
        Bench::Lb(options) => show(options.json, lb::run(&options)?),
        Bench::Memory(options) => show(options.json, memory::run(&options)?),
        Bench::Pods(options) => show(options.json, pods::run(&options)?),
        Bench::Measure(Measure::Pods(options)) => {
            println!("{}", serde_json::to_string(&pods::inside(&options)?)?);
            Ok(())
        }
    }
}

fn show(json: bool, report: Report) -> Result<()> {
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

//! `startup`: from the start of `sluice up` to its word that it is ready, as a service manager sees it; of a cluster that is
//! somebody else's, from a command that starts it until its API and its nodes are ready (`elsewhere`).
//!
//! Three beginnings: directories that do not exist; those of an earlier run without its containerd, as after
//! a reboot; and a restart beside a running containerd. Where there are several nodes, the others join a first one that has just
//! begun, or all start at once. The time holds the few milliseconds of the shell that enters the namespace.

mod elsewhere;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;

use crate::{
    lab::{Nodes, Sizes, named, say},
    limits, proc,
    report::{Bound, Goal, Measured, Report},
    trial::Trial,
};

const FRESH: &str = "fresh directories to ready";
const JOIN: &str = "the other nodes' join to ready, all at once, fresh directories";
const REBOOT: &str = "existing directories, containerd stopped, to ready";
const RESTART: &str = "existing directories, containerd running, to ready";
const CPU: &str = "CPU time of the daemons until ready, fresh directories";

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    sizes: Sizes,
    /// Starts of each kind
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    repeats: usize,
    /// Measure this cluster, which --start and --stop start and end
    #[arg(long, value_name = "FILE", requires_all = ["start", "stop"])]
    kubeconfig: Option<PathBuf>,
    /// With --kubeconfig: the shell command that starts the whole cluster; it may end or stay
    #[arg(long, value_name = "COMMAND", requires = "kubeconfig")]
    start: Option<String>,
    /// With --kubeconfig: the shell command that ends the whole cluster, and returns when it has ended
    #[arg(long, value_name = "COMMAND", requires = "kubeconfig")]
    stop: Option<String>,
    /// What to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    label: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.sizes.check()?;
    limits::within("--repeats", options.repeats, limits::REPEATS)?;
    let repeats = ("repeats", options.repeats.to_string());
    if let (Some(kubeconfig), Some(start), Some(stop)) = (&options.kubeconfig, &options.start, &options.stop) {
        let place = elsewhere::Place { kubeconfig, start, stop };
        let label = options.label.as_deref();
        return Trial::begin("startup", [repeats])?.of(vec![elsewhere::run(&place, label, options.repeats)?]);
    }
    let trial = Trial::begin("startup", [options.sizes.parameter(), repeats])?;
    trial.own(|| options.sizes.each(|nodes| measure(nodes, options.repeats)))
}

fn measure(nodes: usize, repeats: usize) -> Result<Measured> {
    let mut cluster = Nodes::start(nodes)?;
    let (mut fresh, mut join, mut reboot, mut restart, mut cpu) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 1..=repeats {
        say(&format!("{}, start {round} of {repeats}", named(nodes)));
        cluster.end()?;
        cluster.reset()?;
        let (first, others) = cluster.start_fresh()?;
        fresh.push(milliseconds(first));
        if nodes > 1 {
            join.push(milliseconds(others));
        }
        let daemons = cluster.processes()?.into_iter().map(|node| proc::cpu_seconds(node.daemon));
        cpu.push(daemons.sum::<Result<f64>>()? * 1e3);
        // What a start sets going comes to its end before the next one.
        cluster.interrupts().sleep(limits::BURST_TAIL)?;
        cluster.end()?;
        cluster.end_containerd()?;
        reboot.push(milliseconds(cluster.start_again()?));
        cluster.interrupts().sleep(limits::BURST_TAIL)?;
        cluster.end()?;
        restart.push(milliseconds(cluster.start_again()?));
        cluster.interrupts().sleep(limits::BURST_TAIL)?;
    }
    let mut measured = Measured::default();
    measured.row(FRESH, "ms", &fresh);
    measured.row(JOIN, "ms", &join);
    measured.row(REBOOT, "ms", &reboot);
    measured.row(RESTART, "ms", &restart);
    measured.row(CPU, "ms", &cpu);
    // Several nodes share what one has for itself on other machines.
    if nodes == 1 {
        measured.goals = [FRESH, REBOOT, RESTART]
            .map(|name| Goal::new(name, Bound::Below(1000.0), "ms", measured.p50(name)))
            .to_vec();
    }
    Ok(measured)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::parsed;

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |words: &[&str], expected: &str| {
            let said = match parsed::<Options>(words) {
                Ok(options) => run(&options).err().map(|error| error.to_string()).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(said.contains(expected), "{words:?}: {said}");
        };
        check(&["--nodes", "0"], "--nodes 0: must be from 1 to 10");
        check(&["--repeats", "0"], "--repeats 0: must be from 1 to 1000");
        check(&["--kubeconfig", "x"], "--start <COMMAND>");
        check(&["--start", "x"], "--kubeconfig <FILE>");
        check(&["--kubeconfig", "x", "--start", "a", "--stop", "b", "--nodes", "3"], "cannot be used with");
        check(&["--kubeconfig", "/no", "--start", "true", "--stop", "true"], "cannot read /no");
    }
}

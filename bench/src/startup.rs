//! `startup`: from the start of `sluice up` to its word that it is ready, as a service manager sees it.
//!
//! Three beginnings: directories that do not exist; those of an earlier run without its containerd, as after
//! a reboot; and a restart beside a running containerd. The time holds the few milliseconds of the shell that enters
//! the namespace.

use std::time::Duration;

use anyhow::Result;

use crate::{
    lab::{Node, say},
    limits, proc,
    report::{Bound, Goal, Measured},
};

const FRESH: &str = "fresh directories to ready";
const REBOOT: &str = "existing directories, containerd stopped, to ready";
const RESTART: &str = "existing directories, containerd running, to ready";
const CPU: &str = "CPU time of the daemon until ready, fresh directories";

pub(crate) fn run() -> Result<Measured> {
    let mut node = Node::start()?;
    let (mut fresh, mut reboot, mut restart, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=limits::STARTS {
        say(&format!("start {round} of {}", limits::STARTS));
        node.end()?;
        node.reset()?;
        fresh.push(milliseconds(node.start_again()?));
        cpu.push(proc::cpu_seconds(node.processes()?.daemon)? * 1e3);
        // What a start sets going comes to its end before the next one.
        node.interrupts().sleep(limits::BURST_TAIL)?;
        node.end()?;
        node.end_containerd()?;
        reboot.push(milliseconds(node.start_again()?));
        node.interrupts().sleep(limits::BURST_TAIL)?;
        node.end()?;
        restart.push(milliseconds(node.start_again()?));
        node.interrupts().sleep(limits::BURST_TAIL)?;
    }
    let mut measured = Measured::default();
    measured.row(FRESH, "ms", &fresh);
    measured.row(REBOOT, "ms", &reboot);
    measured.row(RESTART, "ms", &restart);
    measured.row(CPU, "ms", &cpu);
    measured.goals =
        [FRESH, REBOOT, RESTART].map(|name| Goal::new(name, Bound::Below(1000.0), "ms", measured.p50(name))).to_vec();
    Ok(measured)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

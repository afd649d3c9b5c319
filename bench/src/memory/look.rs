//! Looks at a cluster's processes for a while.

use std::time::Duration;

use anyhow::Result;

use super::Time;
use crate::{lab::say, limits, proc, report::Measured};

pub(super) const WHOLE: &str = "daemons and loggers, PSS";
pub(super) const CPU: &str = "daemons, CPU of one core";
const MEGABYTE: f64 = 1e6;

/// Of all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    daemons: Vec<u32>,
    loggers: Vec<u32>,
    containerd: Vec<u32>,
    shims: Vec<u32>,
}

impl Processes {
    pub(super) fn alone(daemons: Vec<u32>) -> Self {
        Self { daemons, ..Self::default() }
    }

    pub(super) fn of(nodes: Vec<proc::Cluster>) -> Self {
        let mut all = Self::default();
        for node in nodes {
            all.daemons.push(node.daemon);
            all.loggers.extend(node.loggers);
            all.containerd.extend(node.containerd);
            all.shims.extend(node.shims);
        }
        all
    }
}

/// Leaves the cluster alone until it is quiet, then looks at it; figures begin with `place`.
pub(super) async fn at(
    place: &str,
    time: &Time,
    pause: impl AsyncFn(Duration) -> Result<()>,
    processes: &Processes,
    measured: &mut Measured,
) -> Result<()> {
    let whole = Duration::from_secs(time.seconds as u64);
    say(&format!(
        "{place}: letting the cluster settle for {} s, then looking at it for {} s",
        time.settle, time.seconds
    ));
    pause(Duration::from_secs(time.settle as u64)).await?;
    let before = Counters::read(processes)?;
    let mut readings = Vec::new();
    for _ in 0..limits::IDLE_READINGS {
        pause(whole / limits::IDLE_READINGS).await?;
        readings.push(Reading::read(processes)?);
    }
    let after = Counters::read(processes)?;
    let mut row = |what: &str, unit: &str, values: &[f64]| measured.row(&format!("{place}: {what}"), unit, values);
    let mut column = |what: &str, of: &dyn Fn(&Reading) -> f64| {
        row(what, "MB", &readings.iter().map(|reading| of(reading) / MEGABYTE).collect::<Vec<f64>>());
    };
    column(WHOLE, &|r| r.daemons_pss + r.loggers_pss);
    column("daemons, RSS", &|r| r.daemons_rss);
    column("daemons, PSS", &|r| r.daemons_pss);
    column("daemons, PSS of no file (heap, stacks)", &|r| r.daemons_anonymous);
    if !processes.containerd.is_empty() {
        column("loggers, PSS", &|r| r.loggers_pss);
        column("containerd, PSS", &|r| r.containerd_pss);
        column("containerd's shims, PSS", &|r| r.shims_pss);
    }
    let share = |seconds: f64| seconds / whole.as_secs_f64() * 100.0;
    let minutes = whole.as_secs_f64() / 60.0;
    row(CPU, "%", &[share(after.daemons_cpu - before.daemons_cpu)]);
    let written = (after.daemons_written - before.daemons_written) / 1e3 / minutes;
    row("daemons, written to disk per minute", "kB", &[written]);
    if !processes.containerd.is_empty() {
        row("containerd and shims, CPU of one core", "%", &[share(after.others_cpu - before.others_cpu)]);
        let written = (after.others_written - before.others_written) / 1e3 / minutes;
        row("containerd, written to disk per minute", "kB", &[written]);
    }
    Ok(())
}

/// What only grows.
struct Counters {
    daemons_cpu: f64,
    others_cpu: f64,
    daemons_written: f64,
    others_written: f64,
}

impl Counters {
    fn read(processes: &Processes) -> Result<Self> {
        let others: Vec<u32> = processes.containerd.iter().chain(&processes.shims).copied().collect();
        Ok(Self {
            daemons_cpu: sum(&processes.daemons, proc::cpu_seconds)?,
            others_cpu: sum(&others, proc::cpu_seconds)?,
            daemons_written: sum(&processes.daemons, |pid| proc::written(pid).map(bytes))?,
            others_written: sum(&others, |pid| proc::written(pid).map(bytes))?,
        })
    }
}

/// Memory at one moment, in bytes.
struct Reading {
    daemons_rss: f64,
    daemons_pss: f64,
    daemons_anonymous: f64,
    loggers_pss: f64,
    containerd_pss: f64,
    shims_pss: f64,
}

impl Reading {
    fn read(processes: &Processes) -> Result<Self> {
        let of = |pids: &[u32], part: fn(proc::Memory) -> u64| sum(pids, |pid| proc::memory(pid).map(part).map(bytes));
        let pss = |pids: &[u32]| of(pids, |memory| memory.pss);
        Ok(Self {
            daemons_rss: of(&processes.daemons, |memory| memory.rss)?,
            daemons_pss: pss(&processes.daemons)?,
            daemons_anonymous: of(&processes.daemons, |memory| memory.anonymous)?,
            loggers_pss: pss(&processes.loggers)?,
            containerd_pss: pss(&processes.containerd)?,
            shims_pss: pss(&processes.shims)?,
        })
    }
}

fn sum(pids: &[u32], of: impl Fn(u32) -> Result<f64>) -> Result<f64> {
    // An empty sum of floats would be -0.
    pids.iter().try_fold(0.0, |sum, pid| Ok(sum + of(*pid)?))
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn bytes(count: u64) -> f64 {
    count as f64
}

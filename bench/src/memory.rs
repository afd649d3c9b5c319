//! `memory`: what an idle one-node cluster holds and does: resident memory, CPU time and writes to the disk, first
//! without pods, then with the sample (three pods that are probed every two seconds).

use anyhow::Result;

use crate::{
    lab::{Node, say},
    limits, proc,
    report::{Bound, Goal, Measured},
};

const SAMPLE: &str = include_str!("../../xtask/samples/echo.yaml");
const MEGABYTE: f64 = 1e6;

pub(crate) fn run() -> Result<Measured> {
    let node = Node::start()?;
    let mut measured = Measured::default();
    watch(&node, "no pods", &mut measured)?;
    say("rolling out the sample");
    node.import()?;
    node.roll_out(SAMPLE, "echo")?;
    watch(&node, "sample", &mut measured)?;
    for place in ["no pods", "sample"] {
        let value = |what: &str| measured.p50(&format!("{place}: {what}"));
        let memory = Goal::new(&format!("{place}: {WHOLE}"), Bound::Below(100.0), "MB", value(WHOLE));
        let cpu = Goal::new(&format!("{place}: {DAEMON_CPU}"), Bound::Below(1.0), "%", value(DAEMON_CPU));
        measured.goals.extend([memory, cpu]);
    }
    Ok(measured)
}

const WHOLE: &str = "sluice daemon and loggers, PSS";
const DAEMON_CPU: &str = "sluice daemon, CPU of one core";

/// Waits until the cluster is quiet and looks at it for a while.
fn watch(node: &Node, place: &str, measured: &mut Measured) -> Result<()> {
    say(&format!("{place}: letting the cluster settle"));
    node.interrupts().sleep(limits::SETTLE)?;
    say(&format!("{place}: looking at it for {} s", limits::IDLE.as_secs()));
    let processes = node.processes()?;
    let before = Counters::read(&processes)?;
    let mut readings = Vec::new();
    for _ in 0..limits::IDLE_READINGS {
        node.interrupts().sleep(limits::IDLE / limits::IDLE_READINGS)?;
        readings.push(Reading::read(&processes)?);
    }
    let after = Counters::read(&processes)?;
    let mut row = |what: &str, unit: &str, values: &[f64]| measured.row(&format!("{place}: {what}"), unit, values);
    let mut column = |what: &str, of: &dyn Fn(&Reading) -> f64| {
        row(what, "MB", &readings.iter().map(|reading| of(reading) / MEGABYTE).collect::<Vec<f64>>());
    };
    column(WHOLE, &|r| r.daemon_pss + r.loggers_pss);
    column("sluice daemon, RSS", &|r| r.daemon_rss);
    column("sluice daemon, PSS", &|r| r.daemon_pss);
    column("sluice daemon, PSS of no file (heap, stacks)", &|r| r.daemon_anonymous);
    column("sluice loggers, PSS", &|r| r.loggers_pss);
    column("containerd, PSS", &|r| r.containerd_pss);
    column("containerd's shims, PSS", &|r| r.shims_pss);
    let share = |seconds: f64| seconds / limits::IDLE.as_secs_f64() * 100.0;
    let minutes = limits::IDLE.as_secs_f64() / 60.0;
    row(DAEMON_CPU, "%", &[share(after.daemon_cpu - before.daemon_cpu)]);
    row("containerd and shims, CPU of one core", "%", &[share(after.others_cpu - before.others_cpu)]);
    row(
        "sluice daemon, written to disk per minute",
        "kB",
        &[(after.daemon_written - before.daemon_written) / 1e3 / minutes],
    );
    row(
        "containerd, written to disk per minute",
        "kB",
        &[(after.others_written - before.others_written) / 1e3 / minutes],
    );
    Ok(())
}

/// What only grows.
struct Counters {
    daemon_cpu: f64,
    others_cpu: f64,
    daemon_written: f64,
    others_written: f64,
}

impl Counters {
    fn read(processes: &proc::Cluster) -> Result<Self> {
        let others: Vec<u32> = processes.containerd.iter().chain(&processes.shims).copied().collect();
        Ok(Self {
            daemon_cpu: proc::cpu_seconds(processes.daemon)?,
            others_cpu: sum(&others, proc::cpu_seconds)?,
            daemon_written: bytes(proc::written(processes.daemon)?),
            others_written: sum(&others, |pid| proc::written(pid).map(bytes))?,
        })
    }
}

/// Memory at one moment, in bytes.
struct Reading {
    daemon_rss: f64,
    daemon_pss: f64,
    daemon_anonymous: f64,
    loggers_pss: f64,
    containerd_pss: f64,
    shims_pss: f64,
}

impl Reading {
    fn read(processes: &proc::Cluster) -> Result<Self> {
        let daemon = proc::memory(processes.daemon)?;
        let pss = |pids: &[u32]| sum(pids, |pid| proc::memory(pid).map(|memory| bytes(memory.pss)));
        Ok(Self {
            daemon_rss: bytes(daemon.rss),
            daemon_pss: bytes(daemon.pss),
            daemon_anonymous: bytes(daemon.anonymous),
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

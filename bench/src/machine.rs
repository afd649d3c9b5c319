//! What the figures were measured on.

use std::{fs, thread};

use crate::limits;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The machine, as far as figures depend on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    /// Processors that others kept busy before the bench began, or that the machine below had no time for. Not the load
    /// average, which remembers for minutes what the bench before did.
    pub(crate) load: f64,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let begin = Ticks::read()?;
        thread::sleep(limits::CALM_LOOK);
        let end = Ticks::read()?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's version")?;
        let cpus = thread::available_parallelism()?.get();
        Ok(Self {
            cpus,
            memory: total(&memory).context("/proc/meminfo has no MemTotal")?,
            kernel: kernel.trim().to_owned(),
            load: end.since(begin, cpus),
        })
    }

    /// What to say where others' work may have changed the figures.
    pub(crate) fn busy(&self) -> Option<String> {
        let says = || {
            format!(
                "the machine was busy before the start ({:.1} of {} CPUs): minima hold, medians may not",
                self.load, self.cpus
            )
        };
        (self.load > limits::CALM).then(says)
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        #[expect(clippy::cast_precision_loss)]
        let gib = self.memory as f64 / f64::from(1 << 30);
        format!("{} CPUs, {gib:.1} GiB, Linux {}, {:.2} CPUs busy before the start", self.cpus, self.kernel, self.load)
    }
}

/// What all processors did since the machine started, in the kernel's ticks.
#[derive(Clone, Copy)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Self::of(&stat).context("/proc/stat does not say what the processors did")
    }

    /// From `cpu user nice system idle iowait irq softirq steal …`: guests' time, which comes last, is part of users'.
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
    }

    /// How many of the processors were busy on average.
    #[expect(clippy::cast_precision_loss)]
    fn since(self, earlier: Self, processors: usize) -> f64 {
        let (idle, all) = (self.idle.saturating_sub(earlier.idle), self.all.saturating_sub(earlier.all));
        let busy = all.saturating_sub(idle) as f64 / all.max(1) as f64;
        busy * processors as f64
    }
}

fn total(meminfo: &str) -> Option<u64> {
    let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    kilobytes.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total("MemTotal:       24684512 kB\nMemFree: 1 kB\n"), Some(24_684_512 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn who_kept_processors_busy_is_counted_with_what_was_stolen() {
        let ticks = |line: &str| Ticks::of(&format!("{line}\ncpu0 1 2 3\n")).unwrap();
        let begin = ticks("cpu  100 10 50 1000 20 1 2 3 90 0");
        let end = ticks("cpu  120 10 60 1130 30 1 2 33 99 0");
        // 20 by users, 10 by the kernel, 30 stolen, of 200.
        assert!((end.since(begin, 2) - 0.6).abs() < 1e-9);
        assert!(begin.since(begin, 2).abs() < 1e-9);
        assert!(Ticks::of("intr 1\n").is_none() && Ticks::of("cpu 1 2\n").is_none());
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read().unwrap();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel.is_empty());
    }
}

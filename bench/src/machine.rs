//! What the figures were measured on.

use std::fs;

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
    /// Load average of the minute before the bench began: what else ran.
    pub(crate) load: f64,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let load = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's version")?;
        Ok(Self {
            cpus: std::thread::available_parallelism()?.get(),
            memory: total(&memory).context("/proc/meminfo has no MemTotal")?,
            kernel: kernel.trim().to_owned(),
            load: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default(),
        })
    }

    /// What to say where others' work may have changed the figures.
    pub(crate) fn busy(&self) -> Option<String> {
        let says =
            || format!("the machine was busy before the start (load {:.1}): minima hold, medians may not", self.load);
        (self.load > limits::CALM).then(says)
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        #[expect(clippy::cast_precision_loss)]
        let gib = self.memory as f64 / f64::from(1 << 30);
        format!("{} CPUs, {gib:.1} GiB, Linux {}, load {:.2} before the start", self.cpus, self.kernel, self.load)
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
    fn this_machine_can_be_read() {
        let machine = Machine::read().unwrap();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel.is_empty());
    }
}

//! CPU time and memory of the processes that serve, where they are on this machine.

use std::time::Instant;

use anyhow::Result;

use crate::proc;

/// Whose figures are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    server: Vec<u32>,
    store: Option<u32>,
}

/// CPU time so far, in seconds; `None` where there is no process to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) server: Option<f64>,
    pub(crate) store: Option<f64>,
}

impl Meter {
    pub(super) fn new(server: Vec<u32>, store: Option<u32>) -> Self {
        Self { server, store }
    }

    /// Processes of the server.
    #[cfg(feature = "flamegraph")]
    pub(super) fn server(&self) -> &[u32] {
        &self.server
    }

    pub(crate) fn read(&self) -> Result<Reading> {
        let cpu = |pids: &[u32]| -> Result<Option<f64>> {
            let seconds: Vec<f64> = pids.iter().map(|pid| proc::cpu_seconds(*pid)).collect::<Result<_>>()?;
            Ok((!seconds.is_empty()).then(|| seconds.iter().sum()))
        };
        Ok(Reading { server: cpu(&self.server)?, store: cpu(self.store.as_slice())? })
    }

    /// Memory of the server's processes in MiB, shared pages in parts.
    pub(crate) fn memory(&self) -> Result<Option<f64>> {
        let bytes: Vec<u64> =
            self.server.iter().map(|pid| proc::memory(*pid).map(|memory| memory.pss)).collect::<Result<_>>()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Ok((!bytes.is_empty()).then(|| mib(bytes.iter().sum())))
    }
}

impl Reading {
    /// What was used between `before` and this reading, in milliseconds for each of `operations`.
    pub(crate) fn per(self, before: Self, operations: usize) -> Self {
        #[expect(clippy::cast_precision_loss)]
        let each = |now: Option<f64>, before: Option<f64>| Some((now? - before?) * 1e3 / operations.max(1) as f64);
        Self { server: each(self.server, before.server), store: each(self.store, before.store) }
    }
}

/// How much of the machine others use while something is measured.
pub(super) struct Share {
    begun: Instant,
    machine: f64,
    ours: f64,
}

impl Share {
    pub(super) fn begin(meter: &Meter) -> Result<Self> {
        Ok(Self { begun: Instant::now(), machine: proc::machine_cpu_seconds()?, ours: ours(meter)? })
    }

    /// Percent of the machine's CPU time since then that neither the bench nor what it measured used; `None` where that is
    /// not known to be on this machine.
    pub(super) fn end(&self, meter: &Meter) -> Result<Option<f64>> {
        let whole = self.begun.elapsed().as_secs_f64() * std::thread::available_parallelism()?.get() as f64;
        let others = proc::machine_cpu_seconds()? - self.machine - (ours(meter)? - self.ours);
        Ok((!meter.server.is_empty()).then(|| others.max(0.0) / whole.max(f64::MIN_POSITIVE) * 100.0))
    }
}

fn ours(meter: &Meter) -> Result<f64> {
    let Reading { server, store } = meter.read()?;
    Ok(proc::cpu_seconds(std::process::id())? + server.unwrap_or_default() + store.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_a_difference_in_milliseconds() {
        let reading = |server, store| Reading { server, store };
        let cost = reading(Some(3.0), None).per(reading(Some(1.0), None), 1000);
        assert_eq!(cost, reading(Some(2.0), None));
        assert_eq!(reading(Some(3.0), Some(1.0)).per(reading(None, Some(0.5)), 10), reading(None, Some(50.0)));
    }

    #[test]
    fn without_processes_nothing_is_read() {
        assert_eq!(Meter::default().read().unwrap(), Reading::default());
        assert_eq!(Meter::default().memory().unwrap(), None);
        let own = Meter::new(vec![std::process::id()], None);
        assert!(own.read().unwrap().server.is_some() && own.memory().unwrap() > Some(0.0));
    }
}

//! How the maps follow the API, under the names that kube-proxy has for it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use sluice_ebpf_common::{Frontend, Scope};
use sluice_metrics::{Histogram, Metric, Text};

use super::catalog;
use crate::limits::CAUSES;
use crate::plan::Contents;

/// As kube-proxy's, from a millisecond to 16 seconds.
const BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// As kube-proxy's: a quarter and half a second, every second of the first minute, then coarser up to five minutes.
const PROGRAMMING: &[f64] = &{
    let mut bounds = [0.25; 80];
    bounds[1] = 0.5;
    let mut at = 2;
    while at < bounds.len() {
        bounds[at] = match at {
            2..61 => at as f64 - 1.0,
            61..73 => 60.0 + (at - 61) as f64 * 5.0,
            _ => 120.0 + (at - 73) as f64 * 30.0,
        };
        at += 1;
    }
    bounds
};

/// What happened since the process started.
#[derive(Debug)]
pub(crate) struct Sync {
    started: Timestamp,
    duration: Histogram,
    programming: Histogram,
    /// Of changes that wait for the next pass.
    causes: Mutex<Vec<Timestamp>>,
    /// Microseconds since 1970.
    last: AtomicU64,
    queued: AtomicU64,
    pub(crate) services: Changes,
    pub(crate) endpoints: Changes,
}

/// Events of one kind.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    total: AtomicU64,
    pending: AtomicU64,
}

impl Default for Sync {
    fn default() -> Sync {
        Sync {
            started: Timestamp::now(),
            duration: Histogram::new(BOUNDS),
            programming: Histogram::new(PROGRAMMING),
            causes: Mutex::default(),
            last: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            services: Changes::default(),
            endpoints: Changes::default(),
        }
    }
}

impl Sync {
    /// An event was seen; whether anything has to be written for it.
    pub(crate) fn seen(&self, changes: &Changes, writes: bool) {
        changes.total.fetch_add(1, Ordering::Relaxed);
        if writes {
            changes.pending.fetch_add(1, Ordering::Relaxed);
            self.queued.store(now(), Ordering::Relaxed);
        }
    }

    /// What was seen came about then. What was before this process began is as old as it likes to be.
    pub(crate) fn caused(&self, at: Option<Timestamp>) {
        let mut causes = self.causes.lock();
        if causes.len() < CAUSES {
            causes.extend(at.filter(|at| *at > self.started));
        }
    }

    /// What came about then is in the maps.
    pub(crate) fn programmed(&self, causes: Vec<Timestamp>) {
        let now = Timestamp::now();
        // The clock that noted it may be ahead of this one.
        let took = |cause: Timestamp| Duration::try_from(now.duration_since(cause)).unwrap_or_default();
        causes.into_iter().for_each(|cause| self.programming.observe(took(cause)));
    }

    /// A pass takes all that was seen; returns when it came about.
    pub(crate) fn taken(&self) -> Vec<Timestamp> {
        for changes in [&self.services, &self.endpoints] {
            changes.pending.store(0, Ordering::Relaxed);
        }
        std::mem::take(&mut *self.causes.lock())
    }

    /// A pass was written that began then.
    pub(crate) fn written(&self, begun: Instant) {
        self.duration.observe(begun.elapsed());
        self.last.store(now(), Ordering::Relaxed);
    }

    pub(super) fn write(&self, text: &mut Text, tables: &Contents) {
        let mut series = text.metric(&catalog::NO_LOCAL);
        for (policy, ports) in ["internal", "external"].into_iter().zip(elsewhere(tables)) {
            series.add(&[policy], ports);
        }
        self.duration.write(&mut text.metric(&catalog::SYNC), &[]);
        self.programming.write(&mut text.metric(&catalog::PROGRAMMING), &[]);
        let seconds = |at: &AtomicU64| Duration::from_micros(at.load(Ordering::Relaxed)).as_secs_f64();
        text.single(&catalog::SYNC_LAST, seconds(&self.last));
        text.single(&catalog::SYNC_QUEUED, seconds(&self.queued));
        let kinds: [(&Changes, &'static Metric, &'static Metric); 2] = [
            (&self.services, &catalog::SERVICE_CHANGES, &catalog::SERVICE_PENDING),
            (&self.endpoints, &catalog::ENDPOINT_CHANGES, &catalog::ENDPOINT_PENDING),
        ];
        for (changes, total, pending) in kinds {
            text.single(total, changes.total.load(Ordering::Relaxed));
            text.single(pending, changes.pending.load(Ordering::Relaxed));
        }
    }
}

/// Service ports that could be served by other nodes alone, and may not be: for what is inside of the cluster, and outside.
fn elsewhere(tables: &Contents) -> [usize; 2] {
    [Scope::Internal, Scope::External].map(|scope| {
        let empty = tables.frontends.iter().filter(|(key, frontend)| {
            key.scope == scope as u8 && frontend.flags & Frontend::ELSEWHERE != 0 && frontend.count == 0
        });
        empty.map(|(key, frontend)| (frontend.service, key.protocol)).collect::<BTreeSet<_>>().len()
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use sluice_ebpf_common::{Address, FrontendKey, protocol};

    use super::*;

    #[test]
    fn a_change_is_timed_from_its_cause_unless_that_is_older_than_the_process() {
        let sync = Sync::default();
        let ago = |seconds: i64| sync.started + jiff::SignedDuration::from_secs(seconds);
        sync.caused(Some(ago(-5)));
        sync.caused(None);
        // By a clock that is ahead.
        sync.caused(Some(ago(100)));
        let causes = sync.taken();
        assert_eq!(causes, [ago(100)]);
        assert_eq!(sync.taken(), []);
        sync.programmed(causes);
        sync.programmed(vec![ago(-10)]);
        let mut text = Text::default();
        sync.write(&mut text, &Contents::default());
        let text = text.finish();
        for line in ["_bucket{le=\"0.25\"} 1", "_bucket{le=\"9\"} 1", "_bucket{le=\"11\"} 2", "_count 2"] {
            assert!(
                text.contains(&format!("kubeproxy_network_programming_duration_seconds{line}\n")),
                "{line} in\n{text}"
            );
        }
        assert_eq!((PROGRAMMING[60], PROGRAMMING[61], PROGRAMMING[72], PROGRAMMING[79]), (59.0, 60.0, 115.0, 300.0));
    }

    #[test]
    fn a_port_that_others_serve_is_counted_once_for_each_policy() {
        let mut tables = Contents::default();
        for (number, scope, service, flags, count) in [
            (1, Scope::Internal, 1, Frontend::LOCAL_ONLY | Frontend::ELSEWHERE, 0),
            (2, Scope::Internal, 1, Frontend::LOCAL_ONLY | Frontend::ELSEWHERE, 0),
            (3, Scope::External, 1, Frontend::LOCAL_ONLY, 0),
            (4, Scope::External, 2, Frontend::LOCAL_ONLY | Frontend::ELSEWHERE, 0),
            (5, Scope::External, 3, Frontend::LOCAL_ONLY | Frontend::ELSEWHERE, 0),
            (6, Scope::External, 4, 0, 2),
        ] {
            let (address, protocol) = (Address::v4(number), protocol::TCP);
            let key = FrontendKey { address, port: 80, protocol, scope: scope as u8 };
            tables.frontends.insert(key, Frontend { service, flags, count, ..Frontend::default() });
        }
        assert_eq!(elsewhere(&tables), [1, 2]);
    }
}

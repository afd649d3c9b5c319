//! When leases expire. Deadlines live in memory only: a restart gives each its full time again.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

#[derive(Default)]
pub(super) struct Deadlines {
    leases: HashMap<i64, (Duration, Instant)>,
    queue: BTreeSet<(Instant, i64)>,
}

impl Deadlines {
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn insert(&mut self, lease: i64, ttl: i64, now: Instant) {
        let ttl = Duration::from_secs(ttl.unsigned_abs());
        self.remove(lease);
        self.leases.insert(lease, (ttl, now + ttl));
        self.queue.insert((now + ttl, lease));
    }

    /// Starts the lease's time anew; false when there is no such lease.
    pub(super) fn renew(&mut self, lease: i64, now: Instant) -> bool {
        let Some((ttl, deadline)) = self.leases.get_mut(&lease) else {
            return false;
        };
        self.queue.remove(&(*deadline, lease));
        *deadline = now + *ttl;
        self.queue.insert((*deadline, lease));
        true
    }

    pub(super) fn remove(&mut self, lease: i64) {
        if let Some((_, deadline)) = self.leases.remove(&lease) {
            self.queue.remove(&(deadline, lease));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(deadline, _)| *deadline)
    }

    /// Leases whose time is over at `now`; they stay until removed.
    pub(super) fn expired(&self, now: Instant) -> Vec<i64> {
        let over = self.queue.iter().take_while(|(at, _)| *at <= now);
        over.map(|(_, lease)| *lease).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_lease_outlives_its_first_deadline() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut deadlines = Deadlines::default();
        deadlines.insert(1, 10, start);
        deadlines.insert(2, 20, start);
        assert_eq!(deadlines.next(), Some(at(10)));
        assert!(deadlines.renew(1, at(9)));
        assert!(!deadlines.renew(3, at(9)));
        assert_eq!(deadlines.next(), Some(at(19)));
        assert_eq!(deadlines.expired(at(18)), Vec::<i64>::new());
        assert_eq!(deadlines.expired(at(20)), vec![1, 2]);
        deadlines.remove(1);
        assert_eq!(deadlines.expired(at(20)), vec![2]);
        assert_eq!(deadlines.len(), 1);
    }
}

//! Remembers which creations and deletions the informer has not shown yet, so that a controller does not do them twice.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits;
use crate::queue::Key;

#[derive(Debug)]
struct Pending {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

/// What is expected, per owner.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    owners: Mutex<HashMap<Key, Pending>>,
}

impl Expectations {
    /// Whether everything expected was seen (or it has been too long).
    pub(crate) fn met(&self, owner: &Key) -> bool {
        self.owners.lock().get(owner).is_none_or(|pending| {
            pending.creations <= 0 && pending.deletions.is_empty() || pending.since.elapsed() > limits::EXPECTATIONS
        })
    }

    /// So many creations are about to happen.
    pub(crate) fn expect_creations(&self, owner: &Key, count: usize) {
        let pending = Pending { creations: count as i64, deletions: HashSet::new(), since: Instant::now() };
        self.owners.lock().insert(owner.clone(), pending);
    }

    /// Objects with these uids are about to be deleted.
    pub(crate) fn expect_deletions(&self, owner: &Key, uids: impl IntoIterator<Item = String>) {
        let pending = Pending { creations: 0, deletions: uids.into_iter().collect(), since: Instant::now() };
        self.owners.lock().insert(owner.clone(), pending);
    }

    /// A creation was seen, or will not happen after all.
    pub(crate) fn created(&self, owner: &Key, count: usize) {
        if let Some(pending) = self.owners.lock().get_mut(owner) {
            pending.creations -= count as i64;
        }
    }

    /// A deletion was seen, or will not happen after all.
    pub(crate) fn deleted(&self, owner: &Key, uid: &str) {
        if let Some(pending) = self.owners.lock().get_mut(owner) {
            pending.deletions.remove(uid);
        }
    }

    /// Forgets an owner.
    pub(crate) fn forget(&self, owner: &Key) {
        self.owners.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_until_seen_or_too_long() {
        let (expectations, key) = (Expectations::default(), Key::new("n", "a"));
        assert!(expectations.met(&key));
        expectations.expect_creations(&key, 2);
        expectations.created(&key, 1);
        assert!(!expectations.met(&key));
        expectations.created(&key, 1);
        assert!(expectations.met(&key));
        expectations.expect_deletions(&key, ["u".into(), "v".into()]);
        expectations.deleted(&key, "u");
        assert!(!expectations.met(&key));
        tokio::time::advance(limits::EXPECTATIONS * 2).await;
        assert!(expectations.met(&key));
    }
}

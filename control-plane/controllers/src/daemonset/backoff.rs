//! How soon a daemon's finished pod is replaced: at once the first time, later the oftener it happens on one node. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::limits;
use crate::queue::Key;

/// Replacements per DaemonSet and node.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    sets: HashMap<Key, HashMap<Box<str>, (Instant, Duration)>>,
}

impl Backoff {
    /// `Ok` when the node's pod may be replaced now; otherwise how long to wait. After a quiet time twice as long as the
    /// longest delay a node starts anew.
    pub(super) fn admit(&mut self, set: &Key, node: &str, now: Instant) -> Result<(), Duration> {
        let nodes = self.sets.entry(set.clone()).or_default();
        nodes.retain(|_, (last, _)| now.duration_since(*last) < limits::DAEMON_BACKOFF_MAX * 2);
        let Some((last, delay)) = nodes.get_mut(node) else {
            nodes.insert(node.into(), (now, limits::DAEMON_BACKOFF_MIN));
            return Ok(());
        };
        let left = delay.saturating_sub(now.duration_since(*last));
        if !left.is_zero() {
            return Err(left);
        }
        (*last, *delay) = (now, (*delay * 2).min(limits::DAEMON_BACKOFF_MAX));
        Ok(())
    }

    /// The DaemonSet is gone.
    pub(super) fn forget(&mut self, set: &Key) {
        self.sets.remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_and_later() {
        let (mut backoff, set, start) = (Backoff::default(), Key::new("n", "d"), Instant::now());
        let mut at = |seconds: u64| backoff.admit(&set, "a", start + Duration::from_secs(seconds));
        assert_eq!(at(0), Ok(()));
        assert_eq!(at(0), Err(Duration::from_secs(1)));
        assert_eq!(at(1), Ok(()));
        assert_eq!(at(2), Err(Duration::from_secs(1)));
        assert_eq!(at(3), Ok(()));
        assert_eq!(at(4), Err(Duration::from_secs(3)));
        assert_eq!(at(10_000), Ok(()));
        assert_eq!(at(10_000), Err(Duration::from_secs(1)));
    }
}
